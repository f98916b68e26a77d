"""Small heads that read what a language model made of pictures: vectors, joints, and a mask.

Convolutions are written as products with flattened weights, which is all that engines are made of.
Oracles: `torch.nn` `TransformerEncoder`, `Conv2d`, `ConvTranspose2d`.

Axes: N = rows, of patches in raster order, D = width of the language model, J = joints, H, W =
rows and columns of a map, C = its channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.layers import GeluMLP, SelfAttention


class RowsMLP(nn.Module):
    """The mean of rows [..., N, D] -> [..., out]."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, rows_ND: Tensor) -> Tensor:
        mean = rows_ND.mean(dim=-2, keepdim=True)
        return self.fc2(functional.gelu(self.fc1(mean))).squeeze(-2)


class JointTransformer(nn.Module):
    """A learned token for each joint among projected rows, and what becomes of it: one number."""

    def __init__(
        self,
        width: int,
        *,
        num_joints: int,
        hidden_size: int,
        intermediate_size: int,
        num_layers: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.mask_tokens = nn.Embedding(num_joints, hidden_size)
        self.project = nn.Linear(width, hidden_size)
        self.blocks = nn.ModuleList(
            JointBlock(hidden_size, intermediate_size, num_heads) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.out = nn.Linear(hidden_size, 1)

    def forward(self, rows_ND: Tensor) -> Tensor:
        """[..., N, D] -> [..., J]."""
        tokens = self.mask_tokens.weight
        x = torch.cat([tokens.expand(*rows_ND.shape[:-2], -1, -1), self.project(rows_ND)], dim=-2)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x[..., : len(tokens), :]))[..., 0]


class JointBlock(nn.Module):
    """Norms stand before attention and MLP."""

    def __init__(self, width: int, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = GeluMLP(width, hidden, approximate="none")

    def forward(self, x_ND: Tensor) -> Tensor:
        x_ND = x_ND + self.attn(self.norm1(x_ND))
        return x_ND + self.mlp(self.norm2(x_ND))


class MaskDecoder(nn.Module):
    """Rows of a square grid of patches -> logits of a mask: halved once, and doubled as often as
    there are widths."""

    def __init__(self, width: int, widths: tuple[int, ...]) -> None:
        """
        Args:
            widths: channels in front of each doubling; behind the last one there is one channel.
        """
        super().__init__()
        self.halving = nn.Conv2d(width, widths[0], 3, stride=2, padding=1)
        pairs = zip(widths, (*widths[1:], 1), strict=True)
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(before, behind, 4, stride=2, padding=1) for before, behind in pairs
        )

    def forward(self, rows_ND: Tensor) -> Tensor:
        """[N, D], with an even number of patches a side -> [H, W]."""
        side = round(len(rows_ND) ** 0.5)
        x_HWC = halved(rows_ND.unflatten(0, (side, side)), self.halving.weight, self.halving.bias)
        layers = (m for m in self.doublings if isinstance(m, nn.ConvTranspose2d))
        for layer in layers:
            x_HWC = doubled(functional.relu(x_HWC), layer.weight, layer.bias)
        return x_HWC[..., 0]


def halved(x_HWC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3 x 3 convolution of stride 2 with a margin of 1, [H / 2, W / 2, out]."""
    height, width, _ = x_HWC.shape
    padded = functional.pad(x_HWC, (0, 0, 1, 1, 1, 1))
    seen = [padded[y : y + height : 2, x : x + width : 2] for y in range(3) for x in range(3)]
    rows = torch.stack(seen, dim=-1).flatten(0, 1).flatten(1)
    made = functional.linear(rows, weight.flatten(1), bias)
    return made.unflatten(0, (height // 2, width // 2))


def doubled(x_HWC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A transposed 4 x 4 convolution of stride 2 with a margin of 1, [2 H, 2 W, out].

    Each place gives four rows and columns, of which the middle two fall on its own two places, and
    the outer ones on its neighbours'.
    """
    height, width, _ = x_HWC.shape
    made = x_HWC.flatten(0, 1) @ weight.flatten(1)
    pieces = made.unflatten(1, (-1, 4, 4)).unflatten(0, (height, width))  # [H, W, out, 4, 4]
    tall = _overlapped(pieces.permute(0, 3, 1, 4, 2))  # [2 H, W, 4, out]
    whole = _overlapped(tall.permute(1, 2, 0, 3)).transpose(0, 1)
    return whole if bias is None else whole + bias


def _overlapped(pieces: Tensor) -> Tensor:
    """[H, 4, ...] -> [2 H, ...]: piece k of place i is added to place 2 i + k - 1."""
    rest = pieces.shape[2:]
    nothing = torch.zeros(1, *rest)
    above = torch.cat([nothing, pieces[:-1, 3]])
    below = torch.cat([pieces[1:, 0], nothing])
    both = torch.stack([pieces[:, 1] + above, pieces[:, 2] + below], dim=1)
    return both.flatten(0, 1)
