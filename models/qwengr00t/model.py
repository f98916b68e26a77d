"""QwenGR00T: Qwen2.5-VL sees the pictures and the instruction, a flow-matching head acts.

`forward` is the float32 reference: one plain pass with no cache, no split and no trick. The head
attends to the final hidden states of all tokens. starVLA pads a batch on the left and masks what it
padded; of one observation nothing is padded, which gives the same (`FlowDiT.velocity` takes a mask
where shapes are fixed).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.networks.flow_dit import FlowDiT
from models.networks.vision_language import VisionLanguage
from models.prompt_parts import PromptParts
from models.qwengr00t.config import QwenGR00TConfig


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
    ) -> Tensor:
        """One observation -> one action chunk, [T, A] in policy units.

        Args:
            patches: [N, patch_dim] of each view, normalised, in merge-block order.
            grid: rows and columns of patches of each view.
            parts: fixed tokens of the prompt.
            tail_ids: tokens behind the last picture.
            noise_TA: [T, A] standard normal.
            state: [S] in policy units, if the policy takes one.
        """
        if (state is not None) != self.config.takes_state:
            raise ValueError(
                f"a state is {'not ' * (state is None)}given, and the configuration says "
                f"takes_state={self.config.takes_state}"
            )
        context_LD = self.vlm.hidden(patches, grid, parts, tail_ids)
        return self.action_head(context_LD, noise_TA, state)
