"""Pooling by attention (MAP): one learned row looks at all others, and becomes what they say.

As Voltron has it and UP-VLA took it over: norms stand behind the sums. Parameter names are theirs;
oracle: `torch` alone, in the family's `reference`.

Axes: L = rows that are pooled, D = width, H = heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.layers import merge_heads

NORM_EPS = 1e-8
WIDENING = 4


class MAPBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, width))
        self.projection = nn.Linear(width, width)
        self.attn_norm = RootMeanSquare(width)
        self.attn = MAPAttention(width, num_heads)
        self.mlp_norm = RootMeanSquare(width)
        self.mlp = nn.Sequential(
            SwishGLU(width, WIDENING * width), nn.Linear(WIDENING * width, width)
        )

    def query(self) -> Tensor:
        """What the learned row asks, [H, 1, d], scaled: a constant."""
        return self.attn.query(self.latents)

    def forward(self, rows: Tensor, query: Tensor) -> Tensor:
        """[..., L, D] -> [..., 1, D].

        Args:
            query: see `query`.
        """
        latents = self.attn_norm(self.latents + self.attn(query, self.projection(rows)))
        made: Tensor = self.mlp_norm(latents + self.mlp(latents))
        return made


class MAPAttention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def query(self, latents: Tensor) -> Tensor:
        asked = self._heads(self.q(latents))
        return asked * asked.shape[-1] ** -0.5

    def forward(self, query: Tensor, rows: Tensor) -> Tensor:
        k, v = map(self._heads, self.kv(rows).chunk(2, dim=-1))
        shares = torch.softmax((query @ k.transpose(-2, -1)).float(), dim=-1)
        return self.proj(merge_heads(shares.to(v.dtype) @ v))

    def _heads(self, rows: Tensor) -> Tensor:
        """[..., N, D] -> [..., H, N, d]."""
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)


class RootMeanSquare(nn.Module):
    """x / max(root of its mean square, eps), in float32 whatever the input is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.sqrt(x.float().pow(2).mean(-1, keepdim=True)).clamp(min=NORM_EPS)
        return (x.float() / size).to(x.dtype) * self.g


class SwishGLU(nn.Module):
    """Half of the outputs times a swish of the other half."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        projected, gate = self.project(x).chunk(2, dim=-1)
        return projected * functional.silu(gate)
