"""Pieces of the export's page: tables, badges, bars, columns. Text in, escaped HTML out.

Whatever text is passed in is escaped; only `Markup`, which these functions return, goes into the
page as it is. The look is that of the run report. Limits span decades, so meters are logarithmic:
they show how near something is to its limit rather than how large it is.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from runtime.report import STYLE
from runtime.svg import MUTED, RULE, SERIES, element, label, svg

Verdict = Literal["pass", "fail", "not measured"]
METER_DECADES = 2
"""A meter is empty at this many powers of ten below the limit."""
NEAR = 0.5
"""Share of the limit from which a meter is amber."""
PAGE_STYLE = """
.forced{background:#b91c1c;color:#fff;border-radius:10px;padding:16px 20px;margin:18px 0}
.forced b{font-size:20px;display:block}.forced ul{margin:8px 0 0}
.badge{border-radius:99px;padding:1px 10px;font-size:12px;font-weight:600;white-space:nowrap}
.pass{background:#dcfce7;color:#166534}.fail{background:#b91c1c;color:#fff}
.open{background:#fef3c7;color:#92400e}
.panel{overflow-x:auto}.panel p{margin:12px 0 0}.panel p:first-child{margin-top:0}
.panel svg{display:block}svg+svg{margin-top:18px}
th{vertical-align:bottom}td{white-space:nowrap}
th.name,td.name,th.words,td.words{text-align:left}
th.words,td.words{white-space:normal;overflow-wrap:anywhere}
th.group{text-align:center}tr.total td{font-weight:600;border-top:1px solid #cbd5e1}
.meter{display:inline-block;vertical-align:middle;width:84px;height:8px;border-radius:4px;
background:#e3e8ef;overflow:hidden}.meter i{display:block;height:8px}
.far{background:#059669}.near{background:#d97706}.over{background:#b91c1c}
.ours{background:#2563eb}.theirs{background:#d97706}
p,li,h1,.card{overflow-wrap:anywhere}details{margin-top:12px}summary{cursor:pointer;color:#697586}
"""


class Markup(str):
    """HTML as it is."""


@dataclass(frozen=True, slots=True)
class Column:
    """Of a table."""

    title: str
    kind: Literal["name", "words", "number"] = "number"
    """Names and words stand to the left, and only words may break; numbers to the right."""


def document(title: str, parts: Iterable[Markup]) -> str:
    """The whole file."""
    head = element("title", html.escape(title)) + element("style", STYLE + PAGE_STYLE)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}</head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def block(tag: str, *content: str, **attributes: object) -> Markup:
    """An element around text and markup."""
    return Markup(element(tag, "".join(map(_escape, content)), **attributes))


def section(title: str, *content: Markup) -> Markup:
    """A heading and a panel."""
    return Markup(block("h2", title) + block("div", *content, class_="panel"))


def sentence(words: str) -> Markup:
    """What explains a table, or the lack of one."""
    return block("p", words.strip(), class_="sub")


def cards(found: Iterable[tuple[str, str]]) -> Markup:
    """Figures with what they are."""
    boxes = (block("div", block("b", a), block("span", b), class_="card") for a, b in found)
    return block("div", *boxes, class_="cards")


def badge(verdict: Verdict) -> Markup:
    """A verdict in its colour."""
    return block("span", verdict, class_=f"badge {'open' if ' ' in verdict else verdict}")


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    total: Sequence[str] = (),
) -> Markup:
    """Rows under a head.

    Args:
        groups: titles above the head, and how many columns each spans.
        total: the last row.
    """

    def line(tag: str, cells: Sequence[str], **attributes: object) -> Markup:
        made = (block(tag, c, class_=o.kind) for c, o in zip(cells, columns, strict=True))
        return block("tr", *made, **attributes)

    spans = [block("th", title, colspan=width, class_="group") for title, width in groups]
    return block(
        "table",
        *([block("tr", *spans)] if spans else []),
        line("th", [column.title for column in columns]),
        *(line("td", row) for row in rows),
        *([line("td", total, class_="total")] if total else []),
    )


def bar(share: float, colour: str = "ours", words: str = "") -> Markup:
    """Filled up to `share` of 1; `words` show where it is pointed at."""
    filled = f"width:{100 * min(max(share, 0.0), 1.0):.0f}%"
    return block("span", block("i", class_=colour, style=filled), class_="meter", title=words)


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
            label(left - 8, y + 4, f"1e{exponent:+03d}", size=10, fill=MUTED, anchor="end")
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
        parts.append(label(x, y - 5, number(value), size=10, anchor="middle"))
        parts.append(label(x, height - 18, name, size=10, fill=MUTED, anchor="middle"))
    parts.append(label(width - right, height - 4, x_title, size=11, fill=MUTED, anchor="end"))
    return Markup(svg(width, height, parts))


def number(value: float | None) -> str:
    """Two digits and an exponent, so that columns of them line up; - for what is missing."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1e}"


def percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _escape(text: str) -> str:
    return text if isinstance(text, Markup) else html.escape(text)
