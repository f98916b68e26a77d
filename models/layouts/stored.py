"""The tensors in a file, safetensors or torch's own, without reading one.

In: a file. Out: a `Stored` for each tensor, which maps its own range of the file and nothing more:
a tensor that is let go takes its pages with it, so going through a checkpoint of any size takes the
memory of its largest tensor.

A torch file is a zip archive of a pickle and the tensors' bytes. The pickle is read by torch's own
restricted reader (`weights_only=True`) under fake tensors, which tells where the bytes lie.
Megatron pickles its arguments too, objects of classes that are not there. The reader builds an
inert `Foreign` for each, which keeps nothing and does nothing: no code comes from the file.

Formats: https://github.com/huggingface/safetensors#format and
https://docs.pytorch.org/docs/stable/notes/serialization.html (fake tensors, offsets).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models.errors import CheckpointError
from models.json_file import refuse_pointer
from models.sources import FLAG, FLOATS, Stored

FLOATS_BY_NAME = {name: dtype for dtype, name in FLOATS.items()}
HEADER_LENGTH = 8
"""Bytes in front of a safetensors header that tell how long it is."""
NPU_TENSOR = "torch_npu.utils.storage._rebuild_npu_tensor"
"""How older versions of torch for Ascend, on which the authors trained, pickle a tensor: torch's
own `_rebuild_tensor_v2` and one argument more, the layout on the device. The bytes are plain."""


class Foreign:
    """Stands for an object of a class that is not here: a pickle's arguments go nowhere."""

    def __init__(self, *arguments: object) -> None:
        """Takes what the class would have taken."""

    def __new__(cls, *arguments: object) -> Foreign:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Takes what the class would have restored."""


def stored_safetensors(file: Path) -> list[Stored]:
    """What a safetensors file holds, in name order.

    Raises:
        CheckpointError: not a whole one, or a git-lfs pointer in its place.
    """
    _refuse_pointer(file)
    try:
        with safe_open(file, framework="pt") as checked:
            names = sorted(checked.keys())
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(HEADER_LENGTH), "little")
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); copy it again"
        ) from None
    return [_of_safetensors(file, name, header[name], HEADER_LENGTH + length) for name in names]


def _of_safetensors(file: Path, name: str, entry: Mapping[str, Any], start: int) -> Stored:
    shape, kind = tuple(entry["shape"]), entry["dtype"]
    dtype = FLOATS_BY_NAME.get(kind, torch.bool if kind == FLAG else None)
    if dtype is None:
        return Stored(name, file, shape, kind, _unreadable)
    read = partial(_mapped, file, start + entry["data_offsets"][0], dtype, shape)
    return Stored(name, file, shape, FLAG if dtype == torch.bool else dtype, read)


def stored_torch(file: Path) -> Iterator[tuple[tuple[str, ...], Stored | object]]:
    """What a torch file holds, in its order: where it stands in the dictionaries, and what it is.

    Anything but a dictionary is a leaf: a tensor is a `Stored`, whose name is its place joined by
    dots; other things are as they were, or a `Foreign`.

    Raises:
        CheckpointError: not a whole one, one that cannot be mapped, or a git-lfs pointer.
    """
    yield from _leaves(file, load_fake(file), ())


def load_fake(file: Path) -> Any:
    """The objects in a torch file, with fake tensors whose storages know their offset.

    Raises:
        CheckpointError: not a whole one, one that cannot be mapped, or a git-lfs pointer.
    """
    _refuse_pointer(file)
    try:
        foreign: list[str] = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
        stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (_rebuild_npu_tensor if name == NPU_TENSOR else Foreign, name) for name in foreign
        ]
        with torch.serialization.safe_globals(stand_ins), FakeTensorMode():
            return torch.load(file, weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:  # RuntimeError, OSError, and the unpickler's own
        raise CheckpointError(
            f"{file}: not a whole torch file that can be read without running its code "
            f"({_reason(str(error))}); "
            "copy it again, or save its tensors alone again with torch.save"
        ) from None


def _reason(message: str) -> str:
    """The one line of torch's message that says what is wrong."""
    lines = message.partition("Check the documentation")[0].split("WeightsUnpickler error: ")[-1]
    said = [line.strip() for line in lines.splitlines() if line.strip()] or ["no reason given"]
    return said[-1] if message.startswith("Weights only load failed") else said[0]


def _leaves(
    file: Path, value: object, place: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Stored | object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(file, item, (*place, str(key)))
    elif isinstance(value, Tensor):
        yield place, _of_torch(file, ".".join(place), value)
    else:
        yield place, value


def _of_torch(file: Path, name: str, fake: Tensor) -> Stored:
    shape, dtype = tuple(fake.shape), fake.dtype
    offset = getattr(fake.untyped_storage(), "_checkpoint_offset", None)
    if offset is None or (dtype not in FLOATS and dtype != torch.bool):
        return Stored(name, file, shape, str(dtype).removeprefix("torch."), _unreadable)
    start = offset + fake.storage_offset() * dtype.itemsize
    read = partial(_mapped, file, start, dtype, shape, fake.stride())
    return Stored(name, file, shape, FLAG if dtype == torch.bool else dtype, read)


def _mapped(
    file: Path,
    start: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
) -> Tensor:
    """The numbers from byte `start` on, mapped copy-on-write."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    count = (
        torch.Size(shape).numel()
        if stride is None
        else 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    )
    data: np.ndarray[Any, Any] = np.memmap(file, np.uint8, "c", start, (count * dtype.itemsize,))
    if start % dtype.itemsize:
        data = np.array(data)
    numbers = torch.from_numpy(data).view(dtype)
    return numbers.view(shape) if stride is None else numbers.as_strided(shape, stride).contiguous()


def _rebuild_npu_tensor(*arguments: Any) -> Tensor:
    """As torch does it, without the argument that torch does not know."""
    tensor: Tensor = torch._utils._rebuild_tensor_v2(*arguments[:6])
    return tensor


def _unreadable() -> Tensor:
    raise AssertionError("a tensor of this type is refused before it is read")


def _refuse_pointer(file: Path) -> None:
    try:
        refuse_pointer(file, "weights")
    except ValueError as error:
        raise CheckpointError(str(error)) from None
