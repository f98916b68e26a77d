"""The control loop: observe, have it thought about, act; on an absolute schedule.

One executor (`chunks.py`) says which action of which chunk is due, and a thinker (`thinker.py`)
answers with chunks. With `sync` a tick waits for the answer, and takes as long as the policy does.
With `async` and `rtc` none waits: the next chunk is thought out while this one is carried out, and
a robot for which no action is due holds. With `rtc` the policy is told what will be carried out.

A late tick is counted and the ones it swallowed are dropped, never caught up in a burst. The robot
is observed where the policy thinks, and once at the end.

An evaluation that waits for nothing is the same loop, on a `VirtualClock`.

T = action in the chunk, A = action dimension, H, W = image height and width.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..anchor import AnchorPolicies, keeps_first
from ..declarations import Output, from_source, seen_later
from ..robots.description import Description
from ..robots.robot import Observation, Robot, check_fits, truths_of
from .chunks import ChunkExecutor
from .clock import Clock, MonotonicClock, ticks
from .delay import Delay, Wanted, choose_chunks, measure_delay, measure_leaves
from .film import Film
from .guard import Guard
from .heartbeat import Heartbeat, of_process
from .leaf_watch import LeafChecks, LeafWatch
from .leaves import LeafRate, Leaves, Reading, check_leaves, check_truths
from .recorder import Recorder, Unrecorded
from .thinker import (
    ActingPolicy,
    AskAgain,
    Event,
    Gauged,
    InlineThinker,
    Observed,
    Started,
    Thinker,
    Thought,
    ThreadThinker,
)
from .trace import Leaf, Notice, Step, Trace

CHUNKS: tuple[Wanted, ...] = get_args(Wanted)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How the robot loop is paced."""

    rate_hz: float = 10.0
    """Actions sent to the robot per second."""

    execute: int = 5
    """Actions of a chunk that are carried out before the policy thinks again; steps at which the
    robot held count as actions."""

    max_steps: int = 1000
    """Actions, and steps that the robot held, after which an episode is given up."""

    chunks: Wanted = "sync"
    """`sync`: a tick that thinks waits for the answer, as recordings and simulators do anyway.
    `async`: none waits; refused where a chunk is too short for the delay. `rtc`: likewise, and the
    next chunk goes on from what is carried out meanwhile. `auto`: what the delay allows
    (`delay.choose_chunks`). For the last three it is measured before the robot moves."""

    leaves: Mapping[str, LeafRate] = field(default_factory=dict)
    """Outputs that no action needs, by name, which are read in time that is left over."""
    checks: LeafChecks = LeafChecks()
    """From when on what they mean contradicts the robot, and what is done then."""

    def __post_init__(self) -> None:
        if self.chunks not in CHUNKS:
            raise ValueError(f"chunks must be one of {', '.join(CHUNKS)}, got {self.chunks!r}")
        if not 0 < self.rate_hz <= 1000:
            raise ValueError(f"rate_hz must be in (0, 1000], got {self.rate_hz}")
        if self.execute < 1 or self.max_steps < 1:
            raise ValueError(
                f"execute and max_steps must be positive, got {self.execute}, {self.max_steps}"
            )


