"""Leaves of a run on paper: how often each was read, what it said, how far from the truth it was.

Only a simulator knows the truth, of the moment in which somebody looked for the observation that a
leaf was read from. An error is the distance of the two, in the leaf's unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..control.leaves import Reading
from ..control.trace import Leaf, Trace
from ..declarations import Output
from .markup import Markup, element
from .page import Column, chart, sentence, table
from .svg import lines, plane

MOST_LINES = 16
LEAST_SIDE = 0.1
"""Side of a plane at least, as a part of how far the truth is from the origin: what hardly differs
is not blown up to the height of a chart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeafErrors:
    """Of a leaf, over all readings of which the truth is known."""

    num: int
    median: float
    p95: float
    largest: float
    constant: float
    """Median error of whoever always says the mean of these very truths."""


def leaf_errors(leaves: Sequence[Leaf]) -> LeafErrors | None:
    """Of one leaf in several episodes; None where nobody knew better."""
    readings = [r for leaf in leaves for r in leaf.history]
    pairs = [(reading.value, reading.truth) for reading in readings if reading.truth is not None]
    if not pairs:
        return None
    said, known = (np.stack([np.ravel(a) for a in side]) for side in zip(*pairs, strict=True))
    errors = np.linalg.norm(said - known, axis=1)
    constant = np.linalg.norm(known - known.mean(axis=0), axis=1)
    return LeafErrors(
        num=len(errors),
        median=float(np.median(errors)),
        p95=float(np.quantile(errors, 0.95)),
        largest=float(errors.max()),
        constant=float(np.median(constant)),
    )


def all_errors(traces: Sequence[Trace]) -> dict[str, LeafErrors]:
    """By leaf, of those that somebody knew the truth of."""
    names = dict.fromkeys(name for trace in traces for name in trace.leaves)
    found = {n: leaf_errors([t.leaves[n] for t in traces if n in t.leaves]) for n in names}
    return {name: errors for name, errors in found.items() if errors is not None}


def error_words(errors: LeafErrors, output: Output) -> str:
    """In a line."""
    unit = unit_of(output)
    return (
        f"{errors.median:.2g}{unit} off in the median, {errors.p95:.2g}{unit} p95 of "
        f"{errors.num} readings"
    )


def error_lines(trace: Trace, outputs: Mapping[str, Output]) -> list[str]:
    """Of an episode, a line for each leaf that somebody knew the truth of."""
    found = all_errors([trace])
    return [f"leaf {name}: {error_words(errors, outputs[name])}" for name, errors in found.items()]


def errors_as_json(traces: Sequence[Trace], outputs: Mapping[str, Output]) -> dict[str, Any]:
    """`leaf_errors` by leaf, with their units; nothing where nobody knew the truth."""
    found = {
        name: asdict(errors) | {"unit": unit_of(outputs[name]).strip()}
        for name, errors in all_errors(traces).items()
    }
    return {"leaf_errors": found} if found else {}


def unit_of(output: Output) -> str:
    """Behind a number, where all of a leaf have one unit."""
    units = set(output.units)
    return f" {units.pop()}" if len(units) == 1 else ""


def show_errors(traces: Sequence[Trace], outputs: Mapping[str, Output]) -> list[Markup]:
    """All episodes together; nothing where nobody knew the truth."""
    found = all_errors(traces)
    head = [
        Column("leaf", "name"), Column("unit", "name"), Column("readings"), Column("median error"),
        Column("p95"), Column("largest"), Column("best constant, median"),
    ]  # fmt: skip
    rows = [
        (
            name, unit_of(outputs[name]).strip(), f"{e.num:,}",
            *(f"{value:.2f}" for value in (e.median, e.p95, e.largest, e.constant)),
        )
        for name, e in found.items()
    ]  # fmt: skip
    words = (
        "Distance of a leaf from what the simulator knew when the picture was taken that it was "
        "read from. Best constant: the error of always saying the mean of these truths. No policy "
        "is shown any of them."
    )
    planes = [
        chart(_plane(name, readings, outputs[name], width=860, height=360))
        for name in found
        if (readings := [r for t in traces if name in t.leaves for r in t.leaves[name].history])
        and len(outputs[name].units) > 1
    ]
    return [table(head, rows), *planes, sentence(words)] if rows else []


