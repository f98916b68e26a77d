"""The two towers of Prismatic models as `transformers` has them, in our sizes: oracles.

timm keeps one layer for queries, keys and values, and no place for the class token; these models
keep three, and one. So each of the three is a third of the one, and the class token's place is
zeros: nothing is copied, and every tensor has one of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers.models.dinov2_with_registers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)
from transformers.models.siglip import SiglipVisionConfig, SiglipVisionModel

from models.networks.prismatic_config import PrismaticVisionConfig, ViTConfig

DINO: Mapping[str, str] = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.parametrizations.position_embeddings.original",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks": "encoder.layer",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.o_proj",
    "ls1.scale_factor": "layer_scale1.lambda1",
    "ls2.scale_factor": "layer_scale2.lambda1",
}
SIGLIP: Mapping[str, str] = {
    "pos_embed": "embeddings.position_embedding.parametrizations.weight.original",
    "patch_embed.proj": "embeddings.patch_embedding",
    "blocks": "encoder.layers",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.out_proj",
}
"""What a piece of our name is called there; all others are called the same."""


class Third(nn.Module):
    """Queries, keys or values of a layer that makes all three."""

    def __init__(self, qkv: nn.Linear, number: int) -> None:
        super().__init__()
        self.qkv, self.number = [qkv], number  # in a list: its weights are the block's

    def forward(self, x: Tensor) -> Tensor:
        (qkv,) = self.qkv
        weight, bias = (p.chunk(3)[self.number] for p in (qkv.weight, qkv.bias))
        return functional.linear(x, weight, bias)


class BehindZeros(nn.Module):
    """[1, N, D] -> [1, 1 + N, D]: the class token has no place of its own."""

    def forward(self, places: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(places[:, :1]), places], dim=1)


class Flat(nn.Module):
    """[1, N, D] -> [N, D]."""

    def forward(self, places: Tensor) -> Tensor:
        return places[0]


def dinov2(c: ViTConfig, vision: PrismaticVisionConfig) -> Dinov2WithRegistersModel:
    """The blocks that are run, without a final norm, on the meta device."""
    assert c.class_token and c.layer_scale, "transformers' has both, always"
    settings = Dinov2WithRegistersConfig(
        **_settings(c, vision),
        mlp_ratio=c.intermediate_size // c.hidden_size,
        num_register_tokens=c.reg_tokens,
        hidden_act="gelu",
    )
    with torch.device("meta"):
        model: Any = Dinov2WithRegistersModel(settings)
        model.embeddings.mask_token = None
        model.embeddings.position_embeddings = nn.Parameter(
            torch.empty(1, vision.num_patches, c.hidden_size)
        )
        model.layernorm = nn.Identity()
    parametrize.register_parametrization(
        model.embeddings, "position_embeddings", BehindZeros(), unsafe=True
    )
    for layer in model.encoder.layer:
        _fuse(layer.attention, c.hidden_size)
    return model


def siglip(c: ViTConfig, vision: PrismaticVisionConfig) -> SiglipVisionModel:
    """Likewise."""
    assert not c.num_prefix_tokens and not c.layer_scale, "transformers' has neither"
    settings = SiglipVisionConfig(
        **_settings(c, vision),
        intermediate_size=c.intermediate_size,
        hidden_act="gelu",
        vision_use_head=False,
    )
    with torch.device("meta"):
        model: Any = SiglipVisionModel(settings)
        model.embeddings.position_embedding.weight = nn.Parameter(
            torch.empty(1, vision.num_patches, c.hidden_size)
        )
        model.post_layernorm = nn.Identity()
    model.embeddings.position_ids = torch.arange(vision.num_patches)[None]
    parametrize.register_parametrization(
        model.embeddings.position_embedding, "weight", Flat(), unsafe=True
    )
    for layer in model.encoder.layers:
        _fuse(layer.self_attn, c.hidden_size)
    return model


def composed_tower_name(name: str, others: Mapping[str, str]) -> str:
    """What a tensor of our tower is called in one of these.

    Args:
        others: `DINO` or `SIGLIP`.
    """
    for ours, theirs in others.items():
        padded = f".{name}."
        name = padded.replace(f".{ours}.", f".{theirs}.").strip(".")
    return name


def _settings(c: ViTConfig, vision: PrismaticVisionConfig) -> dict[str, Any]:
    return {
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_blocks,
        "num_attention_heads": c.num_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "layer_norm_eps": 1e-6,
    }


def _fuse(attention: Any, width: int) -> None:
    with torch.device("meta"):
        attention.qkv = nn.Linear(width, 3 * width)
    for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
        setattr(attention, name, Third(attention.qkv, number))
