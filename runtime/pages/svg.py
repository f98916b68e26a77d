"""Small charts as SVG: grouped bars, lines. No plotting library on a robot.

Every function returns a whole `<svg>` element that scales to the width of the page, has a name for
those who cannot see it, and takes its colours from the page (`palette.py`); `standalone` makes a
file of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..storage.files import MARK
from .markup import Markup, element
from .palette import EDGE, INK, MUTED, RULE, SERIES, colour, in_light

FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
CHARACTER = 0.58
"""Width of an average one over the size of the font."""
DASHES = ("none", "6 3", "2 3")
"""Of lines that have to share a colour."""


def label(
    x: float, y: float, words: str, *, size: float = 12, fill: str = INK, anchor: str = "start"
) -> Markup:
    """A line of text."""
    return element(
        "text", words, x=round(x, 1), y=round(y, 1), font_size=size, fill=fill, text_anchor=anchor
    )


def svg(width: float, height: float, parts: Sequence[Markup], *, title: str) -> Markup:
    """The outer element. It never grows wider than it was drawn; `title` is its name."""
    return element(
        "svg",
        *parts,
        class_=MARK,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {round(width)} {round(height)}",
        style=f"--drawn:{round(width)}px;width:100%;max-width:{round(width)}px;height:auto",
        font_family=FONT,
        role="img",
        aria_label=title,
    )


def standalone(picture: Markup) -> str:
    """A picture of a page as a file of its own: light, whatever shows it."""
    head, rest = picture.split(">", 1)
    ground = element("rect", width="100%", height="100%", fill=colour("paper"))
    return in_light(f"{head}>{ground}{rest}\n")


def bars(
    rows: Mapping[str, Mapping[str, float]], *, title: str, unit: str, width: float = 860
) -> Markup:
    """Horizontal bars: one row per key, one bar per series inside it. Missing values stay empty."""
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    left, right, thick, gap = 150.0, 90.0, 12.0, 10.0
    largest = max((v for row in rows.values() for v in row.values()), default=0.0) or 1.0
    scale = (width - left - right) / largest
    parts, y = legend(series, left, 12, width)
    y += 18.0
    for name, row in rows.items():
        block = len(series) * thick
        parts.append(label(left - 10, y + block / 2 + 4, name, anchor="end"))
        for i, key in enumerate(series):
            if key not in row:
                continue
            top, length = y + i * thick, max(row[key] * scale, 1.0)
            parts.append(
                element(
                    "rect", x=left, y=top, width=round(length, 1), height=thick - 2, rx=2,
                    fill=SERIES[i % len(SERIES)],
                )
            )  # fmt: skip
            words = f"{row[key]:.3g} {unit}"
            parts.append(label(left + length + 6, top + 9, words, size=11, fill=MUTED))
        y += block + gap
    return svg(width, y, parts, title=title)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_title: str,
    y_title: str,
    width: float = 860,
    height: float = 220,
    from_zero: bool = False,
    least_span: float = 0.0,
    marks: Sequence[float] = (),
) -> Markup:
    """Lines over shared axes; a series is a sequence of (x, y) in ascending x.

    What is not finite has no place; it is left out and counted.

    Args:
        least_span: of y; a line that hardly moves is not blown up to the height of the chart.
        marks: values of x that are marked on its axis.
    """
    given = [p for line in series.values() for p in line]
    points = [p for p in given if all(map(math.isfinite, p))] or [(0.0, 0.0)]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x_ticks = _round_ticks(min(xs), max(xs), 8 if width > 600 else 5)
    low, high = 0.0 if from_zero else min(ys), max(ys)
    pad = max(least_span - (high - low), 0.0) / 2
    y_ticks = _round_ticks(low - pad, high + pad, 4)
    left, right, bottom = 54.0, 12.0, 36.0
    parts = [label(6, 16, y_title, size=11, fill=MUTED)]
    start = left + 20 + CHARACTER * 11 * max(len(y_title) - 8, 0)
    keys, top = legend(list(series), start, 12, width) if len(series) > 1 else ([], 12.0)
    parts += keys
    height, top = height + top - 12, top + 18
    x_scale = (width - left - right) / (x_ticks[-1] - x_ticks[0])
    y_scale = (height - top - bottom) / (y_ticks[-1] - y_ticks[0])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + (x - x_ticks[0]) * x_scale, 1),
            round(height - bottom - (y - y_ticks[0]) * y_scale, 1),
        )

    for tick in y_ticks:
        y = place(0, tick)[1]
        parts.append(element("line", x1=left, x2=width - right, y1=y, y2=y, stroke=RULE))
        parts.append(label(left - 8, y + 4, f"{tick:g}", size=11, fill=MUTED, anchor="end"))
    for tick in x_ticks:
        x = place(tick, 0)[0]
        parts.append(label(x, height - 20, f"{tick:g}", size=11, fill=MUTED, anchor="middle"))
    parts.append(label(width - right, height - 4, x_title, size=11, fill=MUTED, anchor="end"))
    if lost := sum(not all(map(math.isfinite, p)) for p in given):
        words = f"not drawn: {lost} that are no number"
        parts.append(label(left, height - 4, words, size=11, fill=MUTED))
    for mark in marks:
        x, y = place(mark, y_ticks[0])
        parts.append(element("line", x1=x, x2=x, y1=y, y2=y + 5, stroke=EDGE))
    for i, line in enumerate(series.values()):
        path = " ".join(
            f"{x},{y}" for x, y in (place(*p) for p in line if all(map(math.isfinite, p)))
        )
        parts.append(
            element(
                "polyline", points=path, fill="none", stroke=SERIES[i % len(SERIES)],
                stroke_width=1.8, stroke_linejoin="round", stroke_dasharray=_dashes(i),
            )
        )  # fmt: skip
    return svg(width, height, parts, title=title)


def plane(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_title: str,
    y_title: str,
    width: float = 860,
    height: float = 320,
    least_span: float = 0.0,
    links: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> Markup:
    """Places in a plane, in one scale for x and y.

    The first series is drawn as crosses in rings, the others as dots. What is not finite has no
    place; it is left out and counted.

    Args:
        least_span: of the axis that is seen less of.
        links: places that belong together, joined by a thin line.
    """
    given = [p for points in series.values() for p in points]
    points = [p for p in given if all(map(math.isfinite, p))] or [(0.0, 0.0)]
    left, right, bottom = 54.0, 12.0, 36.0
    keys, top = legend(list(series), left, 12, width)
    height, top = height + top - 12, top + 30
    wide, high = width - left - right, height - top - bottom
    (x_low, x_high), (y_low, y_high) = ((min(a), max(a)) for a in zip(*points, strict=True))
    x_mid, y_mid = (x_low + x_high) / 2, (y_low + y_high) / 2
    least = max(least_span, 1e-6)
    unit = max((x_high - x_low) / wide, (y_high - y_low) / high, least / min(wide, high)) * 1.2

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + wide / 2 + (x - x_mid) / unit, 1),
            round(top + high / 2 - (y - y_mid) / unit, 1),
        )

    parts = [*keys, label(6, top - 8, y_title, size=11, fill=MUTED)]
    for tick in _ticks_within(x_mid, wide * unit, wide / 60):
        x = place(tick, y_mid)[0]
        parts.append(element("line", x1=x, x2=x, y1=top, y2=top + high, stroke=RULE))
        parts.append(label(x, height - 20, f"{tick:g}", size=11, fill=MUTED, anchor="middle"))
    for tick in _ticks_within(y_mid, high * unit, high / 60):
        y = place(x_mid, tick)[1]
        parts.append(element("line", x1=left, x2=width - right, y1=y, y2=y, stroke=RULE))
        parts.append(label(left - 8, y + 4, f"{tick:g}", size=11, fill=MUTED, anchor="end"))
    parts.append(label(width - right, height - 4, x_title, size=11, fill=MUTED, anchor="end"))
    if lost := sum(not all(map(math.isfinite, p)) for p in given):
        words = f"not drawn: {lost} that are no number"
        parts.append(label(left, height - 4, words, size=11, fill=MUTED))
    for one, other in links:
        if all(map(math.isfinite, (*one, *other))):
            (x1, y1), (x2, y2) = place(*one), place(*other)
            parts.append(element("line", x1=x1, x2=x2, y1=y1, y2=y2, stroke=EDGE))
    for number, found in enumerate(series.values()):
        there = [place(*p) for p in found if all(map(math.isfinite, p))]
        parts += (_dots if number else _crosses)(there, SERIES[number % len(SERIES)])
    return svg(width, height, parts, title=title)


def _ticks_within(middle: float, span: float, count: float) -> list[float]:
    low, high = middle - span / 2, middle + span / 2
    ticks = _round_ticks(low, high, max(2, round(count)))
    return [tick for tick in ticks if low <= tick <= high]


def _crosses(places: Sequence[tuple[float, float]], ink: str) -> list[Markup]:
    parts = []
    for x, y in places:
        parts.append(element("circle", cx=x, cy=y, r=8, fill="none", stroke=ink, stroke_width=2))
        parts.append(element("line", x1=x - 12, x2=x + 12, y1=y, y2=y, stroke=ink))
        parts.append(element("line", x1=x, x2=x, y1=y - 12, y2=y + 12, stroke=ink))
    return parts


def _dots(places: Sequence[tuple[float, float]], ink: str) -> list[Markup]:
    return [element("circle", cx=x, cy=y, r=4, fill=ink, fill_opacity=0.6) for x, y in places]


def legend(names: Sequence[str], left: float, y: float, right: float) -> tuple[list[Markup], float]:
    """Names in the colours of their series, in as many rows as they need.

    Returns:
        The parts, and the y of the last row.
    """
    parts, x = [], left
    for i, name in enumerate(names):
        wide = 24 + CHARACTER * 11 * len(name)
        if x + wide > right and x > left:
            x, y = left, y + 16
        parts.append(
            element(
                "line", x1=x, x2=x + 12, y1=y - 3, y2=y - 3, stroke=SERIES[i % len(SERIES)],
                stroke_width=4, stroke_dasharray=_dashes(i),
            )
        )  # fmt: skip
        parts.append(label(x + 17, y + 1, name, size=11, fill=MUTED))
        x += wide + 10
    return parts, y


def _dashes(number: int) -> str:
    return DASHES[number // len(SERIES) % len(DASHES)]


def _round_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that enclose [low, high]."""
    if high <= low:
        half = 0.5 * max(abs(low), 1.0)
        low, high = low - half, high + half
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]
