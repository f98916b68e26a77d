"""Recordings, and the contract that every `Robot` keeps.  N = frame, A = action dimension."""

import dataclasses
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import OutputError, RecordingError, RobotError
from runtime.recordings.recording import Recording, load_recording, save_recording
from runtime.robots.metaworld import MetaWorldRobot
from runtime.robots.replay import ReplayedRobot
from runtime.robots.robot import Observation

NUM_FRAMES = 5


def make_recording(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "instruction": "open the drawer",
        "task": "drawer-open",
        "seed": 3,
        "rate_hz": 10.0,
        "images": rng.integers(0, 256, (NUM_FRAMES, 12, 16, 3), np.uint8),
        "states": rng.normal(size=(NUM_FRAMES, 4)).astype(np.float32),
        "actions": rng.normal(size=(NUM_FRAMES, 7)).astype(np.float32),
        "action_names": ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        "success": True,
    }
    return Recording(**(fields | changes))


def holed(shape):
    array = np.zeros(shape, np.float32)
    array[3, 2] = np.nan
    return array


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "episode.npz"
    save_recording(make_recording(), path)
    return path


def rewrite(path, **changes):
    """Replace arrays of the archive at `path`; None removes one."""
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})


def make_replayed():
    return ReplayedRobot(make_recording()), np.zeros(7, np.float32)


def make_simulated():
    robot = MetaWorldRobot(task="push", seed=0, image_size=32, max_steps=NUM_FRAMES)
    return robot, np.zeros(4, np.float32)


@pytest.fixture(params=[make_replayed, make_simulated])
def robot_and_action(request):
    if request.param is make_simulated:
        request.getfixturevalue("simulator")
    robot, action_A = request.param()
    with closing(robot):
        yield robot, action_A


def test_an_observation_is_an_rgb_image_and_a_float32_state(robot_and_action):
    robot, _ = robot_and_action
    observation = robot.reset()
    assert observation.image.dtype == np.uint8
    assert observation.image.ndim == 3 and observation.image.shape[2] == 3
    assert observation.state.dtype == np.float32 and observation.state.ndim == 1


def test_observing_twice_gives_the_same_bits_and_the_first_is_the_anchor(robot_and_action):
    robot, _ = robot_and_action
    anchor = robot.reset()
    for _ in range(2):
        observation = robot.observe()
        assert np.array_equal(observation.image, anchor.image)
        assert np.array_equal(observation.state, anchor.state)


def test_an_episode_ends_and_the_next_one_starts_from_nothing(robot_and_action):
    robot, action_A = robot_and_action
    for _ in range(2):
        robot.reset()
        assert not robot.done
        for _ in range(NUM_FRAMES):
            robot.apply(action_A)
        assert robot.done
        assert isinstance(robot.observe(), Observation)


def test_a_robot_has_an_instruction_and_never_invents_success(robot_and_action):
    robot, _ = robot_and_action
    robot.reset()
    assert robot.instruction
    assert robot.success in (None, False)


def test_calls_outside_an_episode_are_refused(robot_and_action):
    robot, action_A = robot_and_action
    with pytest.raises(RobotError, match=r"observe\(\) outside an episode: call reset"):
        robot.observe()
    with pytest.raises(RobotError, match=r"apply\(\) outside an episode: call reset"):
        robot.apply(action_A)


def test_an_action_after_the_end_is_refused(robot_and_action):
    robot, action_A = robot_and_action
    robot.reset()
    while not robot.done:
        robot.apply(action_A)
    with pytest.raises(RobotError, match=r"apply\(\) after .*: call reset"):
        robot.apply(action_A)


def test_a_broken_action_is_refused_and_does_not_count(robot_and_action):
    robot, action_A = robot_and_action
    anchor = robot.reset()
    with pytest.raises(ValueError, match=r"must be float32 \[\d\], got float64"):
        robot.apply(action_A.astype(np.float64))
    with pytest.raises(ValueError, match=r"must be float32 \[\d\], got float32 \[2\]"):
        robot.apply(action_A[:2])
    with pytest.raises(ValueError, match="must be finite, got .*nan"):
        robot.apply(action_A * np.float32("nan"))
    assert np.array_equal(robot.observe().image, anchor.image)


