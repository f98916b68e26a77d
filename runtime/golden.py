"""The golden observation of a bundle, and others like it.

Whatever is measured or warmed up starts from it: it is known to fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import GOLDEN_STAGE, Bundle, read_golden
from .declarations import Input, Source, from_source
from .graph import Graph
from .inputs import CAMERAS

VECTOR_STEP = np.float32(1e-3)
"""In robot units; small against what a vector normalizes to."""


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """What was seen, drawn and said, and what the float32 reference made of it."""

    given: Mapping[str, Any]
    """What the operator gave, and what was latched: for `Policy.start`."""
    observed: Mapping[str, NDArray[Any]]
    """What the robot gave: for `Episode.act`."""
    drawn: Mapping[str, NDArray[Any]]
    """Noise, and what is left of the last chunk: for `Episode.act` too."""
    recalled: Mapping[str, NDArray[Any]]
    """What delayed inputs and memories showed, if not the present: for `Episode.recall`."""
    tensors: Mapping[str, NDArray[Any]]
    """What every engine wrote, and outputs, by name."""

    @classmethod
    def of(cls, bundle: Bundle) -> Golden:
        return cls.from_arrays(bundle.manifest.graph, read_golden(bundle))

    @classmethod
    def from_arrays(cls, graph: Graph, arrays: Mapping[str, NDArray[Any]]) -> Golden:
        """Sorted by where they belong."""

        def of_source(*sources: Source) -> dict[str, Any]:
            return {
                name: str(arrays[name]) if declared.kind == "text" else arrays[name]
                for name, declared in from_source(graph.inputs, *sources).items()
            }

        tensors = {n: arrays[n] for n in graph.outputs if n in arrays}
        stages = {n: a for n, a in arrays.items() if n.startswith(GOLDEN_STAGE)}
        tensors = {n.removeprefix(GOLDEN_STAGE): a for n, a in stages.items()} | tensors
        looking_back = from_source(graph.inputs, "delay", "memory")
        return cls(
            given=of_source("operator", "latch"),
            observed=of_source("robot"),
            drawn=of_source("drawn", "loop"),
            recalled={n: v for n, v in arrays.items() if n in looking_back},
            tensors=tensors,
        )


def vary(
    inputs: Mapping[str, Input], values: Mapping[str, Any], count: int
) -> dict[str, NDArray[Any]]:
    """Other values of the same kind for each `count`: for warming up and for measuring.

    Pictures are shifted, vectors moved by little; what is drawn or said is left out.
    """
    changed: dict[str, NDArray[Any]] = {}
    for name, value in values.items():
        kind = inputs[name].kind
        if kind in CAMERAS:
            changed[name] = np.roll(value, count, axis=-1 if kind == "depth" else -2)
        elif kind == "vector":
            changed[name] = np.asarray(value + VECTOR_STEP * np.float32(count % 7), np.float32)
    return changed
