"""How smoothly a robot was commanded: the actions of an episode in, jerk, spectrum and seams out.

T = action, A = axis. Every axis is divided by half of what the robot's limits span, so that metres
and radians add up: 1 is full speed where actions are velocities, half the range where they are
positions. Say u for these numbers, and v for the velocity: u, or what positions change by per
second. Lengths are Euclidean over the axes.

- jerk is the third derivative of position, here the second difference of v over the period
  squared: full speeds per s^2, or half ranges per s^3. A smooth movement is one with little of it:
  T. Flash and N. Hogan, "The coordination of arm movements", Journal of Neuroscience 5 (1985)
  1688-1703.
- high share is the share of v's spectral energy, its mean taken out, at `HIGH` of the Nyquist
  frequency and above: one Hann window over the episode, which is P. D. Welch, IEEE Transactions on
  Audio and Electroacoustics 15 (1967) 70-73, with one segment, since episodes are short.
- seam step is the mean length of u's step from one chunk to the next, and within step that of all
  other steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from device_tests.success.intervals import paired_ratio

CommandKind = Literal["velocity", "position", "switch"]
"""What an axis is told: a velocity (or a step per action), a position, or what no motion follows in
proportion, such as a gripper's effort; switches are left out."""
HIGH = 0.5
"""Of the Nyquist frequency: a period of fewer than four actions."""
MIN_ACTIONS = 8
"""Two periods of the lowest of the high frequencies. An episode of fewer tells nothing."""
STILL = 1e-6
"""Of full speed: what moves less stands still; float32 rounds an action by a tenth of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """One episode's figures, or their means over episodes; units are in the module's docstring."""

    mean_jerk: float
    p99_jerk: float
    """Interpolated between its neighbours: in 50 actions, between the two largest."""
    high_share: float
    """In [0, 1]; 0 where nothing moves."""
    seam_step: float
    within_step: float
    """0 where every action is a seam."""


FIGURES: Mapping[str, str] = {
    "mean_jerk": "mean jerk",
    "p99_jerk": "p99 jerk",
    "high_share": "high frequencies",
    "seam_step": "step at seams",
    "within_step": "step within chunks",
}
"""Of `Motion`, and what people call them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """One figure of two candidates in the same episodes."""

    first: float
    """Mean over the episodes."""
    this: float
    ratio: float
    """Geometric mean of `this` over `first`, episode by episode, so that a tremor counts where the
    arm moves gently too."""
    low: float
    """95 % interval for it (`paired_ratio`)."""
    high: float
    """Infinite where the episodes cannot tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionComparison:
    """How another candidate moved in the episodes of a first one."""

    pairs: int
    left_out: int
    """Pairs of which one was too short to tell."""
    figures: Mapping[str, Ratio]
    """Of each in `FIGURES`."""

    @classmethod
    def of(
        cls, first: Sequence[Motion | None], this: Sequence[Motion | None]
    ) -> MotionComparison | None:
        """None where no pair can tell.

        Raises:
            ValueError: these are not pairs.
        """
        both = [(a, b) for a, b in zip(first, this, strict=True) if a and b]
        if not both:
            return None
        figures = {}
        for name in FIGURES:
            x, y = ([getattr(motion, name) for motion in side] for side in zip(*both, strict=True))
            ratio, low, high = paired_ratio(y, x)
            figures[name] = Ratio(
                first=float(np.mean(x)), this=float(np.mean(y)), ratio=ratio, low=low, high=high
            )
        return cls(pairs=len(both), left_out=len(first) - len(both), figures=figures)


def measure_motion(
    actions_TA: NDArray[np.floating],
    chunk_starts: Sequence[int],
    kinds: Sequence[str],
    half_range_A: NDArray[np.floating],
    period_s: float,
) -> Motion | None:
    """Figures of one episode.

    Args:
        actions_TA: as they were sent to the robot, in its units.
        chunk_starts: indices of actions that are the first of a chunk, in order.
        kinds: [A] of `CommandKind`. The axes that move are all velocities or all positions.
        half_range_A: half of what each axis may span, in its units.
        period_s: from one action to the next.

    Returns:
        None for an episode of fewer than `MIN_ACTIONS`, or without a seam.

    Raises:
        ValueError: an action or a range is not finite, kinds are mixed or unknown, a chunk starts
            outside of the episode, or the lengths differ.
    """
    moving, kind = _moving(kinds)
    _check(actions_TA, chunk_starts, len(kinds), half_range_A, moving, period_s)
    seams = [start for start in chunk_starts if start > 0]
    if len(actions_TA) < MIN_ACTIONS or not seams:
        return None
    u_TA = actions_TA[:, moving].astype(np.float64) / np.asarray(half_range_A, float)[moving]
    v_TA = u_TA if kind == "velocity" else np.diff(u_TA, axis=0) / period_s
    jerk_T = _lengths(np.diff(v_TA, 2, axis=0)) / period_s**2
    step_T = _lengths(np.diff(u_TA, axis=0))
    is_seam_T = np.isin(np.arange(1, len(u_TA)), seams)
    return Motion(
        mean_jerk=float(jerk_T.mean()),
        p99_jerk=float(np.percentile(jerk_T, 99)),
        high_share=_high_share(v_TA),
        seam_step=float(step_T[is_seam_T].mean()),
        within_step=float(step_T[~is_seam_T].mean()) if not is_seam_T.all() else 0.0,
    )


def mean_motion(motions: Sequence[Motion | None]) -> Motion | None:
    """Over those that tell; None where none does."""
    told = [asdict(motion) for motion in motions if motion]
    if not told:
        return None
    return Motion(**{name: float(np.mean([t[name] for t in told])) for name in FIGURES})


def read_motion(raw: Mapping[str, Any] | None) -> Motion | None:
    """What `asdict` made of it."""
    return None if raw is None else Motion(**raw)


def _high_share(v_TA: NDArray[np.float64]) -> float:
    num = len(v_TA)
    x_TA = v_TA - v_TA.mean(axis=0)
    if np.abs(x_TA).max() <= STILL:
        return 0.0
    window_T = np.hanning(num + 2)[1:-1]  # the zeros at its ends would throw two actions away
    energy_F = (np.abs(np.fft.rfft(x_TA * window_T[:, None], axis=0)) ** 2).sum(axis=1)
    energy_F[1 : (num + 1) // 2] *= 2  # all but 0 and Nyquist stand for two frequencies
    return float(energy_F[math.ceil(HIGH * num / 2) :].sum() / energy_F.sum())


def _lengths(x_TA: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt((x_TA**2).sum(axis=1))


def _moving(kinds: Sequence[str]) -> tuple[list[int], str]:
    """Axes that move, and what they are told."""
    if unknown := sorted(set(kinds) - set(get_args(CommandKind))):
        raise ValueError(
            f"an axis is one of {', '.join(get_args(CommandKind))}, got {unknown[0]!r}"
        )
    moving = [axis for axis, kind in enumerate(kinds) if kind != "switch"]
    told = sorted({kinds[axis] for axis in moving})
    if len(told) != 1:
        raise ValueError(
            f"axes that move must be all velocities or all positions, got {' and '.join(told)}"
            if told
            else "no axis moves: all of them are switches"
        )
    return moving, told[0]


def _check(
    actions_TA: NDArray[np.floating],
    chunk_starts: Sequence[int],
    num_axes: int,
    half_range_A: NDArray[np.floating],
    moving: Sequence[int],
    period_s: float,
) -> None:
    if actions_TA.ndim != 2 or actions_TA.shape[1] != num_axes or len(half_range_A) != num_axes:
        raise ValueError(
            f"{num_axes} kinds of axes, but actions are {list(actions_TA.shape)} and ranges "
            f"{len(half_range_A)}: give one of each per axis"
        )
    for number in np.flatnonzero(~np.isfinite(actions_TA).all(axis=1))[:1].tolist():
        raise ValueError(f"action {number} is not finite: {actions_TA[number].tolist()}")
    ranges = np.asarray(half_range_A, float)[list(moving)]
    if not (np.isfinite(ranges).all() and (ranges > 0).all()):
        raise ValueError(
            f"half ranges must be positive and finite, got {ranges.tolist()}: the robot's limits "
            "have to say what each axis that moves may span"
        )
    if not (math.isfinite(period_s) and period_s > 0):
        raise ValueError(f"period_s must be positive, got {period_s}")
    starts = list(chunk_starts)
    if starts != sorted(set(starts)) or (starts and not 0 <= starts[0] <= starts[-1]):
        raise ValueError(f"chunk starts must go up from 0, got {starts}")
    if starts and starts[-1] >= len(actions_TA):
        raise ValueError(f"a chunk starts at {starts[-1]}, behind the {len(actions_TA)} actions")
