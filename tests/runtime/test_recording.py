"""Recordings: what is saved is loaded to the bit, and what is no episode is refused.

N = control step, A = action dimension.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from models.demo import EPISODES, HELD_OUT
from runtime.errors import OutputError, RecordingError
from runtime.recordings.recording import (
    Recording,
    Stream,
    evenly,
    load_recording,
    save_recording,
)
from runtime.robots.replay import ReplayedRobot

NUM_FRAMES = 5
FRAMES = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 12, 16, 3), np.uint8)
STATES = np.random.default_rng(1).normal(size=(NUM_FRAMES, 4)).astype(np.float32)
TIMES_S = np.array([0.0, 0.11, 0.2, 0.2, 0.41])
IDS = np.array([4, 5, 5, 6, 9])


def camera(**changes):
    """Row 2 shows the picture of row 1 again."""
    values = FRAMES.copy()
    values[2] = values[1]
    return Stream(**({"values": values, "at_s": TIMES_S, "frame_ids": IDS} | changes))


def make_recording(**changes):
    fields = {
        "instruction": "open the drawer",
        "task": "drawer-open",
        "seed": 3,
        "rate_hz": 10.0,
        "streams": {
            "frame": camera(),
            "wrist": evenly(FRAMES[:, :6, :7], 20.0),
            "state": Stream(values=STATES, at_s=TIMES_S + 0.01),
        },
        "actions": np.random.default_rng(2).normal(size=(NUM_FRAMES, 7)).astype(np.float32),
        "action_names": ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        "success": True,
    }
    return Recording(**(fields | changes))


def holed(shape):
    array = np.zeros(shape, np.float32)
    array[3, 2] = np.nan
    return array


def assert_same(ours, theirs):
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert ours.tobytes() == theirs.tobytes()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "episode.npz"
    save_recording(make_recording(), path)
    return path


def rewrite(path, **changes):
    """Replace arrays of the archive at `path`; None removes one. `__` stands for `/`."""
    changes = {key.replace("__", "/"): array for key, array in changes.items()}
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    recording = make_recording()
    save_recording(recording, tmp_path / "episode.npz")
    loaded = load_recording(tmp_path / "episode.npz")
    assert list(loaded.streams) == list(recording.streams)
    for name, stream in recording.streams.items():
        assert_same(stream.values, loaded.streams[name].values)
        assert_same(stream.at_s, loaded.streams[name].at_s)
        assert (stream.frame_ids is None) == (loaded.streams[name].frame_ids is None)
        if stream.frame_ids is not None:
            assert_same(stream.frame_ids, loaded.streams[name].frame_ids)
    assert_same(recording.actions, loaded.actions)
    for field in ("instruction", "task", "seed", "rate_hz", "action_names", "success"):
        ours, theirs = getattr(recording, field), getattr(loaded, field)
        assert type(ours) is type(theirs) and ours == theirs
    assert loaded.num_frames == NUM_FRAMES


def test_an_even_stream_starts_at_0_and_counts_its_pictures():
    frames, states = evenly(FRAMES, 20.0), evenly(STATES, 10.0)
    assert frames.at_s.tolist() == [0.0, 0.05, 0.1, 0.15, 0.2]
    assert frames.frame_ids.tolist() == [0, 1, 2, 3, 4]
    assert states.at_s.tolist() == [0.0, 0.1, 0.2, 0.3, 0.4] and states.frame_ids is None


@pytest.mark.parametrize("folder", [EPISODES, HELD_OUT], ids=["episodes", "held_out"])
def test_the_shipped_episodes_have_a_frame_and_a_state_every_tenth_of_a_second(folder):
    for path in sorted(folder.glob("*.npz")):
        recording = load_recording(path)
        assert list(recording.streams) == ["frame", "state"]
        for stream in recording.streams.values():
            assert stream.at_s.tolist() == [i / 10 for i in range(recording.num_frames)]
        assert recording.streams["frame"].values.shape[1:] == (112, 112, 3)
        assert recording.streams["state"].values.shape == recording.actions.shape


def test_actions_and_success_may_be_unknown_and_stay_so(tmp_path):
    recording = make_recording(actions=None, action_names=None, success=None)
    save_recording(recording, tmp_path / "episode.npz")
    with np.load(tmp_path / "episode.npz") as archive:
        assert not {"actions", "action_names", "success"} & set(archive.files)
    loaded = load_recording(tmp_path / "episode.npz")
    assert loaded.actions is loaded.action_names is loaded.success is None
    assert_same(loaded.streams["state"].values, STATES)


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


def test_depth_comes_back_and_is_shown_as_depth(tmp_path):
    depth = np.linspace(0, 3, 5 * 12 * 16, dtype=np.float32).reshape(5, 12, 16)
    streams = make_recording().streams
    save_recording(
        make_recording(streams={**streams, "far": evenly(depth, 10.0)}), tmp_path / "a.npz"
    )
    loaded = load_recording(tmp_path / "a.npz")
    assert np.array_equal(loaded.streams["far"].values, depth)
    assert loaded.streams["far"].frame_ids is None
    far = ReplayedRobot(loaded).inputs["far"]
    assert (far.kind, far.shape, far.dtype) == ("depth", (12, 16), "float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": FRAMES.astype(np.float32)}, r"values must be uint8 \[N, H, W, 3\] of a camera, "
         r"float32 \[N, S\] of a vector or float32 \[N, H, W\] of depth, got float32 "
         r"\[5, 12, 16, 3\]; record it again"),
        ({"values": FRAMES[..., :2]}, r"got uint8 \[5, 12, 16, 2\]"),
        ({"values": STATES.astype(np.float64)}, r"got float64 \[5, 4\]"),
        ({"values": STATES[:, 0]}, r"got float32 \[5\]"),
        ({"values": STATES}, "a vector has no frame_ids, got some"),
        ({"values": holed((5, 4)), "frame_ids": None}, "frame 3: dimension 2 is nan; mend it or"),
        ({"frame_ids": None}, r"a camera has frame_ids \[N\], got none"),
        ({"frame_ids": IDS.astype(np.int32)}, r"frame_ids must be int64 \[N\], got int32"),
        ({"frame_ids": IDS[:4]}, "4 frame_ids for 5 values"),
        ({"frame_ids": np.array([0, 1, 2, 1, 3])}, "frames 1 and 3 are different pictures, both "
         "with the frame id 1"),
        ({"at_s": TIMES_S.astype(np.float32)}, r"at_s must be float64 \[N\], got float32"),
        ({"at_s": TIMES_S[:4]}, "4 at_s for 5 values"),
        ({"at_s": TIMES_S[::-1].copy()}, r"frame 1: stamped 0.2 s after 0.41 s; stamps must be f"),
        ({"at_s": np.array([np.nan, 0, 0, 0, 0])}, "frame 0: stamped nan s; stamps must be f"),
        ({"at_s": np.array([0, 0, 0, 0, np.inf])}, "frame 4: stamped inf s after 0.0 s; stamps"),
    ],
)  # fmt: skip
def test_a_stream_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(RecordingError, match=message):
        camera(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streams": {}}, "an episode needs a stream with at least one frame, got 5 of actions"),
        (
            {"streams": {"a": evenly(STATES[:0], 1.0)}, "actions": None},
            "at least one frame, got 0 of stream 'a'; record",
        ),
        (
            {"streams": {"left cam": evenly(STATES, 1.0)}},
            "a stream is called 'left cam'; a name",
        ),
        (
            {"streams": {"a": evenly(STATES, 1.0), "b": evenly(STATES[:4], 1.0)}},
            "one row of each per step, got 5 of stream 'a', 4 of stream 'b', 5 of actions",
        ),
        ({"actions": np.zeros((6, 7), np.float32)}, "5 of stream 'state', 6 of actions"),
        ({"actions": np.zeros((5, 7))}, r"actions must be float32 \[N, A\], got float64"),
        ({"action_names": ("x",)}, "1 action_names for 7 dimensions of the action; record it"),
        ({"rate_hz": 0.0}, r"rate_hz must be in \(0, 1000\], got 0.0"),
        ({"instruction": " \n"}, "instruction is empty; .*; mend it, or leave the episode out"),
        ({"instruction": "a\nb"}, r"instruction holds the control character '\\n' at 1"),
        ({"actions": holed((5, 7))}, "frame 3: dimension 2 of the action is nan; mend it or"),
    ],
)
def test_a_recording_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(RecordingError, match=message):
        make_recording(**changes)


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
    rewrite(saved, task=None, seed=None)
    with pytest.raises(RecordingError, match="episode.npz: lacks task, seed, holds instruction"):
        load_recording(saved)
    rewrite(saved, stream__state__values=None)
    with pytest.raises(RecordingError, match="lacks task, seed"):
        load_recording(saved)


def test_a_stream_with_missing_parts_is_named(saved):
    rewrite(saved, stream__wrist__png_offsets=None)
    message = (
        "episode.npz: stream 'wrist': holds at_s, frame_ids, png, expected at_s, values or at_s, "
        "frame_ids, png, png_offsets; record it again"
    )
    with pytest.raises(RecordingError, match=message):
        load_recording(saved)


def test_an_archive_without_streams_is_no_episode(tmp_path):
    np.savez(tmp_path / "e.npz", instruction="a", task="", seed=np.int64(0), rate_hz=1.0)
    with pytest.raises(RecordingError, match="e.npz: lacks streams, holds instruction, task"):
        load_recording(tmp_path / "e.npz")


def test_a_file_of_the_layout_before_is_refused_with_the_way_out(saved):
    rewrite(saved, states=STATES, png=np.zeros(9, np.uint8), png_offsets=np.arange(6))
    message = (
        r"episode.npz: written by an older version \(states and png, where streams by name are "
        r"expected\); record it again, or convert its dataset again: python -m quant convert"
    )
    with pytest.raises(RecordingError, match=message):
        load_recording(saved)


def test_a_recording_of_the_layout_before_may_be_replaced(saved):
    with np.load(saved) as archive:
        keys = ("instruction", "task", "seed", "rate_hz")
        old = {key: archive[key] for key in keys} | {"states": STATES}
    np.savez(saved, **old, png=np.zeros(9, np.uint8), png_offsets=np.arange(6))
    save_recording(make_recording(), saved)
    assert load_recording(saved).num_frames == NUM_FRAMES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream__state__values": np.zeros((5, 4))}, "stream 'state': values must be uint8"),
        ({"actions": np.zeros((3, 7), np.float32)}, "an episode .*, 5 of stream 'state', 3 of"),
        (
            {"stream__frame__png": np.zeros(9, np.int8)},
            r"stream 'frame': png must be uint8 \[byt",
        ),
        (
            {"stream__frame__png_offsets": np.arange(6)},
            "stream 'frame': png_offsets must rise",
        ),
        ({"stream__frame__at_s": TIMES_S[:4]}, "stream 'frame': 4 at_s for 5 values"),
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
        png, offsets = archive["stream/frame/png"], archive["stream/frame/png_offsets"]
    png = np.concatenate([png[: offsets[3] - 40], png[offsets[3] :]])
    offsets[3:] -= 40
    rewrite(saved, stream__frame__png=png, stream__frame__png_offsets=offsets)
    with pytest.raises(RecordingError, match="stream 'frame': frame 2 is not a whole PNG"):
        load_recording(saved)


def test_frames_of_different_sizes_are_refused(saved):
    with np.load(saved) as archive:
        (a, at), (b, other) = (
            (archive[f"stream/{name}/png"], archive[f"stream/{name}/png_offsets"])
            for name in ("frame", "wrist")
        )
    first = b[: other[1]]
    at = np.concatenate([[0], at[1:] + len(first) - at[1]])
    png = np.concatenate([first, a[len(a) - (at[-1] - len(first)) :]])
    rewrite(saved, stream__frame__png=png, stream__frame__png_offsets=at)
    with pytest.raises(RecordingError, match="stream 'frame': frames must all have one shape"):
        load_recording(saved)
