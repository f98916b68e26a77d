"""A recorded episode once more: the same questions in the same order, the answers compared.

Goes in: a journal, and a policy. Comes out: where what is computed now differs from what was
recorded, to the bit. First the policy is told and asked what it was; then its chunks go through
executor and guard, at the recorded times and on the recorded observations, and what is sent is
compared. The robot's own answers are those of its limits, but where it clipped beyond them: there
they are the recorded ones, since nobody can compute them.

T = action in the chunk, A = action dimension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..anchor import Tick
from ..cli.command import one_line
from ..errors import RecordingError
from ..recordings.journal import Journal
from ..robots.description import Description
from ..robots.robot import Limits, Observation, Sensor
from .chunks import ChunkExecutor
from .guard import Guard, Stopped
from .leaf_watch import PERCEPTION
from .thinker import ActingEpisode, ActingPolicy

METHODS = ("say", "give", "latch", "see")
CLIPS = "robot clips"
"""What the guard says where a robot sent otherwise than it was told."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first one of a kind."""

    number: int
    """Of the thought, or of the control tick, from 0 on."""
    words: str
    """What was recorded, and what came out now."""


@dataclass(slots=True)
class Replay:
    """What came of it."""

    chunks: list[NDArray[np.float32] | None] = field(default_factory=list)
    """[T, A] by thought, computed now; None where it failed."""
    told: Counter[str] = field(default_factory=Counter)
    """How often the policy was started, or told something, by method."""
    num_thoughts: int = 0
    """Thoughts that were compared."""
    num_other: int = 0
    """Of these, how many differ."""
    largest: float = 0.0
    """Largest difference of an action, in robot units; NaN where one failed."""
    thought: Difference | None = None
    num_ticks: int = 0
    """Control ticks that were compared, from the first on."""
    num_other_ticks: int = 0
    tick: Difference | None = None
    due: list[NDArray[np.float32] | None] = field(default_factory=list)
    """[A] by tick: the action that is due by the chunks computed now; None where none is."""

    @property
    def is_exact(self) -> bool:
        return self.thought is None and self.tick is None


def replay(
    journal: Journal, policy: ActingPolicy, count: Callable[[int], None] = lambda done: None
) -> Replay:
    """
    Args:
        journal: what was recorded.
        policy: of the same shape as the recorded one.
        count: told how many thoughts are done.

    Raises:
        RecordingError: the journal lacks what replaying it takes.
        ValueError: the policy answers with chunks of another shape.
    """
    recorded = tuple(journal.about["chunk_shape"])
    if recorded != policy.chunk_shape:
        raise ValueError(
            f"{journal.path}: recorded with chunks {list(recorded)}, this policy's are "
            f"{list(policy.chunk_shape)}: name the bundle it was recorded with, "
            f"{(journal.about['policy'] or {}).get('bundle', 'which it does not know')}"
        )
    if any(lost := journal.about["lost"].values()):
        raise RecordingError(
            f"{journal.path}: {sum(lost)} parts were lost when it was recorded "
            f"({_words(journal.about['lost'])}), since the disk was too slow; it cannot be replayed"
        )
    done = Replay()
    _think(journal, policy, done, count)
    _command(journal, done)
    return done


def _think(
    journal: Journal, policy: ActingPolicy, done: Replay, count: Callable[[int], None]
) -> None:
    """Tell and ask the policy what it was told and asked."""
    anchors = dict[str, bool]()
    episode: ActingEpisode | None = None
    for event in journal.events:
        if event["kind"] == "start":
            done.told["start"] += 1
            episode = _start(journal, policy, event, anchors)
        elif event["kind"] == "told":
            done.told[_tell(journal, event, episode)] += 1
        elif event["kind"] == "act":
            if episode is None:
                raise RecordingError(f"{journal.path}: asks before an episode began; damaged")
            anchors.clear()
            anchors.update(event.get("anchors", {}))
            _compare(journal, event, episode, done)
            count(done.num_thoughts)


def _start(
    journal: Journal, policy: ActingPolicy, event: Mapping[str, Any], anchors: Mapping[str, bool]
) -> ActingEpisode | None:
    """The episode, whose anchor policies decide as they did; None if it was refused then."""
    latches = [n for n, i in policy.inputs.items() if i.source == "latch"]
    scripted: Any = {name: _Scripted(anchors, name) for name in latches} if latches else None
    if len(latches) == 1:
        scripted = _Scripted(anchors, latches[0])
    given = journal.value(event["given"])
    episode: ActingEpisode | None = _try(
        event, lambda: policy.start(seed=event["seed"], anchor_policy=scripted, **given)
    )
    return episode


