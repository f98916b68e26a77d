"""A folder as Hugging Face's libraries write it: one safetensors file, or shards with an index.

In: the folder. Out: where each parameter is read. The vision-language model may be named as
published, as since transformers 4.52, and with or without `vlm.` in front; the other parts of a
policy stand beside it in the same files, or in files of torch beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.errors import CheckpointError
from models.json_file import read_object
from models.layouts.stored import stored_safetensors, stored_torch
from models.networks.config import (
    AnyLanguageConfig,
    AnyVisionConfig,
    Qwen3VisionConfig,
    VisionConfig,
)
from models.policy_config import PolicyConfig
from models.sources import (
    AS_IT_IS,
    Misfits,
    Source,
    Stored,
    Unused,
    Weights,
    parameter_shapes,
    some,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_RENAMED = {
    "vlm.model.language_model.": "vlm.model.",
    "vlm.model.visual.": "vlm.visual.",
    "model.language_model.": "vlm.model.",
    "model.visual.": "vlm.visual.",
    "model.": "vlm.model.",
    "visual.": "vlm.visual.",
    "lm_head.": "vlm.lm_head.",
}
"""How else the names of Qwen2.5-VL begin, those of transformers 4.52 and later first -> how ours
do, the first that fits."""
_ROPE_FIELDS = ("rope_theta", "mrope_section")


@dataclass(frozen=True, slots=True)
class Spelled:
    """How `config.json` says of which sizes a vision-language model is."""

    model_type: str
    vision: type[AnyVisionConfig]
    """Its fields are called there as they are here, as are those of the language model."""
    accepted: Mapping[str, tuple[Any, ...]]
    """Settings of the language model that a policy's configuration lacks, and what they must be."""


SPELLED = (
    Spelled(
        "qwen2_5_vl", VisionConfig, {"hidden_act": ("silu",), "use_sliding_window": (False, None)}
    ),
    Spelled(
        "qwen3_vl", Qwen3VisionConfig, {"hidden_act": ("silu",), "attention_bias": (False, None)}
    ),
)


def spelled(vision: AnyVisionConfig) -> Spelled:
    """That of this tower's model."""
    return next(one for one in SPELLED if isinstance(vision, one.vision))


def published_name(name: str) -> str:
    """The name of a tensor before transformers 4.52, with its part in front."""
    for other, published in _RENAMED.items():
        if name.startswith(other):
            return published + name.removeprefix(other)
    return name


def is_in(path: Path) -> bool:
    """Are there such files in a folder?"""
    return (path / INDEX).is_file() or (path / WEIGHTS).is_file()


def open_weights(
    path: Path,
    wanted: Mapping[str, tuple[int, ...]],
    *,
    side_files: Mapping[str, str],
    unused_names: Mapping[str, str],
) -> Weights:
    """Where each parameter is read.

    Args:
        wanted: shape of each.
        side_files: files beside them, of torch or safetensors too -> how our names of what is in it
            begin.
        unused_names: of ours, what may be there and is not read -> why.

    Raises:
        CheckpointError: files that are missing or damaged, or tensors that do not fit.
    """
    files = read_headers(path)
    beside = [path / name for name in side_files if (path / name).is_file()]
    tensors = [(published_name(s.name), s) for found_there in files.values() for s in found_there]
    tensors += [pair for file in beside for pair in side_tensors(file, side_files[file.name])]
    return place(path, tensors, [*files, *beside], wanted=wanted, unused_names=unused_names)


def open_own(
    path: Path, config: PolicyConfig, unused_names: Mapping[str, str] = MappingProxyType({})
) -> Weights:
    """Where each parameter of a policy in a folder of our own is read. Reads headers only.

    Args:
        unused_names: what may be there and is not read -> why.

    Raises:
        CheckpointError: no weights, files that are missing or damaged, or tensors that do not fit,
            all of them at once.
    """
    return open_weights(path, parameter_shapes(config), side_files={}, unused_names=unused_names)


def place(
    where: Path,
    tensors: Iterable[tuple[str, Stored]],
    files: Iterable[Path],
    *,
    wanted: Mapping[str, tuple[int, ...]],
    unused_names: Mapping[str, str],
) -> Weights:
    """Where each parameter is read, of tensors as they are stored.

    Args:
        where: what an error names.
        tensors: by our names.
        files: that hold them.
        wanted: shape of each parameter.
        unused_names: what may be there and is not read -> why.

    Raises:
        CheckpointError: tensors that do not fit, all of them at once.
    """
    sources: dict[str, Source] = {}
    found: dict[str, str] = {}
    unused: list[Unused] = []
    misfits = Misfits()
    for name, stored in tensors:
        if name in unused_names:
            unused.append(Unused(stored.name, stored.file, unused_names[name]))
        elif name not in wanted:
            misfits.extra.append(stored.name)
        elif name in found:
            misfits.twice.append(f"{found[name]} and {stored.name}")
        elif stored.shape != wanted[name]:
            misfits.misshaped.append(
                f"{stored.name} {list(stored.shape)}, expected {list(wanted[name])}"
            )
        elif isinstance(stored.dtype, str):
            misfits.mistyped.append(f"{stored.name} {stored.dtype}")
        else:
            sources[name] = _as_it_is(name, stored)
        found.setdefault(name, stored.name)
    misfits.missing += sorted(wanted.keys() - found.keys())
    misfits.refuse(where)
    return Weights({name: sources[name] for name in wanted}, sorted(files), unused)


