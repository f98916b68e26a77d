"""The control loop: observe, think when the chunk is used up, act; on an absolute schedule.

It is synchronous: a tick that thinks takes as long as the policy does. A late tick is counted and
the ones it swallowed are dropped, never caught up in a burst.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..anchor import AnchorPolicy, First
from ..policy import Policy, Stats
from ..robots.robot import Robot


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
    stages_s: dict[str, float]
    """Seconds of the stages that ran."""
    state: NDArray[np.float32]
    action: NDArray[np.float32]


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
        """Of the next step, uint8 [H, W, 3]; what is kept is a copy."""
        picture = image.copy()
        self._last = step, picture
        if step % self._stride:
            return
        self._kept[step] = picture
        if len(self._kept) > self.capacity:
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
    anchor: NDArray[np.uint8]
    """First frame; what it shows may be hidden from the steps."""
    steps: list[Step] = field(default_factory=list)
    film: Film = field(default_factory=Film)
    num_dropped: int = 0
    """Control steps that a late one swallowed."""
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
    policy: Policy,
    robot: Robot,
    config: LoopConfig,
    *,
    seed: int = 0,
    anchor_policy: AnchorPolicy | None = None,
    clock: Clock | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Trace:
    """Drive `robot` with `policy` for one episode.

    The garbage collector does not run inside the loop: everything the policy holds is frozen
    before, and what a step leaves behind is counted by reference.

    Raises:
        ValueError: `config.execute` is more than a chunk holds.
        RobotError: the robot cannot go on.
        ObservationError: it shows something the policy cannot take.
    """
    clock = clock or MonotonicClock()
    execute = config.execute
    if execute > policy.chunk_shape[0]:
        raise ValueError(
            f"execute={execute}, but a chunk of this bundle has {policy.chunk_shape[0]} actions"
        )
    first = robot.reset()
    episode = policy.start(
        anchor=first.image,
        instruction=robot.instruction,
        seed=seed,
        anchor_policy=anchor_policy or First(),
    )
    trace = Trace(robot.instruction, 1 / config.rate_hz, first.image)
    chunk: NDArray[np.float32] = np.empty((0, policy.chunk_shape[1]), np.float32)
    used = execute
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for late_s, dropped in ticks(trace.period_s, clock):
            trace.num_dropped += dropped
            if robot.done or len(trace.steps) >= config.max_steps:
                break
            observation = robot.observe()
            act_s, stages_s = None, {}
            if used == execute:
                start = clock()
                chunk, used = episode.act(observation.image, observation.state), 0
                act_s, stages_s = clock() - start, dict(policy.interpreter.last_run)
            robot.apply(chunk[used])
            step = Step(late_s, act_s, stages_s, observation.state, chunk[used])
            trace.film.add(len(trace.steps), observation.image)
            trace.steps.append(step)
            on_step(step)
            used += 1
    finally:
        gc.enable()
        gc.unfreeze()
    trace.success, trace.stats = robot.success, episode.stats
    return trace
