"""A long run as fast as it goes: does the board stay quick, cool and unthrottled, and what does an
action chunk cost in joules? In the power mode that the board is in.

Sensors are read between ticks, once a second, so that no reading is inside a measured tick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from device_tests.measure.conditions import Conditions, Look
from device_tests.measure.latency import no_collection
from runtime.control.clock import Clock

SAMPLE_EVERY_S = 1.0
MAX_SAMPLES = 4000
"""Of a longer run every other sample is dropped, and so on: 8 hours keep one in 8 seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoakSample:
    """What happened since the sample before."""

    time_s: float
    """Since the soak began, at the end."""
    median_ms: float
    """Of the ticks."""
    conditions: Conditions


@dataclass(frozen=True, kw_only=True, slots=True)
class Soak:
    """A long run."""

    seconds: float
    num_ticks: int
    samples: tuple[SoakSample, ...]
    energy_j: float | None
    """Of the whole board, over the whole run; None where nothing measures it."""
    throttled_share: float
    """Of the samples: a cooling device held something back, or an over-current event came."""

    @property
    def slowdown(self) -> float:
        """Median tick of the last quarter over that of the first."""
        times = [sample.median_ms for sample in self.samples]
        quarter = max(1, len(times) // 4)
        return float(np.median(times[-quarter:]) / np.median(times[:quarter]))

    @property
    def joules_per_chunk(self) -> float | None:
        """Idle power included."""
        return None if self.energy_j is None else self.energy_j / self.num_ticks


def soak(
    tick: Callable[[], None],
    clock: Clock,
    look: Look,
    *,
    seconds: float,
    max_samples: int = MAX_SAMPLES,
) -> Soak:
    """Tick for so many seconds.

    Args:
        tick: one tick of the policy.
        clock: tells the time.
        look: reads the sensors.
        seconds: how long.
        max_samples: that are kept.
    """
    start = now = clock()
    record = _Record(look(), max_samples)
    num_ticks, window_ms, next_s = 0, list[float](), SAMPLE_EVERY_S
    with no_collection():
        while now - start < seconds:
            begin = clock()
            tick()
            now = clock()
            num_ticks += 1
            window_ms.append((now - begin) * 1e3)
            if now - start >= next_s:
                record.add(now - start, window_ms, look())
                window_ms, next_s = [], now - start + SAMPLE_EVERY_S
    if window_ms:
        record.add(now - start, window_ms, look())
    return Soak(
        seconds=now - start,
        num_ticks=num_ticks,
        samples=tuple(record.samples),
        energy_j=record.energy_j,
        throttled_share=record.num_throttled / max(record.num_seen, 1),
    )


class _Record:
    """Samples of bounded number, and what is summed over all of them."""

    def __init__(self, first: Conditions, max_samples: int) -> None:
        self.samples: list[SoakSample] = []
        self.energy_j: float | None = None if first.total_w is None else 0.0
        self.num_throttled = self.num_seen = 0
        self._last, self._last_s = first, 0.0
        self._max_samples, self._every = max_samples, 1

    def add(self, time_s: float, window_ms: list[float], seen: Conditions) -> None:
        before, watts = self._last.total_w, seen.total_w
        if self.energy_j is None or before is None or watts is None:
            self.energy_j = None  # a sum with a gap in it would be too small
        else:
            self.energy_j += (before + watts) / 2 * (time_s - self._last_s)
        new_events = seen.over_current != self._last.over_current
        self.num_throttled += bool(seen.cooling) or new_events
        self._last, self._last_s = seen, time_s
        if self.num_seen % self._every == 0 or seen.cooling or new_events:
            median_ms = sorted(window_ms)[len(window_ms) // 2]
            self.samples.append(SoakSample(time_s=time_s, median_ms=median_ms, conditions=seen))
        self.num_seen += 1
        if len(self.samples) >= self._max_samples:
            self.samples, self._every = self.samples[::2], self._every * 2
