"""The journal of an episode that was run: all that replaying it takes, in one zip file.

Goes in: what the loop looked at, what its policy was told, asked and answered, and a row of figures
per control tick. Comes out: the same, bit for bit. Written as it happens, and whole or not at all.
The trade-off: any tool opens it, and to look something up in it is to read the lines before.

    readme.txt        what this is; it comes first, so that the file is known by its beginning
    journal.json      what ran where: versions, limits, pace; how it ended, what was lost
    ticks/*.npy       figures per tick, as rows of `tick_type`
    events/*.jsonl    in the order in which they took effect: start, told, act; and every look
    values/*.png|npy  pictures and other large values, each once; events name them by number

A = action dimension, H, W = image height and width.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RecordingError
from ..storage.files import Kind, bears_marks
from .png import decode_png, encode_png_quickly

MARK = "anchorvla journal"
ABOUT = "journal.json"
JOURNAL = Kind("the journal of an episode", (MARK.encode(),))
README = f"""{MARK}: an episode as it was run. anchorvla replay runs it again and compares.
{ABOUT}: what ran where, and how it ended. ticks/: figures per control tick, for numpy.load.
events/: what the policy was told, asked and answered. values/: what was seen.
"""
SUFFIX = ".zip"
VERSION = 1
SMALL_BYTES = 4096
"""Up to here a value stands in its event."""
BLOCK = 256
"""Events of one member."""
RECENT = 4096
"""Large values of which it is known that they are there already."""
LOST = {"lost": True}
"""In the place of a value that nobody had the time to write."""

Event = Mapping[str, Any]


def tick_type(num_actions: int) -> np.dtype[Any]:
    """A row of figures per control tick. Seconds are of the loop's clock, NaN where there are none.

    step: control step. began_s, late_s: when the tick began, and how late. dropped: ticks before it
    that were missed. looked_s: when an observation was asked for to think about. look: number of
    the last look; -1 before the first. asked, fresh: numbers of the question asked and of the one
    whose chunk came; 0 for none. reset: whether the policy was reset. think_s: what the thought
    took. acted_s: when the action was judged. age_s: of the observation then. due, action: whether
    the policy had one, and which. sent, command: the same of what the robot was sent; it held
    otherwise. said: what the guard had to say, an index of `interventions`. record_s: what all this
    noting cost, of the machine's clock.
    """
    seconds = ["began_s", "late_s", "looked_s", "think_s", "acted_s", "age_s", "record_s"]
    counts = ["step", "dropped", "look", "asked", "fresh", "said"]
    return np.dtype(
        [(name, np.float64) for name in seconds]
        + [(name, np.int64) for name in counts]
        + [(name, np.bool_) for name in ("reset", "due", "sent")]
        + [(name, np.float32, (num_actions,)) for name in ("action", "command")]
    )


class JournalWriter:
    """In a `with` statement; `finish` makes it whole. One thread uses it."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path, "w")  # stored: pictures are compressed already
        self._archive.writestr("readme.txt", README)
        self._events: list[str] = []
        self._numbers = {"events": 0, "ticks": 0, "values": 0}
        self._recent: dict[bytes, int] = {}

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with contextlib.nullcontext() if error is None else contextlib.suppress(OSError):
            self._archive.close()

    def event(self, kind: str, **fields: Any) -> None:
        """Arrays, and mappings of them, among them."""
        line = {"kind": kind} | {name: self._stored(value) for name, value in fields.items()}
        self._events.append(json.dumps(line))
        if len(self._events) >= BLOCK:
            self._flush()

    def ticks(self, rows: NDArray[Any]) -> None:
        """[n] of `tick_type`."""
        self._put("ticks", "npy", _npy(rows))

    def finish(self, about: Mapping[str, Any]) -> None:
        """
        Args:
            about: what JSON can hold.
        """
        self._flush()
        head = {MARK: VERSION, **about}
        self._archive.writestr(ABOUT, json.dumps(head, indent=1, allow_nan=False) + "\n")

    def _flush(self) -> None:
        if self._events:
            self._put("events", "jsonl", ("\n".join(self._events) + "\n").encode())
            self._events.clear()

    def _put(self, room: str, suffix: str, data: bytes) -> None:
        self._archive.writestr(f"{room}/{self._numbers[room]:06d}.{suffix}", data)
        self._numbers[room] += 1

    def _stored(self, value: Any) -> Any:
        """As it stands in a line."""
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            return {str(key): self._stored(item) for key, item in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        if value.nbytes <= SMALL_BYTES:
            data = base64.b64encode(value.tobytes()).decode()
            return {"base64": data, "dtype": value.dtype.str, "shape": list(value.shape)}
        return {"value": self._large(value)}

    def _large(self, value: NDArray[Any]) -> int:
        """Its number; the same content, not long ago, has the same."""
        array = np.ascontiguousarray(value)
        key = hashlib.blake2b(array.data, digest_size=16).digest()
        key += f"{array.dtype.str}{array.shape}".encode()
        if (number := self._recent.get(key)) is not None:
            return number
        is_picture = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
        data = encode_png_quickly(array) if is_picture else _npy(array)
        number = self._numbers["values"]
        self._put("values", "png" if is_picture else "npy", data)
        self._recent[key] = number
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]
        return number


