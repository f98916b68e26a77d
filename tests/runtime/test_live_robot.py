"""What `LiveRobot` keeps for whoever inherits it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import RobotError
from runtime.robots.live import DEAD_S, REREAD_S, LiveRobot
from runtime.robots.robot import Limits, Sensor


class Arm(LiveRobot):
    """A camera that writes into one buffer, on a clock that the test moves."""

    instruction = "go"
    inputs = {
        "frame": Sensor("image", (2, 2, 3), "uint8"),
        "state": Sensor("vector", (1,), "float32"),
    }
    limits = Limits(np.array([-1.0]), np.array([1.0]), ("m",), ("x",))

    def __init__(self):
        super().__init__()
        self.time_s, self.captured_s, self.num_reads = 10.0, 10.0, 0
        self.now = lambda: self.time_s
        self.buffer, self.state, self.told = (
            np.zeros((2, 2, 3), np.uint8),
            np.zeros(1, np.float32),
            [],
        )
        self.answer = None

    def connect(self):
        self.told.append("connect")

    def read(self):
        self.num_reads += 1
        self.buffer += 1
        return {"frame": (self.buffer, self.captured_s), "state": (self.state, self.time_s)}

    def command(self, action_A):
        self.told.append(action_A)
        return self.answer

    def halt(self):
        self.told.append("halt")

    def disconnect(self):
        self.told.append("disconnect")


@pytest.fixture
def arm():
    with Arm() as arm:
        yield arm


def test_what_a_driver_writes_into_again_stays_as_it_was_shown(arm):
    first = arm.reset()
    arm.time_s = arm.captured_s = 10.5
    second = arm.observe()
    assert (first.values["frame"][0, 0, 0], second.values["frame"][0, 0, 0]) == (1, 2)
    assert (first.frame_ids["frame"], second.frame_ids["frame"]) == (0, 1)


def test_it_reads_once_for_looks_that_follow_at_once_and_anew_after_a_while_or_a_command(arm):
    first = arm.reset()
    arm.time_s += REREAD_S / 2
    assert arm.observe() is first and arm.num_reads == 1
    arm.time_s += REREAD_S
    assert arm.observe() is not first and arm.num_reads == 2
    arm.send(np.zeros(1, np.float32))
    arm.observe()
    arm.hold()
    arm.observe()
    assert arm.num_reads == 4


def test_a_picture_that_is_not_newer_is_the_last_one_and_an_older_one_is_counted(arm):
    first = arm.reset()
    arm.time_s += 0.1
    same = arm.observe()
    assert not arm.refused
    arm.time_s, arm.captured_s = arm.time_s + 0.1, 9.99
    older = arm.observe()
    for seen in (same, older):
        assert (seen.at["frame"], seen.frame_ids["frame"]) == (10.0, 0)
        np.testing.assert_array_equal(seen.values["frame"], first.values["frame"])
    assert older.at["state"] == arm.time_s
    assert arm.refused == {"frame: captured before the last": 1}


@pytest.mark.parametrize("age_s", [DEAD_S + 0.01, np.nan])
def test_a_value_that_is_too_old_ends_the_episode(arm, age_s):
    arm.reset()
    arm.time_s, arm.captured_s = 20.0, 20.0 - age_s
    with pytest.raises(RobotError, match=r"'frame' was captured (1\.01|nan) s ago, more than 1 s"):
        arm.observe()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (np.zeros(2, np.float32), r"'state' as float32 \[2\], inputs declares float32 \[1\]"),
        (np.zeros(1), r"'state' as float64 \[1\], inputs declares float32 \[1\]"),
        (np.full(1, np.nan, np.float32), r"'state' as \[nan\]: see to the encoders"),
    ],
)
def test_what_is_not_as_declared_ends_the_episode_and_the_robot_is_let_go(arm, state, words):
    arm.state = state
    with pytest.raises(RobotError, match=words):
        arm.reset()
    assert arm.told == ["connect", "disconnect"]


def test_what_was_carried_out_instead_is_told(arm):
    arm.reset()
    arm.answer = np.array([0.25], np.float32)
    assert arm.send(np.array([5.0], np.float32)).tolist() == [0.25]
    assert arm.told[-1].tolist() == [1.0]


PROGRAM = """
import sys
from tests.runtime.test_live_robot import Arm
class Loud(Arm):
    def disconnect(self):
        print("let go", flush=True)
Loud().reset()
sys.exit(3)
"""


def test_a_process_that_ends_without_closing_lets_the_robot_go():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "let go\n"), done.stderr
