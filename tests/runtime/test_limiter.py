"""What reaches the wire keeps every limit and can always stop; what keeps them is left alone."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.demo import EPISODES
from runtime.control.guard import Guard
from runtime.control.limiter import Limiter
from runtime.control.stops import ACCELERATION, JERK, POSITION, VELOCITY, ways_to_stop
from runtime.recordings.recording import load_recording
from runtime.robots import metaworld
from runtime.robots.description import Description, read_description
from runtime.robots.metaworld import LIMITS
from runtime.robots.robot import Limits
from tests.guard_storm import ARM, HAND, PERIOD_S, ROBOTS, Checker, Wire, play, storm

NUMBERS = (
    st.floats(width=32) | st.floats(-2, 2, width=32) | st.sampled_from([0.0, 1e-3, 0.05, 1e30])
)
SHIPPED = Path(metaworld.__file__).with_name("metaworld.json")
REST = np.array([-0.2, -0.2, -0.2, -0.2, 0])
"""An action of the arm that stands: position 0 of each joint, the gripper closed."""
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def limiter(raw, period_s=PERIOD_S, low=-np.inf, high=np.inf, measured=()):
    number = len(raw["axes"])
    bounds = (np.full(number, bound, np.float32) for bound in (low, high))
    limits = Limits(*bounds, ("",) * number, ("",) * number)
    made = Limiter(msgspec.convert(raw, Description), limits, period_s)
    made.begin(dict(measured) or {i: 0.0 for i, a in enumerate(raw["axes"]) if "measured" in a})
    return made


def follow(one, actions):
    """What is sent for each action, and what was said."""
    sent, said = [], []
    for action in actions:
        step_A, broken = one.step(action)
        one.sent(step_A, counts=action is not None)
        sent.append(step_A)
        said.append(broken)
    return np.stack(sent), said


@pytest.mark.parametrize("name", ROBOTS)
def test_a_thousand_adversarial_chunks_break_no_limit_and_end_at_rest(name):
    violations, interventions, num_ticks = storm(name, 1000, seed=17)
    assert violations.total() == 0
    assert num_ticks > 1000 and interventions["chunk: not finite"] > 20


@pytest.mark.parametrize("name", ROBOTS)
@SETTINGS
@given(data=st.data())
def test_no_chunk_breaks_a_limit(name, data):
    wire = Wire(ROBOTS[name])
    guard, number = Guard(wire, PERIOD_S), len(ROBOTS[name]["axes"])
    guard.begin(wire.reset(), 0.0)
    chunk = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(number)), elements=NUMBERS)
    for rows, is_stale in data.draw(st.lists(st.tuples(chunk, st.booleans()), max_size=12)):
        play(guard, rows, is_stale, 0.0)
    for _ in range(40):
        guard.act(None, now=0.0)
    assert Checker(ROBOTS[name]).violations(wire.sent).total() == 0
    if len(wire.sent) > 1:
        assert np.array_equal(wire.sent[-1], wire.sent[-2])


@pytest.mark.parametrize(
    ("kind", "column", "path"),
    [
        ("position", 0, np.linspace(0, 4.5, 400)),
        ("velocity", 1, np.linspace(0, 3, 9)),
        ("acceleration", 2, np.cumsum(0.5 * np.minimum(np.arange(8) * 0.1, 0.4) ** 2 * 16)),
        ("jerk", 3, 0.002 * (-1.0) ** np.arange(50) * np.linspace(0, 60, 50)),
        ("not finite", 0, np.array([0, np.nan, 0])),
    ],
)
def test_the_checker_sees_a_limit_that_is_broken(kind, column, path):
    sent = np.tile(REST, (len(path), 1)).astype(np.float32)
    sent[:, column] += path
    assert Checker(ARM).violations(list(sent))[kind] > 0
    sent[:, column] = -0.2
    assert Checker(ARM).violations(list(sent)).total() == 0


def test_the_checker_sees_a_norm_that_is_broken():
    sent = np.zeros((9, 7), np.float32)
    sent[:, :3] = np.linspace(0, 2.4, 9)[:, None]
    assert {"velocity", "acceleration"} <= {*Checker(HAND).violations(list(sent))}


def test_what_keeps_the_limits_is_sent_to_the_bit_and_nothing_is_said():
    angle = 0.5 * (1 - np.cos(np.linspace(0, 6, 60)))
    actions = np.stack([(angle - 0.1) / 0.5] * 4 + [0.1 * angle], axis=1).astype(np.float32)
    sent, said = follow(limiter({**ARM, "arming": {"actions": 0}}), actions)
    assert np.array_equal(sent, actions)
    assert said == [set()] * 60


@pytest.mark.parametrize("path", sorted(EPISODES.glob("*.npz")), ids=lambda path: path.stem)
def test_the_shipped_limits_leave_the_demos_episodes_alone(path):
    recording = load_recording(path)
    state = recording.streams["state"].values[0]
    one = Limiter(read_description(SHIPPED), LIMITS, 0.1)
    one.begin({i: float(state[i]) for i in range(3)})
    sent, said = follow(one, recording.actions)
    assert np.array_equal(sent, recording.actions) and not any(said)


def test_the_limits_can_be_used_up():
    """At full speed towards the end of its range the arm gets there, as fast as it may."""
    far = np.full(5, 100, np.float32)
    sent, said = follow(limiter({**ARM, "arming": {"actions": 0}}), [far] * 80)
    path = np.concatenate([np.zeros((3, 4)), sent[:, :4] * 0.5 + 0.1])
    speed = np.diff(path, axis=0) / PERIOD_S
    assert path[-1].max() == pytest.approx(1.9, abs=1e-3)
    assert speed.max() > 0.98 * 1.5
    assert (np.diff(speed, axis=0) / PERIOD_S).max() > 0.9 * 6.0
    assert "velocity" in said[0] and said[-1] == {"position", "velocity", "acceleration", "jerk"}
    assert Checker(ARM).violations(list(sent)).total() == 0


def test_a_group_keeps_its_direction():
    step = np.array([0.9, -0.3, 0.6, 0, 0, 0, 0], np.float32)
    sent, _ = follow(limiter(HAND), [step] * 4)
    directions = sent[:, :3] / np.linalg.norm(sent[:, :3], axis=1, keepdims=True)
    assert directions == pytest.approx(np.tile(step[:3] / np.linalg.norm(step), (4, 1)), abs=1e-5)


def test_one_axis_that_is_limited_leaves_the_others_alone():
    good = np.array([0.01, 0, 0, 0.05, 0, 0, 0.5], np.float32)
    bad = good.copy()
    bad[3] = 3  # a turn
    sent, _ = follow(limiter(HAND), [good, bad])
    assert np.array_equal(sent[1][[0, 1, 2, 6]], bad[[0, 1, 2, 6]])
    assert 0.05 < sent[1][3] < 3


def test_a_position_that_was_held_up_comes_back_to_its_path_without_swinging_past():
    one = limiter({**ARM, "arming": {"actions": 0}}, 0.05)
    path = np.tile(REST, (200, 1))
    path[:, 0] += 0.6 * np.sin(0.04 * np.arange(200))  # up to 0.24 rad/s
    actions = [None if 30 <= i < 36 else row for i, row in enumerate(path.astype(np.float32))]
    sent, said = follow(one, actions)
    behind = (path[:, 0] - sent[:, 0]) * 0.5
    assert behind[30:38].max() > 0.02
    assert behind[30:80].min() > -0.05 * behind.max(), "swings past"
    assert np.array_equal(sent[90:], np.stack(actions[90:]))
    assert {"back to path"} in said and not any(said[90:])


def test_no_action_slows_down_along_the_last_command_and_then_stands():
    one = limiter({**ARM, "arming": {"actions": 0}}, 0.05)
    ramp = np.tile(REST, (30, 1))
    ramp[:, 0] += np.concatenate([np.linspace(0, 1, 20) ** 2 * 0.5, 0.5 + np.arange(1, 11) * 0.05])
    sent, _ = follow(one, [*ramp.astype(np.float32), *[None] * 40])
    speed = np.diff(sent[:, 0].astype(float))
    last = speed[28]
    assert last > 0.04, "it does move"
    # Less speed in each tick, up to what a ramp of acceleration adds before it turns.
    assert speed[29:].max() <= 1.2 * last and (speed[29:] > -1e-6).all()
    assert (sent[-10:] == sent[-1]).all() and sent[-1, 0] > sent[29, 0]
    assert one.stands
    assert (sent[:, 1:4] == np.float32(-0.2)).all(), "never zeros"


def test_after_a_pause_a_position_starts_from_rest_and_a_velocity_goes_on():
    timed = {**ARM, "stamps": "monotonic", "arming": {"actions": 0}}
    one = limiter(timed)
    path = np.tile(REST, (40, 1)).astype(np.float32)
    path[:, 0] += np.float32(0.01) * np.minimum(np.arange(40), 12) ** 2
    follow(one, path[:10])
    assert one.velocity_A[0] > 0.5
    one.paused(3)
    assert one.velocity_A[0] == 0 and one.stands
    sent, said = follow(one, path[10:])
    assert "acceleration" in said[0]
    from_rest = np.concatenate([[path[9, 0]] * 3, sent[:, 0]]) * 0.5
    assert np.abs(np.diff(from_rest, 2)).max() / PERIOD_S**2 <= 6.0 * (1 + 1e-6)

    rail = limiter({**ROBOTS["rail"], "stamps": "monotonic", "arming": {"actions": 0},
                    "axes": [{**ROBOTS["rail"]["axes"][0], "max_error": 1}]})  # fmt: skip
    follow(rail, np.float32([[0.1], [0.2]]))
    at = rail.position_A[0]
    rail.paused(5)
    assert rail.position_A[0] == pytest.approx(at + 5 * 0.2 * PERIOD_S)
    assert rail.velocity_A[0] == pytest.approx(0.2)


def test_the_first_actions_are_slower_than_the_next():
    raw = {**ARM, "arming": {"actions": 6, "fraction": 0.5}}
    sent, said = follow(limiter(raw), [np.full(5, 100, np.float32)] * 12)
    speed = np.diff(np.concatenate([[0.0], sent[:, 0] * 0.5 + 0.1])) / PERIOD_S
    assert speed[:6].max() <= 0.75 < speed.max()
    assert all(name.startswith("arming: ") for words in said[:6] for name in words)
    assert not any(name.startswith("arming") for words in said[6:] for name in words)


def test_what_the_robot_clips_to_counts_where_it_is_tighter():
    one = limiter({**ARM, "arming": {"actions": 0}}, low=-0.6, high=0.5)
    sent, _ = follow(one, [np.full(5, 0.5, np.float32)] * 40)
    assert sent.max() == np.float32(0.5)


@pytest.mark.parametrize(
    ("raw", "arguments", "message"),
    [
        (
            ARM,
            {"low": 5, "high": 9},
            "'joint0': the robot clips it to .5, 9., which leaves no room",
        ),
        (
            HAND,
            {"low": 0.5, "high": 1},
            "'x': the robot clips it to .0.5, 1., which leaves no room",
        ),
        (ARM, {"period_s": 1e-3}, "jerk 50 is less than float32 commands resolve every 0.001 s"),
        (ARM, {"measured": {0: -2.5, 1: 0.0}}, "'joint0' stands at -2.5 rad, outside .-2, 1.9."),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(raw, arguments, message):
    with pytest.raises(ValueError, match=message):
        limiter(raw, **arguments)


def test_an_arm_that_stands_a_little_outside_is_commanded_to_its_bound():
    one = limiter(ARM, measured={0: -2.01, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0})
    sent, _ = follow(one, [None])
    assert -2.0 <= sent[0, 0] * 0.5 + np.float64(0.1) <= -1.999


def test_a_joint_that_turns_for_ever_is_limited_in_all_but_its_angle():
    joint = {key: value for key, value in ARM["axes"][0].items() if key not in ("low", "high")}
    one = limiter({**ARM, "axes": [{**joint, "joint": "roll"}]})
    sent, _ = follow(one, [np.float32([60])] * 60)
    speed = np.diff(sent[:, 0].astype(float) * 0.5) / PERIOD_S
    assert sent[-1, 0] * 0.5 > 6.5 and 1.45 < speed.max() <= 1.5


@pytest.mark.parametrize("bound", [0.1, -0.1])
def test_a_bound_that_float32_rounds_outwards_is_not_passed(bound):
    assert abs(float(np.float32(bound))) > 0.1
    joint = {**ARM["axes"][0], "low": -0.1, "high": 0.1, "scale": 1.0, "offset": 0.0}
    one = limiter({**ARM, "axes": [joint]}, measured={0: bound})
    sent, _ = follow(one, [None, np.float32([2 * bound]), None])
    assert (np.abs(sent.astype(np.float64)) <= 0.1).all()
    assert sent[:, 0] == pytest.approx([bound] * 3, rel=1e-6)


@pytest.mark.parametrize("period_s", [0.1, 0.02])
def test_every_way_to_stop_does_what_its_rows_say_and_ends_at_rest(period_s):
    """Rows against a plain simulation of the velocities, from a random state."""
    stops = ways_to_stop(12, period_s)
    u, p, v, a = np.random.default_rng(3).normal(size=4)
    velocity = (u - p) / period_s
    for way, steps_K2 in enumerate(stops.velocities_WK2):
        speeds = [v, velocity, *(steps_K2 @ [velocity, velocity - v])]
        assert speeds[-1] == 0 and speeds[-2] == 0
        change = np.diff(speeds) / period_s
        expected = {
            POSITION: u + np.cumsum(speeds[2:]) * period_s,
            VELOCITY: speeds[2:],
            ACCELERATION: change[1:],
            JERK: np.diff(change) / period_s,
        }
        end = [*stops.starts_W, len(stops.kinds_R)][way + 1]
        rows = slice(stops.starts_W[way], end)
        told = stops.rows_R4[rows] @ [u, p, v, a]
        for kind, values in expected.items():
            found = told[stops.kinds_R[rows] == kind]
            assert found == pytest.approx(values[: len(found)], rel=1e-6, abs=1e-6), (way, kind)
            assert np.abs(values[len(found) :]).sum() == 0 or kind == POSITION


def test_the_smooth_way_has_less_jerk_than_any_near_it():
    """Least squares: no small change of its velocities lowers the sum of squared jerks."""
    stops = ways_to_stop(12, 1.0)
    steps = stops.velocities_WK2[-1][:, 0]
    length = int(np.flatnonzero(steps)[-1]) + 1
    cost = lambda inner: (np.diff([1, 1, *inner, 0, 0], 2) ** 2).sum()  # noqa: E731
    best, random = cost(steps[:length]), np.random.default_rng(0)
    assert all(cost(steps[:length] + random.normal(0, 1e-3, length)) > best for _ in range(50))


def test_ways_to_stop_are_looked_for_twice_as_far_as_the_fastest_one_takes():
    """From 0.1 rad/s that is 0.1 s at 1 rad/s^2 and 0.025 s of jerk: with two steps more, 4.5 of
    0.1 s. The first length that is not below is 6."""
    axis = {"name": "a", "control": "position", "unit": "rad", "low": -1.0, "high": 1.0,
            "velocity": 0.1, "acceleration": 1.0, "jerk": 40.0,
            "measured": {"index": 0}}  # fmt: skip
    raw = {"robot": "one", "stamps": "simulated", "state": "state", "axes": [axis]}
    assert limiter(raw, 0.1).stops.velocities_WK2.shape[1] == 1 + 6
    # A gripper whose speed nobody limits has no full speed to stop from.
    grip = {"name": "g", "control": "gripper", "unit": "fraction", "low": 0.0, "high": 1.0,
            "acceleration": 5.0}  # fmt: skip
    both = limiter({**raw, "axes": [axis, grip]}, 0.1)
    assert both.stops.velocities_WK2.shape[1] == 1 + 6
