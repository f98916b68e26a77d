"""A robot that plays back what was recorded: everything above it runs where there is no robot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import RobotError
from ..recordings.recording import Recording, Stream
from .robot import Kind, Limits, Observation, Sensor


class ReplayedRobot:
    """A `Robot` that shows a recording, a row of its streams per action, whatever the actions are.

    Stamps and frame ids are those of the recording. No action is clipped.
    """

    def __init__(self, recording: Recording, num_actions: int | None = None) -> None:
        """
        Args:
            recording: what to show.
            num_actions: action dimensions to take, where the recording holds no actions.

        Raises:
            RobotError: it holds none, and nobody says how many dimensions an action has.
        """
        self.recording = recording
        self.instruction = recording.instruction
        self.inputs = {name: _sensor(stream) for name, stream in recording.streams.items()}
        self.limits = _limits(recording, num_actions)
        self.applied: list[NDArray[np.float32]] = []
        """The actions of this episode, in the order in which `send` got them."""
        self._started = False

    def reset(self) -> Observation:
        self.applied.clear()
        self._started = True
        return self.observe()

    def observe(self) -> Observation:
        self._require_reset("observe")
        streams = self.recording.streams
        row = min(len(self.applied), self.recording.num_frames - 1)
        return Observation(
            {name: stream.values[row] for name, stream in streams.items()},
            {name: float(stream.at_s[row]) for name, stream in streams.items()},
            {n: int(s.frame_ids[row]) for n, s in streams.items() if s.frame_ids is not None},
        )

    def send(self, action_A: NDArray[np.float32]) -> NDArray[np.float32]:
        self._require_reset("send")
        if self.done:
            raise RobotError(
                f"send() after the end of the recording ({len(self.applied)} steps): call reset()"
            )
        sent_A = self.limits.clip(action_A)
        self.applied.append(sent_A.copy())
        return sent_A

    def hold(self) -> None:
        """A recording stands still by itself."""
        self._require_reset("hold")

    @property
    def done(self) -> bool:
        return len(self.applied) >= self.recording.num_frames

    @property
    def success(self) -> bool | None:
        return None

    def close(self) -> None:
        self._started = False

    def _require_reset(self, method: str) -> None:
        if not self._started:
            raise RobotError(f"{method}() outside an episode: call reset() first")


def _sensor(stream: Stream) -> Sensor:
    kinds: dict[int, Kind] = {4: "image", 3: "depth", 2: "vector"}
    kind = kinds[stream.values.ndim]
    return Sensor(kind, stream.values.shape[1:], str(stream.values.dtype))


def _limits(recording: Recording, num_actions: int | None) -> Limits:
    if recording.actions is not None:
        num_actions = recording.actions.shape[1]
    if num_actions is None:
        raise RobotError(
            "this recording holds no actions, so nobody can tell how many dimensions one has: "
            "say it with num_actions"
        )
    infinite = np.full(num_actions, np.inf, np.float32)
    nameless = ("",) * num_actions
    return Limits(-infinite, infinite, nameless, recording.action_names or nameless)
