"""Motion figures against closed forms, scipy and another way to write them down."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given as given_timed
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import signal

from device_tests.success.motion import (
    FIGURES,
    HIGH,
    MIN_ACTIONS,
    Motion,
    MotionComparison,
    mean_motion,
    measure_motion,
    read_motion,
)

PERIOD_S = 0.1
TIGHT = 1e-9
"""Relative: float64 holds 16 digits, and dividing by PERIOD_S**3 keeps all but three of them."""
SMOOTH = Motion(mean_jerk=5.0, p99_jerk=40.0, high_share=0.01, seam_step=0.1, within_step=0.04)


def given(*strategies):
    """No test here is about time."""
    return lambda test: settings(deadline=None, max_examples=50)(given_timed(*strategies)(test))


fractions = st.floats(-1, 1, width=32)
episodes = arrays(
    np.float32, st.tuples(st.integers(MIN_ACTIONS, 40), st.just(3)), elements=fractions
)


def measure(actions, *, execute=5, kinds="velocity", half_range=None, period_s=PERIOD_S):
    actions_TA = np.asarray(actions)
    axes = actions_TA.shape[1]
    return measure_motion(
        actions_TA,
        range(0, len(actions_TA), execute),
        [kinds] * axes if isinstance(kinds, str) else kinds,
        np.ones(axes) if half_range is None else np.asarray(half_range, float),
        period_s,
    )


def sine(frequency, num=64, phase=0.3):
    """One axis; `frequency` is a fraction of Nyquist's."""
    return np.sin(np.pi * frequency * np.arange(num) + phase)[:, None]


def other(frequency, num=64, phase=0.3):
    return np.concatenate([sine(frequency, num, phase), 0.5 * sine(frequency, num, phase + 1)], 1)


@pytest.mark.parametrize("frequency", [0.05, 0.3, 0.5, 0.9])
def test_the_jerk_of_a_sine_is_the_closed_form(frequency):
    # The second difference of sin(w t) is -4 sin(w / 2)^2 sin(w t).
    u = sine(frequency)
    gain = 4 * math.sin(np.pi * frequency / 2) ** 2 / PERIOD_S**2
    motion = measure(u)
    assert motion.mean_jerk == pytest.approx(gain * np.abs(u[1:-1]).mean(), rel=TIGHT)
    assert motion.p99_jerk == pytest.approx(gain * np.quantile(np.abs(u[1:-1]), 0.99), rel=TIGHT)


def test_positions_of_constant_jerk_have_that_jerk():
    # The third difference of a t^3 is 6 a, of any quadratic 0; rounding to float64 is magnified by
    # at most 8 / PERIOD_S^3.
    t = PERIOD_S * np.arange(30)[:, None]
    position = 0.02 * t**3 + 0.1 * t**2 - 0.2 * t + 0.05
    motion = measure(position, kinds="position")
    rounding = 8 * np.finfo(float).eps / PERIOD_S**3
    assert motion.mean_jerk == pytest.approx(6 * 0.02, abs=rounding)
    assert motion.p99_jerk == pytest.approx(6 * 0.02, abs=rounding)
    assert measure(t**2, kinds="position").mean_jerk == pytest.approx(0, abs=20 * rounding)


@given(episodes)
def test_a_velocity_moves_like_the_positions_that_it_adds_up_to(actions):
    # 0 at the start, so that the differences are the actions. float64 sums of 40 numbers below 1.
    speeds = actions.astype(float)
    positions = np.concatenate([np.zeros((1, 3)), np.cumsum(speeds * PERIOD_S, axis=0)])
    one, two = measure(speeds), measure(positions, kinds="position")
    assert two.mean_jerk == pytest.approx(one.mean_jerk, rel=1e-9, abs=1e-9)
    assert two.p99_jerk == pytest.approx(one.p99_jerk, rel=1e-9, abs=1e-9)
    assert two.high_share == pytest.approx(one.high_share, abs=1e-6)


@given(episodes)
def test_the_high_share_is_that_of_scipys_periodogram(actions):
    share = measure(actions).high_share
    if np.abs(actions - actions.mean(axis=0)).max() < 1e-5:
        return
    window = signal.windows.hann(len(actions) + 2)[1:-1]
    f, power = signal.periodogram(
        actions.astype(float), fs=2.0, window=window, detrend="constant", axis=0
    )
    expected = power[f >= HIGH].sum() / power.sum()
    # `detrend` and our mean are rounded differently, by eps of numbers up to 1 against a signal of
    # 1e-5 and more: 1e-11 of the amplitude, twice that of the energy.
    assert share == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("frequency", "low", "high"), [(0.2, 0, 1e-3), (0.8, 0.999, 1)])
def test_a_sine_is_all_low_or_all_high(frequency, low, high):
    # A Hann window's side lobes are below -31 dB in amplitude and fall by 18 dB per octave; at 64
    # actions the border is 10 bins away.
    assert low <= measure(other(frequency)).high_share <= high


