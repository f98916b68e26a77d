"""Every frame of a LeRobot dataset is found, in either layout, and damage is named."""

import shutil
import sys
from functools import partial

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from quant.data.convert import ConvertConfig, convert
from quant.data.observations import read_episodes, read_observations
from runtime.errors import OutputError, RecordingError
from runtime.recordings.lerobot import read_lerobot
from runtime.recordings.read import read_recordings
from runtime.recordings.recording import load_recording
from tests.drawn_frames import ALL, NUM_EPISODES, NUM_FRAMES, draw, identify, names_of
from tests.lerobot_datasets import (
    CAMERA,
    CONTENTS,
    DATA,
    OPEN,
    RARE,
    RATE_HZ,
    VIDEO,
    edit_features,
    edit_info,
    edit_table,
    png,
    rows_of,
    write_table,
    write_v2,
    write_v30,
    write_video,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
STATE = "observation.state"
START, END = f"videos/{CAMERA}/from_timestamp", f"videos/{CAMERA}/to_timestamp"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A v3.0 dataset to copy and damage."""
    folder = tmp_path_factory.mktemp("lerobot") / "dataset"
    write_v30(folder)
    return folder


@pytest.fixture
def dataset(written, tmp_path):
    return shutil.copytree(written, tmp_path / "dataset")


@pytest.fixture(scope="module")
def written_pictures(tmp_path_factory):
    """The same with images in its tables."""
    folder = tmp_path_factory.mktemp("lerobot") / "pictures"
    write_v30(folder, images=True)
    return folder


@pytest.fixture
def pictures(written_pictures, tmp_path):
    return shutil.copytree(written_pictures, tmp_path / "pictures")


@pytest.mark.parametrize("images", [False, True], ids=["video", "image"])
@pytest.mark.parametrize(
    "write",
    [partial(write_v2, version="v2.0"), write_v2, write_v30],
    ids=["v2.0", "v2.1", "v3.0"],
)
def test_every_frame_of_a_lerobot_dataset_is_found(tmp_path, write, images):
    write(tmp_path / "dataset", images)
    assert names_of(read_observations(tmp_path / "dataset", stride=1)) == ALL


@pytest.mark.parametrize("groups", [RARE, OPEN], ids=["rare", "open"])
def test_frames_are_found_wherever_key_frames_are(tmp_path, groups):
    write_v30(tmp_path / "dataset", groups=groups)
    assert names_of(read_observations(tmp_path / "dataset", stride=1)) == ALL


def test_images_in_the_table_come_back_bit_for_bit(written_pictures):
    observations = read_observations(written_pictures, stride=1)
    for observation, name in zip(observations, ALL, strict=True):
        assert np.array_equal(observation.now["frame"], draw(*name))


@pytest.mark.parametrize("stride", [3, 4, 100])
def test_frames_further_apart_are_found(dataset, stride):
    expected = [(e, i) for e in range(NUM_EPISODES) for i in range(0, NUM_FRAMES, stride)]
    assert names_of(read_observations(dataset, stride=stride)) == expected


@pytest.mark.parametrize("limit", [7, 100])
def test_frames_that_a_limit_leaves_are_found(dataset, limit):
    names = names_of(read_observations(dataset, stride=1, limit=limit))
    assert names == sorted(set(names)) and len(names) == min(limit, len(ALL))


def test_episodes_tell_their_names_and_every_instruction_of_the_dataset(dataset):
    found = read_episodes(dataset)
    assert [episode.name for episode in found] == ["episode 0", "episode 1", "episode 2"]
    assert all(sorted(episode.instructions) == ["task 0", "task 1"] for episode in found)
    observations = list(read_observations(dataset, stride=5))
    assert [o.where for o in observations[:3]] == [
        "episode 0, frame 0", "episode 0, frame 5", "episode 1, frame 0"
    ]  # fmt: skip


def test_episodes_that_are_listed_with_their_instructions_tell_those_alone(tmp_path):
    write_v2(tmp_path, images=True)
    found = read_episodes(tmp_path)
    assert [episode.instructions for episode in found] == [("task 0",), ("task 1",), ("task 0",)]


def test_files_of_episodes_that_are_not_needed_may_be_missing(dataset):
    (dataset / VIDEO).unlink()
    found = []
    for limit in range(1, 4):
        try:
            found += names_of(read_observations(dataset, stride=1, limit=limit))
        except ValueError as error:
            assert "file-000.mp4: no such file" in str(error)
    assert found and all(e > 0 for e, _ in found)


def test_one_of_several_cameras_is_read(dataset):
    second = {"observation.images.wrist": {"dtype": "video"}}
    edit_features(dataset, lambda features: features.update(second))
    assert names_of(read_observations(dataset, stride=1, camera=CAMERA)) == ALL
    for camera, named in ((None, "none is named"), ("top", "got 'top'")):
        with pytest.raises(ValueError, match=f"one of .*top, .*wrist; {named}"):
            read_observations(dataset, stride=1, camera=camera)


def test_each_view_of_a_policy_is_a_camera_of_the_dataset(tmp_path):
    """The other camera shows the next episode, so that its pictures tell where they are from."""
    folder, other = tmp_path / "dataset", "observation.images.wrist"
    write_v2(folder)
    files = sorted(folder.rglob(f"{CAMERA}/*.mp4"), key=lambda file: file.name)
    for file, shown in zip(files, [*files[1:], files[0]], strict=True):
        copied = file.parent.with_name(other) / file.name
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(shown, copied)
    edit_features(folder, lambda features: features.update({other: {"dtype": "video"}}))
    both = f"frame={CAMERA}, wrist={other}"
    found = list(read_observations(folder, stride=3, camera=both))
    assert names_of(found) == names_of(read_observations(folder, stride=3, camera=CAMERA))
    for seen in found:
        assert seen.now.keys() == seen.first.keys() == {"frame", "wrist", "state"}
        episode, index = identify(seen.now["frame"])
        assert identify(seen.now["wrist"]) == ((episode + 1) % NUM_EPISODES, index)
        assert identify(seen.first["wrist"]) == ((episode + 1) % NUM_EPISODES, 0)
    for camera in ("frame=", "=a", f"frame={CAMERA},frame={CAMERA}", f"frame={CAMERA},"):
        with pytest.raises(ValueError, match="must be VIEW=KEY, each view once, with commas"):
            read_observations(folder, stride=3, camera=camera)


def test_a_depth_map_is_no_camera(dataset):
    depth = {"dtype": "video", "info": {"video.is_depth_map": True}}
    edit_features(dataset, lambda features: features.update({"observation.images.depth": depth}))
    assert names_of(read_observations(dataset, stride=3))
    with pytest.raises(RecordingError, match=r"must be one of observation.images.top; got '.*h'"):
        read_observations(dataset, stride=3, camera="observation.images.depth")


def drop_state(folder):
    edit_features(folder, lambda features: features.pop("observation.state"))


def drop_camera(folder):
    edit_features(folder, lambda features: features.pop(CAMERA))


def drop_column(path, name):
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns([name]), path)


def empty(folder):
    pq.write_table(
        pq.read_table(folder / CONTENTS, partitioning=None).slice(0, 0), folder / CONTENTS
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit_info(f, codebase_version="v1.6"), r"'v1.6' .*, only v2.0, v2.1, v3.0; con"),
        (lambda f: edit_info(f, codebase_version=3), "the object has 3 as codebase_version, where"),
        (lambda f: (f / "meta/info.json").write_text("{"), "info.json: not JSON"),
        (lambda f: (f / "meta/info.json").write_text("[]"), "info.json: must be an object, got l"),
        (lambda f: (f / "meta/info.json").write_text("{}"), "info.json: .* lacks 'codebase_vers"),
        (lambda f: (f / "meta/info.json").write_bytes(POINTER), "info.json: .*git-lfs pointer"),
        (lambda f: edit_info(f, fps=0), r"info.json: fps must be in \(0, 1000\], got 0; mend it"),
        (lambda f: edit_info(f, fps="30"), "has '30' as fps, where a finite number is expected"),
        (
            lambda f: edit_info(f, total_episodes=4),
            "info.json: counts 4 episodes, .* has 3; copy t",
        ),
        (lambda f: edit_info(f, features={"a": {}}), "features must be an object that gives each"),
        (lambda f: edit_info(f, features=["a"]), "features must be an object that gives each a d"),
        (lambda f: edit_info(f, data_path="../{file_index}"), "data_path must be a path inside"),
        (lambda f: edit_info(f, video_path="/{video_key}"), "video_path must be a path inside"),
        (lambda f: edit_info(f, video_path="{episode_index}"), r"\['chunk_index', 'file_index', '"),
        (lambda f: edit_info(f, video_path=None), "video_path must be .* got None"),
        (drop_state, r"no observation.state, only \['action', 'observation.images.top', 't"),
        (drop_camera, r"no camera, only \['action', 'observation.state', 'task_index'\]"),
        (empty, "0 episodes without a frame"),
        (lambda f: (f / CONTENTS).unlink(), "0 episodes without a frame"),
        (
            lambda f: drop_column(f / CONTENTS, "length"),
            "file-000.parquet: lacks column 'length', it",
        ),
        (lambda f: (f / VIDEO).unlink(), "file-000.mp4: no such file"),
        (lambda f: (f / DATA).unlink(), "file-000.parquet: no such file"),
        (lambda f: (f / VIDEO).write_bytes(POINTER), "file-000.mp4: a git-lfs pointer"),
        (lambda f: (f / DATA).write_bytes(POINTER), "file-000.parquet: a git-lfs pointer"),
        (lambda f: (f / CONTENTS).write_bytes(POINTER), "file-000.parquet: a git-lfs pointer"),
        (lambda f: (f / "meta/tasks.parquet").write_bytes(b"PAR1"), "tasks.parquet: not a whole p"),
        (lambda f: (f / "meta/tasks.parquet").unlink(), "tasks.parquet: no such file"),
        (lambda f: drop_column(f / "meta/tasks.parquet", "task_index"), "row 0 lacks 'task_index'"),
        (lambda f: edit_contents(f, 2, episode_index=1), "episode 1 stands in the .* 2 times"),
        (lambda f: edit_contents(f, 1, length=-7), "episode 1 has -7 as length, .* not negative"),
        (
            lambda f: edit_contents(f, 1, **{START: 0.04}),
            "drift of 0.40 frames .*issue 3177.; conv",
        ),
        (lambda f: edit_contents(f, 2, **{START: 0.64}), "from_timestamp of episode 2 .* of -0.60"),
        (
            lambda f: edit_contents(f, 2, **{START: 0.6}),
            "from_timestamp of episode 2 .* of -1.00 f",
        ),
        (
            lambda f: edit_contents(f, 2, **{START: 0.8}),
            "to_timestamp of episode 2 .* of -1.00 fra",
        ),
        (
            lambda f: edit_contents(f, 1, **{END: 0.63}),
            "to_timestamp of episode 1 is 0.63 .* -0.70",
        ),
    ],
)
def test_a_dataset_that_cannot_be_read_is_refused_at_once(dataset, damage, message):
    damage(dataset)
    with pytest.raises(ValueError, match=message):
        read_observations(dataset, stride=1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tasks", b"{", "tasks.jsonl: line 1: not JSON"),
        (
            "tasks",
            b'{"task_index": 0, "task": "a"}\n{"task_index": 0, "task": "b"}',
            "tasks.jsonl: task 0 has two texts, 'a' and 'b'",
        ),
        (
            "tasks",
            b'{"task_index": 0, "task": 5}',
            "tasks.jsonl: line 1 has 5 as task, where a text",
        ),
        ("episodes", b"{}", "episodes.jsonl: line 1 lacks 'episode_index', it has ; mend"),
        ("episodes", b'{"episode_index": 1.5}', "line 1 has 1.5 as episode_index, where a whole n"),
        ("episodes", b'{"episode_index": true}', "line 1 has True as episode_index, where a whol"),
        (
            "episodes",
            b'{"episode_index": 4, "length": null}',
            "episode 4 has None as length, where",
        ),
        ("episodes", POINTER, "episodes.jsonl: a git-lfs pointer"),
        ("episodes", b"", "0 episodes without a frame"),
    ],
)
def test_a_damaged_table_of_contents_is_refused(tmp_path, name, content, message):
    write_v2(tmp_path / "dataset", images=True)
    (tmp_path / f"dataset/meta/{name}.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_observations(tmp_path / "dataset", stride=1)


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def blank(path):
    """Overwrite the compressed frames and leave the container whole."""
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    path.write_bytes(data[:start] + bytes(end - start) + data[end:])


def scratch(path):
    """Overwrite a little of a compressed frame; a decoder would go on and guess."""
    data = bytearray(path.read_bytes())
    end = data.index(b"moov") - 24
    data[end : end + 20] = bytes(range(100, 120))
    path.write_bytes(data)


def without_video(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 48000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / VIDEO).write_bytes(b"no video"), "file-000.mp4: not a whole video"),
        (lambda f: cut(f / VIDEO), "file-000.mp4: not a whole video"),
        (lambda f: blank(f / VIDEO), "file-000.mp4: cannot be decoded at 0.000 s"),
        (lambda f: scratch(f / VIDEO), r"file-000.mp4: (damaged|cannot be decoded) at 0.[0-6]00 s"),
        (lambda f: without_video(f / VIDEO), "file-000.mp4: cannot be decoded at 0.000 s"),
        (
            lambda f: write_video(f / VIDEO, ALL[:7], start=5),
            "no frame at 0.000 s, .* at 0.500 s: a",
        ),
        (lambda f: write_video(f / VIDEO, ALL[:4]), "no frame at 0.400 s in a video of 0.400 s"),
        (
            lambda f: write_video(f / VIDEO, ALL[:7], ticks=2),
            "no frame at 0.100 s, .* is at 0.200 s: .* 1.00 fr",
        ),
        (lambda f: (f / DATA).write_bytes(b"PAR1"), "file-000.parquet: not a whole parquet file"),
        (
            lambda f: drop_column(f / DATA, "timestamp"),
            "file-000.parquet: lacks column 'timestamp'",
        ),
        (lambda f: write_table(f / DATA, rows_of([0])), "lacks frame 0 of episode 1, which has 7"),
        (
            lambda f: write_table(f / "meta/tasks.parquet", [{"task_index": 3, "task": "push"}]),
            r"task_index 0 in episode 0, but the task table has \[3\]",
        ),
    ],
)
def test_damage_inside_a_file_is_refused_while_reading(dataset, damage, message):
    damage(dataset)
    observations = read_observations(dataset, stride=1)
    with pytest.raises(ValueError, match=message):
        list(observations)


def test_an_error_about_a_table_is_one_line(dataset):
    drop_column(dataset / DATA, "task_index")
    with pytest.raises(RecordingError, match="lacks column 'task_index', it has obs") as caught:
        list(read_observations(dataset, stride=1))
    assert "\n" not in str(caught.value) and "__" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"GIF89a",
            "file-000.parquet: episode 0, frame 4, .*top is no PNG or JPEG, it begins with",
        ),
        (png(draw(0, 0))[:60], "file-000.parquet: episode 0, frame 4, .* is no whole PNG or JPEG"),
        (None, "pictures/4.png: no such file, the dataset is incomplete"),
    ],
)
def test_an_image_that_cannot_be_decoded_is_refused(pictures, data, message):
    edit_table(pictures / DATA, lambda rows: rows[4][CAMERA].update(bytes=data))
    with pytest.raises(RecordingError, match=message):
        list(read_observations(pictures, stride=1))


def edit_contents(folder, episode, **changes):
    edit_table(folder / CONTENTS, lambda rows: rows[episode].update(changes))


def retype(path, columns, kind):
    """As pandas makes them where a table was joined: every index a float."""
    edit_table(path, lambda rows: [row.update({c: kind(row[c]) for c in columns}) for row in rows])


def test_indices_that_pandas_made_floats_of_are_read(dataset):
    of_video = (f"videos/{CAMERA}/chunk_index", f"videos/{CAMERA}/file_index")
    places = ("data/chunk_index", "data/file_index", *of_video)
    retype(dataset / CONTENTS, ("episode_index", "length", *places), float)
    for path in (DATA, "data/chunk-001/file-000.parquet"):
        retype(dataset / path, ("frame_index", "episode_index", "task_index"), float)
    retype(dataset / "meta/tasks.parquet", ("task_index",), float)
    assert names_of(read_observations(dataset, stride=1)) == ALL


@pytest.mark.parametrize("column", ["data/file_index", "length", START, END])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_hole_in_the_table_of_contents_is_named_by_file_episode_and_column(
    dataset, column, value
):
    edit_contents(dataset, 1, **{column: value})
    with pytest.raises(RecordingError) as caught:
        read_observations(dataset, stride=1)
    assert str(caught.value).startswith(
        f"{dataset / CONTENTS}: episode 1 has {value} as {column}, "
    )


def test_white_space_between_the_lines_of_a_table_counts_for_nothing(tmp_path):
    write_v2(tmp_path, images=True)
    for name in ("tasks", "episodes"):
        path = tmp_path / f"meta/{name}.jsonl"
        path.write_bytes(b"\n" + path.read_bytes().replace(b"\n", b"\r\n  \n") + b"   \n")
    assert names_of(read_observations(tmp_path, stride=1)) == ALL


@pytest.mark.parametrize("separator", ["\u2028", "\u0085"])
def test_a_separator_inside_a_task_ends_no_line_and_is_refused_by_name(tmp_path, separator):
    write_v2(tmp_path, images=True)
    line = (
        f'{{"task_index": 1, "task": "pick{separator}place"}}\n{{"task_index": 0, "task": "t"}}\n'
    )
    (tmp_path / "meta/tasks.jsonl").write_text(line, "utf-8")
    with pytest.raises(RecordingError, match=r"episode 1 cannot be used, task 1 'pick.*\\[ux]"):
        list(read_observations(tmp_path, stride=1))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "instruction is empty"),
        (" \n", "instruction is empty"),
        ("pick\nplace", "'\\\\n' at 4"),
    ],
)
def test_a_task_that_is_no_instruction_is_named_with_the_way_to_leave_it_out(
    dataset, text, problem
):
    edit_table(dataset / "meta/tasks.parquet", lambda rows: rows[0].update(__index_level_0__=text))
    with pytest.raises(
        RecordingError, match=f"dataset: episode 1 cannot be used, task 1 .*{problem}"
    ):
        list(read_observations(dataset, stride=1))
    assert all(text.strip() not in e.instructions for e in read_episodes(dataset)) or text.strip()
    convert(ConvertConfig(dataset=dataset, out=dataset.parent / "out", leave_out=(1,)))
    assert [p.name for p in sorted((dataset.parent / "out").iterdir())] == [
        "episode_000000.npz", "episode_000002.npz"
    ]  # fmt: skip


def test_white_space_around_a_task_is_not_said(dataset):
    edit_table(
        dataset / "meta/tasks.parquet",
        lambda rows: [
            row.update(__index_level_0__=f" {row['__index_level_0__']}\n") for row in rows
        ],
    )
    assert names_of(read_observations(dataset, stride=1)) == ALL
    assert {text for e in read_episodes(dataset) for text in e.instructions} == {"task 0", "task 1"}


@pytest.mark.parametrize("drift", [0.05, -0.02])
def test_no_frame_next_door_is_taken_for_the_right_one(dataset, drift):
    """Half a hundredth of a second here; LeRobot allows a fiftieth of that."""
    edit_contents(dataset, 2, **{START: 0.7 + drift / RATE_HZ, END: 1.4 + drift / RATE_HZ})
    with pytest.raises(
        RecordingError, match=f"a drift of {-drift:.2f} frames between table and vid"
    ):
        list(read_observations(dataset, stride=1))


def test_frames_between_two_episodes_of_a_video_are_passed_over(dataset):
    """Episode 1 of its video has lost its last two rows, as trimmed episodes do."""
    edit_contents(dataset, 1, length=NUM_FRAMES - 2)
    edit_table(dataset / DATA, lambda rows: rows.__delitem__(slice(-2, None)))
    lost = [(1, NUM_FRAMES - 2), (1, NUM_FRAMES - 1)]
    assert names_of(read_observations(dataset, stride=1)) == [n for n in ALL if n not in lost]


def test_an_episode_may_follow_on_frames_that_no_table_lists(dataset):
    edit_table(dataset / CONTENTS, lambda rows: rows.__delitem__(1))
    assert names_of(read_observations(dataset, stride=1)) == [n for n in ALL if n[0] != 1]


def test_rows_may_stand_in_any_order(dataset):
    edit_table(dataset / DATA, lambda rows: rows.reverse())
    assert names_of(read_observations(dataset, stride=1)) == ALL


def test_a_dataset_without_the_ends_of_episodes_is_read(dataset):
    drop_column(dataset / CONTENTS, END)
    assert names_of(read_observations(dataset, stride=1)) == ALL


@pytest.mark.parametrize("folder", ["dataset", "pictures"])
def test_an_episode_that_lost_its_first_frames_is_anchored_at_the_first_it_has(folder, request):
    root = request.getfixturevalue(folder)
    edit_contents(root, 0, length=NUM_FRAMES - 2)
    edit_table(root / DATA, lambda rows: rows.__delitem__(slice(0, 2)))
    first = list(read_observations(root, stride=1))[: NUM_FRAMES - 2]
    assert [identify(o.now["frame"]) for o in first] == [(0, i) for i in range(2, NUM_FRAMES)]
    assert all(identify(o.first["frame"]) == (0, 2) for o in first)


def test_a_trimmed_episode_of_which_the_meta_folder_does_not_know_is_named(dataset):
    edit_table(dataset / DATA, lambda rows: rows.__delitem__(slice(0, 2)))
    with pytest.raises(
        RecordingError, match="lacks frame 7 of episode 0, .* starts at frame 2: was"
    ):
        list(read_observations(dataset, stride=1))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows[3].update(timestamp=0.32), "episode 0, frame 3 is at 0.32 s, 10 frames"),
        (lambda rows: rows[3].update(frame_index=2), "lacks frame 3 of episode 0"),
        (
            lambda rows: rows.append({**rows[6], "frame_index": 7}),
            "has too many frames of episode 0",
        ),
        (lambda rows: [r.update(timestamp=r["timestamp"] + 0.1) for r in rows], "rows as far as"),
        (
            lambda rows: rows[2].update(timestamp=None),
            "row 2 has None as timestamp, where a finite",
        ),
    ],
)
def test_rows_that_do_not_step_by_a_frame_are_refused(dataset, edit, message):
    edit_table(dataset / DATA, edit)
    with pytest.raises(RecordingError, match=message):
        list(read_observations(dataset, stride=1))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            [0.0, float("nan"), 0.5],
            "episode 0, frame 2, dimension 1 of observation.state is NaN or",
        ),
        ([0.0, 1.0, None], "episode 0, frame 2, dimension 2 of observation.state is NaN or inf"),
        ([0.0, 1.0], "episode 0 has a observation.state that is no vector .* of another length"),
        (None, "episode 0 has a observation.state that is no vector of numbers"),
    ],
)
def test_a_broken_state_is_named_by_file_episode_frame_and_dimension(dataset, state, message):
    edit_table(dataset / DATA, lambda rows: rows[2].update({STATE: state}))
    with pytest.raises(RecordingError, match=f"file-000.parquet: {message}"):
        list(read_observations(dataset, stride=100))


def test_a_broken_action_spoils_a_recording_and_not_calibration(dataset):
    edit_table(dataset / DATA, lambda rows: rows[9].update(action=[0.0, float("inf")]))
    assert names_of(read_observations(dataset, stride=1)) == ALL
    with pytest.raises(
        RecordingError, match="episode 1, frame 2, dimension 1 of action is NaN or inf"
    ):
        list(read_recordings([dataset]))


def test_pictures_that_a_table_names_are_read_from_the_dataset(pictures):
    def move_out(rows):
        for number, row in enumerate(rows):
            path = f"images/{number}.png"
            (pictures / path).write_bytes(row[CAMERA]["bytes"])
            row[CAMERA] = {"bytes": None, "path": path}

    (pictures / "images").mkdir()
    edit_table(pictures / DATA, move_out)
    assert names_of(read_observations(pictures, stride=1)) == ALL
    (pictures / "images/3.png").write_bytes(POINTER)
    with pytest.raises(RecordingError, match="images/3.png: a git-lfs pointer"):
        list(read_observations(pictures, stride=1))


@pytest.mark.parametrize("path", ["/images/0.png", "../0.png", None])
def test_pictures_outside_the_dataset_are_refused_by_name(pictures, path):
    edit_table(
        pictures / DATA, lambda rows: rows[3].update({CAMERA: {"bytes": None, "path": path}})
    )
    with pytest.raises(
        RecordingError, match=f"frame 3, .* neither an image nor a .*, but {path!r};"
    ):
        list(read_observations(pictures, stride=1))


@pytest.mark.parametrize("folder", ["written", "written_pictures"])
def test_a_dataset_is_replayed_with_its_recorded_actions(folder, request):
    named = list(read_recordings([request.getfixturevalue(folder)]))
    assert [name for name, _ in named] == ["episode 0", "episode 1", "episode 2"]
    for episode, (_, recording) in enumerate(named):
        seen = [identify(image) for image in recording.streams["frame"].values]
        assert seen == [(episode, i) for i in range(NUM_FRAMES)]
        states = recording.streams["state"].values
        assert states.tolist() == [[episode, i, 0.5] for i in range(NUM_FRAMES)]
        assert recording.actions.tolist() == [[episode, -i] for i in range(NUM_FRAMES)]
        assert recording.instruction == f"task {episode % 2}"
        assert recording.rate_hz == RATE_HZ and recording.success is None
        for stream in recording.streams.values():
            assert np.allclose(stream.at_s, np.arange(NUM_FRAMES) / RATE_HZ, atol=1e-6)
        assert recording.streams["frame"].frame_ids.tolist() == list(range(NUM_FRAMES))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pan", "lift"], ("pan", "lift")),
        ({"motors": ["pan", "lift"]}, ("pan", "lift")),
        (None, None),
        (["pan"], None),
        ([1, 2], None),
        ({"a": ["pan"], "b": ["lift"]}, None),
    ],
)
def test_action_dimensions_have_the_names_that_the_dataset_gives_them(pictures, names, expected):
    edit_features(pictures, lambda features: features["action"].update(names=names))
    (_, recording), *_ = read_recordings([pictures], max_frames=1)
    assert recording.action_names == expected
    edit_features(pictures, lambda features: features.pop("action"))
    (_, recording), *_ = read_recordings([pictures], max_frames=1)
    assert recording.action_names is None


def test_names_are_converted_too(pictures, tmp_path):
    edit_features(pictures, lambda features: features["action"].update(names=["pan", "lift"]))
    for path in convert(ConvertConfig(dataset=pictures, out=tmp_path / "recordings")):
        assert load_recording(path).action_names == ("pan", "lift")


def test_a_dataset_without_actions_is_replayed_too(pictures):
    edit_features(pictures, lambda features: features.pop("action"))
    assert all(recording.actions is None for _, recording in read_recordings([pictures]))


def test_no_more_frames_are_decoded_than_will_be_replayed(written):
    (_, first), *_ = read_recordings([written], max_frames=3)
    assert [len(stream.values) for stream in first.streams.values()] == [3, 3]
    assert len(first.actions) == 3


def test_a_state_of_another_shape_makes_no_recording(pictures):
    edit_table(pictures / DATA, lambda rows: [r.update({STATE: [r[STATE]]}) for r in rows])
    with pytest.raises(
        RecordingError,
        match=r"episode 0 makes no recording: values of .*state are \[1, \d\].* leave it out",
    ):
        list(read_recordings([pictures]))


def test_an_instruction_that_changes_in_mid_episode_makes_no_recording(pictures):
    edit_table(pictures / DATA, lambda rows: rows[5].update(task_index=1))
    with pytest.raises(
        RecordingError, match="episode 0 has 2 instructions, .* leave it out: .* 0$"
    ):
        list(read_recordings([pictures]))


def test_what_is_converted_is_the_dataset(written, tmp_path):
    paths = convert(ConvertConfig(dataset=written, out=tmp_path / "recordings"))
    direct = [recording for _, recording in read_recordings([written])]
    for path, expected in zip(paths, direct, strict=True):
        found = load_recording(path)
        assert np.array_equal(found.streams["frame"].values, expected.streams["frame"].values)
        assert np.array_equal(found.streams["state"].values, expected.streams["state"].values)
        assert np.array_equal(found.actions, expected.actions)
        assert found.instruction == expected.instruction
    assert list(tmp_path.iterdir()) == [tmp_path / "recordings"]


def test_a_conversion_is_whole_or_not_there_and_replaces_nothing(dataset, tmp_path):
    out = tmp_path / "out"
    cut(dataset / "data/chunk-001/file-000.parquet")  # of the last episode
    with pytest.raises(RecordingError, match="file-000.parquet: not a whole parquet file"):
        convert(ConvertConfig(dataset=dataset, out=out))
    assert list(tmp_path.iterdir()) == [dataset]
    out.write_text("somebody's")
    with pytest.raises(OutputError, match="out: a file, where a folder is to be written"):
        convert(ConvertConfig(dataset=dataset, out=out))
    assert out.read_text() == "somebody's"


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [
        ((1, 5), "no episode 5 to leave out, there are 3, 0 to 2"),
        ((0, 1, 2), "no episode to write"),
    ],
)
def test_episodes_to_leave_out_are_checked(written, tmp_path, leave_out, message):
    with pytest.raises(RecordingError, match=message):
        convert(ConvertConfig(dataset=written, out=tmp_path / "out", leave_out=leave_out))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["av", "pyarrow"])
def test_without_its_readers_a_dataset_is_refused_with_the_way_to_convert_it(
    written, monkeypatch, missing
):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        RecordingError, match="needs pyarrow and av .*: python -m quant convert .* --o"
    ):
        read_lerobot(written)


def test_the_error_about_cameras_names_the_flag(dataset, tmp_path):
    with pytest.raises(
        RecordingError, match=r"--camera \(CAMERA= in make\) must be one of obs.*; got 'wrist'"
    ):
        read_recordings([dataset], camera="wrist")
    edit_features(
        dataset, lambda features: features.update({"observation.images.b": {"dtype": "video"}})
    )
    with pytest.raises(RecordingError, match=r"one of observation.images.b, .*; none is named"):
        read_recordings([dataset])
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(RecordingError, match="name their own cameras; leave out --camera wrist"):
        read_recordings([tmp_path / "a.npz"], camera="wrist")


def test_what_is_no_source_of_recordings_is_refused(tmp_path):
    with pytest.raises(
        RecordingError, match=r"neither recordings \(\*.npz, \*.zip\) nor a LeRobot dataset"
    ):
        read_recordings([tmp_path])
    with pytest.raises(RecordingError, match="gone.npz: no such file"):
        list(read_recordings([tmp_path / "gone.npz"]))
