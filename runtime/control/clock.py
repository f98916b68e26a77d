"""Time of a control loop: the machine's, or one that passes only where somebody sleeps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol


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
