"""One episode to take observations from, however it is stored.

Goes in: from `quant.data.observations`, a length, files and a function that reads.
Comes out: observations. The trade-off: frames are read as they are drawn, so only a missing file
shows up at once, damage inside it later.

H, W = image height and width, S = state dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.declarations import Input, Source
from runtime.inputs import draw_noise

Streams = Mapping[str, NDArray[Any]]
"""By the name of the policy's input: uint8 [H, W, 3] RGB of a camera, float32 [S] in robot units of
a vector."""


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What the policy gets to see at one step of an episode."""

    first: Streams
    """Of the episode's first frame; shared by its observations, so do not write."""
    now: Streams
    instruction: str
    where: str = ""
    """Episode and frame, for people."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of its pictures."""
        height, width = next(value.shape[:2] for value in self.now.values() if value.ndim == 3)
        return width, height


def shown(
    inputs: Mapping[str, Input], seen: Observation, *, seed: int, tick: int = 0
) -> dict[str, NDArray[Any]]:
    """An observation as a graph's inputs, by kind: noise is drawn, nothing is left over, there is
    neither a past nor a memory.

    Args:
        inputs: as the policy declares them.
        seed: of the noise.
        tick: likewise.
    """
    pictures: dict[Source, Callable[[str, Input], NDArray[Any]]] = {
        "robot": lambda name, given: seen.now[name],
        "latch": lambda name, given: seen.first[given.of],
        "delay": lambda name, given: seen.now[given.of],  # as in the first tick of an episode
        "memory": lambda name, given: np.zeros(given.shape, np.uint8),
    }
    made: dict[str, Callable[[str, Input], NDArray[Any]]] = {
        "image": lambda name, given: pictures[given.source](name, given),
        "text": lambda name, given: np.array(seen.instruction),
        "vector": lambda name, given: (
            np.zeros(given.shape, np.float32)
            if given.source == "memory"
            else seen.now[name].astype(np.float32)
        ),
        "noise": lambda name, given: draw_noise(seed, tick, given.shape),
        "leftover": lambda name, given: np.zeros(given.shape, np.float32),
    }
    found = {
        name: make(name, given)
        for kind, make in made.items()
        for name, given in inputs.items()
        if given.kind == kind
    }
    assert found.keys() == inputs.keys(), inputs
    return found


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