def show_leaves(trace: Trace, outputs: Mapping[str, Output]) -> list[Markup]:
    """What was read between thoughts: how often, and small ones over the episode."""
    head = [
        Column("leaf", "name"), Column("read"), Column("skipped"), Column("failed"),
        Column("median, ms"), Column("longest, ms"), Column("median error"), Column("p95 error"),
    ]  # fmt: skip
    rows = [_row(name, leaf, outputs) for name, leaf in trace.leaves.items()]
    if known := any(leaf.errors for leaf in trace.leaves.values()):
        shown = head
    else:
        shown, rows = head[:-2], [row[:-2] for row in rows]
    charts = [
        picture
        for name, leaf in trace.leaves.items()
        if leaf.history
        for picture in _charts(name, leaf.history, outputs[name], known=known)
    ]
    return [
        element("h4", "Leaves"),
        table(shown, rows),
        *([element("div", *charts, class_="small")] if charts else []),
    ]


def _row(name: str, leaf: Leaf, outputs: Mapping[str, Output]) -> tuple[str, ...]:
    count, errors = leaf.count, leaf_errors([leaf])
    unit = unit_of(outputs[name])
    took_ms = [1e3 * reading.took_s for reading in leaf.history]
    return (
        name,
        f"{count.num_run:,}",
        f"{count.num_skipped:,}",
        f"{count.num_failed:,}",
        f"{np.median(took_ms):.2f}" if took_ms else "",
        f"{1e3 * count.longest_s:.2f}",
        f"{errors.median:.1f}{unit}" if errors else "",
        f"{errors.p95:.1f}{unit}" if errors else "",
    )


def _charts(name: str, history: Sequence[Reading], output: Output, *, known: bool) -> list[Markup]:
    """Beside the truth where it is known; else what was said, over the episode: nothing where that
    is one point, or more lines than can be told apart."""
    start = history[0].looked_at
    errors = [(r.looked_at - start, r.error) for r in history if r.error is not None]
    unit = unit_of(output)
    if known and errors:
        off = lines(
            {"error": errors}, title=f"{name}: distance from the truth, over the episode",
            x_title="seconds", y_title=f"{name} off by{unit and ',' + unit}", width=420,
            height=270, from_zero=True,
        )  # fmt: skip
        if history[0].value.size < 2:
            return [off]
        return [_plane(name, history, output, width=420, height=270), off]
    if len(history) < 2 or history[0].value.size > MOST_LINES:
        return []
    series: dict[str, list[tuple[float, float]]] = {}
    for reading in history:
        for index, number in enumerate(reading.value.ravel()):
            label = name if reading.value.size == 1 else _element(output, index)
            series.setdefault(label, []).append((reading.looked_at - start, float(number)))
    return [
        lines(
            series, title=f"{name}, over the episode", x_title="seconds",
            y_title=f"{name}{unit and ',' + unit}", width=420, height=170,
        )
    ]  # fmt: skip


def _plane(
    name: str, readings: Sequence[Reading], output: Output, *, width: float, height: float
) -> Markup:
    """The first two numbers as places in a plane."""
    pairs = [(r.value.ravel(), r.truth.ravel()) for r in readings if r.truth is not None]
    said, true = ([(float(a[0]), float(a[1])) for a in side] for side in zip(*pairs, strict=True))
    unit, far = unit_of(output), max(float(np.hypot(*place)) for place in true)
    return plane(
        {"the simulator knows": list(dict.fromkeys(true)), "the policy says": said},
        title=f"{name}: where the policy says it is, and where it is, seen from above",
        x_title=f"{_element(output, 0)}{unit and ',' + unit}",
        y_title=f"{_element(output, 1)}{unit and ',' + unit}",
        width=width,
        height=height,
        least_span=LEAST_SIDE * far,
        links=list(zip(said, true, strict=True)),
    )


def _element(output: Output, index: int) -> str:
    return output.names[index] if output.names else str(index)
