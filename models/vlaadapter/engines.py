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
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.prismatic_engines import prismatic_engines
from models.prismatic_chat import call_rows
from models.vlaadapter.config import VLAAdapterConfig
from models.vlaadapter.model import VLAAdapter
from runtime.declarations import Tensor


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
    depth = c.language.num_hidden_layers
    found = prismatic_engines(model.vision_backbone, model.projector, layers)
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
    *others, last = call_rows(c.views, c.vision.num_patches)
    return (*others, last - 1)
