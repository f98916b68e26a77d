"""What is in a LeRobot dataset of layout v2.0, v2.1 or v3.0: its episodes, and where they lie.

Goes in: the folder of a dataset. Comes out: its table of contents, checked; no table of frames and
no video is opened. The trade-off: only layouts v2.0 and later, whose videos are files of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import RecordingError
from .tables import Row, check_file, columns_of, read_json, read_lines, read_parquet

INFO = "meta/info.json"
"""What tells a dataset from other folders."""
STATE = "observation.state"
ACTION = "action"
VERSIONS = ("v2.0", "v2.1", "v3.0")
MAX_DRIFT = 0.1
"""Frames that a time in a table may be off the frame that it counts as. Sums of rounded durations
or of float32 steps drift by a few hundredths, and below one half it is clear which frame is meant;
that the video has it there is checked to `runtime.recordings.video.TOLERANCE_S`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An episode in the table of contents."""

    index: int
    num_frames: int
    tasks: tuple[str, ...]
    """Texts that it is listed with; none in some datasets."""
    table: Path
    video: Path | None
    """None where images are in the table."""
    start_s: float
    """Where it starts in the video."""
    end_s: float
    """Where the next one may start; infinite where it has the video to itself."""


@dataclass(frozen=True, slots=True)
class Contents:
    """A dataset, as its meta folder tells it."""

    root: Path
    rate_hz: float
    """Frames per second."""
    camera: str
    """Key of the camera that was chosen."""
    has_actions: bool
    action_names: tuple[str, ...]
    """Of its dimensions; empty where the dataset does not tell."""
    tasks: Mapping[int, str]
    """Texts by task index."""
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class _Info:
    """meta/info.json."""

    root: Path
    version: str
    rate_hz: float
    features: Mapping[str, Any]
    row: Row

    @property
    def is_v2(self) -> bool:
        return self.version.startswith("v2")


def read_contents(root: Path, camera: str | None) -> Contents:
    """
    Args:
        root: where there is a meta/info.json.
        camera: key of the camera; None if the dataset has one only.

    Raises:
        RecordingError: no such camera, or the meta folder cannot be used.
    """
    info = _read_info(root)
    if STATE not in info.features:
        raise RecordingError(
            f"{root}: no {STATE}, only {sorted(info.features)}; choose a dataset with the robot's "
            "state"
        )
    camera = _choose_camera(root, info.features, camera)
    is_video = info.features[camera]["dtype"] == "video"
    chosen = camera if is_video else None
    tasks, entries = _contents_v2(info, chosen) if info.is_v2 else _contents_v3(info, chosen)
    indices = [entry.index for entry in entries]
    if "total_episodes" in info.row.cells and info.row.whole("total_episodes") != len(indices):
        raise RecordingError(
            f"{root / INFO}: counts {info.row.whole('total_episodes')} episodes, the table of "
            f"contents has {len(indices)}; copy the whole meta folder again"
        )
    if twice := sorted({index for index in indices if indices.count(index) > 1}):
        raise RecordingError(
            f"{root}: episode {twice[0]} stands in the table of contents {indices.count(twice[0])} "
            "times; convert the dataset again"
        )
    if is_video and not info.is_v2:
        _check_windows(root, entries, info.rate_hz)
    action = info.features.get(ACTION)
    return Contents(
        root, info.rate_hz, camera, action is not None, _names(action), tasks, tuple(entries)
    )


def _read_info(root: Path) -> _Info:
    path = root / INFO
    row = Row(read_json(path), path, "the object")
    version = row.text("codebase_version")
    if version not in VERSIONS:
        raise RecordingError(
            f"{path}: codebase_version {version!r} cannot be read, only {', '.join(VERSIONS)}; "
            "convert the dataset with LeRobot's own scripts"
        )
    rate_hz, features = row.number("fps"), row.cells.get("features")
    if not 0 < rate_hz <= 1000:
        raise RecordingError(f"{path}: fps must be in (0, 1000], got {rate_hz:g}; mend it")
    if not isinstance(features, dict) or not all(
        isinstance(feature, dict) and "dtype" in feature for feature in features.values()
    ):
        raise RecordingError(
            f"{path}: features must be an object that gives each a dtype; copy it again"
        )
    return _Info(root, version, rate_hz, features, row)


def _choose_camera(root: Path, features: Mapping[str, Any], camera: str | None) -> str:
    cameras = sorted(key for key, of in features.items() if _is_camera(of))
    if not cameras:
        raise RecordingError(
            f"{root}: no camera, only {sorted(features)}; choose a dataset with images or videos"
        )
    if camera is None and len(cameras) == 1:
        return cameras[0]
    if camera not in cameras:
        raise RecordingError(
            f"{root}: --camera (CAMERA= in make) must be one of {', '.join(cameras)}; "
            + ("none is named" if camera is None else f"got {camera!r}")
        )
    return camera


def _names(feature: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A list, or one under a heading of LeRobot's older versions, {"motors": [...]}."""
    names = (feature or {}).get("names")
    if isinstance(names, dict) and len(names) == 1:
        (names,) = names.values()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _is_camera(feature: Mapping[str, Any]) -> bool:
    """Whether it shows colours: a depth map is kept as a video too, and is none."""
    about = feature.get("info")
    is_depth = isinstance(about, dict) and bool(about.get("video.is_depth_map"))
    return feature["dtype"] in ("image", "video") and not is_depth


