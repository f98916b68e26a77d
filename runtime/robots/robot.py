"""The robot as the control loop sees it.

S = state dimension, A = action dimension, H, W = image height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Observation:
    """What the robot sees and feels at one control step."""

    image: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    state: NDArray[np.float32]
    """[S] in robot units."""


class Robot(Protocol):
    """What a control loop drives.

    Order of calls: `reset`, then `observe` and `apply` until `done`, then `reset` again or `close`.
    `observe` and `apply` before the first `reset`, and `apply` once `done`, raise `RobotError`.
    """

    instruction: str
    """What the operator wants, as the policy gets to read it."""

    def reset(self) -> Observation:
        """Start an episode; the observation returned is its first, the anchor frame.

        Something may be visible in it and gone right after, in the first `observe`.
        """

    def observe(self) -> Observation:
        """The newest observation; the same one, bit for bit, until the next `apply`."""

    def apply(self, action_A: NDArray[np.float32]) -> None:
        """Carry out one action, [A] float32 in robot units.

        Raises:
            ValueError: if `action_A` has the wrong shape or holds a NaN or infinity.
        """

    @property
    def done(self) -> bool:
        """Whether the episode is over."""

    @property
    def success(self) -> bool | None:
        """Whether the task was achieved in this episode; None where nobody can tell."""

    def close(self) -> None:
        """Free what the robot holds. Calling it twice is fine."""


def check_action(action_A: NDArray[np.float32], num_dimensions: int) -> None:
    """Refuse an action that no robot should get to see.

    Raises:
        ValueError: if `action_A` is not finite float32 of shape [num_dimensions].
    """
    if action_A.shape != (num_dimensions,) or action_A.dtype != np.float32:
        raise ValueError(
            f"an action must be float32 [{num_dimensions}], "
            f"got {action_A.dtype} {list(action_A.shape)}"
        )
    if not np.isfinite(action_A).all():
        raise ValueError(f"an action must be finite, got {action_A.tolist()}")
