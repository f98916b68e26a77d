"""A simulated GPU: memory, streams, events and captured graphs, with the rules between them."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

ALIGNMENT = 256
DEVICE, PINNED = "device", "page-locked"
ALLOCATIONS = {DEVICE: "allocation", PINNED: "page-locked allocation"}


class DriverError(Exception):
    """What the driver says when a call fails."""


class DeviceFull(DriverError):
    """The GPU's memory is used up."""


class Unjoined(DriverError):
    """A stream that took part in a capture was not joined."""


class Violation(AssertionError):
    """A rule was broken that a GPU would punish with an error, or with wrong numbers."""


@dataclass(eq=False)
class Block:
    start: int
    bytes: np.ndarray
    kind: str
    is_freed: bool = False


@dataclass(frozen=True)
class Span:
    """Bytes of memory, and what they hold where that is known."""

    start: int
    stop: int
    dtype: str | None = None

    @classmethod
    def of(cls, address: int, size: int, dtype: str | None = None) -> Span:
        return cls(address, address + size, dtype)

    def overlaps(self, other: Span) -> bool:
        return self.start < other.stop and other.start < self.stop


@dataclass(eq=False)
class Op:
    """Something enqueued."""

    stream: int
    run: Callable[[], None]
    reads: tuple[Span, ...] = ()
    writes: tuple[Span, ...] = ()
    contexts: tuple[object, ...] = ()
    begin: Callable[[], None] = lambda: None
    """At the moment that the GPU may start with it; `run` when it is done at the latest."""
    index: int = 0

    def conflicts(self, other: Op) -> bool:
        return (
            any(a.overlaps(b) for a in self.writes for b in (*other.reads, *other.writes))
            or any(a.overlaps(b) for a in self.reads for b in other.writes)
            or bool({*map(id, self.contexts)} & {*map(id, other.contexts)})
        )


@dataclass(eq=False)
class Event:
    timeline: Timeline | None = None
    clock: dict[int, int] = field(default_factory=dict)
    time_s: float | None = None
    is_destroyed: bool = False


