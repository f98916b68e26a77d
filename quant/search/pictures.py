"""Pictures of the sensitivity search: the path of recipes, and heat maps of errors.

In the colours of the page that holds them; `runtime.pages.svg.standalone` makes a file of one.
Errors span decades, so both scales are logarithmic; an error of zero has no place on them and is
left out of the curve, and pale in a map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from runtime.pages.markup import Markup, element
from runtime.pages.palette import INK, MUTED, RULE, SERIES, colour
from runtime.pages.svg import label, svg

CELL_WIDTH, CELL_HEIGHT = 58.0, 24.0
PALE = 0.06
"""How much of the colour of the largest error the least one has."""
CHARACTER = 6.6
"""Width of one at size 12."""
Place = Callable[[float, float], tuple[float, float]]
"""Cost and error to x and y."""


@dataclass(frozen=True, slots=True)
class Dot:
    """A recipe on the path."""

    name: str
    """The step that led to it."""
    cost: float
    predicted: float
    measured: float


def pareto_svg(
    dots: Sequence[Dot], chosen: int, *, x_title: str, spread: float, width: float = 860
) -> Markup:
    """Action error against cost: predicted and measured, the chosen recipe, and a yardstick.

    Args:
        dots: in the order of the path.
        chosen: index of the recipe that was taken.
        spread: the error that is drawn as a line, because nobody would notice it: that of another
            noise seed.
    """
    height, left, right, top, bottom = 360.0, 62.0, 24.0, 52.0, 46.0
    errors = [e for dot in dots for e in (dot.predicted, dot.measured) if e > 0] + [spread]
    low, high = math.floor(math.log10(min(errors))), math.ceil(math.log10(max(errors)))
    high += high == low
    x_ticks = _ticks([dot.cost for dot in dots])

    def place(cost: float, error: float) -> tuple[float, float]:
        x_share = (cost - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        y_share = (math.log10(max(error, 10.0**low)) - low) / (high - low)
        x, y = left + x_share * (width - left - right), height - bottom
        return round(x, 1), round(y - y_share * (height - top - bottom), 1)

    parts = _axes(x_ticks, low, high, place, width - right)
    parts.append(label(8, 20, "relative action error, root mean square", fill=MUTED))
    parts.append(label(width - right, height - 8, x_title, fill=MUTED, anchor="end"))
    y = place(x_ticks[0], spread)[1]
    parts.append(_line(left, y, width - right, y, MUTED, "5 4"))
    note = f"another noise seed: {short(spread)}"
    parts.append(label(width - right, y - 5, note, size=11, fill=MUTED, anchor="end"))
    series = {
        "predicted": [(dot, dot.predicted) for dot in dots],
        "measured": [(dot, dot.measured) for dot in dots],
    }
    for index, (name, points) in enumerate(series.items()):
        parts += _curve(points, SERIES[index], place)
        x = left + 90 * index
        parts.append(element("circle", cx=x + 5, cy=34, r=5, fill=SERIES[index]))
        parts.append(label(x + 15, 38, name, fill=MUTED))
    parts += _chosen(dots[chosen], place, width)
    return svg(width, height, parts, title=f"Action error of recipes against {x_title}")


def heat_map_svg(errors: Mapping[str, Mapping[str, float]], *, title: str) -> Markup:
    """A table of errors by row and column, coloured from the least to the largest.

    Columns come in the order in which rows first name them; what a row does not have stays empty.
    """
    columns = list(dict.fromkeys(name for row in errors.values() for name in row))
    positive = [e for row in errors.values() for e in row.values() if e > 0] or [1.0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    left = 24 + CHARACTER * max(len(name) for name in errors)
    top = 58.0
    width = max(left + len(columns) * CELL_WIDTH + 16, 24 + CHARACTER * len(title))
    parts = [label(10, 22, title, size=13)]
    for number, name in enumerate(columns):
        x = left + (number + 0.5) * CELL_WIDTH
        parts.append(label(x, top - 8, name, fill=MUTED, anchor="middle"))
    for row, (name, cells) in enumerate(errors.items()):
        y = top + row * CELL_HEIGHT
        parts.append(label(left - 10, y + 16, name, anchor="end"))
        for number, column in enumerate(columns):
            if column in cells:
                share = _share(cells[column], low, high)
                parts += _cell(left + number * CELL_WIDTH, y, cells[column], share)
    return svg(width, top + len(errors) * CELL_HEIGHT + 14, parts, title=title)


def _cell(x: float, y: float, error: float, share: float) -> list[Markup]:
    box = element(
        "rect", x=round(x, 1), y=y, width=CELL_WIDTH - 2, height=CELL_HEIGHT - 2, rx=2,
        fill=colour("hot"), fill_opacity=round(PALE + (1 - PALE) * share, 3),
    )  # fmt: skip
    middle = x + (CELL_WIDTH - 2) / 2
    return [box, label(middle, y + 15, short(error), size=11, anchor="middle")]


def short(error: float) -> str:
    """Two digits: 0, 0.12, 3.4e-3."""
    if error == 0:
        return "0"
    if 0.01 <= error < 10:
        return f"{error:#.2g}"
    digits, exponent = f"{error:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def _share(error: float, low: float, high: float) -> float:
    """Where an error stands between the least (0) and the largest (1)."""
    if error <= 0:
        return 0.0
    return (math.log10(error) - low) / (high - low) if high > low else 0.5


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str, dashes: str = "none") -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_dasharray=dashes)


def _axes(
    x_ticks: Sequence[float], low: int, high: int, place: Place, right: float
) -> list[Markup]:
    left, bottom = place(x_ticks[0], 10.0**low)
    parts: list[Markup] = []
    for exponent in range(low, high + 1):
        y = place(x_ticks[0], 10.0**exponent)[1]
        parts.append(_line(left, y, right, y, RULE))
        parts.append(label(left - 8, y + 4, f"{10.0**exponent:g}", fill=MUTED, anchor="end"))
    for tick in x_ticks:
        x = place(tick, 10.0**low)[0]
        parts.append(_line(x, bottom, x, bottom + 4, MUTED))
        parts.append(label(x, bottom + 18, f"{tick:g}", fill=MUTED, anchor="middle"))
    return parts


def _curve(points: Sequence[tuple[Dot, float]], colour: str, place: Place) -> list[Markup]:
    """A line through the points whose error is not zero; each says its name when pointed at."""
    places = [(dot, error, *place(dot.cost, error)) for dot, error in points if error > 0]
    path = " ".join(f"{x},{y}" for _, _, x, y in places)
    parts = [element("polyline", points=path, fill="none", stroke=colour, stroke_width=1.6)]
    for dot, error, x, y in places:
        says = element("title", f"{dot.name}: {short(error)}")
        parts.append(element("circle", says, cx=x, cy=y, r=3, fill=colour))
    return parts


def _chosen(dot: Dot, place: Place, width: float) -> list[Markup]:
    x, y = place(dot.cost, dot.measured)
    words = f"chosen: {dot.cost:.3g}, error {short(dot.measured)}"
    fits = x + 16 + CHARACTER * len(words) < width
    return [
        element("circle", cx=x, cy=y, r=8, fill="none", stroke=INK, stroke_width=2),
        label(x + 14 if fits else x - 14, y - 10, words, anchor="start" if fits else "end"),
    ]


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers that enclose the values, five to ten."""
    low, high = min(values), max(values)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(m * power for m in (1, 2, 5, 10) if (high - low) / (m * power) <= 9)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, last + 1)]
