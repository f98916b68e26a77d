"""LeRobot datasets of layout v2.1 and v3.0, as episodes to take observations from.

Goes in: the folder of a dataset. Comes out: its episodes, from the table of contents; tables and
videos are opened when observations are drawn. The trade-off: a video is sought anew for each frame
and never held, which is quick in LeRobot's own files (every second frame is a key frame) and slow
where key frames are rare.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.container import InputContainer
from numpy.typing import NDArray
from PIL import Image

from quant.episode import Episode, Observation, check_file

INFO = "meta/info.json"
"""What tells a dataset from other folders."""
_STATE = "observation.state"


def lerobot_episodes(root: Path, camera: str | None) -> list[Episode]:
    """The episodes of the dataset in `root`, in the order of its table of contents.

    Args:
        root: where there is a meta/info.json.
        camera: key of the camera; None if the dataset has one only.

    Raises:
        ValueError: no such camera, or info.json or the table of contents cannot be used.
    """
    info = _read_info(root / INFO)
    features = info["features"]
    if _STATE not in features:
        raise ValueError(
            f"{root}: no {_STATE}, only {sorted(features)}; choose a dataset with the robot's state"
        )
    camera = _choose_camera(root, features, camera)
    is_video = features[camera]["dtype"] == "video"
    if info["codebase_version"] == "v2.1":
        tasks, entries = _contents_v21(root, info["chunks_size"])
    else:
        tasks, entries = _contents_v30(root, camera if is_video else None)
    episodes = []
    for entry in entries:
        table = _locate(root, info, "data_path", entry.table)
        names = {**entry.video, "video_key": camera}
        video = _locate(root, info, "video_path", names) if is_video else None
        read = partial(_read_lerobot, entry, table, video, camera, 1 / info["fps"], tasks)
        files = (table, *([video] if video else []))
        episodes.append(
            Episode(f"episode {entry.index}", entry.num_frames, tuple(tasks.values()), files, read)
        )
    return episodes


@dataclass(frozen=True, slots=True)
class _Entry:
    """An episode in the table of contents of a LeRobot dataset."""

    index: int
    num_frames: int
    table: Mapping[str, int]
    """What fills in the template of the path."""
    video: Mapping[str, int]
    start_s: float
    """In the video."""


def _contents_v21(root: Path, chunks_size: int) -> tuple[Mapping[int, str], list[_Entry]]:
    """Instructions by task, and episodes, each with a table and a video of its own."""
    rows = _read_json_lines(root / "meta/tasks.jsonl", "task_index", "task")
    entries = []
    for index, length in _read_json_lines(root / "meta/episodes.jsonl", "episode_index", "length"):
        names = {"episode_chunk": index // chunks_size, "episode_index": index}
        entries.append(_Entry(index, length, names, names, 0.0))
    return dict(rows), entries


def _contents_v30(root: Path, camera: str | None) -> tuple[Mapping[int, str], list[_Entry]]:
    """Instructions by task, and episodes, several to a table and to a video of `camera`."""
    path = root / "meta/tasks.parquet"
    tasks = {}
    for row in _read_table(path):
        # The text is the index of a pandas table, whose column has had more than one name.
        texts = [value for value in row.values() if isinstance(value, str)]
        if len(texts) != 1 or "task_index" not in row:
            raise ValueError(f"{path}: expected task_index and a text, got {row}; copy it again")
        tasks[row["task_index"]] = texts[0]
    parts = ["chunk_index", "file_index"]
    columns = ["episode_index", "length", *(f"data/{part}" for part in parts)]
    if camera is not None:
        columns += [f"videos/{camera}/{part}" for part in (*parts, "from_timestamp")]
    entries = []
    for file in sorted(root.glob("meta/episodes/*/*.parquet")):
        for row in _read_table(file, columns):
            table, video = (
                {part: row.get(f"{of}/{part}", 0) for part in parts}
                for of in ("data", f"videos/{camera}")
            )
            start_s = row.get(f"videos/{camera}/from_timestamp", 0.0)
            entries.append(_Entry(row["episode_index"], row["length"], table, video, start_s))
    return tasks, entries


def _read_lerobot(
    entry: _Entry,
    table: Path,
    video: Path | None,
    camera: str,
    period_s: float,
    tasks: Mapping[int, str],
    frames: Sequence[int],
) -> Iterator[Observation]:
    columns = ["frame_index", "timestamp", "task_index", _STATE, *([] if video else [camera])]
    wanted = [("episode_index", "==", entry.index), ("frame_index", "in", {0, *frames})]
    rows = {row["frame_index"]: row for row in _read_table(table, columns, wanted)}
    if missing := sorted({0, *frames} - rows.keys()):
        raise ValueError(
            f"{table}: lacks frame {missing[0]} of episode {entry.index}, which has "
            f"{entry.num_frames} according to the meta folder; copy both again"
        )
    if unknown := sorted({row["task_index"] for row in rows.values()} - tasks.keys()):
        raise ValueError(
            f"{table}: task_index {unknown[0]} in episode {entry.index}, but the task table has "
            f"{sorted(tasks)}; copy the meta folder again"
        )
    with _open_video(video) if video else nullcontext() as container:

        def decode(frame: int) -> NDArray[np.uint8]:
            if container is None:
                return _decode_image(rows[frame][camera], table)
            return _decode_at(container, entry.start_s + rows[frame]["timestamp"], period_s)

        anchor = decode(0)
        for frame in frames:
            image = decode(frame) if frame else anchor
            state = np.atleast_1d(np.asarray(rows[frame][_STATE], np.float32))
            where = f"episode {entry.index}, frame {frame}"
            yield Observation(anchor, image, tasks[rows[frame]["task_index"]], state, where)


def _read_info(path: Path) -> Mapping[str, Any]:
    check_file(path)
    try:
        info = json.loads(path.read_text("utf-8"))
        version = info["codebase_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no codebase_version ({error!r}); copy it again") from error
    if version not in ("v2.1", "v3.0"):
        raise ValueError(
            f"{path}: codebase_version {version!r} cannot be read, only 'v2.1' and 'v3.0'; "
            "convert the dataset with LeRobot's own scripts"
        )
    needed = ("fps", "features", "data_path", "chunks_size")
    if missing := [key for key in needed if not info.get(key)]:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; copy it again")
    return info


def _choose_camera(root: Path, features: Mapping[str, Any], camera: str | None) -> str:
    cameras = sorted(key for key, of in features.items() if of["dtype"] in ("image", "video"))
    if not cameras:
        raise ValueError(
            f"{root}: no camera, only {sorted(features)}; choose a dataset with images or videos"
        )
    if camera is None and len(cameras) == 1:
        return cameras[0]
    if camera not in cameras:
        raise ValueError(f"{root}: camera must be one of {cameras}, got {camera!r}")
    return camera


def _locate(root: Path, info: Mapping[str, Any], key: str, names: Mapping[str, Any]) -> Path:
    """What a path template of the dataset says, which must not lead out of it."""
    try:
        path = PurePosixPath(info[key].format(**names))
    except (AttributeError, LookupError, ValueError):
        path = PurePosixPath("..")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"{root / INFO}: {key} must be a path inside the dataset with {sorted(names)} in "
            f"braces, got {info.get(key)!r}; copy it again"
        )
    return root / path


def _read_json_lines(path: Path, *keys: str) -> list[tuple[Any, ...]]:
    check_file(path)
    try:
        entries = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
        return [tuple(entry[key] for key in keys) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no {keys} in a line ({error!r}); copy it again") from error


def _read_table(
    path: Path, columns: list[str] | None = None, wanted: list[Any] | None = None
) -> list[dict[str, Any]]:
    check_file(path)
    try:
        # Without partitioning: a folder named key=value on the way would add a column.
        return pq.read_table(path, columns=columns, filters=wanted, partitioning=None).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: expected parquet with columns {columns or 'of tasks'}, got: {error}; "
            "copy it again"
        ) from error


def _decode_image(image: Mapping[str, Any], table: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(image["bytes"]), formats=("PNG", "JPEG")) as opened:
            return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{table}: holds an image that is no whole PNG or JPEG ({error}); copy it again"
        ) from error


def _open_video(path: Path) -> InputContainer:
    try:
        return av.open(str(path))
    except av.FFmpegError as error:
        raise ValueError(f"{path}: not a whole video ({error}); copy it again") from error


def _decode_at(container: InputContainer, time_s: float, period_s: float) -> NDArray[np.uint8]:
    """The frame at `time_s`, to half a frame."""
    first_s, last_s = time_s - period_s / 2, time_s + period_s / 2
    try:
        # In an open group of pictures (x265's default), what follows a key frame may need the group
        # before: without it the decoder drops frames, so start earlier until none is dropped.
        for lead_s in (0.0, 2.0, 20.0, time_s):
            container.seek(int(max(0.0, time_s - lead_s) * av.time_base))
            frame = next((f for f in container.decode(video=0) if f.time >= first_s), None)
            if frame is None or frame.time <= last_s:
                break
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(
            f"{container.name}: cannot be decoded at {time_s:.3f} s ({error!r}); copy it again"
        ) from error
    if frame is None or frame.time > last_s:
        length_s = (container.duration or 0) / av.time_base
        raise ValueError(
            f"{container.name}: no frame at {time_s:.3f} s in a video of {length_s:.3f} s; "
            "copy the video and the meta folder again"
        )
    if frame.is_corrupt:
        raise ValueError(f"{container.name}: damaged at {time_s:.3f} s; copy it again")
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
