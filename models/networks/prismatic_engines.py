"""Engines of Prismatic vision: each tower, cut where it is asked for, and the projector."""

from __future__ import annotations

import torch
from torch import Tensor as Array
from torch import nn

from models.networks.engines import EngineSpec
from models.networks.parts import LayersPerPart, cut
from models.networks.prismatic import (
    PrismaticVision,
    Projector,
    ViT,
    placed,
    prefix_names,
    run_blocks,
)
from models.networks.prismatic_config import TOWERS, PrismaticVisionConfig
from runtime.declarations import Tensor
from runtime.graph import part_name


class TowerPart(nn.Module):
    """Some blocks of a tower, or all: the first with what embeds patches."""

    def __init__(self, tower: ViT, blocks: range) -> None:
        super().__init__()
        self.config = tower.config
        self.is_first, self.is_last = blocks.start == 0, blocks.stop == len(tower.blocks)
        if self.is_first:
            self.patch_embed = tower.patch_embed
            for name in ("pos_embed", *prefix_names(tower.config)):
                setattr(self, name, getattr(tower, name))
        self.blocks = nn.ModuleDict({str(index): tower.blocks[index] for index in blocks})

    def forward(self, x: Array) -> Array:
        if self.is_first:
            x = placed(self, self.config, self.patch_embed(x))
        x = run_blocks(self.blocks.values(), x)
        return x[..., self.config.num_prefix_tokens :, :] if self.is_last else x


class ProjectorEngine(nn.Module):
    def __init__(self, projector: Projector) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, featurizer: Array, fused_featurizer: Array) -> Array:
        return self.projector(torch.cat([featurizer, fused_featurizer], dim=-1))


def prismatic_engines(
    vision: PrismaticVision, projector: Projector, layers: LayersPerPart
) -> dict[str, EngineSpec]:
    """Patches of a picture -> what each tower says of them, and of both its tokens."""
    c = vision.config
    found: dict[str, EngineSpec] = {}
    for name in TOWERS:
        found |= _tower(name, getattr(vision, name), c, layers.get(name))
    seen = {name: Tensor(shape=(c.num_patches, getattr(c, name).hidden_size)) for name in TOWERS}
    tokens = {"tokens": Tensor(shape=(c.num_patches, c.out_hidden_size))}
    found["projector"] = EngineSpec(ProjectorEngine(projector), seen, tokens)
    return found


def _tower(
    name: str, tower: ViT, c: PrismaticVisionConfig, per_part: int | None
) -> dict[str, EngineSpec]:
    """Patches of a picture -> what the tower says of each, `features`."""
    num_patches, width = c.num_patches, tower.config.hidden_size
    between = Tensor(shape=(tower.config.num_prefix_tokens + num_patches, width))
    parts = cut(len(tower.blocks), per_part)
    return {
        part_name(name, i, len(parts)): EngineSpec(
            TowerPart(tower, blocks),
            {"x": between} if i else {"patches": Tensor(shape=(num_patches, c.patch_dim))},
            {"features": Tensor(shape=(num_patches, width))}
            if blocks is parts[-1]
            else {"x_next": between},
        )
        for i, blocks in enumerate(parts)
    }
