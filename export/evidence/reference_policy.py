"""The torch reference in closed loop, where `device_tests` drive a bundle: the same observations,
the same noise, nothing kept between ticks.

T = action in the chunk, A = action dimension, S = state dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from device_tests.success.episodes import load_policy
from device_tests.success.posed import EvaluatedPolicy
from models.checkpoint import Checkpoint, load_checkpoint, reference
from models.families import family_of
from models.stored import plain
from runtime.bundle import MANIFEST
from runtime.declarations import Input
from runtime.episode import Answer
from runtime.inputs import draw_noise


class ReferencePolicy:
    """A checkpoint, run by `models.checkpoint.reference` with all weights in memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = replace(checkpoint, model=plain(checkpoint.model))

    @property
    def inputs(self) -> Mapping[str, Input]:
        """As a graph of this policy declares them; pictures may have any size."""
        config = self.checkpoint.config
        return family_of(config).inputs(config, self.checkpoint.parts, (1, 1, 3), 1)

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(actions in a chunk, action dimensions)."""
        return self.checkpoint.config.chunk

    def start(self, *, seed: int, **given: Any) -> ReferenceEpisode:
        """Start an episode.

        Args:
            seed: of the action noise, as the runtime draws it.
            given: `anchor`, the first frame, uint8 [H, W, 3] RGB, and `instruction`, one line.
        """
        return ReferenceEpisode(self, given["anchor"], given["instruction"], seed)

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
        self._follows = False

    def act(self, observation: Mapping[str, Any], *, at: float | None = None) -> Answer:
        """`frame` uint8 [H, W, 3] RGB, `state` [S], perhaps `leftover` [T, 1 + A] -> chunk [T, A]
        float32, in robot units."""
        if self._follows:
            self._anchor = observation["frame"]
        self._follows = False
        noise = draw_noise(self._seed, self._step, self._policy.chunk_shape)
        self._step += 1
        actions = reference(
            self._policy.checkpoint,
            anchor=self._anchor,
            frame=observation["frame"],
            instruction=self._instruction,
            state=observation["state"],
            noise=noise,
            leftover=observation.get("leftover"),
        )
        return Answer(actions, {}, None, at)

    def latch(self, name: str) -> None:
        """Make the next frame the anchor."""
        self._follows = True


def load_either(path: Path) -> EvaluatedPolicy:
    """A bundle as the runtime runs it, a checkpoint folder as the torch reference; one thread.

    Raises:
        CheckpointError, BundleError: the folder is neither, or damaged.
    """
    if (path / MANIFEST).exists():
        return load_policy(path)
    torch.set_num_threads(1)  # the processes of an evaluation share the cores
    return ReferencePolicy(load_checkpoint(path))
