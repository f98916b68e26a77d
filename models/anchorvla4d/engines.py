"""The engines of AnchorVLA4D: vision and language are the shared ones, the others are here."""

from __future__ import annotations

import copy

import torch
from torch import nn

from models.anchorvla4d.model import AnchorVLA4D
from models.declared import noise_shape
from models.networks.engines import COEFFICIENT_ROW, EngineSpec, language_engines, vision_engines
from models.networks.parts import WHOLE, LayersPerPart, SpatialPart, cut
from models.networks.readouts import readout_engines
from models.networks.scale_dp import ddim_step, inference_timesteps
from models.stored import plain
from runtime.declarations import Tensor
from runtime.graph import part_name


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

    def forward(
        self, anchor: torch.Tensor, frame: torch.Tensor, *more_anchors: torch.Tensor
    ) -> torch.Tensor:
        return self.encoder.trunk(anchor, *more_anchors, frame)


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
            embedder = plain(copy.deepcopy(model.action_head.t_embedder)).double()
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
    """One DDIM step, scheduler arithmetic and inpainting included."""

    def __init__(self, model: AnchorVLA4D) -> None:
        super().__init__()
        self.head = model.action_head

    def forward(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        coefficients: torch.Tensor,
        leftover: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        epsilon = self.head.denoise(x, modulation)
        return ddim_step(x, epsilon, coefficients[:4], leftover, weights)


def engines_of(
    model: AnchorVLA4D,
    grid: tuple[int, int],
    slots: int,
    layers: LayersPerPart = WHOLE,
    samples: int = 1,
) -> dict[str, EngineSpec]:
    """All engines by name; a trunk in several parts has one engine for each, numbered.

    Args:
        samples: chunks that are denoised at once. Of more than one, K, `x` is [K, T, A].
    """
    c, num_patches = model.config, grid[0] * grid[1]
    patches = Tensor(shape=(num_patches, c.vision.patch_dim))
    view = Tensor(shape=(num_patches, c.spatial.dim))
    tokens = Tensor(shape=(slots, c.language.hidden_size))
    num_spatial = num_patches * len(c.views) * (1 + len(c.spatial.indices))
    num_pooled = num_spatial + (c.anchors + 1) * slots
    spatial = Tensor(shape=(num_spatial, c.spatial.dim))
    modulation = Tensor(shape=(6 * c.head.depth + 2, c.head.n_emb))
    steps = c.head.num_inference_timesteps
    chunk, x = (Tensor(shape=noise_shape(c, k)) for k in (1, samples))
    return {
        **vision_engines(model.vlm.visual, grid, layers.get("vision")),
        **language_engines(model.vlm.model, slots, layers.get("language"), c.anchors + 1),
        "project": EngineSpec(ProjectEngine(model), {"patches": patches}, {"view": view}),
        **_spatial(model, view, spatial, layers.get("spatial")),
        "condition": EngineSpec(
            ConditionEngine(model),
            {
                "pooling": Tensor(shape=(c.head.adaptive_pool_dim, num_pooled)),
                "spatial": spatial,
                "prefix": Tensor(shape=(c.anchors * slots, c.language.hidden_size)),
                "suffix": tokens,
                "state": Tensor(shape=(c.head.state_dim,)),
            },
            {"modulations": Tensor(shape=(steps, *modulation.shape))},
        ),
        "denoise": EngineSpec(
            DenoiseEngine(model),
            {
                "x": x,
                "modulation": modulation,
                "coefficients": Tensor(shape=(COEFFICIENT_ROW,)),
                "leftover": chunk,
                "weights": Tensor(shape=(chunk.shape[0], 1)),
            },
            {"x_next": x},
        ),
        **readout_engines(c.readouts, model.readouts, slots, c.language.hidden_size),
    }


def _spatial(
    model: AnchorVLA4D, view: Tensor, whole: Tensor, per_part: int | None
) -> dict[str, EngineSpec]:
    parts, views = cut(model.config.spatial.depth, per_part), model.config.views
    ports = dict.fromkeys(views, view)
    if len(parts) == 1:
        in_order = {"anchor": view, "frame": view, **ports}
        return {"spatial": EngineSpec(SpatialEngine(model), in_order, {"tokens": whole})}
    all_views = Tensor(shape=(len(views) * view.shape[0], view.shape[1]))
    scale = Tensor(shape=(1, view.shape[1]))
    shapes = {**ports, "scale": scale, "scale_next": scale}
    found = {}
    for i, blocks in enumerate(parts):
        part = SpatialPart(model.info_sharing, blocks, views)
        found[part_name("spatial", i, len(parts))] = EngineSpec(
            part,
            {port: shapes.get(port, all_views) for port in part.inputs},
            {port: shapes.get(port, all_views) for port in part.outputs},
        )
    return found
