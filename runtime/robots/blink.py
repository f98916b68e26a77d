"""A task whose goal shows in mid-episode only: one of several equal markers blinks once.

White markers and a yellow one stand in the scene. For a few steps at a random moment one of the
white ones is green; which one and when, neither the first frame nor any later one tells. The hand
waits at the yellow marker until that goes out, then touches the marker that blinked. Touching
another white one, at any time, fails.

The yellow marker stays until the hand has been there for `wait_steps` steps since the blink. So,
however fast the hand is, the first frame upon which the right action depends on the blink comes
more than `wait_steps` steps after the last one that shows it. A memory of fixed delays, all shorter
than that, sees nothing of it then.

All places in metres, x, y, z. M = white marker.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .metaworld_view import Sphere, rays

REACHED_M = 0.05
"""Meta-World's own distance at which a goal counts as reached."""
_MARKER_BOX_M = ((-0.2, 0.75, 0.05), (0.1, 0.9, 0.25))
_WAITING_BOX_M = ((0.22, 0.6, 0.05), (0.32, 0.68, 0.2))
_SPACING_M = 0.12
"""Between two white markers: at least that."""
_CLEARANCE_M = 0.09
"""Between a white marker and the straight way to another one: at least that."""
_APART_IN_VIEW = 0.08
"""Angle between any two markers as the camera sees them, at least that: none hides another."""
_SLOW_WITHIN_M = 0.15
"""The expert slows down in proportion from there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blink:
    """How such an episode runs. Step n is the frame after n actions, and the action upon it."""

    num_markers: int = 3
    """White ones; a guess is right in one of so many episodes."""
    first_step: int = 8
    """The blink begins at this step at the earliest."""
    last_step: int = 20
    """And at this one at the latest."""
    num_steps: int = 6
    """Frames that show it: a policy that looks at every fifth step cannot miss it."""
    wait_steps: int = 40
    """Steps after the blink that the hand has to spend at the yellow marker: 30, and two chunks of
    five actions, some of which are carried out after the yellow marker went out."""


class BlinkEpisode:
    """One episode: the scene, the moment, and how far the hand has come."""

    def __init__(self, blink: Blink, random: np.random.Generator) -> None:
        """Draw an episode; `marker` comes last, so that nothing else depends on it."""
        self.blink = blink
        self.waiting_m, self.markers_m = _draw_places(blink.num_markers, random)
        """[3] of the yellow marker, [M, 3] of the white ones."""
        self.begin = int(random.integers(blink.first_step, blink.last_step + 1))
        """Step of the first frame that shows the blink."""
        self.marker = int(random.integers(blink.num_markers))
        """The white marker that blinks."""
        self.success: bool | None = None
        """None until the hand touches a white marker."""
        self._num_steps = 0
        self._num_waited = 0

    @property
    def end(self) -> int:
        """Step of the first frame that shows the blink no more."""
        return self.begin + self.blink.num_steps

    @property
    def is_lit(self) -> bool:
        """Whether the frame of this step shows the blink."""
        return self.begin <= self._num_steps < self.end

    @property
    def is_waiting(self) -> bool:
        """Whether the yellow marker is still there."""
        return self._num_waited < self.blink.wait_steps

    @property
    def goal_m(self) -> NDArray[np.float64]:
        """[3] of the marker that blinks."""
        return np.asarray(self.markers_m[self.marker])

    @property
    def target_m(self) -> NDArray[np.float64]:
        """[3] of where the hand has to be now."""
        return self.waiting_m if self.is_waiting else self.goal_m

    @property
    def spheres(self) -> list[Sphere]:
        """What the frame of this step shows."""
        seen = [("white", place_m) for place_m in self.markers_m]
        if self.is_lit:
            seen[self.marker] = ("green", self.goal_m)
        return [*seen, ("yellow", self.waiting_m)] if self.is_waiting else seen

    def advance(self, hand_m: NDArray[np.float64]) -> None:
        """A step has passed and the hand is at `hand_m` [3]."""
        self._num_steps += 1
        is_there = bool(np.linalg.norm(hand_m - self.waiting_m) <= REACHED_M)
        self._num_waited += int(is_there and self._num_steps > self.end)
        touched = np.linalg.norm(hand_m - self.markers_m, axis=1) <= REACHED_M
        if touched.any() and self.success is None:
            self.success = bool(touched[self.marker]) and not self.is_waiting

    def expert_action(
        self, hand_m: NDArray[np.float64], marker: int | None = None
    ) -> NDArray[np.float32]:
        """Straight to the yellow marker while it is there, then to a white one: [4] in [-1, 1].

        Args:
            hand_m: where the hand is, [3].
            marker: the white one to touch; the one that blinks if None.
        """
        last_m = self.markers_m[self.marker if marker is None else marker]
        way_m = (self.waiting_m if self.is_waiting else last_m) - hand_m
        # Scaled as a whole: clipped one by one, the components would bend the way.
        way_m = way_m / max(_SLOW_WITHIN_M, float(np.abs(way_m).max()))
        return np.array([*way_m, 0.0], np.float32)


def _draw_places(
    num_markers: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[3] of the yellow marker and [M, 3] of the white ones."""
    while True:
        waiting_m = random.uniform(*_WAITING_BOX_M)
        markers_m = random.uniform(*_MARKER_BOX_M, (num_markers, 3))
        if _is_clear(waiting_m, markers_m):
            return waiting_m, markers_m


def _is_clear(waiting_m: NDArray[np.float64], markers_m: NDArray[np.float64]) -> bool:
    """Whether all are in plain view, apart from each other, and none is on the way to another."""
    seen = rays(np.stack([waiting_m, *markers_m]))
    in_view = all(
        np.linalg.norm(a - b) >= _APART_IN_VIEW for i, a in enumerate(seen) for b in seen[:i]
    )
    return in_view and all(
        np.linalg.norm(goal - other) >= _SPACING_M
        and _distance_to_way(other, waiting_m, goal) >= _CLEARANCE_M
        for i, goal in enumerate(markers_m)
        for j, other in enumerate(markers_m)
        if i != j
    )


def _distance_to_way(
    place_m: NDArray[np.float64], start_m: NDArray[np.float64], end_m: NDArray[np.float64]
) -> float:
    way_m = end_m - start_m
    share = np.clip((place_m - start_m) @ way_m / (way_m @ way_m), 0, 1)
    return float(np.linalg.norm(place_m - start_m - share * way_m))
