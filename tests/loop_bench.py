"""python -m tests.loop_bench [--ticks 5000]

What loop, executor and guard cost in a control tick, where robot, policy and clock cost nothing:
an arm of seven joints and a gripper, two cameras of 640 x 480, every limit kept and every picture
looked at by the guard, chunks of 50 actions of which 10 are carried out. Prints median and p99 in
microseconds, of ticks back to back and of ticks with a pause between them, with and without a
recorder; the goal is under 500 for a tick. Exits 1 if garbage was collected inside.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from runtime.control import loop as loop_module
from runtime.control.chunks import ChunkExecutor
from runtime.control.clock import VirtualClock
from runtime.control.delay import Delay
from runtime.control.guard import Guard
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.recorder import Recorder, Unrecorded
from runtime.control.thinker import InlineThinker
from runtime.declarations import Input
from runtime.episode import Answer
from runtime.robots.description import Description
from runtime.robots.robot import Limits, Observation, Sensor

RATE_HZ, HORIZON, EXECUTE, DELAY_STEPS = 20.0, 50, 10, 3
WARM = 200
"""Ticks that do not count."""
JOINT = {"control": "position", "unit": "rad", "low": -2.5, "high": 2.5, "velocity": 2.0,
         "acceleration": 8.0, "jerk": 80.0, "max_error": 3.0}  # fmt: skip
ARM = {
    "robot": "seven joints",
    "stamps": "monotonic",
    "state": "state",
    "cameras": {"front": {"rate_hz": 30}, "wrist": {"rate_hz": 30}},
    "axes": [
        *({"name": f"joint{i}", "measured": {"index": i}, **JOINT} for i in range(7)),
        {"name": "gripper", "control": "gripper", "unit": "fraction", "low": 0.0, "high": 1.0,
         "velocity": 4.0, "measured": {"index": 7}},
    ],
}  # fmt: skip
NUM = 8
TICK, CPU = "tick", "tick, CPU time"
"""The latter leaves out what other work on this machine took."""
PACED, PAUSE_S = "after 20 ms of sleep, CPU time", 0.02
"""As on a robot: caches hold other things by then."""
RECORDED = "after recording, CPU time"
"""The same, and recording. Compressing and writing has a thread of its own, and its time between
two ticks here."""


class Robot:
    """Shows pictures that were made before, and keeps where it was told to be."""

    instruction, success, done = "bench", None, False

    def __init__(self, clock: VirtualClock) -> None:
        random = np.random.default_rng(0)
        self._clock = clock
        self._pictures = random.integers(30, 255, (4, 480, 640, 3), np.uint8)
        self._state, self._number = np.zeros(NUM, np.float32), 0
        self._seen: Observation | None = None
        self.description = msgspec.convert(ARM, Description)
        camera = Sensor("image", (480, 640, 3), "uint8")
        self.inputs = {
            "front": camera,
            "wrist": camera,
            "state": Sensor("vector", (NUM,), "float32"),
        }
        bound = np.full(NUM, np.inf, np.float32)
        self.limits = Limits(-bound, bound, ("",) * NUM, ("",) * NUM)

    def reset(self) -> Observation:
        return self.observe()

    def observe(self) -> Observation:
        """A new one in every tick, the same for all looks of it."""
        now = self._clock()
        if self._seen is not None and now == self._seen.observed_at:
            return self._seen
        self._number += 1
        two = self._number % 2
        values = {
            "front": self._pictures[two],
            "wrist": self._pictures[2 + two],
            "state": self._state,
        }
        numbers = {"front": self._number, "wrist": self._number}
        self._seen = Observation(values, dict.fromkeys(values, now), numbers)
        return self._seen

    def send(self, action_A: np.ndarray) -> np.ndarray:
        self._state = action_A.copy()
        return action_A.copy()

    def hold(self) -> None:
        pass

    def close(self) -> None:
        pass


class Policy:
    """Answers with a sweep that was made before."""

    chunk_shape = (HORIZON, NUM)
    stats = None
    inputs: Mapping[str, Input] = {
        **{
            name: Input(
                kind="image", source="robot", shape=(480, 640, 3), dtype="uint8", pace="tick"
            )
            for name in ("front", "wrist")
        },
        "state": Input(kind="vector", source="robot", shape=(NUM,), dtype="float32", pace="tick"),
    }

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        times = np.arange(100_000)[:, None] / RATE_HZ
        sweep = 0.5 + 0.3 * np.sin(0.7 * times + np.arange(NUM))
        self._actions = sweep.astype(np.float32)

    def start(self, **given: Any) -> Policy:
        return self

    def act(self, observation: Mapping[str, Any], *, at: float | None) -> Answer:
        begin = round(self._clock() * RATE_HZ)
        return Answer(self._actions[begin : begin + HORIZON].copy(), {}, 1 / RATE_HZ, at)


class TickClock(VirtualClock):
    """Notes when the loop lets go of a tick, and when it gets the next."""

    def __init__(self, between: Callable[[], object]) -> None:
        super().__init__()
        self._between = between
        self.ticks_us: list[float] = []
        self.cpu_us: list[float] = []
        self._begin = self._begin_cpu = 0.0

    def sleep(self, seconds: float) -> None:
        end, end_cpu = time.perf_counter(), time.thread_time()
        if self._begin:
            self.ticks_us.append((end - self._begin) * 1e6)
            self.cpu_us.append((end_cpu - self._begin_cpu) * 1e6)
        super().sleep(seconds)
        self._between()
        self._begin_cpu, self._begin = time.thread_time(), time.perf_counter()


def timed(owner: type, method: str, into: list[float]) -> Callable[[], None]:
    """Let each call of a method be noted, in microseconds; returns what undoes it."""
    plain = getattr(owner, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            into.append((time.perf_counter() - begin) * 1e6)

    setattr(owner, method, call)
    return lambda: setattr(owner, method, plain)


def run(
    num_ticks: int,
    parts: Mapping[str, tuple[type, str]],
    *,
    recorder: Recorder | None = None,
    between: Callable[[], object] = lambda: None,
) -> tuple[dict[str, list[float]], int]:
    """Microseconds of each tick and of each call of a part, and collections inside.

    Args:
        between: done between two ticks, and not counted.
    """
    clock, phases, counts = TickClock(between), list[str](), list[int]()
    found: dict[str, list[float]] = {name: [] for name in parts}
    undo = [timed(*part, found[name]) for name, part in parts.items()]
    gc.callbacks.append(watch := lambda phase, info: phases.append(phase))
    policy, notes = Policy(clock), recorder or Unrecorded()
    delay_s = (DELAY_STEPS - 0.5) / RATE_HZ
    try:
        run_episode(
            policy,
            Robot(clock),
            LoopConfig(
                rate_hz=RATE_HZ, execute=EXECUTE, max_steps=WARM + num_ticks, chunks="async"
            ),
            clock=clock,
            thinker=InlineThinker(notes.watch(policy), clock, delay_s),
            delay=Delay(median_s=delay_s, largest_s=delay_s, num_thoughts=1),
            on_step=lambda step: counts.append(len(phases)),
            recorder=recorder,
        )
    finally:
        gc.callbacks.remove(watch)
        for again in undo:
            again()
    found[TICK], found[CPU] = clock.ticks_us[WARM:], clock.cpu_us[WARM:]
    return found, counts[-1] - counts[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.loop_bench",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--ticks", type=int, default=5000)
    options = parser.parse_args()
    whole, num_collections = run(options.ticks, {})
    parts = {
        "guard: judge and send": (Guard, "act"),
        "guard: look at an observation": (Guard, "observe"),
        "executor: what is due": (ChunkExecutor, "action"),
        "taking an answer": (loop_module._Loop, "take"),
    }
    found, _ = run(options.ticks, parts)
    found |= {name: whole[name] for name in (TICK, CPU)}  # without the others' stop watches
    few = max(1, options.ticks // 10)
    found[PACED] = run(few, {}, between=lambda: time.sleep(PAUSE_S))[0][CPU]
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder) / "bench") as recorder:

        def write() -> None:
            while recorder.waiting_bytes:
                time.sleep(1e-4)

        found[RECORDED] = run(few, {}, recorder=recorder, between=write)[0][CPU]
    print(f"{'microseconds':32} {'calls':>7} {'median':>8} {'p99':>8} {'max':>8}")
    for name in (TICK, CPU, PACED, RECORDED, *parts):
        values = np.array(found[name])
        p50, p99 = np.percentile(values, [50, 99])
        print(f"{name:32} {values.size:7} {p50:8.1f} {p99:8.1f} {values.max():8.1f}")
    print(f"goal: under 500 for a tick; garbage collections inside: {num_collections}")
    return int(num_collections > 0)


if __name__ == "__main__":
    sys.exit(main())
