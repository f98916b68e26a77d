"""Times a bundle on this machine: warm, cold, per stage, and what the interpreter itself costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..episode import Episode
from ..golden import Golden, vary
from ..policy import Policy


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of a set of durations, in milliseconds."""

    p50: float
    p99: float
    n: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Quantiles:
        if not seconds:
            return cls(0.0, 0.0, 0)
        milliseconds: NDArray[np.float64] = np.asarray(seconds) * 1e3
        p50, p99 = np.quantile(milliseconds, [0.5, 0.99])
        return cls(float(p50), float(p99), len(seconds))


@dataclass(frozen=True, slots=True)
class Timing:
    """Ticks of one kind."""

    tick: Quantiles
    overhead: Quantiles
    """Tick time less the time inside engines: host functions, the interpreter, and what `act` does
    besides (inputs checked and copied, noise drawn, the answer read)."""
    interpreter: Quantiles
    """What of this the interpreter itself takes."""
    stages: dict[str, Quantiles]


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick, in seconds."""

    elapsed: float
    outside: float
    """Not inside engines."""
    interpreter: float
    stages: dict[str, float]


class Ticker:
    """Ticks on ever-changing input, so that nothing but the wanted cache can help."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._golden = Golden.of(policy.bundle)
        self._engines = {s.name for s in policy.graph.stages if s.engine}
        self._count = 0
        self.episode: Episode = policy.start(**self._golden.given)

    def tick(self, *, cold: bool) -> Tick:
        """One tick on a new observation; `cold` marks every input as changed."""
        self._count += 1
        observation = vary(self.policy.inputs, self._golden.observed, self._count)
        if cold:
            self.policy.interpreter.forget()
        start = time.perf_counter()
        self.episode.act(observation)
        elapsed = time.perf_counter() - start
        stages = dict(self.policy.interpreter.last_run)
        inside = sum(seconds for name, seconds in stages.items() if name in self._engines)
        return Tick(elapsed, elapsed - inside, self.policy.interpreter.own_s, stages)


def measure(
    policy: Policy, num_ticks: int, on_tick: Callable[[int], None] = lambda done: None
) -> dict[str, Timing]:
    """`warm` and `cold` ticks, interleaved; `on_tick` is told how many of each are done."""
    ticker = Ticker(policy)
    for cold in (True, False):
        ticker.tick(cold=cold)
    rows: dict[str, list[Tick]] = {"warm": [], "cold": []}
    for done in range(1, num_ticks + 1):
        for kind, row in rows.items():
            row.append(ticker.tick(cold=kind == "cold"))
        on_tick(done)
    return {kind: _timing(row) for kind, row in rows.items()}


def _timing(row: Sequence[Tick]) -> Timing:
    names = dict.fromkeys(name for tick in row for name in tick.stages)
    return Timing(
        tick=Quantiles.of([tick.elapsed for tick in row]),
        overhead=Quantiles.of([tick.outside for tick in row]),
        interpreter=Quantiles.of([tick.interpreter for tick in row]),
        stages={n: Quantiles.of([t.stages[n] for t in row if n in t.stages]) for n in names},
    )
