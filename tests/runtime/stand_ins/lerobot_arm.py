"""An arm as LeRobot has them, with LeRobot's methods and none of its code: three motors that go
where they are told within one look, a gripper, and a camera whose pictures differ.

It raises where LeRobot's raise: outside a connection, and when it is connected twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

MOTORS = ("shoulder_pan", "elbow_flex", "gripper")


class NotConnected(ConnectionError):
    """LeRobot's is called DeviceNotConnectedError."""


class Arm:
    """Numbers as LeRobot shows them: degrees, and percent of a gripper."""

    is_calibrated = True
    sag = 0.0
    """Degrees by which gravity draws the elbow down at every look."""

    def __init__(self, *, norm_mode: str = "degrees", size: tuple[int, int] = (4, 6)) -> None:
        self.is_connected = False
        self.places = {"shoulder_pan.pos": 10.0, "elbow_flex.pos": -20.0, "gripper.pos": 40.0}
        self.told: list[dict[str, float]] = []
        self.num_looks = self.num_connects = self.num_disconnects = 0
        self.size = size
        modes = {name: SimpleNamespace(value=norm_mode) for name in MOTORS[:2]}
        modes["gripper"] = SimpleNamespace(value="range_0_100")
        motors = {name: SimpleNamespace(norm_mode=mode) for name, mode in modes.items()}
        self.bus = SimpleNamespace(motors=motors)
        self.cameras: dict[str, Any] = {"front": SimpleNamespace()}

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(self.places, float), "front": (*self.size, 3)}

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(self.places, float)

    def connect(self, calibrate: bool = True) -> None:
        assert not calibrate, "it would ask on the console"
        if self.is_connected:
            raise RuntimeError("connected already")
        self.is_connected, self.num_connects = True, self.num_connects + 1

    def get_observation(self) -> dict[str, Any]:
        self._require()
        self.num_looks += 1
        if self.sag:
            self.places["elbow_flex.pos"] -= self.sag
        return {**self.places, "front": self.picture()}

    def send_action(self, action: Mapping[str, float]) -> dict[str, float]:
        self._require()
        self.told.append(dict(action))
        self.places = dict(action)
        return dict(action)

    def disconnect(self) -> None:
        self._require()
        self.is_connected, self.num_disconnects = False, self.num_disconnects + 1

    def picture(self) -> np.ndarray:
        return np.full((*self.size, 3), self.num_looks % 256, np.uint8)

    def _require(self) -> None:
        if not self.is_connected:
            raise NotConnected("the arm is not connected")
