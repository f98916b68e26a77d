"""The checkpoint that AnchorVLA4D's authors train: Megatron's, one file per tensor-parallel rank.

In: a folder with `latest_checkpointed_iteration.txt` and `iter_0060000/mp_rank_00/`, or
`mp_rank_00/` and so on itself, or one `model_optim_rng.pt`. Out: where each parameter is read.

Each rank's file is a dictionary whose `model` holds `vlm`, `action_head` and `info_sharing`. Names,
the order of fused rows and the cuts between ranks were read off the authors' own tools
(eileenzhujuan/AnchorVLA4D: `checkpoint/vlm_model/converters/qwen2vl.py`, `qwen2_5vl.py`,
`operator.py`, `hf_to_mm.py`; `mindspeed_mm/models/anchor_vla.py`). No trained weights are public,
so nothing here has met a file of theirs; `docs/checkpoint.md` says what is assumed.

Q, K and V of the language model are fused by groups: the queries that share a key head, then that
key head, then its value head. The vision tower's have a group to a head. Gate and up of an MLP are
stacked. A rank holds whole groups, and its share of both halves of a stack.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.errors import CheckpointError
from models.layouts.stored import stored_torch
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

FILE = "model_optim_rng.pt"
TRACKER = "latest_checkpointed_iteration.txt"
PARTS = ("vlm", "action_head", "info_sharing")
_RANK = re.compile(r"mp_rank_(\d{2,})((?:_\d{3})*)")
UNUSED = {
    "vlm.text_decoder.output_layer.weight": "speaks words, of which this policy says none",
}
Kind = Literal["whole", "rows", "columns", "qkv", "q", "k", "v", "gate", "up"]

_ONCE: Mapping[str, tuple[str, Kind]] = {
    "visual.patch_embed.proj.weight": ("image_encoder.encoder.patch_embed.proj.weight", "whole"),
    "visual.merger.ln_q.weight": ("image_encoder.projector.layernorm.weight", "whole"),
    "visual.merger.mlp.0.weight": ("image_encoder.projector.encoder.linear_fc1.weight", "rows"),
    "visual.merger.mlp.0.bias": ("image_encoder.projector.encoder.linear_fc1.bias", "rows"),
    "visual.merger.mlp.2.weight": ("image_encoder.projector.encoder.linear_fc2.weight", "columns"),
    "visual.merger.mlp.2.bias": ("image_encoder.projector.encoder.linear_fc2.bias", "whole"),
    "model.embed_tokens.weight": ("text_decoder.embedding.word_embeddings.weight", "rows"),
    "model.norm.weight": ("text_decoder.decoder.final_layernorm.weight", "whole"),
}
_VISION_BLOCK: Mapping[str, tuple[str, Kind]] = {
    "norm1.weight": ("input_layernorm.weight", "whole"),
    "norm2.weight": ("pre_mlp_layernorm.weight", "whole"),
    "attn.qkv.weight": ("self_attention.linear_qkv.weight", "qkv"),
    "attn.qkv.bias": ("self_attention.linear_qkv.bias", "qkv"),
    "attn.proj.weight": ("self_attention.linear_proj.weight", "columns"),
    "attn.proj.bias": ("self_attention.linear_proj.bias", "whole"),
    "mlp.gate_proj.weight": ("mlp.linear_fc1.weight", "gate"),
    "mlp.gate_proj.bias": ("mlp.linear_fc1.bias", "gate"),
    "mlp.up_proj.weight": ("mlp.linear_fc1.weight", "up"),
    "mlp.up_proj.bias": ("mlp.linear_fc1.bias", "up"),
    "mlp.down_proj.weight": ("mlp.linear_fc2.weight", "columns"),
    "mlp.down_proj.bias": ("mlp.linear_fc2.bias", "whole"),
}
_DECODER_LAYER: Mapping[str, tuple[str, Kind]] = {
    "input_layernorm.weight": ("input_layernorm.weight", "whole"),
    "post_attention_layernorm.weight": ("pre_mlp_layernorm.weight", "whole"),
    "self_attn.q_proj.weight": ("self_attention.linear_qkv.weight", "q"),
    "self_attn.q_proj.bias": ("self_attention.linear_qkv.bias", "q"),
    "self_attn.k_proj.weight": ("self_attention.linear_qkv.weight", "k"),
    "self_attn.k_proj.bias": ("self_attention.linear_qkv.bias", "k"),
    "self_attn.v_proj.weight": ("self_attention.linear_qkv.weight", "v"),
    "self_attn.v_proj.bias": ("self_attention.linear_qkv.bias", "v"),
    "self_attn.o_proj.weight": ("self_attention.linear_proj.weight", "columns"),
    "mlp.gate_proj.weight": ("mlp.linear_fc1.weight", "gate"),
    "mlp.up_proj.weight": ("mlp.linear_fc1.weight", "up"),
    "mlp.down_proj.weight": ("mlp.linear_fc2.weight", "columns"),
}
_REPEATED = {
    "visual.blocks.": ("image_encoder.encoder.blocks.layers.", _VISION_BLOCK),
    "model.layers.": ("text_decoder.decoder.layers.", _DECODER_LAYER),
}
"""How the names of a repeated layer begin, ours and theirs, and how they go on after its number."""


class Cut(NamedTuple):
    """Rows `start` to `stop` of each of so many equal `blocks` of rows."""

    blocks: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter lies in the ranks' files."""

    theirs: str
    """Name of the tensor there, with its part in front."""
    shape: tuple[int, ...]
    """Of that tensor, in each rank."""
    join: int | None
    """Axis along which the ranks are put together; None where each has all of it."""
    cuts: tuple[Cut, ...]
    """Rows of the parameter in each rank, one cut after the other; nothing for all rows as they
    lie."""
    how: str


