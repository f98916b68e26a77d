"""Small charts as SVG text: grouped bars, lines, a graph of boxes. No plotting library on a robot.

Every function returns a whole `<svg>` element that scales to the width of the page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

INK, MUTED, RULE = "#1f2933", "#697586", "#e3e8ef"
SERIES = ("#2563eb", "#d97706", "#059669", "#9333ea", "#db2777", "#0891b2", "#65a30d", "#64748b")
FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def element(tag: str, content: str = "", **attributes: object) -> str:
    """One element. Underscores in names become hyphens; `content` is inserted as it is."""
    pairs = "".join(
        f' {name.strip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
    )
    return f"<{tag}{pairs}>{content}</{tag}>"


def label(
    x: float, y: float, words: str, *, size: float = 12, fill: str = INK, anchor: str = "start"
) -> str:
    """A line of text."""
    return element(
        "text", html.escape(words), x=round(x, 1), y=round(y, 1), font_size=size, fill=fill,
        text_anchor=anchor,
    )  # fmt: skip


def svg(width: float, height: float, parts: Sequence[str]) -> str:
    """The outer element. It never grows wider than it was drawn."""
    return element(
        "svg",
        "".join(parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {round(width)} {round(height)}",
        style=f"width:100%;max-width:{round(width)}px;height:auto",
        font_family=FONT,
    )


def bars(rows: Mapping[str, Mapping[str, float]], *, unit: str, width: float = 860) -> str:
    """Horizontal bars: one row per key, one bar per series inside it. Missing values stay empty."""
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    left, right, thick, gap = 150.0, 90.0, 11.0, 10.0
    largest = max((v for row in rows.values() for v in row.values()), default=0.0) or 1.0
    scale = (width - left - right) / largest
    parts, y = _legend(series, left, 12), 30.0
    for name, row in rows.items():
        block = len(series) * thick
        parts.append(label(left - 10, y + block / 2 + 4, name, anchor="end"))
        for i, key in enumerate(series):
            if key not in row:
                continue
            top, length = y + i * thick, max(row[key] * scale, 1.0)
            parts.append(
                element(
                    "rect",
                    x=left,
                    y=top,
                    width=round(length, 1),
                    height=thick - 2,
                    rx=2,
                    fill=SERIES[i],
                )  # fmt: skip
            )
            parts.append(
                label(left + length + 6, top + 8, f"{row[key]:.3g} {unit}", size=10, fill=MUTED)
            )
        y += block + gap
    return svg(width, y, parts)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_title: str,
    y_title: str,
    width: float = 860,
    height: float = 220,
    from_zero: bool = False,
) -> str:
    """Lines over shared axes; a series is a sequence of (x, y) in ascending x."""
    points = [p for line in series.values() for p in line] or [(0.0, 0.0)]
    low = min(p[1] for p in points)
    xs, ys = (p[0] for p in points), [p[1] for p in points]
    x_ticks = _round_ticks(*_range(xs), 8)
    y_ticks = _round_ticks(0.0 if from_zero else low, max(ys), 4)
    left, right, top, bottom = 54.0, 12.0, 30.0, 34.0
    x_scale = (width - left - right) / (x_ticks[-1] - x_ticks[0])
    y_scale = (height - top - bottom) / (y_ticks[-1] - y_ticks[0])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + (x - x_ticks[0]) * x_scale, 1),
            round(height - bottom - (y - y_ticks[0]) * y_scale, 1),
        )

    parts = [label(6, 16, y_title, size=11, fill=MUTED)]
    parts += _legend(list(series), left + 90, 12) if len(series) > 1 else []
    for tick in y_ticks:
        y = place(0, tick)[1]
        parts.append(
            element("line", x1=left, x2=width - right, y1=y, y2=y, stroke=RULE, stroke_width=1)
        )
        parts.append(label(left - 8, y + 4, f"{tick:g}", size=10, fill=MUTED, anchor="end"))
    for tick in x_ticks:
        x = place(tick, 0)[0]
        parts.append(label(x, height - 18, f"{tick:g}", size=10, fill=MUTED, anchor="middle"))
    parts.append(label(width - right, height - 4, x_title, size=11, fill=MUTED, anchor="end"))
    for i, line in enumerate(series.values()):
        path = " ".join(f"{x},{y}" for x, y in (place(*p) for p in line))
        parts.append(
            element(
                "polyline",
                points=path,
                fill="none",
                stroke=SERIES[i % len(SERIES)],
                stroke_width=1.8,
                stroke_linejoin="round",
            )  # fmt: skip
        )
    return svg(width, height, parts)


def _legend(names: Sequence[str], x: float, y: float) -> list[str]:
    parts = []
    for i, name in enumerate(names):
        parts.append(element("rect", x=x, y=y - 8, width=10, height=10, rx=2, fill=SERIES[i]))
        parts.append(label(x + 15, y + 1, name, size=11, fill=MUTED))
        x += 34 + 6.4 * len(name)
    return parts


def _range(values: object) -> tuple[float, float]:
    numbers = list(values)  # type: ignore[call-overload]
    return min(numbers), max(numbers)


def _round_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that enclose [low, high]."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]
