"""A robot that plays back what was recorded: everything above it runs where there is no robot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import RobotError
from ..recordings.recording import Recording
from .robot import Observation, check_action


class ReplayedRobot:
    """A `Robot` that shows a recording, one frame per action, whatever the actions are."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.instruction = recording.instruction
        self.applied: list[NDArray[np.float32]] = []
        """The actions of this episode, in the order in which `apply` got them."""
        self._started = False

    def reset(self) -> Observation:
        self.applied.clear()
        self._started = True
        return self.observe()

    def observe(self) -> Observation:
        self._require_reset("observe")
        index = min(len(self.applied), len(self.recording.images) - 1)
        return Observation(self.recording.images[index], self.recording.states[index])

    def apply(self, action_A: NDArray[np.float32]) -> None:
        self._require_reset("apply")
        if self.done:
            raise RobotError(
                f"apply() after the end of the recording ({len(self.applied)} steps): call reset()"
            )
        recorded = self.recording.actions
        check_action(action_A, action_A.size if recorded is None else recorded.shape[1])
        self.applied.append(action_A.copy())

    @property
    def done(self) -> bool:
        return len(self.applied) >= len(self.recording.images)

    @property
    def success(self) -> bool | None:
        return None

    def close(self) -> None:
        self._started = False

    def _require_reset(self, method: str) -> None:
        if not self._started:
            raise RobotError(f"{method}() outside an episode: call reset() first")
