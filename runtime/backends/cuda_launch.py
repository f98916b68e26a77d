"""Batches of engine stages on CUDA streams: enqueued once, then replayed as CUDA graphs.

A batch is: copy what the host wrote, run the stages on their streams, copy what the host wants,
synchronize once. The kinds of tick that a robot meets all the time come up while the policy warms
up and are captured then; whatever else happens later is enqueued stage by stage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import EngineError
from ..graph import Graph
from .cuda import CapturedGraph, Cuda
from .device_memory import DeviceMemory
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
    """See `runtime.engine.Launch`.

    After an error nothing is under way, what the host wrote waits to be copied again, and what the
    stages may have written is known to the GPU only: the same call can be made again.
    """

    def __init__(
        self, graph: Graph, runs: Mapping[str, Bound], memory: DeviceMemory, cuda: Cuda
    ) -> None:
        self._runs, self._memory, self._cuda = runs, memory, cuda
        self._schedule = plan(graph)
        self._outputs = {s.name: tuple(s.outputs.values()) for s in graph.stages if s.engine}
        self._captured: dict[tuple[str, ...], Captured] = {}
        self._has_run: set[str] = set()
        self._is_settled = False
        self._streams: list[Any] = [memory.stream]
        self.scratch: list[Any] = []
        with contextlib.ExitStack() as owned:
            self._streams += [cuda.stream() for _ in range(NUM_STREAMS - 1)]
            self._ready = self._event(owned)
            self._done = {name: self._event(owned) for name in runs}
            self._times = {name: self._event(owned) for name in (START, *runs)}
            self.scratch += [self._share_scratch(s, owned) for s in range(NUM_STREAMS)]
            self._owned = owned.pop_all()

    def __call__(self, stages: tuple[str, ...], wanted: frozenset[str]) -> Mapping[str, float]:
        uploads = self._memory.waiting
        written = [name for stage in stages for name in self._outputs[stage]]
        seen = sorted(wanted.intersection(written))
        downloads = tuple(filter(self._memory.is_page_locked, seen))
        self._memory.written(written)
        with self._cuda.context:
            try:
                batch = self._start(stages, uploads, downloads)
                self._cuda.synchronize(self._memory.stream)
            except BaseException:
                self._drain()
                raise
            self._memory.uploaded(uploads)
            self._memory.copied(downloads if batch is None else (*downloads, *batch.downloads))
            self._has_run.update(stages)
            for name in seen:
                self._memory.download(name)  # of what the batch could not copy
            return self._seconds(stages, batch.times if batch else self._times)

    def _start(
        self, stages: tuple[str, ...], uploads: Sequence[str], downloads: Sequence[str]
    ) -> Captured | None:
        """Give the GPU a batch; what was replayed, if it was."""
        if self._may_capture(stages):
            self._captured[stages] = self._capture(stages, uploads, downloads)
        batch = self._captured.get(stages)
        if batch is None:
            self._enqueue(stages, uploads, downloads, self._times, captured=False)
        else:
            self._memory.copy_in(n for n in uploads if n not in batch.uploads)
            batch.graph.launch(self._memory.stream)
            self._memory.copy_out(n for n in downloads if n not in batch.downloads)
        return batch

    def _drain(self) -> None:
        """Wait for whatever was started before an error; that one is to be told, not another."""
        for stream in self._streams:
            with contextlib.suppress(EngineError):
                self._cuda.synchronize(stream)

    def settle(self) -> None:
        """Capture nothing more."""
        self._is_settled = True

    @property
    def captured(self) -> list[tuple[str, ...]]:
        """Batches that are replayed."""
        return list(self._captured)

    def close(self) -> None:
        """Destroy graphs and events; the contexts that the graphs refer to may go then."""
        for batch in self._captured.values():
            batch.graph.close()
        self._captured.clear()
        self._owned.close()
        self._streams.clear()

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
        with contextlib.ExitStack() as owned:
            times = {name: self._event(owned) for name in (START, *stages)}
            with self._cuda.capture(self._memory.stream) as graph:
                self._enqueue(stages, uploads, downloads, times, captured=True)
            self._owned.enter_context(owned.pop_all())
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

    def _share_scratch(self, number: int, owned: contextlib.ExitStack) -> Any:
        """One block for all stages of a stream: they never run at the same time."""
        runs = [run for stage, run in self._runs.items() if self._schedule.stream[stage] == number]
        block = self._memory.scratch(max((run.scratch_bytes for run in runs), default=0))
        owned.callback(self._cuda.free, block)
        for run in runs:
            run.give_scratch(int(block))
        return block

    def _event(self, owned: contextlib.ExitStack) -> Any:
        event = self._cuda.event()
        owned.callback(self._cuda.destroy_event, event)
        return event
