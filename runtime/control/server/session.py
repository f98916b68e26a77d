"""Episodes of a served policy: which observation starts one, and what is answered to it.

An episode starts with the first observation under a new lease, and with each that says `reset`. Its
first observation is the anchor, unless the client sends that too. A new text is a new instruction
in the same episode: what depends on it is recomputed, and the anchor stays.

While nobody asks, a policy that somebody watches over checks itself. An episode does not notice.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ...anchor import AnchorPolicies
from ...declarations import Source, from_source
from ...episode import FROM_OPERATOR, Episode
from ...errors import EngineError, ObservationError
from ...policy import Policy
from ..heartbeat import Heartbeat, reason
from .contract import Request

NUM_KEPT = 256


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What was answered, for those who look on."""

    at: float
    """When it was asked, on the clock of the session."""
    infer_s: float
    actions_TA: NDArray[Any]
    step_s: float | None
    """Seconds from one action to the next, where that is known."""
    stages_s: Mapping[str, float]
    """Seconds of the stages that ran."""


class Session:
    """All calls come from one thread, the one that computes."""

    def __init__(
        self,
        policy: Policy,
        seed: int,
        anchor_policy: Callable[[], AnchorPolicies] = lambda: None,
        *,
        heart: Heartbeat | None = None,
        complain: Callable[[Exception], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            policy: loaded and warm.
            seed: of the first episode's noise; the next one has the next, unless a client says so.
            anchor_policy: makes one for each episode; the first frame by default.
            heart: is told of every good answer, and of every self-check; nobody by default.
            complain: told of a self-check that failed.
            clock: seconds that only go forward.
        """
        self.policy = policy
        self.heart = heart or Heartbeat({})
        self.seed = seed
        self.num_episodes = 0
        self.num_ticks = 0
        self.last_infer_ms: float | None = None
        self.answered: deque[Answered] = deque(maxlen=NUM_KEPT)
        """The last ones."""
        self.seen: Mapping[str, Any] = {}
        """What the last one answered to, and what the episode was told last, by name."""
        self._make_anchor_policy = anchor_policy
        self._episode: Episode | None = None
        self._lease = -1
        self._complain, self._clock = complain, clock
        self._heard_at = -math.inf
        """When it was last asked, or checked itself."""
        self._is_behind = False
        """What the episode keeps was computed for a self-check since."""

    def act(self, request: Request, lease: int) -> dict[str, Any]:
        """One tick, as a message.

        Raises:
            ObservationError: a value is missing or cannot be taken; all stays as it was, and the
                episode before goes on.
            EngineError: an engine failed, or the policy answered with NaN or infinity.
        """
        try:
            message = self._act(request, lease)
        except Exception as error:
            if not isinstance(error, ObservationError):
                self.heart.stopped(reason(error))
            raise
        self._is_behind, self._heard_at = False, self._clock()
        self.heart.beat(self.last_infer_ms)
        return message

    def idle(self, *, is_driven: bool) -> float | None:
        """Nobody asks: check the policy where it is time for that, or make up for the last check.

        Args:
            is_driven: somebody may go on with the episode.

        Returns:
            Seconds until there is something to do; None if there will not be.
        """
        period_s = self.heart.check_s
        if period_s is None:
            return None
        remaining_s = self._heard_at + period_s - self._clock()
        if remaining_s > 0 and not self._is_behind:
            return remaining_s
        try:
            if not self._is_behind:
                self._check_policy()
            elif is_driven:
                self.policy.catch_up()
        except Exception as error:
            self.heart.stopped(f"self-check: {reason(error)}")
            self._complain(error)
        self._is_behind = not self._is_behind
        self._heard_at = self._clock()
        return 0.0

    def _check_policy(self) -> None:
        """Raises: EngineError: it does not compute what it should."""
        start = self._clock()
        verdict = self.policy.probe()
        if not verdict.passed:
            raise EngineError(
                f"{verdict.name} of the golden observation: off by {verdict.error:.1e}, allowed "
                f"is {verdict.allowed:.0e}; run: anchorvla check"
            )
        self.heart.beat(1e3 * (self._clock() - start))

    def _act(self, request: Request, lease: int) -> dict[str, Any]:
        if lease != self._lease:
            self._episode, self._lease = None, lease
        start = self._clock()
        told = {n: v for n, v in request.values.items() if self._is_told(n)}
        seen = {n: v for n, v in request.values.items() if n not in told}
        is_first = self._episode is None or request.reset
        self._check(request, is_first)
        episode = self._start(request, told) if is_first else self._episode
        assert episode is not None
        if not is_first and told:
            episode.give(**told)
        for name in request.latch:
            episode.latch(name)
        answer = episode.act(seen)
        outputs = {
            name: answer.leaves[name] if name in answer.leaves else episode.ask(name)
            for name in request.outputs
        }
        self.num_ticks += 1
        infer_s = self._clock() - start
        self.last_infer_ms = 1e3 * infer_s
        ran_s = {} if episode.stats is None else episode.stats.last_s
        self.answered.append(Answered(start, infer_s, answer.actions, answer.step_s, ran_s))
        self.seen = {**({} if is_first else self.seen), **request.values}
        message: dict[str, Any] = {"actions": answer.actions}
        message |= {"episode": self.num_episodes, "step": episode.step - 1, "seed": episode.seed}
        message |= {"outputs": outputs} if outputs else {}
        return message | {"server_timing": {"infer_ms": self.last_infer_ms}}

    def status(self) -> dict[str, Any]:
        """Numbers only, so that any thread may ask."""
        episode = self._episode
        return {
            "episodes": self.num_episodes,
            "step": None if episode is None else episode.step,
            "ticks": self.num_ticks,
            "last_infer_ms": self.last_infer_ms,
        }

    def _is_told(self, name: str) -> bool:
        return self.policy.inputs[name].source in FROM_OPERATOR

    def _check(self, request: Request, is_first: bool) -> None:
        """Whatever could refuse the request does it here, before anything changes."""
        if request.seed is not None and not is_first:
            raise ObservationError("a seed is of an episode: say reset beside it")
        sources: tuple[Source, ...] = ("robot", "operator") if is_first else ("robot",)
        wanted = from_source(self.policy.inputs, *sources)
        if missing := [name for name in wanted if name not in request.values]:
            when = "the first of an episode" if is_first else "every one"
            raise ObservationError(
                f"the observation lacks {', '.join(missing)}; {when} has {', '.join(wanted)}"
            )
        for name, value in request.values.items():
            self.policy.take(name, value)

    def _start(self, request: Request, told: Mapping[str, Any]) -> Episode:
        seed = self.seed if request.seed is None else request.seed
        chosen = self._make_anchor_policy()
        self._episode = self.policy.start(seed=seed, anchor_policy=chosen, **told)
        if request.seed is None:
            self.seed += 1
        self.num_episodes += 1
        return self._episode
