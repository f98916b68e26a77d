"""Keeps a trajectory of commands within a robot's limits, and able to stop within them.

Goes in: one action after the other, or none. Comes out: the nearest action that keeps every limit
and from which there is a way to stop that keeps every limit too. The way that was found is kept:
where no action is good enough, its next step is. So the limits hold for good, by induction: the
first state rests, and each later one either brings its own way to stop or is a step of the last.
That is the argument of fail-safe trajectories (Pek and Althoff, IEEE T-RO 2021).

What is sent is rounded to float32, so ways to stop are looked for within limits that are tighter
by what rounding can add up to; the state follows what was really sent.

A = action dimension, G = group of axes that keep their direction together: those of a norm, or one;
M = norm, R = row of `Stops`, W = way to stop, K = step of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..robots.description import Description
from ..robots.robot import Limits
from .pursuit import GENTLE_Q, Gains, Pursuit
from .stops import ACCELERATION, MOST_STEPS, POSITION, QUANTITIES, VELOCITY, ways_to_stop

Array = NDArray[np.float64]

SLACK = 1e-9
"""Of a limit: what float64 may be off by."""
HALF_ULP = 2.0**-24
"""Of a float32, relative."""
FARTHEST = 1e6
"""What is asked for beyond this distance, in units, is asked for at it."""
UNBOUNDED_RAD = 100.0
"""A joint without a range is commanded up to here."""


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Limits by kind of quantity."""

    low_QA: Array
    high_QA: Array
    norms_QM: Array

    def tightened(self, by_QA: Array, by_QM: Array) -> _Bounds:
        return _Bounds(self.low_QA + by_QA, self.high_QA - by_QA, self.norms_QM - by_QM)

    def scaled(self, by_Q: Array) -> _Bounds:
        by_Q1 = by_Q[:, None]
        return _Bounds(self.low_QA * by_Q1, self.high_QA * by_Q1, self.norms_QM * by_Q1)

    def where(self, choose_A: NDArray[np.bool_], other: _Bounds) -> _Bounds:
        """Those of `other` for the chosen axes."""
        if not choose_A.any():
            return self
        low_QA = np.where(choose_A, other.low_QA, self.low_QA)
        return _Bounds(low_QA, np.where(choose_A, other.high_QA, self.high_QA), self.norms_QM)

    def then(self, after: _Bounds) -> _Bounds:
        low_QA = np.concatenate([self.low_QA, after.low_QA])
        high_QA = np.concatenate([self.high_QA, after.high_QA])
        return _Bounds(low_QA, high_QA, np.concatenate([self.norms_QM, after.norms_QM]))

    def rows(self, kinds: NDArray[np.intp] | slice) -> _Bounds:
        return _Bounds(self.low_QA[kinds], self.high_QA[kinds], self.norms_QM[kinds])


@dataclass(frozen=True, slots=True)
class _Level:
    """The bounds in force, by row: those of the command, then those of what follows it."""

    asked: _Bounds
    """Of a command as it was asked for."""
    gentle: _Bounds
    """Of one back onto the path."""
    rounded: _Bounds
    """Of one that is yet to be rounded."""
    gains: Gains


