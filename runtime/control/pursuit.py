"""Back to the path that is asked for, without swinging past it.

Whoever may not go where it is asked to, and goes as near as the limits allow in each step, arrives
with speed, overshoots, and circles the path at its limits for good. So a position that had to leave
its path is led back by two loops, one in the other: the error asks for a velocity over that of the
path, at most what half the acceleration can take back; that velocity asks for an acceleration.
It is on the path again when the last step onto it is a gentle one.

A = action dimension, Q = position, velocity, acceleration, jerk; in the unit of each axis, per
second, squared and cubed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GENTLE_Q = np.array([1.0, 1.0, 0.5, 0.25])
"""Share of each limit that the step back onto the path may take: those after it take the rest."""
LOOPS = 3.0
"""How much slower the outer loop is than the inner one, so that it does not swing."""


@dataclass(frozen=True, slots=True)
class Gains:
    """Of the two loops, by the limits in force."""

    velocity_A: Array
    acceleration_A: Array
    settling_s_A: Array
    """Of the inner loop: what the jerk allows."""

    @classmethod
    def of(cls, most_QA: Array, period_s: float) -> Gains:
        """For the largest position, velocity, acceleration and jerk of each axis."""
        _, velocity_A, acceleration_A, jerk_A = most_QA
        with np.errstate(invalid="ignore"):
            building_s = np.where(np.isinf(jerk_A), 0.0, acceleration_A / jerk_A)
        return cls(velocity_A, acceleration_A, building_s + period_s)


class Pursuit:
    """Which axes are off their path, and where they go instead."""

    def __init__(self, leads_A: NDArray[np.bool_], period_s: float) -> None:
        """
        Args:
            leads_A: axes that have a path: a position does, a step or a velocity does not.
            period_s: from one command to the next.
        """
        self._leads_A, self.period_s = leads_A, period_s
        self.begin()

    def begin(self) -> None:
        """All are on it."""
        self.is_off_A = np.zeros_like(self._leads_A)
        self._asked_A: Array | None = None
        self._speed_A = np.zeros(self._leads_A.size)

    def ask(self, asked_A: Array | None, gains: Gains) -> None:
        """Where the path goes in this step; None where nobody says."""
        if asked_A is None or self._asked_A is None:
            self._speed_A = np.zeros(self._leads_A.size)
        else:
            speed_A = (asked_A - self._asked_A) / self.period_s
            self._speed_A = np.clip(speed_A, -gains.velocity_A, gains.velocity_A)
        self._asked_A = asked_A

    def judged(self, refused_A: NDArray[np.bool_]) -> None:
        """An axis that may not go where it is asked to is off its path, until it may."""
        self.is_off_A = self._leads_A & refused_A

    def aim(self, asked_A: Array, position_A: Array, velocity_A: Array, gains: Gains) -> Array:
        """Where to go in this step, [A]: as asked for what is on its path, and led for the rest."""
        error_A = asked_A - self._speed_A * self.period_s - position_A
        size_A = np.abs(error_A)
        with np.errstate(invalid="ignore"):  # a gripper, which has no path, may have no limit
            taken_back_A = np.sqrt(gains.acceleration_A * size_A)
            towards_A = np.minimum(size_A / (LOOPS * gains.settling_s_A), taken_back_A)
            wanted_A = self._speed_A + np.sign(error_A) * towards_A
            change_A = (wanted_A - velocity_A) / gains.settling_s_A
            change_A = np.clip(change_A, -gains.acceleration_A, gains.acceleration_A)
            led_A = position_A + (velocity_A + change_A * self.period_s) * self.period_s
        return np.where(self.is_off_A, led_A, asked_A)
