"""Statistics in the layouts in use: read, or recognised and refused with the way to mend them."""

import json

import pytest

from models.statistics import read_statistics

VECTOR = {"mean": [0.0], "std": [1.0], "min": [-1.0], "max": [1.0], "q01": [-0.9], "q99": [0.9]}
OPENVLA = {"action": VECTOR | {"mask": [True]}, "proprio": VECTOR, "num_transitions": 7}


def write(folder, content):
    path = folder / "dataset_statistics.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_layout_of_starvla_is_read_as_it_is(tmp_path):
    statistics = {"arm": {"action": VECTOR, "state": VECTOR, "num_trajectories": 3}}
    assert read_statistics(write(tmp_path, statistics)) == statistics


def test_in_the_layout_of_openvla_proprio_is_the_state(tmp_path):
    state = VECTOR | {"max": [2.0]}
    found = read_statistics(write(tmp_path, {"arm": OPENVLA | {"proprio": state}, "leg": OPENVLA}))
    assert found["arm"]["state"] == state and "proprio" not in found["arm"]
    assert found["arm"]["action"] == OPENVLA["action"]
    assert found["leg"]["state"] == VECTOR


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no robot"),
        ("[]", "must be an object, got list"),
        ('{"arm": ', "not JSON"),
        ("version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer, not the file itself"),
        ({"arm": None}, "arm must be an object with 'action' and 'state', got None"),
        ({"arm": {"action": VECTOR}}, r"arm lacks 'state' \(or proprio\), it has \['action'\]"),
        ({"arm": {"state": VECTOR, "num": 3}}, r"arm lacks 'action', it has \['num', 'state'\]"),
        ({"arm": {"state": VECTOR, "action": [1]}}, r"arm.action must be an object, got \[1\]"),
        ({"arm": OPENVLA | {"state": VECTOR}}, "arm has both 'state' and 'proprio'; remove one"),
        (
            {"observation.state": VECTOR, "action": VECTOR, "timestamp": VECTOR},
            "these are LeRobot's meta/stats.json; make of its 'action' and 'observation.state'",
        ),
        (OPENVLA, r"holds \['action', 'proprio'\] without a robot around them; make it .\"NAME\""),
        ({"action": VECTOR}, r"holds \['action'\] without a robot around them"),
    ],
)
def test_what_is_no_statistics_of_robots_is_refused_with_what_to_do(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"dataset_statistics.json: {message}"):
        read_statistics(write(tmp_path, content))
