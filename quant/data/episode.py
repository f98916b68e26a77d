"""One episode to take observations from, however it is stored.

Goes in: from `quant.data.observations`, a length, files and a function that reads.
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
