"""The guard sends what it can judge, holds the rest, stops in time, and says what it did."""

import functools
import json
import re
from dataclasses import replace
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from runtime.control.clock import VirtualClock
from runtime.control.flight import FLIGHT, MARK, NUM_TICKS, FlightRecord
from runtime.control.guard import MOST_MISSES, Guard, Stopped
from runtime.control.loop import LoopConfig, run_episode
from runtime.episode import Answer
from runtime.errors import EngineError, OutputError, RobotError
from runtime.robots.description import read_description
from runtime.robots.replay import ReplayedRobot
from tests import guard_faults
from tests.graphs import anchored
from tests.guard_faults import ARM, FAULTS, HAND, PERIOD_S, World, sweep
from tests.guard_storm import ARM as STORM_ARM
from tests.guard_storm import Checker, Wire
from tests.runtime import test_description


@functools.cache
def outcomes():
    return {fault.words: guard_faults.run(fault) for fault in FAULTS}


STOPPED = "stopped for good"
ON = "then went on"
EXPECTED = {
    "NaN in one joint, once": ("chunk: not finite", 0, ON),
    "infinity in one joint, for 0.5 s": ("chunk: not finite", 0, ON),
    "infinity in an action that is not yet due": ("chunk: not finite", 0, ON),
    "NaN under the mask of a masked array": ("chunk: not an action", 0, ON),
    "actions in float64": ("chunk: not an action", 0, ON),
    "actions of three joints instead of four": ("chunk: not an action", 0, ON),
    "a ragged list": ("chunk: not an action", 0, ON),
    "no action for 0.25 s": ("no action", 0, ON),
    "no action any more": ("watchdog", 0, "stood, to the end"),
    "actions of a chunk that has ended": ("stale action", 0, ON),
    "a jump of 1 rad in one joint": ("velocity", 0, ON),
    "1e30 in one joint": ("position", 0, ON),
    "the zero pose, out of the blue": ("velocity", 0, ON),
    "a ramp beyond the joint's range": ("position", 0, ""),
    "a ramp at twice the velocity limit": ("velocity", 0, ON),
    "a sudden turn at full speed": ("acceleration", 0, ON),
    "buzzing by 0.02 rad": ("jerk", 0, ON),
    "the gripper beyond its range": ("position", 0, ON),
    "a hasty first action": ("arming: velocity", 0, ON),
    "no action before the gripper's first": ("no action", 0, "told to hold for 5 ticks"),
    "a step out of the workspace": ("position", 0, ON),
    "a step at three times the linear speed": ("velocity", 0, ON),
    "a turn at three times the angular speed": ("velocity", 0, ON),
    "steps of NaN, in the hand": ("chunk: not finite", 0, ON),
    "cameras deliver nothing for 0.2 s": ("camera lost", 0.1, ON),
    "cameras deliver nothing any more": ("camera lost", 0.1, STOPPED),
    "new frames, always the same picture": ("no thought: frozen image", 0.05, STOPPED),
    "black pictures for 0.3 s": ("no thought: black image", 0, ON),
    "black pictures for good": ("camera lost", 0, STOPPED),
    "the two cameras swapped": ("no thought: swapped cameras", 0, STOPPED),
    "pictures 0.3 s old": ("no thought: stale image", 0, ON),
    "state 0.15 s old, for 0.3 s": ("no thought: stale state", 0, ON),
    "state 0.15 s old, for good": ("state lost", 0, STOPPED),
    "state is NaN": ("no thought: state is no number", 0, STOPPED),
    "stamps of another clock": ("no thought: stale image", 0, ON),
    "stamps jump back by 60 s": ("no thought: stamps go backwards", 0, ON),
    "the arm is stuck for 1.7 s": ("not following", 1.6, ON),
    "the arm is stuck for good": ("not following", 1.6, STOPPED),
    "the loop stalls for 1 s": ("watchdog", 1.1, ON),
    "an operator presses stop": ("operator's stop", 0, STOPPED),
    "the robot clips by itself": ("robot clips", 0, ON),
    "the arm starts outside its range": ("axis 'joint0' stands at 1.5 rad", 0, "not moved at all"),
    "the arm starts without knowing where": ("a state that is no number", 0, "not moved at all"),
}
"""What must be said, when at the latest in seconds, and how it must end: by hand."""


