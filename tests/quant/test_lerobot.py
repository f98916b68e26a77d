"""Every frame of a LeRobot dataset is found, in either layout, and damage is named.

LeRobot's layouts are written here without LeRobot, as its versions 0.3.3 (v2.1) and 0.4.4 (v3.0)
write them.
"""

import io
import json
import shutil
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from quant.observations import read_episodes, read_observations
from tests.quant.drawn_frames import ALL, HEIGHT, NUM_EPISODES, NUM_FRAMES, WIDTH, draw, names_of

CAMERA = "observation.images.top"
RATE_HZ = 10
# Groups of pictures. In open ones, some frames after a key frame need the group before it.
CLOSED = {"g": "2"}
OPEN = {"g": "3", "bf": "2", "x264-params": "open-gop=1:b-adapt=0"}
RARE = {"g": "250"}
DATA = "data/chunk-000/file-000.parquet"
VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"
CONTENTS = "meta/episodes/chunk-000/file-000.parquet"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


def write_video(path, names, groups=CLOSED, ticks=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", RATE_HZ, {"crf": "12", **groups})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE_HZ)
        for time, name in enumerate(names):
            frame = av.VideoFrame.from_ndarray(draw(*name), format="rgb24")
            frame.pts = time * ticks
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def rows_of(episodes, images=False):
    return [
        {
            "observation.state": [float(e), float(i), 0.5],
            "timestamp": i / RATE_HZ,
            "frame_index": i,
            "episode_index": e,
            "index": e * NUM_FRAMES + i,
            "task_index": e % 2,
            **({CAMERA: {"bytes": png(draw(e, i)), "path": f"{i}.png"}} if images else {}),
        }
        for e in episodes
        for i in range(NUM_FRAMES)
    ]


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_info(folder, version, images, **paths):
    image = {"dtype": "image" if images else "video", "shape": [HEIGHT, WIDTH, 3]}
    features = {
        "observation.state": {"dtype": "float32", "shape": [3]},
        CAMERA: image,
        "task_index": {"dtype": "int64", "shape": [1]},
    }
    info = {"codebase_version": version, "fps": RATE_HZ, "chunks_size": 2, "features": features}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info | paths))


