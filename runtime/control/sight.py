"""What somebody sees who watches a policy drive, and how they stop it: the same of every view.

A `Scene` is looked at from other threads, as often as there are eyes. Who looks makes nobody wait:
a loop notes what it notes anyway, and a look puts it into words.

N = control step, A = action dimension, H, W = image height and width.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..graph import Graph
from ..meanings import WHITE
from .trace import Step, Trace

SHOWN_S = 10.0
"""Of actions: so long ago is shown."""
MOST_STEPS = 250
"""The same in control steps, for a fast loop."""
PACE_S = 2.0
"""The rate is measured over so long."""
LATE = 0.5
"""Of a period: a tick that is later is told as a fault."""
GAP_PX = 4
"""Between two pictures that are shown as one."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of what is told."""

    name: str
    words: str
    is_bad: bool = False
    """Somebody should look at it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Somebody has stopped the robot."""

    number: int
    """How many there were, this one included."""
    why: str
    may_release: bool
    """Whether it can be taken back here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """At one moment. Whoever gets it only reads it."""

    title: str
    figures: Sequence[Figure]
    stages: Mapping[str, float | None]
    """Milliseconds of the networks that the last thought ran; None of those it had no need of."""
    pictures: Mapping[str, NDArray[np.uint8]]
    """What the last thought saw, by camera, [H, W, 3]; and of each leaf that foresees pictures the
    last one that was expected, above the one that came."""
    actions: Mapping[str, Sequence[tuple[float, float]]]
    """By axis: seconds from now, and the value."""
    marks: Sequence[float] = ()
    """Seconds from now at which the guard had something to say."""
    stop: Stop | None = None


class Scene(Protocol):
    """May be asked from any thread."""

    def look(self) -> Sight: ...

    def stop(self, why: str) -> None:
        """Stop the robot; once it is stopped, nothing more."""

    def release(self, number: int) -> bool:
        """Take back the stop of that number; False if it is not the present one, or cannot be."""


class EpisodeScene:
    """Of the episodes that one command drives. A stop is for all that are left."""

    def __init__(self, graph: Graph, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            graph: of the policy.
            clock: the rate is told by it.
        """
        self._graph, self._clock = graph, clock
        self._lock = threading.Lock()
        self._name = ""
        self._axes: tuple[str, ...] = ()
        self._trace: Trace | None = None
        self._tell: Callable[[str], None] = lambda why: None
        self._why = ""
        self._pace: deque[tuple[float, int]] = deque()

    def begin(
        self, name: str, axes: Sequence[str]
    ) -> Callable[[Trace, Callable[[str], None]], None]:
        """`run_episode` calls the result when the next episode begins.

        Args:
            name: of the episode.
            axes: what the dimensions of an action are called; empty texts where nobody can tell.
        """

        def watch(trace: Trace, stop: Callable[[str], None]) -> None:
            with self._lock:
                self._name, self._axes = name, named(axes)
                self._trace, self._tell = trace, stop
                self._pace.clear()
                if self._why:
                    stop(self._why)

        return watch

    def stop(self, why: str) -> None:
        with self._lock:
            if not self._why:
                self._why = why
                self._tell(why)

    def release(self, number: int) -> bool:
        """A loop that was stopped is over."""
        return False

    def look(self) -> Sight:
        with self._lock:
            stop = Stop(number=1, why=self._why, may_release=False) if self._why else None
            if self._trace is None:
                figures = [Figure("state", "the policy is warming up")]
                nothing: Mapping[str, NDArray[np.uint8]] = {}
                return Sight(
                    title="no episode yet", figures=figures, stages={}, pictures=nothing,
                    actions={}, stop=stop,
                )  # fmt: skip
            return self._seen(self._trace, stop)

    def _seen(self, trace: Trace, stop: Stop | None) -> Sight:
        most = min(MOST_STEPS, max(1, round(SHOWN_S / trace.period_s)))
        steps = trace.steps[-most:]
        thought = next((step for step in reversed(steps) if step.act_s is not None), None)
        at = [trace.period_s * (i + 1 - len(steps)) for i in range(len(steps))]
        rows_NA = [step.sent.tolist() for step in steps]
        pictures = {name: film.last for name, film in trace.films.items()}
        return Sight(
            title=self._name,
            figures=self._figures(trace, steps, thought),
            stages=of_networks(self._graph, thought.stages_s) if thought else {},
            pictures={
                **{name: picture for name, picture in pictures.items() if picture is not None},
                **_foreseen(trace),
            },
            actions={
                axis: [(t, row[a]) for t, row in zip(at, rows_NA, strict=True)]
                for a, axis in enumerate(self._axes)
            },
            marks=[t for t, step in zip(at, steps, strict=True) if step.interventions],
            stop=stop,
        )

    def _figures(self, trace: Trace, steps: Sequence[Step], thought: Step | None) -> list[Figure]:
        wanted_hz, num_steps = 1 / trace.period_s, len(trace.steps)
        rate_hz = self._rate_hz(num_steps + trace.num_waited + trace.num_held)
        late_ms = 1e3 * steps[-1].late_s if steps else 0.0
        rate = "" if rate_hz is None else f"{rate_hz:.1f} of "
        return [
            Figure("instruction", trace.instruction),
            Figure("step", f"{num_steps}, chunks {trace.chunks}"),
            Figure(
                "rate",
                f"{rate}{wanted_hz:g} Hz, last tick {late_ms:.1f} ms late",
                late_ms > 1e3 * LATE * trace.period_s,
            ),
            Figure("delay", _delay(trace, thought)),
            Figure("age", _age([step.age_s for step in steps])),
            Figure(
                "misses",
                f"{trace.num_misses}: {trace.num_dropped} ticks dropped, {trace.num_held} held",
                trace.num_misses > 0,
            ),
            Figure("interventions", counted(trace.interventions), bool(dict(trace.interventions))),
            *_told_by_leaves(trace),
        ]

    def _rate_hz(self, num_ticks: int) -> float | None:
        """Over the last seconds; None where that is too short to tell."""
        now = self._clock()
        self._pace.append((now, num_ticks))
        while len(self._pace) > 2 and now - self._pace[1][0] >= PACE_S:
            self._pace.popleft()
        since, before = self._pace[0]
        return None if now - since < PACE_S / 4 else (num_ticks - before) / (now - since)


