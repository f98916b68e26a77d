"""The roofline plot: roofs of a board, and every stage of a tick below them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from export.forecast.forecast import Forecast
from export.forecast.stages import StageCost
from export.forecast.words import counted, digits
from quant.boards import EFFICIENCY
from runtime.pages.markup import Markup, element
from runtime.pages.palette import INK, MUTED, RULE, SERIES, colour
from runtime.pages.svg import label, svg

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860.0, 430.0, 66.0, 24.0, 40.0, 46.0
ROOFS = {
    "int8_tops": "int8",
    "fp8_tflops": "FP8",
    "bf16_tflops": "bfloat16",
    "fp32_tflops": "float32",
}
GAP = 30.0
"""Least distance of two dots with slanted names."""
PAPER = colour("paper")
KEYS = {"every tick": False, "kept between ticks": True}
"""Words of the legend, and whether the dot has a ring."""
Place = Callable[[float, float], tuple[float, float]]
"""FLOPs a byte and 1e12 FLOPs a second to x and y."""


def roofline_svg(made: Forecast) -> Markup:
    """Stages at their intensity and at FLOPs over roofline time; a line down for the band. One
    without products has no place."""
    stages = [stage for stage in made.stages if stage.cost.roofline_ms and stage.cost.flops]
    roofs = {rate: value for rate in made.rates if (value := getattr(made.board, rate)) is not None}
    points = {stage.name: _point(stage) for stage in stages}
    place, x_decades, y_decades = _scales(
        [x for x, _ in points.values()],
        [*(y * EFFICIENCY[0] for _, y in points.values()), *roofs.values()],
    )
    parts = [*_grid(place, x_decades, y_decades)]
    for number, (rate, roof) in enumerate(roofs.items()):
        words = f"{ROOFS[rate]} {roof:g} T/s"
        lowest = max(10.0 ** x_decades[0], 10.0 ** y_decades[0] * 1e3 / made.board.bandwidth_gb_s)
        ends = lowest, 10.0 ** x_decades[-1]
        parts += _roof(place, made.board.bandwidth_gb_s, roof, words, ends, SERIES[number])
    parts += _dots(place, stages, points)
    parts.append(label(8, 18, "1e12 FLOPs a second", fill=MUTED))
    words = f"FLOPs a byte; memory at {made.board.bandwidth_gb_s:g} GB/s"
    parts.append(label(WIDTH - RIGHT, HEIGHT - 8, words, fill=MUTED, anchor="end"))
    return svg(WIDTH, HEIGHT, parts, title=f"Roofline of {made.board_name}, stages below it")


def _point(stage: StageCost) -> tuple[float, float]:
    """FLOPs a byte, and 1e12 FLOPs a second by the roofline."""
    assert stage.cost.roofline_ms
    return stage.cost.intensity, stage.cost.flops / stage.cost.roofline_ms / 1e9


def _scales(xs: list[float], ys: list[float]) -> tuple[Place, range, range]:
    """Whole decades that enclose all; both axes are logarithmic."""
    decades = []
    for values in (xs or [1.0], ys or [1.0]):
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        decades.append(range(low, max(high, low + 1) + 1))
    x_decades, y_decades = decades

    def place(x: float, y: float) -> tuple[float, float]:
        x_share = (math.log10(x) - x_decades[0]) / (x_decades[-1] - x_decades[0])
        y_share = (math.log10(y) - y_decades[0]) / (y_decades[-1] - y_decades[0])
        return (
            round(LEFT + x_share * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - y_share * (HEIGHT - TOP - BOTTOM), 1),
        )

    return place, x_decades, y_decades


def _grid(place: Place, x_decades: range, y_decades: range) -> Iterator[Markup]:
    left, bottom = place(10.0 ** x_decades[0], 10.0 ** y_decades[0])
    right, top = place(10.0 ** x_decades[-1], 10.0 ** y_decades[-1])
    for decade in y_decades:
        y = place(1.0, 10.0**decade)[1]
        yield _line((left, y), (right, y), RULE)
        yield label(left - 8, y + 4, f"{10.0**decade:g}", fill=MUTED, anchor="end")
    for decade in x_decades:
        x = place(10.0**decade, 1.0)[0]
        yield _line((x, top), (x, bottom), RULE)
        yield label(x, bottom + 18, f"{10.0**decade:g}", fill=MUTED, anchor="middle")


def _roof(
    place: Place,
    bandwidth_gb_s: float,
    roof: float,
    words: str,
    ends: tuple[float, float],
    stroke: str,
) -> Iterator[Markup]:
    """The slope of memory up to the ridge, and flat from there."""
    ridge = roof * 1e3 / bandwidth_gb_s
    low, high = ends
    start = place(low, low * bandwidth_gb_s / 1e3)
    bends = [place(min(max(ridge, low), high), roof), place(high, roof)]
    path = " ".join(f"{x},{y}" for x, y in (start, *bends))
    clip = element("title", f"{words}, ridge at {digits(ridge)} FLOPs a byte")
    yield element("polyline", clip, points=path, fill="none", stroke=stroke, stroke_width=2)
    yield label(bends[1][0] - 4, bends[1][1] - 6, words, size=11, fill=stroke, anchor="end")


def _dots(
    place: Place, stages: list[StageCost], points: dict[str, tuple[float, float]]
) -> Iterator[Markup]:
    """Each with its band and its name; stages at one place share a dot, and a ring if one waits."""
    for number, (words, ring) in enumerate(KEYS.items()):
        x = LEFT + 150 + number * 130
        yield _dot(x, 14, words, ring)
        yield label(x + 13, 18, words, fill=MUTED)
    together: dict[tuple[float, float], list[StageCost]] = {}
    for stage in sorted(stages, key=lambda stage: points[stage.name]):
        together.setdefault(points[stage.name], []).append(stage)
    last = -GAP
    for (intensity, speed), here in together.items():
        x, y = place(intensity, speed)
        best, worst = (place(intensity, speed * share)[1] for share in reversed(EFFICIENCY))
        yield element(
            "line", x1=x, x2=x, y1=best, y2=worst, stroke=SERIES[2], stroke_width=4,
            stroke_opacity=0.4,
        )  # fmt: skip
        times = (f"{s.name}: {digits(s.cost.roofline_ms or 0.0)} ms" for s in here)
        yield _dot(x, y, ", ".join(times), any(stage.is_kept for stage in here))
        words = ", ".join(counted(stage.name, stage.cost.calls) for stage in here)
        yield _named(x, y, words, is_close=x - last < GAP)
        last = x


def _dot(x: float, y: float, says: str, ring: bool) -> Markup:
    stroke = {"stroke": SERIES[3], "stroke_width": 3} if ring else {}
    return element("circle", element("title", says), cx=x, cy=y, r=5.5, fill=SERIES[2], **stroke)


def _named(x: float, y: float, words: str, *, is_close: bool) -> Markup:
    """Above the dot, on a slant; beside it where the last name stands close by."""
    left, top = (x + 10, y + 10) if is_close else (x + 4, y - 10)
    slant = None if is_close else f"rotate(-24 {round(left, 1)} {round(top, 1)})"
    return element(
        "text", words, x=round(left, 1), y=round(top, 1), font_size=11, fill=INK, transform=slant,
        stroke=PAPER, stroke_width=3, paint_order="stroke",
    )  # fmt: skip


def _line(start: tuple[float, float], stop: tuple[float, float], stroke: str) -> Markup:
    return element("line", x1=start[0], y1=start[1], x2=stop[0], y2=stop[1], stroke=stroke)
