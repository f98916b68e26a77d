"""Recorded episodes to replay: recordings, journals of runs, folders of them, LeRobot datasets.

The trade-off: an episode is in memory as a whole while it is replayed, and no other one is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from ..errors import RecordingError
from .journal import SUFFIX, Journal
from .lerobot import INFO, LeRobotEpisode, is_lerobot, read_lerobot
from .read_journal import recording_of
from .recording import Recording, load_recording


def read_recordings(
    paths: Sequence[Path], camera: str | None = None, max_frames: int | None = None
) -> Iterator[tuple[str, Recording]]:
    """Name and recording of every episode, in the order of `paths` and of names or indices.

    Args:
        paths: of .npz recordings, .zip journals, folders of them, or LeRobot datasets.
        camera: key of the camera in a LeRobot dataset that has several.
        max_frames: of a LeRobot episode, more are not decoded.

    Raises:
        RecordingError: at once for what is not there or a camera that nothing has; later, for what
            is damaged inside a file.
    """
    sources: list[Path | LeRobotEpisode] = []
    for path in paths:
        if is_lerobot(path):
            sources += read_lerobot(path, camera)
            continue
        found = [path]
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix in (".npz", SUFFIX))
        if not found:
            raise RecordingError(
                f"{path}: nothing to run, neither recordings (*.npz, *{SUFFIX}) nor a LeRobot "
                f"dataset ({INFO}); check the path"
            )
        sources += found
    if camera is not None and not any(isinstance(source, LeRobotEpisode) for source in sources):
        raise RecordingError(
            f"recordings (*.npz) name their own cameras; leave out --camera {camera}, which "
            "chooses one of a LeRobot dataset"
        )
    return (_open(source, max_frames) for source in sources)


def _open(source: Path | LeRobotEpisode, max_frames: int | None) -> tuple[str, Recording]:
    if isinstance(source, LeRobotEpisode):
        return source.name, source.recording(max_frames)
    if source.suffix == SUFFIX:
        with closing(Journal(source)) as journal:
            return source.stem, recording_of(journal)
    return source.stem, load_recording(source)
