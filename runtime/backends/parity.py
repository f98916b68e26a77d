"""How far an engine is from what it should write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import Backend
from ..graph import Graph


@dataclass(frozen=True, slots=True)
class Parity:
    """How far one tensor is from the golden one."""

    name: str
    error: float
    """Norm of the difference over the norm."""
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed


def engine_errors(
    backend: Backend, path: Path, graph: Graph, tensors: Mapping[str, NDArray[Any]]
) -> dict[str, float]:
    """Worst relative error of an engine on each stage of `graph` that calls it.

    Every stage is given its inputs from `tensors`, so that no engine inherits another one's error.

    Args:
        path: of the engine's ONNX file; its stem is the engine's name.
        tensors: what all stages should read and write, by name.

    Raises:
        EngineError: the engine cannot be loaded, bound or run.
    """
    loaded, memory = backend.engine(path), backend.memory(graph)
    errors = {}
    for stage in graph.stages:
        if stage.engine != path.stem:
            continue
        for name in stage.inputs.values():
            memory.host(name)[...] = tensors[name]
            memory.upload(name)
        loaded.bind(stage.inputs, stage.outputs, memory)()
        for name in stage.outputs.values():
            memory.download(name)
        errors[stage.name] = max(
            relative_error(memory.host(name), tensors[name]) for name in stage.outputs.values()
        )
    return errors


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Norm of the difference over the norm of `want`; infinite if anything is not finite."""
    exact = want.astype(np.float64)
    difference = np.linalg.norm(got - exact)
    error = float(difference / max(float(np.linalg.norm(exact)), 1e-30))
    return error if np.isfinite(error) else float("inf")