def test_two_sines_share_their_energy():
    # Amplitudes 3 and 1: the higher has 1/10 of the energy. The windows' lobes do not overlap.
    both = 0.3 * sine(0.125, 128) + 0.1 * sine(0.75, 128)
    assert measure(both).high_share == pytest.approx(0.1, abs=1e-3)


def test_a_chirp_over_all_frequencies_is_half_high():
    # Its frequency goes from 0 to Nyquist's evenly, so that half the time it is above half of that;
    # the window weighs both halves alike. Its ends smear by one period of 400 actions in 20.
    t = np.arange(400)
    chirp = signal.chirp(t, f0=0, t1=400, f1=0.5)[:, None]
    assert measure(chirp).high_share == pytest.approx(0.5, abs=0.02)


def test_white_noise_is_half_high():
    # Half the frequencies; a share of n independent energies has a standard deviation of
    # 0.5 / sqrt(n) or less, and a Hann window leaves 2/3 of 2000 independent: five of them.
    noise = np.random.default_rng(0).normal(size=(4000, 1))
    assert measure(noise).high_share == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(1333))


@given(episodes, st.integers(1, 7))
def test_steps_are_sorted_into_seams_and_others(actions, execute):
    lengths = [
        math.dist(a, b) for a, b in zip(actions[1:].tolist(), actions.tolist(), strict=False)
    ]
    seams = [s for t, s in enumerate(lengths, start=1) if t % execute == 0]
    others = [s for t, s in enumerate(lengths, start=1) if t % execute]
    motion = measure(actions, execute=execute)
    assert motion.seam_step == pytest.approx(sum(seams) / len(seams), rel=1e-9, abs=1e-12)
    assert motion.within_step == pytest.approx(sum(others) / max(len(others), 1), abs=1e-9)


def test_a_jump_between_chunks_is_a_seam_and_no_step_within():
    actions = np.repeat([[0.0], [0.5], [0.2]], 5, axis=0)
    motion = measure(actions)
    assert (motion.seam_step, motion.within_step) == pytest.approx((0.4, 0.0))
    assert measure(actions, execute=3).within_step > 0


def test_chunks_may_be_of_any_length():
    actions = np.cumsum(np.eye(1, 12, 7).T + np.eye(1, 12, 3).T, axis=0)
    motion = measure_motion(actions, [0, 3, 7], ["velocity"], np.ones(1), PERIOD_S)
    assert (motion.seam_step, motion.within_step) == (1.0, 0.0)


@given(episodes, st.permutations(range(3)))
def test_the_order_of_the_axes_says_nothing(actions, order):
    half_range = np.array([1.0, 0.5, 3.0])
    one = measure(actions, half_range=half_range)
    two = measure(actions[:, order], half_range=half_range[order])
    assert asdict(two) == pytest.approx(asdict(one), rel=1e-9, abs=1e-12)


@given(episodes, st.sampled_from([0.5, 4.0, 256.0]))
def test_another_unit_says_nothing(actions, factor):
    # Powers of two, so that no rounding differs.
    units = np.array([factor, 1.0, 1 / factor])
    one = measure(actions)
    assert measure(actions * units, half_range=units) == one


def test_an_axis_counts_by_its_share_of_its_range():
    u = np.concatenate([sine(0.3), sine(0.3)], axis=1)
    both, one = measure(u, half_range=[1, 1e9]), measure(u[:, :1])
    assert asdict(both) == pytest.approx(asdict(one), rel=1e-6)
    assert measure(u).mean_jerk == pytest.approx(math.sqrt(2) * one.mean_jerk)


def test_twice_as_fast_is_four_times_the_jerk_of_a_velocity_and_eight_times_of_a_position():
    u = other(0.3)
    for kind, times in (("velocity", 4), ("position", 8)):
        slow, fast = (measure(u, kinds=kind, period_s=s).mean_jerk for s in (0.1, 0.05))
        assert fast == pytest.approx(times * slow)


def test_a_switch_is_no_motion():
    u = other(0.3)
    switch = np.sign(np.random.default_rng(0).normal(size=(len(u), 1)))
    with_switch = measure(
        np.concatenate([u, switch], axis=1),
        kinds=["velocity", "velocity", "switch"],
        half_range=[1, 1, np.inf],
    )
    assert with_switch == measure(u)


@pytest.mark.parametrize("kinds", ["velocity", "position"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1.0, 1 / 3])
def test_what_stands_still_has_no_jerk_and_no_high_frequencies(kinds, value):
    actions = np.full((23, 3), value, np.float32)
    assert measure(actions, kinds=kinds) == Motion(
        mean_jerk=0, p99_jerk=0, high_share=0, seam_step=0, within_step=0
    )


def test_an_episode_that_is_too_short_tells_nothing():
    assert measure(sine(0.3, MIN_ACTIONS - 1)) is None
    assert measure(sine(0.3, MIN_ACTIONS)) is not None
    assert measure(sine(0.3, 20), execute=20) is None, "no seam"
    assert measure(sine(0.3, 21), execute=20) is not None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 2])
