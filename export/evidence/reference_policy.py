"""The torch reference in closed loop, where `device_tests` drive a bundle: the same observations,
the same noise, nothing kept between ticks.

T = action in the chunk, A = action dimension, S = state dimension.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from device_tests.success.episodes import load_policy
from device_tests.success.posed import EvaluatedPolicy
from models.checkpoint import Checkpoint, load_checkpoint, reference
from runtime.bundle import MANIFEST
from runtime.noise import draw_noise


class ReferencePolicy:
    """A checkpoint, run by `models.checkpoint.reference`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(actions in a chunk, action dimensions)."""
        head = self.checkpoint.config.head
        return head.prediction_horizon, head.action_dim

    def start(self, *, anchor: NDArray[np.uint8], instruction: str, seed: int) -> ReferenceEpisode:
        """Start an episode.

        Args:
            anchor: first frame, uint8 [H, W, 3] RGB.
            instruction: one line of text.
            seed: of the action noise, as the runtime draws it.
        """
        return ReferenceEpisode(self, anchor, instruction, seed)

    def forget(self) -> None:
        """Nothing is kept."""


class ReferenceEpisode:
    """One episode of a `ReferencePolicy`."""

    def __init__(
        self, policy: ReferencePolicy, anchor: NDArray[np.uint8], instruction: str, seed: int
    ) -> None:
        self._policy, self._anchor = policy, anchor
        self._instruction, self._seed = instruction, seed
        self._step = 0

    def act(self, image: NDArray[np.uint8], state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Frame uint8 [H, W, 3] RGB and state [S] -> chunk [T, A] float32, both in robot units."""
        noise = draw_noise(self._seed, self._step, self._policy.chunk_shape)
        self._step += 1
        return reference(
            self._policy.checkpoint,
            anchor=self._anchor,
            frame=image,
            instruction=self._instruction,
            state=state,
            noise=noise,
        )

    def re_anchor(self, image: NDArray[np.uint8]) -> None:
        """Make `image` the anchor."""
        self._anchor = image


def load_either(path: Path) -> EvaluatedPolicy:
    """A bundle as the runtime runs it, a checkpoint folder as the torch reference; one thread.

    Raises:
        CheckpointError, BundleError: the folder is neither, or damaged.
    """
    if (path / MANIFEST).exists():
        return load_policy(path)
    torch.set_num_threads(1)  # the processes of an evaluation share the cores
    return ReferencePolicy(load_checkpoint(path))
