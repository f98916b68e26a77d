"""Small heads that read what a language model made of pictures: vectors, joints, and a mask.

Transposed convolutions are written as products with flattened weights: engines hold none.
Oracles: `torch.nn` `TransformerEncoder`, `Conv2d`, `ConvTranspose2d`.

Axes: N = rows, of patches in raster order, D = width of the language model, J = joints, H, W =
rows and columns of a map, C = its channels.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        self.doublings = nn.ModuleList(Doubling(before, behind) for before, behind in pairs)

    def forward(self, rows_ND: Tensor) -> Tensor:
        """[N, D], with an even number of patches a side -> [H, W]."""
        side = round(len(rows_ND) ** 0.5)
        x_CHW = rows_ND.T.unflatten(1, (side, side))
        x_HWC = self.halving(x_CHW[None])[0].permute(1, 2, 0)
        for layer in self.doublings:
            x_HWC = layer(functional.relu(x_HWC))
        return x_HWC[..., 0]


class Doubling(nn.ConvTranspose2d):
    """A transposed 4 x 4 convolution of stride 2 with a margin of 1, channels last.

    Each place gives four rows and columns, of which the middle two fall on its own two places, and
    the outer ones on its neighbours'.
    """

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, 4, stride=2, padding=1)

    def forward(self, x_HWC: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """[H, W, in] -> [2 H, 2 W, out].

        Args:
            output_size: of the base class; it has but one.
        """
        height, width, _ = x_HWC.shape
        made = x_HWC.flatten(0, 1) @ self.weight.flatten(1)
        pieces = made.unflatten(1, (-1, 4, 4)).unflatten(0, (height, width))  # [H, W, out, 4, 4]
        tall = _overlapped(pieces.permute(0, 3, 1, 4, 2))  # [2 H, W, 4, out]
        whole = _overlapped(tall.permute(1, 2, 0, 3)).transpose(0, 1)
        return whole if self.bias is None else whole + self.bias


def _overlapped(pieces: Tensor) -> Tensor:
    """[H, 4, ...] -> [2 H, ...]: piece k of place i is added to place 2 i + k - 1."""
    rest = pieces.shape[2:]
    nothing = torch.zeros(1, *rest)
    above = torch.cat([nothing, pieces[:-1, 3]])
    below = torch.cat([pieces[1:, 0], nothing])
    both = torch.stack([pieces[:, 1] + above, pieces[:, 2] + below], dim=1)
    return both.flatten(0, 1)
