"""What only the export's page has: meters, columns, figures in few digits.

Limits span decades, so meters are logarithmic: they show how near something is to its limit rather
than how large it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from runtime.pages.markup import Markup, element
from runtime.pages.page import chart
from runtime.pages.palette import MUTED, RULE, SERIES
from runtime.pages.svg import label, svg

METER_DECADES = 2
"""A meter is empty at this many powers of ten below the limit."""
NEAR = 0.5
"""Share of the limit from which a meter is amber."""


def bar(share: float, colour: str = "ours", words: str = "") -> Markup:
    """Filled up to `share` of 1; `words` show where it is pointed at."""
    filled = f"width:{100 * min(max(share, 0.0), 1.0):.0f}%"
    inside = element("i", class_=colour, style=filled)
    named = (
        {"role": "img", "aria_label": words, "title": words} if words else {"aria_hidden": "true"}
    )
    return element("span", inside, class_="meter", **named)


def meter(value: float | None, limit: float | None) -> str:
    """How near a value is to its limit."""
    if value is None or not limit:
        return "-"
    share = value / limit
    colour = "over" if share > 1 else "near" if share >= NEAR else "far"
    filled = 1 + math.log10(share) / METER_DECADES if share > 0 else 0.0
    return bar(filled, colour, f"{share:.0%} of the limit")


def columns_svg(
    values: Mapping[str, float], *, title: str, x_title: str, width: float = 860
) -> Markup:
    """Columns on a logarithmic scale: a zero has none, and infinity reaches the top."""
    height, left, right, top, bottom = 236.0, 54.0, 12.0, 46.0, 34.0
    positive = [value for value in values.values() if 0 < value < math.inf] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    low -= low == high
    decade = (height - top - bottom) / (high - low)
    step = (width - left - right) / len(values)
    parts = [label(6, 16, title, size=11, fill=MUTED)]
    for exponent in range(low, high + 1):
        y = round(height - bottom - (exponent - low) * decade, 1)
        parts.append(element("line", x1=left, x2=width - right, y1=y, y2=y, stroke=RULE))
        parts.append(
            label(left - 8, y + 4, f"1e{exponent:+03d}", size=11, fill=MUTED, anchor="end")
        )
    for place, (name, value) in enumerate(values.items()):
        x = left + (place + 0.5) * step
        tall = min(math.log10(value) - low, high - low) * decade if value > 0 else 0.0
        y = round(height - bottom - tall, 1)
        parts.append(
            element(
                "rect", x=round(x - step * 0.3, 1), y=y, width=round(step * 0.6, 1),
                height=round(tall, 1), rx=2, fill=SERIES[0],
            )
        )  # fmt: skip
        parts.append(label(x, y - 5, number(value), size=11, anchor="middle"))
        parts.append(label(x, height - 18, name, size=11, fill=MUTED, anchor="middle"))
    parts.append(label(width - right, height - 4, x_title, size=11, fill=MUTED, anchor="end"))
    return chart(svg(width, height, parts, title=title))


def number(value: float | None) -> str:
    """Two digits and an exponent, so that columns of them line up; - for what is missing."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1e}"


def percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"
