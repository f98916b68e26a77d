"""Does the process grow? Resident memory over ticks, and the slope of it.

The slope is Theil and Sen's median over all pairs: an allocator's single step does not move it,
a leak of a few bytes per tick does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from device_tests.measure.latency import no_collection
from runtime.control.clock import Clock

MAX_POINTS = 400
MIN_TICKS = 50
SETTLED_FROM = 0.25
"""The first part of a run, in which allocators fill their arenas, does not count."""


class Thinned:
    """A record of bounded length: once full, every other point goes, and half as many come."""

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self.points: list[tuple[float, float]] = []
        self._max_points, self._every, self._count = max_points, 1, 0

    def add(self, x: float, y: Callable[[], float]) -> None:
        """Keep (x, y()), or pass over it without asking for y."""
        if self._count % self._every == 0:
            self.points.append((x, y()))
        self._count += 1
        if len(self.points) == self._max_points:
            self.points, self._every = self.points[::2], self._every * 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """Resident memory while the policy ticks."""

    points: tuple[tuple[float, float], ...]
    """(tick, megabytes of 1e6 bytes)."""
    num_ticks: int

    @property
    def mb_per_10k_ticks(self) -> float:
        """Slope of the settled part."""
        settled = [p for p in self.points if p[0] >= SETTLED_FROM * self.num_ticks]
        return median_slope(settled) * 10_000

    @property
    def peak_mb(self) -> float:
        return max(megabytes for _, megabytes in self.points)


def measure_growth(
    tick: Callable[[], None], clock: Clock, read_mb: Callable[[], float], *, seconds: float
) -> Growth:
    """Tick for so many seconds, `MIN_TICKS` times at least, as a control loop does: no collector.

    Args:
        tick: one tick of the policy.
        clock: tells the time.
        read_mb: resident memory of this process.
        seconds: how long.
    """
    record, num_ticks, end = Thinned(), 0, clock() + seconds
    with no_collection():
        while num_ticks < MIN_TICKS or clock() < end:
            tick()
            num_ticks += 1
            record.add(num_ticks, read_mb)
    return Growth(points=tuple(record.points), num_ticks=num_ticks)


def median_slope(points: Sequence[tuple[float, float]]) -> float:
    """Median of the slopes between all pairs of points, whose x ascend.

    P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", Journal of the
    American Statistical Association 63 (1968) 1379-1389.

    Raises:
        ValueError: fewer than two points.
    """
    if len(points) < 2:
        raise ValueError(f"a slope needs at least two points, got {len(points)}")
    x, y = np.asarray(points, np.float64).T
    first, second = np.triu_indices(len(points), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))
