"""LeRobot's robots behind `Robot`: names, units, order, holding still, and an end on every path.

The arm is a stand-in with LeRobot's methods (`stand_ins/lerobot_arm.py`).
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.errors import RobotError
from runtime.robots import testing
from runtime.robots.joints import Joint
from runtime.robots.lerobot import LeRobotRobot
from runtime.robots.testing import check_robot
from tests.runtime.stand_ins.lerobot_arm import Arm

JOINTS = (
    Joint(name="shoulder_pan.pos", unit="rad", robot_unit="deg", low=-1.5, high=1.5),
    Joint(name="elbow_flex.pos", unit="rad", robot_unit="deg", low=-1.0, high=1.0),
    Joint(name="gripper.pos", unit="fraction", robot_unit="percent", low=0, high=1,
          control="gripper"),
)  # fmt: skip


def connected(arm=None, joints=JOINTS, **changes):
    given = {"instruction": "pick it up", "cameras": {"frame": "front"}} | changes
    return LeRobotRobot(arm or Arm(), joints=joints, **given)


def test_it_keeps_every_promise_of_a_robot(monkeypatch):
    monkeypatch.setattr(testing, "MOST_SENDS", 20)  # it is never done
    monkeypatch.setattr(testing, "LOOK_AGAIN_S", 0.02)
    check_robot(connected)


def test_numbers_are_in_the_policys_units_both_ways_and_in_the_declared_order():
    arm = Arm()
    with connected(arm) as robot:
        state_A = robot.reset().values["state"]
        np.testing.assert_allclose(state_A, [math.radians(10), math.radians(-20), 0.4], rtol=1e-6)
        sent_A = robot.send(np.array([0.5, 2.0, 0.25], np.float32))
        np.testing.assert_array_equal(sent_A, np.float32([0.5, 1.0, 0.25]))
        assert list(arm.told[0]) == ["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"]
        told = [math.degrees(0.5), math.degrees(1.0), 25.0]
        np.testing.assert_allclose(list(arm.told[0].values()), told, rtol=1e-6)
        assert robot.limits.units == ("rad", "rad", "fraction")


def test_what_lerobot_sent_instead_is_told_in_the_policys_units():
    class Careful(Arm):
        def send_action(self, action):
            return super().send_action({**action, "elbow_flex.pos": -20.0})

    with connected(Careful()) as robot:
        robot.reset()
        sent_A = robot.send(np.array([0.5, 0.5, 0.25], np.float32))
        np.testing.assert_allclose(sent_A, [0.5, math.radians(-20), 0.25], rtol=1e-6)


@pytest.mark.parametrize(
    ("robot_unit", "norm_mode", "words"),
    [
        ("rad", "degrees", "declared in rad, and LeRobot scales this motor to deg"),
        ("deg", "range_m100_100", "declared in deg, and LeRobot scales this motor to normalized"),
    ],
)
def test_a_unit_that_lerobot_contradicts_is_refused_before_anything_moves(
    robot_unit, norm_mode, words
):
    arm = Arm(norm_mode=norm_mode)
    first = Joint(name="shoulder_pan.pos", unit="rad", robot_unit=robot_unit, low=-1, high=1)
    with pytest.raises(RobotError, match=words):
        connected(arm, (first, *JOINTS[1:]))
    assert arm.num_connects == 0


def test_degrees_that_nobody_told_of_are_found_by_their_size():
    arm = Arm()
    del arm.bus
    first = Joint(name="shoulder_pan.pos", unit="rad", robot_unit="rad", low=-1, high=1)
    robot = connected(arm, (first, *JOINTS[1:]))
    with pytest.raises(RobotError, match="'shoulder_pan.pos' stands at 10 rad, which looks like"):
        robot.reset()
    assert not arm.is_connected and arm.told == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"low": -90, "high": 90}, "-90 to 90 rad looks like degrees; write low and high"),
        ({"robot_unit": "mm"}, r"mm \(length\) cannot be converted to rad \(angle\)"),
        ({"robot_unit": "grad"}, "the unit 'grad' is none of rad, deg"),
        ({"low": 1, "high": 1}, "must have low < high, got 1 and 1"),
    ],
)
def test_a_joint_that_cannot_be_is_refused(fields, words):
    whole = {"name": "a", "unit": "rad", "robot_unit": "deg", "low": -1, "high": 1}
    with pytest.raises(ValueError, match=words):
        Joint(**(whole | fields))


@pytest.mark.parametrize(
    ("joints", "words"),
    [
        (JOINTS[:2], "declare 'gripper.pos' too"),
        ((JOINTS[1], JOINTS[0], JOINTS[2]), "number 0 is declared as 'elbow_flex.pos'"),
    ],
)
def test_other_motors_or_another_order_than_lerobots_are_refused(joints, words):
    with pytest.raises(RobotError, match=words):
        connected(joints=joints)


def test_what_is_no_robot_of_lerobot_or_lacks_a_camera_is_refused():
    with pytest.raises(RobotError, match="SimpleNamespace has no connect: give a robot of LeRobot"):
        connected(SimpleNamespace())
    with pytest.raises(RobotError, match="'wrist' for input 'frame' is none .* has front"):
        connected(cameras={"frame": "wrist"})


def test_a_held_arm_is_told_one_place_though_it_sags_and_keeps_its_grip():
    arm = Arm()
    arm.sag = 3.0
    with connected(arm) as robot:
        robot.reset()
        robot.send(np.array([0.1, 0.2, 0.1], np.float32))
        grip = arm.told[-1]["gripper.pos"]
        arm.places["gripper.pos"] = 55.0  # something is between the fingers
        robot.hold()
        robot.observe()
        robot.hold()
    first, again = arm.told[-2:]
    assert first == again and first["gripper.pos"] == grip
    assert first["elbow_flex.pos"] == pytest.approx(math.degrees(0.2) - 3.0, abs=1e-4)


def test_an_arm_whose_camera_is_gone_still_holds_by_its_last_command():
    arm = _Fails()
    with connected(arm) as robot:
        robot.reset()
        robot.send(np.array([0.1, 0.2, 0.1], np.float32))
        arm.where, arm.num_looks = "read", 9
        with pytest.raises(RobotError, match="read failed"):
            robot.observe()
        robot.hold()
    assert arm.told[1:] == [arm.told[0]]


def test_a_wheel_that_is_held_stops():
    arm = Arm()
    arm.places = {"x.vel": 0.3}
    wheel = Joint(name="x.vel", unit="m/s", robot_unit="m/s", low=-1, high=1, control="velocity")
    with connected(arm, [wheel]) as robot:
        robot.reset()
        robot.hold()
    assert arm.told == [{"x.vel": 0.0}]


def test_a_picture_is_as_old_as_its_camera_says_and_the_same_one_twice_is_one():
    arm, now = Arm(), SimpleNamespace(s=100.0)
    arm.cameras["front"].latest_timestamp = 99.9
    robot = connected(arm)
    robot.now = lambda: now.s
    with robot:
        first = robot.reset()
        assert (first.at["frame"], first.at["state"]) == (99.9, 100.0)
        now.s, arm.cameras["front"].latest_timestamp = 100.05, 100.07
        second = robot.observe()
        assert (second.at["frame"], second.frame_ids["frame"]) == (100.05, 1)
        arm.picture = lambda: second.values["frame"].copy()  # the camera hangs
        now.s = 100.1
        third = robot.observe()
        assert (third.at["frame"], third.frame_ids["frame"]) == (100.05, 1)
        assert third.at["state"] == 100.1


class _Fails(Arm):
    where = ""

    def get_observation(self):
        if self.where == "read" and self.num_looks > 2:
            raise ConnectionError("no status packet")
        return super().get_observation()

    def connect(self, calibrate=True):
        super().connect(calibrate)
        if self.where == "connect":
            raise ConnectionError("no camera")

    def send_action(self, action):
        if self.where == "send":
            raise ConnectionError("no status packet")
        return super().send_action(action)


@pytest.mark.parametrize("where", ["connect", "read", "send"])
def test_whatever_fails_it_is_disconnected_once_and_the_first_error_is_told(where):
    arm = _Fails()
    arm.where = where
    words = {"connect": "connect", "read": "read", "send": "command"}[where]
    failed = pytest.raises(RobotError, match=f"LeRobotRobot.{words} failed: ConnectionError")
    with failed, connected(arm) as robot:
        robot.reset()
        for _ in range(5):
            robot.send(np.zeros(3, np.float32))
            robot.observe()
    assert (arm.is_connected, arm.num_disconnects) == (False, 1)


def test_an_arm_that_is_not_calibrated_is_let_go_and_one_that_is_connected_is_taken():
    arm = Arm()
    arm.is_calibrated = False
    with pytest.raises(RobotError, match="run lerobot-calibrate first"):
        connected(arm).reset()
    assert arm.num_disconnects == 1
    arm = Arm()
    arm.connect(calibrate=False)
    with connected(arm) as robot:
        robot.reset()
    assert (arm.num_connects, arm.num_disconnects) == (1, 1)
