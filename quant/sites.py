"""Where linear layers share an input, and which weights in front of it a factor can move into.

In: a policy, or a part of it. Out: sites. A site is one tensor that linear layers read. What wrote
it channel by channel (a norm, or the outputs of another layer) can take any factor on a channel,
and the readers its reciprocal: the product stays what it is, and nothing is left to multiply when
the policy runs. Behind a GELU or a SiLU a factor cannot move; such a site has no writers.

`SITES` holds the knowledge by kind of module; names are relative to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from models.networks.auxiliary_heads import JointBlock
from models.networks.bridge import BridgeBlock
from models.networks.expert import CrossLayer, LastLayer, Layer
from models.networks.language import DecoderLayer, SharingLayer
from models.networks.map_block import MAPBlock
from models.networks.phi import PhiLayer
from models.networks.prismatic import ViTBlock
from models.networks.scale_dp import ScaleDP, ScaleDPBlock
from models.networks.siglip import EncoderLayer
from models.networks.spatial import SpatialBlock
from models.networks.vision import PatchMerger, VisionBlock


@dataclass(frozen=True, slots=True)
class Writer:
    """Outputs of a norm or of a linear layer that become a tensor's channels, in order."""

    module: str
    first: int = 0
    """Output that becomes channel 0."""
    plus: float = 0.0
    """Added to them before they multiply: adaLN's 1 + scale."""


@dataclass(frozen=True, slots=True)
class Site:
    """One tensor, and the linear layers that read it."""

    readers: tuple[str, ...]
    writers: tuple[Writer, ...] = ()
    """All are scaled; none where a factor has to stay in front of the readers."""
    channels: NDArray[np.int64] | None = None
    """[K] the writers' output that each channel is a copy of; None where each has its own."""


def find_sites(model: nn.Module) -> list[Site]:
    """Sites of every module of a kind in `SITES`, and one for each linear layer beside them."""
    found: list[Site] = []
    for path, module in model.named_modules():
        if (make := SITES.get(type(module))) is not None:
            found += [_under(path, site) for site in make(module)]
    read = {reader for site in found for reader in site.readers}
    return found + [
        Site((name,))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in read
    ]


def _under(path: str, site: Site) -> Site:
    prefix = f"{path}." if path else ""
    return Site(
        tuple(prefix + reader for reader in site.readers),
        tuple(Writer(prefix + w.module, w.first, w.plus) for w in site.writers),
        site.channels,
    )


def _decoder_layer(layer: DecoderLayer) -> list[Site]:
    attention = layer.self_attn
    # Heads that share keys and values read the same outputs of v_proj.
    shared = np.arange(attention.kv_heads * attention.head_dim).reshape(attention.kv_heads, 1, -1)
    heads = np.broadcast_to(shared, (attention.kv_heads, attention.group, attention.head_dim))
    return [
        Site(
            tuple(f"self_attn.{name}_proj" for name in "qkv"),
            (Writer("input_layernorm"),),
        ),
        Site(("self_attn.o_proj",), (Writer("self_attn.v_proj"),), heads.ravel()),
        *_gated("post_attention_layernorm"),
    ]


def _sharing_layer(layer: SharingLayer) -> list[Site]:
    """What attention puts out is made of another network's values too, or that network reads these:
    a factor stays in front of the readers."""
    qkv, out, *rest = _decoder_layer(layer)
    return [qkv, Site(out.readers), *rest]


def _vision_block(block: VisionBlock) -> list[Site]:
    return [*_fused_attention("norm1", block.attn.qkv), *_gated("norm2")]


def _merger(merger: PatchMerger) -> list[Site]:
    width = merger.ln_q.weight.shape[0]
    joined = np.arange(merger.joined) % width
    return [Site(("mlp.0",), (Writer("ln_q"),), joined), Site(("mlp.2",))]


def _vit_block(block: SpatialBlock | ViTBlock | JointBlock) -> list[Site]:
    return [
        *_fused_attention("norm1", block.attn.qkv),
        Site(("mlp.fc1",), (Writer("norm2"),)),
        Site(("mlp.fc2",)),
    ]


def _encoder_layer(layer: EncoderLayer) -> list[Site]:
    return [
        Site(tuple(f"self_attn.{name}_proj" for name in "qkv"), (Writer("layer_norm1"),)),
        Site(("self_attn.out_proj",), (Writer("self_attn.v_proj"),)),
        Site(("mlp.fc1",), (Writer("layer_norm2"),)),
        Site(("mlp.fc2",)),
    ]