def test_closing_twice_is_fine(robot_and_action):
    robot, _ = robot_and_action
    robot.reset()
    robot.close()
    robot.close()


def test_a_replay_shows_every_frame_once_and_keeps_the_actions():
    recording = make_recording()
    robot = ReplayedRobot(recording)
    observation = robot.reset()
    for index in range(NUM_FRAMES):
        assert np.array_equal(observation.image, recording.images[index])
        assert np.array_equal(observation.state, recording.states[index])
        robot.apply(np.full(7, index, np.float32))
        observation = robot.observe()
    assert np.array_equal(observation.image, recording.images[-1])
    assert [action_A[0] for action_A in robot.applied] == list(range(NUM_FRAMES))


def test_a_replay_owns_its_copy_of_the_actions():
    robot = ReplayedRobot(make_recording())
    robot.reset()
    action_A = np.zeros(7, np.float32)
    robot.apply(action_A)
    action_A[:] = 1
    assert not robot.applied[0].any()


def test_a_replay_without_recorded_actions_takes_any_and_still_refuses_broken_ones():
    robot = ReplayedRobot(make_recording(actions=None))
    robot.reset()
    robot.apply(np.zeros(3, np.float32))
    for broken in (np.zeros((1, 3), np.float32), np.zeros(3), np.full(3, np.nan, np.float32)):
        with pytest.raises(ValueError, match="an action must be"):
            robot.apply(broken)
    assert len(robot.applied) == 1


def test_a_replay_cannot_tell_success():
    robot = ReplayedRobot(make_recording(success=True))
    robot.reset()
    assert robot.success is None


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    recording = make_recording()
    save_recording(recording, tmp_path / "episode.npz")
    loaded = load_recording(tmp_path / "episode.npz")
    for field in dataclasses.fields(Recording):
        ours, theirs = getattr(recording, field.name), getattr(loaded, field.name)
        assert type(ours) is type(theirs)
        assert np.array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype


def test_actions_and_success_may_be_unknown_and_stay_so(tmp_path):
    recording = make_recording(actions=None, action_names=None, success=None)
    save_recording(recording, tmp_path / "episode.npz")
    with np.load(tmp_path / "episode.npz") as archive:
        assert not {"actions", "action_names", "success"} & set(archive.files)
    loaded = load_recording(tmp_path / "episode.npz")
    assert loaded.actions is loaded.action_names is loaded.success is None
    assert np.array_equal(loaded.states, recording.states)


def test_saving_the_same_recording_twice_gives_the_same_bytes(tmp_path, saved):
    save_recording(make_recording(), tmp_path / "again.npz")
    assert saved.read_bytes() == (tmp_path / "again.npz").read_bytes()


def test_a_failed_save_leaves_the_old_file_and_no_rest(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="disk full"):
        save_recording(make_recording(seed=4), saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((5, 8, 8, 3), np.float32)}, r"images must be uint8 \[N, H, W, 3\]"),
        ({"images": np.zeros((5, 8, 8, 4), np.uint8)}, r"images must be \[N, H, W, 3\]"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, "4 images, 5 states and 5 actions"),
        ({"states": np.zeros((5, 4))}, r"states must be float32 \[N, S\], got float64"),
        ({"states": np.zeros(5, np.float32)}, r"got float32 with shape \[5\]"),
        ({"actions": np.zeros((6, 7), np.float32)}, "5 states and 6 actions"),
        ({"action_names": ("x",)}, "1 action_names for 7 dimensions of the action; record it"),
        ({"rate_hz": 0.0}, r"rate_hz must be in \(0, 1000\], got 0.0"),
        ({"instruction": " \n"}, "instruction is empty; .*; mend it, or leave the episode out"),
        ({"instruction": "a\nb"}, r"instruction holds the control character '\\n' at 1"),
        ({"states": holed((5, 4))}, "frame 3: dimension 2 of the state is nan; mend it or"),
        ({"actions": holed((5, 7))}, "frame 3: dimension 2 of the action is nan; mend it or"),
    ],
)
def test_a_recording_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(RecordingError, match=message):
        make_recording(**changes)


