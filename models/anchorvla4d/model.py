"""AnchorVLA4D: Qwen2.5-VL sees anchors and frame, a spatial encoder relates them, ScaleDP acts.

`forward` is the float32 reference: the whole policy in one plain pass, with no cache, no split and
no trick. Everything that this project exports is measured against it. The submodule names are
those of the published checkpoint's parts: `vlm`, `info_sharing`, `action_head`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.networks.readouts import readout_layers
from models.networks.scale_dp import ScaleDP, ddim_coefficients, ddim_step, inference_timesteps
from models.networks.spatial import SpatialEncoder
from models.networks.vision_language import VisionLanguage, patches_of
from models.prompt_parts import PromptParts
from runtime.image import ImageConfig


class AnchorVLA4D(nn.Module):
    def __init__(self, config: AnchorVLA4DConfig) -> None:
        super().__init__()
        self.config = config
        self.vlm = VisionLanguage(config.vision, config.language)
        self.info_sharing = SpatialEncoder(
            config.spatial, config.vision.patch_dim, config.language.hidden_size
        )
        self.action_head = ScaleDP(config.head, config.language.hidden_size)
        self.readouts = readout_layers(config.readouts, config.language.hidden_size)

    def forward(
        self,
        pictures: Sequence[Tensor],
        grid: tuple[int, int],
        parts: PromptParts,
        tail_ids: tuple[int, ...],
        state: Tensor,
        noise_TA: Tensor,
        leftover_TA: Tensor | None = None,
        weights_T1: Tensor | None = None,
    ) -> Tensor:
        """One observation -> one action chunk, in policy units.

        Args:
            pictures: [N, patch_dim] of every anchor and of the frame, normalised patches in
                merge-block order.
            grid: rows and columns of patches of each.
            parts: fixed tokens of the prompt.
            tail_ids: tokens behind the frame image.
            state: [S] in policy units.
            noise_TA: [T, A] standard normal.
            leftover_TA: [T, A] what is left of the last chunk, in policy units; zeros by default.
            weights_T1: [T, 1] how much of it counts, see `head.ddim_step`.

        Returns:
            [T, A] in policy units.
        """
        hidden_LD = self.vlm.hidden(pictures, grid, parts, tail_ids)
        spatial_ND = self.info_sharing(*pictures)
        fused = torch.cat([spatial_ND, hidden_LD], dim=-2)
        bins = self.config.head.adaptive_pool_dim
        pooled_BD = functional.adaptive_avg_pool1d(fused.T[None], bins)[0].T
        condition = self.action_head.condition(pooled_BD, state)
        x_TA = noise_TA
        leftover_TA = torch.zeros_like(x_TA) if leftover_TA is None else leftover_TA
        weights_T1 = torch.zeros_like(x_TA[..., :1]) if weights_T1 is None else weights_T1
        coefficients = ddim_coefficients(self.config.head)
        for k, t in enumerate(inference_timesteps(self.config.head)):
            epsilon = self.action_head.epsilon(x_TA, torch.tensor(t), condition)
            x_TA = ddim_step(x_TA, epsilon, coefficients[k], leftover_TA, weights_T1)
        return x_TA


@torch.no_grad()
def actions(
    model: AnchorVLA4D,
    parts: PromptParts,
    image: ImageConfig,
    tail_ids: tuple[int, ...],
    observed: Mapping[str, NDArray[Any]],
) -> NDArray[np.float32]:
    """`AnchorVLA4D.forward` from pictures; see `models.family.Family.actions`.

    Args:
        observed: `anchor` and `frame` (all of `AnchorVLA4DConfig.views`), uint8 [H, W, 3] RGB;
            `state`, `noise`, and perhaps `leftover` with its `weights`.
    """
    pictures, grid = patches_of([observed[name] for name in model.config.views], image)
    left = [observed[name] for name in ("leftover", "weights") if name in observed]
    given = map(torch.from_numpy, (observed["state"], observed["noise"], *left))
    made: NDArray[np.float32] = model(pictures, grid, parts, tail_ids, *given).numpy()
    return made
