"""Alternating-attention trunk over the raw patches of two views or more, an anchor first.

Even blocks attend over all views and one scale token, odd blocks inside each view. The patch
projection stands apart, because it is all of the trunk that a view owns alone: the first block
already mixes them. Oracle: UniCeption `MultiViewAlternatingAttentionTransformerIFR` with the
wrapper of the published policy, whose parameter names are used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from models.networks.config import SpatialConfig
from models.networks.layers import GeluMLP, SelfAttention


class SpatialEncoder(nn.Module):
    """Patches of all views -> tokens of the final output and of every tap, in one sequence."""

    def __init__(self, config: SpatialConfig, patch_dim: int, out_dim: int) -> None:
        super().__init__()
        self.scale_token = nn.Parameter(torch.zeros(patch_dim))
        self.info_sharing = AlternatingAttention(config, patch_dim)
        self.final_projection = nn.Linear(config.dim, out_dim)

    def project(self, patches: Tensor) -> Tensor:
        """[..., N, patch_dim] of one view -> [..., N, dim]."""
        return self.info_sharing.proj_embed(patches)

    def trunk(self, *views: Tensor) -> Tensor:
        """V projected views [..., N, dim] -> [..., V * N * (1 + taps), dim].

        Order: the final output of every view, then every view of each tap.
        """
        scale = self.info_sharing.proj_embed(self.scale_token)
        return self.info_sharing(views, scale)

    def forward(self, *patches: Tensor) -> Tensor:
        tokens = self.trunk(*map(self.project, patches))
        return self.final_projection(tokens)


class AlternatingAttention(nn.Module):
    def __init__(self, config: SpatialConfig, patch_dim: int) -> None:
        super().__init__()
        self.indices = config.indices
        self.proj_embed = nn.Linear(patch_dim, config.dim)
        self.self_attention_blocks = nn.ModuleList(
            SpatialBlock(config) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.register_buffer("view_pos_table", reference_view(config.dim))
        self.view_pos_table: Tensor

    def forward(self, views: Sequence[Tensor], scale: Tensor) -> Tensor:
        first, *others = views
        num_patches = first.shape[-2]
        tokens = torch.cat([first + self.view_pos_table, *others], dim=-2)
        scale = scale.expand_as(tokens[..., :1, :])
        blocks = enumerate(self.self_attention_blocks)
        tokens, _, taps = run_blocks(blocks, tokens, scale, num_patches, self.indices)
        return self.norm(torch.cat([tokens, *taps], dim=-2))


def mixes_views(index: int) -> bool:
    """Whether the block of this number attends over all views, and the scale token with them."""
    return index % 2 == 0


def run_blocks(
    blocks: Iterable[tuple[int, nn.Module]],
    tokens: Tensor,
    scale: Tensor,
    num_patches: int,
    indices: Collection[int],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Some blocks in a row, each with its number in the trunk.

    Args:
        tokens: [..., V * N, D] of all views.
        scale: [..., 1, D], read by blocks that mix the views.
        num_patches: N.
        indices: of the blocks whose tokens are tapped.

    Returns:
        The last tokens and scale token, and those of every tap, before any norm.
    """
    taps = []
    for index, block in blocks:
        if mixes_views(index):
            mixed = block(torch.cat([tokens, scale], dim=-2))
            tokens, scale = mixed[..., :-1, :], mixed[..., -1:, :]
        else:
            num_views = tokens.shape[-2] // num_patches
            views = tokens.unflatten(-2, (num_views, num_patches))
            tokens = block(views).flatten(-3, -2)
        if index in indices:
            taps.append(tokens)
    return tokens, scale, taps


class SpatialBlock(nn.Module):
    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6)
        self.attn = SelfAttention(config.dim, config.num_heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6)
        self.mlp = GeluMLP(config.dim, int(config.dim * config.mlp_ratio), approximate="none")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def reference_view(dim: int) -> Tensor:
    """What marks the tokens of the first view: row 0 of a sine/cosine table, [1, dim]."""
    table = torch.zeros(1, dim)
    table[:, 1::2] = 1.0
    return table
