"""The authors' checkpoint as they write it, a tensor at a time; `megatron` reads it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.anchorvla4d.megatron import FILE, TRACKER, Place, places, put
from models.layouts.writers import Say, fill, lay_out, read_finite
from models.sources import Source, Weights


def write_megatron(
    path: Path, weights: Weights, config: AnchorVLA4DConfig, *, ranks: int, say: Say
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
        laid_out.append(_lay_out(file, empty, iteration, ranks))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(file.open("r+b")) for file in files]
        for theirs, group in groups.items():
            tensors = _rank_tensors(group, ranks)
            for out, state, tensor in zip(opened, laid_out, tensors, strict=True):
                fill(out, state[theirs], tensor)
    for file in files:
        say(f"{file.relative_to(path)}: {file.stat().st_size / 1e9:.2f} GB")


def _lay_out(
    file: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    iteration: int,
    ranks: int,
) -> dict[str, Tensor]:
    """A rank's file with room for tensors; the first word of a name is its part of the model."""
    written = lay_out(
        file, tensors, lambda empty: {**_record(iteration, ranks), "model": _parts(empty)}
    )
    return {
        f"{part}.{name}": tensor
        for part, inside in written["model"].items()
        for name, tensor in inside.items()
        if isinstance(tensor, Tensor)
    }


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


def _record(iteration: int, ranks: int) -> dict[str, Any]:
    """As `generate_state_dict` of Megatron's `training/checkpointing.py` has it."""
    arguments = argparse.Namespace(tensor_model_parallel_size=ranks, pipeline_model_parallel_size=1)
    return {"args": arguments, "checkpoint_version": 3.0, "iteration": iteration}
