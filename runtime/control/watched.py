"""A policy whose episodes tell somebody what they are told and what they answer.

Watched from outside, so what is noted is what took effect, in that order, whichever thread said it;
and what an anchor policy decided, so that one of the user's own can be replayed too.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from ..anchor import AnchorPolicy
from ..cli.command import one_line
from ..declarations import Input
from ..episode import Answer, Stats
from .thinker import ActingEpisode, ActingPolicy

Source = Literal["loop", "policy"]


class Put(Protocol):
    """Takes an event; must not wait, nor change its fields."""

    def __call__(self, kind: str, by: Source, fields: Mapping[str, Any]) -> None: ...


class WatchedPolicy:
    """An `ActingPolicy` that notes what it is told."""

    def __init__(self, policy: ActingPolicy, put: Put) -> None:
        self._policy, self._put = policy, put

    @property
    def inputs(self) -> Mapping[str, Input]:
        return self._policy.inputs

    @property
    def chunk_shape(self) -> tuple[int, int]:
        return self._policy.chunk_shape

    def start(self, *, seed: int, anchor_policy: Any, **given: Any) -> _WatchedEpisode:
        decided: dict[str, bool] = {}
        watched = anchor_policy
        if isinstance(anchor_policy, Mapping):
            watched = {n: _WatchedAnchor(p, n, decided) for n, p in anchor_policy.items()}
        elif anchor_policy is not None:
            watched = _WatchedAnchor(anchor_policy, "", decided)
        fields = {"seed": seed, "anchor_policy": repr(anchor_policy), "given": given}
        with _noting(self._put, "start", fields):
            episode = self._policy.start(seed=seed, anchor_policy=watched, **given)
        return _WatchedEpisode(episode, self._put, decided)


class _WatchedEpisode:
    """An `ActingEpisode` that notes what it is told, and what it answers."""

    def __init__(self, episode: ActingEpisode, put: Put, decided: dict[str, bool]) -> None:
        self._episode, self._put, self._decided = episode, put, decided

    @property
    def stats(self) -> Stats | None:
        return self._episode.stats

    def act(self, observation: Mapping[str, Any], **how: Any) -> Answer:
        fields: dict[str, Any] = {"values": dict(observation), "how": how}
        with _noting(self._put, "act", fields):
            answer = self._episode.act(observation, **how)
            fields["actions"] = answer.actions.copy()
            fields["anchors"] = dict(self._decided)
            fields["spread"] = answer.spread
        return answer

    def ask(self, leaf: str) -> Any:
        """Not noted: what is read between two thoughts changes none."""
        return self._episode.ask(leaf)  # type: ignore[attr-defined]

    def give(self, **values: Any) -> None:
        self._tell("give", values)

    def say(self, instruction: str) -> None:
        self._tell("say", {"instruction": instruction})

    def latch(self, name: str) -> None:
        self._tell("latch", {"name": name})

    def see(self, observation: Mapping[str, Any]) -> bool:
        wanted: bool = self._tell("see", {"observation": dict(observation)})
        return wanted

    def _tell(self, method: str, values: dict[str, Any]) -> Any:
        with _noting(self._put, "told", {"method": method, "values": values}):
            return getattr(self._episode, method)(**values)


class _WatchedAnchor:
    """An anchor policy whose answers are noted."""

    def __init__(self, policy: AnchorPolicy, latch: str, decided: dict[str, bool]) -> None:
        self._policy, self._latch, self._decided = policy, latch, decided
        self.needs_similarity = getattr(policy, "needs_similarity", False)
        self.needs_vector = getattr(policy, "needs_vector", "")

    def __deepcopy__(self, memo: dict[int, Any]) -> _WatchedAnchor:
        return _WatchedAnchor(copy.deepcopy(self._policy, memo), self._latch, self._decided)

    def __repr__(self) -> str:
        return repr(self._policy)

    def wants(self, tick: Any) -> bool:
        wanted = self._policy.wants(tick)
        self._decided[self._latch] = bool(wanted)
        return wanted


@contextlib.contextmanager
def _noting(put: Put, kind: str, fields: dict[str, Any]) -> Iterator[None]:
    """What the policy is told is an event, also if it refuses."""
    try:
        yield
    except Exception as error:
        fields["error"] = f"{type(error).__name__}: {one_line(error)}"
        raise
    finally:
        put(kind, "policy", fields)