def test_an_episode_without_frames_is_refused():
    with pytest.raises(RecordingError, match="at least one frame"):
        make_recording(
            images=np.zeros((0, 8, 8, 3), np.uint8),
            states=np.zeros((0, 4), np.float32),
            actions=np.zeros((0, 7), np.float32),
        )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecordingError, match="nothing.npz: no such file; check the path"):
        load_recording(tmp_path / "nothing.npz")


def test_a_file_that_may_not_be_read_is_no_damaged_one(saved, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(RecordingError, match=r"Is a directory\); check the path and its p"):
        load_recording(saved.parent)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecordingError, match=r"episode.npz: cannot be read \(Permission denied\);"):
        load_recording(saved)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_archive_is_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(RecordingError, match="episode.npz: expected an .npz archive"):
        load_recording(saved)


def test_a_file_cut_short_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(RecordingError, match="expected an .npz archive.*cut short"):
        load_recording(saved)


def test_a_flipped_byte_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 0xFF  # the middle of the PNG bytes
    saved.write_bytes(content)
    with pytest.raises(RecordingError, match="episode.npz: damaged archive"):
        load_recording(saved)


def test_a_pickled_object_is_refused(saved):
    rewrite(saved, instruction=np.array({"a": 1}, dtype=object))
    with pytest.raises(RecordingError, match="damaged archive .*allow_pickle"):
        load_recording(saved)


def test_a_missing_key_is_named(saved):
    rewrite(saved, states=None, png_offsets=None)
    with pytest.raises(RecordingError, match="episode.npz: lacks states, png_offsets, holds"):
        load_recording(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": np.zeros((5, 4))}, "states must be float32"),
        ({"actions": np.zeros((3, 7), np.float32)}, "5 images, 5 states and 3 actions"),
        ({"png": np.zeros(9, np.int8)}, r"png must be uint8 \[bytes\], got int8"),
        ({"png_offsets": np.arange(6)}, "png_offsets must rise from 0 to"),
        ({"seed": np.array(0.5)}, "seed must be one value of kind 'i', got float64"),
        ({"action_names": np.arange(7)}, r"action_names must be text \[A\], got int64 \[7\]"),
        ({"success": np.ones(2, bool)}, r"success must be one value of kind 'b', got bool \[2\]"),
    ],
)
def test_arrays_that_disagree_are_refused(saved, changes, message):
    rewrite(saved, **changes)
    with pytest.raises(RecordingError, match=f"episode.npz: {message}"):
        load_recording(saved)


def test_a_truncated_frame_is_named(saved):
    with np.load(saved) as archive:
        png, offsets = archive["png"], archive["png_offsets"]
    png = np.concatenate([png[: offsets[3] - 40], png[offsets[3] :]])
    offsets[3:] -= 40
    rewrite(saved, png=png, png_offsets=offsets)
    with pytest.raises(RecordingError, match="episode.npz: frame 2 is not a whole PNG"):
        load_recording(saved)


def test_frames_of_different_sizes_are_refused(saved, tmp_path):
    other = tmp_path / "other.npz"
    save_recording(make_recording(images=np.zeros((NUM_FRAMES, 6, 6, 3), np.uint8)), other)
    with np.load(saved) as a, np.load(other) as b:
        frame = b["png"][: b["png_offsets"][1]]
        png = np.concatenate([frame, a["png"][a["png_offsets"][1] :]])
        offsets = a["png_offsets"] + len(frame) - a["png_offsets"][1]
    offsets[0] = 0
    rewrite(saved, png=png, png_offsets=offsets)
    with pytest.raises(RecordingError, match="frames must all have one shape"):
        load_recording(saved)