def _tell(journal: Journal, event: Mapping[str, Any], episode: ActingEpisode | None) -> str:
    """By which method the episode is told something."""
    method: str = event["method"]
    if episode is None or method not in METHODS:
        raise RecordingError(f"{journal.path}: tells {method!r} to no episode; damaged")
    _try(event, lambda: getattr(episode, method)(**journal.value(event["values"])))
    return method


class _Scripted:
    """An anchor policy that decides as the recorded one did."""

    def __init__(self, anchors: Mapping[str, bool], latch: str) -> None:
        self._anchors, self._latch = anchors, latch

    def __deepcopy__(self, memo: dict[int, Any]) -> _Scripted:
        return self

    def wants(self, tick: Tick) -> bool:
        return self._anchors.get(self._latch, self._anchors.get("", False))


def _compare(
    journal: Journal, event: Mapping[str, Any], episode: ActingEpisode, done: Replay
) -> None:
    """Ask one question, and compare the answer."""
    values, how = journal.value(event["values"]), journal.value(event["how"])
    number, was = done.num_thoughts, event.get("error")
    done.num_thoughts += 1
    try:
        answer = episode.act(values, **how)
    except Exception as error:
        done.chunks.append(None)
        now = f"{type(error).__name__}: {one_line(error)}"
        if now != was:
            words = f"{'recorded an answer' if was is None else was}, now {now}"
            done.num_other += 1
            done.largest = np.nan
            done.thought = done.thought or Difference(number, words)
        return
    chunk_TA = answer.actions
    done.chunks.append(chunk_TA)
    if was is not None:
        done.num_other += 1
        done.thought = done.thought or Difference(number, f"recorded {was}, now an answer")
        return
    recorded_TA = journal.value(event["actions"])
    if recorded_TA.tobytes() != chunk_TA.tobytes():
        done.num_other += 1
        done.largest = max(done.largest, float(np.abs(recorded_TA - chunk_TA).max()))
        names = journal.about["robot"]["names"]
        done.thought = done.thought or Difference(number, _where(recorded_TA, chunk_TA, names))
    elif str(event["spread"]) != str(answer.spread):
        done.num_other += 1
        words = f"spread of the samples: recorded {event['spread']}, now {answer.spread}"
        done.thought = done.thought or Difference(number, words)


def _command(journal: Journal, done: Replay) -> None:
    """Send the chunks through executor and guard as they were, and compare what is sent."""
    about, robot = journal.about, _Recorded(journal)
    if "armed_s" not in about:
        return
    described = about["robot"]["description"]
    limits = None if described is None else msgspec.convert(described, Description)
    executor = ChunkExecutor(tuple(about["chunk_shape"]), execute=about["loop"]["execute"])
    guard = Guard(robot, 1 / about["loop"]["rate_hz"], description=limits)
    guard.begin(robot.show(0), about["armed_s"])
    for number, tick in enumerate(journal.ticks):
        robot.show(int(tick["look"]), tick)
        _think_again(executor, guard, tick, done)
        if PERCEPTION in journal.interventions[int(tick["said"])]:
            guard.halt(PERCEPTION, "as it was recorded")  # leaves are not read again
        action_A = executor.action(int(tick["step"]))
        done.due.append(action_A)
        try:
            verdict = guard.act(
                action_A, now=float(tick["acted_s"]), num_dropped=int(tick["dropped"])
            )
            sent_A, said = verdict.sent, verdict.interventions
        except Stopped as stop:
            sent_A, said = None, (str(stop),)
        done.num_ticks += 1
        if words := _other(journal, tick, sent_A, said):
            done.num_other_ticks += 1
            done.tick = done.tick or Difference(number, words)


