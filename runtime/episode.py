"""One run of the robot: observations in, answers out, and latches in between.

T = action in the chunk, A = action dimension.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .anchor import AnchorPolicy, Tick
from .declarations import Source, from_source, seen_later
from .engine import Memory
from .errors import EngineError, EpisodeError, ObservationError
from .functions.keyframes import Keyframes
from .functions.remembered import StoreStats
from .graph import Graph
from .inputs import CAMERAS, History, check_names, draw_noise, no_leftover, push, take_recalled
from .interpreter import Interpreter

FROM_ROBOT: tuple[Source, ...] = ("robot", "drawn", "loop")
FROM_OPERATOR: tuple[Source, ...] = ("operator", "latch")
"""Sources of what `act` may be given, and of what the start and `give` may."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a policy says to one observation; the caller owns its arrays."""

    actions: NDArray[np.float32]
    """[T, A] in robot units."""
    leaves: Mapping[str, NDArray[Any]]
    """Other outputs that were due, by name."""
    step_s: float | None
    """Seconds from one action to the next; None where the checkpoint does not say."""
    observed_at: float | None
    """When the observation was taken, as `act` was told."""
    spread: float | None = None
    """Of several samples: how far this one is from the others, in policy units; None of one."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What an episode cost so far."""

    num_runs: Mapping[str, int]
    """How often each stage ran."""
    total_s: Mapping[str, float]
    """Seconds spent in each stage."""
    last_s: Mapping[str, float]
    """Seconds of the stages that the last tick ran; a stage that is missing was not needed."""
    kept_bytes: Mapping[str, int]
    """Per input that changes less than every tick: bytes that are kept while it stays."""
    repeated_frames: Mapping[str, int]
    """Per camera: ticks whose picture was the one before, to the bit: slow or frozen. The same
    observation under another noise is no such tick."""
    failed_ticks: int
    """Calls of `act` that took their arguments and gave no chunk."""
    stores: Mapping[str, StoreStats]
    """Per store of the graph: what it spared, and what it takes."""


class Owner(Protocol):
    """What an episode needs of its policy."""

    @property
    def graph(self) -> Graph: ...

    @property
    def memory(self) -> Memory: ...

    @property
    def interpreter(self) -> Interpreter: ...

    def take(self, name: str, value: Any) -> Any:
        """The value, checked and copied."""

    def running(self, episode: Episode) -> contextlib.AbstractContextManager[None]:
        """Nobody else uses the policy meanwhile. Raises EpisodeError if it is another's."""

    def end(self, episode: Episode, why: str) -> None:
        """The episode is over."""


