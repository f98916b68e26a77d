"""The engines of VLA-Adapter: small modules of fixed shapes, and their ports.

A trunk in several parts has one engine for each, numbered. The head is in two: what it makes of the
task's rows waits for nothing but pictures, and is kept while the state moves. Keys and values of
the queries are not: the state's row passes through the same layers, and a second engine with these
weights would cost more memory than the rows cost time.
"""

from __future__ import annotations

import torch
from torch import Tensor as Array
from torch import nn

from models.networks.bridge import Bridge, ProprioProjector
from models.networks.engines import EngineSpec, language_engines
from models.networks.parts import WHOLE, LayersPerPart, cut
from models.networks.prismatic import Projector, ViT, placed, prefix_names, run_blocks
from models.vlaadapter.config import VLAAdapterConfig
from models.vlaadapter.model import VLAAdapter
from runtime.declarations import Tensor
from runtime.graph import part_name

TOWERS = ("featurizer", "fused_featurizer")


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


class TaskEngine(nn.Module):
    """Keys and values of the rows of a call, layer by layer."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.model = bridge

    def forward(self, states: Array, cos: Array, sin: Array) -> Array:
        return self.model.task(states, cos, sin)


class BridgeEngine(nn.Module):
    """What is left of the head: the state, the queries and the task's keys and values -> actions.

    Args:
        rows: of each call, how many of its rows are the task's.
    """

    def __init__(self, bridge: Bridge, proprio: ProprioProjector, rows: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.proprio_projector, self.rows = bridge, proprio, rows

    def forward(self, x: Array, places: Array, states: Array, state: Array, *task: Array) -> Array:
        kept = [kv[..., :count, :] for kv, count in zip(task, self.rows, strict=True)]
        task_rows = torch.cat(kept, dim=-2)
        return self.model(x, task_rows, places @ states, self.proprio_projector(state))


def engines_of(
    model: VLAAdapter, slots: int, layers: LayersPerPart = WHOLE
) -> dict[str, EngineSpec]:
    """All engines by name."""
    c = model.config
    found: dict[str, EngineSpec] = {}
    for name in TOWERS:
        found |= _tower(name, getattr(model.vision_backbone, name), c, layers.get(name))
    num_patches, depth = c.vision.num_patches, c.language.num_hidden_layers
    seen = {
        name: Tensor(shape=(num_patches, getattr(c.vision, name).hidden_size)) for name in TOWERS
    }
    tokens = {"tokens": Tensor(shape=(num_patches, c.vision.out_hidden_size))}
    found["projector"] = EngineSpec(ProjectorEngine(model.projector), seen, tokens)
    found |= language_engines(
        model.decoder, slots, layers.get("language"), len(c.views) + 1, every_layer=True
    )
    bridge = model.action_head.model
    states = {"states": Tensor(shape=(depth, slots, c.language.hidden_size))}
    angles = {port: Tensor(shape=(slots, bridge.head_dim)) for port in ("cos", "sin")}
    task = Tensor(shape=(depth, 2, c.head.num_heads, slots, bridge.head_dim))
    found["task"] = EngineSpec(TaskEngine(bridge), states | angles, {"kv": task})
    found["bridge"] = EngineSpec(
        BridgeEngine(bridge, model.proprio_projector, task_rows(c)),
        {
            "x": Tensor(shape=(c.head.action_horizon, c.language.hidden_size)),
            "places": Tensor(shape=(c.head.num_queries, slots)),
            **states,
            "state": Tensor(shape=(c.head.state_dim,)),
            **{f"task_{number}": task for number in range(len(c.views))},
        },
        {"actions": Tensor(shape=c.chunk)},
    )
    return found


def task_rows(c: VLAAdapterConfig) -> tuple[int, ...]:
    """Of each view's call, how many rows are the task's: the last patch is not."""
    *others, last = call_rows(c)
    return (*others, last - 1)


def call_rows(c: VLAAdapterConfig) -> tuple[int, ...]:
    """Tokens of each view's call: the first has the prompt's first token too."""
    return tuple(c.vision.num_patches + (number == 0) for number in range(len(c.views)))


def _tower(
    name: str, tower: ViT, c: VLAAdapterConfig, per_part: int | None
) -> dict[str, EngineSpec]:
    """Patches of a picture -> what the tower says of each, `features`."""
    num_patches, width = c.vision.num_patches, tower.config.hidden_size
    between = Tensor(shape=(tower.config.num_prefix_tokens + num_patches, width))
    parts = cut(len(tower.blocks), per_part)
    return {
        part_name(name, i, len(parts)): EngineSpec(
            TowerPart(tower, blocks),
            {"x": between} if i else {"patches": Tensor(shape=(num_patches, c.vision.patch_dim))},
            {"features": Tensor(shape=(num_patches, width))}
            if blocks is parts[-1]
            else {"x_next": between},
        )
        for i, blocks in enumerate(parts)
    }