def run_episode(
    policy: ActingPolicy,
    robot: Robot,
    config: LoopConfig,
    *,
    seed: int = 0,
    anchor_policy: AnchorPolicies = None,
    given: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    thinker: Thinker | None = None,
    delay: Delay | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_leaf: Callable[[Reading], None] = lambda reading: None,
    on_notice: Callable[[Notice], None] = lambda notice: None,
    watch: Callable[[Trace, Callable[[str], None]], None] = lambda trace, stop: None,
    limits: Description | None = None,
    flight: Path | None = None,
    recorder: Recorder | None = None,
    heartbeat: Heartbeat | None = None,
) -> Trace:
    """Drive `robot` with `policy` for one episode. However it ends, the robot is told to hold.

    The garbage collector does not run inside the loop: everything the policy holds is frozen
    before, and what a step leaves behind is counted by reference.

    Args:
        policy: a `runtime.Policy`, or what answers like one.
        robot: driven from `reset` until `done`.
        config: how it is paced.
        seed: of the action noise.
        anchor_policy: when the anchor is replaced, see `Policy.start`; `First()` by default.
        given: what the operator gives besides the robot's instruction, by name.
        clock: real time by default.
        thinker: of `policy`; closed at the end. A thread of its own by default, or none for `sync`.
            Once the robot moves, other threads may tell it what `Thinker` takes.
        delay: what thoughts take, where it was measured already: `Trace.delay`.
        on_step: called after every action, inside the loop: what it does takes its time.
        on_leaf: likewise of every leaf that was read, in the control step after it.
        on_notice: likewise of what a leaf contradicts, such as a grasp that missed, to try again.
        watch: called before the robot moves, with the trace as it grows and `Guard.stop`. Other
            threads may read the one and call the other.
        limits: what the robot may do; its own attribute `description`, if it has one, by default.
        flight: folder for the last ticks, written if the guard stops the robot.
        recorder: writes everything down for `anchorvla replay`. A `thinker` of yours has to think
            with `recorder.watch(policy)`.
        heartbeat: told of every action of the policy that is sent; that of the process by default.

    Raises:
        ValueError: `config.execute` is more than a chunk holds, or `config.chunks` cannot be with
            thoughts as long as they are here, or the policy has no such leaf, or the robot knows
            one in another unit; nothing moves then.
        RobotError: the robot does not fit the policy or its limits, or cannot go on.
        Stopped: the guard stopped it.
        ObservationError: it shows something the policy cannot take.
        Exception: what else a thought raised.
    """
    clock, notes = clock or MonotonicClock(), recorder or Unrecorded()
    watched, heart = notes.watch(policy), heartbeat or of_process()
    outputs: Mapping[str, Output] = getattr(policy, "outputs", {})
    check_leaves(config.leaves, outputs)
    if thinker is None:
        thinker = (InlineThinker if config.chunks == "sync" else ThreadThinker)(watched, clock)
    with heart.watching(policy) as heard, contextlib.closing(thinker):
        executor = ChunkExecutor(policy.chunk_shape, execute=config.execute)
        wanted = from_source(policy.inputs, "robot")
        check_fits(robot, wanted, executor.dimensions)
        guard = Guard(robot, 1 / config.rate_hz, description=limits, flight=flight)
        first = robot.reset()
        try:
            films = {name: Film() for name, what in wanted.items() if what.kind == "image"}
            trace = Trace(robot.instruction, 1 / config.rate_hz, first, films=films, delay=delay)
            told = _told(policy, robot, first) | dict(given or {})
            trace.interventions = guard.interventions
            watch(trace, guard.stop)
            seen = tuple(wanted), seen_later(policy.inputs)
            loop = _Loop(
                thinker, executor, robot, guard, clock, trace, notes, heard, *seen, on_leaf=on_leaf
            )
            loop.choose(policy, config, told, reanchors=not keeps_first(anchor_policy))
            loop.gauge(policy, config, outputs, told)
            notes.begin(robot, first, guard.description, loop=asdict(config), chunks=trace.chunks)
            loop.start(seed=seed, anchor_policy=anchor_policy, given=told)
            if thinker.leaves is not None:
                trace.leaves = {n: Leaf(count) for n, count in thinker.leaves.counts.items()}
                loop.leaf_watch = LeafWatch(
                    outputs, trace.leaves, guard.description, config.checks,
                    tell=loop.noticed(on_notice),
                )  # fmt: skip
            armed_s = clock()
            guard.begin(first, armed_s)
            notes.arm(armed_s)
            with _no_collection():
                _drive(loop, config, on_step)
        finally:
            guard.rest()
    last = robot.observe()
    _film(trace, last)
    loop.leaf_watch.end(last)
    trace.success = robot.success
    trace.interventions = dict(guard.interventions)
    notes.result(success=trace.success)
    return trace


def _told(policy: ActingPolicy, robot: Robot, first: Observation) -> dict[str, Any]:
    """What an episode is told by what the robot shows first."""
    texts = (name for name, i in policy.inputs.items() if i.kind == "text")
    latches = from_source(policy.inputs, "latch")
    told: dict[str, Any] = dict.fromkeys(texts, robot.instruction)
    return told | {name: first.values[latch.of] for name, latch in latches.items()}


