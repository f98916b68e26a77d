"""The recipe that a study writes is the one that it measured, and report and pictures tell all."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT, EPISODES
from models.families import CONFIGS
from models.family import layer_names
from quant.data.observations import read_observations
from quant.recipes import read_recipe
from quant.search.sensitivity import CANDIDATES, Trial, group_layers
from quant.search.study import SensitivityConfig, sensitivity


def texts(svg):
    return [node.text for node in ElementTree.fromstring(svg).iter() if node.text]


def groups_of(checkpoint):
    """Those that this policy has layers of, and its layers."""
    return {g: layers for g, layers in group_layers(load_checkpoint(checkpoint).model).items()
            if layers}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory, cut_checkpoint):
    """A search on few observations and layers: its folder."""
    out = tmp_path_factory.mktemp("sensitivity") / "out"
    sensitivity(
        SensitivityConfig(
            checkpoint=cut_checkpoint,
            board="agx-orin-64gb",
            budget_ms=54,
            out=out,
            limit=2,
            shapes="full",
            image_size=(252, 252),
        )
    )
    return out


def test_the_written_recipe_is_the_one_that_was_measured(study, cut_checkpoint):
    recipe = read_recipe(study / "recipe.json")
    report = json.loads((study / "recipe.json").read_text())
    assert (recipe.name, recipe.target, recipe.base) == ("orin-mixed", "orin", "bfloat16")
    assert recipe.purpose == "time"
    assert {rule.pattern for rule in recipe.rules if rule.where_there} >= {"readouts.*"}
    recipe.decide(layer_names(CONFIGS["full"]()))  # which has no readouts
    few = list(read_observations(EPISODES, stride=8, limit=2))
    error = Trial(load_checkpoint(cut_checkpoint), few).error(recipe)
    assert report["measured"]["measured"] == pytest.approx(error, rel=1e-3)
    assert report["measured"]["ms"] <= 54
    assert report["measured"] in report["path"]


def test_the_report_has_every_group_and_format_and_a_path_that_saves(study, cut_checkpoint):
    report = json.loads((study / "recipe.json").read_text())
    assert {group: set(row) for group, row in report["sensitivity"].items()} == {
        group: set(CANDIDATES) for group in groups_of(cut_checkpoint)
    }
    times = [step["ms"] for step in report["path"]]
    assert times == sorted(times, reverse=True)
    assert report["path"][0]["share"] == 0.5


def test_the_pictures_name_every_group_and_layer(study, cut_checkpoint):
    found = texts((study / "heat-map.svg").read_text())
    groups = groups_of(cut_checkpoint)
    assert {*groups, "w8a8", "w4"} <= set(found)
    num_layers = sum(map(len, groups.values()))
    cells = ElementTree.fromstring((study / "layers.svg").read_text()).iter()
    boxes = [node for node in cells if node.tag.endswith("rect") and node.get("rx")]
    assert len(boxes) == num_layers
    report = json.loads((study / "recipe.json").read_text())
    said = " ".join(texts((study / "pareto.svg").read_text()))
    for step in report["path"]:
        assert step["step"] in said or step["measured"] == 0
    assert "chosen" in said and "another noise seed" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"board": "orin"}, "unknown board 'orin'; there are .*agx-orin-64gb"),
        ({"shapes": "tiny"}, "unknown shapes 'tiny'; there are .*full"),
        ({"budget_ms": None}, "give one budget"),
        ({"budget_bytes": 0.3}, "give one budget"),
        ({"tokens": 0}, "must be positive"),
    ],
)
def test_a_search_that_cannot_be_is_refused(change, message, tmp_path):
    fields = {"checkpoint": CHECKPOINT, "board": "agx-orin-64gb", "budget_ms": 54, "out": tmp_path}
    with pytest.raises(ValueError, match=message):
        SensitivityConfig(**{**fields, **change})
