"""Recordings as a LeRobot dataset of layout v3.0, finished when it is written.

Goes in: recordings of one robot. Comes out: a folder that LeRobot's own reader loads
(huggingface/lerobot 0.4, `LeRobotDataset(repo_id, root=...)`), with its statistics. The trade-off:
every episode has a table and a video of its own, so no time in a video is a sum of others, and
there are more files than LeRobot would make. Videos are H.264: states and actions come back to the
bit, pictures nearly. pyarrow and av are imported when they are needed: a robot does without.

N = frame of an episode, S = vector length, C = colour, H, W = image height and width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RecordingError
from .lerobot_contents import ACTION, INFO, STATE
from .recording import STATE as STATE_STREAM
from .recording import Recording

CHUNK = 1000
"""Files of one folder."""
QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
CRF = 18
"""Of H.264: nobody sees a difference."""
KEY_FRAMES = 2
"""Every second frame is one, as in LeRobot's own files, so that any frame is found quickly."""
TABLE = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TASKS = "meta/tasks.parquet"
STATS = "meta/stats.json"
_COUNTERS = ("frame_index", "episode_index", "index", "task_index")

Stats = dict[str, list[Any]]


def write_lerobot(recordings: Iterable[tuple[str, Recording]], root: Path) -> int:
    """Write a dataset into `root`, an empty folder.

    Args:
        recordings: name and recording of every episode; of one robot, and with actions.
        root: of the dataset.

    Returns:
        The number of episodes.

    Raises:
        RecordingError: pyarrow or av are missing, there is no episode, or one has no actions, no
            whole number of frames per second, or other streams than the first.
    """
    try:
        import av  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise RecordingError(
            f"{root}: writing a LeRobot dataset needs pyarrow and av ({error}); do it on the "
            "workstation"
        ) from None
    dataset = _Dataset(root)
    for name, recording in recordings:
        dataset.add(name, recording)
    dataset.finish()
    return len(dataset.entries)


@dataclass(slots=True)
class _Dataset:
    """What is written so far."""

    root: Path
    features: dict[str, Any] = field(default_factory=dict)
    rate_hz: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    num_frames: int = 0
    vectors: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    """By feature, what was written of it, per episode."""
    shades: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """By camera, [C, 256] how often each shade was seen."""

    def add(self, name: str, recording: Recording) -> None:
        """An episode more."""
        self._check(name, recording)
        number, length = len(self.entries), recording.num_frames
        task = self.tasks.setdefault(recording.instruction, len(self.tasks))
        place = {"chunk_index": number // CHUNK, "file_index": number % CHUNK}
        frames = np.arange(length)
        columns: dict[str, NDArray[Any]] = {
            **{
                key: recording.streams[stream].values for key, stream in _vectors(recording).items()
            },
            ACTION: _actions(name, recording),
            "timestamp": (frames / self.rate_hz).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(length, number),
            "index": frames + self.num_frames,
            "task_index": np.full(length, task),
        }
        _write_table(self.root / TABLE.format(**place), columns)
        entry = {"episode_index": number, "tasks": [recording.instruction], "length": length}
        entry |= {f"data/{key}": value for key, value in place.items()}
        entry |= {"dataset_from_index": self.num_frames}
        entry |= {"dataset_to_index": self.num_frames + length}
        stats = {key: _vector_stats(values) for key, values in columns.items()}
        for key, stream in _cameras(recording).items():
            images = recording.streams[stream].values
            about = _write_video(
                self.root / VIDEO.format(video_key=key, **place), images, self.rate_hz
            )
            self.features[key].setdefault("info", about)
            entry |= {f"videos/{key}/{name}": value for name, value in place.items()}
            entry |= {f"videos/{key}/from_timestamp": 0.0}
            entry |= {f"videos/{key}/to_timestamp": length / self.rate_hz}
            shades = _shades(images)
            stats[key] = _picture_stats(shades, length)
            self.shades[key] = self.shades.get(key, np.zeros_like(shades)) + shades
        entry |= {f"stats/{k}/{n}": value for k, of in stats.items() for n, value in of.items()}
        entry |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self.entries.append(entry)
        self.num_frames += length
        for key, values in columns.items():
            self.vectors.setdefault(key, []).append(values)

    def finish(self) -> None:
        """Everything that stands in the meta folder."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.entries:
            raise RecordingError(f"{self.root}: no episode to write; name recordings")
        (self.root / EPISODES).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self.entries), self.root / EPISODES)
        _write_tasks(self.root / TASKS, list(self.tasks))
        stats = {key: _vector_stats(np.concatenate(of)) for key, of in self.vectors.items()}
        stats |= {key: _picture_stats(of, self.num_frames) for key, of in self.shades.items()}
        _write_json(self.root / STATS, stats)
        _write_json(
            self.root / INFO,
            {
                "codebase_version": "v3.0",
                "robot_type": None,
                "total_episodes": len(self.entries),
                "total_frames": self.num_frames,
                "total_tasks": len(self.tasks),
                "chunks_size": CHUNK,
                "data_files_size_in_mb": 100,
                "video_files_size_in_mb": 200,
                "fps": self.rate_hz,
                "splits": {"train": f"0:{len(self.entries)}"},
                "data_path": TABLE,
                "video_path": VIDEO if self.shades else None,
                "features": self.features,
            },
        )

    def _check(self, name: str, recording: Recording) -> None:
        """Refuse what is not like the first; what the dataset is like is said by that."""
        if recording.rate_hz % 1:
            raise RecordingError(
                f"{name}: {recording.rate_hz:g} steps per second; LeRobot counts whole frames per "
                "second, so record at a whole rate"
            )
        features = _features(name, recording)
        if not self.features:
            self.features, self.rate_hz = features, int(recording.rate_hz)
            return
        shapes = {key: tuple(of["shape"]) for key, of in features.items()}
        own = {key: tuple(of["shape"]) for key, of in self.features.items()}
        if (shapes, recording.rate_hz) != (own, self.rate_hz):
            other = sorted(k for k in shapes.keys() | own.keys() if shapes.get(k) != own.get(k))
            raise RecordingError(
                f"{name}: unlike the episodes before, in {', '.join(other) or 'steps per second'}; "
                "a dataset is of one robot: write two"
            )


def _vectors(recording: Recording) -> dict[str, str]:
    """Feature -> stream.

    Raises:
        RecordingError: a stream of depth, which a dataset would hold as a video.
    """
    for name, stream in recording.streams.items():
        if stream.values.ndim == 3:
            raise RecordingError(
                f"stream {name!r} is depth, which is not written to datasets; leave it out"
            )
    return {
        STATE if name == STATE_STREAM else f"observation.{name}": name
        for name, stream in recording.streams.items()
        if stream.frame_ids is None
    }


def _cameras(recording: Recording) -> dict[str, str]:
    """Likewise."""
    return {
        f"observation.images.{name}": name
        for name, stream in recording.streams.items()
        if stream.frame_ids is not None
    }


def _actions(name: str, recording: Recording) -> NDArray[np.float32]:
    if recording.actions is None:
        raise RecordingError(f"{name}: holds no actions, which a dataset is of; leave it out")
    return recording.actions


def _features(name: str, recording: Recording) -> dict[str, Any]:
    """As info.json lists them."""
    found: dict[str, Any] = {}
    for key, stream in _vectors(recording).items():
        size = recording.streams[stream].values.shape[1]
        names = [f"{stream}_{number}" for number in range(size)]
        found[key] = {"dtype": "float32", "shape": [size], "names": names}
    size = _actions(name, recording).shape[1]
    names = list(recording.action_names or ()) or [f"action_{number}" for number in range(size)]
    found[ACTION] = {"dtype": "float32", "shape": [size], "names": names}
    for key, stream in _cameras(recording).items():
        shape = list(recording.streams[stream].values.shape[1:])
        found[key] = {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}
    found["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    return found | {key: {"dtype": "int64", "shape": [1], "names": None} for key in _COUNTERS}


def _write_table(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """[N] or [N, S] per column; a vector of one number is a number, as LeRobot has it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for key, values in columns.items():
        flat = pa.array(np.ascontiguousarray(values).ravel())
        size = values.shape[1] if values.ndim == 2 else 1
        arrays[key] = flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path)