@dataclass(slots=True)
class _Loop:
    """What an episode is driven with."""

    thinker: Thinker
    executor: ChunkExecutor
    robot: Robot
    guard: Guard
    clock: Clock
    trace: Trace
    notes: Recorder | Unrecorded
    heart: Heartbeat | None
    """None where nobody hears of it."""
    wanted: Sequence[str]
    seen_later: Iterable[str]
    """What the policy has to see in every step, whether it is asked then or not."""
    leftovers: Sequence[str] = ()
    """Inputs that are told what is left of the last chunk, if they shall be."""
    looked_at: float = 0.0
    """When the observation was asked for that the chunk answers to."""
    num_resets: int = 0
    """Of the thinker, when the executor was last asked."""
    last_seen: int = -1
    """The last step of which the policy saw something."""
    on_leaf: Callable[[Reading], None] = lambda reading: None
    leaf_watch: LeafWatch = field(default_factory=LeafWatch)

    def choose(
        self, policy: ActingPolicy, config: LoopConfig, told: Mapping[str, Any], *, reanchors: bool
    ) -> None:
        """How to use chunks, by what a thought takes."""
        if config.chunks == "sync":
            return
        if self.trace.delay is None:
            self.start(seed=0, anchor_policy=None, given=told)
            seen = {name: self.trace.first.values[name] for name in self.wanted}
            self.trace.delay = measure_delay(
                self.thinker, policy.inputs, seen, clock=self.clock, reanchors=reanchors
            )
        executor, leftovers = self.executor, tuple(from_source(policy.inputs, "loop"))
        self.trace.chunks = choose_chunks(
            config.chunks,
            self.trace.delay,
            horizon=executor.horizon,
            execute=config.execute,
            rate_hz=config.rate_hz,
            takes_leftover=bool(leftovers),
        )
        if self.trace.chunks == "rtc":
            self.leftovers = leftovers
        if self.trace.chunks != "sync":
            executor.expect(self.trace.delay.steps(config.rate_hz))

    def gauge(
        self,
        policy: ActingPolicy,
        config: LoopConfig,
        outputs: Mapping[str, Output],
        told: Mapping[str, Any],
    ) -> None:
        """Measure what each leaf takes, so that none begins that would last too long."""
        if not config.leaves:
            return
        check_truths(config.leaves, outputs, truths_of(self.robot))
        self.thinker.leaves = leaves = Leaves(config.leaves, outputs)
        self.start(seed=0, anchor_policy=None, given=told)
        seen = {name: self.trace.first.values[name] for name in self.wanted}
        measure_leaves(self.thinker, leaves, policy.inputs, seen, clock=self.clock)

    def spare(self, step: int, next_s: float) -> None:
        """Leave the policy what time there is until it may be asked again.

        Args:
            next_s: when the next control step begins.
        """
        if self.thinker.leaves is None:
            return
        # A thought in this very thread would keep the next control step waiting; and a policy that
        # is shown every step may want to be asked at the next one.
        waits = isinstance(self.thinker, InlineThinker) or bool(self.seen_later)
        idle = 1 if waits else self.executor.idle(step)
        self.thinker.spare(next_s + (idle - 1) * self.trace.period_s)

    def start(self, *, seed: int, anchor_policy: AnchorPolicies, given: Mapping[str, Any]) -> None:
        """Begin an episode of the policy, and wait until it has."""
        self.thinker.start(seed=seed, anchor_policy=anchor_policy, **given)
        for event in self.thinker.wait():
            self.take(event)

    def think(self, step: int) -> Thought | None:
        """Take what was answered, ask if an observation is due; the thought whose chunk is new."""
        fresh = self.poll(self.thinker.poll)
        if self.num_resets != (num_resets := self.thinker.num_resets):
            self.executor.reset()
            self.notes.reset()
            self.leaf_watch.reset()
            self.num_resets = num_resets
        is_due = self.executor.wants(step)
        if is_due or self.seen_later:
            looked_at = self.clock()
            seen = self.guard.observe(looked_at)
            self.notes.look(seen, looked_at)
            if not self.guard.may_think(looked_at):
                return fresh
            self.show(step, seen, is_asked=is_due)
            self.leaf_watch.look(step, seen)
        if is_due:
            _film(self.trace, seen)
            question = self.executor.ask(step)
            self.leaf_watch.ask(question.number, step, seen)
            self.notes.ask(question.number)
            values = {name: seen.values[name] for name in self.wanted}
            values |= {name: question.leftover(self.executor.horizon) for name in self.leftovers}
            truths = {} if self.thinker.leaves is None else truths_of(self.robot)
            self.thinker.ask(Observed(question.number, values, seen.observed_at, looked_at, truths))
        while self.trace.chunks == "sync" and self.executor.is_waiting:
            fresh = self.poll(self.thinker.wait) or fresh
        return fresh

    def show(self, step: int, seen: Observation, *, is_asked: bool) -> None:
        """What the policy wants later, for this step and those before it that were left out."""
        if later := {name: seen.values[name] for name in self.seen_later}:
            for _ in range(self.last_seen + 1, step + (not is_asked)):
                self.thinker.see(later)
        self.last_seen = step

    def heard(self, reading: Reading) -> None:
        """A leaf was read."""
        self.trace.leaves[reading.name].add(reading)
        self.guard.record.heard(reading)
        self.on_leaf(reading)
        self.leaf_watch.hear(reading)

    def noticed(self, on_notice: Callable[[Notice], None]) -> Callable[[Notice], None]:
        """Takes what a leaf contradicts."""

        def tell(notice: Notice) -> None:
            self.trace.notices.append(notice)
            self.guard.record.noticed(notice)
            if notice.is_stop:
                self.guard.halt(notice.kind, notice.words)
            on_notice(notice)

        return tell

    def poll(self, events: Callable[[], list[Event]]) -> Thought | None:
        """Take events; the last thought that counts."""
        fresh = None
        for event in events():
            fresh = self.take(event) or fresh
        return fresh

    def take(self, event: Event) -> Thought | None:
        """The thought, if its chunk is taken."""
        match event:
            case AskAgain():
                self.executor.hurry()
                return None
            case Gauged():
                return None
            case Reading():
                self.heard(event)
                return None
        self.trace.stats = event.stats
        if isinstance(event, Started):
            return None
        number, answer = event.observed.number, event.answer
        if self.executor.asked(number) and self.guard.admit(answer.actions, answer.spread) is None:
            self.executor.refuse(number)
            return None
        if not self.executor.answer(number, answer.actions):
            return None
        self.looked_at = event.observed.looked_at
        return event


