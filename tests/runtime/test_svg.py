"""Charts are well-formed XML with every value in them."""

import xml.etree.ElementTree as ElementTree

import pytest

from runtime.svg import bars, element, label, lines


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter() if node.text]


def test_bars_name_every_row_and_value():
    found = texts(bars({"vision": {"warm": 1.5, "cold": 3.0}, "prefix": {"cold": 2.0}}, unit="ms"))
    assert {"vision", "prefix", "1.5 ms", "3 ms", "2 ms"} <= set(found)


def test_lines_have_round_ticks_that_enclose_the_data():
    found = texts(lines({"a": [(0, -0.93), (3.2, 0.98)]}, x_title="s", y_title="m"))
    assert {"-1", "1", "0", "3.5"} <= set(found)


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(1.0, 2.0)]}, {"a": [(0, 5), (1, 5)]}])
def test_degenerate_data_still_draws(series):
    ElementTree.fromstring(lines(series, x_title="x", y_title="y"))


def test_words_are_escaped():
    assert "&lt;b&gt;" in label(0, 0, "<b>")
    assert 'title="&quot;"' in element("g", title='"')