def read_headers(path: Path) -> dict[Path, list[Stored]]:
    """What each safetensors file of a checkpoint holds, if index and shards agree.

    Raises:
        CheckpointError: no weights, a missing shard, or a git-lfs pointer in place of one.
    """
    index = path / INDEX
    if not index.is_file():
        if not (path / WEIGHTS).is_file():
            raise CheckpointError(f"{path}: neither {WEIGHTS} nor {INDEX} in it")
        return {path / WEIGHTS: stored_safetensors(path / WEIGHTS)}
    weight_map = _read_index(index)
    files = [path / name for name in sorted(set(weight_map.values()))]
    if missing := [f.name for f in files if not f.is_file()]:
        raise CheckpointError(f"{index}: names shards that are not there: {some(missing)}")
    held = {file: stored_safetensors(file) for file in files}
    stored = {s.name: file.name for file, tensors in held.items() for s in tensors}
    if stored != weight_map:
        wrong = sorted(
            n for n in stored.keys() | weight_map.keys() if stored.get(n) != weight_map.get(n)
        )
        raise CheckpointError(f"{index}: index and shards disagree about {some(wrong)}")
    return held


def check_config(
    path: Path, vision: AnyVisionConfig, language: AnyLanguageConfig, *, beside: str = "policy.json"
) -> None:
    """Compare the `config.json` of a Qwen-VL, of any version, with a policy's two networks.

    What the file does not state is not compared.

    Args:
        beside: what says of which sizes the networks are.

    Raises:
        CheckpointError: not such a file, a setting that is not honoured, or another value.
    """
    try:
        raw = read_object(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    known = spelled(vision)
    if raw.get("model_type") != known.model_type:
        raise CheckpointError(
            f"{path}: model_type is {raw.get('model_type')!r}, expected {known.model_type!r} "
            f"beside a {beside}; remove one of the two"
        )
    text = raw["text_config"] if isinstance(raw.get("text_config"), dict) else raw
    rope = rope_settings(path, text, known.accepted)
    seen = raw["vision_config"] if isinstance(raw.get("vision_config"), dict) else {}
    others = [f.name for f in fields(language) if f.name not in _ROPE_FIELDS]
    compared: tuple[tuple[str, Mapping[str, Any], object, Iterable[str]], ...] = (
        ("vision", seen, vision, [f.name for f in fields(vision)]),
        ("language", text, language, others),
        ("language", rope, language, _ROPE_FIELDS),
    )
    differ = [
        f"{where}.{name} is {stated[name]!r} there and {ours!r} here"
        for where, stated, network, names in compared
        for name in names
        if name in stated and stated[name] != (ours := _plain(getattr(network, name)))
    ]
    if differ:
        raise CheckpointError(f"{path}: does not agree with {beside}: {some(differ)}")


def side_tensors(file: Path, begin: str) -> Iterator[tuple[str, Stored]]:
    """The tensors of a file of safetensors or of torch, under our names."""
    if file.suffix == ".safetensors":
        yield from ((begin + stored.name, stored) for stored in stored_safetensors(file))
        return
    for place, item in stored_torch(file):
        if not isinstance(item, Stored):
            raise CheckpointError(
                f"{file}: {'.'.join(place) or 'its content'} is no tensor but a "
                f"{type(item).__name__}; it must be a dictionary of tensors, as a state_dict is"
            )
        yield begin + item.name, item


def _as_it_is(name: str, stored: Stored) -> Source:
    assert not isinstance(stored.dtype, str)
    return Source(name, stored.shape, stored.dtype, (stored,), AS_IT_IS, stored.read)


def rope_settings(
    path: Path, text: Mapping[str, Any], accepted: Mapping[str, tuple[Any, ...]]
) -> Mapping[str, Any]:
    """Rotary settings, in the spelling before transformers 5 or since.

    Args:
        accepted: other settings of `text` -> what they must be.

    Raises:
        CheckpointError: they are of another kind, or beside settings that are not honoured.
    """
    older, newer = text.get("rope_scaling"), text.get("rope_parameters")
    rope = {"rope_theta": text["rope_theta"]} if "rope_theta" in text else {}
    for spelling in (older, newer):
        rope |= spelling if isinstance(spelling, dict) else {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("mrope", "default"):
        raise CheckpointError(
            f"{path}: rotary positions of type {kind!r} are not honoured, only 'mrope' (or "
            "'default'); a policy trained with them would be another one here"
        )
    for name, values in accepted.items():
        if name in text and text[name] not in values:
            raise CheckpointError(
                f"{path}: {name}={text[name]!r} is not honoured, only "
                f"{' or '.join(map(repr, values))}"
            )
    return rope


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


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
