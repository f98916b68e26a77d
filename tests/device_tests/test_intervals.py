"""Intervals and p-values against scipy, and against figures that others published."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from device_tests.success.intervals import mcnemar, paired_difference_interval, wilson_interval

Z = float(stats.norm.ppf(0.975))
"""scipy's 95 % quantile; the default, 1.96, is the rounded one."""

counts = st.tuples(*[st.integers(0, 40)] * 4).filter(any)
"""A paired 2 x 2 table: both, only the first, only the second, neither."""


def pairs(both, only_a, only_b, neither):
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilson_agrees_with_scipy(successes, n):
    assume(successes <= n)
    theirs = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, n, Z) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_agrees_with_a_published_example():
    # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    published = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611)}
    for (successes, n), bounds in published.items():
        assert wilson_interval(successes, n) == pytest.approx(bounds, abs=5e-5)


@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_holds_the_share_lies_in_0_to_1_and_shrinks_with_n(successes, n):
    assume(successes <= n)
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high
    closer_low, closer_high = wilson_interval(4 * successes, 4 * n)
    assert closer_high - closer_low < high - low


@pytest.mark.parametrize("arguments", [(1, 0), (0, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_counts_that_cannot_be(arguments):
    with pytest.raises(ValueError, match="successes must be in .0, n. and n positive"):
        wilson_interval(*arguments)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_a_fair_coin_thrown_once_per_discordant_pair(b, c):
    assume(b + c > 0)
    assert mcnemar(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_without_discordant_pairs_finds_nothing():
    assert mcnemar(0, 0) == 1.0


def test_mcnemar_does_not_overflow():
    assert mcnemar(4000, 1000) == 0.0
    assert 0 < mcnemar(2600, 2400) < 0.01


def test_mcnemar_refuses_a_negative_count():
    with pytest.raises(ValueError, match="must not be negative, got -1 and 2"):
        mcnemar(-1, 2)


@pytest.mark.parametrize(
    ("table", "bounds", "digits"),
    [
        # Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014) 2850-2875, table V: airway
        # hyper-responsiveness before and after stem cell transplantation.
        ((1, 1, 7, 12), (-0.507, -0.026), 3),
        # The R package contingencytables by the same authors: complete response, Cavo et al.
        ((59, 6, 16, 80), (-0.1186, -0.0046), 4),
    ],
)
def test_the_paired_interval_agrees_with_published_examples(table, bounds, digits):
    ours = paired_difference_interval(*pairs(*table))
    assert [round(bound, digits) for bound in ours] == list(bounds)


@given(counts)
def test_the_paired_interval_holds_the_difference_and_lies_in_minus_1_to_1(table):
    a, b = pairs(*table)
    low, high = paired_difference_interval(a, b)
    assert -1 <= low <= (sum(a) - sum(b)) / len(a) <= high <= 1
    assert low < high


@given(counts)
def test_the_paired_interval_turns_around_when_the_sides_are_swapped(table):
    a, b = pairs(*table)
    low, high = paired_difference_interval(a, b)
    assert paired_difference_interval(b, a) == pytest.approx((-high, -low), abs=1e-12)


@given(counts)
def test_the_paired_interval_shrinks_with_n(table):
    low, high = paired_difference_interval(*pairs(*table))
    closer_low, closer_high = paired_difference_interval(*pairs(*(4 * count for count in table)))
    assert closer_high - closer_low < high - low


@given(counts, st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_the_paired_interval_does_not_depend_on_the_order_of_the_pairs(table, random):
    a, b = pairs(*table)
    shuffled = list(zip(a, b, strict=True))
    random.shuffle(shuffled)
    assert paired_difference_interval(*zip(*shuffled, strict=True)) == pytest.approx(
        paired_difference_interval(a, b)
    )


# 95 % of 2000 trials has a standard deviation of 0.5 points; four of them on either side.
def test_the_paired_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    share = {"both": 0.55, "only_a": 0.2, "only_b": 0.1, "neither": 0.15}
    covered = 0
    for table in random.multinomial(40, list(share.values()), size=2000):
        low, high = paired_difference_interval(*pairs(*table.tolist()))
        covered += low <= share["only_a"] - share["only_b"] <= high
    assert 0.93 < covered / 2000 < 0.97


@pytest.mark.parametrize(("a", "b"), [([], []), ([True], [True, False])])
def test_the_paired_interval_refuses_what_is_not_paired(a, b):
    with pytest.raises(ValueError, match="two sequences of one length, got"):
        paired_difference_interval(a, b)