def places(config: AnchorVLA4DConfig, ranks: int) -> dict[str, Place]:
    """Where each parameter lies, by its published name, if there are so many ranks.

    Raises:
        ValueError: the policy cannot be cut into so many.
    """
    language, vision = config.language, config.vision
    for what, number in {
        "key/value heads": language.num_key_value_heads,
        "vision heads": vision.num_heads,
        "rows of the embedding table": language.vocab_size,
        "MLP channels of the language model": language.intermediate_size,
        "MLP channels of the vision tower": vision.intermediate_size,
    }.items():
        if number % ranks:
            raise ValueError(f"{number} {what} cannot be cut into {ranks} tensor-parallel shards")
    return {
        name: _place(config, name, shape, ranks) for name, shape in parameter_shapes(config).items()
    }


def their_name(name: str) -> tuple[str, Kind]:
    """Name of the tensor that holds a parameter, and how it holds it."""
    part, _, rest = name.partition(".")
    if part != "vlm":
        return name, "whole"
    for ours, (theirs, layer) in _REPEATED.items():
        if rest.startswith(ours):
            number, _, leaf = rest.removeprefix(ours).partition(".")
            their_leaf, kind = layer[leaf]
            return f"vlm.{theirs}{number}.{their_leaf}", kind
    theirs, kind = _ONCE[rest]
    return f"vlm.{theirs}", kind


