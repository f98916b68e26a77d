"""A robot of LeRobot as a `Robot`: anything with its methods; LeRobot itself is never imported.

    arm = SO101Follower(config)  # yours, of LeRobot
    joint = partial(Joint, unit="rad", robot_unit="deg")
    robot = LeRobotRobot(arm, "pick up the cube", [joint(name="shoulder_pan.pos", ...), ...],
                         cameras={"frame": "front"})

LeRobot's observations have no stamps. A picture is as old as its camera says (`latest_timestamp`),
and as the moment before it was asked for, whichever is older; one that equals the last is the last.
Of its numbers nobody is told the unit, so each joint declares it; where LeRobot's motors say how
they are scaled (`norm_mode`), that has to agree.

Its methods are those of LeRobot 0.4: github.com/huggingface/lerobot, src/lerobot/robots/robot.py.

A = joint, H, W = image height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RobotError
from .joints import Joint, Joints
from .live import LiveRobot, Reading
from .robot import Sensor

METHODS = ("connect", "get_observation", "send_action", "disconnect")
FEATURES = ("observation_features", "action_features")
NORM_MODES = {"degrees": "deg", "range_m100_100": "normalized", "range_0_100": "percent"}
"""Units of LeRobot's motors, by what they call them."""


class LeRobotRobot(LiveRobot):
    """One robot of LeRobot; nobody else uses it meanwhile.

    Raises:
        RobotError: it is none, or its joints or cameras are not the declared ones; nothing is
            connected then.
    """

    def __init__(
        self,
        robot: Any,
        instruction: str,
        joints: Sequence[Joint],
        *,
        cameras: Mapping[str, str],
        state: str = "state",
    ) -> None:
        """
        Args:
            robot: it is connected by the first `reset`, if it is not yet, and disconnected by
                `close`, which lets many an arm drop: LeRobot switches its motors off.
            instruction: what the operator wants.
            joints: of its actions, in its order; the state holds the same.
            cameras: its name of each, by the name of the policy's input.
            state: the policy's name of it.
        """
        super().__init__()
        missing = [name for name in (*METHODS, *FEATURES) if not hasattr(robot, name)]
        if missing:
            raise RobotError(
                f"{type(robot).__name__} has no {missing[0]}: give a robot of LeRobot (0.4), or "
                "what has its methods"
            )
        self.instruction = instruction
        self._robot, self._joints, self._cameras = robot, Joints(joints), dict(cameras)
        self._state = state
        self.limits = self._joints.limits
        self._joints.check_order(robot.action_features, "the actions of this LeRobot robot")
        self._check_units()
        self.inputs = self._declared()
        self._pictures: dict[str, Reading] = {}
        self._last: dict[str, float] | None = None
        self._still: dict[str, float] | None = None

    def connect(self) -> None:
        self._pictures, self._last, self._still = {}, None, None
        if not getattr(self._robot, "is_connected", False):
            # Calibration asks on the console, and a robot that waits there answers nobody.
            self._robot.connect(calibrate=False)
        if not getattr(self._robot, "is_calibrated", True):
            raise RobotError("this LeRobot robot is not calibrated: run lerobot-calibrate first")

    def read(self) -> dict[str, Reading]:
        asked_at = self.now()
        seen = self._robot.get_observation()
        readings: dict[str, Reading] = {self._state: (self._joints.felt(_numbers(seen)), asked_at)}
        for name, key in self._cameras.items():
            if key not in seen:
                raise RobotError(f"LeRobot's observation has no {key!r}: see to that camera")
            picture, last = np.asarray(seen[key]), self._pictures.get(name)
            if last is None or not np.array_equal(picture, last[0]):
                self._pictures[name] = picture.copy(), self._captured_at(key, asked_at)
            readings[name] = self._pictures[name]
        return readings

    def command(self, action_A: NDArray[np.float32]) -> NDArray[np.float32] | None:
        told = self._joints.told(action_A)
        sent = self._robot.send_action(dict(told))
        self._last, self._still = told, None
        if not isinstance(sent, Mapping) or not set(told) <= set(sent):
            return None  # some return nothing
        self._last = {name: float(sent[name]) for name in told}
        return None if self._last == told else self._joints.felt(self._last)

    def halt(self) -> None:
        if self._still is None:  # once: an arm that sags would be told to, at every look
            try:
                measured = _numbers(self._robot.get_observation())
                self._joints.felt(measured)
            except Exception:  # of a camera, say, without which an arm can hold all the same
                if self._last is None:
                    raise
                measured = self._last
            self._still = self._joints.still(measured, self._last)
        self._robot.send_action(dict(self._still))

    def disconnect(self) -> None:
        if getattr(self._robot, "is_connected", True):
            self._robot.disconnect()

    def _declared(self) -> dict[str, Sensor]:
        features = self._robot.observation_features
        for name in self._joints.names:
            if not _is_number(features.get(name)):
                raise RobotError(
                    f"LeRobot's observation has no number {name!r}; it has "
                    f"{', '.join(features) or 'nothing'}"
                )
        size = len(self._joints.names)
        inputs = {self._state: Sensor("vector", (size,), "float32", self._joints.unit)}
        for name, key in self._cameras.items():
            shape = features.get(key)
            if name == self._state or not isinstance(shape, tuple) or len(shape) != 3:
                pictures = [k for k, what in features.items() if isinstance(what, tuple)]
                raise RobotError(
                    f"the camera {key!r} for input {name!r} is none of this LeRobot robot, which "
                    f"has {', '.join(pictures) or 'none'}"
                )
            inputs[name] = Sensor("image", shape, "uint8")
        return inputs

    def _check_units(self) -> None:
        motors = getattr(getattr(self._robot, "bus", None), "motors", {})
        for joint in self._joints.joints:
            mode = getattr(motors.get(joint.name.removesuffix(".pos")), "norm_mode", None)
            unit = NORM_MODES.get(str(getattr(mode, "value", mode)))
            if unit is not None and unit != joint.robot_unit:
                raise RobotError(
                    f"joint {joint.name!r} is declared in {joint.robot_unit}, and LeRobot scales "
                    f"this motor to {unit}: write robot_unit={unit!r}, or configure LeRobot "
                    "(use_degrees)"
                )

    def _captured_at(self, key: str, asked_at: float) -> float:
        """LeRobot stamps by `time.perf_counter`, which on Linux is `time.monotonic`."""
        camera = getattr(self._robot, "cameras", {}).get(key)
        at = getattr(camera, "latest_timestamp", None)
        return asked_at if at is None else min(asked_at, float(at))


def _numbers(seen: Mapping[str, Any]) -> dict[str, float]:
    """Those of an observation that are no pictures."""
    return {key: float(value) for key, value in seen.items() if np.ndim(value) == 0}


def _is_number(feature: object) -> bool:
    return feature in (float, int) or feature == "float32"
