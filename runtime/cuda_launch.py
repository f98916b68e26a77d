"""Batches of engine stages on CUDA streams: enqueued once, then replayed as CUDA graphs.

A batch is: copy what the host wrote, run the stages on their streams, copy what the host wants,
synchronize once. The kinds of tick that a robot meets all the time come up while the policy warms
up and are captured then; whatever else happens later is enqueued stage by stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .cuda import CapturedGraph, Cuda
from .device_memory import DeviceMemory
from .graph import Graph
from .schedule import NUM_STREAMS, plan

START = ""
"""Of a batch, among the names of its stages."""


class Bound(Protocol):
    """An engine bound to its buffers, as the launcher needs it."""

    scratch_bytes: int

    def give_scratch(self, address: int) -> None: ...

    def enqueue(self, stream: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Captured:
    """A batch that is replayed."""

    graph: CapturedGraph
    uploads: frozenset[str]
    downloads: frozenset[str]
    times: Mapping[str, Any]


class CudaLauncher:
    """See `runtime.engine.Launch`."""

    def __init__(
        self, graph: Graph, runs: Mapping[str, Bound], memory: DeviceMemory, cuda: Cuda
    ) -> None:
        self._runs, self._memory, self._cuda = runs, memory, cuda
        self._schedule = plan(graph)
        side = [cuda.driver.Stream() for _ in range(NUM_STREAMS - 1)]
        self._streams = [memory.stream, *side]
        self._ready = cuda.event()
        self._done = {name: cuda.event() for name in runs}
        self._times = {name: cuda.event() for name in (START, *runs)}
        self._outputs = {s.name: tuple(s.outputs.values()) for s in graph.stages if s.engine}
        self._captured: dict[tuple[str, ...], Captured] = {}
        self._has_run: set[str] = set()
        self._is_settled = False
        self.scratch: list[Any] = [self._share_scratch(s) for s in range(NUM_STREAMS)]

    def __call__(self, stages: tuple[str, ...], wanted: frozenset[str]) -> Mapping[str, float]:
        uploads = self._memory.take_uploads()
        written = [name for stage in stages for name in self._outputs[stage]]
        downloads = tuple(sorted(wanted.intersection(written)))
        if self._may_capture(stages):
            self._captured[stages] = self._capture(stages, uploads, downloads)
        batch = self._captured.get(stages)
        if batch is None:
            self._enqueue(stages, uploads, downloads, self._times, captured=False)
            self._has_run.update(stages)
        else:
            self._memory.copy_in(n for n in uploads if n not in batch.uploads)
            batch.graph.launch(self._memory.stream)
            self._memory.copy_out(n for n in downloads if n not in batch.downloads)
            downloads = (*downloads, *batch.downloads)
        self._memory.stream.synchronize()
        self._memory.written(written, copied=downloads)
        return self._seconds(stages, batch.times if batch else self._times)

    def settle(self) -> None:
        """Capture nothing more."""
        self._is_settled = True

    @property
    def captured(self) -> list[tuple[str, ...]]:
        """Batches that are replayed."""
        return list(self._captured)

    def close(self) -> None:
        """Destroy the graphs; the contexts that they refer to may go then."""
        self._memory.stream.synchronize()
        for batch in self._captured.values():
            batch.graph.close()
        self._captured.clear()

    def _may_capture(self, stages: tuple[str, ...]) -> bool:
        """A context allocates at its first run, which a capture does not allow."""
        return (
            not self._is_settled
            and stages not in self._captured
            and self._has_run.issuperset(stages)
        )

    def _capture(
        self, stages: tuple[str, ...], uploads: Sequence[str], downloads: Sequence[str]
    ) -> Captured:
        times = {name: self._cuda.event() for name in (START, *stages)}
        with self._cuda.capture(self._memory.stream) as graph:
            self._enqueue(stages, uploads, downloads, times, captured=True)
        return Captured(graph, frozenset(uploads), frozenset(downloads), times)

    def _enqueue(
        self,
        stages: Sequence[str],
        uploads: Sequence[str],
        downloads: Sequence[str],
        times: Mapping[str, Any],
        *,
        captured: bool,
    ) -> None:
        main, cuda = self._streams[0], self._cuda
        cuda.record_time(times[START], main, captured=captured)
        self._memory.copy_in(uploads)
        cuda.record(self._ready, main)
        last: dict[int, str] = {}
        for stage in stages:
            number = self._schedule.stream[stage]
            stream = self._streams[number]
            if number and number not in last:
                cuda.wait(stream, self._ready)
            for earlier in self._schedule.after[stage]:
                if earlier in stages:
                    cuda.wait(stream, self._done[earlier])
            self._runs[stage].enqueue(stream)
            cuda.record_time(times[stage], stream, captured=captured)
            cuda.record(self._done[stage], stream)
            last[number] = stage
        for number, stage in last.items():
            if number:
                cuda.wait(main, self._done[stage])
        self._memory.copy_out(downloads)

    def _seconds(self, stages: Sequence[str], times: Mapping[str, Any]) -> dict[str, float]:
        """Each from the end of what it had to wait for; the first from the start of the batch."""
        ends: dict[str, float] = {}
        last: dict[int, float] = {}
        seconds = {}
        for stage in stages:
            end = self._cuda.seconds(times[START], times[stage])
            number = self._schedule.stream[stage]
            waited = [ends[s] for s in self._schedule.after[stage] if s in ends]
            begin = max([last.get(number, 0.0), *waited])
            seconds[stage] = end - begin
            ends[stage] = last[number] = end
        return seconds

    def _share_scratch(self, number: int) -> Any:
        """One block for all stages of a stream: they never run at the same time."""
        runs = [run for stage, run in self._runs.items() if self._schedule.stream[stage] == number]
        block = self._memory.scratch(max((run.scratch_bytes for run in runs), default=0))
        for run in runs:
            run.give_scratch(int(block))
        return block
