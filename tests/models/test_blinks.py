"""Recordings of the task whose marker blinks once: their streams, their files, what is refused."""

from contextlib import closing

import numpy as np
import pytest

from models.demo.blinks import record_blink, record_blinks
from models.demo.config import DEMO_TASKS, BlinksConfig, CollectConfig
from runtime.recordings.recording import load_recording
from runtime.robots.metaworld import TASKS, MetaWorldRobot

TASK = "touch-what-blinked"


def pixels(images, colour):
    red, green, blue = np.moveaxis(images.astype(int), -1, 0)
    mask = {
        "green": (green > 100) & (green > 2 * red) & (green > 2 * blue),
        "yellow": (red > 150) & (green > 0.6 * red) & (blue < 0.3 * red),
    }[colour]
    return mask.sum(axis=(1, 2))


@pytest.fixture(scope="module")
def robot(simulator):
    with closing(MetaWorldRobot(task=TASK, seed=0, end_on_success=False)) as robot:
        yield robot


@pytest.fixture(scope="module")
def episode(robot):
    return record_blink(robot, task=TASK, seed=4, noise=0.5)


def test_the_event_is_where_the_picture_shows_the_blink(episode):
    is_green = pixels(episode.streams["frame"].values, "green") > 0
    assert np.array_equal(episode.streams["event"].values[:, 0], is_green)
    assert is_green.sum() == 6


def test_the_target_is_the_yellow_marker_while_the_picture_shows_it_and_then_the_one_that_blinked(
    episode,
):
    values = {name: stream.values for name, stream in episode.streams.items()}
    is_yellow = pixels(values["frame"], "yellow") > 0
    (number,) = set(values["blinked"][:, 0].astype(int))
    places = values["markers"].reshape(-1, 3, 3)
    assert (places == places[0]).all()
    assert (values["target"][~is_yellow] == places[0, number]).all()
    assert len(np.unique(values["target"][is_yellow], axis=0)) == 1
    assert not (values["target"][is_yellow] == places[0, number]).all(axis=1).any()
    # The state is the wrist: the fingertips that touch are 5 cm below it.
    tips = values["state"][-1, :3] - [0, 0, 0.05]
    assert np.linalg.norm(places[0] - tips, axis=1).argmin() == number


def test_what_was_sent_is_the_experts_action_disturbed(robot, episode):
    apart = episode.actions - episode.streams["expert"].values
    assert 0.2 < apart[:, :3].std() < 0.5  # 0.5, clipped to the range
    assert not apart[:, 3].any()
    assert np.abs(episode.actions).max() <= 1
    calm = record_blink(robot, task=TASK, seed=4, noise=0.0)
    assert np.array_equal(calm.actions, calm.streams["expert"].values)
    assert not np.array_equal(
        calm.streams["state"].values[:40], episode.streams["state"].values[:40]
    )
    # The scene, the moment and the marker are those of the seed all the same.
    for name in ("markers", "blinked"):
        assert np.array_equal(calm.streams[name].values[0], episode.streams[name].values[0])
    assert np.array_equal(calm.streams["event"].values[:30], episode.streams["event"].values[:30])


def test_an_episode_in_which_the_disturbed_hand_fails_is_left_out(robot):
    assert record_blink(robot, task=TASK, seed=1, noise=50.0) is None


def test_files_hold_the_same_bits_however_the_seeds_are_shared_out(
    simulator, robot, episode, tmp_path, capsys
):
    record_blinks(BlinksConfig(out=tmp_path, episodes=2, seed=3, jobs=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{TASK}-3.npz", f"{TASK}-4.npz"]
    assert "2 of 2 episodes kept" in capsys.readouterr().out
    calm, disturbed = (load_recording(tmp_path / f"{TASK}-{seed}.npz") for seed in (3, 4))
    assert np.array_equal(calm.actions, calm.streams["expert"].values)
    assert (disturbed.task, disturbed.seed, disturbed.success) == (TASK, 4, True)
    assert disturbed.streams.keys() == episode.streams.keys()
    assert np.array_equal(disturbed.actions, episode.actions)
    for name, stream in episode.streams.items():
        assert np.array_equal(disturbed.streams[name].values, stream.values), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "touch-red"}, r"task must be one with a blink \(touch-what-blinked\), got 'tou"),
        ({"task": "juggle"}, "task must be one with a blink .*, got 'juggle'"),
        ({"episodes": 0}, "episodes and jobs must be positive and noise not negative, got 0, 2"),
        ({"noise": -0.1}, "noise not negative, got 1000, 2, -0.1"),
        ({"seed": 9_900}, r"seeds 9900 to 10899 are not all in \[0, 10000\); choose another"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BlinksConfig(**options)


def test_a_few_frames_of_a_rollout_are_refused_for_this_task():
    with pytest.raises(ValueError, match="touch-what-blinked: .* python -m models.demo blinks"):
        CollectConfig(tasks=("touch-red", TASK))


def test_the_new_task_leaves_the_others_their_seeds():
    # `collect` counts them by name; the shipped policy's data are those of these numbers.
    assert [sorted(TASKS).index(task) for task in DEMO_TASKS] == [6, 5, 4, 0]
