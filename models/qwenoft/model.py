"""QwenOFT: Qwen2.5-VL reads the pictures, the instruction and a token for each action, and a head
makes an action of each of these tokens' rows.

`forward` is the float32 reference: one plain pass with no cache, no split and no trick. There is no
noise and nothing to sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.mlp_resnet import MLPHead
from models.networks.vision_language import VisionLanguage, patches_of
from models.prompt_parts import PromptParts
from models.qwenoft.config import QwenOFTConfig
from runtime.image import ImageConfig
from runtime.prompt import last_places


class QwenOFT(nn.Module):
    def __init__(self, config: QwenOFTConfig) -> None:
        super().__init__()
        self.config = config
        self.vlm = VisionLanguage(config.vision, config.language)
        self.action_head = MLPHead(config.head, config.language.hidden_size)

    def forward(
        self,
        patches: Sequence[Tensor],
        grid: tuple[int, int],
        parts: PromptParts,
        tail_ids: tuple[int, ...],
    ) -> Tensor:
        """One observation -> one action chunk, [T, A] in policy units.

        Args:
            patches: [N, patch_dim] of each view, normalised, in merge-block order.
            grid: rows and columns of patches of each view.
            parts: fixed tokens of the prompt.
            tail_ids: tokens behind the last picture.
        """
        hidden_LD = self.vlm.hidden(patches, grid, parts, tail_ids)
        assert parts.action_id is not None
        places = last_places(tail_ids, parts.action_id, self.config.head.action_horizon)
        tail_LD = hidden_LD[len(hidden_LD) - len(tail_ids) :]
        return self.action_head(tail_LD[torch.tensor(places)])


@torch.no_grad()
def actions(
    model: QwenOFT,
    parts: PromptParts,
    image: ImageConfig,
    tail_ids: tuple[int, ...],
    observed: Mapping[str, NDArray[Any]],
) -> NDArray[np.float32]:
    """`QwenOFT.forward` from pictures; see `models.family.Family.actions`.

    Args:
        observed: every view, uint8 [H, W, 3] RGB.
    """
    patches, grid = patches_of([observed[name] for name in model.config.views], image)
    made: NDArray[np.float32] = model(patches, grid, parts, tail_ids).numpy()
    return made
