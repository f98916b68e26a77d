"""Joints as a policy counts them: their names on the robot, order, units, and limits.

A = joint, as in an action and in the state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import RobotError
from .description import MOST_RAD
from .robot import Limits

UNITS: Mapping[str, tuple[str, float]] = {
    "rad": ("angle", 1.0),
    "deg": ("angle", math.pi / 180),
    "m": ("length", 1.0),
    "mm": ("length", 1e-3),
    "fraction": ("share", 1.0),
    "percent": ("share", 1e-2),
    "normalized": ("what a calibration spans, -100 to 100", 1.0),
    "rad/s": ("angular velocity", 1.0),
    "deg/s": ("angular velocity", math.pi / 180),
    "m/s": ("velocity", 1.0),
}
"""What each measures, and how much one of it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Joint:
    """One number of an action, and of the state.

    Raises:
        ValueError: a unit that nobody knows or that measures something else, or no range.
    """

    name: str
    """As the robot calls it: LeRobot's `elbow_flex.pos`, a joint of ROS."""
    unit: str
    """Of the policy's numbers."""
    robot_unit: str
    """Of the robot's numbers; what differs is converted."""
    low: float
    """What is sent at least, in `unit`."""
    high: float
    control: Literal["position", "velocity", "gripper"] = "position"
    """To hold, a position stays where it is, a velocity becomes 0, a gripper keeps its grip."""

    def __post_init__(self) -> None:
        for unit in (self.unit, self.robot_unit):
            if unit not in UNITS:
                raise ValueError(
                    f"joint {self.name!r}: the unit {unit!r} is none of {', '.join(UNITS)}"
                )
        if UNITS[self.unit][0] != UNITS[self.robot_unit][0]:
            raise ValueError(
                f"joint {self.name!r}: {self.robot_unit} ({UNITS[self.robot_unit][0]}) cannot be "
                f"converted to {self.unit} ({UNITS[self.unit][0]})"
            )
        if not self.low < self.high:
            raise ValueError(
                f"joint {self.name!r} must have low < high, got {self.low:g} and {self.high:g}"
            )
        if self.unit == "rad" and not max(abs(self.low), abs(self.high)) <= MOST_RAD:
            raise ValueError(
                f"joint {self.name!r}: a range of {self.low:g} to {self.high:g} rad looks like "
                "degrees; write low and high in the policy's unit, and what the robot has as "
                "robot_unit='deg'"
            )


class Joints:
    """Some joints in an order that stays.

    Raises:
        ValueError: there is none, or one is there twice.
    """

    def __init__(self, joints: Sequence[Joint]) -> None:
        self.joints = tuple(joints)
        self.names = tuple(joint.name for joint in self.joints)
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"joints must be there, and each once, got {list(self.names)}")
        # One of the robot's, in the policy's unit.
        scales = [UNITS[j.robot_unit][1] / UNITS[j.unit][1] for j in self.joints]
        self._scales_A = np.array(scales)
        self.limits = Limits(
            np.array([joint.low for joint in self.joints]),
            np.array([joint.high for joint in self.joints]),
            tuple(joint.unit for joint in self.joints),
            self.names,
        )

    @property
    def unit(self) -> str:
        """Of all of them; empty if they have several."""
        units = {joint.unit for joint in self.joints}
        return units.pop() if len(units) == 1 else ""

    def check_order(self, names: Iterable[str], whose: str) -> None:
        """Refuse other names than the robot's, or another order.

        Raises:
            RobotError: says which.
        """
        known = tuple(names)
        if set(known) != set(self.names):
            missing = sorted(set(known) - set(self.names))
            raise RobotError(
                f"{whose} are {', '.join(known) or 'none'}; "
                + (f"declare {missing[0]!r} too" if missing else "")
                + ", ".join(f"there is no {n!r}" for n in self.names if n not in known)
            )
        if known != self.names:
            number = next(
                n for n, (a, b) in enumerate(zip(known, self.names, strict=True)) if a != b
            )
            raise RobotError(
                f"{whose} are in the order {', '.join(known)}, and number {number} is declared as "
                f"{self.names[number]!r}: what was recorded there has its order, so declare that"
            )

    def felt(self, numbers: Mapping[str, float]) -> NDArray[np.float32]:
        """Numbers of the robot by name, as the policy's state [A].

        Raises:
            RobotError: one is missing, or is degrees by its size.
        """
        if missing := [name for name in self.names if name not in numbers]:
            raise RobotError(
                f"the robot shows no {missing[0]!r}, only {', '.join(sorted(numbers)) or 'nothing'}"
            )
        robot_A = np.array([numbers[name] for name in self.names], np.float64)
        state_A: NDArray[np.float32] = (robot_A * self._scales_A).astype(np.float32)
        for joint, number in zip(self.joints, state_A.tolist(), strict=True):
            if joint.unit == "rad" and abs(number) > MOST_RAD:
                raise RobotError(
                    f"joint {joint.name!r} stands at {number:g} rad, which looks like degrees: "
                    "declare what the robot has as robot_unit='deg'"
                )
        return state_A

    def told(self, action_A: NDArray[np.float32]) -> dict[str, float]:
        """An action [A], as numbers of the robot by name."""
        robot_A = action_A.astype(np.float64) / self._scales_A
        return dict(zip(self.names, robot_A.tolist(), strict=True))

    def still(
        self, measured: Mapping[str, float], last: Mapping[str, float] | None
    ) -> dict[str, float]:
        """What keeps it still, in the robot's numbers.

        Args:
            measured: where each is.
            last: what was sent last, if anything was.
        """
        return {
            joint.name: 0.0
            if joint.control == "velocity"
            else last[joint.name]
            if joint.control == "gripper" and last is not None
            else float(measured[joint.name])
            for joint in self.joints
        }
