"""Frames that are not new are counted and not used; capture times are on the machine's clock."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.robots.cameras.checks import WINDOW_S, CaptureClock, FrameChecks

PERIOD_S = 1 / 30


class Judged:
    """A camera's frames, by number and stamp; each comes 10 ms after it was captured."""

    def __init__(self):
        self.counts = Counter()
        self.checks = FrameChecks(lambda what, number: self.counts.update({what: number}))
        self.now = 100.0

    def take(self, number, stamp_s):
        self.now += PERIOD_S
        return self.checks.captured_at(number, stamp_s, self.now) is not None


def test_good_frames_are_used_and_gaps_in_their_numbers_counted():
    judged = Judged()
    for number in (5, 6, 7, 10, 11, 15):
        assert judged.take(number, number * PERIOD_S)
    assert judged.counts == {"frames": 6, "dropped frames": 5}


def test_a_frozen_frame_number_is_no_new_frame():
    judged = Judged()
    assert judged.take(1, 1.0)
    assert not any(judged.take(1, 1.0 + n) for n in range(1, 4))
    assert judged.take(2, 5.0)
    assert judged.counts == {"frames": 2, "repeated frame numbers": 3}


def test_a_frame_number_that_jumps_back_is_not_used_until_it_is_ahead_again():
    judged = Judged()
    used = [judged.take(number, 1.0 + n) for n, number in enumerate((7, 8, 3, 4, 9))]
    assert used == [True, True, False, False, True]
    assert judged.counts == {"frames": 3, "frame numbers back": 2}


@pytest.mark.parametrize("stamp_s", [2.0, 1.9, -1e6, math.nan])
def test_a_stamp_that_does_not_go_forward_is_not_used(stamp_s):
    judged = Judged()
    assert judged.take(1, 1.0) and judged.take(2, 2.0)
    assert not judged.take(3, stamp_s)
    assert judged.take(4, 2.1)
    # What was thrown away is not counted a second time, as dropped.
    assert judged.counts == {"frames": 3, "stamps back": 1}


def test_a_camera_without_stamps_is_stamped_when_a_frame_comes():
    checks = FrameChecks(lambda what, number: None)
    assert checks.captured_at(1, None, 12.5) == 12.5
    assert checks.captured_at(2, None, 12.6) == 12.6


@settings(deadline=None)
@given(
    st.lists(st.floats(0.0, 0.3), min_size=1, max_size=40),
    st.floats(-1e6, 1e6),
    st.floats(0.0, 50e-6),
)
def test_capture_times_are_off_by_the_least_delay_and_the_drift_alone(late_s, offset_s, drift):
    """True times are known: frames captured once in 0.5 s, and late by 5 ms and what hypothesis
    likes, on a device whose clock has an offset and runs fast."""
    clock, arrived, found = CaptureClock(), -math.inf, []
    truth = 1000.0 + 0.5 * np.arange(len(late_s))
    arrivals = np.maximum.accumulate(truth + 0.005 + np.array(late_s))
    for captured, arrived in zip(truth, arrivals, strict=True):
        found.append(clock.at(offset_s + captured * (1 + drift), arrived))
    least = np.array([min((arrivals - truth)[max(0, n - 20) : n + 1]) for n in range(len(truth))])
    errors = np.array(found) - truth
    # An offset is kept for two windows at most, in which the clock drifts away from it; stamps of
    # 1e6 s have a resolution of 1e-10 s.
    drifted = 2 * WINDOW_S * drift + 1e-8
    seen = np.minimum.accumulate(arrivals - truth)
    assert (errors <= least + drifted).all() and (errors >= seen - drifted).all()
    assert (np.array(found) <= arrivals + 1e-8).all()
    assert (np.diff(found) > 0).all()


def test_an_old_offset_is_forgotten():
    """A clock that is set forward by an hour stays so, and one delay is not believed for ever."""
    clock = CaptureClock()
    for n in range(100):
        clock.at(n * 1.0, 50.0 + n)  # arrives at once
    # From now on 30 ms late: older than it seems for two windows, and the offset is 30 ms then.
    late = [clock.at(100.0 + n, 150.03 + n) - (150.03 + n) for n in range(60)]
    assert late[0] == pytest.approx(-0.03, abs=1e-9)
    assert late[-1] == pytest.approx(0.0, abs=1e-9)
