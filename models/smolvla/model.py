"""SmolVLA: a small language model reads pictures, an instruction and the state, and an expert makes
actions of its keys and values.

`forward` is the float32 reference: one plain pass with no cache, no split and no trick. LeRobot
pads a text on its right and hides what it padded; places are counted without it, so that of one
observation nothing has to be padded, and that gives the same.

Axes: T = action in the chunk, A = width of padded actions, N = patches of a view, S = rows of
pictures and text, D = width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.networks.expert import ActionExpert, TextModel, read, tables
from models.networks.siglip import Connector, SiglipTower
from models.networks.siglip_config import SiglipVisionConfig
from models.networks.vision_language import patches_of
from models.prompt_parts import PromptParts
from models.smolvla.config import SmolVLAConfig
from runtime.image import ImageConfig
from runtime.prompt import MASKED


class SmolVLM(nn.Module):
    """What sees and reads."""

    def __init__(self, config: SmolVLAConfig) -> None:
        super().__init__()
        vision: SiglipVisionConfig = config.vision
        self.visual = SiglipTower(vision)
        self.connector = Connector(vision)
        self.model = TextModel(config.language)


class SmolVLA(nn.Module):
    def __init__(self, config: SmolVLAConfig) -> None:
        super().__init__()
        self.config = config
        self.vlm = SmolVLM(config)
        self.state_proj = nn.Linear(config.head.max_state_dim, config.language.hidden_size)
        self.action_head = ActionExpert(config.head, config.language)

    def forward(
        self,
        patches: Sequence[Tensor],
        tail_ids: tuple[int, ...],
        noise_TA: Tensor,
        state: Tensor,
        leftover: Tensor | None = None,
        weights_T1: Tensor | None = None,
    ) -> Tensor:
        """One observation -> one action chunk in policy units, of the robot's numbers alone.

        Args:
            patches: [N, patch_dim] of each view, normalised, in raster order.
            tail_ids: tokens of the text.
            noise_TA: [..., T, A] standard normal.
            state: of the robot's numbers, in policy units.
            leftover: [T, those of its actions], of the last chunk in policy units.
            weights_T1: [T, 1] how much of it counts, see `flow_dit.euler_step`.
        """
        c, text = self.config.head, self.vlm.model
        seen = [self.vlm.connector(self.vlm.visual(view)) * text.scale for view in patches]
        state = functional.pad(state, (0, c.max_state_dim - c.state_dim))
        told = text.token_table()[torch.tensor(tail_ids)]
        x = torch.cat([*seen, told, self.state_row(state)])
        count = x.shape[0]
        mask = torch.zeros(count, count)
        mask[:-1, -1] = MASKED
        kv, _ = read(text.layers, x, None, mask, tables(count, self.config.language))
        if leftover is not None:
            leftover = functional.pad(leftover, (0, c.max_action_dim - c.action_dim))
        made: Tensor = self.action_head(kv, noise_TA, leftover, weights_T1)
        return made[..., : c.action_dim]

    def state_row(self, state: Tensor) -> Tensor:
        """A padded state -> its row, [1, D]."""
        return self.state_proj(state.unsqueeze(-2))


@torch.no_grad()
def actions(
    model: SmolVLA,
    parts: PromptParts,
    image: ImageConfig,
    tail_ids: tuple[int, ...],
    observed: Mapping[str, NDArray[Any]],
) -> NDArray[np.float32]:
    """`SmolVLA.forward` from pictures; see `models.family.Family.actions`.

    Args:
        observed: every view, uint8 [H, W, 3] RGB; `state` in policy units, `noise` [T, A], and
            perhaps `leftover` with its `weights`.
    """
    patches, _ = patches_of([observed[name] for name in model.config.views], image)
    names = ("noise", "state", "leftover", "weights")
    given = [torch.from_numpy(observed[name]) if name in observed else None for name in names]
    made: NDArray[np.float32] = model(patches, tail_ids, *given).numpy()
    return made
