"""The simulated robot: what its frames show, what its seeds fix, how it says that it cannot run."""

import ctypes
import ctypes.util
import importlib.util
import sys
from contextlib import closing

import numpy as np
import pytest

from runtime.control.guard import Guard
from runtime.errors import RobotError
from runtime.robots import rendering
from runtime.robots.metaworld import TASKS, MetaWorldRobot
from runtime.robots.rendering import rendering_backend

pytestmark = pytest.mark.usefixtures("simulator")


def make_robot(**options):
    return closing(MetaWorldRobot(**({"task": "reach", "seed": 0} | options)))


def marker_pixels(image):
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return (green > 100) & (green > 2 * red) & (green > 2 * blue)


def marker_features(image):
    """Where the marker is in the picture and how large: what a linear map can work with."""
    v, u = np.nonzero(marker_pixels(image))
    return np.array([1, u.mean(), v.mean(), np.sqrt(len(u))])


def goal_error_m(robot, *, num_fit=60, num_held_out=40):
    """Median distance between the goals and those read off the first frames of other episodes."""
    features, goals = [], []
    for _ in range(num_fit + num_held_out):
        features.append(marker_features(robot.reset().values["frame"]))
        goals.append(robot.goal_m)
    features, goals = np.array(features), np.array(goals)
    weights, *_ = np.linalg.lstsq(features[:num_fit], goals[:num_fit], rcond=None)
    misses_m = np.linalg.norm(features[num_fit:] @ weights - goals[num_fit:], axis=1)
    return np.median(misses_m)


# A goal counts as reached within 0.05 m. Goals fill a box of 0.2 x 0.1 x 0.25 m, so that guessing
# its middle misses by about 0.09 m.
def test_the_marker_in_the_first_frame_tells_where_the_goal_is():
    with make_robot() as robot:
        assert goal_error_m(robot) < 0.015


def test_without_settling_the_first_frame_shows_the_goal_of_another_episode(monkeypatch):
    monkeypatch.setattr(MetaWorldRobot, "_settle", lambda self: None)
    with make_robot() as robot:
        assert goal_error_m(robot) > 0.05


@pytest.mark.parametrize("task", ["reach", "push"])
def test_the_marker_is_wholly_in_view_and_nothing_else_looks_like_it(task):
    with make_robot(task=task) as robot:
        for _ in range(20):
            pixels = marker_pixels(robot.reset().values["frame"])
            v, u = np.nonzero(pixels)
            assert 20 < len(u) < 150
            assert u.min() > 0 and v.min() > 0 and u.max() < 111 and v.max() < 111
            assert np.ptp(u) < 14 and np.ptp(v) < 14


def test_the_remembered_marker_is_gone_after_the_first_frame_and_back_in_the_next_episode():
    with make_robot(task="reach") as robot:
        for _ in range(2):
            assert marker_pixels(robot.reset().values["frame"]).any()
            assert not marker_pixels(robot.observe().values["frame"]).any()
            for _ in range(3):
                robot.send(np.zeros(4, np.float32))
                assert not marker_pixels(robot.observe().values["frame"]).any()


@pytest.mark.parametrize("options", [{"task": "push"}, {"hide_marker_after_first_frame": False}])
def test_a_marker_that_need_not_be_remembered_stays(options):
    with make_robot(**options) as robot:
        robot.reset()
        robot.send(np.zeros(4, np.float32))
        assert marker_pixels(robot.observe().values["frame"]).any()


def test_the_instruction_alone_tells_which_of_three_markers_is_meant():
    pictures, places = [], []
    for colour in ("red", "green", "blue"):
        with make_robot(task=f"touch-{colour}") as robot:
            pictures.append(robot.reset().values["frame"])
            places.append(robot.markers_m)
            assert colour in robot.instruction
            assert np.allclose(robot.goal_m, robot.markers_m[colour])
    assert all(set(at) == {"red", "green", "blue"} for at in places)
    # The same three places, in other colours.
    assert all(
        np.allclose(sorted(map(tuple, at.values())), sorted(map(tuple, places[0].values())))
        for at in places
    )
    assert not np.array_equal(pictures[0], pictures[1])


def test_markers_of_one_scene_are_too_far_apart_to_be_reached_at_once():
    with make_robot(task="touch-red") as robot:
        for _ in range(20):
            robot.reset()
            at = list(robot.markers_m.values())
            gaps = [np.linalg.norm(a - b) for i, a in enumerate(at) for b in at[i + 1 :]]
            assert min(gaps) >= 0.09 - 1e-6


