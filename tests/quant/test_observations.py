"""Observations are the right frames of the right episode, shared out as stride and limit say."""

import dataclasses
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT, EPISODES
from models.eventvla.family import published_prompt
from models.eventvla.split import declare_inputs
from models.families import CONFIGS
from quant.data.episode import Observation, shown
from quant.data.observations import draw as draw_observations
from quant.data.observations import misfit, read_episodes, read_observations
from runtime.errors import RecordingError
from runtime.functions.keyframes import EventSettings
from runtime.recordings.recording import load_recording, save_recording
from tests.drawn_frames import (
    ALL,
    HEIGHT,
    NUM_EPISODES,
    NUM_FRAMES,
    WIDTH,
    identify,
    names_of,
    write_episode,
)  # fmt: skip
from tests.lerobot_datasets import write_v30


def write_npz(folder, lengths=(NUM_FRAMES,) * NUM_EPISODES):
    folder.mkdir()
    for e, length in enumerate(lengths):
        write_episode(folder, e, length)


@pytest.fixture
def episodes(tmp_path):
    write_npz(tmp_path / "episodes")
    return tmp_path / "episodes"


def test_recorded_episodes_are_read_as_load_recording_does():
    expected = []
    for path in sorted(EPISODES.glob("*.npz")):
        recording = load_recording(path)
        expected += [(recording, frame) for frame in range(0, recording.num_frames, 6)]
    observations = list(read_observations(EPISODES, stride=6))
    assert len(observations) == len(expected) > 4
    for observation, (recording, frame) in zip(observations, expected, strict=True):
        assert observation.now.keys() == observation.first.keys() == {"frame", "state"}
        for name, stream in recording.streams.items():
            assert np.array_equal(observation.first[name], stream.values[0])
            assert np.array_equal(observation.now[name], stream.values[frame])
        assert observation.instruction == recording.instruction


@pytest.mark.parametrize("stride", [3, 4, 100])
def test_each_episode_starts_its_own_stride(episodes, stride):
    expected = [(e, i) for e in range(NUM_EPISODES) for i in range(0, NUM_FRAMES, stride)]
    assert names_of(read_observations(episodes, stride=stride)) == expected


def test_a_limit_takes_as_many_from_each_episode(episodes):
    names = names_of(read_observations(episodes, stride=1, limit=7))
    assert names == sorted(set(names))
    assert sorted(Counter(e for e, _ in names).values()) == [2, 2, 3]
    assert names == names_of(read_observations(episodes, stride=1, limit=7))
    assert names_of(read_observations(episodes, stride=1, limit=100)) == ALL


def test_a_limit_takes_more_from_long_episodes_where_others_are_short(tmp_path):
    write_npz(tmp_path / "episodes", lengths=(1, 9, 3))
    names = names_of(read_observations(tmp_path / "episodes", stride=1, limit=8))
    assert Counter(e for e, _ in names) == {0: 1, 1: 4, 2: 3}


def test_a_limit_does_not_mean_the_first_frames(tmp_path):
    write_npz(tmp_path / "episodes", lengths=(8,) * 12)
    names = names_of(read_observations(tmp_path / "episodes", stride=2, limit=12))
    assert [e for e, _ in names] == list(range(12))
    assert {i for _, i in names} == {0, 2, 4, 6}


def test_a_limit_below_the_number_of_episodes_reads_only_some(tmp_path):
    write_npz(tmp_path / "episodes", lengths=(4,) * 12)
    episodes = {e for e, _ in names_of(read_observations(tmp_path / "episodes", stride=1, limit=5))}
    assert len(episodes) == 5
    assert episodes != set(range(5))


def test_episodes_tell_their_names_and_instructions_before_a_frame_is_read(episodes):
    found = read_episodes(episodes)
    assert [episode.name for episode in found] == ["00", "01", "02"]
    assert [episode.instructions for episode in found] == [("task 0",), ("task 1",), ("task 0",)]


def test_some_of_the_episodes_can_be_drawn_from(episodes):
    found = list(draw_observations(read_episodes(episodes)[1:], stride=4))
    assert names_of(found) == [(1, 0), (1, 4), (2, 0), (2, 4)]
    assert [o.where for o in found][1:3] == ["01, frame 4", "02, frame 0"]


def test_one_episode_alone_is_read(episodes):
    (episode,) = read_episodes(episodes / "01.npz")
    assert names_of(draw_observations([episode], stride=3)) == [(1, 0), (1, 3), (1, 6)]


@pytest.mark.parametrize("arguments", [{"stride": 0}, {"stride": 1, "limit": 0}])
def test_a_count_below_one_is_refused(arguments):
    with pytest.raises(ValueError, match="(stride|limit) must be at least 1, got 0"):
        read_observations(EPISODES, **arguments)


