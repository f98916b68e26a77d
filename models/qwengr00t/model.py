"""QwenGR00T: Qwen2.5-VL sees the pictures and the instruction, a flow-matching head acts.

`forward` is the float32 reference: one plain pass with no cache, no split and no trick. The head
attends to the final hidden states of all tokens. starVLA pads a batch on the left and masks what it
padded; of one observation nothing is padded, which gives the same (`FlowDiT.velocity` takes a mask
where shapes are fixed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.flow_dit import FlowDiT
from models.networks.vision_language import VisionLanguage, patches_of
from models.prompt_parts import PromptParts
from models.qwengr00t.config import QwenGR00TConfig
from runtime.image import ImageConfig


class QwenGR00T(nn.Module):
    def __init__(self, config: QwenGR00TConfig) -> None:
        super().__init__()
        self.config = config
        self.vlm = VisionLanguage(config.vision, config.language)
        self.action_head = FlowDiT(config.head, config.language.hidden_size)

    def forward(
        self,
        patches: Sequence[Tensor],
        grid: tuple[int, int],
        parts: PromptParts,
        tail_ids: tuple[int, ...],
        noise_TA: Tensor,
        state: Tensor | None = None,
        leftover_TA: Tensor | None = None,
        weights_T1: Tensor | None = None,
    ) -> Tensor:
        """One observation -> one action chunk, [T, A] in policy units.

        Args:
            patches: [N, patch_dim] of each view, normalised, in merge-block order.
            grid: rows and columns of patches of each view.
            parts: fixed tokens of the prompt.
            tail_ids: tokens behind the last picture.
            noise_TA: [T, A] standard normal.
            state: [S] in policy units, if the policy takes one.
            leftover_TA: [T, A] of the last chunk in policy units; none by default.
            weights_T1: [T, 1] how much of it counts, see `flow_dit.euler_step`.
        """
        if (state is not None) != self.config.takes_state:
            raise ValueError(
                f"a state is {'not ' * (state is None)}given, and the configuration says "
                f"takes_state={self.config.takes_state}"
            )
        context_LD = self.vlm.hidden(patches, grid, parts, tail_ids)
        return self.action_head(context_LD, noise_TA, state, leftover_TA, weights_T1)


@torch.no_grad()
def actions(
    model: QwenGR00T,
    parts: PromptParts,
    image: ImageConfig,
    tail_ids: tuple[int, ...],
    observed: Mapping[str, NDArray[Any]],
) -> NDArray[np.float32]:
    """`QwenGR00T.forward` from pictures; see `models.family.Family.actions`.

    Args:
        observed: every view, uint8 [H, W, 3] RGB; `noise`, perhaps `state`, and perhaps `leftover`
            with its `weights`.
    """
    patches, grid = patches_of([observed[name] for name in model.config.views], image)
    names = ("noise", "state", "leftover", "weights")
    given = [torch.from_numpy(observed[name]) if name in observed else None for name in names]
    made: NDArray[np.float32] = model(patches, grid, parts, tail_ids, *given).numpy()
    return made
