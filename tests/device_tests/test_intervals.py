"""Intervals and p-values against scipy, and against figures that others published."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from device_tests.success.intervals import (
    Z_95,
    mcnemar,
    paired_difference_interval,
    paired_ratio,
    wilson_interval,
)

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


figures = st.lists(st.tuples(*[st.floats(1e-3, 1e3)] * 2), min_size=2, max_size=40)
"""Pairs of what cannot be 0."""


@given(figures)
def test_a_ratio_of_pairs_is_scipys_paired_t_interval_of_logarithms(found):
    y, x = zip(*found, strict=True)
    log_y, log_x = np.log(y), np.log(x)
    assume(np.ptp(log_y - log_x) > 1e-9)
    theirs = stats.ttest_rel(log_y, log_x).confidence_interval(0.95)
    ratio, low, high = paired_ratio(y, x, z=float(stats.t.ppf(0.975, len(y) - 1)))
    assert ratio == pytest.approx(stats.gmean(y) / stats.gmean(x), rel=1e-9)
    assert (np.log(low), np.log(high)) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_95_percent_is_what_a_ratio_is_given_with():
    y, x = [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]
    assert paired_ratio(y, x) == paired_ratio(y, x, Z_95)
    assert abs(Z_95 - Z) < 1e-3


@given(figures)
def test_a_ratio_turns_around_when_the_sides_are_swapped(found):
    y, x = zip(*found, strict=True)
    ratio, low, high = paired_ratio(y, x)
    assert paired_ratio(x, y) == pytest.approx((1 / ratio, 1 / high, 1 / low), rel=1e-6)


@given(figures, st.floats(0.1, 10), st.randoms(use_true_random=False))
def test_a_ratio_knows_neither_units_nor_order(found, unit, random):
    shuffled = [(unit * u, unit * v) for u, v in found]
    random.shuffle(shuffled)
    sides = [tuple(zip(*pairs, strict=True)) for pairs in (found, shuffled)]
    one, two = (paired_ratio(y, x) for y, x in sides)
    assert one == pytest.approx(two, rel=1e-6)


def test_equal_pairs_have_a_ratio_of_1_and_nothing_beside_it():
    assert paired_ratio([3.0], [3.0]) == paired_ratio([3.0, 0.0], [3.0, 0.0]) == (1, 1, 1)


def test_a_pair_of_which_one_is_0_has_no_ratio():
    for y, x in (([0.0, 1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, 0.0])):
        assert paired_ratio(y, x) == (np.inf, 0, np.inf)


def test_one_pair_says_nothing_about_others():
    assert paired_ratio([3.0], [2.0]) == (pytest.approx(1.5), 0, np.inf)


# The standard deviation of 2000 trials is 0.5 points; z for t at 60 pairs costs 0.5 more.
def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        x = np.exp(random.normal(size=60))
        y = 1.1 * x * np.exp(0.3 * random.normal(size=60))
        _, low, high = paired_ratio(y.tolist(), x.tolist())
        covered += low <= 1.1 <= high
    assert 0.925 < covered / 2000 < 0.97


@pytest.mark.parametrize(
    ("y", "x", "message"),
    [
        ([], [], "two sequences of one length, got 0 and 0"),
        ([1.0], [1.0, 2.0], "two sequences of one length, got 1 and 2"),
        ([1.0], [-1.0], "finite figures that are not negative, got -1.0"),
        ([np.nan], [1.0], "finite figures that are not negative, got nan"),
        ([1.0], [np.inf], "finite figures that are not negative, got inf"),
    ],
)
def test_a_ratio_refuses_what_is_no_pair_of_figures(y, x, message):
    with pytest.raises(ValueError, match=message):
        paired_ratio(y, x)
