"""One episode as data, and in one `.npz` file: streams by name, each with its capture stamps.

The trade-off: pictures are lossless PNG, slower to write than raw pixels and several times smaller.

N = control step of the episode, H, W = image height and width, S = vector length, A = action
dimension.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import ObservationError, RecordingError
from ..prompt import check_instruction
from ..storage.files import Kind, replacing
from .png import decode_pictures, encode_pictures

FRAME, STATE = "frame", "state"
"""What the streams of one camera and of the robot's state are called."""
RECORDING = Kind("a recorded episode", (b"instruction.npy", b"rate_hz.npy"))
# numpy's letters: U text, i integer, f float, b bool.
_SCALAR_KINDS = {"instruction": "U", "task": "U", "seed": "i", "rate_hz": "f", "success": "b"}
_OPTIONAL = ("actions", "action_names", "success")
"""What not every source of an episode knows; a file leaves it out then."""
_REQUIRED = tuple(key for key in _SCALAR_KINDS if key not in _OPTIONAL)
_STREAM = "stream"
"""Arrays of a stream are called stream/NAME/KEY."""
_STREAM_KEYS = ({"values", "at_s"}, {"png", "png_offsets", "at_s", "frame_ids"})
"""Of a vector or of depth, and of a camera."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stream:
    """What one sensor showed at every control step.

    Raises:
        RecordingError: arrays that are no stream, or do not fit together.
    """

    values: NDArray[Any]
    """uint8 [N, H, W, 3] RGB of a camera, float32 [N, S] in robot units, or float32 [N, H, W] of
    depth in metres, 0 where nothing was measured; all finite."""
    at_s: NDArray[np.float64]
    """[N] when each was captured, in seconds on one clock; never backwards."""
    frame_ids: NDArray[np.int64] | None = None
    """[N] of a camera, None of a vector or of depth: the same number is the same picture."""

    def __post_init__(self) -> None:
        is_camera = self.values.dtype == np.uint8 and self.values.ndim == 4
        is_vector = self.values.dtype == np.float32 and self.values.ndim in (2, 3)
        if not (is_vector or (is_camera and self.values.shape[3] == 3)):
            raise RecordingError(
                "values must be uint8 [N, H, W, 3] of a camera, float32 [N, S] of a vector or "
                "float32 [N, H, W] of depth, "
                f"got {self.values.dtype} {list(self.values.shape)}; record it again"
            )
        _check_finite(self.values, "")
        self._check_rows("at_s", self.at_s, np.float64)
        is_wrong = ~np.isfinite(self.at_s)
        is_wrong[1:] |= self.at_s[1:] < self.at_s[:-1]
        for row in np.flatnonzero(is_wrong)[:1].tolist():
            raise RecordingError(
                f"frame {row}: stamped {self.at_s[row]} s"
                f"{f' after {self.at_s[row - 1]} s' if row else ''}; stamps must be finite and "
                "never go backwards; record it again"
            )
        self._check_frame_ids(is_camera)

    def _check_frame_ids(self, is_camera: bool) -> None:
        if (self.frame_ids is not None) != is_camera:
            raise RecordingError(
                f"a {'camera' if is_camera else 'vector'} has "
                f"{'frame_ids [N], got none' if is_camera else 'no frame_ids, got some'}; "
                "record it again"
            )
        if self.frame_ids is None:
            return
        self._check_rows("frame_ids", self.frame_ids, np.int64)
        first: dict[int, int] = {}
        for row, number in enumerate(self.frame_ids.tolist()):
            before = first.setdefault(number, row)
            if before != row and not np.array_equal(self.values[before], self.values[row]):
                raise RecordingError(
                    f"frames {before} and {row} are different pictures, both with the frame "
                    f"id {number}; record it again"
                )

    def _check_rows(self, name: str, array: NDArray[Any], dtype: type[np.generic]) -> None:
        _check_array(name, array, dtype, "[N]", ndim=1)
        if len(array) != len(self.values):
            raise RecordingError(
                f"{len(array)} {name} for {len(self.values)} values; record it again"
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recording:
    """One episode; `actions[i]` is what was done on seeing row i of every stream."""

    instruction: str
    task: str
    seed: int
    rate_hz: float
    """Control steps per second."""
    streams: Mapping[str, Stream]
    """By the name of the policy's input, such as `FRAME` and `STATE`; all with N rows."""
    actions: NDArray[np.float32] | None = None
    """[N, A] in robot units; None where the source holds none."""
    action_names: tuple[str, ...] | None = None
    """What each action dimension is called; None where the source does not tell."""
    success: bool | None = None
    """Whether the task was achieved; None where nobody can tell."""

    def __post_init__(self) -> None:
        lengths = {f"stream {name!r}": len(s.values) for name, s in self.streams.items()}
        for name in self.streams:
            if not name.isidentifier():
                raise RecordingError(
                    f"a stream is called {name!r}; a name is letters, digits and underscores, as "
                    "of a variable; rename it"
                )
        if self.actions is not None:
            lengths["actions"] = len(self.actions)
            _check_actions(self.actions, self.action_names)
        words = ", ".join(f"{number} of {name}" for name, number in lengths.items())
        if not self.streams or 0 in lengths.values():
            raise RecordingError(
                f"an episode needs a stream with at least one frame, got {words or 'nothing'}; "
                "record it again"
            )
        if len(set(lengths.values())) > 1:
            raise RecordingError(
                f"an episode has one row of each per step, got {words}; record it again"
            )
        try:
            check_instruction(self.instruction, ())
        except ObservationError as error:
            raise RecordingError(f"{error}; mend it, or leave the episode out") from None
        if not 0 < self.rate_hz <= 1000:
            raise RecordingError(f"rate_hz must be in (0, 1000], got {self.rate_hz}")

    @property
    def num_frames(self) -> int:
        """N."""
        return len(next(iter(self.streams.values())).values)


