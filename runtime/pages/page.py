"""The one look of every page: HTML that needs nothing else, for a desk, a phone, the night, paper.

Pieces take text and escape it; see `markup.py`. Colours come from `palette.py` and nowhere else.
What is wider than a phone, tables and charts, scrolls inside its own box.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..storage.files import MARK
from .markup import Markup, element, joined
from .palette import variables

Verdict = Literal["pass", "fail", "not measured"]
STYLE = (
    variables()
    + """*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 ui-sans-serif,system-ui,
'Segoe UI',Roboto,'DejaVu Sans',sans-serif;-webkit-text-size-adjust:100%}
main{max-width:960px;margin:0 auto;padding:36px 24px 60px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px}
h3{font-size:15px;margin:0 0 8px}h4{font-size:14px;margin:16px 0 6px}
p,li,h1,h3,dd,.card{overflow-wrap:anywhere}
.sub{color:var(--muted);font-weight:400;margin:0}summary{cursor:pointer;color:var(--muted)}
details{margin-top:12px}
.note{background:var(--note);border:1px solid var(--note-edge);border-radius:8px;
padding:10px 14px;margin:18px 0}
.alarm{background:var(--bad-ground);color:var(--bad);border:2px solid var(--bad);
border-radius:10px;padding:14px 18px;margin:18px 0}.alarm b{font-size:20px;display:block}
.alarm ul{margin:8px 0 0}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:22px 0}
.card{flex:1 1 130px;background:var(--paper);border:1px solid var(--rule);border-radius:10px;
padding:14px 16px}
.card b{display:block;font-size:23px;font-weight:650;font-variant-numeric:tabular-nums}
.card span{color:var(--muted);font-size:13px}
.panel{background:var(--paper);border:1px solid var(--rule);border-radius:10px;padding:18px;
margin:0 0 16px}.panel p{margin:12px 0 0}.panel>p:first-child{margin-top:0}
.scroll{overflow-x:auto}.scroll:focus-visible{outline:2px solid var(--series-0)}
svg{display:block}.wide svg{min-width:calc(.7*var(--drawn,0px))}.wide+.wide{margin-top:18px}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(320px,100%),1fr));gap:14px}
.scroll+.small,.scroll+.wide{margin-top:16px}
.strip{display:flex;gap:5px;margin:0 0 14px}.strip figure{margin:0;flex:1 0 72px}
.strip img{width:100%;display:block;border-radius:5px}.strip img+img{margin-top:4px}
.strip .anchor img{outline:3px solid var(--series-1);outline-offset:-3px}
.strip figcaption{font-size:11px;color:var(--muted);text-align:center}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th{color:var(--muted);font-weight:500;vertical-align:bottom}
th,td{text-align:right;padding:4px 8px;border-bottom:1px solid var(--rule);white-space:nowrap}
.name,.words{text-align:left}.words{white-space:normal;overflow-wrap:break-word;min-width:10em}
.group{text-align:center}.total td{font-weight:600;border-top:1px solid var(--edge)}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;font-size:13px;margin:0}
.facts dt{color:var(--muted)}.facts dd{margin:0}
.badge{border-radius:99px;padding:1px 10px;font-size:12px;font-weight:600;white-space:nowrap}
.pass{background:var(--good-ground);color:var(--good)}
.fail{background:var(--bad);color:var(--paper)}
.open{background:var(--open-ground);color:var(--open)}
.meter{display:inline-block;vertical-align:middle;width:84px;height:8px;border-radius:4px;
background:var(--rule);overflow:hidden}.meter i{display:block;height:8px}
.far{background:var(--series-2)}.near{background:var(--series-1)}.over{background:var(--bad)}
.ours{background:var(--series-0)}.theirs{background:var(--series-1)}
@media (max-width:600px){main{padding:20px 12px 40px}.panel{padding:12px}
.facts{grid-template-columns:1fr}.facts dd{margin-bottom:6px}}
@page{margin:12mm}
@media print{*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{background:none;font-size:12px}main{max-width:none;padding:0}
.scroll{overflow:visible}.wide svg{min-width:0}
.card{flex-basis:100px;padding:8px 10px}.card b{font-size:17px}
th,.name,.words{white-space:normal}th,td{padding:3px 5px}table{font-size:10px}.words{min-width:0}
.meter{width:48px}.strip figure{flex-basis:0}details::details-content{content-visibility:visible}
svg,tr,h3,.strip,.card,.note,.alarm{break-inside:avoid}h1,h2,h3,h4,.strip{break-after:avoid}}
"""
)


@dataclass(frozen=True, slots=True)
class Column:
    """Of a table."""

    title: str
    kind: Literal["name", "words", "number"] = "number"
    """Names and words stand to the left, and only words may break; numbers to the right."""


def document(title: str, parts: Iterable[Markup]) -> str:
    """The whole file, ASCII and with a heading."""
    head = (
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=MARK),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    body = element("main", element("h1", title), *parts)
    page = element("html", element("head", *head), element("body", body), lang="en")
    return f"<!doctype html>{page}\n".encode("ascii", "xmlcharrefreplace").decode()


def section(title: str, *content: Markup) -> Markup:
    """A heading and a panel."""
    return joined([element("h2", title), panel(*content)])


def panel(*content: Markup) -> Markup:
    """A box around it."""
    return element("div", *content, class_="panel")


def sentence(words: str) -> Markup:
    """What explains a table, or the lack of one."""
    return element("p", words.strip(), class_="sub")


def note(*words: str) -> Markup:
    """What a reader must know first."""
    return element("p", *words, class_="note")


def alarm(*content: str) -> Markup:
    """What a reader must not miss."""
    return element("div", *content, class_="alarm", role="alert")


def cards(found: Iterable[tuple[str, str]]) -> Markup:
    """Figures with what they are."""
    boxes = (element("div", element("b", a), element("span", b), class_="card") for a, b in found)
    return element("div", *boxes, class_="cards")


def badge(verdict: Verdict) -> Markup:
    """A verdict in its colour."""
    return element("span", verdict, class_=f"badge {'open' if ' ' in verdict else verdict}")


def chart(picture: Markup) -> Markup:
    """A picture that a phone scrolls rather than shrinks."""
    return element("div", picture, class_="scroll wide", tabindex=0)


def facts(found: Mapping[str, str]) -> Markup:
    """Names and what they are, as a list."""
    pairs = ((element("dt", name), element("dd", words)) for name, words in found.items())
    return element("dl", *(part for pair in pairs for part in pair), class_="facts")


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    total: Sequence[str] = (),
) -> Markup:
    """Rows under a head, in a box that scrolls.

    Args:
        groups: titles above the head, and how many columns each spans.
        total: the last row.
    """
    kinds = [None if column.kind == "number" else column.kind for column in columns]

    def line(cells: Sequence[str], class_: str | None = None) -> Markup:
        made = (element("td", cell, class_=k) for cell, k in zip(cells, kinds, strict=True))
        return element("tr", *made, class_=class_)

    titles = (
        element("th", column.title, class_=kind, scope="col")
        for column, kind in zip(columns, kinds, strict=True)
    )
    spans = [
        element("th", title, colspan=width, class_="group", scope="colgroup" if title else None)
        for title, width in groups
    ]
    head = [element("tr", *spans)] if spans else []
    body = [*(line(row) for row in rows), *([line(total, "total")] if total else [])]
    whole = element(
        "table", element("thead", *head, element("tr", *titles)), element("tbody", *body)
    )
    return element("div", whole, class_="scroll", tabindex=0)