def _tasks(rows: Iterable[tuple[Row, str]]) -> Mapping[int, str]:
    """Texts by task index."""
    tasks: dict[int, str] = {}
    for row, text in rows:
        index = row.whole("task_index")
        if tasks.setdefault(index, text) != text:
            raise RecordingError(
                f"{row.path}: task {index} has two texts, {tasks[index]!r} and {text!r}; mend the "
                "table, or convert the dataset again"
            )
    return tasks


def _contents_v2(info: _Info, camera: str | None) -> tuple[Mapping[int, str], list[Entry]]:
    """Instructions by task, and episodes, each with a table and a video of its own."""
    rows = read_lines(info.root / "meta/tasks.jsonl")
    tasks = _tasks((row, row.text("task")) for row in rows)
    chunks_size = info.row.whole("chunks_size")
    if chunks_size < 1:
        raise RecordingError(f"{info.root / INFO}: chunks_size must be at least 1, got 0; mend it")
    entries = []
    for row in read_lines(info.root / "meta/episodes.jsonl"):
        index = row.whole("episode_index")
        row = row.called(f"episode {index}")
        names = {"episode_chunk": index // chunks_size, "episode_index": index}
        table, video = _locate(info, names, names, camera)
        entries.append(
            Entry(index, row.whole("length"), _listed(row), table, video, 0.0, float("inf"))
        )
    return tasks, entries


def _contents_v3(info: _Info, camera: str | None) -> tuple[Mapping[int, str], list[Entry]]:
    """Instructions by task, and episodes, several to a table and to a video of `camera`."""
    entries = []
    for file in sorted(info.root.glob("meta/episodes/*/*.parquet")):
        entries += [_entry_v3(info, row, camera) for row in _rows_v3(file, camera)]
    return _tasks_v3(info.root / "meta/tasks.parquet"), entries


def _tasks_v3(path: Path) -> Mapping[int, str]:
    found = []
    for row in read_parquet(path):
        # The text is the index of a pandas table, whose column has had more than one name.
        texts = [value for value in row.cells.values() if isinstance(value, str)]
        if len(texts) != 1:
            raise RecordingError(
                f"{path}: {row.name} must have a task_index and one text, got {dict(row.cells)}; "
                "mend the table, or convert the dataset again"
            )
        found.append((row, texts[0]))
    return _tasks(found)


def _rows_v3(file: Path, camera: str | None) -> Iterator[Row]:
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    optional = ["tasks"]
    if camera is not None:
        columns += [f"videos/{camera}/{n}" for n in ("chunk_index", "file_index", "from_timestamp")]
        optional.append(f"videos/{camera}/to_timestamp")
    check_file(file)
    there = columns_of(file)
    for row in read_parquet(file, [*columns, *(name for name in optional if name in there)]):
        yield row.called(f"episode {row.whole('episode_index')}")


def _entry_v3(info: _Info, row: Row, camera: str | None) -> Entry:
    def part(of: str) -> dict[str, int]:
        return {name: row.whole(f"{of}/{name}") for name in ("chunk_index", "file_index")}

    in_video = {} if camera is None else part(f"videos/{camera}")
    table, video = _locate(info, part("data"), in_video, camera)
    num_frames, start_s, end_s = row.whole("length"), 0.0, 0.0
    if camera is not None:
        start_s = row.number(f"videos/{camera}/from_timestamp")
        end_s = start_s + num_frames / info.rate_hz
        if f"videos/{camera}/to_timestamp" in row.cells:
            end_s = row.number(f"videos/{camera}/to_timestamp")
    index = row.whole("episode_index")
    return Entry(index, num_frames, _listed(row), table, video, start_s, end_s)


def _listed(row: Row) -> tuple[str, ...]:
    tasks = row.cells.get("tasks")
    return tuple(t for t in tasks if isinstance(t, str)) if isinstance(tasks, list) else ()


def _locate(
    info: _Info, in_data: Mapping[str, int], in_videos: Mapping[str, int], camera: str | None
) -> tuple[Path, Path | None]:
    table = _path(info, "data_path", in_data)
    if camera is None:
        return table, None
    return table, _path(info, "video_path", {**in_videos, "video_key": camera})


def _path(info: _Info, key: str, names: Mapping[str, Any]) -> Path:
    """What a path template of the dataset says, which must not lead out of it."""
    template = info.row.cells.get(key)
    try:
        path = PurePosixPath(template.format(**names))  # type: ignore[union-attr]
    except (AttributeError, LookupError, ValueError):
        path = PurePosixPath("..")
    if path.is_absolute() or ".." in path.parts:
        raise RecordingError(
            f"{info.root / INFO}: {key} must be a path inside the dataset with {sorted(names)} in "
            f"braces, got {template!r}; copy it again"
        )
    return info.root / path


def _check_windows(root: Path, entries: list[Entry], rate_hz: float) -> None:
    """Refuse starts that are no whole number of frames into a video, or that overlap.

    What lies before an episode in its video is other episodes and perhaps frames of none, so its
    start is a whole number of frames behind theirs. Sums of rounded durations drift away from that,
    a little more with every episode, and end as the frame next door.
    """
    videos: dict[Path | None, list[Entry]] = defaultdict(list)
    for entry in entries:
        videos[entry.video].append(entry)
    for found in videos.values():
        num_before, before_s = 0, 0.0
        for entry in sorted(found, key=lambda entry: entry.start_s):
            num_before += max(0, round((entry.start_s - before_s) * rate_hz))
            num_frames = round((entry.end_s - entry.start_s) * rate_hz)
            starts = (entry.start_s, num_before)
            ends = (entry.end_s, num_before + max(num_frames, entry.num_frames))
            for name, (time_s, number) in (("from", starts), ("to", ends)):
                drift = time_s * rate_hz - number
                if abs(drift) > MAX_DRIFT:
                    raise RecordingError(
                        f"{root}: {name}_timestamp of episode {entry.index} is {time_s:.6g} s, its "
                        f"frames in {entry.video} say {number / rate_hz:.6g} s: a drift of "
                        f"{drift:.2f} frames (see LeRobot's issue 3177); convert the "
                        "dataset again"
                    )
            num_before, before_s = ends[1], entry.end_s