def evenly(values: NDArray[Any], rate_hz: float) -> Stream:
    """A stream captured `rate_hz` times a second from 0 on, where nobody kept the stamps.

    Args:
        values: as in `Stream`; every row of a camera counts as a picture of its own.
        rate_hz: rows per second.
    """
    numbers = np.arange(len(values), dtype=np.int64)
    ids = numbers if values.ndim == 4 else None
    return Stream(values=values, at_s=numbers / rate_hz, frame_ids=ids)


def save_recording(recording: Recording, path: Path) -> None:
    """Write `recording` to `path`, whole or not at all. An older recording there is replaced.

    Raises:
        OutputError: another file is there, or it cannot be written.
    """
    known = {
        key: np.asarray(getattr(recording, key))
        for key in _OPTIONAL
        if getattr(recording, key) is not None
    }
    arrays = {
        f"{_STREAM}/{name}/{key}": array
        for name, stream in recording.streams.items()
        for key, array in _stream_arrays(stream).items()
    }
    # A file object, because np.savez appends .npz to a name that lacks it.
    with replacing(path, RECORDING) as partial, partial.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            instruction=np.array(recording.instruction),
            task=np.array(recording.task),
            seed=np.array(recording.seed, np.int64),
            rate_hz=np.array(recording.rate_hz, np.float64),
            **known,
            **arrays,
        )


def load_recording(path: Path) -> Recording:
    """Read what `save_recording` wrote.

    Raises:
        RecordingError: if the file is missing, damaged, or not a recording.
    """
    try:
        # Opened here: zipfile takes a file that it may not read for a broken one.
        with path.open("rb") as file:
            return _recording(_read_arrays(file))
    except FileNotFoundError:
        raise RecordingError(
            f"{path}: no such file; check the path, or record the episode again"
        ) from None
    except OSError as error:
        raise RecordingError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    except RecordingError as error:
        raise RecordingError(f"{path}: {error}") from error


def _read_arrays(file: BinaryIO) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(file):
        raise RecordingError(
            "expected an .npz archive, got another format or a file cut short; "
            "copy or record it again"
        )
    file.seek(0)
    try:
        with np.load(file, allow_pickle=False) as archive:
            _check_keys(archive.files)
            return {key: archive[key] for key in archive.files}
    except RecordingError:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordingError(f"damaged archive ({error}); copy or record it again") from error


