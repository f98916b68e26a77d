"""VLA-Adapter's head, Pro version: as many blocks as the decoder has layers, each reading one.

The rows of the actions begin as a constant. Block i attends, in one softmax, to these rows, to
layer i's states of the learned queries with the state's row behind them, and to that layer's states
of the pictures, whose scores a gate scales. What it puts out takes the rows' place: there is no
residual around it. Queries and keys turn with their place in their own segment; pairs of
neighbours turn, but by the angles of the two halves, so that most pairs are turned by two angles.
That is what the published weights were trained with, and is kept.

Parameter names are the published ones. Source: VLA-Adapter at snapshot 838a36d,
prismatic/models/action_heads.py and projectors.py. `film_gen` is stored and never used.

Axes: T = action in the chunk, Q = query, M = task row: the first token and all patches but the
last, S = tokens of a call of the decoder, L = layer, H = heads, d = head width, D = width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.config import BridgeConfig
from models.networks.layers import attend, merge_heads
from runtime.prompt import mrope_tables


class BridgeHead(nn.Module):
    def __init__(self, config: BridgeConfig, num_blocks: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.model = Bridge(config, num_blocks, width)

    def forward(self, task_LMD: Tensor, queries_LQD: Tensor, proprio_1D: Tensor) -> Tensor:
        """States of the layers, and the state's row -> [T, A] in policy units."""
        c, rows = self.config, task_LMD.shape[-2]
        cos, sin = tables(rows, self.model.head_dim, c.rope_theta)
        x_TD = self.model.start().expand(c.action_horizon, -1)
        return self.model(x_TD, self.model.task(task_LMD, cos, sin), queries_LQD, proprio_1D)


class Bridge(nn.Module):
    def __init__(self, config: BridgeConfig, num_blocks: int, width: int) -> None:
        super().__init__()
        self.config, self.head_dim = config, width // config.num_heads
        self.layer_norm1 = nn.LayerNorm(config.action_dim * width)
        self.fc1 = nn.Linear(config.action_dim * width, width)
        self.mlp_resnet_blocks = nn.ModuleList(
            BridgeBlock(width, config.num_heads) for _ in range(num_blocks)
        )
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, config.action_dim)

    def start(self) -> Tensor:
        """Every action's row, [D]: the networks in front of the blocks are given zeros."""
        zeros = torch.zeros_like(self.layer_norm1.bias)
        return functional.relu(self.fc1(self.layer_norm1(zeros)))

    def task(self, states_LMD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Keys, turned and scaled by their gates, and values of each layer, [L, 2, H, M, d]."""
        pairs = zip(self._blocks(), states_LMD.unbind(-3), strict=True)
        return torch.stack([block.task(rows, cos, sin) for block, rows in pairs], dim=-5)

    def forward(
        self, x: Tensor, task_L2HMd: Tensor, queries_LQD: Tensor, proprio_1D: Tensor
    ) -> Tensor:
        """
        Args:
            x: [T, D], what `start` gives for each action.
        """
        c = self.config
        own = tables(c.action_horizon, self.head_dim, c.rope_theta)
        behind = tables(queries_LQD.shape[-2] + 1, self.head_dim, c.rope_theta)
        layers = zip(self._blocks(), task_L2HMd.unbind(-5), queries_LQD.unbind(-3), strict=True)
        for block, task, queries in layers:
            x = block(x, torch.cat([queries, proprio_1D], dim=-2), task, own, behind)
        return self.fc2(self.layer_norm2(x))

    def _blocks(self) -> Iterator[BridgeBlock]:
        return (block for block in self.mlp_resnet_blocks if isinstance(block, BridgeBlock))


class BridgeBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())
        self.q_proj = nn.Linear(width, width)
        self.k_self = nn.Linear(width, width)
        self.v_self = nn.Linear(width, width)
        self.k_adapter = nn.Linear(width, width)
        self.v_adapter = nn.Linear(width, width)
        self.k_task = nn.Linear(width, width)
        self.v_task = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.gating_factor = nn.Parameter(torch.zeros(1))

    def task(self, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Of task rows [..., M, D], [..., 2, H, M, d]."""
        keys = turn(self._heads(self.k_task(rows)), cos, sin) * torch.tanh(self.gating_factor)
        return torch.stack([keys, self._heads(self.v_task(rows))], dim=-4)

    def forward(
        self,
        x: Tensor,
        adapter: Tensor,
        task: Tensor,
        own: tuple[Tensor, Tensor],
        behind: tuple[Tensor, Tensor],
    ) -> Tensor:
        """
        Args:
            x: [..., T, D].
            adapter: [..., Q + 1, D].
            task: [..., 2, H, M, d].
            own: angles of `x`.
            behind: and of `adapter`.
        """
        q = turn(self._heads(self.q_proj(x)), *own)
        keys = [
            turn(self._heads(self.k_self(x)), *own),
            turn(self._heads(self.k_adapter(adapter)), *behind),
            task.select(-4, 0),
        ]
        values = [
            self._heads(self.v_self(x)),
            self._heads(self.v_adapter(adapter)),
            task.select(-4, 1),
        ]
        attended = attend(q, torch.cat(keys, dim=-2), torch.cat(values, dim=-2))
        return self.ffn(self.o_proj(merge_heads(attended)) + x)

    def _heads(self, rows: Tensor) -> Tensor:
        """[..., N, D] -> [..., H, N, d]."""
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)


class ProprioProjector(nn.Module):
    """[S] in policy units -> its row, [1, D]."""

    def __init__(self, state_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(state_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(state.unsqueeze(-2))))


def tables(count: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of places 0, 1, ..., [count, d]: those of rotary positions."""
    places = np.broadcast_to(np.arange(count), (3, count))
    cos, sin = mrope_tables(places, theta=theta, sections=sections(head_dim))
    return torch.from_numpy(cos), torch.from_numpy(sin)


def sections(head_dim: int) -> Sequence[int]:
    """As `runtime.prompt.mrope_tables` has them: all frequencies turn with one place."""
    return head_dim // 2, 0, 0


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbours (a, b) -> (a cos_0 - b sin_0, b cos_1 + a sin_1), under tables of two halves."""
    first, second = x[..., ::2], x[..., 1::2]
    return x * cos + torch.stack([-second, first], dim=-1).flatten(-2) * sin
