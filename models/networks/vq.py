"""MAGVIT-v2 as Show-o has it: a picture becomes codes, and codes become a picture.

Each code is a number whose bits are the signs of what the encoder says of a patch. So what leaves
the encoder is not continuous: a number near zero may fall to either side in another order of sums,
and codes of two implementations are compared by how many agree.

Patches of pixels come as the host cuts them, one for each code, in raster order. Parameter names
are those of `showlab/magvitv2`. Oracle: `torch.nn` alone, in the family's `reference`.

Axes: H, W = rows and columns of pixels or of what is left of them, N = codes, z = bits of a code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.layers import attend
from models.networks.vq_config import GROUPS, VQConfig

NORM_EPS = 1e-6


class VQModel(nn.Module):
    """Both directions, under the published names."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VQEncoder(config)
        self.decoder = VQDecoder(config)


class GroupNorm(nn.GroupNorm):
    """Written out, because the exported graph is what gets compiled, and the exporter would write
    it as an instance norm of reshaped numbers."""

    def __init__(self, width: int) -> None:
        super().__init__(GROUPS, width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[1, C, H, W]."""
        grouped = x.reshape(GROUPS, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        normed = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.reshape(x.shape) * self.weight[:, None, None] + self.bias[:, None, None]


class ResnetBlock(nn.Module):
    """[1, C, H, W] -> [1, C', H, W]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(width)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.norm2 = GroupNorm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if width != out:
            self.nin_shortcut = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv1(functional.silu(self.norm1(x)))
        made = self.conv2(functional.silu(self.norm2(made)))
        return made + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """One head over all places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = GroupNorm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (
            layer(normed).flatten(-2).transpose(-2, -1) for layer in (self.q, self.k, self.v)
        )
        return x + self.proj_out(attend(q, k, v).transpose(-2, -1).reshape(x.shape))


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width)
        self.attn_1 = AttnBlock(width)
        self.block_2 = ResnetBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Blocks of one size of picture."""

    def __init__(self, width: int, out: int, count: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(out if number else width, out) for number in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class Downsample(nn.Module):
    """Half the size; a row and a column of zeros stand at the end, and none at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size: each number four times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        *_, width, rows, columns = x.shape
        twice = x.reshape(width, rows, 1, columns, 1).expand(-1, -1, 2, -1, 2)
        return self.conv(twice.reshape(1, width, 2 * rows, 2 * columns))


class VQEncoder(nn.Module):
    """Pixels of -1 to 1 -> z numbers for each code, whose signs are its bits."""

    def __init__(self, c: VQConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, c.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for number, width, out in _widths(c.ch, (1, *c.ch_mult)):
            level = Level(width, out, c.num_res_blocks[number])
            if number < c.num_levels - 1:
                level.downsample = Downsample(out)
            self.down.append(level)
        self.mid = Middle(out)
        self.norm_out = GroupNorm(out)
        self.conv_out = nn.Conv2d(out, c.z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(c.z_channels, c.z_channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """[3, H, W] -> [z, rows, columns]."""
        x = self.conv_in(pixels[None])
        levels: Iterable[Any] = self.down
        for level in levels:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        x = functional.silu(self.norm_out(self.mid(x)))
        return self.quant_conv(self.conv_out(x))[0]


class VQDecoder(nn.Module):
    """Bits of -1 or 1 -> pixels, about -1 to 1."""

    def __init__(self, c: VQConfig) -> None:
        super().__init__()
        mult = c.decoder_ch_mult
        self.post_quant_conv = nn.Conv2d(c.z_channels, c.z_channels, 1)
        self.conv_in = nn.Conv2d(c.z_channels, c.ch * mult[-1], 3, padding=1)
        self.mid = Middle(c.ch * mult[-1])
        levels: list[Level] = []
        for number, width, out in _widths(c.ch, (mult[-1], *reversed(mult))):
            place = c.num_levels - 1 - number
            level = Level(width, out, c.decoder_num_res_blocks[place])
            if place:
                level.upsample = Upsample(out)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = GroupNorm(out)
        self.conv_out = nn.Conv2d(out, 3, 3, padding=1)

    def forward(self, bits: Tensor) -> Tensor:
        """[z, rows, columns] -> [3, H, W]."""
        x = self.mid(self.conv_in(self.post_quant_conv(bits[None])))
        levels: Iterable[Any] = reversed(self.up)
        for level in levels:
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(functional.silu(self.norm_out(x)))[0]


def _widths(ch: int, mult: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Number of each level, and its channels before and behind."""
    for number, (before, behind) in enumerate(zip(mult, mult[1:], strict=False)):
        yield number, ch * before, ch * behind


def pixels_of(patches: Tensor, c: VQConfig) -> Tensor:
    """[N, patch_dim] as the host cuts them -> [3, H, W]."""
    rows, columns = c.grid
    size = c.patch_size
    cut = patches.reshape(rows, columns, 3, size, size).permute(2, 0, 3, 1, 4)
    return cut.reshape(3, rows * size, columns * size)


def codes_of(z: Tensor) -> Tensor:
    """[z, rows, columns] -> [N] int32; the first number is the highest bit."""
    count = len(z)
    values = torch.tensor([1 << (count - 1 - number) for number in range(count)], dtype=torch.int32)
    bits = (z.flatten(1) > 0).to(torch.int32)
    return (bits * values[:, None]).sum(0, dtype=torch.int32)


def bit_table(z_channels: int) -> Tensor:
    """[codes, z] of -1 and 1: the bits of each code."""
    codes = torch.arange(1 << z_channels)[:, None]
    bits = codes >> torch.arange(z_channels - 1, -1, -1) & 1
    return 2.0 * bits - 1.0


def bits_of(codes: Tensor, table: Tensor, c: VQConfig) -> Tensor:
    """[N] -> [z, rows, columns] of -1 and 1."""
    return functional.embedding(codes, table).T.reshape(-1, *c.grid)


def levels_of(pixels: Tensor) -> Tensor:
    """[3, H, W] of -1 to 1 -> [H, W, 3] of 0 to 255, not rounded."""
    return ((pixels + 1) / 2).clamp(0, 1).permute(1, 2, 0) * 255
