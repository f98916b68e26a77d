"""Is a frame a new one, and when was it captured?

Goes in: what a camera says of each frame, with the time at which it came. Comes out: the time of
its capture, or nothing, and what was wrong is counted. Nothing is mended: a camera whose frames
stay wrong shows nothing new, so it is lost like one that sends nothing, and is opened again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

WINDOW_S = 10.0
"""A clock that drifts by 50 parts in a million is off by 1 ms after two of these."""


class CaptureClock:
    """Times on this machine's clock of what a device stamps with a clock of its own.

    The two differ by an offset, and no frame comes before it was captured: the smallest difference
    that was seen lately is the offset, up to the least time that a frame takes to get here. What a
    frame takes longer than that counts as its age. Times never go backwards if stamps do not.
    """

    def __init__(self) -> None:
        self._before = self._now = math.inf
        self._turns_at = -math.inf

    def at(self, stamp_s: float, arrived_at: float) -> float:
        """When a frame was captured that has this stamp, and came at `arrived_at`."""
        if arrived_at >= self._turns_at:
            self._before, self._now = self._now, math.inf
            self._turns_at = arrived_at + WINDOW_S
        self._now = min(self._now, arrived_at - stamp_s)
        return stamp_s + min(self._before, self._now)


class FrameChecks:
    """Of one camera, from when it was opened.

    Args:
        count: told what was wrong or missing, in the words of `ring.COUNTS`, and how often.
    """

    def __init__(self, count: Callable[[str, int], None]) -> None:
        self._count = count
        self._clock = CaptureClock()
        self._number: int | None = None
        self._stamp_s = -math.inf

    def captured_at(self, number: int, stamp_s: float | None, arrived_at: float) -> float | None:
        """When a frame was captured; None if it may not be used.

        Args:
            number: of the frame, as the camera counts.
            stamp_s: of the camera, in seconds on any clock; None if it has none.
            arrived_at: when it came, in seconds on the monotonic clock.
        """
        last = number - 1 if self._number is None else self._number
        if number <= last:
            self._count("repeated frame numbers" if number == last else "frame numbers back", 1)
            return None
        self._number = number
        if number > last + 1:
            self._count("dropped frames", number - last - 1)
        if stamp_s is not None and not stamp_s > self._stamp_s:
            self._count("stamps back", 1)
            return None
        self._count("frames", 1)
        if stamp_s is None:
            return arrived_at
        self._stamp_s = stamp_s
        return self._clock.at(stamp_s, arrived_at)
