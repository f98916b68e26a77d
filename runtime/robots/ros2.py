"""A robot of ROS 2 as a `Robot`: images, joint states and instructions in, joint trajectories out.

    joint = partial(Joint, unit="rad", robot_unit="rad")
    robot = Ros2Robot("pick up the cube", [joint(name="shoulder_pan_joint", ...), ...],
                      cameras={"frame": RosCamera("/camera/color/image_raw", 480, 640)},
                      trajectories="/arm_controller/joint_trajectory")

`rclpy` comes with ROS 2 and is imported when the robot is connected. Messages are taken where the
loop looks, in its thread: of each topic the newest, of which nobody else keeps a queue. Their
headers say when they were captured, in ROS time; what of it has passed by then is taken off
`time.monotonic()`. Without a stamp, with one of the future or too old, out of order, or in another
form, a message is refused and counted, and the last good one is shown, with its age.

A = joint, H, W = image height and width.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RobotError
from .joints import Joint, Joints
from .live import LiveRobot, Reading
from .robot import AHEAD_S, OLDEST_IMAGE_S, OLDEST_STATE_S, Sensor

MOST_TAKEN = 32
"""Messages of all topics taken at one look."""
ENCODINGS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0)}
"""Where red, green and blue lie."""


@dataclass(frozen=True, slots=True)
class RosCamera:
    """A topic of `sensor_msgs/msg/Image`, encoded as rgb8 or bgr8."""

    topic: str
    height: int
    width: int


class Ros2Robot(LiveRobot):
    """Joints of one trajectory controller, and cameras. Only positions and grippers are sent.

    Raises:
        RobotError: a joint is a velocity, or one input has two sources.
    """

    def __init__(
        self,
        instruction: str,
        joints: Sequence[Joint],
        *,
        cameras: Mapping[str, RosCamera],
        trajectories: str,
        joint_states: str = "/joint_states",
        instructions: str | None = None,
        on_instruction: Callable[[str], None] = lambda text: None,
        state: str = "state",
        period_s: float = 0.05,
        patience_s: float = 10.0,
    ) -> None:
        """
        Args:
            instruction: what the operator wants, until a message says otherwise.
            joints: of action and state, in the policy's order, by their names in ROS.
            cameras: by the name of the policy's input.
            trajectories: topic of `trajectory_msgs/msg/JointTrajectory`.
            joint_states: topic of `sensor_msgs/msg/JointState`.
            instructions: topic of `std_msgs/msg/String`.
            on_instruction: told each of them, in the loop's thread: `say` of its thinker.
            state: the policy's name of the state.
            period_s: when the arm shall be where it is told to, from then on: the loop's period.
            patience_s: how long `reset` waits for a first message of every topic.
        """
        super().__init__()
        if moving := [joint.name for joint in joints if joint.control == "velocity"]:
            raise RobotError(f"joint {moving[0]!r}: a trajectory has no velocities to go on with")
        if state in cameras:
            raise RobotError(f"the input {state!r} cannot be both a camera and the state")
        self.instruction = instruction
        self._joints, self._cameras = Joints(joints), dict(cameras)
        self._topics = {"joint states": joint_states, "trajectories": trajectories}
        self._instructions, self._on_instruction = instructions, on_instruction
        self._state, self._period_s, self._patience_s = state, period_s, patience_s
        self.limits = self._joints.limits
        self.inputs = {
            name: Sensor("image", (camera.height, camera.width, 3), "uint8")
            for name, camera in cameras.items()
        } | {state: Sensor("vector", (len(self._joints.names),), "float32", self._joints.unit)}
        self._readings: dict[str, Reading] = {}
        self._numbers: Mapping[str, float] = {}
        self._last: dict[str, float] | None = None
        self._still: dict[str, float] | None = None
        self._free = contextlib.ExitStack()

    def connect(self) -> None:
        self._readings, self._last, self._still = {}, None, None
        try:
            import rclpy
            from rclpy.executors import SingleThreadedExecutor
            from rclpy.qos import QoSProfile, ReliabilityPolicy
            from sensor_msgs.msg import Image, JointState
            from std_msgs.msg import String
            from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
        except ImportError as error:
            version = ".".join(map(str, sys.version_info[:2]))
            raise RobotError(
                f"ROS 2 is not to be had in this Python {version} ({error}): source its setup.bash "
                "first, and use the Python that it was built for"
            ) from None
        context = rclpy.Context()
        rclpy.init(context=context)
        self._free.callback(partial(rclpy.shutdown, context=context))
        node = self._node = rclpy.create_node("anchorvla", context=context)
        self._free.callback(node.destroy_node)
        self._executor = SingleThreadedExecutor(context=context)
        self._free.callback(self._executor.shutdown)
        # Best effort hears every publisher, and a depth of one keeps the newest.
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        for name, camera in self._cameras.items():
            node.create_subscription(Image, camera.topic, partial(self._see, name), newest)
        node.create_subscription(JointState, self._topics["joint states"], self._feel, newest)
        if self._instructions is not None:
            node.create_subscription(String, self._instructions, self._hear, 10)
        self._publisher = node.create_publisher(JointTrajectory, self._topics["trajectories"], 1)
        self._make = JointTrajectory, JointTrajectoryPoint
        self._executor.add_node(node)
        self._wait()

    def read(self) -> dict[str, Reading]:
        for _ in range(MOST_TAKEN):
            self._num_taken = 0
            self._executor.spin_once(timeout_sec=0)
            if not self._num_taken:
                break
        return dict(self._readings)

    def command(self, action_A: NDArray[np.float32]) -> None:
        self._last, self._still = self._joints.told(action_A), None
        self._publish(self._last)

    def halt(self) -> None:
        if self._still is None:  # once: an arm that sags would be told to, at every look
            self.read()
            self._still = self._joints.still(self._numbers, self._last)
        self._publish(self._still)

    def disconnect(self) -> None:
        self._free.close()

    def _wait(self) -> None:
        """For a first message of every topic, and for somebody who carries trajectories out."""
        until = self.now() + self._patience_s
        while missing := self._missing():
            left = until - self.now()
            if left <= 0:
                refused = "; ".join(f"{why} ({n})" for why, n in self.refused.items())
                raise RobotError(
                    f"nothing of use came within {self._patience_s:g} s on {missing[0]}"
                    f"{f'; refused: {refused}' if refused else ''}: see to the driver, and to "
                    "ROS_DOMAIN_ID"
                )
            self._executor.spin_once(timeout_sec=min(left, 0.1))

    def _missing(self) -> list[str]:
        topics = {name: camera.topic for name, camera in self._cameras.items()}
        topics[self._state] = self._topics["joint states"]
        silent = [
            f"{topic} ({self._node.count_publishers(topic)} publishers)"
            for name, topic in topics.items()
            if name not in self._readings
        ]
        if not self._publisher.get_subscription_count():
            silent.append(f"{self._topics['trajectories']} (no controller listens)")
        return silent

    def _see(self, name: str, message: Any) -> None:
        self._num_taken = 1
        camera, order = self._cameras[name], ENCODINGS.get(message.encoding)
        rows, row = camera.height, camera.width * 3
        if order is None:
            self._refuse(name, f"encoding {message.encoding!r}, expected {' or '.join(ENCODINGS)}")
        elif (message.height, message.width) != (camera.height, camera.width):
            size = f"{message.height} x {message.width}"
            self._refuse(name, f"{size}, declared is {camera.height} x {camera.width}")
        elif message.step < row or len(message.data) != rows * message.step:
            self._refuse(name, f"{len(message.data)} bytes in rows of {message.step}")
        elif (at := self._captured_at(name, message.header.stamp, OLDEST_IMAGE_S)) is not None:
            rows_HW3 = np.frombuffer(message.data, np.uint8).reshape(rows, message.step)[:, :row]
            picture = rows_HW3.reshape(rows, camera.width, 3)[:, :, order]
            self._readings[name] = np.ascontiguousarray(picture), at

    def _feel(self, message: Any) -> None:
        self._num_taken = 1
        if len(message.name) != len(message.position):
            self._refuse(self._state, "names and positions of different lengths")
            return
        numbers = dict(zip(message.name, message.position, strict=True))
        missing = [name for name in self._joints.names if name not in numbers]
        if missing:  # of another controller's joints
            self._refuse(self._state, f"no joint {missing[0]!r}")
            return
        if not np.isfinite([numbers[name] for name in self._joints.names]).all():
            self._refuse(self._state, "positions that are no numbers")
            return
        at = self._captured_at(self._state, message.header.stamp, OLDEST_STATE_S)
        if at is not None:
            self._readings[self._state] = self._joints.felt(numbers), at
            self._numbers = numbers

    def _hear(self, message: Any) -> None:
        self._num_taken = 1
        if not message.data.strip():
            self._refuse("instruction", "empty")
            return
        self.instruction = message.data
        self._on_instruction(message.data)

    def _captured_at(self, name: str, stamp: Any, oldest_s: float) -> float | None:
        """Seconds of `now`; None, and counted, where nobody should use what was captured then."""
        now_ns, stamp_ns = self._node.get_clock().now().nanoseconds, _nanoseconds(stamp)
        age_s, last = (now_ns - stamp_ns) * 1e-9, self._readings.get(name)
        at: float = self.now() - age_s
        if not stamp_ns:
            self._refuse(name, "no stamp")
        elif age_s < -AHEAD_S:
            self._refuse(name, "a stamp ahead of this machine's clock: synchronize them")
        elif age_s > oldest_s:
            self._refuse(name, f"older than {oldest_s:g} s when it came")
        elif last is not None and at <= last[1]:
            self._refuse(name, "captured before the last")
        else:
            return at
        return None

    def _refuse(self, name: str, why: str) -> None:
        self.refused[f"{name}: {why}"] += 1

    def _publish(self, told: Mapping[str, float]) -> None:
        make_trajectory, make_point = self._make
        message, point = make_trajectory(), make_point()
        message.joint_names = list(self._joints.names)
        point.positions = [told[name] for name in self._joints.names]
        point.time_from_start.sec = int(self._period_s)
        point.time_from_start.nanosec = round(self._period_s % 1 * 1e9)
        message.points = [point]  # without a stamp in its header it begins when it arrives
        self._publisher.publish(message)


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)
