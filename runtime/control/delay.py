"""How long a thought takes here, and which way to use chunks that allows.

`sync`: the loop waits for every answer; the robot gets nothing meanwhile. `async`: the next chunk
is thought out while this one is carried out. So a chunk has to last from its observation to the
next one, and until the answer to that comes. `rtc`, real-time chunking: likewise, and the next
chunk goes on from what is carried out meanwhile, if the policy has an input for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..declarations import Input, from_source
from ..golden import vary
from .leaves import Leaves
from .thinker import Gauged, Observed, Thinker, Thought

Chunks = Literal["sync", "async", "rtc"]
Wanted = Literal["sync", "async", "rtc", "auto"]

NUM_THOUGHTS = 10
"""To measure, behind one that is not: it computes what the others keep."""
MIN_THOUGHTS, ENOUGH_S = 3, 5.0
"""Of a slow policy, fewer: no further one begins after this time."""
NUM_READINGS = 5
"""Of each leaf, behind one that is not counted."""
SYNC_SHARE = 0.5
"""Of a period. A thought that takes less is over before the action of its tick is missed; the rest
is for looking and sending."""
SAME_PERIOD = 0.01
"""Relative; a chunk of 100 actions is off by one then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delay:
    """Of thoughts, measured one after the other."""

    median_s: float
    largest_s: float
    num_thoughts: int
    step_s: float | None = None
    """Seconds from one action of a chunk to the next; None where the checkpoint does not say."""

    def steps(self, rate_hz: float) -> int:
        """Control steps until the answer can be used: at least one, since the next tick takes it.

        A delay of whole periods is not rounded up for the last bit of a float.
        """
        return max(1, math.ceil(self.largest_s * rate_hz - 1e-9))

    def words(self, rate_hz: float) -> str:
        """The figures."""
        return (
            f"a thought takes {self.largest_s * 1e3:.0f} ms here (largest of {self.num_thoughts} "
            f"after warm-up), {self.steps(rate_hz)} control steps at {rate_hz:g} Hz"
        )


def measure_delay(
    thinker: Thinker,
    inputs: Mapping[str, Input],
    observed: Mapping[str, Any],
    *,
    clock: Callable[[], float],
    reanchors: bool = False,
) -> Delay:
    """Let a thinker think whose episode has started, on observations that are never the same.

    Args:
        thinker: its episode is used up: start another one.
        inputs: of its policy.
        observed: an observation by name; the others are like it.
        clock: of the loop.
        reanchors: whether to take a new anchor in every thought: the slowest kind.
    """
    seconds, step_s, begin = list[float](), None, 0.0
    for count in range(NUM_THOUGHTS + 1):
        if len(seconds) >= MIN_THOUGHTS and clock() - begin > ENOUGH_S:
            break
        for name in from_source(inputs, "latch") if reanchors else ():
            thinker.latch(name)
        values, asked_at = vary(inputs, observed, count + 1), clock()
        thinker.ask(Observed(-1 - count, values, None, asked_at))
        thought = next(thoughts(thinker))
        step_s = thought.answer.step_s
        if count:
            seconds.append(clock() - asked_at)
        else:
            begin = clock()
    return Delay(
        median_s=float(np.median(seconds)),
        largest_s=max(seconds),
        num_thoughts=len(seconds),
        step_s=step_s,
    )


def measure_leaves(
    thinker: Thinker,
    leaves: Leaves,
    inputs: Mapping[str, Input],
    observed: Mapping[str, Any],
    *,
    clock: Callable[[], float],
) -> None:
    """Have each leaf read on observations that are never the same, and note what it takes.

    Args:
        thinker: its episode is used up: start another one.
        leaves: theirs.
        inputs: of its policy.
        observed: an observation by name; the others are like it.
        clock: of the loop.
    """
    for count in range(NUM_READINGS + 1):
        values = vary(inputs, observed, count + 1)
        thinker.ask(Observed(-1 - count, values, None, clock()))
        next(thoughts(thinker))
        for name in leaves.names:
            thinker.gauge(name)
            gauged = next(event for event in thinker.wait() if isinstance(event, Gauged))
            if count:
                leaves.measured(name, gauged.took_s)


def thoughts(thinker: Thinker) -> Iterator[Thought]:
    """What comes out, waited for, without what begins an episode."""
    while True:
        yield from (event for event in thinker.wait() if isinstance(event, Thought))


def choose_chunks(
    wanted: Wanted,
    delay: Delay,
    *,
    horizon: int,
    execute: int,
    rate_hz: float,
    takes_leftover: bool,
) -> Chunks:
    """`auto`: sync where a thought fits into a tick; where chunks are long enough for the delay,
    rtc if the policy can and async if it cannot; and sync otherwise: the robot stops for every
    thought then.

    Args:
        wanted: by whoever configured the loop.
        delay: of a thought.
        horizon: actions of a chunk.
        execute: control steps from one observation to the next.
        rate_hz: control steps per second.
        takes_leftover: whether the policy has an input for what is left of the last chunk.

    Raises:
        ValueError: `async` or `rtc` is wanted and cannot be.
    """
    if wanted == "sync":
        return wanted
    why_not = _refusal(delay, horizon, execute, rate_hz)
    if wanted == "auto":
        is_quick = delay.largest_s <= SYNC_SHARE / rate_hz
        return "sync" if is_quick or why_not else "rtc" if takes_leftover else "async"
    if wanted == "rtc" and not takes_leftover:
        raise ValueError(
            "chunks=rtc cannot be: this policy has no input for what is left of the last chunk; "
            "export it again with this version, or use chunks=async"
        )
    if why_not:
        raise ValueError(f"chunks={wanted} {why_not}")
    return wanted


def _refusal(delay: Delay, horizon: int, execute: int, rate_hz: float) -> str:
    """Why a chunk cannot be carried out while the next is thought out; empty if it can."""
    if delay.step_s is not None and abs(delay.step_s * rate_hz - 1) > SAME_PERIOD:
        return (
            f"takes every action for its moment, but this checkpoint's actions are "
            f"{delay.step_s:g} s apart and the loop sends one every {1 / rate_hz:g} s: set rate_hz "
            f"to {1 / delay.step_s:g}, or use chunks=sync"
        )
    steps = delay.steps(rate_hz)
    needed = steps + max(execute, steps)
    if needed <= horizon:
        return ""
    return (
        f"cannot be: {delay.words(rate_hz)}, so with execute={execute} a chunk has to "
        f"last {needed} steps, and this policy's lasts {horizon}: "
        f"{_remedy(delay, steps, horizon, execute)}"
    )


def _remedy(delay: Delay, steps: int, horizon: int, execute: int) -> str:
    if 2 * steps <= horizon:
        return f"set execute to {horizon - steps} or less, or use chunks=sync"
    most = min(horizon - execute, horizon // 2)
    if most < 1:
        return "set execute to less, or use chunks=sync"
    # A little less than what fits exactly, so that rounding does not turn it over.
    rate_hz = math.floor(most / delay.largest_s * 100) / 100
    return f"set rate_hz to {rate_hz:g} or less, or use chunks=sync, which stops for every thought"
