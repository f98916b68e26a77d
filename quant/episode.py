"""One episode to take observations from, however it is stored.

Goes in: from `quant.observations` or `quant.lerobot`, a length, files and a function that reads.
Comes out: observations. The trade-off: frames are read as they are drawn, so only a missing file
shows up at once, damage inside it later.

H, W = image height and width, S = state dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What the policy gets to see at one step of an episode."""

    anchor: NDArray[np.uint8]
    """[H, W, 3] RGB, first frame of the episode; shared by its observations, so do not write."""
    frame: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    instruction: str
    state: NDArray[np.float32]
    """[S] in robot units."""
    where: str = ""
    """Episode and frame, for people."""


@dataclass(frozen=True, slots=True)
class Episode:
    """Where its observations come from; nothing is read yet."""

    name: str
    """In its folder or dataset."""
    num_frames: int
    instructions: tuple[str, ...]
    """That may be given in it."""
    files: Sequence[Path]
    """That have to be there before any is read."""
    read: Callable[[Sequence[int]], Iterator[Observation]]
    """Of the frames given."""


def check_file(path: Path) -> None:
    """
    Raises:
        ValueError: no such file, or a git-lfs pointer in place of it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, the dataset is incomplete; copy it again")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(f"{path}: a git-lfs pointer, not the file itself; run git lfs pull")
