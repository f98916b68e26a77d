"""Faults planted in a robot, its senses and its policy, and what the guard makes of each.

    python -m tests.guard_faults            # the table of docs/guard.md
    python -m tests.guard_faults --write    # into it

One arm (three joints, a gripper, two cameras) at 20 Hz on a clock of its own. The policy sweeps the
joints; a fault begins at 1.5 s. What the robot did is read off what it was sent.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from runtime.control.guard import Guard, Stopped
from runtime.errors import RobotError
from runtime.robots.description import Description
from runtime.robots.robot import Limits, Observation, Sensor

DOCUMENT = Path(__file__).parents[1] / "docs" / "guard.md"
PERIOD_S = 0.05
FAULT_S, END_S = 1.5, 5.0
CAMERA_HZ = 30.0
JOINT = {"control": "position", "unit": "rad", "low": -1.0, "high": 1.0, "velocity": 1.0,
         "acceleration": 4.0, "jerk": 40.0, "max_error": 0.1}  # fmt: skip
ARM = {
    "robot": "arm",
    "stamps": "monotonic",
    "state": "state",
    "arming": {"actions": 10, "fraction": 0.25},
    "cameras": {"front": {"rate_hz": CAMERA_HZ}, "wrist": {"rate_hz": CAMERA_HZ}},
    "axes": [
        *({"name": f"joint{i}", "measured": {"index": i}, **JOINT} for i in range(3)),
        {"name": "gripper", "control": "gripper", "unit": "fraction", "low": 0.0, "high": 1.0},
    ],
}
STEP = {"control": "delta", "unit": "m", "scale": 0.1, "low": -0.3, "high": 0.3, "max_error": 0.05}
HAND = {
    **ARM,
    "robot": "hand",
    "axes": [
        *({"name": n, "measured": {"index": i}, **STEP} for i, n in enumerate("xyz")),
        {"name": "turn", "control": "delta", "unit": "rad", "velocity": 1.0, "acceleration": 4.0},
    ],
    "norms": [{"name": "linear", "axes": list("xyz"), "velocity": 0.25, "acceleration": 1.0}],
}


@dataclass
class World:
    """The robot, and what is wrong with it. A `Robot` that does what it is told."""

    raw: dict[str, Any] = field(default_factory=lambda: ARM)
    now: float = 0.0
    sent: list[np.ndarray] = field(default_factory=list)
    num_holds: int = 0
    frozen_id: int | None = None
    """Both cameras show this frame and no other."""
    frozen_picture: int | None = None
    """Frames are numbered on, and this is what they show."""
    black: bool = False
    swapped: bool = False
    image_delay_s: float = 0.0
    state_delay_s: float = 0.0
    shift_s: float = 0.0
    """Of all stamps."""
    stuck_A: np.ndarray | None = None
    """Where the arm is, whatever it is told."""
    noise: float = 0.0
    """What is felt is off by this."""
    clip: float = np.inf
    instruction = "planted"
    success = None
    done = False

    def __post_init__(self) -> None:
        self.description = msgspec.convert(self.raw, Description)
        camera = Sensor("image", (32, 32, 3), "uint8")
        state = Sensor("vector", (4,), "float32")
        self.inputs = {"front": camera, "wrist": camera, "state": state}
        bound = np.full(4, np.inf, np.float32)
        self.limits = Limits(-bound, bound, ("",) * 4, ("",) * 4)
        self.at_A = np.zeros(4)

    def reset(self) -> Observation:
        return self.observe()

    def observe(self) -> Observation:
        seen_s = self.now - self.image_delay_s
        number = int(seen_s * CAMERA_HZ) if self.frozen_id is None else self.frozen_id
        shown = number if self.frozen_picture is None else self.frozen_picture
        names = ("wrist", "front") if self.swapped else ("front", "wrist")
        pictures = {
            n: _picture(of, shown, self.black)
            for n, of in zip(("front", "wrist"), names, strict=True)
        }
        felt_A = self.at_A if self.stuck_A is None else self.stuck_A
        at = {name: seen_s + self.shift_s for name in pictures}
        return Observation(
            {**pictures, "state": (felt_A + self.noise).astype(np.float32)},
            {**at, "state": self.now - self.state_delay_s + self.shift_s},
            dict.fromkeys(pictures, number),
        )

    def send(self, action_A: np.ndarray) -> np.ndarray:
        sent_A = np.clip(action_A, -self.clip, self.clip).astype(np.float32)
        self.sent.append(sent_A)
        is_step = self.raw["robot"] == "hand"
        self.at_A = self.at_A + sent_A * [0.1, 0.1, 0.1, 1] if is_step else sent_A.astype(float)
        return sent_A.copy()

    def hold(self) -> None:
        self.num_holds += 1

    def close(self) -> None:
        pass


def _picture(camera: str, number: int, black: bool) -> np.ndarray:
    random = np.random.default_rng([number % 2**31, camera == "wrist"])  # before 0 s, too
    noise = random.integers(0, 9, (32, 32, 3))
    ramp = np.linspace(30, 200, 32)[:, None, None]
    scene = ramp if camera == "front" else ramp[::-1]
    return (noise if black else scene + noise).astype(np.uint8)


def sweep(now: float) -> np.ndarray:
    """What a good policy of the arm answers."""
    angle = 0.5 * np.sin(0.8 * now)
    return np.array([angle, -angle, angle / 2, 0.5], np.float32)


def steps(now: float) -> np.ndarray:
    """The same of the hand."""
    speed = 0.4 * 0.8 * np.cos(0.8 * now) * PERIOD_S
    return np.array([speed, 0, -speed, 0.1 * speed], np.float32)


@dataclass(frozen=True)
class Fault:
    """One row."""

    words: str
    sense: Callable[[World], None] = lambda world: None
    """What happens to the robot while the fault lasts."""
    answer: Callable[[np.ndarray, int], object] = lambda action_A, tick: action_A
    """What the policy answers then, in the n-th tick of the fault."""
    chunk: Callable[[np.ndarray], object] = lambda action_A: action_A[None]
    ticks: int = 1000
    from_start: bool = False
    is_stale: bool = False
    stalls_s: float = 0.0
    is_told: bool = False
    """Somebody presses stop."""
    raw: dict[str, Any] = field(default_factory=lambda: ARM)


def _set(**values: Any) -> Callable[[World], None]:
    def change(world: World) -> None:
        for name, value in values.items():
            if getattr(world, name) is None or not callable(value):
                setattr(world, name, value() if callable(value) else value)

    return change


def _frozen(world: World) -> None:
    world.frozen_id = int(world.now * CAMERA_HZ) if world.frozen_id is None else world.frozen_id


def _same_picture(world: World) -> None:
    if world.frozen_picture is None:
        world.frozen_picture = int(world.now * CAMERA_HZ)


def _stuck(world: World) -> None:
    world.stuck_A = world.at_A.copy() if world.stuck_A is None else world.stuck_A


def _with(number: int, value: float) -> Callable[[np.ndarray, int], object]:
    def change(action_A: np.ndarray, tick: int) -> object:
        changed = action_A.copy()
        changed[number] = value
        return changed

    return change


def _none(action_A: np.ndarray, tick: int) -> object:
    return None


def _always(*numbers: float) -> Callable[[np.ndarray, int], object]:
    return lambda action_A, tick: np.array(numbers, np.float32)


def _ramp(speed: float) -> Callable[[np.ndarray, int], object]:
    start: list[np.ndarray] = []

    def change(action_A: np.ndarray, tick: int) -> object:
        if tick == 0:
            start[:] = [action_A.copy()]
        return start[0] + np.float32(speed * PERIOD_S * (tick + 1)) * np.float32([1, 0, 0, 0])

    return change


def _masked(action_A: np.ndarray) -> object:
    return np.ma.masked_invalid(_with(1, np.nan)(action_A, 0))[None]


def _later(action_A: np.ndarray) -> object:
    return np.stack([action_A, np.asarray(_with(2, np.inf)(action_A, 0))])


FAULTS = [
    Fault("NaN in one joint, once", answer=_with(0, np.nan), ticks=1),
    Fault("infinity in one joint, for 0.5 s", answer=_with(2, np.inf), ticks=10),
    Fault("infinity in an action that is not yet due", chunk=_later, ticks=4),
    Fault("NaN under the mask of a masked array", chunk=_masked, ticks=1),
    Fault("actions in float64", chunk=lambda a: a.astype(np.float64)[None], ticks=5),
    Fault("actions of three joints instead of four", chunk=lambda a: a[None, :3], ticks=5),
    Fault("a ragged list", chunk=lambda a: [[0.1, 0.2], [0.3]], ticks=5),
    Fault("no action for 0.25 s", answer=_none, ticks=5),
    Fault("no action any more", answer=_none),
    Fault("actions of a chunk that has ended", is_stale=True, ticks=5),
    Fault("a jump of 1 rad in one joint", answer=_with(0, 1.0), ticks=10),
    Fault("1e30 in one joint", answer=_with(1, 1e30), ticks=10),
    Fault("the zero pose, out of the blue", answer=lambda a, t: a * np.float32(0), ticks=10),
    Fault("a ramp beyond the joint's range", answer=_ramp(0.5), ticks=50),
    Fault("a ramp at twice the velocity limit", answer=_ramp(2.0), ticks=5),
    Fault("a sudden turn at full speed", answer=_ramp(-0.9), ticks=10),
    Fault("buzzing by 0.02 rad", answer=lambda a, t: a + np.float32(0.02 * (-1) ** t), ticks=20),
    Fault("the gripper beyond its range", answer=_with(3, 7.0), ticks=10),
    Fault("a hasty first action", answer=_with(0, 0.3), ticks=5, from_start=True),
    Fault("no action before the gripper's first", answer=_none, ticks=5, from_start=True),
    Fault("a step out of the workspace", answer=_always(0.12, 0, 0, 0), ticks=60, raw=HAND),
    Fault("a step at three times the linear speed",
          answer=_always(0.2, 0.2, 0.2, 0), ticks=5, raw=HAND),
    Fault("a turn at three times the angular speed", answer=_with(3, 0.15), ticks=5, raw=HAND),
    Fault("steps of NaN, in the hand", answer=_with(1, np.nan), ticks=5, raw=HAND),
    Fault("cameras deliver nothing for 0.2 s", sense=_frozen, ticks=4),
    Fault("cameras deliver nothing any more", sense=_frozen),
    Fault("new frames, always the same picture", sense=_same_picture),
    Fault("black pictures for 0.3 s", sense=_set(black=True), ticks=6),
    Fault("black pictures for good", sense=_set(black=True)),
    Fault("the two cameras swapped", sense=_set(swapped=True)),
    Fault("pictures 0.3 s old", sense=_set(image_delay_s=0.3), ticks=20),
    Fault("state 0.15 s old, for 0.3 s", sense=_set(state_delay_s=0.15), ticks=6),
    Fault("state 0.15 s old, for good", sense=_set(state_delay_s=0.15)),
    Fault("state is NaN", sense=_set(noise=np.nan)),
    Fault("stamps of another clock", sense=_set(shift_s=1000.0), ticks=5),
    Fault("stamps jump back by 60 s", sense=_set(shift_s=-60.0), ticks=5),
    Fault("the arm is stuck for 1.7 s", sense=_stuck, ticks=34),
    Fault("the arm is stuck for good", sense=_stuck),
    Fault("the loop stalls for 1 s", stalls_s=1.0, ticks=1),
    Fault("an operator presses stop", is_told=True),
    Fault("the robot clips by itself", sense=_set(clip=0.4), ticks=30),
    Fault("the arm starts outside its range", sense=_set(noise=1.5), from_start=True),
    Fault("the arm starts without knowing where", sense=_set(noise=np.nan), from_start=True),
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a fault."""

    kinds: tuple[str, ...]
    """What the guard said, in the order in which it said it."""
    detected_s: float | None
    """After the fault began."""
    words: str
    """What the robot did."""
    world: World


