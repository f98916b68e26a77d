"""The control loop: observe, think when the chunk is used up, act; on an absolute schedule.

It is synchronous: a tick that thinks takes as long as the policy does. A late tick is counted and
the ones it swallowed are dropped, never caught up in a burst. The robot is observed where the
policy thinks, and once at the end.

An evaluation that waits for nothing is the same loop, on a `VirtualClock`.

T = action in the chunk, A = action dimension, H, W = image height and width.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..anchor import AnchorPolicy
from ..declarations import Input, from_source
from ..episode import Answer, Stats
from ..robots.description import Description
from ..robots.robot import Observation, Robot, check_fits
from .guard import Guard


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How the robot loop is paced."""

    rate_hz: float = 10.0
    """Actions sent to the robot per second."""

    execute: int = 5
    """Actions of a chunk that are carried out before the policy thinks again."""

    max_steps: int = 1000
    """Actions after which an episode is given up."""

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz <= 1000:
            raise ValueError(f"rate_hz must be in (0, 1000], got {self.rate_hz}")
        if self.execute < 1 or self.max_steps < 1:
            raise ValueError(
                f"execute and max_steps must be positive, got {self.execute}, {self.max_steps}"
            )


@dataclass(frozen=True, slots=True)
class Step:
    """One control step."""

    late_s: float
    """How late it started."""
    act_s: float | None
    """Seconds of `Episode.act`; None where the chunk still had an action."""
    stages_s: Mapping[str, float]
    """Seconds of the stages that ran."""
    action: NDArray[np.float32]
    """[A] as the policy answered it; as it was sent, where there was none."""
    sent: NDArray[np.float32]
    """[A] after the guard, and the robot's own clipping."""
    interventions: tuple[str, ...] = ()
    """What the guard had to say, by kind."""


class Film:
    """Pictures of an episode of any length: few, evenly spread, and the last one.

    When more than `capacity` are kept, every second one goes, and from then on every second one is
    not taken.
    """

    def __init__(self, capacity: int = 16) -> None:
        self.capacity = capacity
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._last: tuple[int, NDArray[np.uint8]] | None = None
        self._stride = 1

    def add(self, step: int, image: NDArray[np.uint8]) -> None:
        """Of a later step than the last, uint8 [H, W, 3]; what is kept is a copy."""
        picture = image.copy()
        self._last = step, picture
        if step % self._stride:
            return
        self._kept[step] = picture
        while len(self._kept) > self.capacity:
            self._stride *= 2
            self._kept = {s: p for s, p in self._kept.items() if s % self._stride == 0}

    @property
    def pictures(self) -> dict[int, NDArray[np.uint8]]:
        """By step, in order; at most `capacity` and the last one."""
        return self._kept | dict([self._last] if self._last else [])


@dataclass(slots=True)
class Trace:
    """What happened in an episode."""

    instruction: str
    period_s: float
    first: Observation
    """Of `Robot.reset`; what it shows may be hidden from the steps."""
    steps: list[Step] = field(default_factory=list)
    films: dict[str, Film] = field(default_factory=dict)
    """Per camera: what was seen at thoughts and at the end."""
    num_dropped: int = 0
    """Control steps that a late one swallowed."""
    num_clipped: int = 0
    """Actions that were sent otherwise than the policy answered them."""
    num_held: int = 0
    """Control steps in which the robot was told to hold, and nothing was sent."""
    interventions: Mapping[str, int] = field(default_factory=dict)
    """What the guard had to say, by kind."""
    success: bool | None = None
    stats: Stats | None = None


