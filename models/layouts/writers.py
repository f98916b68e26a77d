"""Checkpoint files written a tensor at a time: safetensors, and torch's own.

In: parameters and what reads them (`models.sources`). Out: files that hold them. At any time one
tensor is in memory, for a file of any size. The trade-off: a torch file is laid out first, by torch
itself with empty space for its tensors (`torch.serialization.skip_data`), and filled afterwards;
the checksums in its zip archive stay those of empty space. torch does not look at them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models.anchorvla4d.config import PolicyConfig
from models.errors import CheckpointError
from models.layouts.hugging_face import INDEX
from models.layouts.megatron import FILE, TRACKER, Place, places, put
from models.layouts.stored import load_fake
from models.sources import FLOATS, Source, Weights, is_finite

SHARD_BYTES = 1 << 30
ALIGNMENT = 8
"""Of a safetensors header, so that the numbers behind it are aligned."""
Say = Callable[[str], None]


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
            "dtype": FLOATS[source.dtype],
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


def write_torch(path: Path, tensors: Mapping[str, Source]) -> None:
    """One file with a dictionary of tensors, as `torch.save` writes it."""
    state = lay_out(path, {name: (s.shape, s.dtype) for name, s in tensors.items()})
    with path.open("r+b") as file:
        for name, source in tensors.items():
            _fill(file, state[name], read_finite(source))


def write_megatron(
    path: Path, weights: Weights, config: PolicyConfig, *, ranks: int, say: Say
) -> None:
    """The authors' layout: `iter_0000001/mp_rank_00/` and so on, and the file that names it.

    Raises:
        ValueError: the policy cannot be cut into so many ranks.
    """
    groups: dict[str, list[tuple[Place, Source]]] = {}
    for name, place in places(config, ranks).items():
        groups.setdefault(place.theirs, []).append((place, weights[name]))
    empty = {theirs: (group[0][0].shape, group[0][1].dtype) for theirs, group in groups.items()}
    iteration = 1
    (path / TRACKER).write_text(str(iteration))
    files = [path / f"iter_{iteration:07d}" / f"mp_rank_{rank:02d}" / FILE for rank in range(ranks)]
    laid_out = []
    for file in files:
        file.parent.mkdir(parents=True)
        laid_out.append(lay_out(file, empty, _megatron_record(iteration, ranks)))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(file.open("r+b")) for file in files]
        for theirs, group in groups.items():
            tensors = _rank_tensors(group, ranks)
            for out, state, tensor in zip(opened, laid_out, tensors, strict=True):
                _fill(out, state[theirs], tensor)
    for file in files:
        say(f"{file.relative_to(path)}: {file.stat().st_size / 1e9:.2f} GB")


def lay_out(
    path: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    record: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Write a torch file with room for tensors, and return fake ones that know where it is.

    Args:
        tensors: shape and dtype by name; with a `record`, by place in the model it holds: the first
            word of a name is the part.
        record: what else is in the file, beside its `model`.
    """
    with FakeTensorMode():
        empty = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in tensors.items()}
        state: dict[str, Any] = empty if record is None else {**record, "model": _parts(empty)}
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(state, path)
    written = load_fake(path)
    if record is None:
        return dict(written)
    return {
        f"{part}.{name}": tensor
        for part, inside in written["model"].items()
        for name, tensor in inside.items()
        if isinstance(tensor, Tensor)
    }


def read_finite(source: Source) -> Tensor:
    """
    Raises:
        CheckpointError: it holds NaN or infinity.
    """
    value = source.read()
    if not is_finite(value):
        raise CheckpointError(f"{source.name} holds NaN or infinity; copy {source.origin} again")
    return value


def _rank_tensors(group: Sequence[tuple[Place, Source]], ranks: int) -> Iterable[Tensor]:
    """What each rank holds of one tensor of theirs, which is made of all parameters in `group`."""
    place, source = group[0]
    if place.join is None:
        return [read_finite(source)] * ranks
    if not place.cuts:
        return read_finite(source).chunk(ranks, place.join)
    made = [torch.empty(place.shape, dtype=source.dtype) for _ in range(ranks)]
    for place, source in group:
        put(place, read_finite(source), made)
    return made


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """`vlm.NAME` and so on as a dictionary for each part, with what Megatron leaves beside them."""
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        part, _, inside = name.partition(".")
        parts.setdefault(part, {})[inside] = tensor
    parts["vlm"]["text_decoder.output_layer._extra_state"] = None
    return parts


def _megatron_record(iteration: int, ranks: int) -> dict[str, Any]:
    """As `generate_state_dict` of Megatron's `training/checkpointing.py` has it."""
    arguments = argparse.Namespace(tensor_model_parallel_size=ranks, pipeline_model_parallel_size=1)
    return {"args": arguments, "checkpoint_version": 3.0, "iteration": iteration}


def _fill(file: IO[bytes], fake: Tensor, value: Tensor) -> None:
    """Write the numbers of a tensor where a fake one says."""
    offset = fake.untyped_storage()._checkpoint_offset
    assert offset is not None
    file.seek(offset)
    _write_numbers(file, value)


def _write_numbers(file: IO[bytes], value: Tensor) -> None:
    if value.numel():
        file.write(value.contiguous().view(-1).view(torch.uint8).numpy().data)