class Limiter:
    """Of one robot at one period.

    Raises:
        ValueError: limits that leave no room, or that float32 commands cannot resolve at this rate.
    """

    def __init__(self, description: Description, limits: Limits, period_s: float) -> None:
        """
        Args:
            description: of the robot.
            limits: what the robot itself clips to; the tighter counts.
            period_s: from one command to the next.
        """
        self.description = description
        self.period_s = description.period_s or period_s
        axes = description.axes
        self._is_position = np.array([a.control in ("position", "gripper") for a in axes])
        self._is_gripper = np.array([a.control == "gripper" for a in axes])
        self._coasts = np.array([a.control == "velocity" for a in axes])
        per_step = np.where(self._coasts, self.period_s, 1.0)
        self._unit_A = np.array([axis.scale for axis in axes]) * per_step
        self._offset_A = np.array([axis.offset for axis in axes])
        self._member_MA = np.array(
            [[name in norm.axes for name in description.names] for norm in description.norms], float
        ).reshape(-1, len(axes))
        self._member_GA = _groups(self._member_MA)
        self._group_A = self._member_GA.argmax(axis=0)
        self._norm_GM = self._member_GA @ self._member_MA.T > 0
        bounds = self._bounds(limits)
        self.stops = ways_to_stop(_steps_needed(bounds, self.period_s), self.period_s)
        self._ends_A = self._ends()
        self._rows_R4 = np.concatenate([self.stops.now_Q4, self.stops.rows_R4])
        self._starts = np.concatenate([[0], self.stops.starts_W + len(self.stops.now_Q4)])
        self._groups = [np.flatnonzero(row) for row in self._member_GA]
        self._levels = {
            fraction: self._level(bounds.scaled(np.array([1, fraction, fraction, fraction])))
            for fraction in (1.0, description.arming.fraction)
        }
        self._pursuit = Pursuit(self._is_position & ~self._is_gripper, self.period_s)
        self.begin({})

    def begin(self, measured: Mapping[int, float]) -> None:
        """The robot stands.

        Args:
            measured: position by axis, in its unit, where one is felt.

        Raises:
            ValueError: an axis stands where it may not be.
        """
        self.position_A = np.zeros(len(self.description.axes))
        self.position_A[self._is_gripper] = np.nan
        for number, position in measured.items():
            self.position_A[number] = self._inside(number, position)
        self.position_A = np.clip(self.position_A, *self._bounds_A)
        self.velocity_A = np.zeros_like(self.position_A)
        self.acceleration_A = np.zeros_like(self.position_A)
        self._plan_KA = np.zeros((self.stops.velocities_WK2.shape[1], self.position_A.size))
        self._pursuit.begin()
        self.arm()

    def arm(self) -> None:
        """Tighter limits for the next actions."""
        self._armed_left = self.description.arming.actions

    @property
    def stands(self) -> bool:
        """Whether nothing more has to be sent to be still."""
        return not (self.velocity_A.any() or self._plan_KA.any())

    @property
    def knows(self) -> bool:
        """Whether every axis has a last command, or a place where it was felt."""
        return not bool(np.isnan(self.position_A).any())

    def paused(self, num_periods: int) -> None:
        """Nothing was sent for so many periods: what is not told to go on has come to rest."""
        if not num_periods or self.description.stamps == "simulated":
            return
        rests = ~self._coasts
        lost_A = self.velocity_A * self.period_s * num_periods
        self.position_A = np.where(rests, self.position_A, self.position_A + lost_A)
        for values in (self.velocity_A, self.acceleration_A):
            values[rests] = 0
        self._plan_KA[:, rests] = 0

    def step(self, action_A: NDArray[np.float32] | None) -> tuple[NDArray[np.float32], set[str]]:
        """What to send for an action, or for none: then the last command slows down or stands.

        Args:
            action_A: [A] finite float32, within what the robot clips to; None to slow down.

        Returns:
            [A] float32, and the limits that changed it. Tell `sent` what became of it.
        """
        rest_A = self.position_A + self._plan_KA[0] * self.period_s
        level, pursuit = self._level_now(), self._pursuit
        if action_A is None:
            self._ways_G = np.full(len(self._member_GA), -1)
            pursuit.ask(None, level.gains)
            pursuit.judged(np.ones_like(self._is_position))
            return self._action(rest_A), set()
        asked_A = self._target(action_A)
        pursuit.ask(asked_A, level.gains)
        unknown = np.isnan(self.position_A)
        self.position_A[unknown] = rest_A[unknown] = np.clip(asked_A, *self._bounds_A)[unknown]
        self._ways_G = self._ways(asked_A, level.asked.where(pursuit.is_off_A, level.gentle))
        refused_G = self._ways_G < 0
        refused_A = refused_G[self._group_A]
        pursuit.judged(refused_A)
        if not refused_G.any():
            return action_A.copy(), set()
        aimed_A = pursuit.aim(asked_A, self.position_A, self.velocity_A, level.gains)
        step_A = np.clip(aimed_A - rest_A, -FARTHEST, FARTHEST)
        share_G, ways_G = self._share(rest_A, step_A, level)
        self._ways_G = np.where(refused_G, ways_G, self._ways_G)
        sent_A = self._action(rest_A + share_G[self._group_A] * step_A)
        sent_A[~refused_A] = action_A[~refused_A]
        return sent_A, self._broken(asked_A, refused_G, level)

    def sent(self, sent_A: NDArray[np.float32], *, counts: bool) -> None:
        """The robot got this, [A]; `counts` where it was an action of the policy's."""
        position_A = self._target(sent_A)
        velocity_A = (position_A - self.position_A) / self.period_s
        change_A = velocity_A - self.velocity_A
        ways_A = self._ways_G[self._group_A]
        chosen = self.stops.velocities_WK2[ways_A]
        fresh_KA = (chosen[..., 0] * velocity_A[:, None] + chosen[..., 1] * change_A[:, None]).T
        self._plan_KA[:-1] = self._plan_KA[1:]
        self._plan_KA[-1] = 0
        self._plan_KA = np.where(ways_A >= 0, fresh_KA, self._plan_KA)
        self.position_A, self.velocity_A = position_A, velocity_A
        self.acceleration_A = change_A / self.period_s
        self._armed_left -= int(counts and self._armed_left > 0)

    def _level_now(self) -> _Level:
        return self._levels[self.description.arming.fraction if self._armed_left else 1.0]

    def _state(self, target_A: Array) -> Array:
        """[4, A]"""
        return np.array([target_A, self.position_A, self.velocity_A, self.acceleration_A])

    def _ways(self, target_A: Array, bounds: _Bounds) -> NDArray[np.intp]:
        """[G] the shortest way to stop after `target_A`; -1 where none keeps the limits."""
        wrong_RG = self._wrong(self._rows_R4 @ self._state(target_A), bounds)
        wrong_WG = np.logical_or.reduceat(wrong_RG, self._starts, axis=0)
        now_G, wrong_WG = wrong_WG[0], wrong_WG[1:]
        return np.where(now_G | wrong_WG.all(axis=0), -1, wrong_WG.argmin(axis=0))

    def _wrong(self, rows_RA: Array, bounds: _Bounds) -> NDArray[np.bool_]:
        """[R, G] whether a quantity leaves its bounds; what is no number does."""
        wrong_RA = ~((rows_RA >= bounds.low_QA) & (rows_RA <= bounds.high_QA))
        wrong_RG = wrong_RA.astype(float) @ self._member_GA.T > 0
        if len(self._member_MA):
            squared_RM = rows_RA**2 @ self._member_MA.T
            wrong_RM = ~(squared_RM <= bounds.norms_QM * np.abs(bounds.norms_QM))
            wrong_RG |= wrong_RM.astype(float) @ self._norm_GM.T > 0
        return np.asarray(wrong_RG)

    def _broken(self, asked_A: Array, refused_G: NDArray[np.bool_], level: _Level) -> set[str]:
        """Limits that the command itself would break; "stopping" where it only leads there, and
        "back to path" where it breaks none, but the arm is elsewhere."""
        rows_QA = self.stops.now_Q4 @ self._state(asked_A)
        wrong_QG = self._wrong(rows_QA, level.asked.rows(slice(4)))
        broken = {QUANTITIES[kind] for kind in np.flatnonzero(wrong_QG.any(axis=1))}
        unbroken_G = refused_G & ~wrong_QG.any(axis=0)
        if unbroken_G.any() and (self._ways(asked_A, level.asked) < 0)[unbroken_G].any():
            broken.add("stopping")
        broken = broken or {"back to path"}
        return broken if self._armed_left == 0 else {f"arming: {name}" for name in broken}

    def _share(self, rest_A: Array, step_A: Array, level: _Level) -> tuple[Array, NDArray[np.intp]]:
        """[G] how much of `step_A` each group may take, and how it stops then; 0 and -1 for none.

        All quantities are linear in the share, so each limit allows an interval of shares.
        """
        rest_RA, step_RA = self._rows_R4 @ self._state(rest_A), self._rows_R4[:, :1] * step_A
        with np.errstate(all="ignore"):
            low_WG, high_WG = self._shares(rest_RA, step_RA, level.rounded)
        low_WG, high_WG = np.maximum(low_WG[0], low_WG[1:]), np.minimum(high_WG[0], high_WG[1:])
        most_WG = np.minimum(high_WG, 1.0)
        most_WG[most_WG < np.maximum(low_WG, 0.0)] = -1.0
        best_G = most_WG.argmax(axis=0)
        share_G = most_WG[best_G, np.arange(best_G.size)]
        return np.maximum(share_G, 0.0), np.where(share_G >= 0, best_G, -1)

    def _shares(self, rest_RA: Array, step_RA: Array, bounds: _Bounds) -> tuple[Array, Array]:
        """[1 + W, G] smallest and largest share with which the command and each way keep them."""
        below_RA, above_RA = bounds.low_QA - rest_RA, bounds.high_QA - rest_RA
        one_RA, other_RA = below_RA / step_RA, above_RA / step_RA
        low_RA, high_RA = np.minimum(one_RA, other_RA), np.maximum(one_RA, other_RA)
        still = step_RA == 0  # then any share keeps them, or none does
        low_RA[still] = np.where((below_RA[still] <= 0) & (above_RA[still] >= 0), -np.inf, np.inf)
        high_RA[still] = -low_RA[still]
        low_WA = np.maximum.reduceat(low_RA, self._starts, axis=0)
        high_WA = np.minimum.reduceat(high_RA, self._starts, axis=0)
        low_WG = np.stack([low_WA[:, axes].max(axis=1) for axes in self._groups], axis=1)
        high_WG = np.stack([high_WA[:, axes].min(axis=1) for axes in self._groups], axis=1)
        for norm, group in enumerate(self._norm_GM.argmax(axis=0)):
            axes = self._groups[group]
            low_R, high_R = _ball(rest_RA[:, axes], step_RA[:, axes], bounds.norms_QM[:, norm])
            low_W = np.maximum.reduceat(low_R, self._starts)
            high_W = np.minimum.reduceat(high_R, self._starts)
            low_WG[:, group] = np.maximum(low_WG[:, group], low_W)
            high_WG[:, group] = np.minimum(high_WG[:, group], high_W)
        return low_WG, high_WG

    def _target(self, action_A: NDArray[np.float32]) -> Array:
        """The next position [A]."""
        moved_A = action_A.astype(np.float64) * self._unit_A
        from_A = np.where(self._is_position, self._offset_A, self.position_A)
        return np.asarray(moved_A + from_A)

    def _action(self, target_A: Array) -> NDArray[np.float32]:
        from_A = np.where(self._is_position, self._offset_A, self.position_A)
        action_A = np.asarray((target_A - from_A) / self._unit_A, np.float32)
        return np.asarray(np.clip(action_A, *self._ends_A), np.float32)

    def _bounds(self, limits: Limits) -> _Bounds:
        """The description's, within what the robot clips to."""
        axes, period_s = self.description.axes, self.period_s
        low_QA, high_QA = np.full((2, 4, len(axes)), np.inf) * np.array([-1.0, 1.0])[:, None, None]
        for at, axis in enumerate(axes):
            rates = (axis.velocity, axis.acceleration, axis.jerk)
            high_QA[1:, at] = [np.inf if rate is None else rate for rate in rates]
            low_QA[1:, at] = -high_QA[1:, at]
            if axis.low is not None and axis.high is not None:
                low_QA[POSITION, at], high_QA[POSITION, at] = axis.low, axis.high
        turns = self._is_position & np.isinf(high_QA[POSITION])
        low_QA[POSITION, turns], high_QA[POSITION, turns] = -UNBOUNDED_RAD, UNBOUNDED_RAD
        own_2A = np.array([limits.low, limits.high], np.float64) * self._unit_A + self._offset_A
        kind_A = np.where(self._is_position, POSITION, VELOCITY)
        own_2A = np.where(self._is_position, own_2A, own_2A / period_s)
        own = kind_A, np.arange(len(axes))
        low_QA[own] = np.maximum(low_QA[own], own_2A[0])
        high_QA[own] = np.minimum(high_QA[own], own_2A[1])
        never_still_A = (high_QA[VELOCITY] < 0) | (low_QA[VELOCITY] > 0)
        for number in np.flatnonzero((low_QA >= high_QA).any(axis=0) | never_still_A).tolist():
            raise ValueError(
                f"axis {axes[number].name!r}: the robot clips it to [{limits.low[number]:g}, "
                f"{limits.high[number]:g}], which leaves no room within the robot description"
            )
        self._bounds_A = low_QA[POSITION], high_QA[POSITION]
        norms = [
            (np.inf, norm.velocity, norm.acceleration, np.inf) for norm in self.description.norms
        ]
        return _Bounds(low_QA, high_QA, np.array(norms).reshape(-1, 4).T)

    def _level(self, bounds: _Bounds) -> _Level:
        stops, period_s = self.stops, self.period_s
        # Of the largest number that is sent: half of what two float32 beside it are apart.
        most_QA = np.maximum(bounds.high_QA, -bounds.low_QA)
        for norm, member_A in enumerate(self._member_MA > 0):
            norms_Q1 = bounds.norms_QM[:, norm, None]
            most_QA[:, member_A] = np.minimum(most_QA[:, member_A], norms_Q1)
        fastest_A = most_QA[VELOCITY]
        farthest_A = np.abs([bound - self._offset_A for bound in self._bounds_A]).max(axis=0)
        largest_A = np.where(self._is_position, farthest_A, fastest_A * period_s)
        off_A = HALF_ULP * largest_A
        off_M = np.sqrt(self._member_MA @ off_A**2)
        of_step_Q = np.array([MOST_STEPS, 1, 2, 4]) / period_s ** np.arange(4)
        first_Q = np.abs(stops.now_Q4[:, 0])
        by_R = np.abs(stops.rows_R4[:, 0]) + of_step_Q[stops.kinds_R]
        # Who stops at once stays where the command was, to the bit.
        by_R[(stops.rows_R4 == stops.now_Q4[POSITION]).all(axis=1)] = 0
        rounded = bounds.tightened(first_Q[:, None] * off_A, first_Q[:, None] * off_M)
        after = bounds.rows(stops.kinds_R).tightened(by_R[:, None] * off_A, by_R[:, None] * off_M)
        narrow_RA = after.low_QA >= after.high_QA
        for row, number in np.argwhere(narrow_RA)[:1].tolist():
            kind = stops.kinds_R[row]
            raise ValueError(
                f"axis {self.description.names[number]!r}: {QUANTITIES[kind]} "
                f"{bounds.high_QA[kind, number]:g} is less than float32 commands resolve every "
                f"{period_s:g} s ({by_R[row] * off_A[number]:.2g}); send fewer, or allow more"
            )
        slack_QA, slack_QM = (-SLACK * np.abs(b) for b in (bounds.high_QA, bounds.norms_QM))
        asked = bounds.tightened(slack_QA, slack_QM)
        return _Level(
            asked.then(after),
            asked.scaled(GENTLE_Q).then(after),
            rounded.then(after),
            Gains.of(most_QA, period_s),
        )

    def _ends(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The outermost actions of positions, [A]: rounded inwards, as nothing is sent outside."""
        low_A, high_A = (np.float32((b - self._offset_A) / self._unit_A) for b in self._bounds_A)
        reached_2A = np.array([low_A, high_A], np.float64) * self._unit_A + self._offset_A
        up, down = np.float32(np.inf), np.float32(-np.inf)
        low_A = np.where(reached_2A[0] < self._bounds_A[0], np.nextafter(low_A, up), low_A)
        high_A = np.where(reached_2A[1] > self._bounds_A[1], np.nextafter(high_A, down), high_A)
        return np.where(self._is_position, low_A, down), np.where(self._is_position, high_A, up)

    def _inside(self, number: int, position: float) -> float:
        """Where an axis stands; a little outside counts as at the bound."""
        axis = self.description.axes[number]
        low, high = self._bounds_A[0][number], self._bounds_A[1][number]
        near = axis.max_error or 0.01 * (high - low if np.isfinite(high - low) else 0.0)
        if not low - near <= position <= high + near:
            raise ValueError(
                f"axis {axis.name!r} stands at {position:g} {axis.unit}, outside [{low:g}, "
                f"{high:g}]; move it inside by hand, or correct the robot description"
            )
        return position


def _groups(member_MA: Array) -> Array:
    """[G, A]: axes of a norm together, each other one alone."""
    alone = np.eye(member_MA.shape[1])[member_MA.sum(axis=0) == 0]
    return np.concatenate([member_MA, alone])


def _steps_needed(bounds: _Bounds, period_s: float) -> int:
    """Twice what the fastest stop from full speed takes: the smooth shape is not the fastest."""
    norms_Q = bounds.norms_QM.min(axis=1, initial=np.inf)
    most = 0.0
    for number in range(bounds.high_QA.shape[1]):
        _, velocity, acceleration, jerk = bounds.high_QA[:, number].tolist()
        velocity = min(velocity, norms_Q[VELOCITY])
        acceleration = min(acceleration, norms_Q[ACCELERATION])
        if np.isinf(velocity) or (np.isinf(acceleration) and np.isinf(jerk)):
            continue
        if velocity * jerk > acceleration**2:
            seconds = velocity / acceleration + acceleration / jerk
        else:
            seconds = 2 * np.sqrt(velocity / jerk)
        most = max(most, 2 * seconds / period_s + 2)
    return math.ceil(min(most, MOST_STEPS))


def _ball(rest_RA: Array, step_RA: Array, radius_R: Array) -> tuple[Array, Array]:
    """[R] shares between which |rest + share * step| <= radius."""
    a_R, b_R = (step_RA**2).sum(axis=1), (rest_RA * step_RA).sum(axis=1)
    c_R = (rest_RA**2).sum(axis=1) - radius_R * np.abs(radius_R)
    root_R = np.sqrt(b_R**2 - a_R * c_R)  # no number where the line misses the ball
    misses_R = np.isnan(root_R) | ((a_R == 0) & (c_R > 0))
    low_R = np.where(a_R == 0, -np.inf, (-b_R - root_R) / a_R)
    high_R = np.where(a_R == 0, np.inf, (-b_R + root_R) / a_R)
    unlimited_R = np.isinf(radius_R)
    low_R = np.where(unlimited_R, -np.inf, np.where(misses_R, np.inf, low_R))
    high_R = np.where(unlimited_R, np.inf, np.where(misses_R, -np.inf, high_R))
    return low_R, high_R
