"""A policy as an evaluation poses it to the control loop: told something else, another anchor.

A = action dimension, T = action in the chunk, H, W = image height and width.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.anchor import AnchorPolicy


class EvaluatedEpisode(Protocol):
    """What an evaluation needs of `runtime.Episode`."""

    def act(
        self, image: NDArray[np.uint8], state: NDArray[np.float32], /
    ) -> NDArray[np.float32]: ...

    def re_anchor(self, image: NDArray[np.uint8], /) -> None: ...


class EvaluatedPolicy(Protocol):
    """What an evaluation needs of `runtime.Policy`."""

    @property
    def chunk_shape(self) -> tuple[int, int]: ...

    def start(
        self, *, anchor: NDArray[np.uint8], instruction: str, seed: int
    ) -> EvaluatedEpisode: ...

    def forget(self) -> None: ...


class PosedPolicy:
    """A policy as the control loop drives it in an evaluation, which poses the task its own way and
    takes a digest of every answer."""

    stats = None

    def __init__(
        self,
        policy: EvaluatedPolicy,
        *,
        instruction: str | None = None,
        anchor: NDArray[np.uint8] | None = None,
        follow: bool = False,
        cold: bool = False,
    ) -> None:
        """
        Args:
            policy: runs one episode at a time.
            instruction: what it is told instead of the robot's own.
            anchor: instead of the first frame, [H, W, 3].
            follow: make every frame the anchor.
            cold: recompute everything at every thought.
        """
        self.chunk_shape = policy.chunk_shape
        self._policy = policy
        self._instruction, self._anchor = instruction, anchor
        self._follow, self._cold = follow, cold
        self._digest = hashlib.sha256()

    def start(
        self,
        *,
        anchor: NDArray[np.uint8],
        instruction: str,
        seed: int,
        anchor_policy: AnchorPolicy | None = None,
    ) -> PosedPolicy:
        """As `runtime.Policy.start`; here `follow` says when the anchor is replaced."""
        self._digest = hashlib.sha256()
        self._episode = self._policy.start(
            anchor=anchor if self._anchor is None else self._anchor,
            instruction=instruction if self._instruction is None else self._instruction,
            seed=seed,
        )
        return self

    def act(self, image: NDArray[np.uint8], state: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `runtime.Episode.act`."""
        if self._follow:
            self._episode.re_anchor(image)
        if self._cold:
            self._policy.forget()
        chunk_TA = self._episode.act(image, state)
        self._digest.update(chunk_TA.tobytes())
        return chunk_TA

    @property
    def digest(self) -> str:
        """SHA-256 over all chunks of the episode."""
        return self._digest.hexdigest()