class Timeline:
    """What was enqueued, and what happens before what: a vector clock per stream."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.clocks: dict[int, dict[int, int]] = {}

    def clock(self, stream: int) -> dict[int, int]:
        return self.clocks.setdefault(stream, {})

    def add(self, op: Op) -> None:
        clock = self.clock(op.stream)
        for earlier in self.ops:
            is_ordered = clock.get(earlier.stream, 0) >= earlier.index
            if not is_ordered and op.conflicts(earlier):
                same = set(op.contexts) & set(earlier.contexts)
                what = "one context runs twice at once" if same else "the same memory"
                raise Violation(
                    f"streams {earlier.stream} and {op.stream}: {what}, and no event orders them"
                )
        op.index = clock[op.stream] = clock.get(op.stream, 0) + 1
        self.ops.append(op)

    def wait(self, stream: int, clock: dict[int, int]) -> None:
        own = self.clock(stream)
        for other, index in clock.items():
            own[other] = max(own.get(other, 0), index)

    def covered(self, stream: int) -> list[Op]:
        clock = self.clock(stream)
        return [op for op in self.ops if clock.get(op.stream, 0) >= op.index]


class Capture(Timeline):
    """The timeline of a captured graph."""

    def __init__(self, origin: int) -> None:
        super().__init__()
        self.origin = origin
        self.streams = {origin}
        self.is_alive = False
        """Instantiated, and not destroyed."""
        self.is_broken = False


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made


class World:
    """Everything that one simulated GPU knows."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.types: list[Span] = []
        self.now = Timeline()
        self.capture: Capture | None = None
        self.graphs: list[Capture] = []
        self.is_verified = False
        self.free_bytes = 8 << 30
        """Of the memory that page-locked arrays, the GPU's allocations and engines share."""
        self.largest_block = 8 << 30
        """What lies in one piece of it."""
        self.gpu, self.num_sms = "simulated Orin", 8
        self.driver_version = self.runtime_version = 12060
        """CUDA that the driver implements, and that cuda-bindings were made for."""
        self.primary_flags = 0
        """Of the primary context: 1 spins, 4 blocks, 0 is the driver's own choice."""
        self.has_primary_context = False
        self.pushed: Counter[threading.Thread] = Counter()
        """How many contexts lie on pycuda's stack of each thread."""
        self.num_deserialized = 0
        self.num_launches = 0
        self.num_synchronizations = 0
        self.copies: list[tuple[str, int, int]] = []
        """"in", "out" or "across", address on the GPU, bytes; in the order in which they were
        done."""
        self.violations: list[str] = []
        self.alive: Counter[str] = Counter()
        """What somebody has to give back: streams, events, graphs, contexts, allocations. Memory of
        the host goes with the last array on it."""
        self.num_dropped = 0
        """Allocations that went with the last reference to them, and nobody gave them back."""
        self.calls: list[str] = []
        """Names of all calls that may fail."""
        self.refuse: int | str | None = None
        """The call that fails, once: its number, counted like `calls`, or the next of this name."""
        self.is_dead = False
        """Every call fails from now on, as after a kernel that broke the context."""
        self.run_engine: Callable[[Callable[[], None], list[np.ndarray]], None] = (
            lambda compute, outputs: compute()
        )
        """Around every run of an engine; `tests.simulation.faults` puts itself here."""
        self._handles = itertools.count(1)

    def is_refused(self, name: str) -> bool:
        """Whether this call is the one that fails."""
        number = len(self.calls)
        self.calls.append(name)
        if self.refuse not in (number, name) and not self.is_dead:
            return False
        self.refuse = None
        if self.capture is not None:
            self.capture.is_broken = True
        return True

    def call(self, name: str) -> None:
        if self.is_refused(name):
            raise DriverError(f"{name} was refused")

    def push(self) -> None:
        self.pushed[threading.current_thread()] += 1

    def pop(self) -> None:
        if not self.pushed[threading.current_thread()]:
            raise DriverError("context::pop failed: cannot pop non-current context")
        self.pushed[threading.current_thread()] -= 1

    @property
    def is_current(self) -> bool:
        """Whether a context is current on this thread."""
        return self.pushed[threading.current_thread()] > 0

    def need_context(self, name: str) -> None:
        if not self.is_current:
            raise DriverError(f"{name} failed: invalid device context")

    def need_context_to_let_go(self, what: str) -> None:
        """pycuda warns and frees nothing: what is raised in a destructor, nobody sees."""
        if not self.is_current:
            self.violations.append(f"{what} is let go on a thread where no context is current")

    @property
    def aborted(self) -> list[str]:
        """Threads that ended with a context on their stack: pycuda takes the process down then."""
        return [thread.name for thread in +self.pushed if not thread.is_alive()]

    def new_stream(self) -> int:
        self.call("Stream")
        self.alive["stream"] += 1
        return next(self._handles)

    def allocate(self, size: int, kind: str) -> Block:
        """Memory that the host and the GPU share, so everything is taken from the same."""
        if self.capture is not None:
            raise Violation("allocation inside a capture")
        if size > min(self.free_bytes, self.largest_block):
            raise DeviceFull
        self.alive[ALLOCATIONS[kind]] += 1
        self.free_bytes -= size
        raw = np.zeros(size + ALIGNMENT, np.uint8)
        if kind == DEVICE:
            raw[:] = 0xFF  # what lies there is somebody else's: no numbers
        start = -raw.ctypes.data % ALIGNMENT
        block = Block(raw.ctypes.data + start, raw[start : start + size], kind)
        self.blocks.append(block)
        return block

    def free(self, block: Block) -> None:
        if self.is_dead:
            self.forget(block)
            raise DriverError("the context is broken")
        if self.now.ops:
            raise Violation("memory freed while something is enqueued")
        if block.is_freed:
            raise Violation("memory freed twice")
        self.forget(block)

    def forget(self, block: Block) -> None:
        block.is_freed = True
        self.free_bytes += len(block.bytes)
        self.alive[ALLOCATIONS[block.kind]] -= 1

    def block_at(self, address: int, size: int) -> Block | None:
        """The newest block that holds these bytes; None if there is none."""
        for block in reversed(self.blocks):
            if block.start <= address and address + size <= block.start + len(block.bytes):
                return block
        return None

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        block = self.block_at(address, size)
        if block is None:
            raise Violation(f"{size} bytes at {address:#x} lie in no block of memory")
        if block.is_freed:
            raise Violation(f"{address:#x} was freed")
        return block.bytes[address - block.start :][:size]

    def check_types(self, spans: tuple[Span, ...]) -> None:
        for span in spans:
            for known in self.types:
                if span.dtype and span.overlaps(known) and known.dtype != span.dtype:
                    raise Violation(f"{span.dtype} is read where {known.dtype} was written")

    def note_types(self, spans: tuple[Span, ...]) -> None:
        for span in spans:
            self.types = [known for known in self.types if not known.overlaps(span)]
            if span.dtype:
                self.types.append(span)

    def submit(self, op: Op) -> None:
        for span in (*op.reads, *op.writes):
            self.bytes_at(span.start, span.stop - span.start)
        self.check_types(op.reads)
        self.note_types(op.writes)
        timeline = self.timeline_of(op.stream)
        timeline.add(op)
        if timeline is self.now:
            op.begin()

    def timeline_of(self, stream: int) -> Timeline:
        capture = self.capture
        return capture if capture is not None and stream in capture.streams else self.now

    def record(self, event: Event, stream: int) -> None:
        event.timeline = self.timeline_of(stream)
        event.clock = dict(event.timeline.clock(stream))

    def record_time(self, event: Event, stream: int, *, external: bool) -> None:
        is_captured = self.timeline_of(stream) is not self.now
        if external != is_captured:
            raise Violation("an external event belongs into a capture, any other outside of it")

        def stamp() -> None:
            event.time_s = time.perf_counter()

        event.time_s = None
        self.submit(Op(stream, stamp))

    def wait(self, stream: int, event: Event) -> None:
        if event.is_destroyed:
            raise Violation("a stream waits for a destroyed event")
        if event.timeline is None:
            raise Violation("a stream waits for an event that nobody recorded")
        capture = self.capture
        if capture is not None and event.timeline is capture:
            capture.streams.add(stream)
        elif capture is not None and stream in capture.streams:
            raise Violation("a captured stream waits for an event from outside of the capture")
        elif event.timeline is not self.now:
            raise Violation("a stream waits for an event of a capture that is over")
        event.timeline.wait(stream, event.clock)

    def synchronize(self, stream: int) -> None:
        if self.capture is not None:
            raise Violation("synchronization inside a capture")
        self.call("synchronize")
        self.num_synchronizations += 1
        done = self.now.covered(stream)
        self.now.ops = [op for op in self.now.ops if op not in done]
        for op in done:  # an operation that fails takes what was to come after it along
            op.run()

    def begin_capture(self, stream: int) -> None:
        self.capture = Capture(stream)

    def end_capture(self, stream: int) -> Capture:
        is_refused = self.is_refused("cudaStreamEndCapture")
        capture, self.capture = self.capture, None  # whatever the answer, the capture is over
        assert capture is not None
        assert capture.origin == stream
        if is_refused or capture.is_broken:
            raise DriverError("the capture was broken by an error inside")
        if len(capture.covered(capture.origin)) < len(capture.ops):
            raise Unjoined
        self.graphs.append(capture)
        self.alive["graph"] += 1
        return capture

    def launch(self, graph: Capture, stream: int) -> None:
        if not graph.is_alive:
            raise Violation("a destroyed graph is launched")
        self.num_launches += 1
        spans = [(op.reads, op.writes, op.contexts) for op in graph.ops]

        def run() -> None:
            for op in graph.ops:
                op.run()

        def begin() -> None:
            for op in graph.ops:
                op.begin()

        self.submit(
            Op(
                stream,
                run,
                tuple(s for reads, _, _ in spans for s in reads if s.dtype is None),
                tuple(s for _, writes, _ in spans for s in writes),
                tuple(c for _, _, contexts in spans for c in contexts),
                begin,
            )
        )

    def context_destroyed(self, context: object) -> None:
        for graph in self.graphs:
            if graph.is_alive and any(context is c for op in graph.ops for c in op.contexts):
                self.violations.append("a context was destroyed before the graph that refers to it")
