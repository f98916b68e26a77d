"""How near the actions of a policy are to those that were recorded, per dimension and in its unit.

Predicted is what the loop carried out: of every chunk its first actions, on the frame that the
recording shows at that step. Open loop, that is: the recording goes on as recorded, whatever the
policy does, so a small error promises no success.

N = step, A = action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..control.trace import Trace
from .markup import Markup, element
from .page import Column, sentence, table
from .svg import lines

LEAST_SPAN = 0.5
"""Of a chart's axis, over what is 1 to the policy: a quarter of the range of the statistics."""
EXPLAINED = (
    "Predicted are the actions that were carried out, each beside what was recorded on its frame. "
    "Best constant: the error of repeating the recording's median; a policy that errs as much has "
    "learned nothing of that dimension. The recording goes on whatever the policy does, so none of "
    "this tells success."
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """An episode that was driven."""

    name: str
    """Of the recording, or of the task."""
    trace: Trace
    recorded_NA: NDArray[np.float32] | None = None
    """What was done when it was recorded, robot units; None where nobody recorded anything."""
    names: tuple[str, ...] | None = None
    """Of the action dimensions, as whoever recorded it calls them."""

    @property
    def predicted_NA(self) -> NDArray[np.float32]:
        """What the policy did."""
        return np.stack([step.action for step in self.trace.steps])

    @property
    def num_compared(self) -> int:
        """Steps for which there are both; a run that was cut short has fewer than its recording."""
        recorded = 0 if self.recorded_NA is None else len(self.recorded_NA)
        return min(len(self.trace.steps), recorded)


@dataclass(frozen=True, kw_only=True, slots=True)
class DimensionError:
    """Of one action dimension, in its unit."""

    mean: float
    """Mean absolute error."""
    largest: float
    low: float
    """Least recorded value."""
    high: float
    constant: float
    """Mean absolute error of the best constant, the recording's median."""


def dimension_errors(runs: Sequence[Run]) -> list[DimensionError]:
    """Over all compared steps of all runs; empty if there are none."""
    pairs = [
        (run.predicted_NA[: run.num_compared], run.recorded_NA[: run.num_compared])
        for run in runs
        if run.recorded_NA is not None and run.num_compared
    ]
    if not pairs:
        return []
    predicted, recorded = (
        np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True)
    )
    errors = np.abs(predicted - recorded)
    from_median = np.abs(recorded - np.median(recorded, axis=0))
    return [
        DimensionError(
            mean=float(errors[:, d].mean()),
            largest=float(errors[:, d].max()),
            low=float(recorded[:, d].min()),
            high=float(recorded[:, d].max()),
            constant=float(from_median[:, d].mean()),
        )
        for d in range(errors.shape[1])
    ]


def error_table(runs: Sequence[Run], units: Sequence[str]) -> list[Markup]:
    """The errors, and of how many steps they are; nothing where nothing was recorded."""
    errors = dimension_errors(runs)
    head = [
        Column("action", "name"), Column("unit", "name"), Column("mean absolute error"),
        Column("largest"), Column("best constant"), Column("recorded from"), Column("to"),
    ]  # fmt: skip
    rows = [
        (
            _name(runs, d),
            unit,
            *(f"{v:.3g}" for v in (e.mean, e.largest, e.constant, e.low, e.high)),
        )
        for d, (unit, e) in enumerate(zip(units, errors, strict=bool(errors)))
    ]
    return [table(head, rows), sentence(_how_many(runs))] if errors else []


def action_charts(run: Run, units: Sequence[str], scales: Sequence[float]) -> Markup:
    """One chart per dimension: predicted, and recorded where it was. Marks: a new chunk."""
    predicted = run.predicted_NA
    thoughts = [float(i) for i, step in enumerate(run.trace.steps) if step.act_s is not None]
    charts = []
    for d, (unit, scale) in enumerate(zip(units, scales, strict=True)):
        series = {"predicted": _points(predicted[:, d])}
        if run.recorded_NA is not None:
            series["recorded"] = _points(run.recorded_NA[:, d])
        name = _name([run], d)
        words = f"action {name}" if name == str(d) else name
        words += f", {unit}" if unit else ""
        charts.append(
            lines(
                series, title=f"{words}: {' and '.join(series)}, by step", x_title="step",
                y_title=words, width=420, height=170, marks=thoughts,
                least_span=LEAST_SPAN * float(scale),
            )
        )  # fmt: skip
    return element("div", *charts, class_="small")


def _name(runs: Sequence[Run], dimension: int) -> str:
    """That all runs give it, or its number."""
    names = {run.names[dimension] if run.names else "" for run in runs}
    return names.pop() or str(dimension) if len(names) == 1 else str(dimension)


def _points(values_N: NDArray[np.float32]) -> list[tuple[float, float]]:
    return [(float(i), float(value)) for i, value in enumerate(values_N)]


def _how_many(runs: Sequence[Run]) -> str:
    compared = sum(run.num_compared for run in runs)
    recorded = sum(len(run.recorded_NA) for run in runs if run.recorded_NA is not None)
    if compared == recorded:
        return f"Over all {recorded:,} recorded steps."
    return f"Over {compared:,} of {recorded:,} recorded steps: the run was cut short."
