"""A recipe applied: the policy with quantized layers in place of linear ones.

Scales, and factors that stay, are bfloat16 numbers from the start, so that lowering a file to
bfloat16 changes none of them, and so that the last bits of a calibration on another processor
seldom show.

Axes: K = inputs of a layer, N = outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd

from models.networks.bridge import BridgeBlock
from models.networks.layers import RMSNorm
from models.networks.map_block import MAPBlock, RootMeanSquare
from models.networks.prismatic import LayerScale, ViT
from models.networks.scale_dp import ScaleDP
from models.networks.spatial import AlternatingAttention, SpatialEncoder
from models.networks.vq import GroupNorm
from quant.calibrate import Statistics
from quant.codes import kept, key_of
from quant.fold import SMOOTHED, Folded, Model, fold, smooth_factor
from quant.formats import (
    INT4_BLOCK,
    INT8_MAX,
    Quantized,
    dequantize,
    int4_blocks,
    int8_per_channel,
    pad_inputs,
    round_to_bfloat16,
    up_to_bfloat16,
)
from quant.methods import awq_scales, gptq, outlier_channels
from quant.modules import QuantLinear
from quant.recipes import Recipe, Rule

GPTQ_DAMPING = 0.1
"""Ten times the paper's: with fewer sampled rows than inputs, 0.01 fits the sample and was worse
than plain rounding on other rows (0.128 against 0.117; 0.116 with this)."""
FLOAT_KINDS: tuple[type[nn.Module], ...] = (
    RMSNorm,
    nn.LayerNorm,
    nn.Embedding,  # its rows are looked up on the host
    SpatialEncoder,  # the scale token, one row
    AlternatingAttention,  # what marks the anchor's view, one row
    ScaleDP,  # positions of a chunk's steps
    ViT,  # places of patches, and what stands before them
    LayerScale,
    BridgeBlock,  # a gate, one number
    GroupNorm,
    MAPBlock,  # the row that asks
    RootMeanSquare,
)
"""Modules with weights of their own that no recipe names: norms are float32 everywhere, the others
in float32 or the base format."""


def quantize(model: Model, recipe: Recipe, statistics: Mapping[str, Statistics]) -> Model:
    """A copy of `model` in the formats of `recipe`; layers that stay in float are shared with it.

    Args:
        model: float32. It stays float32 beside the quantized layers: the base format is a matter of
            the exported file.
        recipe: names a format for every layer in it.
        statistics: of the inputs of all layers whose format or method looks at them.

    Raises:
        ValueError: the recipe does not fit the layers, or statistics are missing.
    """
    return quantize_folded(prepare_folded(model, recipe, statistics), recipe)


def prepare_folded(
    model: Model, recipe: Recipe, statistics: Mapping[str, Statistics]
) -> Folded[Model]:
    """`model` made ready for the formats of `recipe`, still in float32: see `quant.fold`.

    Raises:
        ValueError: the recipe does not fit the layers, or statistics are missing.
    """
    rules = decide(recipe, model)
    if missing := [n for n, rule in rules.items() if _looks(rule) and n not in statistics]:
        raise ValueError(
            f"recipe {recipe.name}: no calibration of {len(missing)} layers, {missing[:3]} first: "
            "the observations never reach them"
        )
    return fold(model, rules, statistics)


def quantize_folded(folded: Folded[Model], recipe: Recipe, work: Path | None = None) -> Model:
    """A copy of a folded policy with quantized layers in place of linear ones.

    Args:
        work: a folder that takes the codes of each layer before the next one is quantized, for
            them to be read from there (`quant.codes`); without one they stay in memory.
    """
    model = folded.model
    rules = decide(recipe, model)
    replaced: dict[int, QuantLinear] = {}
    for name, layer in linear_layers(model).items():
        if rules[name].format in ("float32", "float"):
            continue
        seen = folded.statistics.get(name) if _looks(rules[name]) else None
        chosen = rules[name], seen, folded.factors.get(name)
        make = partial(quantize_layer, layer, *chosen)
        if work is None:
            replaced[id(layer)] = make()
        else:
            file = work / f"{key_of(layer.weight, *chosen)}.safetensors"
            replaced[id(layer)] = kept(file, make, layer.bias)
    keep = {id(p): p for p in model.parameters()} | {id(b): b for b in model.buffers()}
    return copy.deepcopy(model, keep | replaced)


def decide(recipe: Recipe, model: nn.Module) -> Mapping[str, Rule]:
    """The rule of every layer of `model`: linear ones and convolutions.

    Raises:
        ValueError: the recipe does not fit the layers, it would quantize a convolution, or a module
            has weights and is neither a layer nor one of `FLOAT_KINDS`.
    """
    layers: dict[str, nn.Module] = dict(linear_layers(model))
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            layers[name] = module
        elif name not in layers and not isinstance(module, FLOAT_KINDS):
            _check_no_weights(name, module)
    rules = recipe.decide(layers)
    for name, layer in layers.items():
        rule = rules[name]
        if isinstance(layer, _ConvNd) and rule.format not in ("float32", "float"):
            raise ValueError(
                f"recipe {recipe.name}: {rule.pattern!r} makes {name} {rule.format}, but it is a "
                f"convolution, and those stay float: name it in an earlier rule"
            )
    return rules


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """What can be quantized."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def quantize_layer(
    layer: nn.Linear,
    rule: Rule,
    seen: Statistics | None,
    factor_K: NDArray[np.float32] | None = None,
) -> QuantLinear:
    """One layer in the format of `rule`.

    Args:
        seen: of its input.
        factor_K: what its input is multiplied with first, where its rule is to smooth.

    Raises:
        ValueError: a format that nothing here can write, or NaN in the weight.
    """
    weight_KN = np.ascontiguousarray(layer.weight.detach().float().numpy().T)
    if rule.format == "w8":
        return QuantLinear(_codes8(weight_KN), layer.bias, None)
    if rule.format == "w4":
        return _int4(weight_KN, layer, rule, seen)
    if rule.format == "w8a8":
        assert seen is not None
        return _int8(weight_KN, layer, rule, seen, factor_K)
    raise ValueError(f"{rule.pattern}: format {rule.format} has no emulation, it is only written")


