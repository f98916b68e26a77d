"""Whoever thinks for a control loop: it owns the episode, and all that it is told are messages.

Instruction, latch, reset and questions go into one inbox and take effect in the order in which they
were sent. Any thread may send them. What comes out is polled, so a control tick need not wait for
it. An answer carries the number of the question that it answers to.

`InlineThinker` thinks in the thread that asks, `ThreadThinker` in one of its own.
"""

from __future__ import annotations

import abc
import copy
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from ..anchor import AnchorPolicies
from ..declarations import Input, from_source
from ..episode import Answer, Stats
from ..errors import EngineError, EpisodeError
from ..robots.robot import Truth
from .clock import Clock
from .leaves import Leaves, Reading

_SAME_S = 1e-9
"""Sums of periods are off by less than this in a day."""


class ActingEpisode(Protocol):
    """What a thinker needs of `runtime.Episode`; where messages of that name are sent, also `give`,
    `say`, `latch` and `see`, and `ask` where leaves are read."""

    @property
    def stats(self) -> Stats | None:
        """None where nobody measures."""

    def act(self, observation: Mapping[str, Any], *, at: float | None) -> Answer: ...


class ActingPolicy(Protocol):
    """What it needs of `runtime.Policy`."""

    @property
    def inputs(self) -> Mapping[str, Input]: ...

    @property
    def chunk_shape(self) -> tuple[int, int]: ...

    def start(self, *, seed: int, anchor_policy: AnchorPolicies, **given: Any) -> ActingEpisode: ...


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """A question's observation."""

    number: int
    """Of the question."""
    values: Mapping[str, Any]
    """What the robot gives, and what is left of the last chunk, by name."""
    at: float | None
    """When it was taken, in seconds of the robot's clock."""
    looked_at: float
    """When somebody looked, in seconds of the loop's clock."""
    truths: Mapping[str, Truth] = field(default_factory=dict)
    """What a simulator knew then, by the name of a leaf; the policy never sees it."""


@dataclass(frozen=True, slots=True, eq=False)
class Thought:
    """An answer, and what it cost."""

    observed: Observed
    answer: Answer
    act_s: float
    """Seconds of `Episode.act`."""
    stats: Stats | None
    """Of the episode, behind this thought."""