@pytest.mark.parametrize("words", EXPECTED)
def test_a_fault_is_detected_in_time_and_ends_as_it_should(words):
    outcome, (kind, latest_s, end) = outcomes()[words], EXPECTED[words]
    assert kind in " / ".join(outcome.kinds)
    assert outcome.detected_s <= latest_s + 1e-9
    assert end in outcome.words


def test_no_fault_breaks_a_limit():
    """But for what the robot does by itself, and for the seam at a pause: see test_limiter."""
    others = {"the robot clips by itself", "the loop stalls for 1 s"}
    found = {
        words: Checker(outcome.world.raw, PERIOD_S).violations(outcome.world.sent)
        for words, outcome in outcomes().items()
        if words not in others
    }
    assert {words: dict(broken) for words, broken in found.items() if broken} == {}


def test_the_table_of_the_documentation_is_what_happens():
    text = guard_faults.DOCUMENT.read_text()
    rows = re.findall(r"^\| .* \| .* \| .* \| .* \|$", text.split("<!-- faults -->")[1], re.M)
    assert len(rows) - 1 == len(FAULTS) >= 25
    assert guard_faults.rendered(text, outcomes()) == text


def test_the_examples_of_the_documentation_are_descriptions(tmp_path):
    text = guard_faults.DOCUMENT.read_text()
    arm, hand = (
        test_description.read(tmp_path, example)
        for example in re.findall(r"^```json\n(.*?)^```$", text, re.M | re.S)
    )
    shoulder = arm.axes[0]
    assert (shoulder.low, shoulder.high, shoulder.velocity) == (-1.5, 2.25, 1.75)
    assert [axis.control for axis in hand.axes] == ["delta"] * 3


def started(world=None, **arguments):
    world = world or World()
    guard = Guard(world, PERIOD_S, **arguments)
    guard.begin(world.reset(), 0.0)
    return world, guard


def tick(world, guard, number, action):
    world.now = number * PERIOD_S
    return guard.act(action, now=world.now)


def test_a_stop_holds_the_robot_and_writes_its_last_ticks_whole(tmp_path):
    world, guard = started(flight=tmp_path / "flight")
    for number in range(60):
        tick(world, guard, number, sweep(number * PERIOD_S))
    world.frozen_id = 89
    bad = sweep(3.0)
    bad[1] = -np.inf
    with pytest.raises(
        Stopped, match="the guard stopped the robot: camera lost; it stands and h"
    ) as e:
        for number in range(60, 100):
            tick(world, guard, number, bad)
    assert world.num_holds == 1
    (path,) = (tmp_path / "flight").iterdir()
    assert str(path) in str(e.value) and e.value.path == path
    record = json.loads(path.read_text())
    assert FLIGHT.is_borne_by(path.read_bytes()) and record[MARK] == 1
    assert (record["reason"], record["robot"]) == ("camera lost", "arm")
    assert record["interventions"] == dict(guard.interventions)
    ticks = record["ticks"]
    assert len(ticks) == NUM_TICKS == 50
    assert ticks[-1]["asked"][1] == "-inf"
    assert {"camera lost", "not finite"} <= {*ticks[-1]["interventions"]}
    assert [t["sent"] for t in ticks] == [[float(x) for x in row] for row in world.sent[-50:]]
    assert [t["at_s"] for t in ticks] == pytest.approx(np.arange(50) * PERIOD_S + ticks[0]["at_s"])
    assert ticks[-1]["stamps_s"].keys() == {"front", "wrist", "state"}


def test_a_stop_whose_record_cannot_be_written_is_a_stop_all_the_same(tmp_path):
    (tmp_path / "file").write_text("somebody's own")
    world, guard = started(flight=tmp_path / "file")
    with pytest.raises(Stopped, match="the last ticks could not be written") as error:
        for number in range(40):
            world.black = number > 5
            tick(world, guard, number, sweep(number * PERIOD_S))
    assert world.num_holds == 1 and error.value.path is None and len(error.value.record) > 5
    assert (tmp_path / "file").read_text() == "somebody's own"


