"""The torch reference in closed loop, where `device_tests` drive a bundle: the same observations,
the same noise, nothing kept between ticks.

T = action in the chunk, A = action dimension, S = state dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from device_tests.success.episodes import load_policy
from device_tests.success.posed import EvaluatedPolicy
from models.checkpoint import Checkpoint, load_checkpoint, reference
from models.families import family_of
from models.stored import plain
from runtime.bundle import MANIFEST
from runtime.declarations import Input, from_source
from runtime.episode import Answer
from runtime.inputs import draw_noise


class ReferencePolicy:
    """A checkpoint, run by `models.checkpoint.reference` with all weights in memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """
        Raises:
            ValueError: the policy looks back, and nothing here remembers.
        """
        self.checkpoint = replace(checkpoint, model=plain(checkpoint.model))
        if looking_back := [*from_source(self.inputs, "delay", "memory")]:
            raise ValueError(
                f"the torch reference remembers nothing, and this policy has "
                f"{', '.join(looking_back)}: evaluate its bundle"
            )

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
            given: `instruction`, one line, and latches, the first frame of each by default.
        """
        return ReferenceEpisode(self, seed, given)

    def forget(self) -> None:
        """Nothing is kept."""


class ReferenceEpisode:
    """One episode of a `ReferencePolicy`."""

    def __init__(self, policy: ReferencePolicy, seed: int, given: Mapping[str, Any]) -> None:
        self._policy, self._seed, self._given = policy, seed, dict(given)
        self._latches = from_source(policy.inputs, "latch")
        self._step = 0

    def act(self, observation: Mapping[str, Any], *, at: float | None = None) -> Answer:
        """Pictures uint8 [H, W, 3] RGB, perhaps `state` [S] and `leftover` [T, 1 + A] -> chunk
        [T, A] float32, in robot units."""
        for name, declared in self._latches.items():
            self._given.setdefault(name, observation[declared.of])
        drawn: dict[str, Any] = {
            name: draw_noise(self._seed, self._step, declared.shape)
            for name, declared in from_source(self._policy.inputs, "drawn").items()
        }
        self._step += 1
        actions = reference(self._policy.checkpoint, **self._given, **observation, **drawn)
        return Answer(actions, {}, None, at)

    def see(self, observation: Mapping[str, Any]) -> bool:
        """A step in which nothing is asked: no policy that is evaluated here looks back."""
        return False

    def latch(self, name: str) -> None:
        """Make the next picture the latch's value."""
        self._given.pop(name, None)


def load_either(path: Path) -> EvaluatedPolicy:
    """A bundle as the runtime runs it, a checkpoint folder as the torch reference; one thread.

    Raises:
        CheckpointError, BundleError: the folder is neither, or damaged.
    """
    if (path / MANIFEST).exists():
        return load_policy(path)
    torch.set_num_threads(1)  # the processes of an evaluation share the cores
    return ReferencePolicy(load_checkpoint(path))
