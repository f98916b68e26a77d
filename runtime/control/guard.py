"""The action guard: all that a robot is told in the runtime goes through it.

Goes in: what a policy answers, or nothing, once per tick. What it can judge and find within the
limits is sent as it is; what breaks a limit is sent as far as the limits allow; what it cannot
judge is never sent. Then the robot slows down along its last command, within the limits, and
stands: a position stays where it is, a step or a velocity is none, a gripper keeps its grip.

The order: is it an action, is every element finite (NaN passes every comparison), is it still
valid, what the robot clips to, then position, velocity, acceleration, jerk and a way to stop.
A robot without a description is judged up to what it clips to, and held by its own `hold`.

A = action dimension, T = action in the chunk.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError, RobotError
from ..robots.description import Description
from ..robots.robot import Observation, Robot
from .flight import FlightRecord
from .limiter import Limiter
from .watch import Watch

MOST_MISSES = 20
"""Ticks in a row without an action that was sent; then the watchdog holds."""
WATCHDOG_S = 0.5
"""The same in time."""
OPERATOR = "operator's stop"

Action = NDArray[np.float32]


class Stopped(RobotError):
    """The guard has stopped the robot, which stands and holds."""

    def __init__(self, words: str, record: FlightRecord, path: Path | None) -> None:
        super().__init__(words)
        self.record = record
        """The last ticks."""
        self.path = path
        """Where they were written to, if anywhere."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an action."""

    sent: Action | None
    """[A] as the robot carried it out; None where it was told to hold instead."""
    interventions: tuple[str, ...]
    """Why it is not what was asked for, and what else was wrong; empty if nothing was."""
    obeys: bool
    """Whether it is what was asked for, as far as the limits allow; else the robot slows down or
    holds."""