@dataclass(frozen=True, slots=True, eq=False)
class Started:
    """An episode began."""

    stats: Stats | None


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    seed: int
    anchor_policy: AnchorPolicies
    given: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """A method of the episode, and what it is called with."""

    method: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Gauge:
    """How long a leaf takes."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class _Spare:
    """Nothing is asked of the policy until then."""

    until: float


@dataclass(frozen=True, slots=True, eq=False)
class Gauged:
    """A leaf was read that was not due."""

    name: str
    took_s: float


@dataclass(frozen=True, slots=True, eq=False)
class AskAgain:
    """The policy wants to be asked again as soon as may be: it saw what it will remember."""


class _Reset:
    """Start again as the last time."""


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


Message = _Start | _Told | _Reset | _Gauge | _Spare | Observed
Event = Thought | Started | AskAgain | Gauged | Reading


class Thinker(abc.ABC):
    """Close it when the last episode is over."""

    def __init__(self, policy: ActingPolicy, clock: Callable[[], float]) -> None:
        self._policy, self._clock = policy, clock
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._episode: ActingEpisode | None = None
        self._begin: _Start | None = None
        self._lock = threading.Lock()
        self._seen: Observed | None = None
        """What the last thought of the episode was about."""
        self.leaves: Leaves | None = None
        """What is read between two thoughts; set before an episode starts."""
        self.num_resets = 0
        """A question that was asked before this number changed is one of the last episode."""

    def start(self, *, seed: int, anchor_policy: AnchorPolicies, **given: Any) -> None:
        """Begin an episode, as `Policy.start`; comes out as `Started`."""
        self._inbox.put(_Start(seed, anchor_policy, given))

    def reset(self) -> None:
        """Begin again with what was given at the start, but latches: they take the next values."""
        with self._lock:
            # In this order: what somebody asks who saw the number comes behind the message.
            self._inbox.put(_Reset())
            self.num_resets += 1

    def say(self, instruction: str) -> None:
        """A new instruction, from the next question on. One that is refused is an error of the
        loop: the robot holds. `Policy.take` tells beforehand."""
        self._inbox.put(_Told("say", {"instruction": instruction}))

    def give(self, **values: Any) -> None:
        """The same of any input that the operator gives."""
        self._inbox.put(_Told("give", values))

    def latch(self, name: str) -> None:
        """Let a latch keep what the next question observes."""
        self._inbox.put(_Told("latch", {"name": name}))

    def see(self, observation: Mapping[str, Any]) -> None:
        """A step in which nothing is asked; comes out as `AskAgain` where it wants that."""
        self._inbox.put(_Told("see", {"observation": observation}))

    def ask(self, observed: Observed) -> None:
        """Comes out as a `Thought`."""
        self._inbox.put(observed)

    def gauge(self, leaf: str) -> None:
        """Read a leaf, whether it is due or not; comes out as `Gauged`."""
        self._inbox.put(_Gauge(leaf))

    def spare(self, until: float) -> None:
        """Nothing is asked before `until`, in seconds of the loop's clock: leaves that are due and
        end by then are read, and come out as `Reading`."""
        self._inbox.put(_Spare(until))

    @abc.abstractmethod
    def poll(self) -> list[Event]:
        """What came out since the last call, in order; does not wait.

        Raises:
            Exception: what thinking, or a message, raised.
        """

    @abc.abstractmethod
    def wait(self) -> list[Event]:
        """The same, and waits until there is something.

        Raises:
            Exception: likewise.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """End, after the thought that is being thought.

        Raises:
            Exception: what it raised, if nobody has heard of it.
            EngineError: it does not end.
        """

    def _handle(self, message: Message) -> Event | None:
        """Carry out a message; what comes of it."""
        match message:
            case _Start():
                # A reset needs it as it was: an anchor policy may keep state.
                self._begin = _Start(
                    message.seed, copy.deepcopy(message.anchor_policy), message.given
                )
                return self._started(message)
            case _Reset():
                if self._begin is None:
                    raise EpisodeError("there is nothing to reset: start an episode first")
                latches = from_source(self._policy.inputs, "latch")
                given = {n: v for n, v in self._begin.given.items() if n not in latches}
                again = copy.deepcopy(self._begin.anchor_policy)
                return self._started(_Start(self._begin.seed, again, given))
        if self._episode is None:
            raise EpisodeError("no episode runs: start one first")
        match message:
            case _Gauge():
                return Gauged(message.name, self._asked(message.name)[1])
            case _Spare():
                return self._read(message)
            case _Told():
                wanted = getattr(self._episode, message.method)(**message.values)
                return AskAgain() if message.method == "see" and wanted else None
        begin = self._clock()
        answer = self._episode.act(message.values, at=message.at)
        self._seen = message
        return Thought(message, answer, self._clock() - begin, self._episode.stats)

    def _asked(self, leaf: str) -> tuple[NDArray[Any], float]:
        """A leaf of the last observation, and seconds that it took."""
        begin, ask = self._clock(), getattr(self._episode, "ask")  # noqa: B009
        value: NDArray[Any] = ask(leaf)
        return value, self._clock() - begin

    def _read(self, spare: _Spare) -> Reading | None:
        """The leaf that is due the longest, if one is that lasts no longer than the time does."""
        begin, leaves, seen = self._clock(), self.leaves, self._seen
        if leaves is None or seen is None:
            return None
        if (name := leaves.next(begin, spare.until)) is None:
            return None
        try:
            value, took_s = self._asked(name)
            leaves.check(name, value)
        except Exception as error:  # what no action needs stops no robot; it is counted
            leaves.failed(name, error, self._clock() - begin)
            return None
        due_at = leaves.ran(name, took_s)
        self._inbox.put(spare)  # perhaps another; what came meanwhile goes first
        truth = seen.truths[name].value if name in seen.truths else None
        looked_at, read_at = seen.looked_at, begin + took_s
        return Reading(name, value, seen.number, looked_at, due_at, read_at, took_s, truth)

    def _started(self, start: _Start) -> Started:
        self._seen = None
        if self.leaves is not None:
            self.leaves.begin(self._clock())
        self._episode = self._policy.start(
            seed=start.seed, anchor_policy=start.anchor_policy, **start.given
        )
        return Started(self._episode.stats)


