"""Checkpoint files written a tensor at a time: safetensors, and torch's own.

In: parameters and what reads them (`models.sources`). Out: files that hold them. At any time one
tensor is in memory, for a file of any size. The trade-off: a torch file is laid out first, by torch
itself with empty space for its tensors (`torch.serialization.skip_data`), and filled afterwards;
the checksums in its zip archive stay those of empty space. torch does not look at them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models.errors import CheckpointError
from models.layouts.hugging_face import INDEX
from models.layouts.stored import load_fake
from models.sources import FLAG, FLOATS, Source, is_finite
from models.verbs import Synthesize

SHARD_BYTES = 1 << 30
ALIGNMENT = 8
"""Of a safetensors header, so that the numbers behind it are aligned."""
Say = Callable[[str], None]


def check_asked(arguments: Synthesize, model_type: str, layout: str, *, why: str = "") -> None:
    """
    Args:
        layout: the only one that there is for such a policy.
        why: behind that.

    Raises:
        ValueError: another one is asked for, or what belongs to another one.
    """
    if arguments.layout not in (None, layout):
        raise ValueError(f"a {model_type} is written as --layout {layout} only{why}")
    if (arguments.names, arguments.weights, arguments.settings) != ("published", "pt", "current"):
        raise ValueError(f"--names, --weights and --settings belong to no --layout {layout}")


def check_said(layout: str, said: Iterable[tuple[str, object, object]]) -> None:
    """
    Args:
        said: what it is, what the policy has, and what readers of such a folder take it for.

    Raises:
        ValueError: the two differ.
    """
    for what, ours, theirs in said:
        if ours != theirs:
            raise ValueError(
                f"{what}={ours!r} cannot be said in a folder of --layout {layout}, whose readers "
                f"take {theirs!r}"
            )


def write_safetensors(path: Path, tensors: Mapping[str, Source]) -> None:
    """One file, under the names given.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    # The widest types first: every tensor then starts at a multiple of its own numbers' width.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        source, start = tensors[name], end
        end += source.num_bytes
        header[name] = {
            "dtype": FLOATS.get(source.dtype, FLAG),
            "shape": list(source.shape),
            "data_offsets": [start, end],
        }
    words = json.dumps(header, separators=(",", ":")).encode()
    words += b" " * (-len(words) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        for name in order:
            _write_numbers(file, read_finite(tensors[name]))


def write_sharded(path: Path, tensors: Mapping[str, Source], mark: str, say: Say) -> None:
    """Shards of at most `SHARD_BYTES`, or of one tensor, and the index that names them.

    Args:
        mark: stands in the index, to tell whose it is.
    """
    shards: list[dict[str, Source]] = [{}]
    size = 0
    for name, source in tensors.items():
        if size and size + source.num_bytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = source
        size += source.num_bytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(path / name, shard)
        weight_map.update(dict.fromkeys(shard, name))
        say(f"{name}: {sum(source.num_bytes for source in shard.values()) / 1e9:.2f} GB")
    total = sum(source.num_bytes for source in tensors.values())
    index = {"metadata": {"total_size": total, "written_by": mark}, "weight_map": weight_map}
    (path / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def write_torch(
    path: Path, tensors: Mapping[str, Source], others: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """One file with a dictionary of tensors, as `torch.save` writes it.

    Args:
        others: that are no weights, as whole numbers are.
    """
    shapes = {name: (s.shape, s.dtype) for name, s in tensors.items()}
    state = lay_out(path, shapes | {name: (tuple(t.shape), t.dtype) for name, t in others.items()})
    with path.open("r+b") as file:
        for name, source in tensors.items():
            fill(file, state[name], read_finite(source))
        for name, value in others.items():
            fill(file, state[name], value)


def lay_out(
    path: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    arranged: Callable[[dict[str, Tensor]], Any] = lambda tensors: tensors,
) -> Any:
    """Write a torch file with room for tensors, and return it with fake ones that know where it is.

    Args:
        tensors: shape and dtype by name.
        arranged: makes of them what the file holds.
    """
    with FakeTensorMode():
        empty = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in tensors.items()}
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(arranged(empty), path)
    return load_fake(path)


def read_finite(source: Source) -> Tensor:
    """
    Raises:
        CheckpointError: it holds NaN or infinity.
    """
    value = source.read()
    if not is_finite(value):
        raise CheckpointError(f"{source.name} holds NaN or infinity; copy {source.origin} again")
    return value


def fill(file: IO[bytes], fake: Tensor, value: Tensor) -> None:
    """Write the numbers of a tensor where a fake one says that there is room."""
    offset = fake.untyped_storage()._checkpoint_offset
    assert offset is not None
    file.seek(offset)
    _write_numbers(file, value)


def _write_numbers(file: IO[bytes], value: Tensor) -> None:
    if value.numel():
        file.write(value.contiguous().view(-1).view(torch.uint8).numpy().data)
