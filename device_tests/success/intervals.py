"""Figures of episodes with their uncertainty: outcomes and pairs in, intervals and p-values out.

Closed forms, so that a board needs no scipy. `z` is the standard normal quantile: 1.96 for 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.96


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A share of successes."""

    successes: int
    n: int
    low: float
    """95 % Wilson interval, in [0, 1]."""
    high: float

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> Rate:
        """Raises ValueError without any outcome."""
        low, high = wilson_interval(sum(outcomes), len(outcomes))
        return cls(successes=sum(outcomes), n=len(outcomes), low=low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How another candidate did in the trials of a first one."""

    difference: float
    """Share of successes minus that of the first."""
    low: float
    """95 % interval for it (`paired_difference_interval`)."""
    high: float
    only_first: int
    """Trials in which the first alone succeeded."""
    only_this: int
    p: float
    """Of the exact McNemar test."""

    @classmethod
    def of(cls, first: Sequence[bool], this: Sequence[bool]) -> Comparison:
        """Raises ValueError if these are not pairs."""
        low, high = paired_difference_interval(this, first)
        only_first = sum(x and not y for x, y in zip(first, this, strict=True))
        only_this = sum(y and not x for x, y in zip(first, this, strict=True))
        return cls(
            difference=(only_this - only_first) / len(first),
            low=low,
            high=high,
            only_first=only_first,
            only_this=only_this,
            p=mcnemar(only_first, only_this),
        )


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Score interval for a proportion, inside [0, 1] and never empty.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22 (1927) 209-212. No continuity correction.

    Raises:
        ValueError: `successes` is not one of 0..n, or n is 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes must be in [0, n] and n positive, got {successes} of {n}")
    share = successes / n
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (1 - share) + z * z / 4)
    # At 0 and n one bound is exact in theory and off by a rounding error in floating point.
    return min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value for b against c discordant pairs: a fair coin thrown b + c times.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947) 153-157; exact conditional form. 1.0 without any
    discordant pair.

    Raises:
        ValueError: a count is negative.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts of discordant pairs must not be negative, got {b} and {c}")
    num_outcomes = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    return min(1.0, 2 * num_outcomes / 2 ** (b + c))


def paired_difference_interval(
    a: Sequence[bool], b: Sequence[bool], z: float = Z_95
) -> tuple[float, float]:
    """Interval for share(a) - share(b), where a[i] and b[i] are outcomes of the same trial.

    Method 10 of R. G. Newcombe, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17 (1998) 2635-2650: the Wilson
    bounds of both shares, squared and added with a correction for their correlation. Recommended
    for small samples by Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014) 2850-2875.

    Raises:
        ValueError: the sequences are empty or not of one length.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"pairs need two sequences of one length, got {len(a)} and {len(b)}")
    n, num_a, num_b = len(a), sum(map(bool, a)), sum(map(bool, b))
    share_a, share_b = num_a / n, num_b / n
    low_a, high_a = wilson_interval(num_a, n, z)
    low_b, high_b = wilson_interval(num_b, n, z)
    phi = _correlation(a, b)
    difference = share_a - share_b
    below = _combine(share_a - low_a, high_b - share_b, phi)
    above = _combine(high_a - share_a, share_b - low_b, phi)
    return max(difference - below, -1.0), min(difference + above, 1.0)


def paired_ratio(
    y: Sequence[float], x: Sequence[float], z: float = Z_95
) -> tuple[float, float, float]:
    """Geometric mean of y[i] / x[i], measured in the same trial, and an interval for it.

    The paired t interval of logarithms, with `z` for its quantile, which takes some thirty pairs:
    J. M. Bland and D. G. Altman, "Transformations, means, and confidence intervals", British
    Medical Journal 312 (1996) 1079.

    Returns:
        The ratio and its bounds. (1, 1, 1) if every pair is equal; (inf, 0, inf) if in some pair
        one figure is 0 and the other is not, which no ratio describes; bounds of 0 and infinity
        for a single pair.

    Raises:
        ValueError: the sequences are empty, not of one length, negative or not finite.
    """
    if len(x) != len(y) or not x:
        raise ValueError(f"pairs need two sequences of one length, got {len(y)} and {len(x)}")
    for number in (*x, *y):
        if not 0 <= number < math.inf:
            raise ValueError(f"a ratio needs finite figures that are not negative, got {number}")
    pairs = list(zip(y, x, strict=True))
    if any((u == 0) != (v == 0) for u, v in pairs):
        return math.inf, 0.0, math.inf
    logs = [math.log(u / v) if u else 0.0 for u, v in pairs]
    if not any(logs):
        return 1.0, 1.0, 1.0
    n, mean = len(logs), math.fsum(logs) / len(logs)
    if n == 1:
        return math.exp(mean), 0.0, math.inf
    half = z * math.sqrt(math.fsum((log - mean) ** 2 for log in logs) / (n * (n - 1)))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def _combine(length_a: float, length_b: float, phi: float) -> float:
    square = length_a**2 - 2 * phi * length_a * length_b + length_b**2
    return math.sqrt(max(square, 0.0))


def _correlation(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Phi coefficient; if positive, with Newcombe's continuity correction; 0 if undefined."""
    n, num_a, num_b = len(a), sum(map(bool, a)), sum(map(bool, b))
    both = sum(x and y for x, y in zip(a, b, strict=True))
    margins = num_a * (n - num_a) * num_b * (n - num_b)
    if margins == 0:
        return 0.0
    determinant = float(both * n - num_a * num_b)
    if determinant > 0:
        determinant = max(determinant - n / 2, 0.0)
    return determinant / math.sqrt(margins)
