"""LeRobot datasets of drawn frames, in either layout.

Written here without LeRobot, as its versions 0.3.3 (v2.1) and 0.4.4 (v3.0) write them.
"""

import io
import json
from fractions import Fraction

import av
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.drawn_frames import ALL, HEIGHT, NUM_EPISODES, NUM_FRAMES, WIDTH, draw

CAMERA = "observation.images.top"
RATE_HZ = 10
# Groups of pictures. In open ones, some frames after a key frame need the group before it.
CLOSED = {"g": "2"}
OPEN = {"g": "3", "bf": "2", "x264-params": "open-gop=1:b-adapt=0"}
RARE = {"g": "250"}
DATA = "data/chunk-000/file-000.parquet"
VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"
CONTENTS = "meta/episodes/chunk-000/file-000.parquet"


def write_video(path, names, groups=CLOSED, ticks=1, start=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", RATE_HZ, {"crf": "12", **groups})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE_HZ)
        for time, name in enumerate(names):
            frame = av.VideoFrame.from_ndarray(draw(*name), format="rgb24")
            frame.pts = start + time * ticks
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def rows_of(episodes, images=False):
    return [
        {
            "observation.state": [float(e), float(i), 0.5],
            "action": [float(e), float(-i)],
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
        "action": {"dtype": "float32", "shape": [2]},
        CAMERA: image,
        "task_index": {"dtype": "int64", "shape": [1]},
    }
    info = {"codebase_version": version, "fps": RATE_HZ, "chunks_size": 2, "features": features}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info | paths))


def write_v2(folder, images=False, groups=CLOSED, version="v2.1"):
    write_info(
        folder,
        version,
        images,
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )
    tasks = [{"task_index": t, "task": f"task {t}"} for t in (0, 1)]
    episodes = [
        {"episode_index": e, "tasks": [f"task {e % 2}"], "length": NUM_FRAMES} for e in (0, 1, 2)
    ]
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
            names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            values = (*video, start_s, start_s + NUM_FRAMES / RATE_HZ)
            entry |= {f"videos/{CAMERA}/{n}": v for n, v in zip(names, values, strict=True)}
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


def edit_table(path, edit):
    """`edit` is given the rows, as dicts to change."""
    rows = pq.read_table(path, partitioning=None).to_pylist()
    edit(rows)
    write_table(path, rows)