def run(fault: Fault) -> Outcome:
    """Plant it."""
    world = World(fault.raw)
    begins = 0.0 if fault.from_start else FAULT_S
    healthy = {
        k: v for k, v in vars(world).items() if k not in ("now", "sent", "at_A", "num_holds")
    }
    if fault.from_start:
        fault.sense(world)
    try:
        guard = Guard(world, PERIOD_S)
        guard.begin(world.reset(), world.now)
    except RobotError as error:
        return Outcome((str(error).split(";")[0],), 0.0, "was not moved at all", world)
    said, detected_s, changed = dict[str, None](), None, list[bool]()
    tick, dropped, first = 0, 0, round(begins / PERIOD_S)
    stopped: Stopped | None = None
    while tick * PERIOD_S < END_S:
        world.now = tick * PERIOD_S
        number = tick - first
        is_on = 0 <= number < fault.ticks
        vars(world).update({} if is_on else healthy)
        if is_on:
            fault.sense(world)
        if is_on and fault.is_told:
            guard.stop("an operator pressed stop")
        asked = sweep(world.now) if fault.raw is ARM else steps(world.now)
        before = guard.interventions.copy()
        try:
            sent = _tick(guard, fault, world.now, asked, number if is_on else -1, dropped)
        except Stopped as error:
            sent, stopped = None, error
        if number >= 0:
            new = [kind for kind in guard.interventions if guard.interventions[kind] > before[kind]]
            said.update(dict.fromkeys(new))
            detected_s = number * PERIOD_S if new and detected_s is None else detected_s
            changed.append(sent is None or not np.array_equal(sent, asked))
        if stopped:
            break
        dropped = round(fault.stalls_s / PERIOD_S) if is_on else 0
        tick += 1 + dropped
    words = _words(world, changed, stopped, first, fault)
    return Outcome(tuple(said), detected_s, words, world)


