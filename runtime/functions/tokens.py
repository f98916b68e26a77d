"""Host functions that make tokens: of images and texts, and where all of them stand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import Struct

from .. import prompt
from ..depth import DepthPatchMaker
from ..image import ImageConfig, PatchMaker
from ..prompt import Segment
from .function import Arrays, Function, HostFunction, Ports, Resources, Values, misfit


class Patches(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image becomes patches."""

    grid: tuple[int, int]
    """Patches of the exported image, rows and columns."""
    image: ImageConfig


class DepthPatches(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a depth map becomes patches, see `runtime.depth`."""

    grid: tuple[int, int]
    """Patches of the exported map, rows and columns."""
    image: ImageConfig
    """Of the pictures beside it."""
    scale_m: float
    """Above zero."""
    missing: float
    """What a pixel of which nothing was measured becomes, 0 (far) to 1 (near)."""
    range_m: tuple[float, float] | None = None
    """The nearest and the farthest depth that count as measured; all if it is left out."""


class Embed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows of a table."""

    table: str
    ids: tuple[int, ...] = ()
    """Constant, where no text gives them."""


class Rotary(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Segments of a prompt, and the position of the first."""

    segments: tuple[int | tuple[int, int], ...]
    start: int
    theta: float
    sections: tuple[int, ...]
    optional: int = 0
    """Of the segments, pairs at the end of which the first `count` are there."""
    stop: int | None = None
    """The position behind the last token, where that is known and not the first one's."""
    interleaved: bool = False
    """Whether the sections take turns, see `prompt.mrope_tables`."""
    behind: int = 0
    """If above 0, the tables are of so many tokens behind the text alone."""


class Mask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens of a call, a text's not counted."""

    num_past: int | tuple[int, ...]
    """Tokens before it; of a past of several equal blocks, those at the start of each."""
    num_new: int
    num_open: int = 0
    """Of the new ones, those at the start that see all of them."""
    text_is_past: bool = False
    """Whether the text is not among the new ones, but behind those of the past."""
    optional: tuple[int, ...] = ()
    """Of the new ones, tokens of each piece at the end of which the first `count` are there."""


class Padding(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens of calls one behind the other, each as long as the others; a text's not counted."""

    counts: tuple[int, ...]


class Places(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of tokens in a call."""

    num_new: int
    """Tokens of the call before the text."""
    id: int | None = None
    """That they begin with. If none is named, they are the last of the text."""


class Pooling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens that are pooled, a text's not counted."""

    num_spatial: int
    num_prefix: int | tuple[int, ...]
    """Of several calls those of each, which have as many columns as the suffix."""
    num_suffix: int


def _patches(params: Patches, resources: Resources) -> HostFunction:
    make = PatchMaker(params.image, params.grid)

    def run(values: Values, out: Arrays) -> None:
        images, rows = values["image"], out["patches"]
        if images.ndim == 3:
            make(images, rows)
            return
        for image, part in zip(images, np.split(rows, len(images)), strict=True):
            make(image, part)

    return run


def _check_patches(params: Patches, ports: Ports) -> str:
    shape = ports["image"].shape
    return _check_grid(params.grid, params.image, shape[0] if len(shape) == 4 else 1, ports)


def _depth_patches(params: DepthPatches, resources: Resources) -> HostFunction:
    make = DepthPatchMaker(
        params.image,
        params.grid,
        scale_m=params.scale_m,
        missing=params.missing,
        range_m=params.range_m,
    )

    def run(values: Values, out: Arrays) -> None:
        make(values["depth"], out["patches"])

    return run


def _check_depth_patches(params: DepthPatches, ports: Ports) -> str:
    if not 0 < params.scale_m < float("inf"):
        return f"scale_m is {params.scale_m}, a finite number above 0 is wanted"
    if not 0 <= params.missing <= 1:
        return f"missing is {params.missing}, 0 (far) to 1 (near) is wanted"
    if params.range_m is not None and not 0 <= params.range_m[0] < params.range_m[1] < float("inf"):
        return f"range_m is {list(params.range_m)}, a nearest and a farther depth are wanted"
    return _check_grid(params.grid, params.image, 1, ports)


def _check_grid(grid: tuple[int, int], c: ImageConfig, count: int, ports: Ports) -> str:
    """Of so many pictures."""
    rows, columns = grid
    if rows % c.merge_size or columns % c.merge_size or min(rows, columns) < 1:
        return f"a grid of {rows}x{columns} patches does not merge by {c.merge_size}"
    return misfit("patches", ports, (rows * columns * count, c.patch_dim))


def _embed(params: Embed, resources: Resources) -> HostFunction:
    table = resources.tables[params.table]
    if params.ids and not 0 <= min(params.ids) <= max(params.ids) < len(table):
        raise ValueError(f"ids {params.ids} lie outside of table {params.table!r} [{len(table)}]")

    def run(values: Values, out: Arrays) -> None:
        ids = list(values.get("ids", params.ids))
        rows = out["embeddings"]
        picked = table[ids]
        if picked.dtype == np.uint16:
            picked = (picked.astype(np.uint32) << 16).view(np.float32)
        rows[: len(ids)] = picked
        rows[len(ids) :] = 0

    return run


def _check_embed(params: Embed, ports: Ports) -> str:
    rows = ports["embeddings"].shape
    count = _text(ports) or len(params.ids)
    if "ids" in ports and params.ids:
        return "constant ids beside a text"
    return "" if len(rows) == 2 and count <= rows[0] else _too_many(count, "embeddings", rows)


def _rotary(params: Rotary, resources: Resources) -> HostFunction:
    pieces = 2 * params.optional
    fixed: list[Segment] = list(params.segments[: len(params.segments) - pieces])
    optional: list[Segment] = list(params.segments[len(fixed) :])

    def run(values: Values, out: Arrays) -> None:
        tail = [len(values["ids"])] if "ids" in values else []
        there = [*fixed, *optional[: 2 * _count(values)]]
        start = params.start
        if params.stop is not None:
            start = params.stop - prompt.num_tokens([*there, *tail])
        positions, _ = prompt.mrope_positions([*there, *tail, params.behind], start)
        cos, sin = prompt.mrope_tables(
            positions,
            theta=params.theta,
            sections=params.sections,
            interleaved=params.interleaved,
        )
        if params.behind:
            out["cos"][:], out["sin"][:] = cos[-params.behind :], sin[-params.behind :]
            return
        last, behind = prompt.num_tokens(there), prompt.num_tokens(params.segments)
        out["cos"][:], out["sin"][:] = 1, 0
        for port, table in (("cos", cos), ("sin", sin)):
            out[port][:last], out[port][behind : behind + sum(tail)] = table[:last], table[last:]

    return run


def _check_rotary(params: Rotary, ports: Ports) -> str:
    rows, count = ports["cos"].shape, prompt.num_tokens(params.segments) + _text(ports)
    half = sum(params.sections)
    if ("count" in ports) != bool(params.optional) or 2 * params.optional > len(params.segments):
        return f"{params.optional} optional pairs of {len(params.segments)} segments need a count"
    if params.interleaved and (len(params.sections) != 3 or 3 * max(params.sections[1:]) > half):
        return f"sections {list(params.sections)} cannot take turns"
    width = 2 * half
    if params.stop is not None and (params.start or params.stop < count):
        return f"{count} tokens from {params.start} on do not end at position {params.stop}"
    if params.stop is not None and not all(isinstance(s, int) for s in params.segments):
        return "a position behind the last token, of segments that are not all text"
    if params.behind < 0 or params.behind and params.stop is not None:
        return f"{params.behind} tokens behind the text, which ends at {params.stop}"
    if params.behind:
        rows = (params.behind,)
    elif len(rows) != 2 or count > rows[0]:
        return _too_many(count, "cos", rows)
    return misfit("cos", ports, (rows[0], width)) or misfit("sin", ports, (rows[0], width))


def _mask(params: Mask, resources: Resources) -> HostFunction:
    def run(values: Values, out: Arrays) -> None:
        count, before, text = params.num_new, params.num_past, len(values.get("ids", ()))
        if params.text_is_past:
            before = sum(_each(before)) + text
        else:
            count += text
        slots, columns = out["mask"].shape
        past = columns - slots
        out["mask"][:] = prompt.attention_mask(before, past, count, slots, params.num_open)
        absent = sum(params.optional[_count(values) :])
        prompt.hide(out["mask"], past, range(params.num_new - absent, params.num_new))

    return run


def _check_mask(params: Mask, ports: Ports) -> str:
    text, blocks = _text(ports), _each(params.num_past)
    if params.text_is_past:
        if len(blocks) > 1:
            return f"a text behind a past of {len(blocks)} blocks"
        blocks, text = (blocks[0] + text,), 0
    rows, count = ports["mask"].shape, params.num_new + text
    if not 0 <= params.num_open <= params.num_new:
        return f"{params.num_open} of {params.num_new} tokens cannot see all of them"
    if ("count" in ports) != bool(params.optional) or sum(params.optional) > params.num_new:
        return f"optional {list(params.optional)} of {params.num_new} tokens need a count"
    if len(rows) != 2 or count > rows[0]:
        return _too_many(count, "mask", rows)
    if not blocks or (rows[1] - rows[0]) % len(blocks):
        return f"mask {list(rows)} does not show a past of {len(blocks)} blocks alike"
    fits = max(blocks) <= (rows[1] - rows[0]) // len(blocks)
    return "" if fits else _too_many(count, "mask", rows)


def _padding(params: Padding, resources: Resources) -> HostFunction:
    def run(values: Values, out: Arrays) -> None:
        *counts, last = params.counts
        rows = out["mask"].reshape(len(params.counts), -1)
        for row, count in zip(rows, [*counts, last + len(values.get("ids", ()))], strict=True):
            row[:count], row[count:] = 0, prompt.MASKED

    return run


def _check_padding(params: Padding, ports: Ports) -> str:
    shape, calls = ports["mask"].shape, len(params.counts)
    if len(shape) != 1 or not calls or shape[0] % calls:
        return f"mask {list(shape)} is not of {calls} calls alike"
    count = max(*params.counts, params.counts[-1] + _text(ports))
    return "" if count <= shape[0] // calls else _too_many(count, "mask", shape)


def _places(params: Places, resources: Resources) -> HostFunction:
    def run(values: Values, out: Arrays) -> None:
        rows = out["places"]
        rows[:] = 0
        places = prompt.last_places(values["ids"], params.id, len(rows))
        rows[np.arange(len(rows)), np.array(places) + params.num_new] = 1

    return run


def _check_places(params: Places, ports: Ports) -> str:
    shape, count = ports["places"].shape, params.num_new + _text(ports)
    return "" if len(shape) == 2 and count <= shape[1] else _too_many(count, "places", shape)


def _pooling(params: Pooling, resources: Resources) -> HostFunction:
    def run(values: Values, out: Arrays) -> None:
        bins, columns = out["weights"].shape
        num_spatial, num_suffix = params.num_spatial, params.num_suffix + len(values["ids"])
        slots = (columns - num_spatial) // (len(_each(params.num_prefix)) + 1)
        out["weights"][:] = prompt.pooling_matrix(
            bins, num_spatial, params.num_prefix, num_suffix, slots
        )

    return run


def _check_pooling(params: Pooling, ports: Ports) -> str:
    shape, count = ports["weights"].shape, params.num_suffix + _text(ports)
    calls = [*_each(params.num_prefix), count]
    slots, rest = divmod(shape[-1] - params.num_spatial, len(calls))
    if len(shape) == 2 and rest:
        return f"weights {list(shape)} are not of {len(calls)} calls alike"
    fits = len(shape) == 2 and max(calls) <= slots
    return "" if fits else _too_many(max(calls), "weights", shape)


def _count(values: Values) -> int:
    """Optional pieces that are there."""
    return int(values["count"][0]) if "count" in values else 0


def _each(counts: int | tuple[int, ...]) -> tuple[int, ...]:
    """Of one, or of each of several."""
    return (counts,) if isinstance(counts, int) else counts


def _text(ports: Ports) -> int:
    """Tokens that the text may take."""
    return ports["ids"].shape[0] if "ids" in ports else 0


def _too_many(count: int, port: str, shape: tuple[int, ...]) -> str:
    return f"{count} tokens do not fit {port!r}, which is {list(shape)}"


_IDS = {"ids": ("text",)}
_PLACED = {**_IDS, "count": ("vector",)}
FUNCTIONS: Mapping[str, Function] = {
    "patches": Function(
        params=Patches, make=_patches, check=_check_patches,
        inputs={"image": ("image", "video")}, outputs=("patches",),
    ),
    "depth_patches": Function(
        params=DepthPatches, make=_depth_patches, check=_check_depth_patches,
        inputs={"depth": ("depth",)}, outputs=("patches",),
    ),
    "embed": Function(
        params=Embed, make=_embed, check=_check_embed,
        inputs=_IDS, optional=("ids",), outputs=("embeddings",),
    ),
    "rotary": Function(
        params=Rotary, make=_rotary, check=_check_rotary,
        inputs=_PLACED, optional=("ids", "count"), outputs=("cos", "sin"),
    ),
    "mask": Function(
        params=Mask, make=_mask, check=_check_mask,
        inputs=_PLACED, optional=("ids", "count"), outputs=("mask",),
    ),
    "padding": Function(
        params=Padding, make=_padding, check=_check_padding,
        inputs=_IDS, optional=("ids",), outputs=("mask",),
    ),
    "places": Function(
        params=Places, make=_places, check=_check_places, inputs=_IDS, outputs=("places",),
    ),
    "pooling": Function(
        params=Pooling, make=_pooling, check=_check_pooling, inputs=_IDS, outputs=("weights",),
    ),
}  # fmt: skip
