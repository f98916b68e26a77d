"""Qwen3-VL vision tower: the patches of one image in; its merged tokens out, and features beside.

Features of some blocks on the way are merged too, each level by a merger of its own: the language
model adds them to the image's hidden states behind its first layers (DeepStack, arXiv 2406.04334).
The grid is a plain Python pair, so that positions are constants of the traced graph.
Oracle: `transformers` `Qwen3VLVisionModel`, whose parameter names are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.config import Qwen3VisionConfig
from models.networks.layers import attend, merge_heads, rotate, split_heads
from models.networks.vision import check_grid, merge_blocks, rotary_tables

NORM_EPS = 1e-6


class Qwen3VisionTower(nn.Module):
    """[..., N, patch_dim] patches in merge-block order -> [..., N / 4, out_hidden_size] tokens, and
    as much for each deep-stack level."""

    def __init__(self, config: Qwen3VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config, norm_joined=False)
        self.deepstack_merger_list = nn.ModuleList(
            PatchMerger(config, norm_joined=True) for _ in config.deepstack_visual_indexes
        )

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        """`grid` is (rows, columns) in patches, both even. Tokens come first, then the levels."""
        x = self.patch_embed(patches) + grid_positions(self.pos_embed.weight, grid, self.config)
        x, features = run_blocks(enumerate(self.blocks), x, grid, self.config, self.levels())
        return self.merger(x), *features

    def levels(self) -> dict[int, nn.Module]:
        """The merger of each deep-stack level, by the block whose output it merges."""
        indexes = self.config.deepstack_visual_indexes
        return dict(zip(indexes, self.deepstack_merger_list, strict=True))


def run_blocks(
    blocks: Iterable[tuple[int, nn.Module]],
    x: Tensor,
    grid: tuple[int, int],
    config: Qwen3VisionConfig,
    mergers: Mapping[int, nn.Module],
) -> tuple[Tensor, list[Tensor]]:
    """Some blocks in a row, each with its number in the tower.

    Args:
        x: [..., N, D].
        mergers: by the number of the block whose output they merge.

    Returns:
        What the last block puts out, and the features of these blocks' levels.
    """
    cos, sin = (table.unsqueeze(-3) for table in rotary_tables(grid, config))
    features = []
    for index, block in blocks:
        x = block(x, cos, sin)
        if index in mergers:
            features.append(mergers[index](x))
    return x, features


class PatchEmbed(nn.Module):
    """A 3-D convolution whose stride is its kernel: a linear layer over flattened patches."""

    def __init__(self, config: Qwen3VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.hidden_size, kernel, stride=kernel)

    def forward(self, patches: Tensor) -> Tensor:
        return functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class VisionBlock(nn.Module):
    def __init__(self, config: Qwen3VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, NORM_EPS)
        self.norm2 = nn.LayerNorm(config.hidden_size, NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class VisionAttention(nn.Module):
    """Over the whole image."""

    def __init__(self, config: Qwen3VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return self.proj(merge_heads(attend(rotate(q, cos, sin), rotate(k, cos, sin), v)))


class VisionMLP(nn.Module):
    def __init__(self, config: Qwen3VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(functional.gelu(self.linear_fc1(x), approximate="tanh"))


class PatchMerger(nn.Module):
    """Joins each 2 x 2 block of patches into one token of the language model's width."""

    def __init__(self, config: Qwen3VisionConfig, *, norm_joined: bool) -> None:
        """
        Args:
            norm_joined: normalise joined patches, and not each alone.
        """
        super().__init__()
        self.joined = config.hidden_size * config.spatial_merge_size**2
        self.norm_joined = norm_joined
        self.norm = nn.LayerNorm(self.joined if norm_joined else config.hidden_size, NORM_EPS)
        self.linear_fc1 = nn.Linear(self.joined, self.joined)
        self.linear_fc2 = nn.Linear(self.joined, config.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self._join(x) if self.norm_joined else x
        x = self.norm(x)
        x = x if self.norm_joined else self._join(x)
        return self.linear_fc2(functional.gelu(self.linear_fc1(x)))

    def _join(self, x: Tensor) -> Tensor:
        return x.flatten(-2).unflatten(-1, (-1, self.joined))


def grid_positions(table: Tensor, grid: tuple[int, int], config: Qwen3VisionConfig) -> Tensor:
    """The learned embeddings of a square grid at the places of another one, interpolated bilinearly
    with corners on corners. In float64, so that no way of adding up shows in exported numbers.

    Args:
        table: [side * side, D].

    Returns:
        [N, D] in merge-block order, in the type of `table`.

    Raises:
        ValueError: a side of the grid is no multiple of the merge size.
    """
    check_grid(grid, config.spatial_merge_size)
    square_SSD = table.double().unflatten(0, (config.side, config.side))
    rows_RS, columns_CS = (hats(count, config.side).to(square_SSD) for count in grid)
    whole_RSD = torch.einsum("rs,std->rtd", rows_RS, square_SSD)
    whole_RCD = torch.einsum("ct,rtd->rcd", columns_CS, whole_RSD)
    raster = np.arange(grid[0] * grid[1]).reshape(grid)
    order_N = torch.from_numpy(merge_blocks(raster, config.spatial_merge_size))
    return whole_RCD.flatten(0, 1)[order_N].to(table.dtype)


def hats(count: int, side: int) -> Tensor:
    """[count, side] float64: how much each of `side` places counts at `count` ones as far apart."""
    at = torch.from_numpy(np.linspace(0, side - 1, count))
    return (1 - (at[:, None] - torch.arange(side)).abs()).clamp(min=0)
