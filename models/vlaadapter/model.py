"""VLA-Adapter, Pro: Qwen2.5 reads the pictures of all views, the instruction and learned queries,
and a head whose blocks each read one of its layers makes actions.

`forward` is the float32 reference: one plain pass with no cache, no split and no trick. There is no
noise and nothing to sample. Two things are the authors', and kept: the rows that the head takes for
the task begin one early, with the prompt's first token, and miss the last patch; those that it
takes for the queries begin with the prompt's last token, and miss the last query, which is why it
and what is behind it are never read here.

Axes: T = action in the chunk, A = action dimension, N = patches of a view, L = layer, Q = query,
D = width of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.bridge import BridgeHead, ProprioProjector
from models.networks.language import LanguageModel, run_layers, stacked
from models.networks.prismatic import PrismaticVision, Projector
from models.networks.vision_language import patches_of, rotary
from models.prompt_parts import PromptParts
from models.vlaadapter.config import VLAAdapterConfig
from runtime.image import ImageConfig
from runtime.prompt import attention_mask


class VLAAdapter(nn.Module):
    def __init__(self, config: VLAAdapterConfig) -> None:
        super().__init__()
        self.config = config
        width = config.language.hidden_size
        self.vision_backbone = PrismaticVision(config.vision)
        self.projector = Projector(config.vision)
        self.language_model = nn.ModuleDict({"model": LanguageModel(config.language)})
        self.action_queries = nn.Embedding(config.head.num_queries, width)
        self.action_head = BridgeHead(config.head, config.language.num_hidden_layers, width)
        self.proprio_projector = ProprioProjector(config.head.state_dim, width)

    @property
    def decoder(self) -> LanguageModel:
        """Of the language model, which has no head."""
        found = self.language_model["model"]
        assert isinstance(found, LanguageModel)
        return found

    def token_table(self) -> Tensor:
        """Embeddings of the vocabulary, and behind them the learned queries."""
        return torch.cat([self.decoder.embed_tokens.weight, self.action_queries.weight])

    def forward(
        self,
        patches: Sequence[Tensor],
        parts: PromptParts,
        tail_ids: tuple[int, ...],
        state: Tensor,
    ) -> Tensor:
        """One observation -> one action chunk, [T, A] in policy units.

        Args:
            patches: [N, patch_dim] of each view, normalised, in raster order.
            parts: fixed tokens of the prompt.
            tail_ids: tokens behind the last picture, the queries that are read among them.
            state: [S] in policy units.
        """
        table = self.token_table()
        seen = [self.projector(self.vision_backbone(view)) for view in patches]
        text = table[torch.tensor(tail_ids)]
        states_LND = self._states(torch.cat([table[torch.tensor(parts.before[0])], *seen, text]))
        task = states_LND[:, : self.config.task_rows]
        queries = states_LND[:, -self.config.head.num_queries :]
        made: Tensor = self.action_head(task, queries, self.proprio_projector(state))
        return made

    def _states(self, embeddings: Tensor) -> Tensor:
        """What every layer puts out, the last one behind the final norm."""
        decoder, length = self.decoder, embeddings.shape[0]
        cos, sin = rotary(decoder.config, [length])
        mask = torch.from_numpy(attention_mask(0, 0, length, length))
        past = decoder.empty_past(0)
        _, states = run_layers(decoder.layers, embeddings, past, mask, cos, sin)
        return stacked(states, decoder.norm)


@torch.no_grad()
def actions(
    model: VLAAdapter,
    parts: PromptParts,
    image: ImageConfig,
    tail_ids: tuple[int, ...],
    observed: Mapping[str, NDArray[Any]],
) -> NDArray[np.float32]:
    """`VLAAdapter.forward` from pictures; see `models.family.Family.actions`.

    Args:
        observed: every view, uint8 [H, W, 3] RGB, and `state` [S] in policy units.
    """
    patches, _ = patches_of([observed[name] for name in model.config.views], image)
    state = torch.from_numpy(observed["state"])
    made: NDArray[np.float32] = model(patches, parts, tail_ids, state).numpy()
    return made