def test_an_action_that_is_not_finite_is_refused(value, axis):
    actions = np.zeros((12, 3))
    actions[7, axis] = value
    kinds = ["velocity", "velocity", "switch"]
    with pytest.raises(ValueError, match=r"action 7 is not finite: \["):
        measure(actions, kinds=kinds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kinds": ["velocity", "position"]},
            "all velocities or all positions, got position and v",
        ),
        ({"kinds": ["switch", "switch"]}, "no axis moves: all of them are switches"),
        ({"kinds": ["velocity", "torque"]}, "one of velocity, position, switch, got 'torque'"),
        ({"kinds": ["velocity"]}, r"1 kinds of axes, but actions are \[20, 2\] and ranges 2"),
        ({"half_range": [1]}, r"2 kinds of axes, but actions are \[20, 2\] and ranges 1"),
        ({"half_range": [1, 0]}, r"positive and finite, got \[1.0, 0.0\]: the robot's limits"),
        ({"half_range": [1, -1]}, "positive and finite"),
        ({"half_range": [1, np.inf]}, "positive and finite"),
        ({"half_range": [np.nan, 1]}, "positive and finite"),
        ({"period_s": 0.0}, "period_s must be positive, got 0.0"),
        ({"period_s": np.nan}, "period_s must be positive, got nan"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        measure(np.zeros((20, 2)), **changes)


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([0, 7, 5], r"chunk starts must go up from 0, got \[0, 7, 5\]"),
        ([0, 5, 5], "chunk starts must go up"),
        ([-1, 5], "chunk starts must go up"),
        ([0, 20], "a chunk starts at 20, behind the 20 actions"),
    ],
)
def test_chunks_that_cannot_be_are_refused(starts, message):
    with pytest.raises(ValueError, match=message):
        measure_motion(np.zeros((20, 1)), starts, ["velocity"], np.ones(1), PERIOD_S)


def test_one_row_of_actions_is_no_episode():
    with pytest.raises(ValueError, match=r"actions are \[3\]"):
        measure_motion(np.zeros(3), [0], ["velocity"] * 3, np.ones(3), PERIOD_S)


def test_a_mean_is_over_the_episodes_that_tell():
    double = Motion(**{name: 2 * getattr(SMOOTH, name) for name in FIGURES})
    mean = mean_motion([SMOOTH, None, double])
    assert asdict(mean) == pytest.approx({n: 1.5 * v for n, v in asdict(SMOOTH).items()})
    assert mean_motion([None]) is mean_motion([]) is None


def test_what_was_written_down_is_read_again():
    assert read_motion(asdict(SMOOTH)) == SMOOTH
    assert read_motion(None) is None


def rough(factor, *, spread=0.0, num=60, figure="mean_jerk"):
    """Episodes whose one figure is about `factor` times that of SMOOTH."""
    random = np.random.default_rng(1)
    factors = factor * np.exp(spread * random.normal(size=num))
    return [replace(SMOOTH, **{figure: getattr(SMOOTH, figure) * f}) for f in factors]


@pytest.mark.parametrize("figure", FIGURES)
def test_each_figure_is_compared_by_itself(figure):
    found = MotionComparison.of([SMOOTH] * 60, rough(1.3, spread=0.1, figure=figure))
    assert found.pairs == 60 and found.left_out == 0
    assert list(found.figures) == list(FIGURES)
    worse = found.figures.pop(figure)
    # 60 draws of a spread of 0.1: the mean log is within 5 standard errors of log(1.3).
    assert math.log(worse.ratio) == pytest.approx(math.log(1.3), abs=5 * 0.1 / math.sqrt(60))
    assert 1 < worse.low < worse.ratio < worse.high
    assert worse.first == pytest.approx(getattr(SMOOTH, figure))
    assert worse.this == pytest.approx(worse.ratio * worse.first, rel=0.02)
    assert all((f.ratio, f.low, f.high) == (1, 1, 1) for f in found.figures.values())


def test_pairs_of_which_one_tells_nothing_are_left_out_and_counted():
    first = [SMOOTH, None, SMOOTH, None]
    found = MotionComparison.of(first, [None, SMOOTH, SMOOTH, None])
    assert (found.pairs, found.left_out) == (1, 3)
    assert MotionComparison.of(first, [None, SMOOTH, None, SMOOTH]) is None
    with pytest.raises(ValueError):
        MotionComparison.of(first, first[:3])


def test_a_tremor_is_found_in_pairs_that_differ_by_more_than_it():
    # Episodes of very different jerk, each 3 % worse: no mean over episodes would show it.
    random = np.random.default_rng(2)
    first = [replace(SMOOTH, mean_jerk=j) for j in np.exp(random.normal(size=200))]
    this = [replace(m, mean_jerk=m.mean_jerk * 1.03) for m in first]
    worse = MotionComparison.of(first, this).figures["mean_jerk"]
    assert (worse.low, worse.ratio, worse.high) == pytest.approx((1.03, 1.03, 1.03))


@given(episodes)
def test_every_figure_is_finite_and_a_share_is_one(actions):
    figures = asdict(measure(actions))
    assert all(0 <= value < math.inf for value in figures.values())
    assert figures["high_share"] <= 1
    assert figures["mean_jerk"] <= figures["p99_jerk"] * (1 + TIGHT) or len(actions) > 100
