"""python -m tests.loop_ticks [--ticks 1000000] [--leak 0]

The control loop on a clock of its own, episode after episode, with faults of policy, senses and
clock planted at random. Prints how the process grew, what the guard said, and whether a command
broke a limit, which the checker of `tests.guard_storm` integrates. Exits 1 if one did, if garbage
was collected inside an episode, or if the process grew by more than `allowed_mb`.

`--leak` plants a leak of so many bytes per tick, to see it caught.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from device_tests.measure.conditions import read_resident_mb
from device_tests.measure.growth import Thinned, median_slope
from runtime.control.clock import VirtualClock
from runtime.control.delay import Delay
from runtime.control.guard import Stopped
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.thinker import InlineThinker
from runtime.control.trace import Step
from runtime.declarations import Input
from runtime.episode import Answer
from runtime.robots.robot import Observation
from tests.guard_faults import ARM, PERIOD_S, World, sweep
from tests.guard_storm import Checker

EPISODE = 250
"""Control steps at most."""
HORIZON, DELAY_S = 10, 0.12
GROWTH_MB, ARENAS_MB = 100.0, 8.0
"""What a million ticks may grow by, and any number: allocators fill their arenas."""


class LiveWorld(World):
    """The arm of `tests.guard_faults`, on the loop's clock, with a fault that comes and goes."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock
        self.fault: Callable[[World], None] | None = None
        self.begin_s = self.end_s = 0.0
        self.has_stalled = False
        self.stall_s = 0.0

    def observe(self) -> Observation:
        self.now = self._clock()
        if self.begin_s <= self.now < self.end_s:
            if self.fault is not None:
                self.fault(self)
            self._clock.sleep(self.stall_s)  # the driver answers late
            self.stall_s, self.now = 0.0, self._clock()
        elif self.now >= self.end_s:
            vars(self).update(HEALTHY)
        return super().observe()


HEALTHY: Mapping[str, Any] = {
    "frozen_id": None, "frozen_picture": None, "black": False, "swapped": False,
    "image_delay_s": 0.0, "state_delay_s": 0.0, "shift_s": 0.0, "stuck_A": None, "noise": 0.0,
}  # fmt: skip


class Policy:
    """Answers with chunks of a sweep; what is wrong with them is `fault`."""

    chunk_shape = (HORIZON, 4)
    stats = None
    inputs: Mapping[str, Input] = {
        **{
            name: Input(kind="image", source="robot", shape=(32, 32, 3), dtype="uint8", pace="tick")
            for name in ("front", "wrist")
        },
        "state": Input(kind="vector", source="robot", shape=(4,), dtype="float32", pace="tick"),
    }

    def __init__(self, world: LiveWorld) -> None:
        self._world = world
        self.fault: Callable[[np.ndarray], Any] | None = None

    def start(self, **given: Any) -> Policy:
        return self

    def act(self, observation: Mapping[str, Any], *, at: float | None) -> Answer:
        world = self._world
        times = world.now + PERIOD_S * np.arange(HORIZON)
        actions_TA: Any = np.stack([sweep(float(now)) for now in times])
        if self.fault is not None and world.begin_s <= world.now < world.end_s:
            actions_TA = self.fault(actions_TA)
        return Answer(actions_TA, {}, PERIOD_S, at)