def _write_tasks(path: Path, texts: Sequence[str]) -> None:
    """A table with the texts as its index, which LeRobot reads with pandas."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(name: str, kind: str, numpy_kind: str) -> dict[str, Any]:
        named = {"name": name, "field_name": name, "metadata": None}
        return named | {"pandas_type": kind, "numpy_type": numpy_kind}

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": np.arange(len(texts)), "task": list(texts)})
    table = table.replace_schema_metadata({b"pandas": json.dumps(pandas).encode()})
    pq.write_table(table, path)


def _write_video(path: Path, images: NDArray[np.uint8], rate_hz: int) -> dict[str, Any]:
    """[N, H, W, 3]; what info.json says of it."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    _, height, width, _ = images.shape
    # Colours at half the resolution take an even size.
    pixels = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
    with av.open(str(path), "w") as container:
        options = {"crf": str(CRF), "g": str(KEY_FRAMES), "bf": "0"}
        stream = container.add_stream("libx264", rate_hz, options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": pixels,
        "video.is_depth_map": False,
        "video.fps": rate_hz,
        "video.channels": 3,
        "has_audio": False,
    }


def _vector_stats(values: NDArray[Any]) -> Stats:
    """Per dimension, of [N] or [N, S]."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    quantiles = np.quantile(rows, QUANTILES, axis=0)
    named = found | {f"q{q * 100:02.0f}": of for q, of in zip(QUANTILES, quantiles, strict=True)}
    return {name: of.tolist() for name, of in named.items()} | {"count": [len(rows)]}


def _shades(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each shade of each colour is there, [C, 256]."""
    return np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)])


def _picture_stats(shades: NDArray[np.int64], num_frames: int) -> Stats:
    """Per colour, [C, 1, 1] with shades from 0 to 1, over every pixel."""
    scale = np.arange(256) / 255
    seen = shades > 0
    total = shades.sum(1)
    mean = shades @ scale / total
    square = shades @ scale**2 / total
    below = np.cumsum(shades, axis=1) / total[:, None]
    found = {
        "min": scale[seen.argmax(1)],
        "max": scale[255 - seen[:, ::-1].argmax(1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(square - mean**2, 0)),
    }
    found |= {f"q{q * 100:02.0f}": scale[(below >= q).argmax(1)] for q in QUANTILES}
    shaped = {name: of.reshape(3, 1, 1).tolist() for name, of in found.items()}
    return shaped | {"count": [num_frames]}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4, allow_nan=False) + "\n")
