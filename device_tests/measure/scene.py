"""What the policy sees while it is measured: the golden observation, a little different every time.

Nothing repeats from one tick to the next, so that no cache can help but the one that is measured.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import read_golden
from runtime.errors import BundleError, ObservationError, RobotError
from runtime.policy import Policy
from runtime.recordings.recording import FRAME, STATE
from runtime.robots.robot import Limits, Observation, Sensor

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
        self.inputs = {
            FRAME: Sensor("image", self._frame.shape, str(self._frame.dtype)),
            STATE: Sensor("vector", self._state.shape, str(self._state.dtype)),
        }
        self.num_actions = policy.chunk_shape[1]
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
        """A new frame and state, stamped with their number."""
        self._count += 1
        return self._observation(self._shifted(self._frame))

    def anchor(self) -> NDArray[np.uint8]:
        """A new anchor, [H, W, 3]."""
        self._count += 1
        return self._shifted(self._anchor)

    def begin(self) -> Observation:
        """The first observation of an episode: a new anchor as the frame."""
        return self._observation(self.anchor())

    def say(self) -> str:
        """Another instruction than last time."""
        self._num_said += 1
        return self.instruction

    def _observation(self, image: NDArray[np.uint8]) -> Observation:
        state = self._state + STATE_STEP * np.float32(self._count % 7)
        at = float(self._count)
        return Observation(
            {FRAME: image, STATE: state}, {FRAME: at, STATE: at}, {FRAME: self._count}
        )

    def _shifted(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.roll(image, self._count, axis=1)


class SceneRobot:
    """A scene as the control loop drives it: it never ends, and does nothing with its actions."""

    done, success = False, None

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._seen: Observation | None = None
        self._started = False
        self.instruction = scene.instruction
        self.inputs = scene.inputs
        infinite, nameless = np.full(scene.num_actions, np.inf), ("",) * scene.num_actions
        self.limits = Limits(-infinite, infinite, nameless, nameless)

    def reset(self) -> Observation:
        self._started, self._seen = True, None
        return self._scene.begin()

    def observe(self) -> Observation:
        self._require_reset("observe")
        if self._seen is None:
            self._seen = self._scene.observe()
        return self._seen

    def send(self, action_A: NDArray[np.float32]) -> NDArray[np.float32]:
        """It stands still, and looks anew."""
        self._require_reset("send")
        sent_A = self.limits.clip(action_A)
        self._seen = None
        return sent_A

    def hold(self) -> None:
        self._require_reset("hold")

    def close(self) -> None:
        self._started = False

    def _require_reset(self, method: str) -> None:
        if not self._started:
            raise RobotError(f"{method}() outside an episode: call reset() first")


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
