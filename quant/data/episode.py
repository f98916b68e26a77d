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
"""By the name of the policy's input: uint8 [H, W, 3] RGB of a camera, float32 [H, W] metres of its
depth, float32 [S] in robot units of a vector."""


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What the policy gets to see at one step of an episode."""

    first: Streams
    """Of the episode's first frame; shared by its observations, so do not write."""
    now: Streams
    instruction: str
    where: str = ""
    """Episode and frame, for people."""
    frame: int = 0
    """Of the episode."""
    at: Callable[[int], Streams] | None = None
    """Reads what was seen in an earlier frame; None where there is no episode around it."""

    def before(self, steps: int) -> Streams:
        """What was seen so many frames ago; the first frame stands for those before it."""
        return self.now if self.at is None else self.at(max(0, self.frame - steps))

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of its pictures."""
        height, width = next(value.shape[:2] for value in self.now.values() if value.ndim == 3)
        return width, height


def shown(
    inputs: Mapping[str, Input], seen: Observation, *, seed: int, tick: int = 0
) -> dict[str, NDArray[Any]]:
    """An observation as a graph's inputs, by kind: noise is drawn, and nothing is left over.

    Which pictures a policy would have kept of its own events, only the policy knows. Earlier frames
    stand for them, evenly spaced: of frame k as many as k leaves over, divided by one more than
    there is room for.

    Args:
        inputs: as the policy declares them.
        seed: of the noise.
        tick: likewise.
    """
    remembered = dict(_remembered(inputs, seen))
    pictures: dict[Source, Callable[[str, Input], NDArray[Any]]] = {
        "robot": lambda name, given: seen.now[name],
        "latch": lambda name, given: seen.first[given.of],
        "delay": lambda name, given: seen.before(given.steps)[given.of],
        "memory": lambda name, given: remembered[name],
    }
    made: dict[str, Callable[[str, Input], NDArray[Any]]] = {
        "image": lambda name, given: pictures[given.source](name, given),
        "depth": lambda name, given: pictures[given.source](name, given),
        "text": lambda name, given: np.array(seen.instruction),
        "vector": lambda name, given: (
            remembered[name] if given.source == "memory" else seen.now[name].astype(np.float32)
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


def _remembered(
    inputs: Mapping[str, Input], seen: Observation
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every input that shows what is kept, and how much that is; empty slots are zeros."""
    for name, given in inputs.items():
        if given.memory is None:
            continue
        slots = given.memory.slots
        count = seen.frame % (len(slots) + 1)
        yield name, np.array([count], np.float32)
        for number, slot in enumerate(slots):
            frame = seen.frame * (number + 1) // (count + 1)
            is_kept, declared = number < count, inputs[slot]
            kept = seen.before(seen.frame - frame)[declared.of] if is_kept else None
            yield slot, np.zeros(declared.shape, np.uint8) if kept is None else kept


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
