"""Episodes in another form: a LeRobot dataset as recordings, or recordings as a LeRobot dataset.

Goes in: the folder of a dataset, or recordings and journals of runs. Comes out: one .npz per
episode, which a robot replays without pyarrow and av; or a dataset of layout v3.0. The trade-off:
in recordings frames are lossless PNG, several times larger than the video; in a dataset they are
video, and so nearly what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from runtime.errors import RecordingError
from runtime.recordings.lerobot import LeRobotEpisode, read_lerobot
from runtime.recordings.lerobot_writer import write_lerobot
from runtime.recordings.read import read_recordings
from runtime.recordings.recording import Recording, save_recording
from runtime.storage.folders import exclusive, publish, temporary


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """Write a LeRobot dataset as recordings, one .npz per episode; or the other way round.

    example: python -m quant convert dataset --out recorded
    """

    dataset: tyro.conf.Positional[Path]
    """Folder with a meta/info.json; for `--to lerobot` also one of recordings or journals."""

    to: Literal["recordings", "lerobot"] = "recordings"
    """What to write."""

    out: Path
    """Folder to write, which must not be there yet, or be empty."""

    camera: str | None = None
    """Key of the camera, where the dataset has several."""

    leave_out: tuple[int, ...] = ()
    """Indices of episodes not to write; of recordings, their places in the order of their names."""


def convert(config: ConvertConfig) -> list[Path]:
    """Write every episode that is not left out, whole or not at all; the files, or the dataset.

    Raises:
        OutputError: the destination holds something, or cannot be written.
        RecordingError: an episode that is left out is not there, or what is damaged in the dataset.
    """
    if config.to == "lerobot":
        return [_write_dataset(config)]
    with exclusive(config.out, foreign):
        episodes = _episodes(config)
        with temporary(config.out) as folder:
            names = [name for episode in episodes if (name := _write(config, episode, folder))]
            if not names:
                raise RecordingError(f"{config.dataset}: no episode to write; leave out fewer")
            publish(folder, config.out, foreign)
    print(f"{config.out}: {len(names)} of {len(episodes)} episodes")
    return [config.out / name for name in names]


def _write_dataset(config: ConvertConfig) -> Path:
    with exclusive(config.out, foreign), temporary(config.out) as folder:
        number = write_lerobot(_kept(config), folder)
        publish(folder, config.out, foreign)
    print(f"{config.out}: {number} episodes")
    return config.out


def _kept(config: ConvertConfig) -> Iterator[tuple[str, Recording]]:
    """Name and recording of every episode that is not left out, one in memory at a time."""
    num_episodes = 0
    for name, recording in read_recordings([config.dataset], config.camera):
        if num_episodes in config.leave_out:
            print(f"{name}: left out")
        else:
            print(f"{name}: {recording.num_frames} frames, {recording.instruction!r}")
            yield name, recording
        num_episodes += 1
    if unknown := [index for index in config.leave_out if index >= num_episodes]:
        raise RecordingError(
            f"{config.dataset}: no episode {unknown[0]} to leave out, there are {num_episodes}, 0 "
            f"to {num_episodes - 1}"
        )


def _episodes(config: ConvertConfig) -> list[LeRobotEpisode]:
    """All of the dataset, those to leave out among them."""
    episodes = read_lerobot(config.dataset, config.camera)
    indices = [episode.entry.index for episode in episodes]
    if unknown := sorted(set(config.leave_out) - set(indices)):
        raise RecordingError(
            f"{config.dataset}: no episode {unknown[0]} to leave out, there are {len(indices)}, "
            f"{min(indices, default=0)} to {max(indices, default=0)}"
        )
    return episodes


def _write(config: ConvertConfig, episode: LeRobotEpisode, folder: Path) -> str | None:
    """Name of the file; None if it is left out."""
    if episode.entry.index in config.leave_out:
        print(f"{episode.name}: left out")
        return None
    name = f"episode_{episode.entry.index:06d}.npz"
    recording = episode.recording()
    save_recording(recording, folder / name)
    print(f"{episode.name}: {recording.num_frames} frames, {recording.instruction!r}")
    return name


def foreign(folder: Path) -> str:
    """Recordings are not made again from a dataset that may be gone: none is replaced."""
    return f"{min(path.name for path in folder.iterdir())} is in it"
