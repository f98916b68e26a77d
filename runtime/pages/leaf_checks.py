"""What leaves of an episode are held against, what they contradict, and which pictures came."""

from __future__ import annotations

import math

from ..control.foresight import Foreseen
from ..control.trace import Trace
from .markup import Markup, element
from .page import Column, facts, sentence, table
from .picture import figure
from .svg import lines

MOST_NOTICES = 20
"""Rows of a table; what is more is counted."""


def checks_of(trace: Trace) -> list[Markup]:
    """Of one episode; nothing if no leaf declares a meaning."""
    against = {name: of.against for name, of in trace.leaves.items() if of.against}
    if not against:
        return []
    seen = [
        part
        for name, of in trace.leaves.items()
        if of.foreseen is not None
        for part in _foreseen(name, of.foreseen, trace.period_s)
    ]
    return [
        element("h4", "What leaves are held against"),
        facts(against),
        *(_notices(trace) if trace.notices else []),
        *seen,
    ]


def _notices(trace: Trace) -> list[Markup]:
    """What they contradicted, the first ones."""
    head = [Column("seconds"), Column("notice", "name"), Column("why", "words")]
    rows = [
        (f"{notice.step * trace.period_s:.1f}", notice.kind, notice.words)
        for notice in trace.notices[:MOST_NOTICES]
    ]
    more = len(trace.notices) - len(rows)
    return [
        element("h4", "What leaves contradicted"),
        table(head, rows),
        *([sentence(f"And {more:,} more.")] if more else []),
    ]


def _foreseen(name: str, of: Foreseen, period_s: float) -> list[Markup]:
    """Pictures that were expected above those that came, and how near they were over time."""
    if not of.num_came:
        return []
    pairs = of.pairs.things.values()
    strip = [
        figure(
            [(pair.expected, "expected"), (pair.came, f"{of.camera} then")],
            f"{pair.step * period_s:.1f} s, {pair.distance:.3f}",
        )
        for pair in pairs
    ]
    signals = {
        "distance": [(look.step * period_s, look.distance) for look in of.looks],
        "progress": [
            (look.step * period_s, look.progress) for look in of.looks if look.progress is not None
        ],
    }
    charts = [
        lines(
            {what: points}, title=f"{name}, {what}, over the episode", x_title="seconds",
            y_title=what, width=420, height=170, from_zero=what == "distance",
            least_span=1.0 if what == "progress" else 0.0,
        )
        for what, points in signals.items()
        if any(map(math.isfinite, (value for _, value in points)))
    ]  # fmt: skip
    early = sum(pair.step < pair.due_step for pair in pairs)
    return [
        element("h4", f"{name}: expected above, what camera {of.camera} showed then below"),
        element("div", *strip, class_="strip scroll", tabindex=0),
        element("div", *charts, class_="small"),
        sentence(
            "Below each pair are time and distance, which is the mean difference of both pictures; "
            "black and white are 1 apart. "
            "Progress is the share of it that was gone since the policy was asked: 1 where the "
            "picture came as expected, 0 where nothing came nearer."
            + (" The last pictures were not due when the episode ended." if early else "")
        ),
    ]