def test_two_records_of_one_second_do_not_replace_each_other(tmp_path):
    record = FlightRecord("r")
    record.note(0.0, object(), None, ("no action",), {})
    assert record.write(tmp_path, "a", {}) != record.write(tmp_path, "b", {})
    assert {json.loads(p.read_text())["reason"] for p in tmp_path.iterdir()} == {"a", "b"}


def test_twenty_misses_are_a_watchdog_and_the_next_actions_are_slower():
    world, guard = started(Wire({**STORM_ARM, "arming": {"actions": 3, "fraction": 0.5}}))
    rest = np.float32([-0.2, -0.2, -0.2, -0.2, 0])
    for _ in range(5):
        guard.act(rest, now=0.0)
    said = [guard.act(None, now=0.0).interventions for _ in range(MOST_MISSES + 5)]
    assert [i for i, kinds in enumerate(said) if "watchdog" in kinds] == [MOST_MISSES - 1]
    far = rest + np.float32([1, 0, 0, 0, 0])
    after = [guard.act(far, now=0.0).interventions for _ in range(5)]
    armed = [any(kind.startswith("arming") for kind in kinds) for kinds in after]
    assert armed == [True, True, True, False, False]
    assert guard.interventions["watchdog"] == 1


def test_half_a_second_without_an_action_is_a_watchdog_where_time_counts():
    world, guard = started()
    tick(world, guard, 0, sweep(0.0))
    said = [tick(world, guard, number, None).interventions for number in range(1, 14)]
    assert [i + 1 for i, kinds in enumerate(said) if "watchdog" in kinds] == [11]


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (None, "no action"),
        ([0.0, 0.0], "not an action"),
        (np.zeros(2), "not an action"),
        (np.zeros(3, np.float32), "not an action"),
        (np.zeros((1, 2), np.float32), "not an action"),
        (np.zeros(2, ">f4"), "not an action"),
        (np.ma.zeros(2, np.float32), "not an action"),
        (np.float32([0, np.nan]), "not finite"),
        (np.float32([-np.inf, 0]), "not finite"),
    ],
)
def test_a_robot_without_a_description_is_held_by_its_own_hold(action, kind):
    robot = Counting()
    guard = Guard(robot, 0.1)
    guard.begin(robot.reset(), 0.0)
    assert guard.act(action, now=0.0).interventions == (kind,)
    assert robot.calls == ["reset", "hold"]
    good = guard.act(np.float32([1, 9]), now=0.0)
    assert good.sent.tolist() == [1, 4] and good.interventions == ("range",)


def test_a_chunk_is_admitted_whole_or_not_at_all():
    _, guard = started()
    chunk = np.zeros((3, 4), np.float32)
    assert guard.admit(chunk) is chunk
    bad = chunk.copy()
    bad[2, 3] = np.nan
    assert guard.admit(bad) is None
    assert guard.admit(chunk[0]) is guard.admit(chunk[:0]) is guard.admit(None) is None
    assert guard.interventions == {"chunk: not finite": 1, "chunk: not an action": 3}


@pytest.mark.parametrize(
    ("spread", "kind"),
    [
        (0.2, None),
        (0.0, None),
        (0.21, "chunk: uncertain"),
        (float("nan"), "chunk: uncertain"),
        (None, "chunk: one sample, no spread"),
    ],
)
def test_a_chunk_that_is_too_far_from_the_other_samples_is_not_carried_out(spread, kind):
    _, guard = started(World(ARM | {"max_spread": 0.2}))
    chunk = np.zeros((4, 4), np.float32)
    assert (guard.admit(chunk, spread) is None) == (kind is not None)
    assert dict(guard.interventions) == ({kind: 1} if kind else {})
    _, free = started()
    assert free.admit(chunk, spread) is chunk, "nobody asked"


