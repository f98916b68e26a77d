"""How long a tick takes, by what it has to recompute: camera image in, action chunk out.

Ticks of all kinds are interleaved, so that a drift of the clocks meets all of them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from device_tests.measure.scene import Scene
from runtime.control.clock import Clock
from runtime.declarations import Input, from_source
from runtime.episode import FROM_OPERATOR, Episode
from runtime.policy import Policy

WARM, AFTER_IDLE = "warm", "after a pause"
"""Kinds of ticks. A warm one has a new observation; the others have that and what their name
says."""
FIRST, EVERYTHING, NEW = "first of an episode", "everything", "new "
WARM_PER_ROUND = 10
MIN_ROUNDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Of a set of durations."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    n: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Spread:
        """Raises ValueError without any duration."""
        if not milliseconds:
            raise ValueError("a spread needs at least one duration, got none")
        p50, p95, p99 = (float(q) for q in np.quantile(milliseconds, [0.5, 0.95, 0.99]))
        worst = float(max(milliseconds))
        return cls(p50_ms=p50, p95_ms=p95, p99_ms=p99, max_ms=worst, n=len(milliseconds))


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Ticks of one kind, in the order in which they were measured."""

    ticks_ms: tuple[float, ...]
    stages_ms: Mapping[str, tuple[float, ...]]
    """Of the stages that ran, by name."""

    @property
    def spread(self) -> Spread:
        return Spread.of(self.ticks_ms)

    @property
    def stages(self) -> dict[str, Spread]:
        return {name: Spread.of(values) for name, values in self.stages_ms.items()}


def changes(inputs: Mapping[str, Input]) -> tuple[str, ...]:
    """Kinds of ticks in which something else than the observation is new."""
    given = from_source(inputs, *FROM_OPERATOR)
    return (FIRST, *(NEW + name for name in given), EVERYTHING)


def kinds(inputs: Mapping[str, Input]) -> tuple[str, ...]:
    """All kinds of ticks."""
    return (WARM, *changes(inputs), AFTER_IDLE)


class Probe:
    """Times ticks of any kind on one policy, whose running episode is the probe's from here on."""

    def __init__(self, policy: Policy, scene: Scene, clock: Clock) -> None:
        self._policy, self._scene, self._clock = policy, scene, clock
        self._episode: Episode = policy.start(**scene.given())
        self._episode.act(scene.observe())
        self._ticks: dict[str, list[float]] = {kind: [] for kind in kinds(policy.inputs)}
        self._stages: dict[str, dict[str, list[float]]] = {kind: {} for kind in self._ticks}

    def tick(self, kind: str, pause_s: float = 0.0) -> None:
        """One tick of a kind, after a pause that is not counted."""
        if pause_s:
            self._clock.sleep(pause_s)
        seen, given = self._scene.observe(), self._scene.given()
        changed = kind.removeprefix(NEW) if kind.startswith(NEW) else None
        value = self._scene.change(changed) if changed else None
        if kind == EVERYTHING:
            self._policy.forget()
        start = self._clock()
        if kind == FIRST:
            self._episode = self._policy.start(**given)
        elif changed:
            self._episode.give(**{changed: value})
        self._episode.act(seen)
        self._note(kind, self._clock() - start)

    def latencies(self) -> dict[str, Latency]:
        """What was timed so far, by kind."""
        return {
            kind: Latency(
                ticks_ms=tuple(ticks),
                stages_ms={name: tuple(v) for name, v in self._stages[kind].items()},
            )
            for kind, ticks in self._ticks.items()
            if ticks
        }

    def _note(self, kind: str, seconds: float) -> None:
        self._ticks[kind].append(seconds * 1e3)
        for name, stage_s in self._policy.interpreter.last_run.items():
            self._stages[kind].setdefault(name, []).append(stage_s * 1e3)


def measure_latency(
    policy: Policy, scene: Scene, clock: Clock, *, seconds: float, num_idle: int, idle_s: float
) -> dict[str, Latency]:
    """Ticks of every kind.

    Args:
        policy: warm already.
        scene: what it sees.
        clock: tells the time and waits.
        seconds: how long, pauses not counted; at least `MIN_ROUNDS` rounds.
        num_idle: ticks after a pause.
        idle_s: length of the pause.
    """
    probe = Probe(policy, scene, clock)
    end, num_rounds = clock() + seconds, 0
    with no_collection():
        while num_rounds < MIN_ROUNDS or clock() < end:
            for kind in (*changes(policy.inputs), *[WARM] * WARM_PER_ROUND):
                probe.tick(kind)
            num_rounds += 1
        for _ in range(num_idle):
            probe.tick(AFTER_IDLE, idle_s)
    return probe.latencies()


@contextmanager
def no_collection() -> Iterator[None]:
    """The garbage collector rests, as in `runtime.control.loop.run_episode`."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
