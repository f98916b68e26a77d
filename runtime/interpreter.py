"""Runs a graph lazily: a stage runs only if an input it depends on has changed since it last ran.

Every set of inputs that some stage depends on has a version number, a new one whenever any input in
the set changes. Every stage remembers the version of its set at its last run. That is the whole
cache: what a tick does not recompute is what none of its changed inputs reach. No number is given
twice, so a transaction that fails can put the old ones back.

Host functions are called one by one. Engine stages between them are launched together, so that a
device can overlap them, replay them as one, and answer once.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .engine import Engine, Launch, Memory
from .functions.calls import make_call
from .functions.function import Resources
from .graph import Graph, Stage

NEVER = -1
FIRST = 4096
"""Numbers that are compared before all others."""
MOST_BATCHES = 256
"""Sets of stale stages whose batches are kept."""
HostCall = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Batch:
    """What runs at once: a host function, or engine stages of which none waits for a host."""

    stages: tuple[int, ...]
    names: tuple[str, ...]
    """Of these."""
    wanted: frozenset[str] | None
    """Tensors that host functions of the same tick read later; None for a host function."""


class Interpreter:
    """Holds the inputs' values and versions and runs the stages that are stale.

    Args:
        graph: what to run.
        host_calls: one per stage that is a host function. Each takes the inputs' current values and
            reads and writes the stage's own buffers.
        launch: runs engine stages.
    """

    def __init__(self, graph: Graph, host_calls: Mapping[str, HostCall], launch: Launch) -> None:
        self.graph = graph
        self.values: dict[str, Any] = {}
        self.num_runs = [0] * len(graph.stages)
        self.total_s = [0.0] * len(graph.stages)
        self.own_s = 0.0
        """Seconds of the last run that went into no stage."""
        self._host_calls, self._launch = host_calls, launch
        self._names = [stage.name for stage in graph.stages]
        self._needs = [graph.stage_dependencies[name] for name in self._names]
        self._versions = dict.fromkeys(self._needs, 0)
        self._seen = [NEVER] * len(graph.stages)
        self._next_version = itertools.count(1)
        self._phase = graph.phases
        self._plans: dict[tuple[str, ...], list[int]] = {}
        self._batched: dict[tuple[int, ...], tuple[Batch, ...]] = {}
        self._reads = [frozenset(stage.inputs.values()) for stage in graph.stages]
        self._ran: dict[int, float] = {}

    @property
    def last_run(self) -> dict[str, float]:
        """Seconds of each stage that the last `run` executed, by stage name."""
        return {self._names[i]: seconds for i, seconds in self._ran.items()}

    def set(self, name: str, value: Any) -> bool:
        """Give an input a value. The same value again is no change.

        The caller must not write into an array after handing it over.

        Returns:
            Whether the input changed.
        """
        if name in self.values and _same(self.values[name], value):
            return False
        self.values[name] = value
        version = next(self._next_version)
        for needs in self._versions:
            if name in needs:
                self._versions[needs] = version
        return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What happens inside happens whole or not at all.

        After an exception the inputs have the values and versions they had before, and every stage
        that ran inside runs again when it is needed: its buffer may hold anything.
        """
        undo = self._remember()
        try:
            yield
        except BaseException:
            undo()
            raise

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside is undone at its end, as by a transaction that fails."""
        undo = self._remember()
        try:
            yield
        finally:
            undo()

    def run(self, *leaves: str) -> None:
        """Bring outputs up to date. Their buffers then hold the results.

        Raises:
            GraphError: one is no output of the graph.
        """
        start = time.perf_counter()
        seen, versions, needs = self._seen, self._versions, self._needs
        stale = tuple(i for i in self._plan(leaves) if seen[i] != versions[needs[i]])
        ran: dict[int, float] = {}
        self._ran = ran
        for batch in self._batches(stale):
            for i in batch.stages:
                seen[i] = NEVER  # stays so if this raises: a half-written buffer is never reused
            ran |= self._run_host(batch) if batch.wanted is None else self._run_engines(batch)
            for i in batch.stages:
                seen[i] = versions[needs[i]]
        for i, elapsed in ran.items():
            self.num_runs[i] += 1
            self.total_s[i] += elapsed
        self.own_s = time.perf_counter() - start - sum(ran.values())

    def forget(self) -> None:
        """Mark every stage that depends on an input as never run."""
        for i, needs in enumerate(self._needs):
            if needs:
                self._seen[i] = NEVER

    def close(self) -> None:
        """Let go of the memory that host functions read and write: nothing can run any more."""
        self._host_calls = {}

    def reset_statistics(self) -> None:
        self.num_runs = [0] * len(self._names)
        self.total_s = [0.0] * len(self._names)

    def _remember(self) -> Callable[[], None]:
        """What goes back to how things are now."""
        inputs, seen = (self.values.copy(), self._versions.copy()), self._seen.copy()
        statistics = self.num_runs.copy(), self.total_s.copy(), self._ran

        def undo() -> None:
            self.values, self._versions = inputs
            self._seen = [
                now if now == before else NEVER
                for now, before in zip(self._seen, seen, strict=True)
            ]
            self.num_runs, self.total_s, self._ran = statistics

        return undo

    def _plan(self, leaves: tuple[str, ...]) -> list[int]:
        """The stages that these outputs need, in running order."""
        if leaves not in self._plans:
            needed = set[int]().union(*map(self.graph.needed_for, leaves))
            self._plans[leaves] = sorted(needed, key=lambda i: (self._phase[i], i))
        return self._plans[leaves]

    def _batches(self, stale: tuple[int, ...]) -> tuple[Batch, ...]:
        """Host functions one by one, engine stages together. Kept, for ticks are much alike."""
        if (kept := self._batched.get(stale)) is not None:
            return kept
        batches: list[Batch] = []
        done = 0
        for phase, group in itertools.groupby(stale, key=self._phase.__getitem__):
            stages = tuple(group)
            done += len(stages)
            names = tuple(self._names[i] for i in stages)
            if phase % 2:
                later = (self._reads[i] for i in stale[done:] if not self._phase[i] % 2)
                batches.append(Batch(stages, names, frozenset().union(*later)))
            else:
                batches += [Batch((i,), (self._names[i],), None) for i in stages]
        if len(self._batched) == MOST_BATCHES:
            self._batched.clear()
        self._batched[stale] = tuple(batches)
        return self._batched[stale]

    def _run_host(self, batch: Batch) -> dict[int, float]:
        start = time.perf_counter()
        self._host_calls[batch.names[0]](self.values)
        return {batch.stages[0]: time.perf_counter() - start}

    def _run_engines(self, batch: Batch) -> dict[int, float]:
        assert batch.wanted is not None
        seconds = self._launch(batch.names, batch.wanted)
        return {i: seconds[name] for i, name in zip(batch.stages, batch.names, strict=True)}


def assemble(
    graph: Graph,
    engines: Mapping[str, Engine],
    memory: Memory,
    resources: Resources,
    launcher: Callable[..., Launch],
) -> Interpreter:
    """Every stage of `graph` bound to its buffers, once.

    Raises:
        ValueError: the embodiment's statistics do not fit a host function.
    """
    runs, host_calls = {}, {}
    for stage in graph.stages:
        if stage.engine is not None:
            runs[stage.name] = engines[stage.engine].bind(stage.inputs, stage.outputs, memory)
        else:
            host_calls[stage.name] = _host_call(stage, graph, memory, resources)
    return Interpreter(graph, host_calls, launcher(graph, runs, memory))


def _host_call(stage: Stage, graph: Graph, memory: Memory, resources: Resources) -> HostCall:
    function = make_call(stage, resources)
    from_values = [(port, s) for port, s in stage.inputs.items() if s in graph.inputs]
    downloads = [(port, s) for port, s in stage.inputs.items() if s not in graph.inputs]
    from_memory = {port: memory.host(s) for port, s in downloads}
    outputs = {port: memory.host(name) for port, name in stage.outputs.items()}

    def call(values: Mapping[str, Any]) -> None:
        for _, name in downloads:
            memory.download(name)
        function({**from_memory, **{port: values[s] for port, s in from_values}}, outputs)
        for name in stage.outputs.values():
            memory.upload(name)

    return call


def _same(old: Any, new: Any) -> bool:
    """To the bit: zero and minus zero are two values, for an engine may tell them apart."""
    if type(old) is not type(new):
        return False
    if not isinstance(old, np.ndarray):
        return bool(old == new)
    if old is new or old.dtype != new.dtype or old.shape != new.shape:
        return old is new
    a, b = (array.view(f"u{array.itemsize}").ravel() for array in (old, new))
    # Two pictures of a camera differ within their first pixels, and then the rest is not read.
    return bool((a[:FIRST] == b[:FIRST]).all() and (a[FIRST:] == b[FIRST:]).all())