def _place(config: AnchorVLA4DConfig, name: str, shape: tuple[int, ...], ranks: int) -> Place:
    theirs, kind = their_name(name)
    if kind == "whole":
        how = AS_IT_IS if ranks == 1 else "the same in each shard"
        return Place(theirs, shape, None, (), how)
    if kind in ("rows", "columns"):
        axis = 0 if kind == "rows" else 1
        cut = tuple(n // ranks if i == axis else n for i, n in enumerate(shape))
        return Place(theirs, cut, axis, (), AS_IT_IS if ranks == 1 else f"{kind} of each shard")
    blocks, sizes, chosen = _fused(config, name, kind, ranks)
    cuts = tuple(Cut(blocks, sum(sizes[:i]), sum(sizes[: i + 1])) for i in chosen)
    how = "q, k and v unfused by heads" if kind == "qkv" else f"{kind} rows"
    whole = (blocks * sum(sizes), *shape[1:])
    return Place(theirs, whole, 0, cuts, how + (" of each shard" if ranks > 1 else ""))


def _fused(
    config: AnchorVLA4DConfig, name: str, kind: Kind, ranks: int
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Equal blocks of rows in a rank's tensor, rows of each thing in a block, which are ours."""
    language, vision = config.language, config.vision
    if kind == "qkv":
        head = vision.hidden_size // vision.num_heads
        return vision.num_heads // ranks, (head,) * 3, (0, 1, 2)
    if kind in ("gate", "up"):
        network = vision if name.startswith("vlm.visual.") else language
        return 1, (network.intermediate_size // ranks,) * 2, (("gate", "up").index(kind),)
    head, groups = language.head_dim, language.num_key_value_heads
    queries = language.num_attention_heads // groups * head
    return groups // ranks, (queries, head, head), (("q", "k", "v").index(kind),)


def take(place: Place, tensors: Sequence[Tensor]) -> Tensor:
    """A parameter, put together from the tensors of all ranks.

    Raises:
        ValueError: they should all be the same, and are not.
    """
    if place.join is None:
        for rank, other in enumerate(tensors[1:], 1):
            if not _same_bits(tensors[0], other):
                raise ValueError(
                    f"{place.theirs} differs between mp_rank_00 and mp_rank_{rank:02d}"
                )
        return tensors[0]
    if not place.cuts:
        return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), place.join)
    return torch.cat([_rows(cut, tensor) for cut in place.cuts for tensor in tensors])


def put(place: Place, value: Tensor, into: Sequence[Tensor]) -> None:
    """The other way round: write a parameter to its cuts of the tensors of all ranks."""
    parts = iter(value.chunk(len(place.cuts) * len(into)))
    for cut in place.cuts:
        for tensor in into:
            rows = tensor.view(cut.blocks, -1, *tensor.shape[1:])[:, cut.start : cut.stop]
            rows.copy_(next(parts).view(rows.shape))


def _rows(cut: Cut, tensor: Tensor) -> Tensor:
    blocks = tensor.view(cut.blocks, -1, *tensor.shape[1:])
    return blocks[:, cut.start : cut.stop].reshape(-1, *tensor.shape[1:])


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def is_in(path: Path) -> bool:
    """Are there such files in a folder?"""
    return (path / TRACKER).is_file() or bool(_ranks(path)) or _single(path) is not None


def open_weights(path: Path, config: AnchorVLA4DConfig) -> Weights:
    """Where each parameter is read.

    Raises:
        CheckpointError: shards that are missing or damaged, or tensors that do not fit.
    """
    files = rank_files(path)
    ranks = [_read_rank(file) for file in files]
    folder = files[0].parent.parent if _RANK.fullmatch(files[0].parent.name) else files[0].parent
    _check_count(folder, config, [tensors for tensors, _ in ranks])
    try:
        wanted = places(config, len(files))
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}; check config.json and the shards") from None
    misfits = Misfits()
    for file, (tensors, _) in zip(files, ranks, strict=True):
        _check_rank(misfits, file.parent.name if len(files) > 1 else "", tensors, wanted, config)
    kinds = {p.theirs: {tensors[p.theirs].dtype for tensors, _ in ranks if p.theirs in tensors}
             for p in wanted.values()}  # fmt: skip
    misfits.mistyped += [
        f"{name} {' and '.join(sorted(str(d).removeprefix('torch.') for d in found))}"
        for name, found in kinds.items()
        if len(found) > 1 or any(isinstance(dtype, str) for dtype in found)
    ]
    misfits.refuse(folder)
    shapes = parameter_shapes(config)
    sources = {
        name: _source(folder, name, shapes[name], place, [t[place.theirs] for t, _ in ranks])
        for name, place in wanted.items()
    }
    lm_head = [Unused(name, files[0], why) for name, why in UNUSED.items() if name in ranks[0][0]]
    return Weights(sources, files, [*lm_head, *ranks[0][1]])


def rank_files(path: Path) -> list[Path]:
    """The file of each tensor-parallel rank, in order.

    Raises:
        CheckpointError: one is missing, or they are of a kind that is not read.
    """
    folder = _iteration(path)
    ranks = _ranks(folder)
    if not ranks:
        if (single := _single(folder)) is not None:
            return [single]
        kind = " (a distributed checkpoint: train or save with --ckpt-format torch)"
        raise CheckpointError(
            f"{folder}: neither mp_rank_00/{FILE} nor one .pt file in it"
            + (kind if any(folder.glob("*.distcp")) else "")
        )
    if piped := [name for name in ranks.values() if name.count("_") > 2]:
        raise CheckpointError(
            f"{folder}: {some(piped)}: pipeline- or expert-parallel shards are not read; put them "
            "together with the authors' tool first (checkpoint/vlm_model, resplit to one stage)"
        )
    count = 1 + max(ranks)
    if missing := [f"mp_rank_{rank:02d}" for rank in range(count) if rank not in ranks]:
        raise CheckpointError(
            f"{folder}: missing tensor-parallel shards: {some(missing)}, while "
            f"{ranks[count - 1]} is there; copy them too"
        )
    files = [folder / ranks[rank] / FILE for rank in range(count)]
    if lost := [str(file.relative_to(folder)) for file in files if not file.is_file()]:
        raise CheckpointError(f"{folder}: {some(lost)} not there; copy it too")
    return files


def _iteration(path: Path) -> Path:
    """The folder of the iteration that the tracker names, or `path` itself."""
    tracker = path / TRACKER
    if not tracker.is_file():
        return path
    words = tracker.read_text("utf-8", "replace").strip()
    name = f"iter_{int(words):07d}" if words.isdecimal() else words
    if words != "release" and not words.isdecimal():
        raise CheckpointError(f"{tracker}: holds {words[:40]!r}, expected a number or 'release'")
    if not (path / name).is_dir():
        there = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise CheckpointError(f"{tracker}: names {name}, which is not there, only {there}; copy it")
    return path / name


def _ranks(folder: Path) -> dict[int, str]:
    """Names of the ranks' folders, by rank."""
    found = [m for p in sorted(folder.glob("mp_rank_*")) if (m := _RANK.fullmatch(p.name))]
    return {int(match[1]): match[0] for match in found}