class Clock(Protocol):
    """Seconds that only go forward, and a way to wait."""

    def __call__(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class MonotonicClock:
    def __call__(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class VirtualClock:
    """Time that passes only where somebody sleeps: nothing waits, and nothing is ever late."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class ActingEpisode(Protocol):
    """What the loop needs of `runtime.Episode`."""

    @property
    def stats(self) -> Stats | None:
        """None where nobody measures."""

    def act(self, observation: Mapping[str, Any], *, at: float | None) -> Answer: ...


class ActingPolicy(Protocol):
    """What the loop needs of `runtime.Policy`."""

    @property
    def inputs(self) -> Mapping[str, Input]: ...

    @property
    def chunk_shape(self) -> tuple[int, int]: ...

    def start(
        self, *, seed: int, anchor_policy: AnchorPolicy | None, **given: Any
    ) -> ActingEpisode: ...


def ticks(period_s: float, clock: Clock) -> Iterator[tuple[float, int]]:
    """Yield once per period, on an absolute schedule that cannot drift.

    Yields how late the tick is in seconds, and how many ticks before it were dropped.
    """
    due, dropped = clock(), 0
    while True:
        late = clock() - due
        if late < 0:
            clock.sleep(-late)
            late = clock() - due  # it may have overslept
        yield max(late, 0.0), dropped
        missed = max(1, int((clock() - due) // period_s))
        dropped = missed - 1
        due += period_s * missed


def run_episode(
    policy: ActingPolicy,
    robot: Robot,
    config: LoopConfig,
    *,
    seed: int = 0,
    anchor_policy: AnchorPolicy | None = None,
    given: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    limits: Description | None = None,
    flight: Path | None = None,
) -> Trace:
    """Drive `robot` with `policy` for one episode. However it ends, the robot is told to hold.

    All that it is told goes through a `runtime.control.guard.Guard`.

    The garbage collector does not run inside the loop: everything the policy holds is frozen
    before, and what a step leaves behind is counted by reference.

    Args:
        policy: a `runtime.Policy`, or what answers like one.
        robot: driven from `reset` until `done`.
        config: how it is paced.
        seed: of the action noise.
        anchor_policy: when the anchor is replaced; `First()` by default.
        given: what the operator gives besides the robot's instruction, by name.
        clock: real time by default.
        on_step: called after every action, inside the loop: what it does takes its time.
        limits: what the robot may do; its own attribute `description`, if it has one, by default.
        flight: folder for the last ticks, written if the guard stops the robot.

    Raises:
        ValueError: `config.execute` is more than a chunk holds; nothing moves then.
        RobotError: the robot does not fit the policy or its limits, or cannot go on.
        Stopped: the guard stopped it.
        ObservationError: it shows something the policy cannot take.
    """
    num_actions, dimensions = policy.chunk_shape
    if config.execute > num_actions:
        raise ValueError(
            f"execute={config.execute}, but a chunk of this policy has {num_actions} actions"
        )
    wanted = from_source(policy.inputs, "robot")
    check_fits(robot, wanted, dimensions)
    clock = clock or MonotonicClock()
    guard = Guard(robot, 1 / config.rate_hz, description=limits, flight=flight)
    first = robot.reset()
    try:
        guard.begin(first, clock())
        texts = (name for name, i in policy.inputs.items() if i.kind == "text")
        latches = from_source(policy.inputs, "latch")
        told: dict[str, Any] = dict.fromkeys(texts, robot.instruction)
        told |= {name: first.values[latch.of] for name, latch in latches.items()}
        told |= given or {}
        episode = policy.start(seed=seed, anchor_policy=anchor_policy, **told)
        films = {name: Film() for name, what in wanted.items() if what.kind == "image"}
        trace = Trace(robot.instruction, 1 / config.rate_hz, first, films=films)
        with _no_collection():
            _drive(episode, robot, guard, config, clock, trace, tuple(wanted), on_step)
    finally:
        guard.rest()
    _film(trace, robot.observe())
    trace.success, trace.stats = robot.success, episode.stats
    trace.interventions = dict(guard.interventions)
    return trace


def _drive(
    episode: ActingEpisode,
    robot: Robot,
    guard: Guard,
    config: LoopConfig,
    clock: Clock,
    trace: Trace,
    wanted: Sequence[str],
    on_step: Callable[[Step], None],
) -> None:
    """Steps until the episode is over, noted in `trace`."""
    chunk_TA: NDArray[np.float32] = np.empty((0, 0), np.float32)
    used = config.execute
    for late_s, dropped in ticks(trace.period_s, clock):
        trace.num_dropped += dropped
        if robot.done or len(trace.steps) + trace.num_held >= config.max_steps:
            return
        act_s: float | None = None
        stages_s: Mapping[str, float] = {}
        action_A: NDArray[np.float32] | None = None
        start = clock()
        if used == config.execute:
            seen = guard.observe(start)
            _film(trace, seen)
            if guard.may_think(start):
                values = {name: seen.values[name] for name in wanted}
                admitted = guard.admit(episode.act(values, at=seen.observed_at).actions)
                chunk_TA, used = (admitted, 0) if admitted is not None else (chunk_TA, used)
                act_s, stats = clock() - start, episode.stats
                stages_s = {} if stats is None else stats.last_s
        if used < config.execute:
            action_A, used = chunk_TA[used], used + 1
        verdict = guard.act(action_A, now=clock(), num_dropped=dropped)
        if verdict.sent is None:
            trace.num_held += 1
            continue
        asked_A = verdict.sent if action_A is None else action_A
        step = Step(late_s, act_s, stages_s, asked_A, verdict.sent, verdict.interventions)
        trace.num_clipped += int(not np.array_equal(verdict.sent, asked_A))
        trace.steps.append(step)
        on_step(step)


def _film(trace: Trace, seen: Observation) -> None:
    """Keep the pictures of its cameras."""
    for name, film in trace.films.items():
        film.add(len(trace.steps), seen.values[name])


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
