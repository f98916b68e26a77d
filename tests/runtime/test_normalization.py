"""Robot units to policy units and back, against the formulas of the formats' authors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.normalization import Normalization, choose_robot

STATISTICS = {
    "min": [-2.0, 0.0, 5.0, -1.0],
    "max": [2.0, 1.0, 9.0, 1.0],
    "mean": [0.5, 0.5, 7.0, 0.0],
    "std": [0.25, 0.1, 2.0, 1.0],
    "q01": [-1.5, 0.1, 5.5, -1.0],
    "q99": [1.0, 0.9, 8.5, 1.0],
}


def make(*modes, units=None, statistics=STATISTICS):
    units = units or ["m"] * len(modes)
    return Normalization.from_statistics(statistics, modes, units, what="robot.action")


def test_each_mode_follows_its_formula():
    actions = make("q99", "min_max", "mean_std", "identity").to_robot(
        np.array([0.5, -0.5, 2.0, 3.0], np.float32)
    )
    x, q01, q99 = 0.5, -1.5, 1.0
    np.testing.assert_allclose(actions, [(x + 1) / 2 * (q99 - q01) + q01, 0.25, 11.0, 3.0])


def test_binary_thresholds_actions_and_passes_states():
    gripper = make("q99", "min_max", "mean_std", "binary")
    assert gripper.to_robot(np.array([0, 0, 0, 0.51], np.float32))[3] == 1.0
    assert gripper.to_robot(np.array([0, 0, 0, 0.5], np.float32))[3] == 0.0
    assert gripper.to_policy(np.array([0, 0, 0, 0.3], np.float32))[3] == np.float32(0.3)


@given(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4))
def test_there_and_back_is_the_same(values):
    both = make("q99", "min_max", "mean_std", "identity")
    x = np.array(values, np.float32)
    # Two roundings per direction, on numbers of the size of the offset (7) over a scale of 2.
    np.testing.assert_allclose(both.to_policy(both.to_robot(x)), x, atol=1e-6)


@pytest.mark.parametrize(
    ("modes", "statistics", "message"),
    [
        (["q98"], STATISTICS, r"robot.action\[0\]: unknown mode 'q98', know \['q99'"),
        (["q99"], {}, "the statistics hold no 'q01', only"),
        (["q99"], {"q01": [0.0], "q99": [0.0]}, r"q01 >= q99 \(0.0 >= 0.0\).*never moved"),
        (["min_max"], {"min": [1.0], "max": [0.0]}, "min >= max"),
        (["mean_std"], {"mean": [1.0], "std": [0.0]}, "std must be above zero, got 0.0"),
        (["q99"], {"q01": [0.0, 1.0], "q99": [1.0]}, "'q01' has 2 numbers for 1 dimensions"),
        (["q99"], {"q01": [float("nan")], "q99": [1.0]}, "q01 is nan"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(modes, statistics, message):
    with pytest.raises(ValueError, match=message):
        make(*modes, statistics=statistics)


def test_degrees_where_radians_are_meant_are_refused():
    statistics = {"q01": [-90.0], "q99": [90.0]}
    with pytest.raises(ValueError, match="more than a full turn: are the statistics in degrees"):
        make("q99", units=["rad"], statistics=statistics)


def test_a_robot_is_never_guessed():
    assert choose_robot({"bridge": {}}, None) == "bridge"
    with pytest.raises(ValueError, match=r"2 robots, choose one of \['a', 'b'\]"):
        choose_robot({"a": {}, "b": {}}, None)
    with pytest.raises(ValueError, match=r"no statistics for robot 'c'; there are \['a', 'b'\]"):
        choose_robot({"a": {}, "b": {}}, "c")