def _single(folder: Path) -> Path | None:
    """The one torch file in a folder without ranks, if there is one and no safetensors."""
    files = list(folder.glob("*.pt"))
    return files[0] if len(files) == 1 and not any(folder.glob("*.safetensors*")) else None


def _read_rank(file: Path) -> tuple[dict[str, Stored], list[Unused]]:
    """Tensors of the model in a rank's file by their place, and what else is in it."""
    tensors: dict[str, Stored] = {}
    unused: dict[str, Unused] = {}
    for place, item in stored_torch(file):
        top, inside = place[:1], place[1:] if place[:1] == ("model",) else place
        name = ".".join(inside)
        if inside[:1] not in [(part,) for part in PARTS] and top != ("model",):
            why = "Megatron's record of the training, no part of the model"
            unused.setdefault(top[0] if top else "", Unused(top[0] if top else "", file, why))
        elif isinstance(item, Stored):
            tensors[name] = dataclasses.replace(item, name=name)
        elif name.endswith("_extra_state"):
            unused[name] = Unused(name, file, "Transformer Engine's state of a layer, no weights")
        else:
            raise CheckpointError(
                f"{file}: {name} is no tensor but a {type(item).__name__}; expected the tensors of "
                f"{', '.join(PARTS)}"
            )
    if not any(name.startswith("vlm.") for name in tensors):
        raise CheckpointError(
            f"{file}: holds no 'model' with {', '.join(PARTS)}, but "
            f"{some([*unused, *tensors]) or 'nothing'}; virtual pipeline stages (model0, ...) and "
            "checkpoints of a language model alone are not read"
        )
    return tensors, list(unused.values())


def _check_count(
    folder: Path, config: AnchorVLA4DConfig, ranks: Sequence[Mapping[str, Stored]]
) -> None:
    """Are all shards there? What each holds of the embedding table tells how many there must be.

    Raises:
        CheckpointError: there are not.
    """
    theirs, _ = their_name("vlm.model.embed_tokens.weight")
    if theirs not in ranks[0] or not ranks[0][theirs].shape:
        return
    rows, vocabulary = ranks[0][theirs].shape[0], config.language.vocab_size
    if rows and vocabulary % rows == 0 and vocabulary // rows != len(ranks):
        count = vocabulary // rows
        raise CheckpointError(
            f"{folder}: {len(ranks)} tensor-parallel shards, of which mp_rank_00 holds {rows} of "
            f"the {vocabulary} rows of {theirs}: expected {count} shards, mp_rank_00 to "
            f"mp_rank_{count - 1:02d}; copy all of one training, and no others"
        )


def _check_rank(
    misfits: Misfits,
    rank: str,
    tensors: Mapping[str, Stored],
    wanted: Mapping[str, Place],
    config: AnchorVLA4DConfig,
) -> None:
    """Collect what does not fit in a rank's tensors."""
    where = f" of {rank}" if rank else ""
    shapes = {place.theirs: place.shape for place in wanted.values()}
    misfits.missing += [name + where for name in sorted(shapes.keys() - tensors.keys())]
    misfits.extra += [name + where for name in tensors if name not in shapes and name not in UNUSED]
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            got = tensors[name].shape
            misfits.misshaped.append(
                f"{name}{where} {list(got)}, expected {list(shape)}"
                + _heads(name, got, shape, config)
            )


def _heads(
    name: str, got: tuple[int, ...], expected: tuple[int, ...], config: AnchorVLA4DConfig
) -> str:
    """What the rows of a fused QKV say about the number of heads, in words."""
    language = config.language
    if not name.startswith("vlm.text_decoder.") or "linear_qkv" not in name or not got:
        return ""
    queries, keys, head = (
        language.num_attention_heads, language.num_key_value_heads, language.head_dim,
    )  # fmt: skip
    ranks = (queries + 2 * keys) * head // expected[0]
    stored = got[0] * ranks / head
    hint = (stored - queries) / 2
    fits = f"; {hint:.0f} key/value heads would fit" if hint >= 1 and hint % 1 == 0 else ""
    return (
        f" ({queries} query and {keys} key/value heads of {head} rows make {queries + 2 * keys} "
        f"fused heads, these are {stored:g}{fits})"
    )


def _source(
    folder: Path, name: str, shape: tuple[int, ...], place: Place, stored: Sequence[Stored]
) -> Source:
    dtype = stored[0].dtype
    assert not isinstance(dtype, str)
    read = partial(_read, folder, place, tuple(stored))
    return Source(name, shape, dtype, tuple(stored), place.how, read)


def _read(folder: Path, place: Place, stored: Sequence[Stored]) -> Tensor:
    try:
        return take(place, [each.read() for each in stored])
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}; take the shards of one iteration") from None
