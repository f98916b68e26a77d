"""The weights of a checkpoint: its safetensors files, and a model that takes every tensor of them.

Goes in: a checkpoint folder and a model. Comes out: the model with float32 weights, which stay on
disk until something computes with them (`models.stored`). The trade-off: nothing is skipped but
what is known not to be used (`UNUSED`), and that is told; any other tensor too many, too few, of
another shape, another type or not finite is an error with its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from models.errors import CheckpointError
from models.json_file import read_object, refuse_pointer
from models.stored import StoredTensor, map_of, put

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LISTED = 8
"""Names shown in an error before "and so many more"."""
UNUSED = ("vlm.lm_head.weight",)
"""Speaks words, of which this policy says none."""
_RENAMED = {"vlm.model.language_model.": "vlm.model.", "vlm.model.visual.": "vlm.visual."}
"""How transformers 4.52 and later begin the names of Qwen2.5-VL -> how they are published."""
_FLOATS = ("F64", "F32", "F16", "BF16")


def published_name(name: str) -> str:
    """The name of a tensor before transformers 4.52."""
    for newer, published in _RENAMED.items():
        if name.startswith(newer):
            return published + name.removeprefix(newer)
    return name


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint, after checking that index and shards agree.

    Raises:
        CheckpointError: no weights, a missing shard, or a git-lfs pointer in place of one.
    """
    index = path / INDEX
    if index.is_file():
        weight_map = _read_index(index)
        files = [path / name for name in sorted(set(weight_map.values()))]
        if missing := [f.name for f in files if not f.is_file()]:
            raise CheckpointError(f"{index}: names shards that are not there: {_some(missing)}")
    else:
        weight_map, files = None, [path / WEIGHTS]
        if not files[0].is_file():
            raise CheckpointError(f"{path}: neither {WEIGHTS} nor {INDEX} in it")
    for file in files:
        try:
            refuse_pointer(file, "weights")
        except ValueError as error:
            raise CheckpointError(str(error)) from None
    if weight_map is not None:
        stored = {name: file.name for file in files for name in _open(file).keys()}  # noqa: SIM118
        if stored != weight_map:
            wrong = sorted(
                n for n in stored.keys() | weight_map.keys() if stored.get(n) != weight_map.get(n)
            )
            raise CheckpointError(f"{index}: index and shards disagree about {_some(wrong)}")
    return files


def load_weights(model: nn.Module, files: Iterable[Path]) -> tuple[str, ...]:
    """Give `model`, which is on the meta device, its tensors: they are checked, and stay on disk.

    Returns:
        Names of the tensors that were left out: those of `UNUSED`.

    Raises:
        CheckpointError: tensors that do not fit, all of them at once.
    """
    files = list(files)
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found: dict[str, str] = {}
    unused: list[str] = []
    wrong: dict[str, list[str]] = {
        "missing tensors": [],
        "extra tensors": [],
        "tensors under both of their names": [],
        "tensors of another shape": [],
        f"tensors of another type than {', '.join(_FLOATS)}": [],
        "tensors with NaN or infinity": [],
    }
    missing, extra, twice, misshaped, mistyped, broken = wrong.values()
    for file in files:
        with _open(file) as tensors:
            for stored in tensors.keys():  # noqa: SIM118
                name, part = published_name(stored), tensors.get_slice(stored)
                shape = tuple(part.get_shape())
                if name in UNUSED:
                    unused.append(stored)
                elif name not in wanted:
                    extra.append(stored)
                elif name in found:
                    twice.append(f"{found[name]} and {stored}")
                elif shape != wanted[name]:
                    misshaped.append(f"{stored} {list(shape)}, expected {list(wanted[name])}")
                elif part.get_dtype() not in _FLOATS:
                    mistyped.append(f"{stored} {part.get_dtype()}")
                else:
                    value = tensors.get_tensor(stored).float()
                    if not torch.isfinite(value).all():
                        broken.append(stored)
                    put(model, name, StoredTensor(shape, torch.float32, map_of(file, stored)))
                found.setdefault(name, stored)
    missing += sorted(wanted.keys() - found.keys())
    problems = [f"{label}: {_some(names)}" for label, names in wrong.items() if names]
    if problems:
        raise CheckpointError(f"{files[0].parent}: " + "; ".join(problems))
    return tuple(unused)


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = read_object(index).get("weight_map")
    except ValueError as error:
        raise CheckpointError(f"{error} (not an index of shards)") from None
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in weight_map.values()
    ):
        raise CheckpointError(
            f"{index}: not an index of shards: weight_map must give each tensor the name of a file "
            "beside it; copy it again"
        )
    return weight_map


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); copy it again"
        ) from None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
