"""Pictures that a policy expects, held against those that come.

Goes in: a leaf that says what a camera will show so many control steps later, and what the camera
shows meanwhile. Comes out: how far the two are apart, how much of the way is done, and a few pairs
to look at. A picture of one sampled policy is one of many that may come, so none of this is judged.

The distance is the mean absolute difference of both pictures, of which white and black are 1 apart.
For it both are brought to the size of the expected one, or to `MOST_PX` if that is larger: each
pixel is the mean of those that it covers. So noise of a sensor counts for little, and a picture
costs a millisecond.

h, w = height and width of what is compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..meanings import WHITE, FutureImage
from .film import Thinned

MOST_PX = 64
"""Longer side of what is compared."""
KEPT_PX = 240
"""Longer side of what is kept to look at."""
NUM_PAIRS = 8
LEAST_DISTANCE = 1 / WHITE
"""Between what was expected and what there was: where it is no more, nothing was to change, and no
share of that is done."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A picture that was expected, and the one that came."""

    asked_step: int
    """Control step of the observation that it was read from."""
    due_step: int
    step: int
    """Of the picture that came: the first one from `due_step` on, or the episode's last before."""
    expected: Picture
    """[h, w, 3], at most `KEPT_PX`."""
    came: Picture
    """[h, w, 3], the same piece of what the camera showed, at the same size."""
    distance: float
    """In [0, 1]."""
    progress: float | None
    """As in `Look`."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a camera showed, held against the expected picture that was due next."""

    step: int
    """Control step."""
    distance: float
    """In [0, 1]."""
    progress: float | None
    """1 - distance / distance when it was asked for, in [-1, 1]: 0 where nothing came nearer, 1
    where it came as expected, below 0 where it went away. None if nothing was to change."""


@dataclass(slots=True)
class Foreseen:
    """What an episode's trace has of it."""

    camera: str
    num_came: int = 0
    looks: list[Look] = field(default_factory=list)
    pairs: Thinned[Pair] = field(default_factory=lambda: Thinned(NUM_PAIRS))

    @property
    def words(self) -> str:
        """For people."""
        pair = self.pairs.last
        if pair is None:
            return "no picture came yet"
        share = "" if pair.progress is None else f", progress {round(pair.progress, 2) + 0.0:.2f}"
        pictures = "picture" if self.num_came == 1 else "pictures"
        return f"{self.num_came} {pictures} came, the last {pair.distance:.3f} off{share}"


@dataclass(frozen=True, slots=True, eq=False)
class _Expected:
    asked_step: int
    due_step: int
    small: NDArray[np.int16]
    kept: Picture
    at_first: float
    """Distance of what the camera showed when it was asked for."""

    def progress(self, distance: float) -> float | None:
        if self.at_first <= LEAST_DISTANCE:
            return None
        return max(-1.0, 1 - distance / self.at_first)


class Foresight:
    """Of one leaf, in one episode."""

    def __init__(self, meaning: FutureImage, foreseen: Foreseen) -> None:
        self._meaning, self._foreseen = meaning, foreseen
        self._open: list[_Expected] = []

    def hear(self, value: NDArray[Any], asked_step: int, shown: Picture) -> None:
        """A picture is expected.

        Args:
            value: [H, W, 3] from 0 to 255.
            asked_step: control step of the observation that it was read from.
            shown: the camera's picture in that, uint8 [H, W, 3].
        """
        picture = np.rint(np.clip(value, 0, WHITE)).astype(np.uint8)
        height, width = picture.shape[:2]
        small = _sized(picture, _shrunk(height, width, MOST_PX), is_middle=False)
        self._open.append(
            _Expected(
                asked_step,
                asked_step + self._meaning.steps,
                small.astype(np.int16),
                _sized(picture, _shrunk(height, width, KEPT_PX), is_middle=False),
                self._distance(small.astype(np.int16), shown),
            )
        )

    def look(self, step: int, shown: Picture, *, is_last: bool = False) -> None:
        """What the camera shows at a control step.

        Args:
            is_last: what is not due yet never will be.
        """
        for number, expected in enumerate(self._open):
            is_due = is_last or step >= expected.due_step
            if number and not is_due:
                continue
            distance = self._distance(expected.small, shown)
            progress = expected.progress(distance)
            if number == 0:
                self._foreseen.looks.append(Look(step, distance, progress))
            if is_due:
                self._came(expected, step, shown, distance, progress)
        self._open = [e for e in self._open if step < e.due_step]

    def is_due(self, step: int) -> bool:
        """Whether a picture of this control step is wanted."""
        return any(step >= expected.due_step for expected in self._open)

    def reset(self) -> None:
        """What was expected of another episode will not come."""
        self._open.clear()

    def _came(
        self, expected: _Expected, step: int, shown: Picture, distance: float,
        progress: float | None,
    ) -> None:  # fmt: skip
        height, width = expected.kept.shape[:2]
        came = _sized(shown, (height, width), is_middle=self._meaning.is_middle)
        asked, due = expected.asked_step, expected.due_step
        pair = Pair(asked, due, step, expected.kept, came, distance, progress)
        self._foreseen.pairs.add(self._foreseen.num_came, pair)
        self._foreseen.num_came += 1

    def _distance(self, small: NDArray[np.int16], shown: Picture) -> float:
        height, width = small.shape[:2]
        now = _sized(shown, (height, width), is_middle=self._meaning.is_middle)
        return float(np.abs(small - now).mean()) / WHITE


def _shrunk(height: int, width: int, most: int) -> tuple[int, int]:
    """The same proportions with a longer side of `most`, or what there is if that is less."""
    share = min(1.0, most / max(height, width))
    return max(1, round(height * share)), max(1, round(width * share))


def _sized(picture: Picture, size: tuple[int, int], *, is_middle: bool) -> Picture:
    """uint8 [H, W, 3] -> [h, w, 3]: all of it, or the largest middle piece of these proportions."""
    (height, width), (new_height, new_width) = picture.shape[:2], size
    tall, wide = float(height), float(width)
    if is_middle:
        tall = min(tall, width * new_height / new_width)
        wide = min(wide, height * new_width / new_height)
    left, top = (width - wide) / 2, (height - tall) / 2
    sized = Image.fromarray(picture).resize(
        (new_width, new_height), Image.Resampling.BOX, box=(left, top, left + wide, top + tall)
    )
    return np.asarray(sized)