def test_a_robot_tells_which_of_the_other_tasks_it_achieved():
    with make_robot(task="touch-red", end_on_success=False) as robot:
        robot.reset()
        assert robot.achieved("touch-green") is False
        while not robot.success:
            robot.send(robot.expert_action())
        assert robot.achieved("touch-red") is True
        assert robot.achieved("touch-green") is False
        assert robot.achieved("push") is None
        # Now on to the green one, by hand: the expert knows one goal only.
        target = robot.markers_m["green"]
        for _ in range(60):
            step = (target - robot._env.tcp_center) * 20
            robot.send(np.array([*np.clip(step, -1, 1), -1.0], np.float32))
        assert robot.achieved("touch-green") is True


@pytest.mark.parametrize("task", ["button-press-topdown", "drawer-open"])
def test_a_task_without_marker_shows_none(task):
    with make_robot(task=task) as robot:
        assert not marker_pixels(robot.reset().values["frame"]).any()


@pytest.mark.parametrize("task", TASKS)
def test_the_same_task_and_seed_give_the_same_bits(task):
    with make_robot(task=task, seed=5) as first, make_robot(task=task, seed=5) as second:
        for _ in range(2):
            ours, theirs = first.reset(), second.reset()
            for _ in range(10):
                assert np.array_equal(ours.values["frame"], theirs.values["frame"])
                assert np.array_equal(ours.values["state"], theirs.values["state"])
                action_A = first.expert_action()
                first.send(action_A)
                second.send(action_A)
                ours, theirs = first.observe(), second.observe()


def test_an_episode_does_not_depend_on_the_actions_of_the_one_before():
    with make_robot(task="push") as idle, make_robot(task="push") as busy:
        idle.reset()
        busy.reset()
        while not busy.done:
            busy.send(busy.expert_action())
        assert np.array_equal(idle.reset().values["frame"], busy.reset().values["frame"])
        assert np.array_equal(idle.goal_m, busy.goal_m)


def test_every_seed_and_every_episode_has_its_own_goal():
    goals = []
    for seed in (0, 1):
        with make_robot(seed=seed) as robot:
            for _ in range(2):
                robot.reset()
                goals.append(tuple(robot.goal_m))
    assert len(set(goals)) == 4


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_mostly_succeeds(task):
    successes = []
    for seed in range(3):
        with make_robot(task=task, seed=seed) as robot:
            robot.reset()
            while not robot.done:
                robot.send(robot.expert_action())
            successes.append(robot.success)
    assert sum(successes) >= 2


def test_doing_nothing_does_not_succeed():
    with make_robot(max_steps=20) as robot:
        robot.reset()
        while not robot.done:
            robot.send(np.zeros(4, np.float32))
        assert robot.success is False


def test_success_is_kept_when_the_episode_goes_on():
    with make_robot(end_on_success=False, max_steps=90) as robot:
        robot.reset()
        while not robot.success:
            robot.send(robot.expert_action())
        assert not robot.done
        while not robot.done:  # away from the goal
            robot.send(np.array([0, -1, 0, 0], np.float32))
        assert robot.success


def test_the_state_is_the_hand_in_metres_and_the_gripper_opening():
    with make_robot() as robot:
        before = robot.reset().values["state"]
        assert before.shape == (4,)
        assert 0.9 < before[3] <= 1
        for _ in range(20):
            robot.send(np.array([1, 0, 0, 1], np.float32))
        after = robot.observe().values["state"]
        # The arm follows a target that moved 20 x 1 cm, and has not caught up yet.
        assert 0.05 < after[0] - before[0] < 0.2
        assert after[3] < before[3]


def test_actions_outside_the_range_are_clipped_and_what_was_sent_is_told():
    with make_robot(seed=2) as clipped, make_robot(seed=2) as plain:
        for robot, scale in ((clipped, 3), (plain, 1)):
            robot.reset()
            for _ in range(4):
                assert robot.send(np.full(4, scale, np.float32)).tolist() == [1, 1, 1, 1]
        assert np.array_equal(clipped.observe().values["state"], plain.observe().values["state"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "juggle"}, "task must be one of reach, .*, got 'juggle'"),
        ({"image_size": 8}, r"image_size must be in \[16, 480\] pixels, got 8"),
        ({"max_steps": 500}, r"max_steps must be in \[1, 499\], where Meta-World stops, got 500"),
    ],
)
def test_an_argument_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_robot(**options)


