"""LeRobot datasets of layout v2.0, v2.1 and v3.0: episodes to calibrate on or to replay.

Goes in: the folder of a dataset. Comes out: its episodes, whose tables and videos are opened when
frames are drawn. The trade-off: pyarrow and av read them, which a robot does without; there, replay
what `python -m quant convert` made of a dataset on the workstation.

S = state dimension, A = action dimension, H, W = image height and width.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import ObservationError, RecordingError
from ..prompt import WHITE_SPACE, check_instruction
from .lerobot_contents import ACTION, INFO, MAX_DRIFT, STATE, Contents, Entry, read_contents
from .recording import FRAME, Recording, Stream
from .recording import STATE as STATE_STREAM
from .tables import Row, check_file, read_parquet
from .video import Video

__all__ = ["INFO", "LeRobotEpisode", "LeRobotFrame", "is_lerobot", "read_lerobot"]


@dataclass(frozen=True, slots=True, eq=False)
class LeRobotFrame:
    """One row of an episode."""

    image: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    state: NDArray[np.float32]
    """[S] in robot units."""
    instruction: str


@dataclass(frozen=True, slots=True)
class LeRobotEpisode:
    """One episode of a dataset; nothing is read yet."""

    contents: Contents
    entry: Entry

    @property
    def name(self) -> str:
        return f"episode {self.entry.index}"

    @property
    def num_frames(self) -> int:
        return self.entry.num_frames

    @property
    def instructions(self) -> tuple[str, ...]:
        """Those that it may be given: the ones it is listed with, or all of the dataset."""
        texts = self.entry.tasks or tuple(self.contents.tasks.values())
        return tuple(text.strip(WHITE_SPACE) for text in texts if text.strip(WHITE_SPACE))

    @property
    def files(self) -> tuple[Path, ...]:
        """That have to be there to read it."""
        video = self.entry.video
        return (self.entry.table,) if video is None else (self.entry.table, video)

    def read(self, frames: Sequence[int]) -> Iterator[LeRobotFrame]:
        """The frames asked for, by their place in the episode, read as they are drawn.

        Raises:
            RecordingError: what is damaged, by file, episode, frame and dimension.
        """
        rows = self._rows(STATE)
        states_NS = self._vectors(rows, STATE)
        with self._images(rows, frames) as image_of:
            for frame in frames:
                said = self._instruction(rows[frame])
                yield LeRobotFrame(image_of(frame), states_NS[frame], said)

    def recording(self, max_frames: int | None = None) -> Recording:
        """The whole episode, or its first `max_frames`, in memory, to be replayed or saved.

        Raises:
            RecordingError: what is damaged, or the instruction changes in mid-episode.
        """
        has_actions = self.contents.has_actions
        rows = self._rows(STATE, *([ACTION] if has_actions else []))
        if not rows:
            raise self._unusable("has no frame")
        if len(said := sorted({self._instruction(row) for row in rows})) != 1:
            raise self._unusable(f"has {len(said)} instructions, {said}; a recording has one")
        num_frames = min(len(rows), max_frames or len(rows))
        with self._images(rows, range(num_frames)) as image_of:
            images = [image_of(frame) for frame in range(num_frames)]
        if len(shapes := sorted({image.shape for image in images})) != 1:
            raise self._unusable(f"has images of several sizes, {shapes}")
        states_NS = self._vectors(rows, STATE)[:num_frames]
        at_s = np.array([row.number("timestamp") for row in rows[:num_frames]])
        frame_ids = np.arange(num_frames, dtype=np.int64)
        actions_NA = self._vectors(rows, ACTION)[:num_frames] if has_actions else None
        try:
            return Recording(
                instruction=said[0],
                task=self.contents.root.resolve().name,
                seed=self.entry.index,
                rate_hz=self.contents.rate_hz,
                streams={
                    FRAME: Stream(values=np.stack(images), at_s=at_s, frame_ids=frame_ids),
                    STATE_STREAM: Stream(values=states_NS, at_s=at_s),
                },
                actions=actions_NA,
                action_names=self._action_names(actions_NA),
            )
        except RecordingError as error:
            raise self._unusable(f"makes no recording: {error}") from None

    def _action_names(self, actions_NA: NDArray[np.float32] | None) -> tuple[str, ...] | None:
        """None too where info.json has names of another number of dimensions."""
        names = self.contents.action_names
        return (
            names if actions_NA is not None and names and len(names) == actions_NA[0].size else None
        )

    def _rows(self, *columns: str) -> list[Row]:
        """Of all frames in their order, each `1 / rate_hz` after the one before."""
        entry, path = self.entry, self.entry.table
        wanted = [("episode_index", "==", entry.index)]
        columns = ("frame_index", "timestamp", "task_index", *columns)
        rows = sorted(read_parquet(path, columns, where=wanted), key=_frame_index)
        first = _frame_index(rows[0]) if rows else 0
        numbers = [_frame_index(row) for row in rows]
        expected = list(range(first, first + entry.num_frames))
        if numbers != expected:
            missing = sorted(set(expected) - set(numbers))
            what = f"lacks frame {missing[0]}" if missing else "has too many frames"
            trimmed = f", and starts at frame {first}: was it trimmed?" if first else ""
            raise RecordingError(
                f"{path}: {what} of episode {entry.index}, which has {entry.num_frames} according "
                f"to the meta folder{trimmed}; copy both again"
            )
        start = self._start_frame(rows)
        for place, row in enumerate(rows):
            drift = row.number("timestamp") * self.contents.rate_hz - (start + place)
            if abs(drift) > MAX_DRIFT:
                raise RecordingError(
                    f"{path}: {self.name}, frame {numbers[place]} is at "
                    f"{row.number('timestamp'):.6g} s, {self.contents.rate_hz:g} frames per second "
                    f"lead to {(start + place) / self.contents.rate_hz:.6g} s: a drift of "
                    f"{drift:.2f} frames; convert the dataset again"
                )
        return [row.called(f"{self.name}, frame {_frame_index(row)}") for row in rows]

    def _start_frame(self, rows: list[Row]) -> int:
        """Frames of the video before the first row; some where an episode was trimmed."""
        return round(rows[0].number("timestamp") * self.contents.rate_hz) if rows else 0

    @contextmanager
    def _images(
        self, rows: list[Row], frames: Sequence[int]
    ) -> Iterator[Callable[[int], NDArray[np.uint8]]]:
        """A function from one of `frames` to its image."""
        if self.entry.video is None:
            pictures = self._pictures([_frame_index(rows[frame]) for frame in frames])
            yield lambda frame: self._decode(rows[frame], pictures[_frame_index(rows[frame])])
            return
        start, rate_hz = self._start_frame(rows), self.contents.rate_hz
        with closing(Video(self.entry.video, rate_hz)) as video:
            yield lambda frame: video.at(
                self.entry.start_s + self._in_window(start + frame) / rate_hz
            )

    def _in_window(self, frame: int) -> int:
        """`frame` of this episode's part of the video, which must not be another's."""
        num_frames = (self.entry.end_s - self.entry.start_s) * self.contents.rate_hz
        if frame + 1 > num_frames + MAX_DRIFT:
            raise RecordingError(
                f"{self.entry.table}: {self.name} has rows as far as frame {frame} of its video, "
                f"whose part ends after {num_frames:.2f}; convert the dataset again"
            )
        return frame

    def _pictures(self, numbers: list[int]) -> dict[int, Any]:
        """Cells with images, by frame index."""
        entry, camera = self.entry, self.contents.camera
        wanted = [("episode_index", "==", entry.index), ("frame_index", "in", numbers)]
        found = read_parquet(entry.table, ["frame_index", camera], where=wanted)
        return {_frame_index(row): row.cells[camera] for row in found}

    def _decode(self, row: Row, cell: Any) -> NDArray[np.uint8]:
        """An image in the table, or in a file of the dataset that the table names."""
        named = f"{row.path}: {row.name}, {self.contents.camera}"
        data, path = (
            (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (None, cell)
        )
        if data is None:
            if not isinstance(path, str) or _leads_out(path):
                raise RecordingError(
                    f"{named} holds neither an image nor a path inside the dataset, but {path!r}; "
                    "convert the dataset again, with its images"
                )
            check_file(self.contents.root / path)
            data, named = (self.contents.root / path).read_bytes(), f"{self.contents.root / path}"
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as opened:
                return np.asarray(opened.convert("RGB"))
        except UnidentifiedImageError:
            raise RecordingError(
                f"{named} is no PNG or JPEG, it begins with {data[:8]!r}; copy it again"
            ) from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise RecordingError(
                f"{named} is no whole PNG or JPEG ({error}); copy it again"
            ) from error

    def _vectors(self, rows: list[Row], column: str) -> NDArray[np.float32]:
        """Of all rows, [N, S] or [N, A]."""
        try:
            values = [np.atleast_1d(np.asarray(row.cells[column], np.float32)) for row in rows]
            stacked = np.stack(values)
        except (ValueError, TypeError) as error:
            raise RecordingError(
                f"{self.entry.table}: {self.name} has a {column} that is no vector of numbers, or "
                f"of another length than the rest ({error}); convert the dataset again"
            ) from error
        if stacked.ndim != 2:
            raise self._unusable(
                f"makes no recording: values of {column} are {list(stacked.shape[1:])} in a frame, "
                "and a vector is wanted"
            )
        for place, dimension in np.argwhere(~np.isfinite(stacked))[:1].tolist():
            raise RecordingError(
                f"{self.entry.table}: {rows[place].name}, dimension {dimension} of {column} is "
                f"NaN or infinite; mend it, or {self._leave_out}"
            )
        return stacked

    def _instruction(self, row: Row) -> str:
        task = row.whole("task_index")
        if task not in self.contents.tasks:
            raise RecordingError(
                f"{self.entry.table}: task_index {task} in {self.name}, but the task table has "
                f"{sorted(self.contents.tasks)}; copy the meta folder again"
            )
        text = self.contents.tasks[task].strip(WHITE_SPACE)
        try:
            check_instruction(text, ())
        except ObservationError as error:
            raise self._unusable(f"cannot be used, task {task} {text!r}: {error}") from None
        return text

    def _unusable(self, what: str) -> RecordingError:
        return RecordingError(
            f"{self.contents.root}: {self.name} {what}; mend it, or {self._leave_out}"
        )

    @property
    def _leave_out(self) -> str:
        return f"leave it out: {how_to_convert(self.contents.root)} --leave-out {self.entry.index}"


def is_lerobot(path: Path) -> bool:
    """Whether `path` is the folder of a LeRobot dataset."""
    return (path / INFO).is_file()


def read_lerobot(root: Path, camera: str | None = None) -> list[LeRobotEpisode]:
    """The episodes of the dataset in `root`, in the order of its table of contents.

    Args:
        root: where there is a meta/info.json.
        camera: key of the camera; None if the dataset has one only.

    Raises:
        RecordingError: no such camera, pyarrow or av are missing, or info.json or the table of
            contents cannot be used.
    """
    try:
        import av  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise RecordingError(
            f"{root}: reading a LeRobot dataset needs pyarrow and av ({error}); convert it on the "
            f"workstation: {how_to_convert(root)}"
        ) from None
    contents = read_contents(root, camera)
    return [LeRobotEpisode(contents, entry) for entry in contents.entries]


def how_to_convert(root: Path) -> str:
    """The command, to be copied into a shell."""
    return shlex.join(["python", "-m", "quant", "convert", str(root), "--out", "DIR"])


def _frame_index(row: Row) -> int:
    return row.whole("frame_index")


def _leads_out(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts
