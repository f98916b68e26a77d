"""Pictures have every label and number."""

import xml.etree.ElementTree as ElementTree

import pytest

from quant.search.pictures import Dot, heat_map_svg, pareto_svg, short


def texts(svg):
    return [node.text for node in ElementTree.fromstring(svg).iter() if node.text]


def test_a_heat_map_has_every_label_and_number_and_colours_the_worst_darkest():
    errors = {"first": {"0": 0.5, "1": 0.0}, "second": {"1": 2e-4}}
    svg = heat_map_svg(errors, title="A <title>")
    assert {"first", "second", "0", "1", "0.50", "2.0e-4", "A <title>"} <= set(texts(svg))
    shares = [n.get("fill-opacity") for n in ElementTree.fromstring(svg).iter() if n.get("rx")]
    assert shares == ["1.0", "0.06", "0.06"]  # the largest, zero, the least that is not zero


@pytest.mark.parametrize("errors", [{"a": {"x": 0.0}}, {"a": {"x": 0.1}, "b": {}}])
def test_a_heat_map_of_little_still_draws(errors):
    assert {"a", "x"} <= set(texts(heat_map_svg(errors, title="")))


@pytest.mark.parametrize("num_dots", [1, 3])
def test_a_curve_marks_the_chosen_recipe(num_dots):
    dots = [Dot(f"step {i}", 10.0 - i, 0.01 * i, 0.02 * i) for i in range(num_dots)]
    found = texts(pareto_svg(dots, num_dots - 1, x_title="ms", spread=0.2))
    assert f"chosen: {11 - num_dots}, error {short(0.02 * (num_dots - 1))}" in found
    assert {"ms", "predicted", "measured", "another noise seed: 0.20"} <= set(found)
