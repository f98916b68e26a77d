"""Frames of a video file by their time, each the right one or an error.

A file keeps the times of its frames in whole ticks, and tables keep theirs in float32, so a frame
counts as the one at a time if it lies within `tolerance_s` of it, never the neighbour. The
trade-off: frames are decoded one after another; the next one is quick, any other is sought anew,
which is quick in LeRobot's own files (every second frame is a key frame) and slow where key frames
are rare. PyAV is imported when a video is opened: a robot does without.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import RecordingError

if TYPE_CHECKING:
    from av import VideoFrame

TOLERANCE_S = 1e-4
"""How far LeRobot lets a frame be from its time (`tolerance_s`). Half a tick of its files is 3e-5 s
(1/15360 s at 30 frames per second), the rounding of a float32 time below 500 s is 1.5e-5 s, and
half a frame at 1000 frames per second is 5e-4 s: enough for the first two, far from the third."""


def tolerance_s(time_s: float) -> float:
    """How far from `time_s` a frame may lie that is meant by it."""
    return TOLERANCE_S + abs(time_s) * float(np.finfo(np.float32).eps) / 2


class Video:
    """An open video file; close it."""

    def __init__(self, path: Path, rate_hz: float) -> None:
        import av

        self.path = path
        self.period_s = 1 / rate_hz
        self._errors = (av.FFmpegError, IndexError)
        self._tick = av.time_base
        try:
            self._container = av.open(str(path))
        except self._errors as error:
            raise RecordingError(f"{path}: not a whole video ({error}); copy it again") from error
        self._frames: Iterator[VideoFrame] = iter(())
        self._next_s: float | None = None
        """Where `_frames` goes on, if it follows on the last frame that was found."""

    def close(self) -> None:
        self._container.close()

    def at(self, time_s: float) -> NDArray[np.uint8]:
        """The frame at `time_s`, [H, W, 3] RGB.

        Raises:
            RecordingError: there is none, or what is there cannot be decoded whole.
        """
        try:
            frame = self._find(time_s)
        except self._errors as error:
            raise RecordingError(
                f"{self.path}: cannot be decoded at {time_s:.3f} s ({error!r}); copy it again"
            ) from error
        if frame is None:
            length_s = (self._container.duration or 0) / self._tick
            raise RecordingError(
                f"{self.path}: no frame at {time_s:.3f} s in a video of {length_s:.3f} s; "
                "copy the video and the meta folder again"
            )
        drift_s = frame.time - time_s
        if abs(drift_s) > tolerance_s(time_s):
            raise RecordingError(
                f"{self.path}: no frame at {time_s:.3f} s, the next one is at {frame.time:.3f} s: "
                f"a drift of {drift_s / self.period_s:.2f} frames between table and video (see "
                "LeRobot's issue 3177); convert the dataset again"
            )
        if frame.is_corrupt:
            raise RecordingError(f"{self.path}: damaged at {time_s:.3f} s; copy it again")
        self._next_s = frame.time + self.period_s
        return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)

    def _find(self, time_s: float) -> VideoFrame | None:
        """The first frame that is not half a frame before `time_s`."""
        first_s, last_s = time_s - self.period_s / 2, time_s + tolerance_s(time_s)
        if self._next_s is not None and abs(time_s - self._next_s) < self.period_s / 2:
            frame = next((f for f in self._frames if f.time >= first_s), None)
            if frame is not None and frame.time <= last_s:
                return frame
        # In an open group of pictures (x265's default), what follows a key frame may need the group
        # before: without it the decoder drops frames, so start earlier until none is dropped.
        for lead_s in (0.0, 2.0, 20.0, time_s):
            self._container.seek(int(max(0.0, time_s - lead_s) * self._tick))
            self._frames = self._container.decode(video=0)
            frame = next((f for f in self._frames if f.time >= first_s), None)
            if frame is None or frame.time <= last_s:
                break
        return frame
