"""A policy whose leaves say what a test wants, and an arm that shows and feels by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import numpy as np

from runtime.control.clock import VirtualClock
from runtime.control.leaves import LeafRate
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.thinker import InlineThinker
from runtime.declarations import Input, Output
from runtime.episode import Answer
from runtime.meanings import FutureImage, Grasp, JointPositions
from runtime.recordings.recording import Recording, evenly
from runtime.robots.description import Description
from runtime.robots.replay import ReplayedRobot

RATE_HZ, EXECUTE, HORIZON, STEPS_AHEAD = 20.0, 4, 8, 8
PERIOD_S = 1 / RATE_HZ
SHAPE = (12, 16, 3)
OUTPUTS = {
    "actions": Output(),
    "grasp": Output(means=Grasp()),
    "joints": Output(means=JointPositions(names=("elbow", "", "shoulder"))),
    "future": Output(means=FutureImage(camera="frame", steps=STEPS_AHEAD)),
    "plain": Output(),
}
TURN = {"control": "delta", "unit": "rad", "velocity": 30.0, "acceleration": 9000.0}
ARM = {
    "robot": "arm", "stamps": "simulated", "state": "state",
    "arming": {"actions": 0, "fraction": 1.0},
    "joints": {"elbow": {"index": 2, "scale": 0.5, "offset": 0.25}},
    "axes": [
        {"name": "pan", "joint": "shoulder", "measured": {"index": 1}, **TURN},
        {"name": "grip", "control": "gripper", "unit": "m", "low": 0.0, "high": 0.08,
         "scale": 0.08},
    ],
}  # fmt: skip


class TellingPolicy:
    """It closes the gripper at the steps that `closes` names; leaves are functions of the step
    that it looked at."""

    chunk_shape = (HORIZON, 2)
    stats = None
    outputs: ClassVar = OUTPUTS
    inputs: ClassVar = {
        "frame": Input(kind="image", source="robot", shape=SHAPE, dtype="uint8", pace="tick"),
        "state": Input(kind="vector", source="robot", shape=(3,), dtype="float32", pace="tick"),
    }

    def __init__(
        self, closes: Callable[[int], bool] = lambda step: False, **leaves: Callable[[int], Any]
    ) -> None:
        self.closes, self.leaves, self.step = closes, leaves, -1

    def start(self, *, seed, anchor_policy=None, **given):
        return self

    def act(self, observation, *, at):
        self.step = round(float(observation["state"][0]))
        grips = [1.0 - self.closes(self.step + k) for k in range(HORIZON)]
        return Answer(np.stack([np.zeros(HORIZON), grips], 1).astype(np.float32), {}, None, at)

    def ask(self, leaf):
        return np.asarray(self.leaves[leaf](self.step))


class Arm(ReplayedRobot):
    """Its state is [step, shoulder, what its elbow's encoder counts]; the picture is one shade."""

    def __init__(
        self,
        num_steps: int = 200,
        *,
        shades: Callable[[int], float] = lambda step: step % 200,
        felt: Callable[[int], tuple[float, float]] = lambda step: (0.1 * step, 0.3 * step),
        raw: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            felt: the shoulder and the elbow by step, in rad.
        """
        count = num_steps + 1
        images = np.stack([np.full(SHAPE, shades(step), np.uint8) for step in range(count)])
        states = [(step, felt(step)[0], (felt(step)[1] - 0.25) / 0.5) for step in range(count)]
        streams = {
            "frame": evenly(images, RATE_HZ),
            "state": evenly(np.array(states, np.float32), RATE_HZ),
        }
        recording = Recording(instruction="go", task="", seed=0, rate_hz=RATE_HZ, streams=streams)
        super().__init__(recording, 2)
        if raw is not None:
            self.description = msgspec.convert(raw, Description)
        self.num_looks, self.num_holds = 0, 0

    def observe(self):
        self.num_looks += 1
        return super().observe()

    def hold(self):
        super().hold()
        self.num_holds += 1


def drive(policy, robot=None, *, num_steps=100, leaves=None, execute=EXECUTE, **options):
    """An episode on a virtual clock, each leaf read at every control step."""
    clock = VirtualClock()
    rates = {name: LeafRate(rate_hz=RATE_HZ) for name in leaves or policy.leaves}
    config = LoopConfig(
        rate_hz=RATE_HZ, execute=execute, max_steps=num_steps, leaves=rates,
        **{key: options.pop(key) for key in ("checks",) if key in options},
    )  # fmt: skip
    thinker = options.pop("thinker", InlineThinker)(policy, clock)
    robot = robot or Arm(num_steps, raw=ARM)
    return run_episode(policy, robot, config, clock=clock, thinker=thinker, **options)


def shade(value, dtype=np.float32, shape=(6, 8, 3)):
    """A leaf that is a picture of one shade, or of one that is a function of the step."""
    return lambda step: np.full(shape, value(step) if callable(value) else value, dtype)
