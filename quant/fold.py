"""A float policy rewritten so that int8 suits it, and that computes what it did.

In: a policy, the rules of its layers, statistics. Out: a copy of the policy, in which range has
moved from activations into weights (SmoothQuant, 2211.10438), and what flows into its layers now.
One factor belongs to one tensor: all layers that read it share it, so they can share its codes too.
It is folded into the weights in front of the tensor wherever `quant.sites` knows some. What is left
is a factor on the readers' input, for layers behind an activation function.

Rewriting is exact but for float32 rounding: 2^-24 for each weight that is multiplied.

Axes: K = channels of a tensor, U = those that have a factor of their own, N = outputs, R = rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.stored import Edit, StoredTensor
from quant.calibrate import Statistics
from quant.formats import round_to_bfloat16
from quant.methods import smooth_scales
from quant.recipes import Rule
from quant.sites import Site, Writer, find_sites

Model = TypeVar("Model", bound=nn.Module)
Factors = NDArray[np.float32]
SMOOTHED = ("smooth", "tokens")
"""Methods whose layers share their input's range with their weights."""


@dataclass(frozen=True, slots=True)
class Folded(Generic[Model]):
    """A float policy that was made ready for its formats."""

    model: Model
    """float32; what was not changed is shared with the policy that it was made from."""
    statistics: Mapping[str, Statistics]
    """Of the inputs of its layers."""
    factors: Mapping[str, Factors]
    """[K] what the inputs of these layers still have to be multiplied with, in a number that
    bfloat16 holds. Their weights and statistics are those before it."""
    num_folded: int = 0
    """Layers whose factor costs nothing any more."""


def fold(
    model: Model, rules: Mapping[str, Rule], statistics: Mapping[str, Statistics]
) -> Folded[Model]:
    """Give every tensor that smoothed layers read its factor.

    Args:
        rules: of every layer of `model`, by its name in it.
        statistics: of the inputs of all layers that are smoothed.
    """
    edits = _Edits(model)
    seen = dict(statistics)
    factors: dict[str, Factors] = {}
    num_folded = 0
    for site in find_sites(model):
        smoothed = [name for name in site.readers if rules[name].method in SMOOTHED]
        if not smoothed:
            continue
        weights = (edits.weight(name) for name in smoothed)
        factor_K = smooth_factor(weights, seen[smoothed[0]].channel_max, site.channels)
        if not site.writers:
            factor_K = round_to_bfloat16(factor_K)
            factors.update(dict.fromkeys(smoothed, factor_K))
            continue
        num_folded += len(smoothed)
        _move(edits, site, factor_K)
        for name in site.readers:
            if name in seen:
                seen[name] = _scaled(seen[name], factor_K)
    return Folded(edits.applied(), seen, factors, num_folded)


def smooth_factor(
    weights_NK: Iterable[torch.Tensor],
    largest_K: Factors,
    channels: NDArray[np.int64] | None = None,
) -> Factors:
    """[K] what a tensor is multiplied with for all layers that read it, their weights divided.

    Args:
        weights_NK: of these layers.
        largest_K: magnitude of each channel.
        channels: [K] equal where the factor has to be.
    """
    weight_K = np.max([w.abs().amax(dim=0).numpy() for w in weights_NK], axis=0)
    if channels is None:
        channels = np.arange(len(largest_K))
    largest_U, weight_U = (_largest(values, channels) for values in (largest_K, weight_K))
    factor_U = np.reciprocal(smooth_scales(largest_U, weight_U[:, None]))
    return factor_U[channels]


def _largest(values_K: Factors, channels: NDArray[np.int64]) -> Factors:
    found_U = np.zeros(channels.max() + 1, np.float32)
    np.maximum.at(found_U, channels, values_K)
    return found_U


def _move(edits: _Edits[Model], site: Site, factor_K: Factors) -> None:
    """The factor into the writers, its reciprocal into the readers."""
    factor_U = factor_K
    if site.channels is not None:
        factor_U = np.empty(site.channels.max() + 1, np.float32)
        factor_U[site.channels] = factor_K
    for writer in site.writers:
        edits.scale_outputs(writer, torch.from_numpy(factor_U))
    for name in site.readers:
        edits.scale_inputs(name, torch.from_numpy(factor_K))


def _scaled(seen: Statistics, factor_K: Factors) -> Statistics:
    return Statistics(seen.channel_max * factor_K, seen.rows * factor_K, seen.num_rows)


class _Edits(Generic[Model]):
    """Changed copies of parameters, put in place all at once; the model itself stays.

    A weight that lies on disk stays there: its changes are made each time it is read.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._changed: dict[int, torch.Tensor] = {}

    def weight(self, layer: str) -> torch.Tensor:
        """[N, K] of a linear layer, [U] of a norm, as it is by now."""
        weight = self._model.get_submodule(layer).weight
        assert isinstance(weight, nn.Parameter)
        return self._changed.get(id(weight), weight).detach()

    def scale_inputs(self, layer: str, factor_K: torch.Tensor) -> None:
        """Divide the columns of a linear layer."""
        self._change(self._model.get_submodule(layer).weight, lambda weight: weight.div_(factor_K))

    def scale_outputs(self, writer: Writer, factor_U: torch.Tensor) -> None:
        """Multiply outputs of a norm or a linear layer, their bias included."""
        part = slice(writer.first, writer.first + len(factor_U))

        def scale(weight: torch.Tensor) -> None:
            weight[part] *= factor_U if weight.ndim == 1 else factor_U[:, None]

        def scale_bias(values: torch.Tensor) -> None:
            values[part] = (values[part] + writer.plus) * factor_U - writer.plus

        module = self._model.get_submodule(writer.module)
        self._change(module.weight, scale)
        if (bias := getattr(module, "bias", None)) is not None:
            self._change(bias, scale_bias)
        else:
            assert not writer.plus, f"{writer.module} has no bias to take a constant"

    def applied(self) -> Model:
        keep: dict[int, torch.Tensor] = {id(p): p for p in self._model.parameters()}
        keep |= {id(b): b for b in self._model.buffers()}
        return copy.deepcopy(self._model, {**keep, **self._changed})

    def _change(self, parameter: Any, edit: Edit) -> None:
        before = self._changed.get(id(parameter), parameter)
        if isinstance(before, StoredTensor):
            self._changed[id(parameter)] = before.edited(edit)
            return
        if before is parameter:
            before = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            self._changed[id(parameter)] = before
        edit(before.data)
