"""What the policy sees while it is measured: the golden observation, a little different every time.

Nothing repeats from one tick to the next, so that no cache can help but the one that is measured.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import read_golden
from runtime.errors import BundleError, ObservationError
from runtime.policy import Policy
from runtime.robots.robot import Observation

STATE_STEP = np.float32(1e-3)
"""In robot units; small against what a state normalizes to."""


class Scene:
    """An endless stream of observations.

    Raises:
        BundleError: the bundle takes no instruction but its golden one.
    """

    def __init__(self, policy: Policy) -> None:
        golden = read_golden(policy.bundle)
        self._frame, self._state = golden["frame"], golden["state"]
        self._anchor = golden["anchor"]
        first = str(golden["instruction"])
        self._instructions = (first, _another(policy, first))
        self._count = 0
        self._num_said = 0

    @property
    def instruction(self) -> str:
        """The one that was said last; the golden one at first."""
        return self._instructions[self._num_said % 2]

    def observe(self) -> Observation:
        """A new frame and state."""
        self._count += 1
        state = self._state + STATE_STEP * np.float32(self._count % 7)
        return Observation(self._shifted(self._frame), state)

    def anchor(self) -> NDArray[np.uint8]:
        """A new anchor, [H, W, 3]."""
        self._count += 1
        return self._shifted(self._anchor)

    def say(self) -> str:
        """Another instruction than last time."""
        self._num_said += 1
        return self.instruction

    def _shifted(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.roll(image, self._count, axis=1)


class SceneRobot:
    """A scene as the control loop drives it: it never ends, and does nothing with its actions."""

    done, success = False, None

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.instruction = scene.instruction

    def reset(self) -> Observation:
        return Observation(self._scene.anchor(), self._scene.observe().state)

    def observe(self) -> Observation:
        return self._scene.observe()

    def apply(self, action_A: NDArray[np.float32]) -> None:
        """It stands still."""

    def close(self) -> None:
        """It holds nothing."""


def _another(policy: Policy, instruction: str) -> str:
    """An instruction that fits the engines wherever this one does: mostly one word less."""
    for text in (instruction.rpartition(" ")[0], instruction[:-1], f"{instruction}."):
        try:
            policy.encode(text)
        except ObservationError:
            continue
        return text
    raise BundleError(
        f"{policy.bundle.path}: no variation of the golden instruction {instruction!r} fits its "
        "engines, so a new instruction cannot be timed; export it with more --tokens"
    )