def test_a_folder_without_episodes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="gone: no such folder; expected .npz episodes or a"):
        read_observations(tmp_path / "gone", stride=1)
    with pytest.raises(ValueError, match="neither episodes .* nor a LeRobot dataset"):
        read_observations(tmp_path, stride=1)


def test_a_camera_of_recorded_episodes_is_refused():
    with pytest.raises(ValueError, match="name their own cameras; leave out 'top'"):
        read_observations(EPISODES, stride=1, camera="top")


def test_a_damaged_episode_is_refused(tmp_path):
    (tmp_path / "0.npz").write_bytes(b"no zip")
    with pytest.raises(RecordingError, match="0.npz: expected an .npz archive"):
        read_observations(tmp_path, stride=1)


def test_an_episode_without_the_policys_inputs_is_refused_by_name(tmp_path):
    seen = load_recording(EPISODES / "touch-red-1.npz")
    renamed = {"top": seen.streams["frame"], "state": seen.streams["state"]}
    save_recording(replace(seen, streams=renamed), tmp_path / "0.npz")
    (observation, *_) = read_observations(tmp_path, stride=1)
    inputs = load_checkpoint(CHECKPOINT).inputs((112, 112))
    assert misfit(inputs, observation) == (
        "has streams top, state and no 'frame', which the policy reads; record it under that name"
    )
    (fits, *_) = read_observations(EPISODES, stride=1)
    assert misfit(inputs, fits) is None
    assert misfit(load_checkpoint(CHECKPOINT).inputs((120, 112)), fits) == (
        "its frames are 112 by 112 pixels, --image-size says 120 112: give the size of the robot's "
        "camera"
    )
    short = replace(fits, now=fits.now | {"state": np.zeros(3, np.float32)})
    assert misfit(inputs, short) == (
        "its states are [3], this policy takes [4]: give episodes of its own robot"
    )


def looking_back(most_keyframes, delays=(3, 1)):
    """Inputs of a policy that sees the first frame, some of the past, now, and keyframes."""
    config = dataclasses.replace(
        CONFIGS["eventvla-tiny"](),
        views=("frame",),
        delays=delays,
        events=EventSettings(most_keyframes=most_keyframes),
    )
    parts, _ = published_prompt(config)
    return declare_inputs(config, parts, (HEIGHT, WIDTH, 3), 64)


def indices(values):
    """Which frame each picture shows; None for an empty one."""
    return {
        name: identify(value)[1] if value.any() else None
        for name, value in values.items()
        if value.ndim == 3
    }


@pytest.mark.parametrize("kind", ["recorded", "lerobot"])
def test_the_past_is_the_episodes_own_and_begins_with_its_first_frame(kind, tmp_path):
    if kind == "recorded":
        write_npz(tmp_path / "episodes")
    else:
        write_v30(tmp_path / "episodes")
    inputs = looking_back(most_keyframes=2)
    for observation in read_observations(tmp_path / "episodes", stride=1):
        episode, now = identify(observation.now["frame"])
        values = shown(inputs, observation, seed=0)
        count = now % 3
        assert indices(values) == {
            "first_frame": 0,
            "frame_3_ago": max(0, now - 3),
            "frame_1_ago": max(0, now - 1),
            "frame": now,
            "keyframe_0": now // (count + 1) if count else None,
            "keyframe_1": 2 * now // 3 if count == 2 else None,
        }
        assert values["keyframes"].tolist() == [count]
        assert values["keyframes"].dtype == np.float32
        assert kind == "lerobot" or all(v.base is None for v in observation.now.values()), (
            "a view keeps the whole episode in memory"
        )
        for value in (v for v in values.values() if v.ndim == 3 and v.any()):
            assert identify(value)[0] == episode


def test_an_episode_that_was_recorded_again_is_read_again(tmp_path):
    write_npz(tmp_path / "episodes", lengths=(3,))
    (before,) = read_observations(tmp_path / "episodes", stride=9)
    (tmp_path / "episodes" / "00.npz").unlink()
    write_episode(tmp_path / "episodes", 5, 3)
    (tmp_path / "episodes" / "05.npz").rename(tmp_path / "episodes" / "00.npz")
    (after,) = read_observations(tmp_path / "episodes", stride=9)
    assert identify(before.now["frame"]) == (0, 0)
    assert identify(after.now["frame"]) == (5, 0)


def test_an_observation_without_an_episode_shows_the_present_as_its_past():
    now = {"frame": np.full((HEIGHT, WIDTH, 3), 7, np.uint8)}
    values = shown(looking_back(most_keyframes=1), Observation(now, now, "reach"), seed=0)
    assert all((values[name] == 7).all() for name in ("frame_3_ago", "frame_1_ago", "frame"))
    assert not values["keyframe_0"].any() and values["keyframes"].tolist() == [0]