def test_stamps_are_simulated_time_and_every_look_has_its_own_frame_id():
    with make_robot() as robot:
        seen = [robot.reset(), robot.observe()]
        for _ in range(2):
            robot.send(np.zeros(4, np.float32))
            seen.append(robot.observe())
        assert [o.at for o in seen] == [dict.fromkeys(("frame", "state"), t) for t in
                                        (0.0, 0.0, 0.0125, 0.025)]  # fmt: skip
        assert [o.frame_ids["frame"] for o in seen] == [0, 1, 2, 3]  # the anchor shows the marker
    with make_robot(hide_marker_after_first_frame=False) as robot:
        assert robot.reset().frame_ids == robot.observe().frame_ids


def test_a_closed_robot_does_not_come_back():
    with make_robot() as robot:
        robot.close()
        with pytest.raises(RobotError, match=r"reset\(\) after close\(\)"):
            robot.reset()


def test_egl_comes_first_and_the_users_choice_before_it(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_can_load", lambda backend: True)
    assert rendering_backend() == "egl"
    monkeypatch.setattr(rendering, "_can_load", lambda backend: backend != "egl")
    assert rendering_backend() == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "GLFW")
    assert rendering_backend() == "glfw"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("", "MUJOCO_GL is not set, no library for egl or osmesa can be loaded"),
        ("egl", "MUJOCO_GL is egl, no library for egl can be loaded"),
        ("osmesa", "MUJOCO_GL is osmesa, no library for osmesa can be loaded"),
    ],
)
def test_without_any_gl_library_the_error_names_the_packages(monkeypatch, chosen, message):
    def cannot_load(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", cannot_load)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    monkeypatch.setenv("MUJOCO_GL", chosen)
    with pytest.raises(RobotError, match="apt-get install libegl1 libegl-mesa0.*libosmesa6"):
        rendering_backend()
    with pytest.raises(RobotError, match=message):
        make_robot()


def test_a_missing_simulator_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RobotError, match="not installed .no metaworld and no mujoco.: pip install"):
        make_robot()


def test_mujoco_bound_to_another_library_is_reported(monkeypatch):
    assert "mujoco" in sys.modules
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(RobotError, match="mujoco was imported before.*set MUJOCO_GL="):
        make_robot()


def test_a_renderer_that_fails_is_reported(monkeypatch):
    import mujoco

    def fail(*_):
        raise ImportError("Cannot initialize a EGL device display")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    with pytest.raises(RobotError, match="cannot render with MUJOCO_GL=.*Cannot initialize"):
        make_robot()


@pytest.mark.parametrize("task", ["touch-red", "push", "touch-what-blinked"])
def test_a_robot_with_a_new_seed_is_as_one_that_was_built_with_it(task):
    def frames(robot):
        seen = [robot.reset()]
        for _ in range(8):
            robot.send(robot.expert_action())
            seen.append(robot.observe())
        return [(o.values["frame"].tobytes(), o.values["state"].tobytes()) for o in seen]

    with make_robot(task=task, seed=7) as built, make_robot(task=task, seed=1) as other:
        want = frames(built)
        frames(other)
        other.reset()
        other.reseed(7)
        with pytest.raises(RobotError, match="outside an episode"):
            other.observe()
        assert frames(other) == want


@pytest.mark.parametrize("task", ["touch-red", "touch-what-blinked"])
def test_the_expert_keeps_the_limits_that_the_simulator_ships_and_a_leap_does_not(task):
    with make_robot(task=task, seed=70_000) as robot:
        guard = Guard(robot, 0.1)
        guard.begin(robot.reset(), 0.0)
        while not robot.done:
            action_A = robot.expert_action()
            assert np.array_equal(guard.act(action_A, now=0.0).sent, action_A)
        assert robot.success and not guard.interventions
        guard.begin(robot.reset(), 0.0)
        leap_A = np.ones(4, np.float32)
        for sign in (1, -1, 1):
            guard.act(sign * leap_A, now=0.0)
        assert guard.interventions["acceleration"] >= 1


@pytest.mark.parametrize("task", ["touch-blue", "button-press-topdown"])
def test_what_the_simulator_knows_is_the_goal_in_centimetres(task):
    with make_robot(task=task, seed=3) as robot:
        robot.reset()
        truth = robot.truths()["goal"]
        assert truth.units == ("cm",) * 3
        assert truth.value == pytest.approx(100 * robot.goal_m)
        marker = robot.markers_m.get("blue")
        assert marker is None or truth.value == pytest.approx(100 * marker)
