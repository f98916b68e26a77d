"""Where a recipe errs: by observation, engine, stage and layer, each with everything else exact.

In: the subject of an export whose gate failed. Out: relative errors, norm of the difference over
the norm. The trade-off: everything is run once more, which a bundle that is not written can afford.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.judge import Stages, worst_stages
from export.measure import Modules
from export.subject import Judged, Subject
from models.declared import DENOISED
from models.split import Split
from quant.modules import QuantLinear
from runtime.backends.parity import relative_error


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """Made by `diagnose`."""

    observations: Mapping[str, tuple[float, float]]
    """Error of the actions, and half of what another noise seed does to them."""
    worst: str
    """The observation that the engines and layers below were run on."""
    engines: Mapping[str, float]
    """Error of the actions where this engine alone is the recipe's."""
    stages: Stages
    """As `export.judge.worst_stages` says."""
    layers: Mapping[str, float]
    """Error of what each quantized layer puts out, given float32's inputs; the largest first."""


def diagnose(subject: Subject) -> Diagnosis:
    """Run it all again, piece by piece."""
    observations = {
        seen.where: (_error(subject, subject.parts, seen), seen.spread / 2)
        for seen in subject.judged
    }
    worst = max(subject.judged, key=lambda seen: _excess(*observations[seen.where]))
    engines = {
        name: _error(
            subject, replace(subject.exact, engines={**subject.exact.engines, name: spec}), worst
        )
        for name, spec in subject.parts.engines.items()
    }
    return Diagnosis(
        observations=observations,
        worst=worst.where,
        engines=engines,
        stages=worst_stages(subject),
        layers=_layer_errors(subject, worst),
    )


def _error(subject: Subject, parts: Split, seen: Judged) -> float:
    modules = Modules(subject.checkpoint, parts)
    return relative_error(modules.actions(seen.inputs), seen.tensors[DENOISED])


def _excess(error: float, limit: float) -> float:
    return error / limit if np.isfinite(error) and limit else np.inf


def _layer_errors(subject: Subject, seen: Judged) -> dict[str, float]:
    quantized = {
        name: layer
        for name, layer in subject.model.named_modules()
        if isinstance(layer, QuantLinear)
    }
    sums: dict[str, list[float]] = {}

    def compare(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(_layer: nn.Module, arguments: tuple[Any, ...], want: Tensor) -> None:
            got = quantized[name](arguments[0])
            off, whole = sums.setdefault(name, [0.0, 0.0])
            sums[name] = [
                off + float((got - want).square().sum()),
                whole + float(want.square().sum()),
            ]

        return hook

    model = subject.checkpoint.model
    handles = [model.get_submodule(n).register_forward_hook(compare(n)) for n in quantized]
    try:
        with torch.no_grad():
            Modules(subject.checkpoint, subject.exact).actions(seen.inputs)
    finally:
        for handle in handles:
            handle.remove()
    errors = {name: (off / whole) ** 0.5 if whole else 0.0 for name, (off, whole) in sums.items()}
    return dict(sorted(errors.items(), key=lambda item: -item[1]))
