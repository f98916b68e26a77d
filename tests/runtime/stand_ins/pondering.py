"""A policy that needs no bundle, and a robot that shows it where it is."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from runtime.declarations import Input
from runtime.episode import Answer
from runtime.recordings.recording import Recording, evenly
from runtime.robots.replay import ReplayedRobot
from tests.graphs import anchored

HORIZON = 8


class PonderingPolicy:
    """Action k of a chunk is [place, k, told]: the state of the robot when it looked, its index,
    and how often something was said; but an action that is left over and weighs 1 is as it was.
    Keeps what it was asked."""

    chunk_shape = (HORIZON, 3)
    stats = None
    inputs: ClassVar = anchored("first", "task", side=1, state_dim=1)
    leftover: ClassVar = Input(
        kind="leftover", source="loop", shape=(HORIZON, 4), dtype="float32", pace="tick"
    )

    def __init__(self, step_s: float | None = None, *, takes_leftover: bool = False) -> None:
        if takes_leftover:
            self.inputs = {**self.inputs, "ahead": self.leftover}  # type: ignore[misc]
        self.step_s = step_s
        self.leftovers: list[np.ndarray] = []
        self.calls: list[Any] = []
        self.told = 0.0

    def start(self, *, seed, anchor_policy=None, **given):
        self.told = 0.0
        self.calls.append(("start", seed, sorted(given)))
        return self

    def act(self, observation, *, at):
        place = float(observation["state"][0])
        self.calls.append(("act", place))
        rows = np.array([[place, index, self.told] for index in range(HORIZON)], np.float32)
        if "ahead" in observation:
            leftover = observation["ahead"]
            self.leftovers.append(leftover)
            rows = np.where(leftover[:, :1] == 1, leftover[:, 1:], rows)
        return Answer(rows, {}, self.step_s, at)

    def say(self, instruction):
        if not instruction:
            raise ValueError("nothing was said")
        self.told += 1

    def latch(self, name):
        self.calls.append(("latch", name))


class PlacedRobot(ReplayedRobot):
    """Its state is how many actions it carried out. Keeps what it was told to do; to hold in every
    step of a pause is one entry."""

    def __init__(self, num_steps: int = 40) -> None:
        images = np.arange(num_steps * 3, dtype=np.uint8).reshape(num_steps, 1, 1, 3)
        places = np.arange(num_steps, dtype=np.float32)[:, None]
        streams = {"frame": evenly(images, 10.0), "state": evenly(places, 10.0)}
        recording = Recording(instruction="go", task="", seed=0, rate_hz=10.0, streams=streams)
        super().__init__(recording, 3)
        self.calls: list[str] = []

    def send(self, action_A):
        self.calls.append("send")
        return super().send(action_A)

    def hold(self):
        super().hold()
        if self.calls[-1:] != ["hold"]:
            self.calls.append("hold")