def of_networks(graph: Graph, stages_s: Mapping[str, float]) -> dict[str, float | None]:
    """Milliseconds by network, in running order; the calls of a chain such as denoising are added
    up. None where none of its calls was needed."""
    ran_ms: dict[str, float | None] = {}
    for stage in graph.stages:
        if stage.engine is None:
            continue
        row = graph.rows[stage.name]
        before, took_s = ran_ms.setdefault(row, None), stages_s.get(stage.name)
        if took_s is not None:
            ran_ms[row] = (before or 0.0) + 1e3 * took_s
    return ran_ms


def named(axes: Sequence[str]) -> tuple[str, ...]:
    """Each by a name of its own."""
    return tuple(name or f"action {number}" for number, name in enumerate(axes))


def counted(counts: Mapping[str, int]) -> str:
    """Of kinds, the most frequent first."""
    kinds = sorted(dict(counts).items(), key=lambda kind: -kind[1])
    return ", ".join(f"{kind} {count}" for kind, count in kinds if count) or "none"


def quantiles_ms(seconds: Iterable[float]) -> str:
    """Median and p99 in words."""
    p50, p99 = np.percentile(np.fromiter(seconds, float), [50, 99]) * 1e3
    return f"median {p50:.1f}, p99 {p99:.1f}"


def _told_by_leaves(trace: Trace) -> list[Figure]:
    """What leaves with a meaning say."""
    leaves = dict(trace.leaves)
    if not any(leaf.against for leaf in leaves.values()):
        return []
    noticed = list(trace.notices)
    words = counted(Counter(notice.kind for notice in noticed))
    if noticed:
        words += f"; the last one: {noticed[-1].words}"
    foreseen = {name: leaf.foreseen for name, leaf in leaves.items() if leaf.foreseen}
    return [
        Figure("leaves", words, bool(noticed)),
        *(Figure(name, of.words) for name, of in foreseen.items()),
    ]


def _foreseen(trace: Trace) -> dict[str, NDArray[np.uint8]]:
    """Of each leaf that foresees pictures the last one that was due, above the one that came."""
    found: dict[str, NDArray[np.uint8]] = {}
    for name, leaf in dict(trace.leaves).items():
        pair = leaf.foreseen.pairs.last if leaf.foreseen else None
        if pair is not None:
            gap = np.full((GAP_PX, *pair.came.shape[1:]), WHITE, np.uint8)
            words = f"{name}: expected, and what came below"
            found[words] = np.concatenate([pair.expected, gap, pair.came])
    return found


def _delay(trace: Trace, thought: Step | None) -> str:
    last = "no thought yet"
    if thought is not None and thought.act_s is not None:
        last = f"{1e3 * thought.act_s:.1f} ms for the last thought"
    if trace.delay is None:
        return last
    return f"{last}, {1e3 * trace.delay.largest_s:.1f} ms measured before"


def _age(ages_s: Sequence[float]) -> str:
    if not ages_s:
        return "no action yet"
    return f"{1e3 * ages_s[-1]:.1f} ms when the last action was sent ({quantiles_ms(ages_s)})"
