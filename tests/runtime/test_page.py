"""Pieces of a page nest, escape what they are given, and keep what every page promises."""

import pytest

from runtime.pages.markup import Markup, element
from runtime.pages.page import (
    Column,
    alarm,
    badge,
    cards,
    chart,
    document,
    facts,
    note,
    section,
    sentence,
    table,
)
from runtime.pages.svg import bars, lines
from tests.pages import Page, broken_promises

BAD = "<script>alert('1')</script>&\"<img src=x onerror=y>\u00fc\ud800"
SEEN = BAD.replace("\ud800", "\ufffd")
"""What a reader of HTML makes of half a surrogate pair."""


def test_text_stays_text_wherever_it_goes():
    head = [Column(BAD, "name"), Column(BAD, "words"), Column(BAD)]
    page = Page(
        document(
            BAD,
            [
                section(BAD, table(head, [[BAD] * 3], groups=[(BAD, 3)], total=[BAD] * 3)),
                sentence(BAD), note(BAD), alarm(BAD), cards([(BAD, BAD)]), facts({BAD: BAD}),
                chart(bars({BAD: {BAD: 1.0}}, title=BAD, unit=BAD)),
                chart(lines({BAD: [], "b": []}, title=BAD, x_title=BAD, y_title=BAD)),
            ],
        )
    )  # fmt: skip
    assert broken_promises(page) == []
    assert not {"script", "img"} & set(page.tags)
    assert [a["aria-label"] for tag, a in page.attributes if tag == "svg"] == [SEEN] * 2
    # 2 titles, 1 heading, 10 cells, 3 paragraphs, 2 of a card, 2 facts, 3 in bars (one with its
    # unit), 3 beside lines.
    assert page.text.count(SEEN) == 2 + 1 + 10 + 3 + 2 + 2 + 3 + 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (("width=device-width", "width=980"), "no viewport"),
        (('lang="en"', ""), "no language"),
        (("@media print", "@media tty"), "lacks @media print"),
        (("prefers-color-scheme", "prefers-contrast"), "prefers-color-scheme:dark"),
        (("break-word;min-width:10em", "anywhere"), "lacks .words{white-space:normal"),
        (("--ink:", "--inc:"), "nothing defines --ink"),
        (("body{margin:0;", "body{margin:0;color:#000;"), "style has a colour of its own: #000"),
        ((' role="img"', ""), "a picture without a name"),
        (('aria-label="t"', 'aria-label=""'), "a picture without a name"),
        (('class="scroll wide"', 'class="wide"'), "a picture that no phone can scroll"),
        (('class="scroll"', 'class="s"'), "a table that no phone can scroll"),
        ((' tabindex="0"', ""), "a div that no key can scroll"),
        (('fill="var(--series-0)"', 'fill="#2563eb"'), "rect has a colour of its own"),
        (("<p ", '<p onclick="x" '), "p runs or loads something"),
        (("</main>", '<img src="http://x/y.png" alt="y"></main>'), "img loads http://x/y.png"),
        (("</main>", '<img src="data:,">\u00fc</main>'), "not ASCII"),
        (("</main>", "<script></script></main>"), "script runs or loads something"),
    ],
)
def test_a_planted_fault_is_seen(fault, words):
    picture = chart(bars({"a": {"b": 1.0}}, title="t", unit="ms"))
    source = document("t", [sentence("s"), table([Column("c")], [["1"]]), picture])
    assert broken_promises(Page(source)) == []
    assert fault[0] in source
    assert any(words in found for found in broken_promises(Page(source.replace(*fault))))


def test_a_heading_is_the_title():
    page = Page(document("A title", []))
    assert page.texts[:2] == ["A title", "A title"] and "h1" in page.tags


def test_an_element_leaves_out_what_is_none_and_ends_what_can_end():
    assert element("td", "a", class_=None, tabindex=0) == '<td tabindex="0">a</td>'
    assert element("img", alt="x") == '<img alt="x">'
    assert element("b", Markup("<i></i>"), "<") == "<b><i></i>&lt;</b>"


def test_a_table_needs_a_cell_for_every_column():
    with pytest.raises(ValueError, match="zip"):
        table([Column("a"), Column("b")], [["1"]])


def test_columns_decide_how_cells_stand():
    source = table([Column("a", "name"), Column("b", "words"), Column("c")], [["1", "2", "3"]])
    page = Page(source)
    assert [a.get("class") for tag, a in page.attributes if tag == "td"] == ["name", "words", None]
    assert [a["scope"] for tag, a in page.attributes if tag == "th"] == ["col"] * 3


@pytest.mark.parametrize(
    ("verdict", "look"), [("pass", "pass"), ("fail", "fail"), ("not measured", "open")]
)
def test_a_verdict_has_its_colour(verdict, look):
    assert badge(verdict) == f'<span class="badge {look}">{verdict}</span>'
