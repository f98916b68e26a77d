"""Is it faster or slower than the last accepted result? Only a difference beyond the noise counts.

The noise is what the same measurement differs by from itself: one run, divided into two halves,
and what is known to differ from run to run on the board.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Direction = Literal["faster", "slower", "no difference beyond the noise"]
MIN_SAMPLES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What of a result is compared, and what must be equal for it to be comparable."""

    board: str
    power_mode: str
    way_to_wait: str
    """Of the host, for the GPU."""
    num_weights: int
    median_ms: float
    """Of warm ticks."""
    noise_ms: float
    throttled: bool
    commit: str
    date: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A result against the last accepted one."""

    difference_ms: float
    """Of the medians of warm ticks; positive is slower."""
    noise_ms: float
    """The larger noise of the two, or what runs differ by if that is more."""
    against: Reference

    @property
    def direction(self) -> Direction:
        if abs(self.difference_ms) <= self.noise_ms:
            return "no difference beyond the noise"
        return "slower" if self.difference_ms > 0 else "faster"


def noise_ms(samples_ms: Sequence[float]) -> float:
    """How far the medians of two halves of one measurement are apart, at worst.

    The halves are interleaved in blocks: of single ticks, of two, of four, up to the first half of
    the run against the second, which sees a slow drift that finer blocks share evenly.

    Raises:
        ValueError: fewer than `MIN_SAMPLES` samples.
    """
    if len(samples_ms) < MIN_SAMPLES:
        raise ValueError(f"noise needs at least {MIN_SAMPLES} ticks, got {len(samples_ms)}")
    values, index = np.asarray(samples_ms, np.float64), np.arange(len(samples_ms))
    blocks = [1 << k for k in range((len(samples_ms) // 2).bit_length() - 1)]
    halves = (index // block % 2 == 0 for block in [*blocks, -(-len(samples_ms) // 2)])
    return max(abs(float(np.median(values[h]) - np.median(values[~h]))) for h in halves)


def compare(now: Reference, before: Reference, *, between_runs_share: float) -> Change:
    """Compare two results.

    Args:
        now: this run.
        before: the last accepted one.
        between_runs_share: of the median; what two runs differ by though nothing has changed,
            which the halves of one run cannot see: other work on the machine, another layout of
            memory.

    Raises:
        ValueError: they cannot be compared: another board, power mode, way to wait for the GPU or
            size of policy, or one of them throttled.
    """
    for name in ("board", "power_mode", "way_to_wait", "num_weights"):
        got, expected = getattr(now, name), getattr(before, name)
        if got != expected:
            words = name.replace("_", " ")
            raise ValueError(f"the last accepted result has {words} {expected}, this run {got}")
    for result, words in ((now, "this run"), (before, "the last accepted result")):
        if result.throttled:
            raise ValueError(f"{words} throttled: its times are those of a hot board")
    return Change(
        difference_ms=now.median_ms - before.median_ms,
        noise_ms=max(now.noise_ms, before.noise_ms, between_runs_share * before.median_ms),
        against=before,
    )


def read_reference(path: Path) -> Reference:
    """The part of a result file that is compared.

    Raises:
        ValueError: the file is missing or no result of a device test that measured times.
    """
    try:
        return Reference(**json.loads(path.read_text())["reference"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: no result of a device test with times in it ({error}); name the device.json "
            "of an earlier run with --baseline"
        ) from None
