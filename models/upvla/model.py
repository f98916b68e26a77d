"""UP-VLA: a picture becomes codes, Phi-1.5 reads them behind the instruction with a row for each
action, and what these rows say becomes a chunk. The rows of the codes say the codes of a picture to
come.

`forward` is the float32 reference: one plain pass with no cache, no split and no trick. There is no
noise and nothing to sample. Text and actions are read causally; the rows of the pictures see all
rows, those of the actions too. The authors fill the text up from the left with rows that nobody
sees; here they are left out, and all others keep their positions.

Axes: T = action in the chunk, A = action dimension, N = codes of a view, L = token, D = width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.map_block import MAPBlock
from models.networks.phi import Phi
from models.networks.vision_language import patches_of, rotary_settings
from models.networks.vq import VQModel, bit_table, bits_of, codes_of, levels_of, pixels_of
from models.prompt_parts import PromptParts
from models.upvla.config import UPVLAConfig
from runtime.image import ImageConfig
from runtime.prompt import attention_mask, mrope_tables


class UPVLA(nn.Module):
    """Names are the published ones; of the head over the vocabulary only the codes' part is here.
    The picture tokenizer, which is published apart, is `vq_model`."""

    def __init__(self, config: UPVLAConfig) -> None:
        super().__init__()
        self.config = config
        c, width = config, config.language.hidden_size
        self.vq_model = VQModel(c.vision)
        self.showo = nn.ModuleDict(
            {"model": Phi(c.language), "lm_head": nn.Linear(width, c.vision.codebook_size)}
        )
        self.token_learner = MAPBlock(width, c.head.num_heads)
        self.to_logits = nn.Sequential(nn.Linear(width, c.head.action_horizon * c.head.action_dim))

    @property
    def decoder(self) -> Phi:
        """Of the language model."""
        found = self.showo["model"]
        assert isinstance(found, Phi)
        return found

    @property
    def code_table(self) -> Tensor:
        """Embeddings of the codes, [codes, D]."""
        first = self.config.prompt.first_code
        return self.decoder.embed_tokens.weight[first : first + self.config.vision.codebook_size]

    def forward(
        self, patches: Sequence[Tensor], parts: PromptParts, tail_ids: tuple[int, ...]
    ) -> Tensor:
        """One observation -> one action chunk, [T, A] in policy units.

        Args:
            patches: [N, patch_dim] of each view, normalised, in raster order.
            parts: fixed tokens of the prompt.
            tail_ids: tokens of the instruction, and what closes it.
        """
        hidden_LD = self.hidden([self.codes(view) for view in patches], parts, tail_ids)
        return self.act(hidden_LD[-self.config.head.action_horizon :])

    def codes(self, patches: Tensor) -> Tensor:
        """[N, patch_dim] -> [N] int32."""
        return codes_of(self.vq_model.encoder(pixels_of(patches, self.config.vision)))

    def hidden(
        self, codes: Sequence[Tensor], parts: PromptParts, tail_ids: tuple[int, ...]
    ) -> Tensor:
        """[L, D] of all rows, from the codes [N] of each view."""
        c, p = self.config, self.config.prompt
        decoder, text = self.decoder, (*parts.before[0], *tail_ids)
        ids = torch.tensor((*text, p.image_start, p.image_end, *[p.action] * c.chunk[0]))
        embedded, count = decoder.embed_tokens(ids), len(text) + 1
        pictures = [self.code_table[view] for view in codes]
        rows = torch.cat([embedded[:count], *pictures, embedded[count:]])
        positions = np.arange(p.max_text - len(text), p.max_text + c.num_rows)
        cos, sin = mrope_tables(
            np.broadcast_to(positions, (3, len(positions))), **rotary_settings(c.language)
        )
        mask = attention_mask(0, 0, len(rows), len(rows))
        mask[len(text) : len(text) + c.num_picture_rows] = 0
        _, hidden = decoder(rows, decoder.empty_past(0), *map(torch.from_numpy, (mask, cos, sin)))
        return hidden

    def act(self, rows: Tensor) -> Tensor:
        """[T, D] of the actions' rows -> [T, A]."""
        pooled = self.token_learner(rows, self.token_learner.query())
        made: Tensor = self.to_logits(pooled).reshape(self.config.chunk)
        return made

    def future_codes(self, hidden_LD: Tensor) -> Tensor:
        """[views, N] of the pictures to come, off the rows of those that are shown."""
        c = self.config
        stop = len(hidden_LD) - c.head.action_horizon - 1
        logits = self.showo["lm_head"](hidden_LD[stop - c.num_codes : stop])
        return logits.argmax(-1).reshape(len(c.views), -1)

    def picture(self, codes: Tensor) -> Tensor:
        """[N] -> [H, W, 3] of 0 to 255."""
        c = self.config.vision
        return levels_of(self.vq_model.decoder(bits_of(codes, bit_table(c.z_channels), c)))


@torch.no_grad()
def actions(
    model: UPVLA,
    parts: PromptParts,
    image: ImageConfig,
    tail_ids: tuple[int, ...],
    observed: Mapping[str, NDArray[Any]],
) -> NDArray[np.float32]:
    """`UPVLA.forward` from pictures; see `models.family.Family.actions`.

    Args:
        observed: every view, uint8 [H, W, 3] RGB.
    """
    patches, _ = patches_of([observed[name] for name in model.config.views], image)
    made: NDArray[np.float32] = model(patches, parts, tail_ids).numpy()
    return made