def quantize_alone(layer: nn.Linear, rule: Rule, seen: Statistics | None) -> QuantLinear:
    """A layer that shares its input with no other, nor can move a factor: see `quantize_layer`."""
    if rule.method in SMOOTHED:
        assert seen is not None
        weight_NK = layer.weight.detach().float()
        factor_K = round_to_bfloat16(smooth_factor([weight_NK], seen.channel_max))
        return quantize_layer(layer, rule, seen, factor_K)
    return quantize_layer(layer, rule, seen)


def _int8(
    weight_KN: NDArray[np.float32],
    layer: nn.Linear,
    rule: Rule,
    seen: Statistics,
    factor_K: NDArray[np.float32] | None,
) -> QuantLinear:
    largest_K = seen.channel_max
    if rule.method == "tokens":
        own_K = np.ones(len(weight_KN), np.float32) if factor_K is None else factor_K
        return QuantLinear(
            _codes8(weight_KN / own_K[:, None]),
            layer.bias,
            _step(np.ones(1, np.float32)),
            input_factor=factor_K,
            per_token=True,
        )
    if factor_K is not None:
        return QuantLinear(
            _codes8(weight_KN / factor_K[:, None]),
            layer.bias,
            _step(largest_K * factor_K),
            input_factor=factor_K,
        )
    kept = outlier_channels(seen.rows) if rule.method == "outliers" else np.zeros(0, np.int64)
    if not len(kept):
        return QuantLinear(_codes8(weight_KN), layer.bias, _step(largest_K))
    stays_K = np.ones(len(weight_KN), np.float32)
    stays_K[kept] = 0
    return QuantLinear(
        _codes8(weight_KN * stays_K[:, None]),
        layer.bias,
        _step(largest_K * stays_K),
        input_factor=stays_K,
        kept=(kept, weight_KN[kept]),
    )


def _int4(
    weight_KN: NDArray[np.float32], layer: nn.Linear, rule: Rule, seen: Statistics | None
) -> QuantLinear:
    if rule.method == "plain":
        return QuantLinear(_codes4(weight_KN), layer.bias, None)
    assert seen is not None
    if rule.method == "gptq":
        missing = -len(weight_KN) % INT4_BLOCK
        rows = np.pad(seen.rows, ((0, 0), (0, missing)))
        padded = pad_inputs(weight_KN, INT4_BLOCK)
        codes = gptq(rows, padded, damping=GPTQ_DAMPING, round_scales=up_to_bfloat16)
        return QuantLinear(codes, layer.bias, None)

    def round_trip(weight: NDArray[np.float32]) -> NDArray[np.float32]:
        return dequantize(_codes4(weight))[: len(weight)]

    factor_K = round_to_bfloat16(np.reciprocal(awq_scales(seen.rows, weight_KN, round_trip)))
    codes = _codes4(weight_KN / factor_K[:, None])
    return QuantLinear(codes, layer.bias, None, input_factor=factor_K)


def _check_no_weights(name: str, module: nn.Module) -> None:
    own = [
        n for n, _ in (*module.named_parameters(recurse=False), *module.named_buffers("", False))
    ]
    if own:
        raise ValueError(
            f"{name or 'the model'} is a {type(module).__name__} with weights {own}, and nothing "
            "says in which precision: make it a layer that recipes name, or add its kind to "
            "quant.apply.FLOAT_KINDS"
        )


def _codes8(weight_KN: NDArray[np.float32]) -> Quantized:
    return int8_per_channel(weight_KN, round_scales=up_to_bfloat16)


def _codes4(weight_KN: NDArray[np.float32]) -> Quantized:
    return int4_blocks(pad_inputs(weight_KN, INT4_BLOCK), round_scales=up_to_bfloat16)


def _looks(rule: Rule) -> bool:
    return rule.format == "w8a8" or rule.method != "plain"


def _step(largest_K: NDArray[np.float32]) -> float:
    """Of the int8 grid; an input that is always zero gets one that is harmless."""
    step = np.float32(max(float(largest_K.max()), 1e-6) / INT8_MAX)
    return float(up_to_bfloat16(np.array([step]))[0])
