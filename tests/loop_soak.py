"""python -m tests.loop_soak BUNDLE [--minutes 30] [--rate 20]

The control loop in real time on the live simulator, episode after episode: a picture is rendered
at every control step, the policy thinks in its thread, and the guard sends. What reached the robot
is integrated by the checker of `tests.guard_storm`, which knows nothing of the guard. Prints what
happened, of what was run until then after Ctrl-C; exits 1 if a command broke a limit, the watchdog
held, or garbage was collected inside an episode.

Late ticks are this machine's as well as the loop's: other work on it shows up here.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from device_tests.measure.conditions import read_resident_mb
from device_tests.success.episodes import load_policy
from runtime.control.clock import Clock, MonotonicClock
from runtime.control.delay import Delay
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.thinker import ActingPolicy
from runtime.control.trace import Step, Trace
from runtime.robots import metaworld
from runtime.robots.robot import Observation, Robot
from tests.guard_storm import Checker

TASKS = ("touch-red", "touch-green", "touch-blue", "button-press-topdown")


class Recorded:
    """A simulated robot that keeps what it was told, and where it began."""

    def __init__(self, robot: Any) -> None:
        self._robot = robot
        self.sent: list[np.ndarray] = []
        self.begin_A = np.zeros(3)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._robot, name)

    def reset(self) -> Observation:
        first: Observation = self._robot.reset()
        self.sent, self.begin_A = [], first.values["state"][:3].astype(np.float64)
        return first

    def send(self, action_A: np.ndarray) -> np.ndarray:
        sent_A: np.ndarray = self._robot.send(action_A)
        self.sent.append(sent_A.copy())
        return sent_A

    def violations(self, raw: dict[str, Any]) -> Counter[str]:
        """Of a raw description, whose workspace the checker counts from where the hand began."""
        axes = [dict(axis) for axis in raw["axes"]]
        for axis, begin in zip(axes, self.begin_A, strict=False):
            axis["low"], axis["high"] = axis["low"] - begin, axis["high"] - begin
        return Checker({**raw, "axes": axes}, raw["period_s"]).violations(self.sent)


@dataclass
class Soak:
    """All episodes."""

    rate_hz: float
    delay: Delay | None = None
    chunks: str = ""
    late_s: list[float] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    interventions: Counter[str] = field(default_factory=Counter)
    memory_mb: list[float] = field(default_factory=list)
    num_collections: int = 0
    seconds: float = 0.0

    def add(self, trace: Trace, violations: Counter[str]) -> None:
        self.delay, self.chunks = trace.delay, trace.chunks
        self.late_s += [step.late_s for step in trace.steps]
        self.ages_s += [step.age_s for step in trace.steps]
        self.violations += violations
        self.interventions += Counter(trace.interventions)
        self.counts.update(
            episodes=1, sent=len(trace.steps), waited=trace.num_waited, held=trace.num_held,
            dropped=trace.num_dropped, overtaken=trace.num_overtaken, stale=trace.num_stale,
            thoughts=sum(step.act_s is not None for step in trace.steps),
            successes=bool(trace.success),
        )  # fmt: skip
        self.memory_mb.append(read_resident_mb())

    @property
    def has_failed(self) -> bool:
        watchdog = self.interventions["watchdog"]
        return bool(self.violations.total() or watchdog or self.num_collections)

    def words(self) -> Iterator[str]:
        """Lines."""
        n = self.counts
        yield f"{self.seconds / 60:.1f} minutes, {n['episodes']} episodes at {self.rate_hz:g} Hz"
        if not n["sent"]:
            yield "nothing was sent"
            return
        if self.delay is not None:
            yield f"{self.chunks}: {self.delay.words(self.rate_hz)}; {n['thoughts']} thoughts"
        kinds = ", ".join(f"{kind} {number}" for kind, number in self.violations.items())
        yield f"on the wire: {n['sent']} commands, {self.violations.total()} violations {kinds}"
        yield f"watchdog: {self.interventions['watchdog']} times"
        without = self.interventions["no action"] - n["waited"]
        missed, due = n["dropped"] + without, n["sent"] + n["held"] + n["dropped"]
        yield (
            f"misses: {missed} of {due} ({100 * missed / due:.3f} %): {n['dropped']} dropped by "
            f"late ticks, {without} slowed down or held for want of an action"
        )
        yield f"waited for a first action: {n['waited']} steps; overtaken: {n['overtaken']} actions"
        for name, values_s in (("jitter", self.late_s), ("age at the wire", self.ages_s)):
            p50, p99 = np.percentile(np.array(values_s) * 1e3, [50, 99])
            yield f"{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {max(values_s) * 1e3:.1f} ms"
        told = ", ".join(f"{kind} {number}" for kind, number in self.interventions.most_common())
        yield f"interventions: {told or 'none'}"
        yield f"garbage collections inside episodes: {self.num_collections}"
        yield f"success: {n['successes']} of {n['episodes']} episodes"
        first, last = self.memory_mb[len(self.memory_mb) // 4], self.memory_mb[-1]
        yield f"memory: {last:.0f} MB, {last - first:+.1f} MB since the first quarter"


def soak(
    policy: ActingPolicy,
    robots: dict[str, Any],
    result: Soak,
    raw: dict[str, Any],
    *,
    seconds: float,
    config: LoopConfig,
    clock: Clock,
) -> None:
    """Episodes of all robots in turn, into `result`, until so many seconds are over."""
    begin, seed = clock(), 0
    phases, counts = list[str](), list[int]()
    gc.callbacks.append(watch := lambda phase, info: phases.append(phase))
    try:
        for robot in cycle(Recorded(robot) for robot in robots.values()):
            if (left := seconds - (clock() - begin)) <= 0:
                break

            def look(step: Step, robot: Robot = robot) -> None:
                counts.append(len(phases))
                robot.observe()  # renders, as a camera would deliver, whether it is needed or not

            trace = run_episode(
                policy, robot, config, seed=seed, clock=clock, delay=result.delay, on_step=look
            )
            result.num_collections += counts[-1] - counts[0] if counts else 0
            phases.clear()
            counts.clear()
            seed += 1
            result.add(trace, robot.violations(raw))
            result.seconds = clock() - begin
            if seed % 20 == 0:
                print(f"{left / 60:.1f} minutes left, {result.counts['sent']} sent", flush=True)
    finally:
        gc.callbacks.remove(watch)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.loop_soak",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="control steps per second")
    parser.add_argument("--execute", type=int, default=5, help="actions of a chunk")
    parser.add_argument("--chunks", default="async", help="as of anchorvla run")
    options = parser.parse_args()
    raw = json.loads(Path(metaworld.__file__).with_name("metaworld.json").read_text())
    config = LoopConfig(rate_hz=options.rate, execute=options.execute, chunks=options.chunks)
    result = Soak(options.rate)
    with contextlib.ExitStack() as stack:
        policy: runtime.Policy = stack.enter_context(load_policy(options.bundle))
        robots = {
            task: stack.enter_context(
                contextlib.closing(metaworld.MetaWorldRobot(task=task, seed=20_000))
            )
            for task in TASKS
        }
        try:
            soak(
                policy, robots, result, raw,
                seconds=options.minutes * 60, config=config, clock=MonotonicClock(),
            )  # fmt: skip
        except ValueError as error:  # a delay that chunks cannot carry, with the figures
            print(f"soak-loop: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            pass
    print("\n".join(result.words()))
    print(f"finished {time.strftime('%Y-%m-%d %H:%M')}")
    return int(result.has_failed or not result.counts["sent"])


if __name__ == "__main__":
    sys.exit(main())