def write_v21(folder, images=False, groups=CLOSED):
    write_info(
        folder,
        "v2.1",
        images,
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )
    tasks = [{"task_index": t, "task": f"task {t}"} for t in (0, 1)]
    episodes = [{"episode_index": e, "tasks": [], "length": NUM_FRAMES} for e in (0, 1, 2)]
    for name, lines in (("tasks", tasks), ("episodes", episodes)):
        (folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for e in range(NUM_EPISODES):
        chunk, name = f"chunk-{e // 2:03d}", f"episode_{e:06d}"
        write_table(folder / f"data/{chunk}/{name}.parquet", rows_of([e], images))
        if not images:
            own = [(e, i) for i in range(NUM_FRAMES)]
            write_video(folder / f"videos/{chunk}/{CAMERA}/{name}.mp4", own, groups)


def write_v30(folder, images=False, groups=CLOSED):
    """Episodes 0 and 1 share a table, 1 and 2 a video, in which 2 comes second."""
    write_info(
        folder,
        "v3.0",
        images,
        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )
    tasks = [{"task_index": t, "__index_level_0__": f"task {t}"} for t in (1, 0)]
    write_table(folder / "meta/tasks.parquet", tasks)
    places = [((0, 0), (0, 0), 0.0), ((0, 0), (0, 1), 0.0), ((1, 0), (0, 1), NUM_FRAMES / RATE_HZ)]
    episodes = []
    for e, (data, video, start_s) in enumerate(places):
        entry = {"episode_index": e, "length": NUM_FRAMES, "stats/index/max": [0.0]}
        entry |= {"data/chunk_index": data[0], "data/file_index": data[1]}
        if not images:
            names = ("chunk_index", "file_index", "from_timestamp")
            entry |= {
                f"videos/{CAMERA}/{n}": v for n, v in zip(names, (*video, start_s), strict=True)
            }
        episodes.append(entry)
    write_table(folder / CONTENTS, episodes)
    write_table(folder / DATA, rows_of([0, 1], images))
    write_table(folder / "data/chunk-001/file-000.parquet", rows_of([2], images))
    if not images:
        write_video(folder / VIDEO, ALL[:NUM_FRAMES], groups)
        second = folder / f"videos/{CAMERA}/chunk-000/file-001.mp4"
        write_video(second, ALL[NUM_FRAMES:], groups)


def edit_info(folder, **changes):
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_features(folder, edit):
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    edit(info["features"])
    path.write_text(json.dumps(info))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A v3.0 dataset to copy and damage."""
    folder = tmp_path_factory.mktemp("lerobot") / "dataset"
    write_v30(folder)
    return folder


@pytest.fixture
def dataset(written, tmp_path):
    return shutil.copytree(written, tmp_path / "dataset")


@pytest.mark.parametrize("images", [False, True], ids=["video", "image"])
@pytest.mark.parametrize("write", [write_v21, write_v30], ids=["v2.1", "v3.0"])
def test_every_frame_of_a_lerobot_dataset_is_found(tmp_path, write, images):
    write(tmp_path / "dataset", images)
    assert names_of(read_observations(tmp_path / "dataset", stride=1)) == ALL


@pytest.mark.parametrize("groups", [RARE, OPEN], ids=["rare", "open"])
def test_frames_are_found_wherever_key_frames_are(tmp_path, groups):
    write_v30(tmp_path / "dataset", groups=groups)
    assert names_of(read_observations(tmp_path / "dataset", stride=1)) == ALL


def test_images_in_the_table_come_back_bit_for_bit(tmp_path):
    write_v30(tmp_path / "dataset", images=True)
    observations = read_observations(tmp_path / "dataset", stride=1)
    for observation, name in zip(observations, ALL, strict=True):
        assert np.array_equal(observation.frame, draw(*name))


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
    for camera in (None, "top"):
        with pytest.raises(ValueError, match=r"one of \['.*top', '.*wrist'\], got " + repr(camera)):
            read_observations(dataset, stride=1, camera=camera)


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
        (lambda f: edit_info(f, codebase_version="v2.0"), r"'v2.0' .* only 'v2.1' and 'v3.0'"),
        (lambda f: (f / "meta/info.json").write_text("{"), "info.json: no codebase_version"),
        (lambda f: (f / "meta/info.json").write_bytes(POINTER), "info.json: .*git-lfs pointer"),
        (lambda f: edit_info(f, fps=0, features={}), "info.json: lacks fps, features"),
        (lambda f: edit_info(f, data_path="../{file_index}"), "data_path must be a path inside"),
        (lambda f: edit_info(f, video_path="/{video_key}"), "video_path must be a path inside"),
        (lambda f: edit_info(f, video_path="{episode_index}"), r"\['chunk_index', 'file_index', '"),
        (lambda f: edit_info(f, video_path=None), "video_path must be .* got None"),
        (drop_state, r"no observation.state, only \['observation.images.top', 'task_index'\]"),
        (drop_camera, r"no camera, only \['observation.state', 'task_index'\]"),
        (empty, "0 episodes without a frame"),
        (lambda f: (f / CONTENTS).unlink(), "0 episodes without a frame"),
        (lambda f: drop_column(f / CONTENTS, "length"), "file-000.parquet: expected .*'length'"),
        (lambda f: (f / VIDEO).unlink(), "file-000.mp4: no such file"),
        (lambda f: (f / DATA).unlink(), "file-000.parquet: no such file"),
        (lambda f: (f / VIDEO).write_bytes(POINTER), "file-000.mp4: a git-lfs pointer"),
        (lambda f: (f / DATA).write_bytes(POINTER), "file-000.parquet: a git-lfs pointer"),
        (lambda f: (f / CONTENTS).write_bytes(POINTER), "file-000.parquet: a git-lfs pointer"),
        (lambda f: (f / "meta/tasks.parquet").write_bytes(b"PAR1"), "tasks.parquet: expected parq"),
        (lambda f: (f / "meta/tasks.parquet").unlink(), "tasks.parquet: no such file"),
        (lambda f: drop_column(f / "meta/tasks.parquet", "task_index"), "expected task_index and"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_refused_at_once(dataset, damage, message):
    damage(dataset)
    with pytest.raises(ValueError, match=message):
        read_observations(dataset, stride=1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tasks", b"{", "tasks.jsonl: no .*'task_index', 'task'.* in a line"),
        ("episodes", b"{}", "episodes.jsonl: no .*'episode_index', 'length'.* in a line"),
        ("episodes", POINTER, "episodes.jsonl: a git-lfs pointer"),
        ("episodes", b"", "0 episodes without a frame"),
    ],
)
def test_a_damaged_table_of_contents_is_refused(tmp_path, name, content, message):
    write_v21(tmp_path / "dataset", images=True)
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
        (lambda f: write_video(f / VIDEO, ALL[:4]), "no frame at 0.400 s in a video of 0.400 s"),
        (lambda f: write_video(f / VIDEO, ALL[:7], ticks=2), "no frame at 0.100 s in a video of"),
        (lambda f: (f / DATA).write_bytes(b"PAR1"), "file-000.parquet: expected parquet"),
        (lambda f: drop_column(f / DATA, "timestamp"), "file-000.parquet: expected .*'timestamp'"),
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


@pytest.mark.parametrize("data", [b"GIF89a", png(draw(0, 0))[:60], None])
def test_an_image_that_cannot_be_decoded_is_refused(tmp_path, data):
    write_v30(tmp_path / "dataset", images=True)
    rows = rows_of([0, 1], images=True)
    rows[4][CAMERA]["bytes"] = data
    write_table(tmp_path / "dataset" / DATA, rows)
    observations = read_observations(tmp_path / "dataset", stride=1)
    with pytest.raises(ValueError, match="file-000.parquet: holds an image that is no whole PNG"):
        list(observations)
