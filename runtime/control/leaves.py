"""Read-outs at their own rate: which leaf is due, and whether the time that is left is enough.

A leaf is an output that no action needs. The thinker runs one between two thoughts, on the last
observation, if by all that is known it ends before the policy may be asked again. If it cannot end
by its deadline, it is skipped, and counted. A running network cannot be stopped: if one takes
longer than it ever did, an action may wait for the difference, and the next time that is known.

A leaf falls due on a schedule of its own that does not drift: whether one was skipped or came late
does not move the next.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..declarations import Output
from ..meanings import check_value
from ..robots.robot import Truth

NUM_COSTS = 50
"""A leaf is taken to last as long as the longest of so many."""
MARGIN = 1.1
"""And a tenth more: the next may be a little longer."""
SMALL = 64
"""Numbers of a leaf that is kept from every time, and not its last value alone."""
_SAME_S = 1e-9
"""Sums of periods are off by less than this in a day."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeafRate:
    """How often a leaf shall be read."""

    rate_hz: float
    deadline_s: float | None = None
    """Seconds from when it is due to when it has to be there; a period if none is given."""

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz <= 1000:
            raise ValueError(f"a leaf's rate_hz must be in (0, 1000], got {self.rate_hz}")
        if self.deadline_s is not None and not 0 < self.deadline_s < math.inf:
            raise ValueError(f"a leaf's deadline_s must be positive, got {self.deadline_s}")

    @property
    def period_s(self) -> float:
        return 1 / self.rate_hz

    @property
    def allowed_s(self) -> float:
        """Seconds from due to done."""
        return self.period_s if self.deadline_s is None else self.deadline_s


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A leaf that was read."""

    name: str
    value: NDArray[Any]
    number: int
    """Of the question whose observation it was read from."""
    looked_at: float
    """When somebody looked for that, in seconds of the loop's clock."""
    due_at: float
    read_at: float
    """When it was there."""
    took_s: float
    truth: NDArray[Any] | None = None
    """What it should be, of the leaf's shape and units, as a simulator knew it at `looked_at`."""

    @property
    def error(self) -> float | None:
        """Distance of the value from the truth, in the leaf's units; None where nobody knows."""
        return None if self.truth is None else float(np.linalg.norm(self.value - self.truth))


@dataclass(slots=True)
class LeafCount:
    """What became of a leaf in an episode."""

    num_run: int = 0
    num_skipped: int = 0
    """Times that it was due and could not be there in time."""
    num_failed: int = 0
    """Times that it raised, or was nothing that it can be; the robot does not stop for that."""
    error: str = ""
    """The last one's."""
    longest_s: float = 0.0

    @property
    def words(self) -> str:
        """For people."""
        failed = f", {self.num_failed} failed ({self.error})" if self.num_failed else ""
        longest = f", at most {1e3 * self.longest_s:.1f} ms" if self.num_run else ""
        return f"read {self.num_run} times{longest}, {self.num_skipped} skipped{failed}"


@dataclass(slots=True)
class _Schedule:
    rate: LeafRate
    costs: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_COSTS))
    origin_s: float = 0.0
    turn: int = 0
    """Number of the next time that it is due."""

    @property
    def due_s(self) -> float:
        return self.origin_s + self.turn * self.rate.period_s

    @property
    def cost_s(self) -> float:
        """What it is taken to last; endless before it was measured."""
        return MARGIN * max(self.costs) if self.costs else math.inf


