"""Does a bundle still compute what its exporter measured? The golden data says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Backend
from .graph import Graph
from .policy import ACTIONS, Policy, read_golden


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far one tensor is from the golden one."""

    name: str
    error: float
    """Norm of the difference over the norm."""
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed


def check(policy: Policy) -> list[Verdict]:
    """Run the golden observation and compare what every engine writes, and the actions.

    The last verdict is about the actions, against the reference that knows nothing of stages.
    """
    golden = read_golden(policy.bundle)
    episode = policy.start(anchor=golden["anchor"], instruction=str(golden["instruction"]))
    policy.interpreter.forget()
    chunk = episode.act(golden["frame"], golden["state"], noise=golden["noise"])
    written = [n for s in policy.graph.stages if s.engine for n in s.outputs.values()]
    for name in written:
        policy.memory.download(name)
    errors = {n: relative_error(policy.memory.host(n), golden[f"stage/{n}"]) for n in written}
    errors[ACTIONS] = relative_error(chunk, golden[ACTIONS])
    manifest = policy.bundle.manifest
    allowed = dict(manifest.tolerance)
    allowed[ACTIONS] += manifest.action_error
    return [Verdict(name, error, allowed[name]) for name, error in errors.items()]


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
    difference = np.linalg.norm(got.astype(np.float64) - want)
    error = float(difference / max(float(np.linalg.norm(want)), 1e-30))
    return error if np.isfinite(error) else float("inf")
