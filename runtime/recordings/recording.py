"""One episode as data, and in one `.npz` file.

The trade-off: frames are lossless PNG, slower to write than raw pixels and several times smaller.

N = frame of the episode, H, W = image height and width, S = state dimension, A = action dimension.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ObservationError, RecordingError
from ..prompt import check_instruction
from ..storage.files import Kind, replacing

# numpy's letters: U text, i integer, f float, b bool.
_SCALAR_KINDS = {"instruction": "U", "task": "U", "seed": "i", "rate_hz": "f", "success": "b"}
RECORDING = Kind("a recorded episode", (b"instruction.npy", b"png_offsets.npy"))
_OPTIONAL = ("actions", "action_names", "success")
"""What not every source of an episode knows; a file leaves it out then."""
_REQUIRED = (
    *(key for key in _SCALAR_KINDS if key not in _OPTIONAL),
    "states",
    "png",
    "png_offsets",
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recording:
    """One episode; `actions[i]` is what was done on seeing `images[i]` and `states[i]`."""

    instruction: str
    task: str
    seed: int
    rate_hz: float
    """Control steps per second."""
    images: NDArray[np.uint8]
    """[N, H, W, 3] RGB."""
    states: NDArray[np.float32]
    """[N, S] in robot units."""
    actions: NDArray[np.float32] | None = None
    """[N, A] in robot units; None where the source holds none."""
    action_names: tuple[str, ...] | None = None
    """What each action dimension is called; None where the source does not tell."""
    success: bool | None = None
    """Whether the task was achieved; None where nobody can tell."""

    def __post_init__(self) -> None:
        _check_array("images", self.images, np.uint8, "[N, H, W, 3]", ndim=4)
        _check_array("states", self.states, np.float32, "[N, S]", ndim=2)
        actions_NA = self.states if self.actions is None else self.actions
        _check_array("actions", actions_NA, np.float32, "[N, A]", ndim=2)
        num_frames = self.images.shape[0]
        if self.images.shape[3] != 3:
            raise RecordingError(f"images must be [N, H, W, 3], got shape {self.images.shape}")
        if num_frames == 0:
            raise RecordingError("an episode needs at least one frame, got none")
        if not len(self.states) == len(actions_NA) == num_frames:
            raise RecordingError(
                f"{num_frames} images, {len(self.states)} states and {len(actions_NA)} actions: "
                "an episode has one of each per step"
            )
        num_names, num_dimensions = len(self.action_names or ()), actions_NA.shape[1]
        if self.actions is not None and self.action_names and num_names != num_dimensions:
            raise RecordingError(
                f"{num_names} action_names for {num_dimensions} dimensions of the action; "
                "record it again"
            )
        for name, values_ND in (("state", self.states), ("action", actions_NA)):
            for frame, dimension in np.argwhere(~np.isfinite(values_ND))[:1].tolist():
                raise RecordingError(
                    f"frame {frame}: dimension {dimension} of the {name} is "
                    f"{values_ND[frame, dimension]}; mend it or leave the episode out"
                )
        try:
            check_instruction(self.instruction, ())
        except ObservationError as error:
            raise RecordingError(f"{error}; mend it, or leave the episode out") from None
        if not 0 < self.rate_hz <= 1000:
            raise RecordingError(f"rate_hz must be in (0, 1000], got {self.rate_hz}")


def save_recording(recording: Recording, path: Path) -> None:
    """Write `recording` to `path`, whole or not at all. An older recording there is replaced.

    Raises:
        OutputError: another file is there, or it cannot be written.
    """
    frames = [_encode_png(image) for image in recording.images]
    known = {
        key: np.asarray(getattr(recording, key))
        for key in _OPTIONAL
        if getattr(recording, key) is not None
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
            states=recording.states,
            **known,
            png=np.frombuffer(b"".join(frames), np.uint8),
            png_offsets=np.cumsum([0, *map(len, frames)], dtype=np.int64),
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


def _read_arrays(file: BinaryIO) -> dict[str, NDArray[np.generic]]:
    if not zipfile.is_zipfile(file):
        raise RecordingError(
            "expected an .npz archive, got another format or a file cut short; "
            "copy or record it again"
        )
    file.seek(0)
    try:
        with np.load(file, allow_pickle=False) as archive:
            missing = [key for key in _REQUIRED if key not in archive]
            if missing:
                raise RecordingError(
                    f"lacks {', '.join(missing)}, holds {', '.join(archive.files) or 'nothing'}; "
                    "is it an episode? Record it again with this version"
                )
            return {key: archive[key] for key in (*_REQUIRED, *_OPTIONAL) if key in archive}
    except RecordingError:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordingError(f"damaged archive ({error}); copy or record it again") from error


def _recording(arrays: dict[str, NDArray[np.generic]]) -> Recording:
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
        images=_decode_frames(arrays["png"], arrays["png_offsets"]),
        states=arrays["states"],  # type: ignore[arg-type]  # Recording checks it
        actions=arrays.get("actions"),  # type: ignore[arg-type]
        action_names=_names(arrays["action_names"]) if "action_names" in arrays else None,
        success=bool(arrays["success"]) if "success" in arrays else None,
    )


def _names(array: NDArray[np.generic]) -> tuple[str, ...]:
    if array.dtype.kind != "U" or array.ndim != 1:
        raise RecordingError(
            f"action_names must be text [A], got {array.dtype} {list(array.shape)}; record it again"
        )
    return tuple(array.tolist())


def _decode_frames(png: NDArray[np.generic], offsets: NDArray[np.generic]) -> NDArray[np.uint8]:
    _check_array("png", png, np.uint8, "[bytes]", ndim=1)
    _check_array("png_offsets", offsets, np.int64, "[N + 1]", ndim=1)
    bounds = [int(offset) for offset in offsets.tolist()]
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(png) or bounds != sorted(bounds):
        raise RecordingError(
            f"png_offsets must rise from 0 to {len(png)}, the bytes in png, got "
            f"{bounds[:1]} to {bounds[-1:]} in {len(bounds)} values; copy or record it again"
        )
    data = png.tobytes()
    frames = [
        _decode_png(data[start:end], index)
        for index, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False))
    ]
    shapes = {frame.shape for frame in frames}
    if len(shapes) != 1:
        raise RecordingError(f"frames must all have one shape, got {sorted(shapes)}")
    return np.stack(frames)


def _encode_png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _decode_png(data: bytes, index: int) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RecordingError(
            f"frame {index} is not a whole PNG ({error}); copy or record it again"
        ) from error


def _check_array(
    name: str, array: NDArray[np.generic], dtype: type[np.generic], axes: str, *, ndim: int
) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise RecordingError(
            f"{name} must be {np.dtype(dtype)} {axes}, "
            f"got {array.dtype} with shape {list(array.shape)}; record it again"
        )
