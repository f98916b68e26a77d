"""Records an episode while it runs: what was seen, said, answered and sent, into a journal.

The loop hands over references and numbers, and never waits: figures go into a ring that is
allocated beforehand, the rest into a queue, and a thread of its own compresses and writes. What it
cannot keep up with is lost, counted in the journal, and named by whoever replays it.

A = action dimension, T = action in the chunk.
"""

from __future__ import annotations

import contextlib
import platform
import queue
import threading
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..bundle import MANIFEST
from ..cli.command import one_line
from ..policy import Policy
from ..recordings.journal import JOURNAL, LOST, JournalWriter, tick_type
from ..robots.description import Description
from ..robots.robot import Observation, Robot
from ..storage.files import check_output, replacing
from .thinker import ActingPolicy, Thought
from .watched import Source, WatchedPolicy

RING = 1 << 14
"""Ticks that may wait to be written: 13 minutes at 20 Hz."""
BACKLOG_BYTES = 1 << 28
"""Pictures that may wait: 2 cameras of 640 x 480 for 7 s at 20 Hz."""
MOST_WAITING = 1 << 16
"""Events that may wait, whatever their size."""
DRAIN = 1024
"""Ticks of one block of the file."""
PERIOD_S = 0.2
"""How often the thread looks at the ring."""


_Event = tuple[str, Mapping[str, Any], int]
"""Its kind, what is known of it, and what that keeps in memory."""


class Unrecorded:
    """In the place of a `Recorder` where there is none."""

    def watch(self, policy: ActingPolicy) -> ActingPolicy:
        return policy

    def begin(
        self, robot: Robot, first: Observation, limits: Description | None, **about: Any
    ) -> None:
        pass

    def arm(self, now: float) -> None:
        pass

    def look(self, seen: Observation | None, looked_s: float = np.nan) -> None:
        pass

    def glance(self, observe: Callable[[], Observation]) -> None:
        pass

    def ask(self, number: int) -> None:
        pass

    def reset(self) -> None:
        pass

    def tick(self, **figures: Any) -> None:
        pass

    def result(self, **known: Any) -> None:
        pass


