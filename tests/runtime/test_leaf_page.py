"""Leaves on the page of a run: figures and places are those of the readings, number for number."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from runtime.control.leaves import LeafCount, Reading
from runtime.control.trace import Leaf, Trace
from runtime.declarations import Output
from runtime.pages.leaves import all_errors, error_words, leaf_errors, show_errors, show_leaves
from runtime.pages.page import document
from runtime.pages.svg import plane
from runtime.robots.robot import Observation
from tests.pages import Page, broken_promises

OUTPUTS = {"actions": Output(), "goal": Output(units=("cm",) * 3, names=("x", "y", "z"))}


def leaf(said, true, took_s=0.002):
    count = LeafCount(num_run=len(said), num_skipped=2, longest_s=0.03)
    made = Leaf(count)
    for number, (value, truth) in enumerate(zip(said, true, strict=True)):
        known = None if truth is None else np.asarray(truth, np.float32)
        value = np.asarray(value, np.float32)
        made.add(Reading("goal", value, number, 0.5 * number, 0, 0, took_s * (number + 1), known))
    return made


def trace_of(made):
    first = Observation({"frame": np.zeros((2, 2, 3), np.uint8)}, {"frame": 0.0})
    return Trace("do", 0.1, first, leaves={"goal": made})


def drawn(seed, count=12):
    random = np.random.default_rng(seed)
    true = np.array([10.0, 80.0, 20.0]) + random.normal(0, 5, 3)
    return leaf(true + random.normal(0, 2, (count, 3)), [true] * count)


def page_of(*content):
    return Page(document("t", content))


def test_figures_are_numpy_s_over_all_readings_of_all_episodes():
    leaves = [drawn(0), drawn(1, 7)]
    said, true = (
        np.stack([getattr(r, side) for made in leaves for r in made.history]).astype(float)
        for side in ("value", "truth")
    )
    off = np.sqrt(((said - true) ** 2).sum(axis=1))
    constant = np.sqrt(((true - true.mean(axis=0)) ** 2).sum(axis=1))
    found = leaf_errors(leaves)
    assert found.num == 19
    assert found.median == pytest.approx(np.percentile(off, 50), rel=1e-5)
    assert found.p95 == pytest.approx(np.percentile(off, 95), rel=1e-5)
    assert found.largest == pytest.approx(off.max(), rel=1e-5)
    assert found.constant == pytest.approx(np.percentile(constant, 50), rel=1e-4)
    words = error_words(found, OUTPUTS["goal"])
    assert (
        words == f"{found.median:.2g} cm off in the median, {found.p95:.2g} cm p95 of 19 readings"
    )
    rows = page_of(*show_errors([trace_of(made) for made in leaves], OUTPUTS)).sections[""]
    assert rows[1] == [
        "goal", "cm", "19",
        *(f"{v:.2f}" for v in (found.median, found.p95, found.largest, found.constant)),
    ]  # fmt: skip


def test_an_episode_shows_how_often_and_how_far_off():
    made = drawn(2)
    page = page_of(*show_leaves(trace_of(made), OUTPUTS))
    found = leaf_errors([made])
    assert page.sections[""][1] == [
        "goal", "12", "2", "0", "13.00", "30.00", f"{found.median:.1f} cm", f"{found.p95:.1f} cm",
    ]  # fmt: skip
    ((line,),) = [page.charts()["goal: distance from the truth, over the episode"]]
    assert [x for x, _ in line] == pytest.approx([0.5 * n for n in range(12)], abs=0.02)
    assert [y for _, y in line] == pytest.approx(made.errors, abs=0.02)
    assert broken_promises(page) == []


def test_where_nobody_knows_the_numbers_are_drawn_by_their_names():
    made = leaf([[1, 2, 3], [2, 3, 4]], [None, None])
    assert leaf_errors([made]) is None and all_errors([trace_of(made)]) == {}
    assert show_errors([trace_of(made)], OUTPUTS) == []
    page = page_of(*show_leaves(trace_of(made), OUTPUTS))
    assert page.sections[""][1] == ["goal", "2", "2", "0", "3.00", "30.00"]
    assert {"x", "y", "z", "goal, cm"} <= set(page.texts)
    lines = page.charts()["goal, over the episode"]
    assert [[y for _, y in line] for line in lines] == [
        pytest.approx(ends, abs=0.02) for ends in ([1, 2], [2, 3], [3, 4])
    ]


def test_places_lie_in_one_scale_and_what_is_no_number_is_counted():
    true, said = [(0.0, 80.0)], [(3.0, 80.0), (0.0, 84.0), (np.nan, 1.0)]
    picture = plane(
        {"known": true, "said": said}, title="t", x_title="x", y_title="y", width=420, height=270,
        links=list(zip(said, true * 3, strict=True)),
    )  # fmt: skip
    root = ElementTree.fromstring(picture)
    circles = [n for n in root.iter() if n.tag.endswith("circle")]
    (ring, *dots), texts = circles, [n.text for n in root.iter() if n.text]
    x0, y0 = float(ring.get("cx")), float(ring.get("cy"))
    (x1, y1), (x2, y2) = ((float(n.get("cx")), float(n.get("cy"))) for n in dots)
    assert (y1, x2) == (y0, x0) and x1 > x0 and y2 < y0, "right is more x, up is more y"
    assert (x1 - x0) / 3 == pytest.approx((y0 - y2) / 4, abs=0.05)
    links = [n for n in root.iter() if n.get("stroke") == "var(--edge)"]
    ends = [{(float(n.get(f"x{i}")), float(n.get(f"y{i}"))) for i in (1, 2)} for n in links]
    assert ends == [{(x1, y1), (x0, y0)}, {(x2, y2), (x0, y0)}]
    assert "not drawn: 1 that are no number" in texts and {"known", "said"} <= set(texts)
    _, _, width, height = map(float, root.get("viewBox").split())
    assert all(8 <= float(n.get("cx")) <= width - 8 for n in circles)
    assert all(8 <= float(n.get("cy")) <= height - 8 for n in circles)


def test_ticks_of_a_plane_stand_where_their_numbers_are():
    picture = plane(
        {"a": [(0.0, 0.0)], "b": [(10.0, 4.0)]}, title="t", x_title="x", y_title="y", width=420,
        height=270,
    )  # fmt: skip
    root = ElementTree.fromstring(picture)
    ring, dot = (n for n in root.iter() if n.tag.endswith("circle"))
    scale = (float(dot.get("cx")) - float(ring.get("cx"))) / 10
    texts = [n for n in root.iter() if n.tag.endswith("text")]
    along = [n for n in texts if n.get("text-anchor") == "middle"]
    upward = [n for n in texts if n.get("text-anchor") == "end" and n.text not in ("x", "y")]
    assert len(along) >= 3 and len(upward) >= 2
    for node in along:
        wanted = float(ring.get("cx")) + scale * float(node.text)
        assert float(node.get("x")) == pytest.approx(wanted, abs=0.3)
    for node in upward:
        wanted = float(ring.get("cy")) - scale * float(node.text)
        assert float(node.get("y")) - 4 == pytest.approx(wanted, abs=0.3)


@pytest.mark.parametrize(("count", "width", "is_drawn"), [(2, 16, 1), (2, 17, 0), (1, 3, 0)])
def test_what_nobody_could_tell_apart_is_not_drawn(count, width, is_drawn):
    made = leaf(np.random.default_rng(0).normal(size=(count, width)), [None] * count)
    page = page_of(*show_leaves(trace_of(made), {"goal": Output()}))
    assert page.tags.count("svg") == is_drawn