class InlineThinker(Thinker):
    """Thinks while it is polled, in the polling thread.

    In virtual time a thought takes none. `delay_s` says how long it shall take there: so long after
    the question its answer comes out.
    """

    def __init__(self, policy: ActingPolicy, clock: Clock, delay_s: float = 0.0) -> None:
        super().__init__(policy, clock)
        if not 0 <= delay_s < 3600:
            raise ValueError(f"delay_s must be in [0, 3600), got {delay_s}")
        self._sleep, self.delay_s = clock.sleep, delay_s
        self._ready: deque[tuple[float, Event]] = deque()

    def ask(self, observed: Observed) -> None:
        super().ask(observed)
        self._think()

    def spare(self, until: float) -> None:
        super().spare(until)
        self._think()

    def poll(self) -> list[Event]:
        self._think()
        now, events = self._clock() + _SAME_S, []
        while self._ready and self._ready[0][0] <= now:
            events.append(self._ready.popleft()[1])
        return events

    def wait(self) -> list[Event]:
        self._think()
        if not self._ready:
            raise EpisodeError("nothing was asked, so no answer can be waited for")
        if (early := self._ready[0][0] - self._clock()) > 0:
            self._sleep(early)
        return self.poll()

    def close(self) -> None:
        """What was thought out is heard of by now, and nothing thinks on."""

    def _think(self) -> None:
        while not self._inbox.empty():
            message, now = self._inbox.get(), self._clock()
            if (event := self._handle(message)) is not None:
                delay_s = self.delay_s if isinstance(event, Thought) else 0.0
                self._ready.append((now + delay_s, event))


class ThreadThinker(Thinker):
    """Thinks in a thread of its own, which ends with `close`, or with the process."""

    def __init__(
        self, policy: ActingPolicy, clock: Callable[[], float], patience_s: float = 60.0
    ) -> None:
        """
        Args:
            policy: nobody else uses it meanwhile.
            clock: of the loop.
            patience_s: how long `close` waits for the thought that is being thought.
        """
        super().__init__(policy, clock)
        self._patience_s = patience_s
        self._events: queue.SimpleQueue[Event | _Failed] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="thinker", daemon=True)
        self._thread.start()

    def poll(self) -> list[Event]:
        events = list[Event]()
        while not self._events.empty():
            events.append(_opened(self._events.get()))
        return events

    def wait(self) -> list[Event]:
        return [_opened(self._events.get()), *self.poll()]

    def close(self) -> None:
        self._is_closed = True
        self.latch("")  # wakes it
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            raise EngineError(
                f"a thought goes on {self._patience_s:g} s after the episode ended, and cannot be "
                "stopped: the robot holds; end this process, then run: anchorvla doctor"
            )
        self.poll()

    def _run(self) -> None:
        while True:
            message = self._inbox.get()
            if self._is_closed:
                return
            try:
                event = self._handle(message)
            except BaseException as error:  # whoever polls shall hear of it, whatever it was
                self._events.put(_Failed(error))
            else:
                if event is not None:
                    self._events.put(event)


def _opened(event: Event | _Failed) -> Event:
    if isinstance(event, _Failed):
        raise event.error
    return event
