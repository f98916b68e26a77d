"""Runs a graph lazily: a stage runs only if an input it depends on has changed since it last ran.

Every input has a version number. Every stage remembers the versions of its inputs at its last run.
That is the whole cache: what a tick does not recompute is what none of its changed inputs reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .graph import Graph

NEVER = (-1,)


class Interpreter:
    """Holds the inputs' values and versions and calls the bound stages that are stale.

    Args:
        graph: what to run.
        calls: one per stage, in order. Each takes the inputs' current values (a dict) and reads
            and writes the stage's own buffers.
    """

    def __init__(self, graph: Graph, calls: Sequence[Callable[[Mapping[str, Any]], None]]) -> None:
        self.graph = graph
        self.values: dict[str, Any] = {}
        self.num_runs = [0] * len(calls)
        self.total_s = [0.0] * len(calls)
        self.last_run: dict[str, float] = {}
        """Seconds of each stage that the last `run` executed, by stage name."""
        self._calls = list(calls)
        self._names = [stage.name for stage in graph.stages]
        self._versions = [0] * len(graph.inputs)
        self._index = {name: i for i, name in enumerate(graph.inputs)}
        needs = graph.stage_dependencies
        self._needs = [
            tuple(sorted(self._index[name] for name in needs[stage.name])) for stage in graph.stages
        ]
        self._seen: list[tuple[int, ...]] = [NEVER] * len(calls)
        self._plans = {leaf: graph.needed_for(leaf) for leaf in graph.outputs}

    def set(self, name: str, value: Any) -> bool:
        """Give an input a value. The same value again is no change.

        The caller must not write into an array after handing it over.

        Returns:
            Whether the input changed.
        """
        if name in self.values and _same(self.values[name], value):
            return False
        self.values[name] = value
        self._versions[self._index[name]] += 1
        return True

    def run(self, leaf: str) -> None:
        """Bring `leaf` up to date. Its buffer then holds the result."""
        versions, seen, values = self._versions, self._seen, self.values
        self.last_run = ran = {}
        for i in self._plans[leaf]:
            current = tuple([versions[j] for j in self._needs[i]])
            if seen[i] == current:
                continue
            seen[i] = NEVER  # stays so if the call raises: a half-written buffer is never reused
            start = time.perf_counter()
            self._calls[i](values)
            elapsed = time.perf_counter() - start
            seen[i] = current
            self.num_runs[i] += 1
            self.total_s[i] += elapsed
            ran[self._names[i]] = elapsed

    def forget(self) -> None:
        """Mark every stage that depends on an input as never run."""
        for i, needs in enumerate(self._needs):
            if needs:
                self._seen[i] = NEVER

    def reset_statistics(self) -> None:
        self.num_runs = [0] * len(self._calls)
        self.total_s = [0.0] * len(self._calls)


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        return old is new or (
            old.dtype == new.dtype and old.shape == new.shape and bool((old == new).all())
        )
    return bool(old == new)
