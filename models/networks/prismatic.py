"""The two vision towers of Prismatic models (OpenVLA and its relatives), and their projector.

DINOv2 and SigLIP see the same patches, each under its own normalization; what both say of a patch
is projected to the language model's width. Towers are timm's vision transformers, read behind their
last but one block and without its final norm: the last block is stored, and never runs. The host
normalizes for the second tower; the first one's engine goes from there to its own, a factor and a
term for each channel.

Parameter names are the published ones. Oracles: `transformers` `Dinov2WithRegistersModel` and
`SiglipVisionModel`, in the family's `reference`.

Axes: N = patches in raster order, D = width of a tower.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.layers import GeluMLP, SelfAttention
from models.networks.prismatic_config import PrismaticVisionConfig, ViTConfig

NORM_EPS = 1e-6


class PrismaticVision(nn.Module):
    """Both towers, under the names of `vision_backbone`."""

    def __init__(self, config: PrismaticVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.featurizer = ViT(config.featurizer, config)
        self.fused_featurizer = ViT(config.fused_featurizer, config)

    def forward(self, patches: Tensor) -> Tensor:
        """[..., N, patch_dim] -> [..., N, embed_dim]."""
        return torch.cat([self.featurizer(patches), self.fused_featurizer(patches)], dim=-1)


class ViT(nn.Module):
    """One tower: patches as the host normalizes them -> what it says of each, [..., N, D]."""

    def __init__(self, config: ViTConfig, vision: PrismaticVisionConfig) -> None:
        super().__init__()
        self.config, width = config, config.hidden_size
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if config.reg_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, config.reg_tokens, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, vision.num_patches, width))
        self.patch_embed = PatchEmbed(config, vision)
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.num_blocks))

    def forward(self, patches: Tensor) -> Tensor:
        x = run_blocks(self.blocks, placed(self, self.config, self.patch_embed(patches)))
        return x[..., self.config.num_prefix_tokens :, :]


def prefix_names(c: ViTConfig) -> tuple[str, ...]:
    """Of the tokens that a tower has in front of the patches."""
    return ("cls_token",) * c.class_token + ("reg_token",) * bool(c.reg_tokens)


def placed(owner: nn.Module, c: ViTConfig, x: Tensor) -> Tensor:
    """[..., N, D] of the patches, which alone have places -> [..., prefix + N, D].

    Args:
        owner: a tower, or a part of it that has its places and its tokens.
    """
    x = x + owner.pos_embed[0]  # type: ignore[index]
    tokens: list[Tensor] = [getattr(owner, name)[0] for name in prefix_names(c)]
    prefix = [rows.expand(*x.shape[:-2], -1, -1) for rows in tokens]
    return torch.cat([*prefix, x], dim=-2) if prefix else x


def run_blocks(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Some blocks in a row, [..., prefix + N, D]."""
    for block in blocks:
        x = block(x)
    return x


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel: a linear layer over flattened patches."""

    def __init__(self, config: ViTConfig, vision: PrismaticVisionConfig) -> None:
        super().__init__()
        size = vision.patch_size
        self.proj = nn.Conv2d(3, config.hidden_size, size, stride=size)
        factor, term = _renormalization(config, vision)
        self.renormalizes = factor != [1.0] * 3 or term != [0.0] * 3
        self._factor, self._term, self._pixels = factor, term, size**2

    def forward(self, patches: Tensor) -> Tensor:
        if self.renormalizes:
            factor, term = (
                torch.tensor(values).repeat_interleave(self._pixels)
                for values in (self._factor, self._term)
            )
            patches = patches * factor + term
        return functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def _renormalization(
    config: ViTConfig, vision: PrismaticVisionConfig
) -> tuple[list[float], list[float]]:
    """Of each channel, what leads from the host's normalization to this tower's."""
    pairs = zip(
        vision.image_mean, vision.image_std, config.image_mean, config.image_std, strict=True
    )
    made = [(std / own_std, (mean - own_mean) / own_std) for mean, std, own_mean, own_std in pairs]
    return [factor for factor, _ in made], [term for _, term in made]


class ViTBlock(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, config.num_heads)
        self.ls1 = LayerScale(width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = GeluMLP(width, config.intermediate_size, approximate="none")
        self.ls2 = LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Projector(nn.Module):
    """[..., N, embed_dim] -> [..., N, out_hidden_size]."""

    def __init__(self, config: PrismaticVisionConfig) -> None:
        super().__init__()
        seen, width = config.embed_dim, config.out_hidden_size
        self.fc1 = nn.Linear(seen, 4 * seen)
        self.fc2 = nn.Linear(4 * seen, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, seen: Tensor) -> Tensor:
        return self.fc3(functional.gelu(self.fc2(functional.gelu(self.fc1(seen)))))
