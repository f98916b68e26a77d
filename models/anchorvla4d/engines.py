"""The engines of AnchorVLA4D: small modules of fixed shapes around parts of the policy.

An engine's ports are all that its graph sees. Sizes that depend on the image or the prompt are
fixed when it is made.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from models.anchorvla4d.head import ddim_step, inference_timesteps
from models.anchorvla4d.policy import AnchorVLA4D
from models.anchorvla4d.spatial import NUM_VIEWS
from runtime.declarations import Tensor

COEFFICIENT_ROW = 64
"""Numbers per row of the coefficient table: 256 bytes, the alignment a device wants."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One network to export: a module and its named ports in call order."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class VisionEngine(nn.Module):
    def __init__(self, model: AnchorVLA4D, grid: tuple[int, int]) -> None:
        super().__init__()
        self.visual, self.grid = model.vlm.visual, grid

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.visual(patches, self.grid)


class LanguageEngine(nn.Module):
    def __init__(self, model: AnchorVLA4D) -> None:
        super().__init__()
        self.model = model.vlm.model

    def forward(
        self,
        embeddings: torch.Tensor,
        past: torch.Tensor,
        mask: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model(embeddings, past, mask, cos, sin)


class ProjectEngine(nn.Module):
    """The spatial encoder's patch projection: all of it that one view owns alone."""

    def __init__(self, model: AnchorVLA4D) -> None:
        super().__init__()
        self.encoder = model.info_sharing

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.encoder.project(patches)


class SpatialEngine(nn.Module):
    """The trunk. `final_projection` is left to the condition, behind the pooling."""

    def __init__(self, model: AnchorVLA4D) -> None:
        super().__init__()
        self.encoder = model.info_sharing

    def forward(self, anchor: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        return self.encoder.trunk(anchor, frame)


class ConditionEngine(nn.Module):
    """Pools tokens, mixes in the state, and computes the modulations of all denoise steps.

    Pooling commutes with the spatial projection: a bin is W (sum p_i x_i) + b (sum p_i over its
    spatial tokens). That is 8 rows through the projection instead of thousands; the second sum is
    below 1 in the bin that mixes spatial and language tokens.
    """

    def __init__(self, model: AnchorVLA4D) -> None:
        super().__init__()
        self.projection = model.info_sharing.final_projection
        self.head = model.action_head
        steps = torch.tensor(inference_timesteps(model.config.head))
        with torch.no_grad():
            # In float64, so that no machine's way of adding up shows in the exported numbers.
            embedder = copy.deepcopy(model.action_head.t_embedder).double()
            self.register_buffer("step_embeddings", embedder(steps).float())
        self.step_embeddings: torch.Tensor

    def forward(
        self,
        pooling: torch.Tensor,
        spatial: torch.Tensor,
        prefix: torch.Tensor,
        suffix: torch.Tensor,
        state: torch.Tensor,
    ) -> torch.Tensor:
        widths = [spatial.shape[0], prefix.shape[0], suffix.shape[0]]
        p_spatial, p_prefix, p_suffix = pooling.split(widths, dim=1)
        pooled = (p_spatial @ spatial) @ self.projection.weight.T
        pooled = pooled + p_spatial.sum(dim=1, keepdim=True) * self.projection.bias
        pooled = pooled + p_prefix @ prefix + p_suffix @ suffix
        condition = self.head.condition(pooled, state)
        return self.head.modulations(self.step_embeddings + condition)


class DenoiseEngine(nn.Module):
    """One DDIM step, scheduler arithmetic included."""

    def __init__(self, model: AnchorVLA4D) -> None:
        super().__init__()
        self.head = model.action_head

    def forward(
        self, x: torch.Tensor, modulation: torch.Tensor, coefficients: torch.Tensor
    ) -> torch.Tensor:
        return ddim_step(x, self.head.denoise(x, modulation), coefficients[:4])


def engines_of(model: AnchorVLA4D, grid: tuple[int, int], slots: int) -> dict[str, EngineSpec]:
    c, num_patches = model.config, grid[0] * grid[1]
    width, kv_heads = c.language.hidden_size, c.language.num_key_value_heads
    cache = (slots, c.language.num_hidden_layers, 2, kv_heads, c.language.head_dim)
    patches = Tensor(shape=(num_patches, c.vision.patch_dim))
    view = Tensor(shape=(num_patches, c.spatial.dim))
    rotary = Tensor(shape=(slots, c.language.head_dim))
    tokens = Tensor(shape=(slots, width))
    num_spatial = num_patches * NUM_VIEWS * (1 + len(c.spatial.indices))
    spatial = Tensor(shape=(num_spatial, c.spatial.dim))
    modulation = Tensor(shape=(6 * c.head.depth + 2, c.head.n_emb))
    steps = c.head.num_inference_timesteps
    x = Tensor(shape=(c.head.prediction_horizon, c.head.action_dim))
    return {
        "vision": EngineSpec(
            VisionEngine(model, grid),
            {"patches": patches},
            {"tokens": Tensor(shape=(num_patches // 4, width))},
        ),
        "language": EngineSpec(
            LanguageEngine(model),
            {
                "embeddings": tokens,
                "past": Tensor(shape=cache),
                "mask": Tensor(shape=(slots, 2 * slots)),
                "cos": rotary,
                "sin": rotary,
            },
            {"kv": Tensor(shape=cache), "hidden": tokens},
        ),
        "project": EngineSpec(ProjectEngine(model), {"patches": patches}, {"view": view}),
        "spatial": EngineSpec(
            SpatialEngine(model), {"anchor": view, "frame": view}, {"tokens": spatial}
        ),
        "condition": EngineSpec(
            ConditionEngine(model),
            {
                "pooling": Tensor(shape=(c.head.adaptive_pool_dim, num_spatial + 2 * slots)),
                "spatial": spatial,
                "prefix": tokens,
                "suffix": tokens,
                "state": Tensor(shape=(c.head.state_dim,)),
            },
            {"modulations": Tensor(shape=(steps, *modulation.shape))},
        ),
        "denoise": EngineSpec(
            DenoiseEngine(model),
            {"x": x, "modulation": modulation, "coefficients": Tensor(shape=(COEFFICIENT_ROW,))},
            {"x_next": x},
        ),
    }
