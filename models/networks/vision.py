"""Qwen2.5-VL vision tower and merger: the patches of one image in, its merged tokens out.

The grid is a plain Python pair, so that windows and positions are constants of the traced graph.
Oracle: `transformers` `Qwen2_5_VisionTransformerPretrainedModel`, whose parameter names are used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.networks.config import AnyVisionConfig, VisionConfig
from models.networks.layers import RMSNorm, SwiGLU, attend, merge_heads, rotate, split_heads

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class WindowLayout:
    """Order in which patches are processed, with windows of equal size side by side."""

    order_N: NDArray[np.int64]
    """Patch at each place of the window order."""
    inverse_M: NDArray[np.int64]
    """Place of each merged token in the window order."""
    groups: tuple[tuple[int, int], ...]
    """(number of windows, patches per window), in order. At most four: a grid that is no multiple
    of the window has a right edge, a bottom edge and a corner."""


class VisionTower(nn.Module):
    """[..., N, patch_dim] patches in merge-block order -> [..., N / 4, out_hidden_size] tokens."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """`grid` is (rows, columns) in patches, both even."""
        places = places_of(grid, self.config)
        x = self.patch_embed(patches).index_select(-2, places.order)
        x = run_blocks(enumerate(self.blocks), x, places, self.config)
        return self.merger(x).index_select(-2, torch.from_numpy(places.layout.inverse_M))


@dataclass(frozen=True, slots=True)
class Places:
    """Where patches stand, in the order in which they are processed."""

    layout: WindowLayout
    order: Tensor
    """[N] patch at each place."""
    cos: Tensor
    """[1, N, d] of its rotary position."""
    sin: Tensor


def places_of(grid: tuple[int, int], config: VisionConfig) -> Places:
    """Windows and rotary positions of a grid of patches; see `window_layout`."""
    layout = window_layout(grid, config)
    cos, sin = rotary_tables(grid, config)
    order = torch.from_numpy(layout.order_N)
    return Places(layout, order, cos[order].unsqueeze(-3), sin[order].unsqueeze(-3))


def run_blocks(
    blocks: Iterable[tuple[int, nn.Module]], x: Tensor, places: Places, config: VisionConfig
) -> Tensor:
    """Some blocks in a row, each with its number in the tower; `x` [..., N, D] in window order."""
    whole = ((1, x.shape[-2]),)
    for index, block in blocks:
        groups = whole if index in config.fullatt_block_indexes else places.layout.groups
        x = block(x, places.cos, places.sin, groups)
    return x


class PatchEmbed(nn.Module):
    """A 3-D convolution whose stride is its kernel: a linear layer over flattened patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.hidden_size, kernel, stride=kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return functional.linear(patches, self.proj.weight.flatten(1))


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size)
        self.norm2 = RMSNorm(config.hidden_size)
        self.attn = VisionAttention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=True)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, groups: tuple[tuple[int, int], ...]
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, groups)
        return x + self.mlp(self.norm2(x))


class VisionAttention(nn.Module):
    """Attention inside windows. Windows of one size are one batched product, without a mask."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, groups: tuple[tuple[int, int], ...]
    ) -> Tensor:
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        lengths = [windows * size for windows, size in groups]
        parts = [
            attend(*(t.unflatten(-2, group) for t in qkv)).flatten(-3, -2)
            for group, *qkv in zip(
                groups, *(t.split(lengths, dim=-2) for t in (q, k, v)), strict=True
            )
        ]
        return self.proj(merge_heads(torch.cat(parts, dim=-2)))


class PatchMerger(nn.Module):
    """Joins each 2 x 2 block of patches into one token of the language model's width."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        joined = config.hidden_size * config.spatial_merge_size**2
        self.joined = joined
        self.ln_q = RMSNorm(config.hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(joined, joined), nn.GELU(), nn.Linear(joined, config.out_hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).flatten(-2).unflatten(-1, (-1, self.joined)))


def window_layout(grid: tuple[int, int], config: VisionConfig) -> WindowLayout:
    """Cut the merged tokens of `grid` into windows and sort the windows by size.

    Raises:
        ValueError: if a side of the grid is no multiple of the merge size.
    """
    merge = config.spatial_merge_size
    check_grid(grid, merge)
    rows, columns = (side // merge for side in grid)
    step = config.window_size // merge // config.patch_size
    tokens = np.arange(rows * columns).reshape(rows, columns)
    windows = [
        tokens[top : top + step, left : left + step].ravel()
        for top in range(0, rows, step)
        for left in range(0, columns, step)
    ]
    windows.sort(key=len, reverse=True)
    order_M = np.concatenate(windows)
    sizes = [len(window) for window in windows]
    unit = merge * merge
    groups = tuple((sizes.count(s), s * unit) for s in sorted(set(sizes), reverse=True))
    order_N = (order_M[:, None] * unit + np.arange(unit)).ravel()
    return WindowLayout(order_N, np.argsort(order_M), groups)


def check_grid(grid: tuple[int, int], merge: int) -> None:
    """
    Raises:
        ValueError: a side of the grid is no multiple of the merge size.
    """
    if any(side <= 0 or side % merge for side in grid):
        raise ValueError(f"grid sides must be positive multiples of {merge} patches, got {grid}")


def merge_blocks(values: NDArray[Number], merge: int) -> NDArray[Number]:
    """[rows, columns] of a grid of patches -> [N], the patches of a merged token side by side."""
    rows, columns = values.shape
    blocks = values.reshape(rows // merge, merge, columns // merge, merge)
    return blocks.transpose(0, 2, 1, 3).ravel()


def rotary_tables(grid: tuple[int, int], config: AnyVisionConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the axial rotary positions, [N, d] each, in merge-block order."""
    half = config.hidden_size // config.num_heads // 2
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, half, 2, dtype=torch.float) / half))
    places = (
        torch.from_numpy(merge_blocks(axis, config.spatial_merge_size)).float()
        for axis in np.indices(grid)
    )
    angles = torch.cat([place[:, None] * frequencies for place in places], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()