class Leaves:
    """The schedules of an episode's leaves. One thread at a time."""

    def __init__(
        self, rates: Mapping[str, LeafRate], outputs: Mapping[str, Output] | None = None
    ) -> None:
        """
        Args:
            rates: how often each is read.
            outputs: of the policy, for what leaves mean.
        """
        self._means = {n: o.means for n, o in (outputs or {}).items() if n in rates and o.means}
        self._schedules = {name: _Schedule(rate) for name, rate in rates.items()}
        self.counts = {name: LeafCount() for name in rates}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._schedules)

    def begin(self, now: float) -> None:
        """All are due from now on. What was counted before stays, as what they cost does."""
        for schedule in self._schedules.values():
            schedule.origin_s, schedule.turn = now, 0

    def measured(self, name: str, took_s: float) -> None:
        """What one took that was not due."""
        self._schedules[name].costs.append(took_s)

    def next(self, now: float, until: float) -> str | None:
        """The leaf to run now, the longest due first, and None if none is due that ends in time.

        Counts as skipped what cannot be there by its deadline any more.

        Args:
            until: when the policy may be asked again.
        """
        ready = list[tuple[float, str]]()
        for name, schedule in self._schedules.items():
            cost_s, allowed_s = schedule.cost_s, schedule.rate.allowed_s
            while schedule.due_s + allowed_s + _SAME_S < now + cost_s:
                if schedule.due_s > now + _SAME_S:
                    break  # too long for its deadline: skipped when it is due, and not before
                schedule.turn += 1
                self.counts[name].num_skipped += 1
            if schedule.due_s <= now + _SAME_S and now + cost_s <= until + _SAME_S:
                ready.append((schedule.due_s, name))
        return min(ready)[1] if ready else None

    def check(self, name: str, value: NDArray[Any]) -> None:
        """
        Raises:
            ValueError: the leaf cannot mean what it is declared to: its shape, or its numbers.
        """
        if (means := self._means.get(name)) is not None:
            check_value(means, value)

    def ran(self, name: str, took_s: float) -> float:
        """It was read; when it was due."""
        schedule, count = self._schedules[name], self.counts[name]
        due_s = schedule.due_s
        schedule.turn += 1
        schedule.costs.append(took_s)
        count.num_run += 1
        count.longest_s = max(count.longest_s, took_s)
        return due_s

    def failed(self, name: str, error: BaseException, took_s: float) -> None:
        """It raised, on time."""
        schedule, count = self._schedules[name], self.counts[name]
        schedule.turn += 1
        schedule.costs.append(took_s)
        count.num_failed += 1
        count.error = f"{type(error).__name__}: {error}"


def parse_leaves(texts: Iterable[str]) -> dict[str, LeafRate]:
    """What `--leaf` says: `NAME=HERTZ`, or `NAME=HERTZ,SECONDS` with a deadline.

    Raises:
        ValueError: it is neither, or names a leaf twice.
    """
    found: dict[str, LeafRate] = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        try:
            rate_hz, *deadline = map(float, numbers.split(","))
            if not name or name in found or len(deadline) > 1:
                raise ValueError("each leaf once, and a name, a rate and perhaps a deadline")
            found[name] = LeafRate(rate_hz=rate_hz, deadline_s=deadline[0] if deadline else None)
        except ValueError as error:
            raise ValueError(
                f"--leaf {text}: say NAME=HERTZ or NAME=HERTZ,SECONDS, such as grasp=5,0.1: {error}"
            ) from None
    return found


def check_leaves(wanted: Iterable[str], outputs: Mapping[str, Output]) -> None:
    """
    Raises:
        ValueError: the policy has no such leaf.
    """
    target, *leaves = [*outputs] or [""]
    for name in wanted:
        if name not in leaves:
            what = "is what every tick is for" if name == target else "is no output of this policy"
            raise ValueError(
                f"leaf {name!r} {what}; it can be asked for {', '.join(leaves) or 'no other'}"
            )


def check_truths(
    wanted: Iterable[str], outputs: Mapping[str, Output], truths: Mapping[str, Truth]
) -> None:
    """
    Args:
        wanted: leaves that the policy has.
        truths: what a simulator knows.

    Raises:
        ValueError: a leaf and what the simulator calls so are in different units.
    """
    for name in wanted:
        if name in truths and outputs[name].units != truths[name].units:
            ours, theirs = (
                " ".join(units) or "no unit" for units in (outputs[name].units, truths[name].units)
            )
            raise ValueError(
                f"leaf {name!r} is in {ours}, and what the robot knows by that name in {theirs}: "
                "convert it in the robot's truths, or give it another name there"
            )