def test_an_action_is_valid_until_its_chunk_ends():
    world, guard = started()
    action = sweep(0.0)
    guard.act(action, now=0.0, valid_until=0.0)
    assert guard.interventions["stale action"] == 0
    guard.act(action, now=0.001, valid_until=0.0)
    guard.act(action, now=0.002, valid_until=np.nan)
    assert guard.interventions["stale action"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"axes": ARM["axes"][:3]},
            r"description has 3 axes \(joint0, joint1, joint2\), the robot ta",
        ),
        (
            {"cameras": {"top": {"rate_hz": 30}}},
            "watches the camera 'top', the robot shows front, wri",
        ),
        (
            {"state": "joints"},
            "counts to number 2 of the input 'joints', and the robot shows nothing",
        ),
    ],
)
def test_the_description_of_another_robot_is_refused(change, message):
    described = World({**ARM, **change})
    described.limits = World().limits
    with pytest.raises(RobotError, match=message):
        Guard(described, PERIOD_S)


def test_one_camera_that_shows_the_other_is_seen_and_a_moved_one_is_not():
    world, guard = started()
    pictures = guard_faults._picture
    moved = np.roll(pictures("front", 7, False), 6, axis=0)
    for number, front in enumerate([moved, pictures("wrist", 8, False)]):
        seen = world.observe()
        values = {**seen.values, "front": front}
        frame_ids = {**seen.frame_ids, "front": 100 + number}
        shown = replace(seen, values=values, frame_ids=frame_ids)
        world.observe = lambda shown=shown: shown
        assert guard.observe(0.0) is not None
        assert guard.may_think(0.0) is (number == 0)
        del world.observe
    assert guard.interventions == {"no thought: swapped cameras": 1}


class Counting(ReplayedRobot):
    """Two dimensions up to 4; keeps what it was told."""

    def __init__(self):
        from tests.runtime.test_loop import NarrowRobot

        narrow = NarrowRobot()
        super().__init__(narrow.recording, 2)
        self.limits, self.calls = narrow.limits, []

    def reset(self):
        self.calls.append("reset")
        return super().reset()

    def send(self, action_A):
        assert np.isfinite(action_A).all()
        self.calls.append("send")
        return super().send(action_A)

    def hold(self):
        self.calls.append("hold")


class Broken:
    """A policy whose thoughts are NaN from the second on."""

    chunk_shape = (3, 2)
    stats = None
    inputs: ClassVar = anchored("first", "task", side=1, state_dim=1)

    def __init__(self, crashes=False):
        self.count, self.crashes = 0, crashes

    def start(self, **given):
        return self

    def act(self, observation, *, at):
        self.count += 1
        if self.crashes:
            raise EngineError("planted")
        value = 1.0 if self.count == 1 else np.nan
        return Answer(np.full((3, 2), value, np.float32), {}, None, at)


def turns(folder, stamps):
    """A description of two turning axes."""
    axis = {"control": "delta", "unit": "rad", "velocity": 10, "acceleration": 50}
    axes = [{"name": name, **axis} for name in ("a", "b")]
    path = folder / "robot.json"
    path.write_text(json.dumps({"robot": "r", "stamps": stamps, "axes": axes}))
    return read_description(path)


def test_the_loop_holds_a_robot_whose_policy_answers_nan_and_gives_up_in_time():
    robot = Counting()
    config = LoopConfig(execute=3, max_steps=10)
    trace = run_episode(Broken(), robot, config, clock=VirtualClock())
    assert robot.calls == ["reset", *["send"] * 3, *["hold"] * 8]
    assert len(trace.steps) == 3 and trace.num_held == 7
    assert trace.interventions == {"chunk: not finite": 7, "no action": 7}


def test_the_loop_tells_the_guard_how_far_a_chunk_is_from_the_others(tmp_path):
    class Uncertain(Broken):
        def act(self, observation, *, at):
            self.count += 1
            spread = 0.3 if self.count == 2 else 0.1
            return Answer(np.full((3, 2), 0.01, np.float32), {}, None, at, spread)

    robot, limits = Counting(), turns(tmp_path, "simulated")
    limits = msgspec.structs.replace(limits, max_spread=0.2)
    config = LoopConfig(execute=3, max_steps=7)
    trace = run_episode(Uncertain(), robot, config, clock=VirtualClock(), limits=limits)
    assert trace.interventions["chunk: uncertain"] == 1
    assert trace.interventions["no action"] == 1, "and then it was asked again"