def _shared_layer(layer: Layer) -> list[Site]:
    """Values are read by others too, in other layers: no factor moves into what makes them."""
    names = "q" if isinstance(layer, CrossLayer) else "qkv"
    return [
        Site(tuple(f"self_attn.{name}_proj" for name in names), (Writer("input_layernorm"),)),
        *_gated("post_attention_layernorm"),
    ]


def _last_layer(layer: LastLayer) -> list[Site]:
    return [Site(("self_attn.k_proj", "self_attn.v_proj"), (Writer("input_layernorm"),))]


def _bridge_block(block: BridgeBlock) -> list[Site]:
    """Rows of actions, queries and the task attend together, so their values share channels."""
    sources = ("self", "adapter", "task")
    return [
        Site(("q_proj", "k_self", "v_self")),
        Site(("k_adapter", "v_adapter")),
        Site(("k_task", "v_task")),
        Site(("o_proj",), tuple(Writer(f"v_{source}") for source in sources)),
        Site(("ffn.1",), (Writer("ffn.0"),)),
    ]


def _phi_layer(layer: PhiLayer) -> list[Site]:
    """Attention and MLP read one norm."""
    return [
        Site(
            (*(f"self_attn.{name}_proj" for name in "qkv"), "mlp.fc1"), (Writer("input_layernorm"),)
        ),
        Site(("self_attn.dense",), (Writer("self_attn.v_proj"),)),
        Site(("mlp.fc2",)),
    ]


def _map_block(block: MAPBlock) -> list[Site]:
    """Outputs of `attn.kv` are keys, then values; those of the MLP's first layer what is passed on,
    then its gate."""
    width = block.projection.out_features
    return [
        Site(("attn.kv",), (Writer("projection"),)),
        Site(("attn.proj",), (Writer("attn.kv", width),)),
        Site(("mlp.1",), (Writer("mlp.0.project"),)),
    ]


def _head_block(block: ScaleDPBlock) -> list[Site]:
    """n (1 + scale) + shift: rows of the modulations are shift, scale and gate, twice."""
    width = block.attn.proj.in_features
    adaln = "adaLN_modulation.1"

    def modulated(first: int) -> tuple[Writer, ...]:
        return Writer(adaln, first * width), Writer(adaln, (first + 1) * width, plus=1.0)

    return [
        Site(("attn.qkv",), modulated(0)),
        Site(("attn.proj",), (Writer("attn.qkv", 2 * width),)),
        Site(("mlp.fc1",), modulated(3)),
        Site(("mlp.fc2",)),
    ]


def _head(head: ScaleDP) -> list[Site]:
    """All modulations read the same activated condition."""
    layers = [*(f"blocks.{index}" for index in range(len(head.blocks))), "final_layer"]
    return [Site(tuple(f"{layer}.adaLN_modulation.1" for layer in layers))]


def _fused_attention(norm: str, qkv: nn.Linear) -> list[Site]:
    values = Writer("attn.qkv", 2 * qkv.out_features // 3)
    return [Site(("attn.qkv",), (Writer(norm),)), Site(("attn.proj",), (values,))]


def _gated(norm: str) -> list[Site]:
    """silu(gate) * up: a factor moves through the product into `up`."""
    return [
        Site(("mlp.gate_proj", "mlp.up_proj"), (Writer(norm),)),
        Site(("mlp.down_proj",), (Writer("mlp.up_proj"),)),
    ]


SITES: Mapping[type[nn.Module], Callable[[Any], list[Site]]] = {
    DecoderLayer: _decoder_layer,
    SharingLayer: _sharing_layer,
    VisionBlock: _vision_block,
    PatchMerger: _merger,
    SpatialBlock: _vit_block,
    ViTBlock: _vit_block,
    JointBlock: _vit_block,
    BridgeBlock: _bridge_block,
    EncoderLayer: _encoder_layer,
    Layer: _shared_layer,
    CrossLayer: _shared_layer,
    LastLayer: _last_layer,
    PhiLayer: _phi_layer,
    MAPBlock: _map_block,
    ScaleDPBlock: _head_block,
    ScaleDP: _head,
}
