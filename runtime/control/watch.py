"""Is what the robot shows fresh, and is it what it seems to be?

Goes in: every observation, with the time. Comes out: what is wrong with it, in one word each. A
picture that is wrong (repeated, frozen, black, of another camera) counts as none, so a camera that
goes on sending it is lost like one that sends nothing.

Times are seconds on the clock of the stamps. Where stamps are simulated, nothing is too old.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..robots.description import Description
from ..robots.robot import AHEAD_S, OLDEST_IMAGE_S, OLDEST_STATE_S, Observation, Sensor

LOST_PERIODS = 3
"""Camera periods without a new picture: a fault, and the robot holds."""
STOP_S = 0.5
"""Without a new picture, a fresh state, or a robot that follows: the robot stops for good."""
BLACK = 24
"""No pixel of a black picture is brighter, of 255; no depth of an empty one is above 0."""
ROWS, COLUMNS = 16, 64
"""Rows that are looked at, of a picture, and columns of them for what needs arithmetic. Whole rows:
what is copied at once costs less than a grid of points."""
CELLS = 8
"""Rows and columns of the means that tell one camera from another."""
ALIKE = 0.25
"""A picture is of another camera if it is so much closer to that one's anchor than to its own."""

Sample = NDArray[Any]


class Watch:
    """Of one robot, for one episode."""

    def __init__(self, description: Description, inputs: Mapping[str, Sensor]) -> None:
        """
        Raises:
            ValueError: the description names an input that the robot does not show.
        """
        self.description = description
        pictures = {name for name, what in inputs.items() if what.kind != "vector"}
        for name in description.cameras:
            if name not in pictures:
                raise ValueError(
                    f"the robot description watches the camera {name!r}, the robot shows "
                    f"{', '.join(sorted(pictures)) or 'none'}; use the name of an input"
                )
        self._measured = {n: a.measured for n, a in enumerate(description.axes) if a.measured}
        counted = [*self._measured.values(), *description.joints.values()]
        last = max((measured.index for measured in counted), default=-1)
        if description.state is not None:
            state = inputs.get(description.state)
            if state is None or state.kind != "vector" or state.shape[0] <= last:
                found = "nothing" if state is None else f"{state.kind} {list(state.shape)}"
                raise ValueError(
                    f"the robot description counts to number {last} of the input "
                    f"{description.state!r}, and the robot shows {found} of that name"
                )
        self._is_picture = {name: name in pictures for name in inputs}
        self._is_timed = description.stamps == "monotonic"

    def begin(self, first: Observation, now: float) -> None:
        """The anchor shows each camera as it should look."""
        samples = {n: _sample(first.values[n]) for n in self.description.cameras}
        self._anchors = {name: _means(sample) for name, sample in samples.items()}
        self._samples = samples
        self._frame_ids = {name: first.frame_ids.get(name) for name in self.description.cameras}
        self._bad: dict[str, str] = {}
        self._stamps = dict(first.at)
        self._good_at = dict.fromkeys(self.description.cameras, now)
        self._state_at = self._following_at = now

    def look(self, seen: Observation, now: float) -> set[str]:
        """Take one observation in; what of it is wrong by itself."""
        problems = set[str]()
        for name, at in seen.at.items():
            if not at >= self._stamps.get(name, at):
                problems.add("stamps go backwards")
            self._stamps[name] = at
        if self.felt(seen) is None:
            problems.add("state is no number")
        elif self.description.state is not None and (
            self._age(self.description.state, now) <= OLDEST_STATE_S
        ):
            self._state_at = now
        moved = {
            n: i for n in self._frame_ids if (i := seen.frame_ids.get(n)) != self._frame_ids[n]
        }
        samples = {name: _sample(seen.values[name]) for name in moved}
        swapped = self._swapped(samples) if len(self._anchors) > 1 else set[str]()
        for name, frame_id in moved.items():
            self._frame_ids[name] = frame_id
            self._bad[name] = self._verdict(name, samples[name], name in swapped)
            self._samples[name] = samples[name]
            if not self._bad[name]:
                self._good_at[name] = now
        return problems | {bad for bad in self._bad.values() if bad}

    def too_old(self, now: float) -> set[str]:
        """What is too old for a thought that would start now, by the last observation."""
        if not self._is_timed:
            return set()
        problems = set[str]()
        for name, is_picture in self._is_picture.items():
            oldest, words = (OLDEST_IMAGE_S, "image") if is_picture else (OLDEST_STATE_S, "state")
            age = self._age(name, now) if name in self._stamps else np.inf
            if not age <= oldest:
                problems.add(f"stale {words}")
        return problems

    def faults(self, now: float) -> tuple[set[str], bool]:
        """What of the robot's senses is lost, and whether it is lost for so long that it stops."""
        if not self._is_timed:
            return set(), False
        problems, stops = set[str](), False
        for name, camera in self.description.cameras.items():
            silent_s = now - self._good_at[name]
            if silent_s > LOST_PERIODS / camera.rate_hz:
                problems.add("camera lost")
            stops |= silent_s >= STOP_S
        if self.description.state is not None:
            stops |= now - self._state_at >= STOP_S
            if now - self._state_at > OLDEST_STATE_S:
                problems.add("state lost")
        return problems, stops

    def felt(self, seen: Observation) -> Mapping[int, float] | None:
        """Position by axis, of those that are measured; None if one is no number."""
        if self.description.state is None:
            return {}
        state = seen.values[self.description.state].tolist()
        positions = {n: state[m.index] * m.scale + m.offset for n, m in self._measured.items()}
        return positions if all(map(math.isfinite, positions.values())) else None

    def follows(self, felt: Mapping[int, float], commanded_A: NDArray[Any], now: float) -> bool:
        """Whether every axis is where it was told to be, as far as the description asks."""
        allowed = {number: self.description.axes[number].max_error for number in felt}
        is_near = all(
            abs(felt[number] - commanded_A[number]) <= most
            for number, most in allowed.items()
            if most is not None
        )
        if is_near:
            self._following_at = now
        return is_near

    def strayed(self, now: float) -> bool:
        """Whether it has not followed for so long that it stops."""
        return now - self._following_at >= STOP_S

    def _age(self, name: str, now: float) -> float:
        age = now - self._stamps[name]
        return age if age >= -AHEAD_S else np.inf

    def _verdict(self, name: str, sample: Sample, is_swapped: bool) -> str:
        """What is wrong with a new picture; empty if nothing."""
        if not self.description.cameras[name].may_repeat and np.array_equal(
            sample, self._samples[name]
        ):
            return "frozen image"
        if not (sample > (BLACK if sample.dtype == np.uint8 else 0)).any():
            return "black image"
        return "swapped cameras" if is_swapped else ""

    def _swapped(self, samples: Mapping[str, Sample]) -> set[str]:
        """Cameras of which one shows the other's anchor, among those with a new picture."""
        names = set[str]()
        for own, sample in samples.items():
            means = _means(sample)
            apart = _distance(means, self._anchors[own])
            for other, anchor in self._anchors.items():  # never its own: ALIKE is below 1
                if anchor.shape == means.shape and _distance(means, anchor) < ALIKE * apart:
                    names |= {own, other}
        return names


def _sample(image: NDArray[Any]) -> Sample:
    """A copy of some rows, of the last frame of a video."""
    picture = image[-1] if image.ndim == 4 else image
    return np.array(picture[:: max(1, len(picture) // ROWS)])


def _means(sample: Sample) -> NDArray[np.float32]:
    """Mean of each cell of a grid, and channel."""
    sample = sample[:, :: max(1, sample.shape[1] // COLUMNS)]
    height, width = sample.shape[:2]
    rows = _averaging(height) @ sample.reshape(height, -1).astype(np.float32)
    means: NDArray[np.float32] = _averaging(width) @ rows.reshape(len(rows), width, -1)
    return means


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).sum())


@functools.cache
def _averaging(size: int) -> NDArray[np.float32]:
    """[cells, size] that averages what lies in each."""
    edges = np.linspace(0, size, min(CELLS, size) + 1).astype(int)
    matrix = np.zeros((len(edges) - 1, size), np.float32)
    for cell, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
        matrix[cell, first:last] = 1 / (last - first)
    return matrix
