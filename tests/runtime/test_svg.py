"""Charts are well-formed XML with every value in them, in the colours of the page."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

from runtime.pages.palette import PALETTE, SERIES, colour, variables
from runtime.pages.svg import bars, lines, standalone
from tests.pages import read_lines


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter() if node.text]


def nodes(svg: str, tag: str) -> list[ElementTree.Element]:
    return [n for n in ElementTree.fromstring(svg).iter() if n.tag.endswith("}" + tag)]


def draw(series, **more):
    return lines(series, title="t", x_title="s", y_title="m", **more)


def test_bars_name_every_row_and_value():
    rows = {"vision": {"warm": 1.5, "cold": 3.0}, "prefix": {"cold": 2.0}}
    found = texts(bars(rows, title="t", unit="ms"))
    assert {"vision", "prefix", "1.5 ms", "3 ms", "2 ms"} <= set(found)


def test_bars_are_as_long_as_their_values():
    rows = {"a": {"x": 1.0}, "b": {"x": 4.0}}
    widths = [float(n.get("width")) for n in nodes(bars(rows, title="t", unit="ms"), "rect")]
    assert widths[1] == 4 * widths[0] == 620  # of 860, names have 150 and figures 90


def test_a_line_can_be_read_off_its_axes():
    points = [(0.0, -3.0), (0.25, 17.5), (4.0, 42.0)]
    (line,) = read_lines(ElementTree.fromstring(draw({"a": points})))
    # Rounding to a tenth: off by a tenth at most of an axis 156 high and 794 long.
    assert [x for x, _ in line] == pytest.approx([x for x, _ in points], abs=0.1 * 4 / 794)
    assert [y for _, y in line] == pytest.approx([y for _, y in points], abs=0.1 * 80 / 156)


def test_a_chart_fills_its_picture_and_stays_inside():
    svg = draw({"a": [(103.0, -3.0), (104.0, 17.5), (107.0, 42.0)]}, width=420, height=170)
    assert ElementTree.fromstring(svg).get("viewBox") == "0 0 420 170"
    grid = [n for n in nodes(svg, "line") if n.get("stroke") == "var(--rule)"]
    assert all(n.get("y1") == n.get("y2") for n in grid)
    heights = [float(n.get("y1")) for n in grid]
    assert (min(heights), max(heights)) == (30.0, 134.0)
    middles = [n for n in nodes(svg, "text") if n.get("text-anchor") == "middle"]
    assert (float(middles[0].get("x")), float(middles[-1].get("x"))) == (54.0, 408.0)


def test_lines_have_round_ticks_that_enclose_the_data():
    found = texts(draw({"a": [(0, -0.93), (3.2, 0.98)]}))
    assert {"-1", "1", "0", "3.5"} <= set(found)
    assert "0" not in texts(draw({"a": [(1, 7.0), (2, 8.0)]}))
    assert "0" in texts(draw({"a": [(1, 7.0), (2, 8.0)]}, from_zero=True))


@pytest.mark.parametrize(
    "series",
    [
        {},
        {"a": []},
        {"a": [(1.0, 2.0)]},
        {"a": [(0, 5), (1, 5)]},
        {"a": [(0, 1e-12), (1, 2e-12)]},
        {"a": [(0, 1e18), (1, 1e18)]},
        {"a": [(0, float("nan")), (1, float("inf"))]},
    ],
)
def test_degenerate_data_still_draws(series):
    assert "nan" not in draw(series)


def test_what_is_no_number_is_left_out_and_counted():
    svg = draw({"a": [(0.0, 1.0), (1.0, float("nan")), (2.0, 3.0), (3.0, float("inf"))]})
    (line,) = nodes(svg, "polyline")
    assert len(line.get("points").split()) == 2
    assert "not drawn: 2 that are no number" in texts(svg)


def test_a_line_that_hardly_moves_is_not_blown_up():
    def height(**more):
        (line,) = nodes(draw({"a": [(0, 0.0), (1, 0.01)]}, **more), "polyline")
        (_, first), (_, last) = (p.split(",") for p in line.get("points").split())
        return float(first) - float(last)

    assert height() > 100
    assert 1 < height(least_span=1.0) < 5


def test_marks_stand_on_the_axis_at_their_place():
    svg = draw({"a": [(0, 0.0), (10, 1.0)]}, marks=(0.0, 10.0))
    (line,) = nodes(svg, "polyline")
    ends = {point.split(",")[0] for point in line.get("points").split()}
    marks = {n.get("x1") for n in nodes(svg, "line") if n.get("x1") == n.get("x2")}
    assert marks == ends


@pytest.mark.parametrize("count", [2, 8, 30])
def test_no_two_series_look_the_same_and_every_one_is_named_inside_the_picture(count):
    names = [f"a rather long name {i}" for i in range(count)]
    svg = draw({name: [(0, i), (1, i)] for i, name in enumerate(names)}, width=420)
    looks = [(n.get("stroke"), n.get("stroke-dasharray")) for n in nodes(svg, "polyline")]
    # Three kinds of dashes for each colour; with more lines than that, looks come again.
    assert len(set(looks)) == min(count, 3 * len(SERIES))
    labels = {n.text: n for n in nodes(svg, "text")}
    assert all(float(labels[name].get("x")) + 100 < 420 for name in names)
    assert len({(labels[name].get("x"), labels[name].get("y")) for name in names}) == count
    lowest = max(float(labels[name].get("y")) for name in names)
    points = [point for n in nodes(svg, "polyline") for point in n.get("points").split()]
    top = min(float(point.split(",")[1]) for point in points)
    assert lowest < top


def test_a_picture_says_what_it_is_and_takes_its_colours_from_the_page():
    svg = bars({"<row>": {"x": 1.0}}, title='A "title" & more', unit="ms")
    root = ElementTree.fromstring(svg)
    assert (root.get("role"), root.get("aria-label")) == ("img", 'A "title" & more')
    paints = {n.get(name) for n in root.iter() for name in ("fill", "stroke")} - {None}
    assert paints == {"var(--ink)", "var(--muted)", "var(--series-0)"}
    assert "<row>" in texts(svg)


def test_a_picture_of_its_own_needs_no_page():
    text = standalone(bars({"a": {"x": 1.0}}, title="t", unit="ms"))
    ground = nodes(text, "rect")[0]
    assert (ground.get("width"), ground.get("fill")) == ("100%", PALETTE["paper"][0])
    assert "var(" not in text and PALETTE["series-0"][0] in text and text.endswith("</svg>\n")


def luminance(value: str) -> float:
    """Relative, of sRGB, as WCAG 2 defines it."""
    channels = [int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


TEXT = [
    *itertools.product(("ink", "muted"), ("ground", "paper")),
    *(("ink", ground) for ground in ("note", "hot", "load", "episode", "event", "tick", "control")),
    ("good", "good-ground"), ("bad", "bad-ground"), ("open", "open-ground"), ("paper", "bad"),
]  # fmt: skip


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_their_ground(scheme):
    # WCAG 2.1: 4.5 for text (1.4.3), 3 for what has to be told apart in a picture (1.4.11).
    found = {pair: contrast(*(PALETTE[name][scheme] for name in pair)) for pair in TEXT}
    assert {pair: ratio for pair, ratio in found.items() if ratio < 4.5} == {}
    drawn = [name for name in PALETTE if name.startswith("series-")]
    paper = PALETTE["paper"][scheme]
    assert [n for n in drawn if contrast(PALETTE[n][scheme], paper) < 3] == []


def test_paper_is_always_light():
    light, dark = variables().split("\n")[:2]
    assert light.startswith(":root{color-scheme:light;") and "--ink:#1f2933" in light
    assert dark.startswith("@media screen and (prefers-color-scheme:dark){:root{color-scheme:dark;")
    assert len(re.findall("--ink:", light + dark)) == 2


def test_a_colour_that_nobody_mixed_is_an_error():
    with pytest.raises(KeyError):
        colour("mauve")
