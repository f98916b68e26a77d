"""A dataset that we write holds what was recorded: by our reader, and by LeRobot's own."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from quant.data.convert import ConvertConfig, convert
from runtime.control.clock import VirtualClock
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.recorder import Recorder
from runtime.errors import OutputError, RecordingError
from runtime.recordings.lerobot import read_lerobot
from runtime.recordings.read import read_recordings
from runtime.recordings.recording import evenly, load_recording, save_recording
from runtime.robots.robot import Limits
from tests.drawn_frames import NUM_FRAMES, identify, write_episode
from tests.lerobot_reader import PYTHON
from tests.runtime.stand_ins.pondering import PlacedRobot, PonderingPolicy

NEAR = 4.0
"""Mean difference of a picture's shades, of 255, that the codec may make: of colours at half the
resolution, and rounding to its limited range."""


def write_recordings(folder):
    """Three of drawn frames, with actions that tell them apart."""
    folder.mkdir()
    for episode in range(3):
        write_episode(folder, episode)
    found = []
    for number, path in enumerate(sorted(folder.glob("*.npz"))):
        recording = load_recording(path)
        chance = np.random.default_rng(number)
        actions = chance.standard_normal((NUM_FRAMES, 2)).astype(np.float32)
        recording = dataclasses.replace(recording, actions=actions, action_names=("left", "right"))
        save_recording(recording, path)
        found.append(recording)
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Recordings, and the dataset that was made of them."""
    folder = tmp_path_factory.mktemp("written")
    recordings = write_recordings(folder / "recorded")
    assert convert(
        ConvertConfig(dataset=folder / "recorded", to="lerobot", out=folder / "dataset")
    ) == [folder / "dataset"]
    return recordings, folder / "dataset"


def test_our_reader_finds_every_frame_and_every_bit_of_states_and_actions(written):
    recordings, dataset = written
    found = [episode.recording() for episode in read_lerobot(dataset)]
    for episode, (was, now) in enumerate(zip(recordings, found, strict=True)):
        assert (now.instruction, now.rate_hz) == (was.instruction, was.rate_hz)
        assert now.action_names == ("left", "right")
        assert now.actions.tobytes() == was.actions.tobytes()
        assert now.streams["state"].values.tobytes() == was.streams["state"].values.tobytes()
        frames = now.streams["frame"].values
        assert [identify(frame) for frame in frames] == [(episode, i) for i in range(NUM_FRAMES)]
        difference = frames.astype(float) - was.streams["frame"].values
        assert np.abs(difference).mean() < NEAR


def test_frames_are_counted_through_the_whole_dataset(written):
    _, dataset = written
    tables = [pq.read_table(path) for path in sorted(dataset.glob("data/*/*.parquet"))]
    index = np.concatenate([table["index"].to_numpy() for table in tables])
    assert index.tolist() == list(range(3 * NUM_FRAMES))
    (contents,) = dataset.glob("meta/episodes/*/*.parquet")
    rows = pq.read_table(contents).to_pylist()
    starts = [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows]
    assert starts == [(e * NUM_FRAMES, (e + 1) * NUM_FRAMES) for e in range(3)]
    info = json.loads((dataset / "meta/info.json").read_text())
    assert (info["total_frames"], info["total_episodes"]) == (3 * NUM_FRAMES, 3)


def test_statistics_are_those_of_what_was_recorded(written):
    recordings, dataset = written
    stats = json.loads((dataset / "meta/stats.json").read_text())
    actions = np.concatenate([recording.actions for recording in recordings]).astype(np.float64)
    for name, expected in {
        "min": actions.min(0), "max": actions.max(0), "mean": actions.mean(0),
        "std": actions.std(0), "q10": np.quantile(actions, 0.1, axis=0),
        "q99": np.quantile(actions, 0.99, axis=0), "count": [3 * NUM_FRAMES],
    }.items():  # fmt: skip
        assert stats["action"][name] == pytest.approx(list(expected), abs=1e-12), name
    frames = np.concatenate([r.streams["frame"].values for r in recordings]) / 255
    pixels = frames.reshape(-1, 3)
    shown = stats["observation.images.frame"]
    for name, expected in {
        "min": pixels.min(0), "max": pixels.max(0), "mean": pixels.mean(0), "std": pixels.std(0),
        "q50": np.quantile(pixels, 0.5, axis=0, method="inverted_cdf"),
    }.items():  # fmt: skip
        assert np.shape(shown[name]) == (3, 1, 1)
        assert np.ravel(shown[name]) == pytest.approx(expected, abs=1e-9), name