class Guard:
    """Of one robot. Call `begin` with the first observation of each episode.

    Raises:
        RobotError: the description is of another robot.
    """

    def __init__(
        self,
        robot: Robot,
        period_s: float,
        *,
        description: Description | None = None,
        flight: Path | None = None,
    ) -> None:
        """
        Args:
            robot: nothing else may send to it.
            period_s: from one tick to the next.
            description: its limits; the robot's own attribute `description`, if it has one, by
                default.
            flight: folder for a record of the last ticks, written with every stop.
        """
        if description is None:
            description = getattr(robot, "description", None)
        self.description = description
        self.interventions: Counter[str] = Counter()
        """By kind, of this episode."""
        self.seen: Observation | None = None
        """The last observation that was looked at."""
        self._robot, self._flight = robot, flight
        self._num_actions = robot.limits.num_actions
        self._limiter: Limiter | None = None
        self._watch: Watch | None = None
        self._is_timed = False
        self._max_spread = None if description is None else description.max_spread
        self._looks = False
        self._told = ""
        name = "a robot without a description"
        if description is not None:
            self._check_number(description)
            name = description.robot
            try:
                self._limiter = Limiter(description, robot.limits, period_s)
                self._watch = Watch(description, robot.inputs)
            except ValueError as error:
                raise RobotError(str(error)) from None
            self._is_timed = description.stamps == "monotonic"
            self._looks = self._is_timed or any(axis.max_error for axis in description.axes)
        self._name = name

    def begin(self, first: Observation, now: float) -> None:
        """An episode starts; the robot stands.

        Args:
            first: its first observation.
            now: in seconds, on the clock of the stamps.

        Raises:
            RobotError: it cannot be told where the robot stands, or it stands outside its limits.
        """
        self.interventions.clear()
        self.record = FlightRecord(self._name)
        self._stamps: Mapping[str, float] = first.at
        self._problems: set[str] = set()
        self._num_misses, self._fresh_at, self._is_held = 0, now, False
        self._stopping = self._halted = ""
        if self._limiter is None or self._watch is None:
            return
        felt = self._watch.felt(first)
        if felt is None:
            raise RobotError(
                "the first observation of the episode has a state that is no number; where the "
                "robot stands has to be known before it moves"
            )
        try:
            self._limiter.begin(felt)
        except ValueError as error:
            raise RobotError(str(error)) from None
        self._watch.begin(first, now)
        self._felt = felt

    def stop(self, why: str) -> None:
        """Slow down and stop for good, from the next `act` on. Any thread may say so; nothing takes
        it back, a new episode neither."""
        self._told = why

    def halt(self, kind: str, why: str) -> None:
        """Slow down and stop in this episode, from the next `act` on. In the thread of `act`.

        Args:
            kind: what it is counted as.
            why: for people.
        """
        self._halted, self._stopping = kind, self._stopping or f"{kind}: {why}"

    def observe(self, now: float) -> Observation:
        """The robot's newest observation, looked at."""
        self.seen = seen = self._robot.observe()
        self._stamps = seen.at
        if self._watch is not None:
            self._problems = self._watch.look(seen, now)
            self._felt = self._watch.felt(seen) or {}
        return seen

    def may_think(self, now: float) -> bool:
        """Whether a thought may start on the last observation; why not is counted."""
        if why := OPERATOR if self._told else self._halted:
            self.interventions[f"no thought: {why}"] += 1
            return False
        if self._watch is None:
            return True
        problems = self._problems | self._watch.too_old(now)
        self.interventions.update(f"no thought: {problem}" for problem in sorted(problems))
        return not problems

    def admit(self, actions: object, spread: float | None = None) -> NDArray[np.float32] | None:
        """A chunk [T, A] in which every number can be judged; None, and counted, if not so.

        Args:
            actions: in robot units.
            spread: how far it is from the other samples of its tick; None if it is the only one.
        """
        problem = self._not_judged(actions, 2)
        if not problem and self._max_spread is not None:
            if spread is None:
                problem = "one sample, no spread"
            elif not spread <= self._max_spread:
                problem = "uncertain"
        if problem:
            self.interventions[f"chunk: {problem}"] += 1
            return None
        assert isinstance(actions, np.ndarray)
        return actions

    def act(
        self,
        action: object,
        *,
        now: float,
        valid_until: float = math.inf,
        num_dropped: int = 0,
    ) -> Verdict:
        """Send one action, or what takes its place. Call it once per tick.

        Args:
            action: [A] float32 in robot units; None where there is none.
            now: in seconds, on the clock of `begin`.
            valid_until: when the chunk it is from ends.
            num_dropped: ticks since the last call in which nothing was sent.

        Raises:
            Stopped: the robot was stopped; it stands and holds.
        """
        if self._limiter is not None and self._is_timed:
            self._limiter.paused(num_dropped)
        kinds = self._faults(now)
        if self._halted:
            kinds.add(self._halted)
        if self._told:
            kinds.add(OPERATOR)
            self._stopping = self._stopping or self._told
        wanted_A, problem = self._judged(action, now, valid_until)
        if problem:
            kinds.add(problem)
        if kinds - {"range"} or self._stopping:
            wanted_A = None
        kinds |= self._watchdog(wanted_A is not None, now)
        sent_A = self._send(wanted_A, kinds)
        found = tuple(sorted(kinds))
        self.interventions.update(found)
        asked = action.copy() if isinstance(action, np.ndarray) and action.ndim < 2 else action
        self.record.note(now, asked, sent_A, found, self._stamps)
        if self._stopping and (self._limiter is None or self._limiter.stands or sent_A is None):
            self._stop()
        return Verdict(sent_A, found, wanted_A is not None)

    def rest(self) -> None:
        """Tell the robot to hold: an episode is over, however it ended."""
        self._robot.hold()

    def _send(self, wanted_A: Action | None, kinds: set[str]) -> Action | None:
        """Send it, or slow down; `kinds` grows by what changed it."""
        if self._limiter is None:
            if wanted_A is None:
                self._robot.hold()
                return None
            return self._robot.send(wanted_A)
        if wanted_A is None and not self._limiter.knows:
            self._robot.hold()  # a gripper that was never told anything has no last command
            return None
        step_A, broken = self._limiter.step(wanted_A)
        kinds |= broken
        sent_A = self._robot.send(step_A)
        if self._not_judged(sent_A, 1):
            kinds.add("robot answers no action")
            sent_A = step_A
        elif not np.array_equal(sent_A, step_A):
            kinds.add("robot clips")
        self._limiter.sent(sent_A, counts=wanted_A is not None)
        return sent_A

    def _faults(self, now: float) -> set[str]:
        """What the robot's senses say against moving on; notes when that is for good."""
        if not self._looks or self._watch is None or self._limiter is None:
            return set()
        self.observe(now)
        problems, is_lost = self._watch.faults(now)
        if not self._watch.follows(self._felt, self._limiter.position_A, now):
            problems.add("not following")
            is_lost |= self._watch.strayed(now)
        if is_lost and not self._stopping:
            self._stopping = ", ".join(sorted(problems))
        return problems

    def _judged(self, action: object, now: float, valid_until: float) -> tuple[Action | None, str]:
        """An action [A] within what the robot clips to, or None; and what is wrong with it."""
        if action is None:
            return None, "no action"
        problem = self._not_judged(action, 1)
        if problem:
            return None, problem
        if not now <= valid_until:
            return None, "stale action"
        assert isinstance(action, np.ndarray)
        within_A = self._robot.limits.clip(action)
        return within_A, "" if np.array_equal(within_A, action) else "range"

    def _not_judged(self, actions: object, num_axes: int) -> str:
        """Why nobody can judge these; empty if one can. Finite comes before any comparison."""
        if (
            type(actions) is not np.ndarray  # a masked one hides what is under its mask
            or actions.dtype != np.float32
            or actions.ndim != num_axes
            or actions.shape[-1] != self._num_actions
            or not actions.size
        ):
            return "not an action"
        return "" if np.isfinite(actions).all() else "not finite"

    def _watchdog(self, is_fresh: bool, now: float) -> set[str]:
        """Too long without an action: the robot holds, and begins again with tighter limits."""
        is_late = self._is_timed and now - self._fresh_at > WATCHDOG_S
        self._num_misses = 0 if is_fresh else self._num_misses + 1
        has_barked = self._is_held
        self._is_held = is_late or self._num_misses >= MOST_MISSES
        if self._is_held and not has_barked and self._limiter is not None:
            self._limiter.arm()
        barks = {"watchdog"} if self._is_held and not has_barked else set[str]()
        if is_fresh:
            self._fresh_at, self._is_held = now, False
        return barks

    def _stop(self) -> None:
        self._robot.hold()
        reason, path, where = self._stopping, None, ""
        if self._flight is not None:
            try:
                path = self.record.write(self._flight, reason, self.interventions)
                where = f"; the last {len(self.record)} ticks are in {path}"
            except OutputError as error:
                where = f"; the last ticks could not be written ({error})"
        remedy = "see to the camera, the cable or the arm, and start a new episode"
        if reason == self._told:
            remedy = "run again once it may move"
        raise Stopped(
            f"the guard stopped the robot: {reason}; it stands and holds: {remedy}{where}",
            self.record,
            path,
        )

    def _check_number(self, description: Description) -> None:
        if len(description.axes) != self._num_actions:
            raise RobotError(
                f"the robot description has {len(description.axes)} axes "
                f"({', '.join(description.names)}), the robot takes {self._num_actions} action "
                "dimensions: describe each of them, in their order"
            )
