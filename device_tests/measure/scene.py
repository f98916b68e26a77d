"""What the policy sees while it is measured: the golden observation, a little different every time.

Nothing repeats from one tick to the next, so that no cache can help but the one that is measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.declarations import from_source
from runtime.errors import BundleError, ObservationError, RobotError
from runtime.golden import Golden, vary
from runtime.inputs import CAMERAS
from runtime.policy import Policy
from runtime.robots.robot import Limits, Observation, Sensor


class Scene:
    """An endless stream of observations, and of what else a policy is given.

    Raises:
        BundleError: the bundle takes no text but its golden one.
    """

    def __init__(self, policy: Policy) -> None:
        self.inputs = policy.inputs
        self._golden = Golden.of(policy.bundle)
        self._texts = {
            name: (text, _another(policy, name, text))
            for name, text in self._golden.given.items()
            if self.inputs[name].kind == "text"
        }
        self._said = dict.fromkeys(self._texts, 0)
        self.count = 0

    @property
    def texts(self) -> dict[str, str]:
        """What was said last; the golden texts at first."""
        return {name: texts[self._said[name] % 2] for name, texts in self._texts.items()}

    def observe(self) -> dict[str, NDArray[Any]]:
        """A new value of all that the robot gives: the `count`th."""
        self.count += 1
        return vary(self.inputs, self._golden.observed, self.count)

    def given(self) -> dict[str, Any]:
        """What an episode starts with: new latches, the rest as it was said last."""
        self.count += 1
        latches = {name: self._golden.given[name] for name in from_source(self.inputs, "latch")}
        return {**self._golden.given, **self.texts, **vary(self.inputs, latches, self.count)}

    def change(self, name: str) -> Any:
        """Another value of a latch or of what the operator gives than last time."""
        if name in self._texts:
            self._said[name] += 1
            return self.texts[name]
        self.count += 1
        return vary(self.inputs, {name: self._golden.given[name]}, self.count)[name]


class SceneRobot:
    """A scene as the control loop drives it: it never ends, and does nothing with its actions."""

    done, success = False, None

    def __init__(self, scene: Scene, num_actions: int) -> None:
        self._scene = scene
        self._seen: Observation | None = None
        self._started = False
        self.instruction = next((text for text in scene.texts.values()), "stand still")
        self.inputs = {
            name: Sensor(i.kind, i.shape, i.dtype, i.unit)  # type: ignore[arg-type]
            for name, i in from_source(scene.inputs, "robot").items()
        }
        infinite, nameless = np.full(num_actions, np.inf), ("",) * num_actions
        self.limits = Limits(-infinite, infinite, nameless, nameless)

    def reset(self) -> Observation:
        self._started, self._seen = True, None
        return self.observe()

    def observe(self) -> Observation:
        self._require_reset("observe")
        if self._seen is None:
            values = self._scene.observe()
            at = dict.fromkeys(values, float(self._scene.count))
            frames = {name: self._scene.count for name in values if self._is_camera(name)}
            self._seen = Observation(values, at, frames)
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

    def _is_camera(self, name: str) -> bool:
        return self.inputs[name].kind in CAMERAS

    def _require_reset(self, method: str) -> None:
        if not self._started:
            raise RobotError(f"{method}() outside an episode: call reset() first")


def _another(policy: Policy, name: str, instruction: str) -> str:
    """A text that fits the engines wherever this one does: mostly one word less."""
    for text in (instruction.rpartition(" ")[0], instruction[:-1], f"{instruction}."):
        try:
            policy.take(name, text)
        except ObservationError:
            continue
        return text
    raise BundleError(
        f"{policy.bundle.path}: no variation of the golden {name} {instruction!r} fits its "
        "engines, so a new one cannot be timed; export it with more --tokens"
    )