def _drive(loop: _Loop, config: LoopConfig, on_step: Callable[[Step], None]) -> None:
    """Steps until the episode is over, noted in `loop.trace`."""
    trace, robot, executor, guard = loop.trace, loop.robot, loop.executor, loop.guard
    step, waits = -1, trace.chunks == "sync"
    for late_s, dropped in ticks(trace.period_s, loop.clock):
        trace.num_dropped += dropped
        num_steps = len(trace.steps) + trace.num_waited + trace.num_held
        if robot.done or num_steps >= config.max_steps:
            return
        # A robot that waits for its answers moves by actions. One that does not moves by the clock.
        step += 1 if waits else 1 + dropped
        began_s = loop.clock()
        fresh = loop.think(step)
        if loop.leaf_watch.wants(step):
            loop.leaf_watch.look(step, robot.observe())
        loop.notes.glance(robot.observe)
        action_A = executor.action(step)
        trace.num_overtaken, trace.num_stale = executor.num_overtaken, executor.num_stale
        now = loop.clock()
        verdict = guard.act(action_A, now=now, num_dropped=dropped)
        loop.leaf_watch.sent(step, now, verdict.sent)
        loop.notes.tick(
            step=step, began_s=began_s, late_s=late_s, dropped=dropped, acted_s=now,
            age_s=now - loop.looked_at, fresh=fresh, due=action_A, command=verdict.sent,
            said=verdict.interventions, seen=guard.seen,
        )  # fmt: skip
        if verdict.sent is None:
            trace.num_held += bool(trace.steps)
            trace.num_waited += not trace.steps
            loop.spare(step, began_s - late_s + trace.period_s)
            continue
        asked_A = verdict.sent if action_A is None else action_A
        stats = None if fresh is None else fresh.stats
        trace.steps.append(
            Step(
                late_s,
                None if fresh is None else fresh.act_s,
                {} if stats is None else stats.last_s,
                asked_A,
                verdict.sent,
                now - loop.looked_at,
                verdict.interventions,
            )
        )
        trace.num_clipped += int(not np.array_equal(verdict.sent, asked_A))
        on_step(trace.steps[-1])
        loop.spare(step, began_s - late_s + trace.period_s)
        if loop.heart is not None and verdict.obeys:
            loop.heart.beat(None if fresh is None else 1e3 * fresh.act_s)


def _film(trace: Trace, seen: Observation) -> None:
    """Keep the pictures of its cameras."""
    for name, film in trace.films.items():
        film.add(len(trace.steps), seen.values[name])


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