class Recorder:
    """Of one episode: give it to `run_episode`, in a `with` statement, whose end writes the file.

    Raises:
        OutputError: there is somebody's file at `path`, or it cannot be written.
    """

    def __init__(
        self, path: Path, *, every_step: bool = False, backlog_bytes: int = BACKLOG_BYTES
    ) -> None:
        """
        Args:
            path: the journal to write.
            every_step: look at the robot at every control step, and not only where the policy
                thinks or the guard looks: what a dataset needs.
            backlog_bytes: pictures that may wait to be written.
        """
        check_output(path, JOURNAL)
        self.path, self.every_step = path, every_step
        self.num_lost = {"ticks": 0, "pictures": 0, "events": 0}
        """What the thread could not keep up with."""
        self.costs_s = np.empty(0)
        """What recording cost in each tick that was written."""
        self._most_bytes = backlog_bytes
        self._queue: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()
        self._given = {"loop": 0, "policy": 0}  # bytes; each counted by one thread
        self._done_bytes = 0
        self._num_ticks = self._num_drained = self._num_looks = 0
        self._seen: Observation | None = None
        self._guarded: Observation | None = None  # what the guard looked at last
        self._said: dict[tuple[str, ...], int] = {(): 0}
        self._about: dict[str, Any] = {}
        self._result: dict[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._end: dict[str, Any] = {}
        self._is_over = self._is_watching = False

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Write the file, if an episode began.

        Raises:
            OutputError: it cannot be written.
        """
        if self._thread is None or self._is_over:
            return
        self._is_over = True
        words = None if error is None else f"{type(error).__name__}: {_words(error)}"
        self._end = {"error": words} | self._result
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    @property
    def waiting_bytes(self) -> int:
        """Of pictures that are not written yet."""
        return sum(self._given.values()) - self._done_bytes

    @property
    def words(self) -> str:
        """What it cost, and what it lost."""
        lost = ", ".join(f"{count} {name}" for name, count in self.num_lost.items() if count)
        words = f"lost {lost}, so it cannot be replayed" if lost else "nothing lost"
        if len(self.costs_s):
            median_ms, p99_ms = np.percentile(self.costs_s, (50, 99)) * 1e3
            words += f"; recording took {median_ms:.3f} ms of a tick, {p99_ms:.3f} ms p99"
        return words

    def watch(self, policy: ActingPolicy) -> ActingPolicy:
        """The same policy; what it is told from `begin` on is recorded."""
        self._about["policy"] = _provenance(policy)
        self._about["chunk_shape"] = list(policy.chunk_shape)
        return WatchedPolicy(policy, self.put)

    def begin(
        self, robot: Robot, first: Observation, limits: Description | None, **about: Any
    ) -> None:
        """The policy's episode begins.

        Args:
            robot: whose.
            first: what it showed first.
            limits: that the guard keeps, besides the robot's own.
            about: what JSON can hold.

        Raises:
            ValueError: another one did.
        """
        if self._thread is not None:
            raise ValueError(f"{self.path}: a recorder is of one episode; make another one")
        own = robot.limits
        self._about |= about | {
            "instruction": robot.instruction,
            "versions": _versions(self._about["policy"]),
            "robot": {
                "low": _bounds(own.low),
                "high": _bounds(own.high),
                "units": list(own.units),
                "names": list(own.names),
                "inputs": {
                    name: {"kind": s.kind, "shape": list(s.shape), "dtype": s.dtype, "unit": s.unit}
                    for name, s in robot.inputs.items()
                },
                "description": None if limits is None else msgspec.to_builtins(limits),
            },
        }
        self._ring = np.zeros(RING, tick_type(own.num_actions))
        self._columns = {name: self._ring[name] for name in self._ring.dtype.names or ()}
        self._clear()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()
        self.look(first)

    def arm(self, now: float) -> None:
        """The robot may move from now on, in seconds of the loop's clock."""
        self._about["armed_s"] = now

    @property
    def is_on(self) -> bool:
        return self._thread is not None and not self._is_over

    def look(self, seen: Observation | None, looked_s: float = np.nan) -> None:
        """The robot was looked at; to think about it if there is a time."""
        begin = time.perf_counter()
        if seen is not None and seen is not self._seen:
            self._seen = seen
            self._num_looks += 1
            fields = {"values": dict(seen.values), "at_s": seen.at, "frame_ids": seen.frame_ids}
            self.put("look", "loop", fields)
        if looked_s == looked_s:
            self._looked_s, self._guarded = looked_s, seen
        self._spent_s += time.perf_counter() - begin

    def glance(self, observe: Callable[[], Observation]) -> None:
        """Look at this step too, if that is wanted."""
        if self.every_step:
            self.look(observe())

    def ask(self, number: int) -> None:
        """
        Raises:
            ValueError: nobody watches the policy that shall answer.
        """
        if not self._is_watching:
            raise ValueError(
                "the thinker does not think with the policy that the recorder watches: make it of "
                "recorder.watch(policy)"
            )
        self._asked = number

    def reset(self) -> None:
        self._reset = True

    def tick(
        self,
        *,
        step: int,
        began_s: float,
        late_s: float,
        dropped: int,
        acted_s: float,
        age_s: float,
        fresh: Thought | None,
        due: NDArray[np.float32] | None,
        command: NDArray[np.float32] | None,
        said: tuple[str, ...],
        seen: Observation | None,
    ) -> None:
        """A control tick is over; `tick_type` says what the figures are.

        Args:
            seen: what the guard looked at last.
        """
        if seen is not self._guarded:
            self._guarded = seen
            self.look(seen)
        begin = time.perf_counter()
        if self._num_ticks - self._num_drained >= RING:
            self.num_lost["ticks"] += 1
            self._clear()
            return
        row, columns = self._num_ticks % RING, self._columns
        for name, number in (
            ("step", step), ("began_s", began_s), ("late_s", late_s), ("dropped", dropped),
            ("looked_s", self._looked_s), ("look", self._num_looks - 1), ("asked", self._asked),
            ("fresh", 0 if fresh is None else fresh.observed.number), ("reset", self._reset),
            ("think_s", np.nan if fresh is None else fresh.act_s), ("acted_s", acted_s),
            ("age_s", age_s), ("due", due is not None), ("sent", command is not None),
            ("said", self._said.setdefault(said, len(self._said))),
            ("action", np.nan if due is None else due),
            ("command", np.nan if command is None else command),
        ):  # fmt: skip
            columns[name][row] = number
        columns["record_s"][row] = self._spent_s + time.perf_counter() - begin
        self._num_ticks += 1
        self._clear()

    def result(self, **known: Any) -> None:
        """How the episode ended, as JSON can hold it."""
        self._result = known

    def put(self, kind: str, by: Source, fields: Mapping[str, Any]) -> None:
        """Hand an event over; `by` is the thread whose it is."""
        if not self.is_on:
            return
        self._is_watching |= kind == "start"
        if self._queue.qsize() >= MOST_WAITING:
            self.num_lost["events"] += 1
            return
        num_bytes = sum(map(_bytes_of, fields.values()))
        if self.waiting_bytes + num_bytes > self._most_bytes:
            self.num_lost["pictures"] += 1
            fields = {name: _without_pictures(value) for name, value in fields.items()}
            num_bytes = sum(map(_bytes_of, fields.values()))
        self._given[by] += num_bytes
        self._queue.put((kind, fields, num_bytes))

    def _clear(self) -> None:
        """What a tick begins with."""
        self._looked_s, self._asked, self._reset, self._spent_s = np.nan, 0, False, 0.0

    def _run(self) -> None:
        """In a thread of its own: write until the episode is over."""
        try:
            with replacing(self.path, JOURNAL) as partial, JournalWriter(partial) as writer:
                while self._write_some(writer):
                    pass
                self._drain(writer, 1)
                said = [list(kinds) for kinds in self._said]
                lost = {"lost": dict(self.num_lost), "interventions": said}
                writer.finish(self._about | self._end | lost)
        except BaseException as error:  # the loop goes on; whoever ends the episode hears of it
            self._error = error

    def _write_some(self, writer: JournalWriter) -> bool:
        """An event, if there is one, and ticks; False at the end."""
        with contextlib.suppress(queue.Empty):
            item = self._queue.get(timeout=PERIOD_S)
            if item is None:
                return False
            kind, fields, num_bytes = item
            writer.event(kind, **fields)
            self._done_bytes += num_bytes
        self._drain(writer, DRAIN)
        return True

    def _drain(self, writer: JournalWriter, least: int) -> None:
        """Write the ticks that are there, if they are so many."""
        if self._num_ticks - self._num_drained < least:
            return
        rows = np.arange(self._num_drained, self._num_ticks) % RING
        writer.ticks(self._ring[rows])
        self.costs_s = np.concatenate([self.costs_s, self._ring["record_s"][rows]])
        self._num_drained += len(rows)


def _bytes_of(value: Any) -> int:
    """That a value keeps in memory while it waits; small ones count for nothing."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    return sum(map(_bytes_of, value.values())) if isinstance(value, Mapping) else 0


def _bounds(bound_A: NDArray[np.float32]) -> list[float | None]:
    """As JSON can hold them: None where there is no limit."""
    return [float(bound) if np.isfinite(bound) else None for bound in bound_A]


def _without_pictures(value: Any) -> Any:
    """With a mark in the place of what is large."""
    if isinstance(value, Mapping):
        return {name: _without_pictures(item) for name, item in value.items()}
    return LOST if isinstance(value, np.ndarray) and value.ndim > 1 and value.size > 256 else value


def _words(error: BaseException) -> str:
    return one_line(error) if isinstance(error, Exception) else str(error)


def _provenance(policy: ActingPolicy) -> dict[str, Any] | None:
    """Which policy, of which bundle; None for what is none of ours."""
    if not isinstance(policy, Policy):
        return None
    manifest, path = policy.bundle.manifest, policy.bundle.path
    return {
        "bundle": str(path),
        "manifest_sha256": sha256((path / MANIFEST).read_bytes()).hexdigest(),
        "policy": manifest.policy,
        "recipe": manifest.recipe.name,
        "embodiment": policy.embodiment,
        "backend": policy.backend.name,
    }


def _versions(policy: Mapping[str, Any] | None) -> dict[str, str]:
    """Of what computed, and where."""
    from .. import __version__

    found = {"anchorvla": __version__, "python": platform.python_version()}
    for package in ("numpy", policy["backend"] if policy else ""):
        with contextlib.suppress(metadata.PackageNotFoundError, ValueError):
            found[package] = metadata.version(package)
    return found | {"machine": platform.platform()}