def _with(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(actions_TA: np.ndarray) -> np.ndarray:
        actions_TA[3, 1] = value
        return actions_TA

    return change


ANSWERS: Mapping[str, Callable[[np.ndarray], Any]] = {
    "NaN": _with(np.nan),
    "infinity": _with(np.inf),
    "1e30": _with(1e30),
    "a jump": _with(0.9),
    "float64": lambda actions_TA: actions_TA.astype(np.float64),
    "one action": lambda actions_TA: actions_TA[0],
    "noise": lambda actions_TA: np.random.default_rng(1).normal(size=(HORIZON, 4)).astype("f4"),
}
SENSES: Mapping[str, Mapping[str, Any]] = {
    "frozen frames": {"frozen_id": 7},
    "a frozen picture": {"frozen_picture": 7},
    "black pictures": {"black": True},
    "swapped cameras": {"swapped": True},
    "old pictures": {"image_delay_s": 0.3},
    "an old state": {"state_delay_s": 0.15},
    "a state that is no number": {"noise": np.nan},
    "stamps of another clock": {"shift_s": -60.0},
    "a stuck arm": {"stuck_A": np.array([0.3, 0.3, 0.3, 0.5])},
    "nothing": {},
}


@dataclass
class Ticks:
    """What happened."""

    num_ticks: int = 0
    num_episodes: int = 0
    num_commands: int = 0
    num_unjudged: int = 0
    num_stops: int = 0
    num_records: int = 0
    num_collections: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    interventions: Counter[str] = field(default_factory=Counter)
    memory: Thinned = field(default_factory=Thinned)
    """(tick, MB) at the ends of episodes."""

    @property
    def growth_mb(self) -> float:
        """Over the run, by the slope of all but its first quarter."""
        settled = [p for p in self.memory.points if p[0] >= self.num_ticks / 4]
        return median_slope(settled) * self.num_ticks

    @property
    def allowed_mb(self) -> float:
        return max(ARENAS_MB, GROWTH_MB * self.num_ticks / 1e6)

    @property
    def has_failed(self) -> bool:
        wrong = self.violations.total() or self.num_collections
        return bool(wrong or not self.num_commands or self.growth_mb > self.allowed_mb)

    def words(self) -> Iterator[str]:
        """Lines."""
        yield f"{self.num_ticks} ticks in {self.num_episodes} episodes, {self.num_stops} stopped"
        told = ", ".join(f"{kind} {number}" for kind, number in self.interventions.most_common(12))
        yield f"interventions: {told}"
        kinds = ", ".join(f"{kind} {number}" for kind, number in self.violations.items())
        yield (
            f"on the wire: {self.num_commands} commands, {self.violations.total()} violations "
            f"{kinds}; {self.num_unjudged} more of episodes in which the clock stalled"
        )
        yield f"flight records: {self.num_records}"
        yield f"garbage collections inside episodes: {self.num_collections}"
        yield f"memory: grew by {self.growth_mb:.1f} MB, allowed are {self.allowed_mb:.0f}"


def run(num_ticks: int, *, seed: int = 0, leak: int = 0, every: int = 0) -> Ticks:
    """Episodes with a fault each, until so many control steps are over.

    Args:
        num_ticks: control steps.
        seed: of the faults.
        leak: bytes that are kept for good, per step.
        every: print how far it is after so many steps.
    """
    random, result = np.random.default_rng(seed), Ticks()
    kept, phases, counts = list[bytes](), list[str](), list[int]()
    checker, following = Checker(ARM, PERIOD_S), every

    def note(step: Step) -> None:
        counts.append(len(phases))
        if leak:
            kept.append(bytes([len(kept) % 251]) * leak)

    gc.callbacks.append(watch := lambda phase, info: phases.append(phase))
    try:
        with tempfile.TemporaryDirectory() as folder:
            while result.num_ticks < num_ticks:
                world = _episode(random, result, note, Path(folder))
                if counts:
                    result.num_collections += counts[-1] - counts[0]
                phases.clear()
                counts.clear()
                is_whole = not world.has_stalled
                result.num_commands += len(world.sent) if is_whole else 0
                result.num_unjudged += 0 if is_whole else len(world.sent)
                if is_whole:
                    result.violations += checker.violations(world.sent)
                result.memory.add(result.num_ticks, read_resident_mb)
                if every and result.num_ticks >= following:
                    following += every
                    print(f"{result.num_ticks} ticks, {read_resident_mb():.0f} MB", flush=True)
    finally:
        gc.callbacks.remove(watch)
    return result


def _episode(
    random: np.random.Generator, result: Ticks, note: Callable[[Step], None], folder: Path
) -> LiveWorld:
    """One, with one fault of the policy, of the senses, or of the clock."""
    clock = VirtualClock()
    world = LiveWorld(clock)
    policy = Policy(world)
    world.begin_s = float(random.uniform(0.0, EPISODE * PERIOD_S))
    world.end_s = world.begin_s + float(random.choice([0.05, 0.2, 0.5, 1.7, 1000.0]))
    kind = random.integers(0, 5)
    if kind < 2:
        policy.fault = list(ANSWERS.values())[random.integers(0, len(ANSWERS))]
    elif kind < 4:
        changes = list(SENSES.values())[random.integers(0, len(SENSES))]
        world.fault = lambda world: vars(world).update(changes)
    else:
        world.stall_s = float(random.uniform(0.06, 2.0))
    world.has_stalled = world.stall_s > 0
    try:
        trace = run_episode(
            policy,
            world,
            LoopConfig(rate_hz=1 / PERIOD_S, execute=4, max_steps=EPISODE, chunks="async"),
            clock=clock,
            thinker=InlineThinker(policy, clock, DELAY_S),
            delay=Delay(median_s=DELAY_S, largest_s=DELAY_S, num_thoughts=1),
            on_step=note,
            flight=folder,
        )
    except Stopped as stopped:
        result.num_stops += 1
        if stopped.path is not None:
            result.num_records += 1
            stopped.path.unlink()
    else:
        result.interventions += Counter(trace.interventions)
    result.num_episodes += 1
    result.num_ticks += max(1, round(clock() / PERIOD_S))
    return world


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.loop_ticks",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--ticks", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leak", type=int, default=0, help="bytes per tick")
    options = parser.parse_args()
    begin = time.monotonic()
    result = run(options.ticks, seed=options.seed, leak=options.leak, every=options.ticks // 20)
    print("\n".join(result.words()))
    print(f"{time.monotonic() - begin:.0f} s")
    return int(result.has_failed)


if __name__ == "__main__":
    sys.exit(main())
