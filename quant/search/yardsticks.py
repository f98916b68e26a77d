"""Accuracy for its bytes: this project's formats beside those of bitsandbytes, layer by layer.

In: a policy and the statistics of its calibration. Out: for each format, what it does to the
products of linear layers, and the bytes that it takes. One half of a layer's sampled rows chooses
scales and codes, the other half is what errors are measured on: a method that fits its sample too
closely gains nothing by it. The price is that it chooses from half as many rows as an export does.

Axes: R = input rows, K = inputs, N = outputs.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quant.apply import linear_layers, quantize_alone
from quant.calibrate import Statistics
from quant.methods import llm_int8, nf4
from quant.modules import QuantLinear
from quant.recipes import KEPT, Rule
from runtime.backends.parity import relative_error

OURS = tuple(
    Rule("*", *chosen)
    for chosen in (
        ("w8", "plain"),
        ("w8a8", "smooth"),
        ("w4", "plain"),
        ("w4", "awq"),
        ("w4", "gptq"),
    )
)
THEIRS = NF4, LLM_INT8 = "bitsandbytes NF4", "bitsandbytes LLM.int8"
FLOAT_BYTES = 4
"""Of a scale, ours and theirs."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a format costs and does."""

    name: str
    error: float
    """Root mean square over layers of a product's relative error, without the bias."""
    bytes_per_weight: float
    """Codes, scales and padding of all those layers, over their weights."""
    num_layers: int


def yardsticks(
    model: nn.Module, statistics: Mapping[str, Statistics], *, limit: int = 40
) -> list[Yardstick]:
    """Measure every format on the same layers. `model` is float32, and stays as it is.

    Left out are the layers that no recipe quantizes, and those with fewer than two sampled rows.
    The demo's 40 take seconds. Time grows as K^2 N for AWQ, with 20 weights tried, and as K^3 for
    GPTQ, which also takes 24 K^2 bytes: 3 GB for a layer of 11008 inputs.

    Args:
        limit: layers measured at most, evenly taken in the order of the policy.

    Raises:
        ValueError: no layer is left, or `limit` is not positive.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1 layer, got {limit}")
    layers = _choose(model, statistics, limit)
    squares: dict[str, float] = {}
    num_bytes: dict[str, float] = {}
    for name, layer in layers.items():
        for form, (error, size) in _measure(layer, statistics[name]).items():
            squares[form] = squares.get(form, 0.0) + error**2
            num_bytes[form] = num_bytes.get(form, 0.0) + size
    num_weights = sum(layer.weight.numel() for layer in layers.values())
    return [
        Yardstick(
            name=form,
            error=(squares[form] / len(layers)) ** 0.5,
            bytes_per_weight=num_bytes[form] / num_weights,
            num_layers=len(layers),
        )
        for form in squares
    ]


def _choose(
    model: nn.Module, statistics: Mapping[str, Statistics], limit: int
) -> dict[str, nn.Linear]:
    usable = {
        name: layer
        for name, layer in linear_layers(model).items()
        if name in statistics
        and len(statistics[name].rows) >= 2
        and not any(fnmatch.fnmatchcase(name, rule.pattern) for rule in KEPT)
    }
    if not usable:
        raise ValueError(
            f"no layer to measure: statistics are of {len(statistics)} layers, and a layer needs "
            "two sampled rows and a recipe that may quantize it: calibrate on more observations"
        )
    places = np.linspace(0, len(usable) - 1, min(limit, len(usable))).round().astype(int)
    names = list(usable)
    return {names[place]: usable[names[place]] for place in places}


def _measure(layer: nn.Linear, seen: Statistics) -> dict[str, tuple[float, float]]:
    """Relative error and bytes of each format."""
    weight_KN = np.ascontiguousarray(layer.weight.detach().float().numpy().T)
    rows_RK = seen.rows[1::2]
    exact_RN = rows_RK @ weight_KN
    half = Statistics(seen.channel_max, seen.rows[::2], seen.num_rows)
    found = {}
    for rule in OURS:
        quantized = quantize_alone(layer, rule, half)
        outputs_RN = _product(quantized, rows_RK)
        found[_name(rule)] = (relative_error(outputs_RN, exact_RN), _num_bytes(quantized))
    coded_KN, size = nf4(weight_KN)
    found[NF4] = (relative_error(rows_RK @ coded_KN, exact_RN), float(size))
    outputs_RN, size = llm_int8(rows_RK, weight_KN)
    found[LLM_INT8] = (relative_error(outputs_RN, exact_RN), float(size))
    return found


def _product(quantized: QuantLinear, rows_RK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without the bias, which would make every relative error look smaller."""
    quantized.bias = None
    with torch.no_grad():
        outputs: NDArray[np.float32] = quantized(torch.from_numpy(rows_RK.copy())).numpy()
    return outputs


def _num_bytes(quantized: QuantLinear) -> float:
    """Codes packed, and everything else that the product needs."""
    others: Sequence[torch.Tensor | None] = (
        quantized.scales,
        quantized.activation_scale,
        quantized.input_factor,
    )
    num_floats = sum(tensor.numel() for tensor in others if tensor is not None)
    return quantized.codes.numel() * quantized.bits / 8 + FLOAT_BYTES * num_floats


def _name(rule: Rule) -> str:
    return rule.format if rule.format == "w8" else f"{rule.format} {rule.method}"
