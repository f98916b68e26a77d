"""A robot of ROS 2 behind `Robot`, driven over its topics.

With the real `rclpy` where there is one (`make test-ros2`), else with the stand-in of
`stand_ins/ros2.py`; the name of each test says with which.
"""

import importlib.util
import math
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest

from runtime.errors import RobotError
from runtime.robots import live, ros2, testing
from runtime.robots.joints import Joint
from runtime.robots.ros2 import Ros2Robot, RosCamera
from runtime.robots.testing import check_robot
from tests.runtime.stand_ins.ros2 import modules

IS_REAL = importlib.util.find_spec("rclpy") is not None
PATIENCE_S = 5.0 if IS_REAL else 0.3
"""With topics on which nothing comes; the real one has to find the others first."""
JOINTS = (
    Joint(name="pan", unit="rad", robot_unit="rad", low=-1, high=1),
    Joint(name="lift", unit="deg", robot_unit="rad", low=-90, high=90),
    Joint(name="finger", unit="fraction", robot_unit="fraction", low=0, high=1, control="gripper"),
)
NAMES = ["finger", "pan", "wheel", "lift"]
"""Order of the driver, which has one joint more."""


class Driver:
    """The other end: a camera, joints that are at once where they are told to be, an operator."""

    def __init__(self):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import Image, JointState
        from std_msgs.msg import String
        from trajectory_msgs.msg import JointTrajectory

        self.rclpy, self.make_image, self.make_state, self.make_text = (
            rclpy, Image, JointState, String
        )  # fmt: skip
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("driver", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.images = self.node.create_publisher(Image, "/image", 10)
        self.states = self.node.create_publisher(JointState, "/joint_states", 10)
        self.texts = self.node.create_publisher(String, "/say", 10)
        self.told = []
        self.node.create_subscription(JointTrajectory, "/arm", self.take, 10)
        self.executor.add_node(self.node)
        self.places = {"pan": 0.5, "lift": 0.25, "finger": 0.75, "wheel": 9.0}
        self.count = 0

    def take(self, message):
        self.told.append(message)
        self.places |= dict(zip(message.joint_names, message.points[0].positions, strict=True))

    def stamp(self, message, age_s=0.0):
        ns = self.node.get_clock().now().nanoseconds - round(age_s * 1e9)
        message.header.stamp.sec, message.header.stamp.nanosec = ns // 10**9, ns % 10**9
        return message

    def image(self, age_s=0.0, encoding="rgb8", height=2, width=3, step=9, data=None):
        self.count += 1
        message = self.make_image(height=height, width=width, encoding=encoding, step=step)
        message.data = bytes([self.count % 256]) * step * height if data is None else data
        self.images.publish(self.stamp(message, age_s))

    def state(self, age_s=0.0, names=NAMES, **places):
        places = self.places | places
        message = self.make_state(name=names, position=[float(places[n]) for n in names])
        self.states.publish(self.stamp(message, age_s))

    def unstamped(self):
        message = self.make_image(height=2, width=3, encoding="rgb8", step=9)
        message.data = bytes(18)
        self.images.publish(message)

    def say(self, text):
        self.texts.publish(self.make_text(data=text))

    def spin(self):
        """Until a trajectory came."""
        num_told, until = len(self.told), time.monotonic() + 10
        while len(self.told) == num_told and time.monotonic() < until:
            self.executor.spin_once(timeout_sec=0.1)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.rclpy.shutdown(context=self.context)


@pytest.fixture(params=["real" if IS_REAL else "stand_in"])
def driver(monkeypatch):
    if not IS_REAL:
        for name, module in modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    # However slow this machine is; what is refused for its age is older by far.
    monkeypatch.setattr(ros2, "OLDEST_IMAGE_S", 20.0)
    monkeypatch.setattr(ros2, "OLDEST_STATE_S", 10.0)
    monkeypatch.setattr(live, "DEAD_S", 60.0)
    monkeypatch.setattr(live, "REREAD_S", 0.0)
    driver = Driver()
    yield driver
    driver.close()


def robot_of(**changes):
    given = {
        "cameras": {"frame": RosCamera("/image", 2, 3)},
        "trajectories": "/arm",
        "instructions": "/say",
        "patience_s": 20.0,
    } | changes
    return Ros2Robot("pick it up", JOINTS, **given)


class Alive:
    """The driver publishes in a thread of its own, until the block ends."""

    def __init__(self, driver):
        self.driver, self.ends = driver, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.ends.wait(0.005):
            self.driver.image()
            self.driver.state()
            self.driver.executor.spin_once(timeout_sec=0)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.ends.set()
        self.thread.join()


def started(driver, **changes):
    """A robot that has seen a first picture and state; the driver is silent from then on."""
    robot = robot_of(**changes)
    with Alive(driver):
        robot.reset()
    time.sleep(0.1 * IS_REAL)  # what is on its way arrives
    robot.observe()
    driver.told.clear()
    return robot


def shown(robot, is_there):
    """The first observation of which it holds; publishing takes its time."""
    until = time.monotonic() + 10
    while not is_there(seen := robot.observe()) and time.monotonic() < until:
        time.sleep(0.01)
    return seen


def test_it_keeps_every_promise_of_a_robot(driver, monkeypatch):
    monkeypatch.setattr(testing, "MOST_SENDS", 10)  # it is never done
    with Alive(driver):
        check_robot(robot_of)


def test_joints_are_taken_by_name_and_sent_in_ros_units_within_the_limits(driver):
    with started(driver) as robot:
        state_A = robot.observe().values["state"]
        np.testing.assert_allclose(state_A, [0.5, math.degrees(0.25), 0.75], rtol=1e-6)
        sent_A = robot.send(np.array([2.0, 45.0, 0.5], np.float32))
        np.testing.assert_array_equal(sent_A, np.float32([1.0, 45.0, 0.5]))
        driver.spin()
    (message,) = driver.told
    assert list(message.joint_names) == ["pan", "lift", "finger"]
    np.testing.assert_allclose(message.points[0].positions, [1.0, math.pi / 4, 0.5], rtol=1e-6)
    after = message.points[0].time_from_start
    assert (after.sec, after.nanosec) == (0, 50_000_000)


def test_a_picture_is_rgb_without_padding_and_as_old_as_its_header_says(driver):
    with started(driver) as robot:
        before, number = time.monotonic(), robot.observe().frame_ids["frame"]
        rows = [
            b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\xff",
            b"\x11\x12\x13\x14\x15\x16\x17\x18\x19\xff",
        ]
        driver.image(age_s=-0.005, encoding="bgr8", step=10, data=b"".join(rows))
        seen = shown(robot, lambda seen: seen.frame_ids["frame"] > number)
        after = time.monotonic()
    assert seen.values["frame"][0].tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert seen.values["frame"][1].tolist() == [[19, 18, 17], [22, 21, 20], [25, 24, 23]]
    assert before + 0.004 <= seen.at["frame"] <= after + 0.006


def test_a_state_that_was_under_way_is_that_much_older(driver):
    robot = robot_of()
    with robot:
        ends = threading.Event()

        def publish():
            while not ends.wait(0.01):
                driver.image(age_s=3.0)
                driver.state(age_s=4.0)

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            before = time.monotonic()
            seen = robot.reset()
            after = time.monotonic()
        finally:
            ends.set()
            thread.join()
    assert before - 3.1 <= seen.at["frame"] <= after - 2.99
    assert before - 4.1 <= seen.at["state"] <= after - 3.99


@pytest.mark.parametrize(
    ("publish", "why"),
    [
        (Driver.unstamped, "frame: no stamp"),
        (partial(Driver.image, age_s=30.0), "frame: older than 20 s when it came"),
        (partial(Driver.image, age_s=-5.0), "frame: a stamp ahead of this machine's clock"),
        (partial(Driver.image, age_s=15.0), "frame: captured before the last"),
        (partial(Driver.image, encoding="mono8"), "frame: encoding 'mono8', expected rgb8 or bgr8"),
        (partial(Driver.image, height=3), "frame: 3 x 3, declared is 2 x 3"),
        (partial(Driver.image, step=8), "frame: 16 bytes in rows of 8"),
        (partial(Driver.image, data=bytes(17)), "frame: 17 bytes in rows of 9"),
        (partial(Driver.state, age_s=15.0), "state: older than 10 s when it came"),
        (partial(Driver.state, names=["pan", "lift"]), "state: no joint 'finger'"),
        (partial(Driver.state, pan=math.nan), "state: positions that are no numbers"),
        (partial(Driver.say, text="  "), "instruction: empty"),
    ],
)
def test_what_nobody_should_use_is_refused_and_counted_and_the_last_good_stays(
    driver, publish, why
):
    with started(driver) as robot:
        good, before = robot.observe(), robot.refused.copy()
        publish(driver)
        seen = shown(robot, lambda seen: robot.refused != before)
    (refused,) = robot.refused - before
    assert refused.startswith(why)
    assert seen.at == good.at and seen.frame_ids == good.frame_ids
    assert robot.instruction == "pick it up"


def test_degrees_in_a_joint_state_end_the_episode(driver):
    with started(driver) as robot:
        driver.state(pan=28.6)
        with pytest.raises(RobotError, match="'pan' stands at 28.6 rad, which looks like degrees"):
            shown(robot, lambda seen: False)


def test_a_new_instruction_is_passed_on(driver):
    heard = []
    with started(driver, on_instruction=heard.append) as robot:
        driver.say("touch the red marker")
        shown(robot, lambda seen: bool(heard))
        assert heard == ["touch the red marker"] == [robot.instruction]


def test_a_held_arm_is_told_one_place_and_keeps_its_grip(driver):
    with started(driver) as robot:
        robot.send(np.array([0.1, 0.0, 0.125], np.float32))
        driver.spin()
        at = robot.observe().at["state"]
        driver.state(pan=0.2, finger=0.5)
        shown(robot, lambda seen: seen.at["state"] > at)
        robot.hold()
        driver.spin()
        driver.state(pan=0.3)
        robot.hold()
        driver.spin()
    first, again = (message.points[0].positions for message in driver.told[-2:])
    assert list(first) == list(again) == [0.2, 0.0, 0.125]


def test_a_topic_that_is_silent_is_named_and_nothing_is_left_open(driver):
    robot = robot_of(patience_s=PATIENCE_S, cameras={"frame": RosCamera("/other", 2, 3)})
    with Alive(driver), pytest.raises(RobotError, match=r"within .* s on /other \(0 publishers\)"):
        robot.reset()
    with pytest.raises(RobotError, match="outside an episode"):
        robot.observe()
    robot = robot_of(patience_s=PATIENCE_S, trajectories="/nobody")
    with Alive(driver), pytest.raises(RobotError, match=r"/nobody \(no controller listens\)"):
        robot.reset()
    if not IS_REAL:
        assert driver.rclpy.bus.num_contexts == 1  # the driver's


def test_a_robot_without_ros_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    with pytest.raises(RobotError, match="ROS 2 is not to be had in this Python .* setup.bash"):
        robot_of().reset()


def test_what_a_trajectory_cannot_carry_is_refused():
    wheel = Joint(name="w", unit="m/s", robot_unit="m/s", low=-1, high=1, control="velocity")
    with pytest.raises(RobotError, match="'w': a trajectory has no velocities"):
        Ros2Robot("go", [wheel], cameras={}, trajectories="/arm")
    with pytest.raises(RobotError, match="'state' cannot be both a camera and the state"):
        Ros2Robot("go", JOINTS, cameras={"state": RosCamera("/a", 2, 2)}, trajectories="/arm")
