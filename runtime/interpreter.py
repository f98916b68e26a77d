"""Runs a graph lazily: a stage runs only if an input it depends on has changed since it last ran.

Every set of inputs that some stage depends on has a version number, a new one whenever any input in
the set changes. Every stage remembers the version of its set at its last run. That is the whole
cache: what a tick does not recompute is what none of its changed inputs reach. No number is given
twice, so a transaction that fails can put the old ones back.

What stages make of one input alone may also be remembered by its value, in a store of the graph:
a picture that another input has shown before is copied and not computed again. A member's stages,
its cone, run together or not at all, for a copy renews the member and nothing on the way to it.

Host functions are called one by one. Engine stages between them are launched together, so that a
device can overlap them, replay them as one, and answer once.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .engine import Engine, Launch, Memory
from .functions.calls import make_call
from .functions.function import Resources
from .functions.remembered import Places, StoreStats, same
from .graph import Cone, Graph, Stage

NEVER = -1
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


@dataclass(slots=True)
class Due:
    """What a run has to do: stages, and what stores spare."""

    stages: set[int]
    copied: dict[Cone, str] = field(default_factory=dict)
    """Cones that are spared, and their store."""
    computed: dict[Cone, str] = field(default_factory=dict)
    """Cones that are computed as a whole, and the store that remembers their result."""
    twins: list[tuple[Cone, Cone]] = field(default_factory=list)
    """Of these and of those, one each that shows the same value: it is copied between the two."""


class Interpreter:
    """Holds the inputs' values and versions and runs the stages that are stale.

    Args:
        graph: what to run.
        host_calls: one per stage that is a host function. Each takes the inputs' current values and
            reads and writes the stage's own buffers.
        launch: runs engine stages.
        copy: `Memory.copy`, for results that a store of the graph remembers.
    """

    def __init__(
        self,
        graph: Graph,
        host_calls: Mapping[str, HostCall],
        launch: Launch,
        copy: Callable[[str, str], None],
    ) -> None:
        self.graph = graph
        self.values: dict[str, Any] = {}
        self.num_runs = [0] * len(graph.stages)
        self.total_s = [0.0] * len(graph.stages)
        self.own_s = 0.0
        """Seconds of the last run that went into no stage."""
        self._host_calls, self._launch, self._copy = host_calls, launch, copy
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
        self._cones = [(name, cone) for name, cones in graph.cones.items() for cone in cones]
        self._places = {name: Places(len(store.entries)) for name, store in graph.stores.items()}
        self._spared = {name: [0, 0] for name in graph.stores}
        """Per store, cones that were copied and cones that were computed."""
        self._afresh: frozenset[Cone] = frozenset()
        """Cones that have to be computed once, whatever a store has."""

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
        if name in self.values and same(self.values[name], value):
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
        plan = self._plan(leaves)
        stale = tuple(i for i in plan if seen[i] != versions[needs[i]])
        ran: dict[int, float] = {}
        self._ran = ran
        if self._cones:
            self._run_with_stores(plan, stale)
        else:
            self._run_stages(stale)
        for i, elapsed in ran.items():
            self.num_runs[i] += 1
            self.total_s[i] += elapsed
        self.own_s = time.perf_counter() - start - sum(ran.values())

    @property
    def stores(self) -> dict[str, StoreStats]:
        """How each store of the graph served since the statistics were reset."""
        found = {}
        for name, store in self.graph.stores.items():
            places, (hits, misses) = self._places[name], self._spared[name]
            num_bytes = sum(self.graph.tensors[n].num_bytes for e in store.entries for n in e)
            found[name] = StoreStats(
                hits, misses, len(places), len(store.entries), num_bytes, places.value_bytes
            )
        return found

    def forget(self) -> None:
        """Mark every stage that depends on an input as never run, and let it run once though a
        store may have its result by then."""
        for i, needs in enumerate(self._needs):
            if needs:
                self._seen[i] = NEVER
        for places in self._places.values():
            places.forget()
        self._afresh = frozenset(cone for _, cone in self._cones)

    def close(self) -> None:
        """Let go of the memory that host functions read and write: nothing can run any more."""
        self._host_calls = {}

    def reset_statistics(self) -> None:
        self.num_runs = [0] * len(self._names)
        self.total_s = [0.0] * len(self._names)
        self._spared = {name: [0, 0] for name in self._spared}

    def _remember(self) -> Callable[[], None]:
        """What goes back to how things are now."""
        inputs, seen = (self.values.copy(), self._versions.copy()), self._seen.copy()
        statistics = self.num_runs.copy(), self.total_s.copy(), self._ran
        stores = [places.remember() for places in self._places.values()]
        afresh, spared = self._afresh, {name: [*of] for name, of in self._spared.items()}

        def undo() -> None:
            self.values, self._versions = inputs
            self._afresh, self._spared = afresh, spared
            for undo_store in stores:
                undo_store()
            self._seen = [
                now if now == before else NEVER
                for now, before in zip(self._seen, seen, strict=True)
            ]
            self.num_runs, self.total_s, self._ran = statistics

        return undo

    def _run_stages(self, stages: tuple[int, ...]) -> None:
        seen, versions, needs = self._seen, self._versions, self._needs
        for batch in self._batches(stages):
            for i in batch.stages:
                seen[i] = NEVER  # stays so if this raises: a half-written buffer is never reused
            self._ran |= self._run_host(batch) if batch.wanted is None else self._run_engines(batch)
            for i in batch.stages:
                seen[i] = versions[needs[i]]

    def _run_with_stores(self, plan: Sequence[int], stale: tuple[int, ...]) -> None:
        """The same, but for what stores spare.

        What was copied counts as seen once all has run: a device may say late that a copy failed.
        """
        due = self._look_up(plan, stale)
        leading = {i for leader, _ in due.twins for i in leader.stages}
        if leading:  # first they, and what never changes
            first = {i for i in due.stages if i in leading or not self._needs[i]}
            self._run_stages(tuple(i for i in plan if i in first))
            due.stages -= first
        for leader, follower in due.twins:
            self._copy_all(leader.tensors, follower.tensors)
        self._run_stages(tuple(i for i in plan if i in due.stages))
        for cone, name in due.copied.items():
            self._spared[name][0] += 1
            for i in cone.stages:
                self._seen[i] = self._versions[self._needs[i]]
        for cone, name in due.computed.items():
            self._spared[name][1] += 1
            self._remember_result(cone, name)
        self._afresh -= due.computed.keys()

    def _look_up(self, plan: Sequence[int], stale: tuple[int, ...]) -> Due:
        """Ask the stores, and copy what they have."""
        due, planned = Due({*stale}), frozenset(plan)
        for name, cone in self._cones:
            if due.stages.isdisjoint(cone.stages):
                continue
            value, entries = self.values[cone.source], self.graph.stores[name].entries
            leaders = (c for c, n in due.computed.items() if n == name)
            leader = next((c for c in leaders if same(self.values[c.source], value)), None)
            place = None if leader or cone in self._afresh else self._places[name].find(value)
            if cone in self._afresh or (leader is None and place is None):
                due.stages |= planned.intersection(cone.stages)
                if planned.issuperset(cone.stages):
                    due.computed[cone] = name
                continue
            due.stages.difference_update(cone.stages)
            due.copied[cone] = name
            for i in cone.stages:
                self._seen[i] = NEVER
            if leader is not None:
                due.twins.append((leader, cone))
            elif place is not None:
                self._copy_all(entries[place], cone.tensors)
        return due

    def _remember_result(self, cone: Cone, name: str) -> None:
        value, places = self.values[cone.source], self._places[name]
        if places.find(value) is None:
            with places.renewed(value) as place:
                self._copy_all(cone.tensors, self.graph.stores[name].entries[place])

    def _copy_all(self, sources: tuple[str, ...], targets: tuple[str, ...]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self._copy(source, target)

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
    return Interpreter(graph, host_calls, launcher(graph, runs, memory), memory.copy)


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