def _tick(
    guard: Guard, fault: Fault, now: float, asked: np.ndarray, number: int, dropped: int
) -> Any:
    """One tick of a loop that thinks in each."""
    guard.observe(now)
    action: Any = None
    is_on = number >= 0
    if guard.may_think(now):
        answer = fault.answer(asked, number) if is_on else asked
        if isinstance(answer, np.ndarray):
            rows = guard.admit(fault.chunk(answer) if is_on else answer[None])
            action = None if rows is None else rows[0]
    until = now - 0.1 if is_on and fault.is_stale else now + 0.1
    return guard.act(action, now=now, valid_until=until, num_dropped=dropped).sent


def _words(
    world: World, changed: list[bool], stopped: Stopped | None, first: int, fault: Fault
) -> str:
    """What the robot did, by what it was sent after the fault began."""
    sent_NA = np.stack(world.sent)[min(first, len(world.sent) - 1) :].astype(float)
    if fault.raw is ARM:
        moves_N = np.abs(np.diff(sent_NA, axis=0)).max(axis=1)
    else:
        moves_N = np.abs(sent_NA[1:]).max(axis=1)
    still = np.flatnonzero(moves_N == 0)
    if stopped is not None:
        return (
            f"stood after {(int(still[0]) + 1) * PERIOD_S * 1e3:.0f} ms, stopped for good after "
            f"{(len(changed) - 1) * PERIOD_S * 1e3:.0f} ms"
        )
    num_changed = sum(changed)
    if world.num_holds:
        return f"was told to hold for {world.num_holds} ticks, then went on"
    stood = ", stood," if still.size and changed[int(still[0])] else ""
    ended = "then went on" if not any(changed[-5:]) else "to the end"
    return f"was sent otherwise for {num_changed} ticks{stood} {ended}"


def table(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| fault | detected after | as | what the robot did |"
    yield "|---|---:|---|---|"
    for words, outcome in outcomes.items():
        after = "-" if outcome.detected_s is None else f"{outcome.detected_s * 1e3:.0f} ms"
        yield f"| {words} | {after} | {', '.join(outcome.kinds)} | {outcome.words} |"


def rendered(document: str, outcomes: Mapping[str, Outcome]) -> str:
    """The document with the table of these outcomes."""
    body = "\n".join(table(outcomes))
    pattern = re.compile(r"(<!-- faults -->\n).*?(<!-- end of faults -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}\n{body}\n\n{found[2]}", document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/guard.md")
    is_written = parser.parse_args().write
    outcomes = {fault.words: run(fault) for fault in FAULTS}
    if is_written:
        DOCUMENT.write_text(rendered(DOCUMENT.read_text(), outcomes))
    else:
        print("\n".join(table(outcomes)))


if __name__ == "__main__":
    main()
