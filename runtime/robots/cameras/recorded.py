"""Films and recorded episodes as cameras: each frame when it is due."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import RecordingError
from ...recordings.read import read_recordings
from .sources import Opened, Raw, RecordedEpisode, Unusable, VideoFile

WAIT_S = 0.1


def open_video(source: VideoFile) -> Opened:
    """The film of `source`, playing from its begin."""
    try:
        import av
    except ImportError as error:
        raise Unusable(f"PyAV cannot be loaded ({error}): install av, or play an episode") from None
    try:
        container = av.open(source.path)
        if not container.streams.video:
            raise Unusable(f"{source.path}: holds no video; check the path")
    except (av.FFmpegError, OSError) as error:
        raise Unusable(f"{source.path}: cannot be played ({error}); check the path") from error
    return Opened(source.path, _paced(_decoded(container, av.FFmpegError, source.path)))


def open_episode(source: RecordedEpisode) -> Opened:
    """The camera of the episode, playing from its begin."""
    try:
        episodes = read_recordings([Path(source.path)], source.camera)
        name, recording = next(islice(episodes, source.index, None), ("", None))
    except RecordingError as error:
        raise Unusable(str(error)) from error
    if recording is None:
        raise Unusable(f"{source.path}: has no episode {source.index}; count from 0")
    stream = recording.streams.get(source.stream)
    if stream is None or stream.frame_ids is None:
        cameras = [n for n, s in recording.streams.items() if s.frame_ids is not None]
        raise Unusable(
            f"{source.path}: {name} has no camera {source.stream!r}, but "
            f"{', '.join(cameras) or 'none'}; choose one with stream"
        )
    rows = zip(stream.values, stream.frame_ids.tolist(), stream.at_s.tolist(), strict=True)
    return Opened(source.name, _paced(Raw(*row) for row in rows))


def _decoded(container: Any, error_kind: type[Exception], path: str) -> Iterator[Raw]:
    try:
        for number, frame in enumerate(container.decode(video=0)):
            yield Raw(frame.to_ndarray(format="rgb24"), number, frame.time)
    except error_kind as error:
        raise Unusable(f"{path}: damaged ({error}); copy it again") from error


def _paced(frames: Iterator[Raw]) -> Iterator[Raw | None]:
    """Each when it is due by its stamp, and None meanwhile."""
    begin: float | None = None
    for frame in frames:
        stamp_s = frame.stamp_s or 0.0
        if begin is None:
            begin = time.monotonic() - stamp_s
        while (early_s := begin + stamp_s - time.monotonic()) > 0:
            time.sleep(min(early_s, WAIT_S))
            if early_s > WAIT_S:
                yield None
        yield frame
