"""Leaves held against what they speak of: a missed grasp is told, a lost sense of place too.

Goes in: each reading of a leaf whose meaning the bundle declares (`runtime.meanings`), the
observation that it was read from, and what the robot was told. Comes out: notices, for whoever may
try again, for the trace and for the record. None changes an action. Only a perception that is lost
stops the robot, and only where `LeafChecks` says so.

Readings of one observation are one: a leaf that is read more often than the policy looks says the
same again.

A = action dimension, J = joint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..declarations import Output
from ..meanings import FutureImage, Grasp, JointPositions
from ..robots.description import Axis, Description, Measured
from ..robots.robot import Observation
from .foresight import Foreseen, Foresight
from .leaves import Reading
from .trace import Leaf, Notice

PERCEPTION, MISSED = "perception", "grasp missed"
NUM_ASKED = 4
"""Questions whose observations are kept: the one that is being read, the one that is being thought
about, and spare ones."""
Answers = Literal["warn", "stop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeafChecks:
    """From when on a leaf contradicts the robot.

    Raises:
        ValueError: a number is out of its range.
    """

    held_from: float = 0.5
    """Something is held from this probability on: even odds, what heads are trained to cut at."""
    closed_below: float = 0.5
    """A gripper is told to close below this share of its range: policies tell it either end, and
    some how wide the object is."""
    settle_s: float = 0.5
    """From when it is told to close: fingers of common grippers take as long."""
    missed_readings: int = 3
    """In a row that say nothing is held: one or two may be of a hand in front of the object."""
    tolerance_rad: float = 0.2
    """Between a joint as it is seen and as it is felt. A picture may be 0.1 s older than the state
    beside it, which is 0.1 rad at 1 rad/s, and a head that was trained errs by some hundredths."""
    astray_readings: int = 5
    """In a row that are further off: somebody walked through the picture in fewer."""
    on_perception: Answers = "warn"
    """`stop`: the guard stops the robot then, as for a lost camera."""

    def __post_init__(self) -> None:
        for name in ("held_from", "closed_below"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}")
        if not 0 <= self.settle_s < math.inf or not 0 < self.tolerance_rad <= math.pi:
            raise ValueError(
                "settle_s must not be negative, and tolerance_rad in (0, pi], got "
                f"{self.settle_s} and {self.tolerance_rad}"
            )
        if self.missed_readings < 1 or self.astray_readings < 1:
            raise ValueError(
                "missed_readings and astray_readings must be at least 1, got "
                f"{self.missed_readings} and {self.astray_readings}"
            )
        if self.on_perception not in get_args(Answers):
            raise ValueError(f"on_perception must be warn or stop, got {self.on_perception!r}")


class LeafWatch:
    """Of one episode. Order of calls in a control step: `look`, `ask`, `hear`, `sent`."""

    def __init__(
        self,
        outputs: Mapping[str, Output] | None = None,
        leaves: Mapping[str, Leaf] | None = None,
        description: Description | None = None,
        checks: LeafChecks | None = None,
        *,
        tell: Callable[[Notice], None] = lambda notice: None,
    ) -> None:
        """
        Args:
            outputs: of the policy.
            leaves: what the trace has of each that is read; what it is held against is noted.
            description: of the robot.
            checks: the limits.
            tell: called with every notice.
        """
        self._checks, self._tell = checks or LeafChecks(), tell
        self._step = -1
        self._asked: dict[int, tuple[int, Observation]] = {}
        self._heard: dict[str, int] = {}
        self._grasps: dict[str, _GraspJudge] = {}
        self._joints: dict[str, _JointJudge] = {}
        self._pictures: dict[str, tuple[str, Foresight]] = {}
        for name, leaf in (leaves or {}).items():
            match means := (outputs or {})[name].means:
                case Grasp():
                    axis, leaf.against = _gripper(means, description)
                    if axis is not None:
                        self._grasps[name] = _GraspJudge(*axis, self._checks)
                case JointPositions():
                    felt, leaf.against = _encoders(means, description)
                    if description is not None and felt:
                        state = description.state or ""
                        self._joints[name] = _JointJudge(means.names, state, felt, self._checks)
                case FutureImage():
                    leaf.against = f"held against what {means.camera!r} shows"
                    leaf.foreseen = Foreseen(means.camera)
                    self._pictures[name] = means.camera, Foresight(means, leaf.foreseen)
        self._is_idle = not (self._grasps or self._joints or self._pictures)

    def ask(self, number: int, step: int, seen: Observation) -> None:
        """The policy is asked about an observation, at a control step."""
        if self._is_idle:
            return
        self._asked[number] = step, seen
        while len(self._asked) > NUM_ASKED:
            self._asked.pop(min(self._asked))

    def wants(self, step: int) -> bool:
        """Whether an expected picture is due, so that somebody should look."""
        return any(foresight.is_due(step) for _, foresight in self._pictures.values())

    def look(self, step: int, seen: Observation) -> None:
        """The robot was looked at, at a control step."""
        for camera, foresight in self._pictures.values():
            foresight.look(step, seen.values[camera])

    def sent(self, step: int, now: float, sent_A: NDArray[np.float32] | None) -> None:
        """What the robot was told at a control step; None if it was told to hold."""
        self._step = step
        if sent_A is not None:
            for judge in self._grasps.values():
                judge.sent(now, sent_A)

    def hear(self, reading: Reading) -> Notice | None:
        """A leaf was read; what there is to say of it."""
        name, number = reading.name, reading.number
        if number not in self._asked or number <= self._heard.get(name, 0):
            return None
        self._heard[name] = number
        (step, seen), words, kind = self._asked[number], "", MISSED
        if name in self._grasps:
            words = self._grasps[name].judge(reading)
        elif name in self._joints:
            words, kind = self._joints[name].judge(reading, seen), PERCEPTION
        elif name in self._pictures:
            camera, foresight = self._pictures[name]
            foresight.hear(reading.value, step, seen.values[camera])
        if not words:
            return None
        is_stop = kind == PERCEPTION and self._checks.on_perception == "stop"
        notice = Notice(kind, name, step, reading.looked_at, f"leaf {name}: {words}", is_stop)
        self._tell(notice)
        return notice

    def reset(self) -> None:
        """The policy began again: what was asked and expected before is of another episode."""
        self._asked.clear()
        rows = [judge.row for judge in self._grasps.values()]
        for row in rows + [judge.row for judge in self._joints.values()]:
            row.reset()
        for _, foresight in self._pictures.values():
            foresight.reset()

    def end(self, last: Observation) -> None:
        """The episode is over; what the robot shows then."""
        for camera, foresight in self._pictures.values():
            foresight.look(self._step + 1, last.values[camera], is_last=True)


class _Row:
    """Readings in a row that contradict; tells once, and again after one that does not."""

    def __init__(self, length: int) -> None:
        self.length, self._count = length, 0

    def add(self, contradicts: bool) -> bool:
        self._count = self._count + 1 if contradicts else 0
        return self._count == self.length

    def reset(self) -> None:
        self._count = 0


class _GraspJudge:
    """Whether a closed gripper holds nothing."""

    def __init__(self, index: int, axis: Axis, checks: LeafChecks) -> None:
        self._index, self._axis, self._checks = index, axis, checks
        self._closed_at: float | None = None
        self.row = _Row(checks.missed_readings)

    def sent(self, now: float, sent_A: NDArray[np.float32]) -> None:
        axis = self._axis
        assert axis.low is not None and axis.high is not None
        position = axis.scale * float(sent_A[self._index]) + axis.offset
        share = (position - axis.low) / (axis.high - axis.low)
        if axis.closed == "high":
            share = 1 - share
        if share >= self._checks.closed_below:
            self._closed_at = None
            self.row.reset()
        elif self._closed_at is None:
            self._closed_at = now

    def judge(self, reading: Reading) -> str:
        if self._closed_at is None:
            return ""
        closed_s = reading.looked_at - self._closed_at
        if closed_s < self._checks.settle_s:
            return ""
        probability = reading.value.item()
        if not self.row.add(probability < self._checks.held_from):
            return ""
        return (
            f"{self._axis.name!r} is closed since {closed_s:.1f} s and holds nothing: "
            f"{probability:.2f}, below {self._checks.held_from:g} in {self.row.length} readings "
            "in a row"
        )


class _JointJudge:
    """Whether joints are seen elsewhere than they are felt."""

    def __init__(
        self,
        names: tuple[str, ...],
        state: str,
        encoders: Mapping[str, Measured],
        checks: LeafChecks,
    ) -> None:
        self._state, self._checks = state, checks
        self._compared = [(i, n, encoders[n]) for i, n in enumerate(names) if n in encoders]
        self.row = _Row(checks.astray_readings)

    def judge(self, reading: Reading, seen: Observation) -> str:
        state, values = seen.values[self._state].tolist(), reading.value.tolist()
        apart = [
            (_turn(values[i] - (state[m.index] * m.scale + m.offset)), name)
            for i, name, m in self._compared
        ]
        apart = [(rad, name) for rad, name in apart if math.isfinite(rad)]
        if not apart:  # what is felt is no number; the guard has its own word for that
            return ""
        rad, name = max(apart)
        if not self.row.add(rad > self._checks.tolerance_rad):
            return ""
        return (
            f"joint {name!r} is seen {rad:.2f} rad from where it is felt, "
            f"{self._checks.tolerance_rad:g} are allowed, in {self.row.length} readings in a row"
        )


def _turn(rad: float) -> float:
    """How far an angle is from none, whole turns aside."""
    return abs(math.remainder(rad, 2 * math.pi)) if math.isfinite(rad) else rad


def _gripper(means: Grasp, description: Description | None) -> tuple[tuple[int, Axis] | None, str]:
    """The axis that tells whether it is closed; and what the leaf is held against, in words."""
    if description is None:
        return None, "not checked: no robot description says when a gripper is closed"
    grippers = [(i, a) for i, a in enumerate(description.axes) if a.control == "gripper"]
    found = [(i, a) for i, a in grippers if not means.gripper or a.name == means.gripper]
    if len(found) == 1:
        return found[0], f"held against axis {found[0][1].name!r}"
    names = ", ".join(repr(axis.name) for _, axis in grippers) or "none"
    wanted = f"no gripper is called {means.gripper!r}" if means.gripper else "it names no gripper"
    return None, f"not checked: {wanted}, the robot description has {names}"


def _encoders(
    means: JointPositions, description: Description | None
) -> tuple[Mapping[str, Measured], str]:
    """Those of its joints that are felt, and the same in words."""
    named = [name for name in means.names if name]
    if description is None:
        return {}, "not checked: no robot description says where joints are felt"
    felt = {name: m for name, m in description.encoders.items() if name in named}
    if not felt:
        names = ", ".join(map(repr, description.encoders)) or "none"
        return {}, (
            f"not checked: no encoder is called {named[0]!r} or like the others, the robot "
            f"description has {names}"
        )
    return felt, f"held against the encoders of {len(felt)} joints of {len(means.names)}"