class Journal:
    """An open journal; close it.

    Raises:
        RecordingError: the file is missing, damaged, or no journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise RecordingError(f"{path}: no such file; check the path") from None
        except OSError as error:
            raise RecordingError(
                f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
            ) from None
        except zipfile.BadZipFile as error:
            raise RecordingError(
                f"{path}: no journal of an episode, or cut short ({error}); name a file that "
                "anchorvla run --record wrote"
            ) from None
        try:
            self._names = frozenset(self._archive.namelist())
            self.about = self._about()
            blocks = [np.load(io.BytesIO(data), allow_pickle=False) for data in self._read("ticks")]
            self.ticks: NDArray[Any] = (
                np.concatenate(blocks) if blocks else np.empty(0, tick_type(self.num_actions))
            )
            self.events: list[dict[str, Any]] = [
                json.loads(line) for data in self._read("events") for line in data.splitlines()
            ]
        except BaseException as error:
            self._archive.close()
            if isinstance(error, ValueError | KeyError | EOFError) and not isinstance(
                error, RecordingError
            ):
                raise self._damaged(error) from error
            raise

    def close(self) -> None:
        self._archive.close()

    @property
    def num_actions(self) -> int:
        """A."""
        return len(self.about["robot"]["low"])

    @property
    def interventions(self) -> list[tuple[str, ...]]:
        """What the guard had to say, by the number in `ticks["said"]`."""
        return [tuple(kinds) for kinds in self.about["interventions"]]

    def named(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [event for event in self.events if event["kind"] == kind]

    def value(self, stored: Any) -> Any:
        """What `JournalWriter.event` was given; arrays are read-only.

        Raises:
            RecordingError: it was lost when it was recorded, or is damaged.
        """
        if not isinstance(stored, dict):
            return stored
        if stored == LOST:
            raise RecordingError(
                f"{self.path}: a picture was lost when it was recorded, since the disk was too "
                "slow; record on a faster one, or smaller pictures"
            )
        try:
            if "base64" in stored:
                data = base64.b64decode(stored["base64"], validate=True)
                return np.frombuffer(data, stored["dtype"]).reshape(stored["shape"])
            if "value" in stored:
                return self._large(int(stored["value"]))
        except (ValueError, TypeError, KeyError, EOFError) as error:
            raise self._damaged(error) from error
        return {key: self.value(item) for key, item in stored.items()}

    def _large(self, number: int) -> NDArray[Any]:
        names = {f"values/{number:06d}.{suffix}" for suffix in ("png", "npy")}
        for name in names & self._names:
            data = self._member(name)
            if name.endswith("png"):
                return decode_png(data, number)
            array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
            return array
        raise RecordingError(f"{self.path}: lacks value {number}; copy it again")

    def _about(self) -> dict[str, Any]:
        found = json.loads(self._member(ABOUT)) if ABOUT in self._names else None
        version = found.get(MARK) if isinstance(found, dict) else None
        if version is None:
            raise RecordingError(
                f"{self.path}: no journal of a run, as anchorvla run --record writes it; to see a "
                f"policy on a recording: anchorvla run BUNDLE --episodes {self.path} --report PAGE"
            )
        if version != VERSION:
            raise RecordingError(
                f"{self.path}: a journal of version {version}, this program reads {VERSION}; "
                "record it again"
            )
        assert isinstance(found, dict)
        return found

    def _read(self, room: str) -> Iterator[bytes]:
        names = [name for name in self._names if name.startswith(f"{room}/")]
        return (self._member(name) for name in sorted(names))

    def _member(self, name: str) -> bytes:
        try:
            return self._archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> RecordingError:
        return RecordingError(f"{self.path}: damaged ({error}); copy or record it again")


def foreign(folder: Path) -> str | None:
    """What in a folder is no journal of ours; None if all are."""
    for path in sorted(folder.iterdir()):
        if path.suffix != SUFFIX or not path.is_file() or not bears_marks(path, JOURNAL):
            return f"{path.name} is in it, which is not {JOURNAL.words}"
    return None


def free_path(folder: Path, name: str) -> Path:
    """A new file for an episode of that name: no journal can be made again, so none is replaced."""
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "episode"
    number, path = 1, folder / f"{stem}{SUFFIX}"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{SUFFIX}"
    return path


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()
