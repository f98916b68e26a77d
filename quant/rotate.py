"""A float policy in rotated coordinates: no channel stands out, and every output is what it was.

In: a policy. Out: an equal one whose weights are turned, so that what flows between its layers is
spread over all channels (QuaRot, 2404.00456; SpinQuant, 2405.16406). Two kinds of turns cost
nothing when the policy runs:

- `heads`: inside every attention head, values by a Hadamard matrix, and the output projection back.
- `residual`: the stream that a network's blocks add to. What writes to it is turned, what reads it
  is turned back; norms keep their place because lengths stay, once their weights moved into the
  readers. A LayerNorm also takes the mean away: there the turn leaves the all-ones vector alone.

The language model's stream is turned back behind its last norm, by one product that was not there
before. The action head's stream cannot be turned: its modulations work channel by channel, and
differ from step to step. Nor can what a GELU puts out.

Axes: D = width of a stream, N = outputs, d = width of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from models.networks.language import DecoderLayer, LanguageModel
from models.networks.layers import SelfAttention
from models.networks.spatial import SpatialEncoder
from models.networks.vision import VisionAttention, VisionTower
from models.stored import plain

Rotation = Literal["heads", "residual"]
Model = TypeVar("Model", bound=nn.Module)
Kind = TypeVar("Kind", bound=nn.Module)


def rotate(model: Model, rotations: Collection[Rotation], *, seed: int = 0) -> Model:
    """A turned copy of `model`; the same object if there is nothing to turn.

    Args:
        seed: of the random signs and directions.

    Raises:
        ValueError: an unknown rotation.
    """
    if unknown := sorted(set(rotations) - set(get_args(Rotation))):
        raise ValueError(f"unknown rotations {unknown}; there are {get_args(Rotation)}")
    if not rotations:
        return model
    random = np.random.Generator(np.random.Philox(key=seed))
    turned = plain(copy.deepcopy(model)).requires_grad_(False)
    if "heads" in rotations:
        _turn_heads(turned, random)
    if "residual" in rotations:
        (decoder,), (tower,) = _of(turned, LanguageModel), _of(turned, VisionTower)
        language = turn(decoder.config.hidden_size, random)
        _turn_vision(tower, turn(tower.config.hidden_size, random), language)
        _turn_language(decoder, language)
        for encoder in _of(turned, SpatialEncoder):
            _turn_spatial(encoder, keep_mean(encoder.final_projection.in_features, random))
    return turned


def hadamard(width: int) -> Tensor:
    """[width, width] float64, orthogonal, all entries of one size: Sylvester's construction.

    Raises:
        ValueError: not a power of two.
    """
    if width < 1 or width & (width - 1):
        raise ValueError(f"Sylvester's Hadamard matrices are of 2^n rows, got {width}")
    made = torch.ones(1, 1, dtype=torch.float64)
    while len(made) < width:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    return made / width**0.5


def turn(width: int, random: np.random.Generator) -> Tensor:
    """[width, width] float64, orthogonal: a Hadamard matrix of the largest power of two that
    divides the width, with random signs, times a random turn of what is left.
    """
    power = width & -width
    rest = width // power
    square, triangle = np.linalg.qr(random.standard_normal((rest, rest)))
    left = torch.from_numpy(square * np.sign(np.diag(triangle)))
    signs = torch.from_numpy(random.choice([-1.0, 1.0], width))
    return torch.kron(left, hadamard(power)) * signs


def keep_mean(width: int, random: np.random.Generator) -> Tensor:
    """[width, width] float64, orthogonal: it turns everything but the all-ones vector."""
    first = torch.zeros(width, dtype=torch.float64)
    first[0] = 1.0
    mirror = first - torch.full((width,), width**-0.5, dtype=torch.float64)
    householder = torch.eye(width, dtype=torch.float64)
    if (length := mirror @ mirror) > 0:
        householder -= 2 * torch.outer(mirror, mirror) / length
    inner = torch.eye(width, dtype=torch.float64)
    if width > 1:
        inner[1:, 1:] = turn(width - 1, random)
    return householder @ inner @ householder


def _of(model: nn.Module, kind: type[Kind]) -> list[Kind]:
    """Its modules of a kind, in order."""
    return [module for module in model.modules() if isinstance(module, kind)]


def _turn_heads(model: nn.Module, random: np.random.Generator) -> None:
    for layer in _of(model, DecoderLayer):
        attention = layer.self_attn
        matrix = turn(attention.head_dim, random)
        for head in range(attention.kv_heads):
            rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            _turn_outputs(attention.v_proj, matrix, rows)
        _turn_inputs(attention.o_proj, matrix)
    fused_ones: list[Any] = [*_of(model, VisionAttention), *_of(model, SelfAttention)]
    for fused in fused_ones:
        width = fused.proj.in_features
        matrix = turn(width // fused.num_heads, random)
        for start in range(2 * width, 3 * width, len(matrix)):
            _turn_outputs(fused.qkv, matrix, slice(start, start + len(matrix)))
        _turn_inputs(fused.proj, matrix)


def _turn_vision(tower: Any, own: Tensor, language: Tensor) -> None:
    convolution = tower.patch_embed.proj
    flat = convolution.weight.flatten(1)
    convolution.weight.copy_((own @ flat.double()).view_as(convolution.weight))
    for block in tower.blocks:
        _take_norm(block.norm1, block.attn.qkv)
        _take_norm(block.norm2, block.mlp.gate_proj, block.mlp.up_proj)
        for reader in (block.attn.qkv, block.mlp.gate_proj, block.mlp.up_proj):
            _turn_inputs(reader, own)
        for writer in (block.attn.proj, block.mlp.down_proj):
            _turn_outputs(writer, own)
    merger = tower.merger
    _take_norm(merger.ln_q, merger.mlp[0])
    _turn_inputs(merger.mlp[0], own)
    _turn_outputs(merger.mlp[2], language)


def _turn_language(model: Any, own: Tensor) -> None:
    table = model.embed_tokens.weight
    table.copy_(table.double() @ own.T)
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers = attention.q_proj, attention.k_proj, attention.v_proj
        _take_norm(layer.input_layernorm, *readers)
        _take_norm(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj)
        for reader in (*readers, mlp.gate_proj, mlp.up_proj):
            _turn_inputs(reader, own)
        for writer in (attention.o_proj, mlp.down_proj):
            _turn_outputs(writer, own)
    back = nn.Linear(len(own), len(own), bias=False).requires_grad_(False)
    back.weight.copy_(model.norm.weight.double()[:, None] * own.T)
    model.norm.weight.fill_(1.0)
    model.norm = nn.Sequential(model.norm, back)


def _turn_spatial(encoder: Any, own: Tensor) -> None:
    trunk = encoder.info_sharing
    _turn_outputs(trunk.proj_embed, own)
    trunk.view_pos_table.copy_(trunk.view_pos_table.double() @ own.T)
    for block in trunk.self_attention_blocks:
        _take_norm(block.norm1, block.attn.qkv)
        _take_norm(block.norm2, block.mlp.fc1)
        for reader in (block.attn.qkv, block.mlp.fc1):
            _turn_inputs(reader, own)
        for writer in (block.attn.proj, block.mlp.fc2):
            _turn_outputs(writer, own)
    _take_norm(trunk.norm, encoder.final_projection)
    _turn_inputs(encoder.final_projection, own)


def _take_norm(norm: Any, *readers: nn.Linear) -> None:
    """A norm's weight and bias into the layers that read it; a reader may join several vectors."""
    for reader in readers:
        copies = reader.in_features // len(norm.weight)
        if (bias := getattr(norm, "bias", None)) is not None:
            reader.bias.add_((reader.weight.double() @ bias.double().repeat(copies)).float())
        reader.weight.mul_(norm.weight.repeat(copies))
    norm.weight.fill_(1.0)
    if getattr(norm, "bias", None) is not None:
        norm.bias.zero_()


def _turn_inputs(layer: nn.Linear, matrix: Tensor) -> None:
    """Each stretch of inputs as wide as the matrix, which stand turned, is turned back."""
    stretches = layer.weight.unflatten(1, (-1, len(matrix)))
    layer.weight.copy_((stretches @ matrix.float().T).flatten(1))


def _turn_outputs(layer: nn.Linear, matrix: Tensor, rows: slice = slice(None)) -> None:
    layer.weight[rows] = matrix.float() @ layer.weight[rows]
    if layer.bias is not None:
        layer.bias[rows] = matrix.float() @ layer.bias[rows]
