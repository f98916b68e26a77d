"""Runs a graph lazily: a stage runs only if an input it depends on has changed since it last ran.

Every set of inputs that some stage depends on has a version number, which grows when any input in
the set changes. Every stage remembers the version of its set at its last run. That is the whole
cache: what a tick does not recompute is what none of its changed inputs reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .graph import Graph

NEVER = -1


class Interpreter:
    """Holds the inputs' values and versions and calls the bound stages that are stale.

    Args:
        graph: what to run.
        calls: one per stage, in order. Each takes the inputs' current values and reads and writes
            the stage's own buffers.
    """

    def __init__(self, graph: Graph, calls: Sequence[Callable[[Mapping[str, Any]], None]]) -> None:
        self.graph = graph
        self.values: dict[str, Any] = {}
        self.num_runs = [0] * len(calls)
        self.total_s = [0.0] * len(calls)
        self._calls = list(calls)
        self._names = [stage.name for stage in graph.stages]
        self._needs = [graph.stage_dependencies[name] for name in self._names]
        self._versions = dict.fromkeys(self._needs, 0)
        self._seen = [NEVER] * len(calls)
        self._plans = {leaf: graph.needed_for(leaf) for leaf in graph.outputs}
        self._ran: list[tuple[int, float]] = []

    @property
    def last_run(self) -> dict[str, float]:
        """Seconds of each stage that the last `run` executed, by stage name."""
        return {self._names[i]: seconds for i, seconds in self._ran}

    def set(self, name: str, value: Any) -> bool:
        """Give an input a value. The same value again is no change.

        The caller must not write into an array after handing it over.

        Returns:
            Whether the input changed.
        """
        if name in self.values and _same(self.values[name], value):
            return False
        self.values[name] = value
        for needs in self._versions:
            if name in needs:
                self._versions[needs] += 1
        return True

    def run(self, leaf: str) -> None:
        """Bring `leaf` up to date. Its buffer then holds the result."""
        seen, versions, needs, calls = self._seen, self._versions, self._needs, self._calls
        self._ran = ran = []
        start = time.perf_counter()
        for i in self._plans[leaf]:
            version = versions[needs[i]]
            if seen[i] == version:
                continue
            seen[i] = NEVER  # stays so if the call raises: a half-written buffer is never reused
            calls[i](self.values)
            seen[i] = version
            end = time.perf_counter()
            ran.append((i, end - start))
            start = end
        for i, seconds in ran:
            self.num_runs[i] += 1
            self.total_s[i] += seconds

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
