"""Ways to come to rest: what a guard must always be able to do next.

A way to stop is a short sequence of velocities that ends at zero and stays there. Each is linear
in the state it starts from, so whether one keeps all limits is one product of matrices. There are
two shapes of each length: equal deceleration, and the least sum of squared jerks.

The state after a command is position p, velocity v and acceleration a, as differences of commanded
positions over the period: v = (p' - p) / period, and so on. u is the next position.

R = row: one quantity (position, velocity, acceleration or jerk) at one step of one way to stop;
N = steps of a way; K = step; 4 = coefficients of (u, p, v, a).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POSITION, VELOCITY, ACCELERATION, JERK = range(4)
QUANTITIES = ("position", "velocity", "acceleration", "jerk")
MOST_STEPS = 64
"""Of the longest way: what cannot stop within them is too fast."""
_LENGTHS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, MOST_STEPS)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stops:
    """All ways, and what each would do."""

    now_Q4: Array
    """The command itself: its position, velocity, acceleration, jerk."""
    rows_R4: Array
    """What follows, way after way."""
    kinds_R: NDArray[np.intp]
    """`POSITION` ... `JERK`"""
    starts_W: NDArray[np.intp]
    """First row of each way."""
    velocities_WK2: Array
    """Velocity at each step, of (velocity, change of velocity) with the command; zeros after."""


def ways_to_stop(num_steps: int, period_s: float) -> Stops:
    """All ways of up to about `num_steps` steps, `MOST_STEPS` at most."""
    enough = next((n for n in _LENGTHS if n >= num_steps), MOST_STEPS)
    lengths = [n for n in _LENGTHS if n <= enough]
    ways = [_ramp(n) for n in lengths] + [_smooth(n) for n in lengths if n > 1]
    now_Q4 = _now(period_s)
    rows, kinds, starts = list[Array](), list[int](), list[int]()
    velocities_WK2 = np.zeros((len(ways), enough + 1, 2))
    for way, steps_N2 in enumerate(ways):
        starts.append(len(kinds))
        velocities_WK2[way, : len(steps_N2)] = steps_N2
        found, of = _rows(steps_N2, now_Q4, period_s)
        rows += found
        kinds += of
    return Stops(now_Q4, np.array(rows), np.array(kinds), np.array(starts), velocities_WK2)


def _now(period_s: float) -> Array:
    position = np.array([1.0, 0, 0, 0])
    velocity = (position - [0, 1, 0, 0]) / period_s
    acceleration = (velocity - [0, 0, 1, 0]) / period_s
    return np.array([position, velocity, acceleration, (acceleration - [0, 0, 0, 1]) / period_s])


def _ramp(num_steps: int) -> Array:
    """[N, 2]"""
    return np.stack([1 - np.arange(1, num_steps + 1) / num_steps, np.zeros(num_steps)], axis=1)


def _smooth(num_steps: int) -> Array:
    """[N, 2] that minimizes the sum of squared second differences of velocity, rest included."""
    # Of v[-1], v[0], v[1] ... v[N-1], and two zeros; v[-1] is v[0] minus its last change.
    second_differences = np.zeros((num_steps + 1, num_steps + 3))
    for row in range(num_steps + 1):
        second_differences[row, row : row + 3] = 1, -2, 1
    given_by_velocity = second_differences[:, 0] + second_differences[:, 1]
    given_by_change = -second_differences[:, 0]
    free = second_differences[:, 2 : num_steps + 1]
    given = np.stack([given_by_velocity, given_by_change], axis=1)
    steps_N2 = np.zeros((num_steps, 2))
    steps_N2[:-1] = -np.linalg.lstsq(free, given, rcond=None)[0]
    return steps_N2


def _rows(steps_N2: Array, now_Q4: Array, period_s: float) -> tuple[list[Array], list[int]]:
    """What a way does until it rests, and one step more: that is where its last jerk is."""
    position, velocity, acceleration, _ = now_Q4
    first, change = velocity, velocity - np.array([0, 0, 1.0, 0])
    rows, kinds = list[Array](), list[int]()
    for of_velocity, of_change in [*steps_N2.tolist(), (0.0, 0.0)]:
        before, velocity = (velocity, acceleration), of_velocity * first + of_change * change
        acceleration = (velocity - before[0]) / period_s
        position = position + velocity * period_s
        rows += [position, velocity, acceleration, (acceleration - before[1]) / period_s]
        kinds += [POSITION, VELOCITY, ACCELERATION, JERK]
    return rows, kinds
