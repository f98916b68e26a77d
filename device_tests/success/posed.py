"""A policy as an evaluation poses it to the control loop: told something else, another anchor.

A = action dimension, T = action in the chunk, H, W = image height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.anchor import AnchorPolicies
from runtime.declarations import Input, from_source
from runtime.episode import Answer


class EvaluatedEpisode(Protocol):
    """What an evaluation needs of `runtime.Episode`."""

    def act(self, observation: Mapping[str, Any], *, at: float | None) -> Answer: ...

    def see(self, observation: Mapping[str, Any]) -> bool: ...

    def latch(self, name: str) -> None: ...


class EvaluatedPolicy(Protocol):
    """What an evaluation needs of `runtime.Policy`."""

    @property
    def inputs(self) -> Mapping[str, Input]: ...

    @property
    def chunk_shape(self) -> tuple[int, int]: ...

    def start(self, *, seed: int, **given: Any) -> EvaluatedEpisode: ...

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
        forgetful: bool = False,
    ) -> None:
        """
        Args:
            policy: runs one episode at a time.
            instruction: what it is told instead of the robot's own.
            anchor: instead of the first frame, [H, W, 3].
            follow: make every frame the anchor.
            cold: recompute everything at every thought.
            forgetful: begin a new episode at every thought, with the first frames of this one: the
                policy remembers nothing else.
        """
        self.inputs, self.chunk_shape = policy.inputs, policy.chunk_shape
        self._policy = policy
        self._instruction, self._anchor = instruction, anchor
        self._follow, self._cold, self._forgetful = follow, cold, forgetful
        self._digest = hashlib.sha256()

    def start(
        self, *, seed: int, anchor_policy: AnchorPolicies = None, **given: Any
    ) -> PosedPolicy:
        """As `runtime.Policy.start`; here `follow` says when the anchor is replaced."""
        self._digest = hashlib.sha256()
        posed = {"anchor": self._anchor, "instruction": self._instruction}
        given |= {name: value for name, value in posed.items() if value is not None}
        self._started = {"seed": seed, **given}
        self._episode = self._policy.start(**self._started)
        return self

    def see(self, observation: Mapping[str, Any]) -> bool:
        """As `runtime.Episode.see`."""
        return not self._forgetful and self._episode.see(observation)

    def act(self, observation: Mapping[str, Any], *, at: float | None = None) -> Answer:
        """As `runtime.Episode.act`."""
        if self._follow:
            self._episode.latch("anchor")
        if self._forgetful:
            for name, latch in from_source(self.inputs, "latch").items():
                self._started.setdefault(name, observation[latch.of])
            self._episode = self._policy.start(**self._started)
        if self._cold:
            self._policy.forget()
        answer = self._episode.act(observation, at=at)
        self._digest.update(answer.actions.tobytes())
        return answer

    @property
    def digest(self) -> str:
        """SHA-256 over all chunks of the episode."""
        return self._digest.hexdigest()