def test_the_loop_holds_a_robot_whose_policy_crashes():
    robot = Counting()
    with pytest.raises(EngineError, match="planted"):
        run_episode(Broken(crashes=True), robot, LoopConfig(execute=3), clock=VirtualClock())
    assert robot.calls == ["reset", "hold"]


def test_the_loop_notes_what_the_guard_changed_in_the_step(tmp_path):
    robot, limits = Counting(), turns(tmp_path, "simulated")
    config = LoopConfig(execute=3, max_steps=10)
    trace = run_episode(Broken(), robot, config, clock=VirtualClock(), limits=limits)
    assert len(trace.steps) == 8 and trace.num_held == 0, "the recording has 8 rows"
    assert trace.steps[0].interventions == ("arming: acceleration", "arming: velocity")
    assert 0 < trace.steps[0].sent[0] < trace.steps[0].action[0] == 1
    assert trace.steps[-1].interventions == ("no action",)
    assert np.array_equal(trace.steps[-1].action, trace.steps[-1].sent)
    assert trace.num_clipped == 3
    assert trace.interventions["no action"] == 5


def test_the_loop_does_not_think_on_a_state_that_is_too_old(tmp_path):
    """States of the recording are stamped a second apart: all but the first are of another time."""
    policy, config = Broken(), LoopConfig(execute=1, max_steps=6)  # of chunks of 3
    limits = turns(tmp_path, "monotonic")
    trace = run_episode(policy, Counting(), config, clock=VirtualClock(), limits=limits)
    assert policy.count == 1
    assert [step.act_s is not None for step in trace.steps] == [True] + [False] * 5
    assert trace.interventions["no thought: stale state"] == 5
    assert ["no action" in step.interventions for step in trace.steps] == [False] * 3 + [True] * 3


def test_hand_and_arm_of_the_faults_are_told_apart():
    assert {fault.raw["robot"] for fault in FAULTS} == {ARM["robot"], HAND["robot"]}
    assert [*EXPECTED] == [fault.words for fault in FAULTS]


def test_a_record_that_cannot_be_written_says_why(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="something is in the way"):
        FlightRecord("r").write(tmp_path / "file", "a", {})


def test_what_the_guard_says_of_a_tick_is_in_the_order_of_the_alphabet():
    world = World()
    guard = Guard(world, PERIOD_S)
    guard.begin(world.reset(), 0.0)
    said = []
    for tick in range(12):
        world.now = tick * PERIOD_S
        far = np.array([2.0, -1.0, 0.5, 3.0], np.float32) * (-1) ** tick
        said.append(guard.act(far, now=world.now).interventions)
    assert max(map(len, said)) >= 4
    assert said == [tuple(sorted(words)) for words in said]


def test_an_arm_that_still_moves_when_it_has_to_stop_slows_down_within_its_limits_first():
    """From 0.4 rad/s at 0.6 rad/s^2 that takes 0.67 s; the cameras are given up after 0.5 s."""
    slow = {"velocity": 0.5, "acceleration": 0.6, "jerk": 6.0}
    axes = [axis | slow if "jerk" in axis else axis for axis in ARM["axes"]]
    raw = {**ARM, "axes": axes, "arming": {"actions": 0}}
    world = World(raw)
    guard = Guard(world, PERIOD_S)
    guard.begin(world.reset(), 0.0)
    angle = 0.0
    with pytest.raises(Stopped, match="camera lost"):
        for tick in range(200):
            world.now = tick * PERIOD_S
            if world.now >= 1.5 and world.frozen_id is None:
                world.frozen_id = int(world.now * guard_faults.CAMERA_HZ)
            angle += PERIOD_S * min(0.4, 0.5 * world.now)
            guard.act(np.array([angle, 0, 0, 0.5], np.float32), now=world.now)
    before, last = (sent_A[0] for sent_A in world.sent[-2:])
    assert before == last, "it was stopped while it moved"
    assert world.now > 1.5 + 0.67 and 0.4 < last < 0.9
    assert Checker(raw, PERIOD_S).violations(world.sent).total() == 0
