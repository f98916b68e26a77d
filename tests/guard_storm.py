"""Adversarial chunks against the guard: python -m tests.guard_storm --chunks 1000000

What a broken policy may answer (wrong types and shapes, NaN, infinity, huge, jumping, stale, or
nothing), mixed with what a good one does, on robots of every way of control. What reached the wire
is integrated by `Checker`, which knows limits and actions, and nothing of the guard.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from runtime.control.guard import Guard
from runtime.robots.description import Description
from runtime.robots.robot import Limits, Observation, Sensor

PERIOD_S = 0.1
EPISODE = 1000
"""Chunks; then the robot starts anew."""

ARM = {
    "robot": "arm, joint positions",
    "stamps": "simulated",
    "state": "state",
    "arming": {"actions": 5, "fraction": 0.5},
    "axes": [
        {"name": f"joint{i}", "control": "position", "unit": "rad", "scale": 0.5, "offset": 0.1,
         "low": -2.0 + 0.2 * i, "high": 1.9, "velocity": 1.5, "acceleration": 6.0 + i, "jerk": 50.0,
         "measured": {"index": i}} for i in range(4)
    ] + [{"name": "gripper", "control": "gripper", "unit": "fraction", "low": 0.0, "high": 1.0,
          "velocity": 2.0, "measured": {"index": 4}}],
}  # fmt: skip
HAND = {
    "robot": "hand, Cartesian steps",
    "stamps": "simulated",
    "state": "state",
    "arming": {"actions": 0},
    "axes": [
        {"name": name, "control": "delta", "unit": "m", "scale": 0.05, "low": -0.3, "high": 0.25,
         "jerk": 40.0, "measured": {"index": i}} for i, name in enumerate("xyz")
    ] + [
        {"name": name, "control": "delta", "unit": "rad", "scale": 0.2} for name in ("a", "b", "c")
    ] + [{"name": "gripper", "control": "gripper", "unit": "fraction", "low": -1.0, "high": 1.0}],
    "norms": [
        {"name": "linear", "axes": ["x", "y", "z"], "velocity": 0.5, "acceleration": 2.0},
        {"name": "angular", "axes": ["a", "b", "c"], "velocity": 1.0, "acceleration": 5.0},
    ],
}  # fmt: skip
BASE = {
    "robot": "rail, velocities",
    "stamps": "simulated",
    "state": "state",
    "axes": [
        {"name": "rail", "control": "velocity", "unit": "m", "low": -1.0, "high": 2.0,
         "velocity": 1.0, "acceleration": 3.0, "jerk": 30.0, "measured": {"index": 0}},
        {"name": "turn", "control": "velocity", "unit": "rad", "velocity": 2.0,
         "acceleration": 8.0},
    ],
}  # fmt: skip
ROBOTS = {"arm": ARM, "hand": HAND, "rail": BASE}


class Wire:
    """A robot that keeps what it was told."""

    instruction, success, done = "storm", None, False

    def __init__(self, raw: dict[str, Any]) -> None:
        self.description = msgspec.convert(raw, Description)
        number = len(raw["axes"])
        self.inputs = {"state": Sensor("vector", (8,), "float32")}
        infinite = np.full(number, np.inf, np.float32)
        self.limits = Limits(-infinite, infinite, ("",) * number, ("",) * number)
        self.sent: list[np.ndarray] = []

    def reset(self) -> Observation:
        self.sent = []
        return self.observe()

    def observe(self) -> Observation:
        return Observation({"state": np.zeros(8, np.float32)}, {"state": 0.0})

    def send(self, action_A: np.ndarray) -> np.ndarray:
        self.sent.append(action_A.copy())
        return action_A.copy()

    def hold(self) -> None:
        pass

    def close(self) -> None:
        pass


class Checker:
    """Counts violations of a raw description in what was sent, by kind.

    Positions are summed up in float64 and differences taken, from rest at zero. What float64 loses
    there is allowed: 16 units in its last place of the largest position, divided by the period as
    often as the quantity is, and a part in 1e9 of the limit.
    """

    def __init__(self, raw: dict[str, Any], period_s: float = PERIOD_S) -> None:
        self.raw, self.period_s = raw, period_s

    def violations(self, sent: list[np.ndarray]) -> Counter[str]:
        """Of commands [A] in a row, the first one from rest."""
        found: Counter[str] = Counter()
        if not sent:
            return found
        raw_NA = np.stack(sent).astype(np.float64)
        found["not finite"] += int((~np.isfinite(raw_NA)).sum())
        paths = {}
        for column, axis in enumerate(self.raw["axes"]):
            path = self._path(axis, raw_NA[:, column])
            paths[axis["name"]] = path
            if "low" in axis:
                slack = 1e-9 * max(abs(axis["low"]), abs(axis["high"]))
                found["position"] += int((path < axis["low"] - slack).sum())
                found["position"] += int((path > axis["high"] + slack).sum())
            self._differences(found, np.abs, path[:, None], axis)
        for norm in self.raw.get("norms", ()):
            together = np.stack([paths[name] for name in norm["axes"]], axis=1)
            self._differences(found, np.linalg.norm, together, norm)
        return +found

    def _path(self, axis: dict[str, Any], numbers_N: np.ndarray) -> np.ndarray:
        steps = numbers_N * axis.get("scale", 1.0)
        if axis["control"] in ("delta", "velocity"):
            steps = steps * (self.period_s if axis["control"] == "velocity" else 1.0)
            return np.concatenate([np.zeros(3), np.cumsum(steps)])
        path = steps + axis.get("offset", 0.0)
        first = 0.0 if "measured" in axis else path[0]
        return np.concatenate([np.full(3, first), path])

    def _differences(self, found: Counter[str], size: Any, path: np.ndarray, limit: Any) -> None:
        lost = 16 * np.spacing(np.abs(path).max())
        change = path
        for power, kind in enumerate(("velocity", "acceleration", "jerk"), 1):
            change = np.diff(change, axis=0) / self.period_s
            if kind in limit:
                sizes = size(change, axis=1) if size is np.linalg.norm else size(change)
                allowed = limit[kind] * (1 + 1e-9) + lost / self.period_s**power
                found[kind] += int((sizes > allowed).sum())


def chunks(random: np.random.Generator, number: int) -> Iterator[tuple[object, bool]]:
    """Endless answers of a policy of `number` dimensions, and whether each is out of date."""
    at = np.zeros(number)
    while True:
        kind = random.integers(12)
        rows = int(random.integers(1, 3))
        at = np.clip(at + random.normal(0, 0.2, number), -3, 3)
        good = (at + random.normal(0, 0.1, (rows, number))).astype(np.float32)
        if kind < 3:
            yield good, False
        elif kind == 3:
            yield (good * 10.0 ** random.integers(-44, 38)).astype(np.float32), False
        elif kind in (4, 5):
            bad = (np.nan, np.inf, -np.inf, -np.nan)[random.integers(4)]
            good.flat[random.integers(good.size)] = bad
            masked = kind == 5
            yield np.ma.masked_invalid(good) if masked else good, False
        elif kind == 6:
            dtype = ("f8", "f2", "i4", "u1", "c8", "O", "U8", ">f4", "?", "M8[s]")
            chosen = dtype[random.integers(10)]
            source = good.astype(np.int64) if chosen in ("M8[s]", "u1") else good
            yield source.astype(chosen), False
        elif kind == 7:
            yield [[0.0] * int(random.integers(0, number + 2)) for _ in range(rows)], False
        elif kind == 8:
            nothing = (None, "stop", 0.0, {}, (), float("nan"), good.tobytes(), object())
            yield nothing[random.integers(8)], False
        elif kind == 9:
            shapes = (good[:, :-1], good[:0], good[0], good[None], good[:, :0], good.repeat(2, 1))
            yield shapes[random.integers(6)], False
        elif kind == 10:
            yield good, True
        else:
            yield np.sign(good) * np.float32(10.0 ** random.integers(0, 5)), False


def play(guard: Guard, chunk: object, is_stale: bool, now: float) -> int:
    """As a loop does it: the rows of an admitted chunk, one tick each; ticks that were used."""
    rows = guard.admit(chunk)
    if rows is None:
        # A loop that forgets to ask sends the rows themselves.
        first = chunk[0] if isinstance(chunk, np.ndarray) and chunk.ndim and len(chunk) else chunk
        guard.act(first, now=now)
        return 1
    for row in rows:
        guard.act(row, now=now, valid_until=now - 1 if is_stale else now)
    return len(rows)


def storm(name: str, num_chunks: int, seed: int) -> tuple[Counter[str], Counter[str], int]:
    """Violations, interventions and ticks of so many chunks on one robot."""
    wire = Wire(ROBOTS[name])
    guard, checker = Guard(wire, PERIOD_S), Checker(ROBOTS[name])
    violations, interventions, num_ticks = Counter[str](), Counter[str](), 0
    source = chunks(np.random.default_rng(seed), len(ROBOTS[name]["axes"]))
    for start in range(0, num_chunks, EPISODE):
        guard.begin(wire.reset(), 0.0)
        for _ in range(min(EPISODE, num_chunks - start)):
            num_ticks += play(guard, *next(source), now=0.0)
        for _ in range(70):  # without actions it stands in the end
            guard.act(None, now=0.0)
        violations += checker.violations(wire.sent)
        tail = np.stack(wire.sent[-2:]) if len(wire.sent) > 1 else np.zeros((2, 1))
        violations["does not stand"] += int(not np.array_equal(*tail))
        interventions += guard.interventions
    return violations, interventions, num_ticks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.monotonic()
    violations, interventions, num_ticks = Counter[str](), Counter[str](), 0
    for number, name in enumerate(ROBOTS):
        share = (options.chunks + number) // len(ROBOTS)
        for part in range(0, share, 10 * EPISODE):
            size = min(10 * EPISODE, share - part)
            found, said, ticks = storm(name, size, options.seed + number + part)
            violations, interventions = violations + found, interventions + said
            num_ticks += ticks
            print(
                f"{name}: {part + size} chunks, {violations.total()} violations, "
                f"{time.monotonic() - start:.0f} s", flush=True,
            )  # fmt: skip
    for kind, count in interventions.most_common():
        print(f"{kind:<28} {count:>10}")
    print(
        f"{options.chunks} chunks, {num_ticks} ticks, {violations.total()} violations "
        f"{dict(+violations)}"
    )
    return 1 if violations.total() else 0


if __name__ == "__main__":
    sys.exit(main())