def _think_again(executor: ChunkExecutor, guard: Guard, tick: np.void, done: Replay) -> None:
    """What the executor was told in a tick, in the order in which the loop tells it."""
    fresh, asked = int(tick["fresh"]), int(tick["asked"])
    if fresh and fresh != asked:
        _answer(executor, fresh, done)
    if tick["reset"]:
        executor.reset()
    if not np.isnan(tick["looked_s"]):
        guard.observe(float(tick["looked_s"]))
    if asked:
        number = executor.ask(int(tick["step"])).number
        if number != asked:
            raise RecordingError(f"question {asked} stands where {number} is due; damaged")
    if fresh and fresh == asked:
        _answer(executor, fresh, done)


def _answer(executor: ChunkExecutor, number: int, done: Replay) -> None:
    chunk_TA = done.chunks[number - 1] if number <= len(done.chunks) else None
    if chunk_TA is not None:
        executor.answer(number, chunk_TA)


class _Recorded:
    """A robot that shows what was recorded, and carries out what its limits allow."""

    success = None
    done = False

    def __init__(self, journal: Journal) -> None:
        self._journal, about = journal, journal.about["robot"]
        self.instruction = journal.about["instruction"]
        self.inputs = {
            n: Sensor(s["kind"], tuple(s["shape"]), s["dtype"], s["unit"])
            for n, s in about["inputs"].items()
        }
        low, high = (
            np.array([none if bound is None else bound for bound in about[key]], np.float32)
            for key, none in (("low", -np.inf), ("high", np.inf))
        )
        self.limits = Limits(low, high, tuple(about["units"]), tuple(about["names"]))
        self._looks = journal.named("look")
        self._shown: tuple[int, Observation] | None = None
        self._clipped_A: NDArray[np.float32] | None = None

    def show(self, look: int, tick: np.void | None = None) -> Observation:
        """From now on, until the next call."""
        if self._shown is None or self._shown[0] != look:
            if not 0 <= look < len(self._looks):
                raise RecordingError(f"{self._journal.path}: lacks look {look}; damaged")
            event = self._looks[look]
            values = self._journal.value(event["values"])
            self._shown = look, Observation(values, event["at_s"], event["frame_ids"])
        said = () if tick is None else self._journal.interventions[int(tick["said"])]
        self._clipped_A = tick["command"] if tick is not None and CLIPS in said else None
        return self._shown[1]

    def reset(self) -> Observation:
        return self.show(0)

    def observe(self) -> Observation:
        assert self._shown is not None
        return self._shown[1]

    def send(self, action_A: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.limits.clip(action_A) if self._clipped_A is None else self._clipped_A.copy()

    def hold(self) -> None:
        """It stands still by itself."""

    def close(self) -> None:
        """It holds nothing."""


def _other(
    journal: Journal, tick: np.void, sent_A: NDArray[np.float32] | None, said: tuple[str, ...]
) -> str:
    """What is otherwise than in the tick; empty if nothing is."""
    recorded_A: NDArray[np.float32] = tick["command"]
    if tick["sent"] != (sent_A is not None):
        words = ("held", "sent an action")
        return f"recorded {words[bool(tick['sent'])]}, now {words[sent_A is not None]}"
    if sent_A is not None and recorded_A.tobytes() != sent_A.tobytes():
        return _where(recorded_A[None], sent_A[None], journal.about["robot"]["names"])
    recorded = journal.interventions[int(tick["said"])]
    if recorded != said:
        return f"the guard said {', '.join(recorded) or 'nothing'}, now {', '.join(said)}"
    return ""


def _where(was_TA: NDArray[Any], now_TA: NDArray[Any], names: list[str]) -> str:
    """The first number whose bits differ."""
    bits = (np.ascontiguousarray(array, np.float32).view(np.uint32) for array in (was_TA, now_TA))
    step, dimension = np.argwhere(np.not_equal(*bits))[0].tolist()
    name = f" ({names[dimension]})" if names[dimension] else ""
    was, now = (float(array[step, dimension]) for array in (was_TA, now_TA))
    return f"step {step}, dimension {dimension}{name}: recorded {was:.9g}, now {now:.9g}"


def _try(event: Mapping[str, Any], call: Callable[[], Any]) -> Any:
    """What `call` gives; None if it fails as it was recorded to.

    Raises:
        Exception: it fails, and did not.
        RecordingError: it did, and does not.
    """
    was = event.get("error")
    try:
        result = call()
    except Exception as error:
        if was != f"{type(error).__name__}: {one_line(error)}":
            raise
        return None
    if was is not None:
        raise RecordingError(f"{event['kind']} was refused when it was recorded ({was}), now not")
    return result


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