def _check_keys(keys: list[str]) -> None:
    """Refuse an archive that is no episode, or one of the layout before streams had names."""
    if {"states", "png"} <= set(keys):
        raise RecordingError(
            "written by an older version (states and png, where streams by name are expected); "
            "record it again, or convert its dataset again: python -m quant convert"
        )
    missing = [key for key in _REQUIRED if key not in keys]
    missing += [] if any(key.startswith(f"{_STREAM}/") for key in keys) else ["streams"]
    if missing:
        raise RecordingError(
            f"lacks {', '.join(missing)}, holds {', '.join(keys) or 'nothing'}; "
            "is it an episode? Record it again with this version"
        )


def _recording(arrays: dict[str, NDArray[Any]]) -> Recording:
    for key, kind in _SCALAR_KINDS.items():
        if key not in arrays:
            continue
        if arrays[key].shape != () or arrays[key].dtype.kind != kind:
            raise RecordingError(
                f"{key} must be one value of kind {kind!r}, "
                f"got {arrays[key].dtype} {list(arrays[key].shape)}; record it again"
            )
    return Recording(
        instruction=str(arrays["instruction"]),
        task=str(arrays["task"]),
        seed=int(arrays["seed"].item()),
        rate_hz=float(arrays["rate_hz"].item()),
        streams=_streams(arrays),
        actions=arrays.get("actions"),
        action_names=_names(arrays["action_names"]) if "action_names" in arrays else None,
        success=bool(arrays["success"]) if "success" in arrays else None,
    )


def _streams(arrays: dict[str, NDArray[Any]]) -> dict[str, Stream]:
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        room, _, rest = key.partition("/")
        if room == _STREAM:
            name, _, part = rest.partition("/")
            parts.setdefault(name, {})[part] = array
    streams = {}
    for name, own in parts.items():
        try:
            streams[name] = _stream(own)
        except RecordingError as error:
            raise RecordingError(f"stream {name!r}: {error}") from error
    return streams


def _stream(arrays: dict[str, NDArray[Any]]) -> Stream:
    if set(arrays) not in _STREAM_KEYS:
        raise RecordingError(
            f"holds {', '.join(sorted(arrays))}, expected "
            f"{' or '.join(', '.join(sorted(keys)) for keys in _STREAM_KEYS)}; record it again"
        )
    is_vector = "values" in arrays
    values = (
        arrays["values"] if is_vector else decode_pictures(arrays["png"], arrays["png_offsets"])
    )
    return Stream(values=values, at_s=arrays["at_s"], frame_ids=arrays.get("frame_ids"))


def _stream_arrays(stream: Stream) -> dict[str, NDArray[Any]]:
    """As they stand in a file."""
    if stream.frame_ids is None:
        return {"values": stream.values, "at_s": stream.at_s}
    png, offsets = encode_pictures(stream.values)
    return {
        "png": png,
        "png_offsets": offsets,
        "at_s": stream.at_s,
        "frame_ids": stream.frame_ids,
    }


def _names(array: NDArray[Any]) -> tuple[str, ...]:
    if array.dtype.kind != "U" or array.ndim != 1:
        raise RecordingError(
            f"action_names must be text [A], got {array.dtype} {list(array.shape)}; record it again"
        )
    return tuple(array.tolist())


def _check_actions(actions_NA: NDArray[np.float32], names: tuple[str, ...] | None) -> None:
    _check_array("actions", actions_NA, np.float32, "[N, A]", ndim=2)
    if names and len(names) != actions_NA.shape[1]:
        raise RecordingError(
            f"{len(names)} action_names for {actions_NA.shape[1]} dimensions of the action; "
            "record it again"
        )
    _check_finite(actions_NA, " of the action")


def _check_finite(values_ND: NDArray[Any], what: str) -> None:
    if values_ND.dtype != np.float32:
        return
    for frame, dimension in np.argwhere(~np.isfinite(values_ND))[:1].tolist():
        raise RecordingError(
            f"frame {frame}: dimension {dimension}{what} is {values_ND[frame, dimension]}; "
            "mend it or leave the episode out"
        )


def _check_array(
    name: str, array: NDArray[Any], dtype: type[np.generic], axes: str, *, ndim: int
) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise RecordingError(
            f"{name} must be {np.dtype(dtype)} {axes}, "
            f"got {array.dtype} with shape {list(array.shape)}; record it again"
        )
