"""A recipe applied: the policy with quantized layers in place of linear ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from quant.calibrate import Statistics
from quant.formats import INT4_BLOCK, INT8_MAX, int4_blocks, int8_per_channel, pad_inputs
from quant.modules import QuantLinear
from quant.recipes import Format, Recipe

Model = TypeVar("Model", bound=nn.Module)


def quantize(model: Model, recipe: Recipe, statistics: Mapping[str, Statistics]) -> Model:
    """A copy of `model` in the precision of `recipe`; layers that stay are shared with it.

    Args:
        model: float32.
        recipe: names a format for every `nn.Linear` in it.
        statistics: of the inputs of all layers whose input is quantized.

    Raises:
        ValueError: the recipe does not fit the layers, or statistics are missing.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    formats = recipe.assign(layers)
    if missing := [n for n, f in formats.items() if f == "w8a8" and n not in statistics]:
        raise ValueError(
            f"recipe {recipe.name}: no calibration of {len(missing)} layers, {missing[:3]} first: "
            "the observations never reach them"
        )
    replaced = {
        id(layer): _layer(layer, formats[name], statistics.get(name))
        for name, layer in layers.items()
        if formats[name] != "float32"
    }
    keep = {id(p): p for p in model.parameters()} | {id(b): b for b in model.buffers()}
    return copy.deepcopy(model, keep | replaced)


def _layer(layer: nn.Linear, number_format: Format, seen: Statistics | None) -> QuantLinear:
    weight_KN = layer.weight.detach().numpy().T
    if number_format == "w4":
        return QuantLinear(int4_blocks(pad_inputs(weight_KN, INT4_BLOCK)), layer.bias, None)
    scale = None
    if number_format == "w8a8":
        assert seen is not None
        scale = max(seen.max, 1e-6) / INT8_MAX
    return QuantLinear(int8_per_channel(weight_KN), layer.bias, scale)