class Episode:
    """Make one with `Policy.start`; a `with` statement ends it.

    Args:
        policy: runs it.
        seed: of what is drawn.
        anchor_policies: per latch.
        given: values that are set already.
    """

    def __init__(
        self,
        policy: Owner,
        seed: int,
        anchor_policies: Mapping[str, AnchorPolicy],
        given: Mapping[str, Any],
    ) -> None:
        self.policy = policy
        self.seed = seed
        self.step = 0
        self.failed_ticks = 0
        self.ended: str | None = None
        """Why it is over; None while it runs."""
        inputs = policy.graph.inputs
        self._robot = [*from_source(inputs, "robot")]
        self._drawn = [*from_source(inputs, "drawn")]
        self._nothing_left = {n: no_leftover(i) for n, i in from_source(inputs, "loop").items()}
        self._rings = [*from_source(inputs, "ring")]
        self._history = History(inputs)
        self._keyframes = Keyframes.of(inputs)
        self._recalled: dict[str, Any] = {}
        self._operator = [*from_source(inputs, "operator")]
        self._by_engine = {
            name
            for name in policy.graph.outputs
            if any(stage.engine for stage in policy.graph.writers(name))
        }
        self._anchor_policies = dict(anchor_policies)
        self._filled = set(given)
        self._latched = dict.fromkeys(anchor_policies, 0)
        self._pending: frozenset[str] = frozenset()
        self._repeated = {n: 0 for n in self._robot if inputs[n].kind in CAMERAS}
        self._observed_at: float | None = None

    def __enter__(self) -> Episode:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"ended, {self.ended}" if self.ended else "running"
        return f"<Episode at step {self.step}, seed {self.seed}, {state}>"

    def act(self, observation: Mapping[str, Any], *, at: float | None = None) -> Answer:
        """One tick: observation -> action chunk.

        >>> with policy.start(instruction="touch the red marker", seed=0) as episode:
        ...     answer = episode.act({"frame": image, "state": state}, at=0.0)
        >>> answer.actions.shape
        (10, 4)

        Args:
            observation: every input that the robot gives, by name (`Policy.inputs` declares
                them): images uint8 [H, W, 3] RGB, vectors float32 [S] in robot units. What is
                drawn may be given too, float32 of its declared shape; and what is left of
                the last chunk (`control.chunks.Question.leftover`).
            at: when it was taken, in seconds of a clock that only goes forward.

        Raises:
            ObservationError: a value is missing or cannot be taken; nothing was computed.
            EngineError: an engine failed, or the policy answered with NaN or infinity.
            EpisodeError: the episode is over.
        """
        values = self._take(observation, FROM_ROBOT)
        if missing := [name for name in self._robot if name not in values]:
            raise ObservationError(
                f"the observation lacks {', '.join(missing)}; this policy looks at "
                f"{', '.join(self._robot)} in every tick"
            )
        self._check_stamp(at)
        with self.policy.running(self):
            if unset := [name for name in self._operator if name not in self._filled]:
                raise ObservationError(
                    f"nobody gave {', '.join(unset)}: say it at the start or with "
                    f"give({unset[0]}=...)"
                )
            with self._tick():
                self._set(values)
                self._latch(values)
                answer = self._run(at)
                self._keyframes = self._keyframes.considered(answer.leaves)
                self.step += 1
                self._observed_at = at if at is not None else self._observed_at
        return answer

    def see(self, observation: Mapping[str, Any]) -> bool:
        """A step between two ticks: what delayed inputs show later. Nothing is computed.

        A latch that is empty takes its value from here as from a tick. Rings count ticks only.

        Args:
            observation: as for `act`; what is not delayed may be left out.

        Returns:
            Whether the policy wants to `act` again as soon as may be: a keyframe was kept.

        Raises:
            ObservationError: a value is missing or cannot be taken; nothing was kept.
            EpisodeError: the episode is over.
        """
        values = self._take(observation, ("robot",))
        if missing := sorted(seen_later(self.policy.graph.inputs) - values.keys()):
            raise ObservationError(
                f"the observation lacks {', '.join(missing)}, which this policy sees later"
            )
        with self.policy.running(self):
            self._history.keep(values)
            self._keyframes = self._keyframes.stepped(values)
            for name in self._anchor_policies:
                source = self.policy.graph.inputs[name].of
                if name not in self._filled and source in values:
                    self._fill(name, values[source])
        return self._keyframes.replans()

    def recall(self, values: Mapping[str, Any]) -> None:
        """Show these in place of what delayed inputs and memories remember: a golden observation is
        of an episode that nobody lives through again.

        Raises:
            ObservationError: a value cannot be taken; nothing is changed.
        """
        self._recalled = take_recalled(values, self.policy.graph, self.policy.take)

    def give(self, **values: Any) -> None:
        """Give inputs of the operator, or latches, a value; it counts from the next `act`.

        Raises:
            ObservationError: a value cannot be taken; the old ones stay.
            EpisodeError: the episode is over.
        """
        taken = self._take(values, FROM_OPERATOR)
        with self.policy.running(self):
            for name, value in taken.items():
                self.policy.interpreter.set(name, value)
                self._filled.add(name)
                if name in self._latched:
                    self._latched[name] = self.step
            self._pending -= taken.keys()

    def say(self, instruction: str) -> None:
        """Give a new instruction; what depends on it is recomputed at the next `act`.

        Raises:
            ObservationError: the text cannot be taken, and the old one stays; or the policy has
                no text, or several.
            EpisodeError: the episode is over.
        """
        texts = [n for n, i in self.policy.graph.inputs.items() if i.kind == "text"]
        if len(texts) != 1:
            raise ObservationError(
                f"this policy has {len(texts)} texts ({', '.join(texts) or 'none'}); "
                "name the one you mean: give(NAME=...)"
            )
        self.give(**{texts[0]: instruction})

    def latch(self, name: str) -> None:
        """Let a latch keep what it latches in the next `act`, such as that frame as the anchor.

        Raises:
            ObservationError: there is no such latch.
            EpisodeError: the episode is over.
        """
        if name not in self._latched:
            raise ObservationError(
                f"no latch {name!r}; this policy has {', '.join(self._latched) or 'none'}"
            )
        with self.policy.running(self):
            self._pending |= {name}

    def ask(self, leaf: str) -> NDArray[Any]:
        """An output, computed on the last observation; the caller owns it.

        Raises:
            ObservationError: there is no such output.
            EngineError: an engine failed, or the output is not finite.
            EpisodeError: the episode is over, or saw nothing yet.
        """
        graph = self.policy.graph
        if leaf not in graph.outputs:
            raise ObservationError(
                f"no output {leaf!r}; this policy has {', '.join(graph.outputs)}"
            )
        with self.policy.running(self):
            if self.step == 0:
                raise EpisodeError(f"{leaf} was asked for before anything was seen: act first")
            with self.policy.interpreter.transaction():
                self.policy.interpreter.run(leaf)
                return self._read(leaf)

    def close(self) -> None:
        """End the episode; the policy stays loaded."""
        self.policy.end(self, "it was closed")

    @property
    def stats(self) -> Stats:
        """What the episode cost so far."""
        graph, interpreter = self.policy.graph, self.policy.interpreter
        names = [stage.name for stage in graph.stages]
        with self.policy.running(self):
            return Stats(
                num_runs=dict(zip(names, interpreter.num_runs, strict=True)),
                total_s=dict(zip(names, interpreter.total_s, strict=True)),
                last_s=dict(interpreter.last_run),
                kept_bytes={
                    name: graph.kept_bytes(name)
                    for name in from_source(graph.inputs, *FROM_OPERATOR)
                },
                repeated_frames=dict(self._repeated),
                failed_ticks=self.failed_ticks,
                stores=interpreter.stores,
            )

    def _take(self, values: Mapping[str, Any], sources: tuple[Source, ...]) -> dict[str, Any]:
        """Checked and copied, before anything is set."""
        if not isinstance(values, Mapping):
            raise ObservationError(
                f"an observation is a mapping from names to values, got {type(values).__name__}"
            )
        check_names(values, self.policy.graph, sources)
        return {name: self.policy.take(name, value) for name, value in values.items()}

    def _check_stamp(self, at: float | None) -> None:
        if at is None:
            return
        if (
            isinstance(at, bool)
            or not isinstance(at, (int, float, np.number))
            or not math.isfinite(at)
        ):
            raise ObservationError(f"at must be seconds, got {at!r}")
        if self._observed_at is not None and at < self._observed_at:
            raise ObservationError(
                f"the observation of {at} s is older than the last one, {self._observed_at} s: "
                "take stamps from one clock that only goes forward"
            )

    def _set(self, values: Mapping[str, Any]) -> None:
        """Give the interpreter what was observed, and what follows from it."""
        interpreter, inputs = self.policy.interpreter, self.policy.graph.inputs
        still = [n for n in self._robot if not interpreter.set(n, values[n])]
        is_resampled = len(still) == len(self._robot) and any(n in values for n in self._drawn)
        if self.step and not is_resampled:
            for name in self._repeated.keys() & set(still):
                self._repeated[name] += 1
        for stream, name in enumerate(self._drawn):
            drawn = values.get(name)
            if drawn is None:
                drawn = draw_noise(self.seed, self.step, inputs[name].shape, stream)
            interpreter.set(name, drawn)
        for name, nothing in self._nothing_left.items():
            interpreter.set(name, values.get(name, nothing))
        self._history.keep(values)
        self._keyframes = self._keyframes.stepped(values)
        remembered = dict((*self._history.delayed(), *self._keyframes.shown()))
        for name, value in (remembered | self._recalled).items():
            interpreter.set(name, value)
        for name in self._rings:
            before = interpreter.values[name] if name in self._filled else None
            ring = push(before, values[inputs[name].of], inputs[name].shape[0])
            interpreter.set(name, ring)
            self._filled.add(name)

    def _latch(self, values: Mapping[str, Any]) -> None:
        """Empty latches take the present value; others where somebody wants it."""
        for name, anchor_policy in self._anchor_policies.items():
            present = values[self.policy.graph.inputs[name].of]
            if name not in self._filled:
                self._fill(name, present)
            tick = Tick(
                self.step,
                self.step - self._latched[name],
                {n: values[n] for n in self._robot},
                lambda name=name: self._similarity(name),  # type: ignore[misc]
            )
            if anchor_policy.wants(tick) or name in self._pending:
                self._fill(name, present)
        self._pending = frozenset()

    def _fill(self, latch: str, value: Any) -> None:
        self.policy.interpreter.set(latch, value)
        self._filled.add(latch)
        self._latched[latch] = self.step

    def _run(self, at: float | None) -> Answer:
        target, leaves = self.policy.graph.target, self._due()
        declared = self.policy.graph.outputs[target]
        spread = [declared.spread] if declared.spread else []
        self.policy.interpreter.run(target, *leaves, *spread)
        return Answer(
            self._read(target),
            {name: self._read(name) for name in leaves},
            declared.step_s,
            at,
            float(self._read(spread[0]).ravel()[0]) if spread else None,
        )

    def _due(self) -> list[str]:
        """Leaves that are due in this tick."""
        outputs = self.policy.graph.outputs
        return [
            name
            for name, output in outputs.items()
            if output.every and self.step % output.every == 0 and name != self.policy.graph.target
        ]

    def _similarity(self, latch: str) -> float:
        leaf = self.policy.graph.inputs[latch].similarity
        if not leaf:
            raise ObservationError(f"no output of this policy tells how like {latch!r} a value is")
        self.policy.interpreter.run(leaf)
        return float(self._read(leaf).ravel()[0])

    def _read(self, output: str) -> NDArray[Any]:
        """A copy of a computed output.

        Raises:
            EngineError: it is not finite.
        """
        if output in self._by_engine:
            self.policy.memory.download(output)
        value: NDArray[Any] = self.policy.memory.host(output).copy()
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise EngineError(
                f"tick {self.step}: the policy answered with NaN or infinity in {output!r}, and "
                "the tick was undone; if it comes again, run: anchorvla check"
            )
        return value

    @contextlib.contextmanager
    def _tick(self) -> Iterator[None]:
        """All or nothing: of the episode too, its anchor policies included."""
        before = self._filled.copy(), self._latched.copy(), self._pending, self._repeated.copy()
        past, keyframes = self._history.past.copy(), self._keyframes
        clock, anchor_policies = (
            (self.step, self._observed_at),
            {n: copy.deepcopy(p) for n, p in self._anchor_policies.items()},
        )
        try:
            with self.policy.interpreter.transaction():
                yield
        except BaseException:
            self._filled, self._latched, self._pending, self._repeated = before
            self._history.past, self._keyframes = past, keyframes
            self.step, self._observed_at = clock
            self._anchor_policies = anchor_policies
            self.failed_ticks += 1
            raise
