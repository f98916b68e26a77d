"""The robot as the loop sees it: observations, sensors, limits, what fits; and the replayed one.

N = control step, A = action dimension.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from runtime.errors import RobotError
from runtime.recordings.recording import Recording, Stream, evenly
from runtime.robots.replay import ReplayedRobot
from runtime.robots.robot import Limits, Observation, Sensor, check_fits

NUM_FRAMES = 5
FRAMES = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 12, 16, 3), np.uint8)
STATES = np.random.default_rng(1).normal(size=(NUM_FRAMES, 4)).astype(np.float32)
TIMES_S = np.array([0.0, 0.11, 0.2, 0.3, 0.41])


def make_recording(**changes):
    fields = {
        "instruction": "open the drawer",
        "task": "drawer-open",
        "seed": 3,
        "rate_hz": 10.0,
        "streams": {
            "frame": evenly(FRAMES, 10.0),
            "state": Stream(values=STATES, at_s=TIMES_S),
        },
        "actions": np.zeros((NUM_FRAMES, 7), np.float32),
        "success": True,
    }
    return Recording(**(fields | changes))


def observed(**changes):
    fields = {
        "values": {"frame": FRAMES[0].copy(), "state": STATES[0].copy()},
        "at": {"frame": 2.0, "state": 1.5},
        "frame_ids": {"frame": 7},
    }
    return Observation(**(fields | changes))


def test_an_observation_is_as_old_as_its_oldest_part():
    assert observed().observed_at == 1.5
    assert observed(at={"frame": 1.0, "state": 1.5}).observed_at == 1.0


def test_whoever_reads_an_observation_cannot_write_into_it_and_the_robots_buffer_stays_writable():
    buffer = FRAMES[0].copy()
    seen = Observation({"frame": buffer}, {"frame": 0.0})
    with pytest.raises(ValueError, match="read-only"):
        seen.values["frame"][0] = 0
    assert np.array_equal(seen.values["frame"], FRAMES[0])
    assert buffer.flags.writeable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {}, "at": {}, "frame_ids": {}}, "needs at least one value, got none"),
        ({"at": {"frame": 0.0}}, "an observation of frame, state has stamps of frame; give each"),
        ({"at": {"frame": 0.0, "state": 0.0, "x": 0.0}}, "has stamps of frame, state, x;"),
        ({"frame_ids": {"wrist": 0}}, "of frame, state has a frame id of 'wrist'; frame ids are"),
    ],
)
def test_an_observation_whose_names_do_not_agree_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        observed(**changes)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("smell", (3,), "kind must be one of image, depth, vector, video, got 'smell'"),
        ("image", (4, 5), r"the shape of image must be \[H, W, 3\], got \[4, 5\]"),
        ("image", (3, 4, 5), r"must be \[H, W, 3\], got \[3, 4, 5\]"),
        ("vector", (1, 4), r"the shape of vector must be \[S\], got \[1, 4\]"),
        ("vector", (0,), r"must be \[S\], got \[0\]"),
        ("vector", (), r"must be \[S\], got \[\]"),
        ("video", (4, 5, 3), r"of video must be \[frames, H, W, 3\], got \[4, 5, 3\]"),
        ("depth", (4,), r"the shape of depth must be \[H, W\], got \[4\]"),
    ],
)
def test_a_sensor_that_cannot_be_is_refused(kind, shape, message):
    with pytest.raises(ValueError, match=message):
        Sensor(kind, shape, "uint8")


def limits(low=(-1, -np.inf), high=(1, 2), units=("m", ""), names=("x", "y")):
    return Limits(np.array(low), np.array(high), units, names)


def test_limits_are_float32_copies_that_nobody_changes_and_clip_to_the_nearest():
    low = np.array([-1.0, -2.0], np.float32)
    found = Limits(low, np.array([1.0, np.inf]), ("m", "m"), ("x", "y"))
    low[:] = 5
    assert found.low.tolist() == [-1, -2] and found.low.dtype == found.high.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        found.high[0] = 3
    action_A = np.array([7, 9], np.float32)
    clipped_A = found.clip(action_A)
    assert clipped_A.tolist() == [1, 9] and clipped_A.dtype == np.float32
    assert action_A.tolist() == [7, 9] and found.num_actions == 2
    assert not np.shares_memory(found.clip(clipped_A), clipped_A)
    for broken_A in (np.zeros(2), np.zeros(3, np.float32), np.full(2, np.inf, np.float32)):
        with pytest.raises(ValueError, match="an action must be (float32|finite)"):
            found.clip(broken_A)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": (-1,)}, r"limits must be \[A\] each, got low \[1\], high \[2\], units \[2\], nam"),
        ({"names": ("x",)}, r"names \[1\]"),
        ({"low": (), "high": (), "units": (), "names": ()}, r"got low \[0\]"),
        ({"low": (-1, 2)}, "dimension 1 of an action must have low < high, got 2.0 and 2.0"),
        ({"high": (np.nan, 2)}, "dimension 0 of an action must have low < high, got -1.0 and nan"),
    ],
)
def test_limits_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        limits(**changes)


@dataclass
class Want:
    """What a policy wants: not our `Sensor`."""

    kind: str
    shape: tuple
    dtype: object
    unit: str = ""


FRAME, STATE = Want("image", (480, 640, 3), "uint8"), Want("vector", (4,), np.dtype("float32"))


def fits(wanted, num_actions=7, unit=""):
    robot = ReplayedRobot(make_recording())
    robot.inputs["state"] = Sensor("vector", (4,), "float32", unit)
    check_fits(robot, wanted, num_actions)


def test_a_robot_fits_a_policy_whatever_the_size_of_its_pictures_and_what_it_shows_besides():
    fits({"frame": FRAME, "state": STATE})
    fits({"frame": FRAME})
    fits({})


@pytest.mark.parametrize(("ours", "theirs"), [("m", "m"), ("", "m"), ("m", ""), ("", "")])
def test_a_unit_that_nobody_tells_fits_any(ours, theirs):
    fits({"state": Want("vector", (4,), "float32", theirs)}, unit=ours)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"wrist": FRAME},
            r"the policy wants input 'wrist', image uint8 \[480, 640, 3\], and the robot shows "
            "frame, state: give it that name in the robot's inputs",
        ),
        (
            {"frame": Want("video", (2, 12, 16, 3), "uint8")},
            r"input 'frame' of the robot is image uint8 \[12, 16, 3\], the policy wants video "
            r"uint8 \[2, 12, 16, 3\]: convert it in the robot's observe, or export the policy",
        ),
        ({"frame": Want("image", (12, 16, 3), "float32")}, "the policy wants image float32"),
        ({"frame": Want("image", (1, 12, 16, 3), "uint8")}, r"wants image uint8 \[1, 12, 16, 3\]"),
        (
            {"state": Want("vector", (7,), "float32")},
            r"float32 \[4\] in rad, .* float32 \[7\]: con",
        ),
        (
            {"state": Want("vector", (4,), "float32", "m")},
            r"\[4\] in rad, .* float32 \[4\] in m: co",
        ),
    ],
)
def test_an_input_that_is_missing_or_differs_is_told_in_one_line(wanted, message):
    with pytest.raises(RobotError, match=message) as told:
        fits(wanted, unit="rad")
    assert "\n" not in str(told.value)


def test_another_number_of_actions_is_refused_with_the_robots_names():
    with pytest.raises(
        RobotError, match="robot takes 7 action dimensions, the policy answers 4: ch"
    ):
        fits({}, num_actions=4)
    robot = ReplayedRobot(make_recording(action_names=tuple("abcdefg")))
    with pytest.raises(
        RobotError, match=r"takes 7 action dimensions \(a b c d e f g\), the policy"
    ):
        check_fits(robot, {}, 4)


def test_a_replay_shows_every_row_once_with_its_stamps_and_keeps_the_actions():
    robot = ReplayedRobot(make_recording())
    assert robot.inputs == {
        "frame": Sensor("image", (12, 16, 3), "uint8"),
        "state": Sensor("vector", (4,), "float32"),
    }
    seen = robot.reset()
    for index in range(NUM_FRAMES):
        assert np.array_equal(seen.values["frame"], FRAMES[index])
        assert np.array_equal(seen.values["state"], STATES[index])
        assert seen.at == {"frame": index / 10, "state": TIMES_S[index]}
        assert seen.frame_ids == {"frame": index}
        robot.send(np.full(7, index, np.float32))
        seen = robot.observe()
    assert np.array_equal(seen.values["frame"], FRAMES[-1])
    assert [action_A[0] for action_A in robot.applied] == list(range(NUM_FRAMES))


def test_a_replay_owns_its_copy_of_the_actions():
    robot = ReplayedRobot(make_recording())
    robot.reset()
    action_A = np.zeros(7, np.float32)
    sent_A = robot.send(action_A)
    action_A[:] = 1
    sent_A[:] = 2
    assert not robot.applied[0].any()


def test_a_replay_without_recorded_actions_has_to_be_told_their_number():
    recording = make_recording(actions=None)
    with pytest.raises(RobotError, match="holds no actions, .*: say it with num_actions"):
        ReplayedRobot(recording)
    robot = ReplayedRobot(recording, num_actions=3)
    robot.reset()
    robot.send(np.zeros(3, np.float32))
    for broken in (np.zeros((1, 3), np.float32), np.zeros(3), np.full(3, np.nan, np.float32)):
        with pytest.raises(ValueError, match="an action must be"):
            robot.send(broken)
    assert len(robot.applied) == 1


def test_a_replay_takes_as_many_actions_as_were_recorded_and_knows_their_names():
    robot = ReplayedRobot(make_recording(action_names=tuple("abcdefg")), num_actions=3)
    assert robot.limits.names == tuple("abcdefg")
    assert not np.isfinite(robot.limits.low).any() and not np.isfinite(robot.limits.high).any()


def test_calls_outside_an_episode_are_refused_with_what_to_do():
    robot, action_A = ReplayedRobot(make_recording()), np.zeros(7, np.float32)
    for call in (robot.observe, lambda: robot.send(action_A), robot.hold):
        with pytest.raises(
            RobotError, match=r"(observe|send|hold)\(\) outside an episode: call re"
        ):
            call()
    robot.reset()
    while not robot.done:
        robot.send(action_A)
    with pytest.raises(
        RobotError, match=r"send\(\) after the end of the recording \(5 steps\): cal"
    ):
        robot.send(action_A)


def test_a_replay_cannot_tell_success():
    robot = ReplayedRobot(make_recording(success=True))
    robot.reset()
    assert robot.success is None