def test_a_run_that_was_recorded_becomes_a_dataset(tmp_path):
    """Its actions are those that were sent: this robot clips."""
    robot, folder = PlacedRobot(12), tmp_path / "journals"
    robot.limits = Limits(-np.ones(3), np.full(3, 5.0), ("",) * 3, ("x", "y", "z"))
    for name in ("a", "b"):
        with Recorder(folder / f"{name}.zip", every_step=True) as recorder:
            trace = run_episode(
                PonderingPolicy(), robot, LoopConfig(rate_hz=10, execute=4), recorder=recorder,
                clock=VirtualClock(),
            )  # fmt: skip
    convert(ConvertConfig(dataset=folder, to="lerobot", out=tmp_path / "d", leave_out=(1,)))
    (episode,) = read_lerobot(tmp_path / "d")
    found = episode.recording()
    assert found.streams["state"].values[:, 0].tolist() == list(range(12))
    assert np.array_equal(found.actions, [step.sent for step in trace.steps])
    assert trace.num_clipped == 4 and found.action_names == ("x", "y", "z")
    (_, same), _ = read_recordings([folder])
    assert np.array_equal(same.streams["frame"].values, robot.recording.streams["frame"].values)
    with pytest.raises(RecordingError, match=r"no episode 2 to leave out, there are 2, 0 to 1"):
        convert(ConvertConfig(dataset=folder, to="lerobot", out=tmp_path / "e", leave_out=(2,)))
    assert not (tmp_path / "e").exists()


def test_runs_that_are_no_recordings_say_why(tmp_path):
    def run(tell=None, every_step=True):
        from runtime.control.thinker import InlineThinker

        clock, policy = VirtualClock(), PonderingPolicy()
        with Recorder(tmp_path / "a.zip", every_step=every_step) as recorder:
            thinker = InlineThinker(recorder.watch(policy), clock)
            run_episode(
                policy, PlacedRobot(8), LoopConfig(rate_hz=10, execute=4), clock=clock,
                thinker=thinker, recorder=recorder,
                on_step=lambda step: thinker.say("stop") if tell else None,
            )  # fmt: skip
        return list(read_recordings([tmp_path / "a.zip"]))

    assert len(run()) == 1
    with pytest.raises(RecordingError, match=r"not looked at in 6 of 8 steps; record with --every"):
        run(every_step=False)
    with pytest.raises(RecordingError, match=r"has 2 instructions, \['go', 'stop'\]"):
        run(tell=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate_hz": 12.5}, r"12.5 steps per second; LeRobot counts whole frames"),
        ({"actions": None, "action_names": None}, "holds no actions, which a dataset is of"),
        ({"rate_hz": 20.0}, "unlike the episodes before, in steps per second"),
        ({"actions": np.zeros((NUM_FRAMES, 3), np.float32), "action_names": None},
         "unlike the episodes before, in action"),
        ({"streams": {"far": evenly(np.ones((NUM_FRAMES, 6, 8), np.float32), 10.0)}},
         "stream 'far' is depth, which is not written to datasets"),
    ],
)  # fmt: skip
def test_what_is_no_episode_of_the_dataset_is_refused_and_nothing_is_left(
    tmp_path, change, message
):
    write_recordings(tmp_path / "recorded")
    last = sorted((tmp_path / "recorded").iterdir())[-1]
    save_recording(dataclasses.replace(load_recording(last), **change), last)
    with pytest.raises(RecordingError, match=message):
        convert(ConvertConfig(dataset=tmp_path / "recorded", to="lerobot", out=tmp_path / "d"))
    assert [path.name for path in tmp_path.iterdir()] == ["recorded"]


def test_a_dataset_that_is_there_already_is_not_replaced(written, tmp_path):
    _, dataset = written
    with pytest.raises(OutputError, match="not empty and not ours to replace"):
        convert(ConvertConfig(dataset=dataset, to="lerobot", out=dataset))


def test_without_its_libraries_writing_says_where_they_are(written, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    recorded = written[1].with_name("recorded")
    with pytest.raises(RecordingError, match=r"needs pyarrow and av .*on the workstation"):
        convert(ConvertConfig(dataset=recorded, to="lerobot", out=tmp_path / "d"))


def test_lerobots_own_reader_finds_the_same(written, tmp_path):
    if not PYTHON.exists():
        pytest.skip("LeRobot has an environment of its own, which make test-lerobot makes")
    recordings, dataset = written
    reader = Path(__file__).parents[1] / "lerobot_reader.py"
    home = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [PYTHON, reader, dataset, tmp_path / "read.npz"],
        env=os.environ | home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "read.npz", allow_pickle=False) as archive:
        read = dict(archive)
    meta = json.loads(str(read["meta"]))
    assert (meta["episodes"], meta["fps"], meta["names"]) == (3, 10, ["left", "right"])
    assert (meta["tasks"], meta["cameras"]) == (["task 0", "task 1"], ["observation.images.frame"])
    assert meta["stats"] == json.loads((dataset / "meta/stats.json").read_text())
    for key, stream in (("observation.state", "state"),):
        expected = np.concatenate([r.streams[stream].values for r in recordings])
        assert read[key].tobytes() == expected.tobytes()
    actions = np.concatenate([recording.actions for recording in recordings])
    assert read["action"].tobytes() == actions.tobytes()
    frames = (read["observation.images.frame"] * 255).round().astype(np.uint8)
    names = [identify(frame.transpose(1, 2, 0)) for frame in frames]
    assert names == [(e, i) for e in range(3) for i in range(NUM_FRAMES)]
    assert read["task"].tolist() == [f"task {e % 2}" for e, _ in names]
    assert read["timestamp"] == pytest.approx([i / 10 for _, i in names], abs=1e-6)
