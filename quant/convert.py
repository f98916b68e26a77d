"""A LeRobot dataset -> recordings that a robot replays without pyarrow and av.

Goes in: the folder of a dataset. Comes out: one .npz per episode, with the recorded actions where
there are any. The trade-off: frames become lossless PNG, several times larger than the video.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import tyro

from runtime.errors import RecordingError
from runtime.lerobot import read_lerobot
from runtime.robot import save_recording


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """Write a LeRobot dataset as recordings, one .npz per episode."""

    dataset: tyro.conf.Positional[Path]
    """Folder with a meta/info.json."""

    out: Path
    """Folder to write; it must not be there yet."""

    camera: str | None = None
    """Key of the camera, where the dataset has several."""

    leave_out: tuple[int, ...] = ()
    """Indices of episodes not to write."""


def convert(config: ConvertConfig) -> list[Path]:
    """Write every episode that is not left out, whole or not at all.

    Raises:
        RecordingError: the destination is there, an episode that is left out is not, or what is
            damaged in the dataset.
    """
    if config.out.exists() or config.out.is_symlink():
        raise RecordingError(f"{config.out}: is there already; name a folder that is not (--out)")
    episodes = read_lerobot(config.dataset, config.camera)
    indices = [episode.entry.index for episode in episodes]
    if unknown := sorted(set(config.leave_out) - set(indices)):
        raise RecordingError(
            f"{config.dataset}: no episode {unknown[0]} to leave out, there are {len(indices)}, "
            f"{min(indices, default=0)} to {max(indices, default=0)}"
        )
    partial = config.out.with_name(f".{config.out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        names = []
        for episode in episodes:
            if episode.entry.index in config.leave_out:
                print(f"{episode.name}: left out")
                continue
            names.append(f"episode_{episode.entry.index:06d}.npz")
            recording = episode.recording()
            save_recording(recording, partial / names[-1])
            print(f"{episode.name}: {len(recording.states)} frames, {recording.instruction!r}")
        if not names:
            raise RecordingError(f"{config.dataset}: no episode to write; leave out fewer")
        partial.rename(config.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{config.out}: {len(names)} of {len(episodes)} episodes")
    return [config.out / name for name in names]
