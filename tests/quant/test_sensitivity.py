"""The search finds what is sensitive, and takes what costs least."""

import dataclasses
import itertools
import json
from dataclasses import astuple

import pytest
import torch
from torch import nn

from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT, EPISODES
from models.families import CONFIGS, FAMILIES, family_of
from models.family import layer_names
from models.stored import plain
from quant.apply import decide
from quant.data.observations import read_observations
from quant.recipes import KEPT, MIXED, RECIPES, orin_mixed
from quant.search.sensitivity import GROUPS, Trial, group_layers, make_recipe, measure, search

SMALL = {
    "a": {"float": 0.0, "w8": 0.01, "w4": 0.1},
    "b": {"float": 0.0, "w8": 0.02, "w4": 0.03},
    "c": {"float": 0.0, "w8": 0.05, "w4": 0.04},
}
COSTS = {
    "a": {"float": 8.0, "w8": 4.0, "w4": 2.0},
    "b": {"float": 2.0, "w8": 2.0, "w4": 0.5},
    "c": {"float": 6.0, "w8": 3.0, "w4": 1.5},
}


def empty_policy(name):
    with torch.device("meta"):
        config = CONFIGS[name]()
        return family_of(config).model(config)


def test_every_group_and_every_rule_decides_about_a_layer_of_some_policy():
    models = [empty_policy(name) for name in CONFIGS]
    assert set().union(*map(group_layers, models)) == set(GROUPS)
    for name, make in RECIPES.items():
        if name != "orin-mixed":  # that of one policy
            used = set().union(*(decide(make(), model).values() for model in models))
            assert used == set(make().rules), name


@pytest.mark.parametrize("name", CONFIGS)
def test_groups_share_out_every_layer_that_is_not_kept(name):
    model = empty_policy(name)
    groups = group_layers(model)
    assert groups and all(groups.values())
    shared = [layer for layers in groups.values() for layer in layers]
    assert len(shared) == len(set(shared))
    recipe = make_recipe({group: "w8a8" for group in GROUPS})
    decided = decide(recipe, model)
    assert {n for n, rule in decided.items() if rule.format == "w8a8"} == set(shared)
    assert {n for n, rule in decided.items() if rule in KEPT} == set(decided) - set(shared)


def test_a_layer_without_a_group_is_refused():
    model = empty_policy("demo")
    model.vlm.model.layers[0].mlp.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"1 do not: \['vlm.model.layers.0.mlp.extra in none'\]"):
        group_layers(model)


def test_no_recipe_of_the_same_cost_is_better_than_a_point_of_the_path():
    path, _ = search(SMALL, COSTS, budget=100)
    every = [
        (
            sum(COSTS[g][f] for g, f in zip(SMALL, chosen, strict=True)),
            sum(SMALL[g][f] ** 2 for g, f in zip(SMALL, chosen, strict=True)) ** 0.5,
        )
        for chosen in itertools.product(*SMALL.values())
    ]
    for point in path:
        best = min(error for cost, error in every if cost <= point.cost)
        assert point.predicted == pytest.approx(best)


def test_the_path_goes_down_in_cost_and_up_in_error_to_the_least_of_all():
    path, chosen = search(SMALL, COSTS, budget=9)
    costs = [point.cost for point in path]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == len(costs)
    assert [p.predicted for p in path] == sorted(p.predicted for p in path)
    assert costs[0] == 16 and costs[-1] == 4
    assert costs[chosen] <= 9 < costs[chosen - 1]


def test_a_format_that_costs_more_error_and_saves_nothing_is_never_taken():
    path, _ = search(SMALL, COSTS, budget=100)
    assert {p.formats["b"] for p in path} == {"float", "w4"}
    assert {p.formats["c"] for p in path} == {"float", "w4"}


def test_a_budget_that_cannot_be_met_names_the_least_that_can():
    with pytest.raises(ValueError, match=r"3.9 cannot be met: from 16 .*least reachable is 4$"):
        search(SMALL, COSTS, budget=3.9)


def test_a_format_that_breaks_the_policy_is_never_taken():
    broken = {**SMALL, "a": {"float": 0.0, "w8": 0.01, "w4": float("inf")}}
    path, _ = search(broken, COSTS, budget=100)
    assert path[-1].formats["a"] == "w8"


def test_a_group_made_sensitive_stays_in_the_base_format():
    few = list(read_observations(EPISODES, stride=8, limit=4))
    groups = ("vision.down", "language.down", "head.mlp")
    costs = {group: {"float": 2.0, "w8": 1.0, "w8a8": 1.0, "w4": 0.5} for group in groups}
    chosen = {}
    for planted in (False, True):
        checkpoint = load_checkpoint(CHECKPOINT)
        if planted:
            checkpoint = dataclasses.replace(checkpoint, model=plain(checkpoint.model))
            _plant_outliers(checkpoint.model)
        errors = measure(Trial(checkpoint, few), groups)
        path, index = search(errors, costs, budget=3.0)
        chosen[planted] = path[index].formats
    assert chosen[True] == {"vision.down": "w4", "language.down": "w4", "head.mlp": "float"}
    assert chosen[False]["head.mlp"] != "float"


def _plant_outliers(model):
    """A hidden unit that is always gelu(1), with a large weight that its bias takes away again.

    Its neighbours share a scale with it, whose step is 1000 / 127 or, smoothed, some 30 / 127.
    """
    for block in model.action_head.blocks:
        first, last = block.mlp.fc1, block.mlp.fc2
        with torch.no_grad():
            first.weight[0], first.bias[0] = 0.0, 1.0
            last.weight[:, 0] = 1000.0
            last.bias -= 1000.0 * nn.functional.gelu(torch.tensor(1.0), approximate="tanh")


def test_nothing_quantized_is_no_error():
    few = list(read_observations(EPISODES, stride=8, limit=2))
    trial = Trial(load_checkpoint(CHECKPOINT), few)
    assert trial.error(make_recipe({})) == 0
    assert 0.01 < trial.noise_spread() < 1


def test_one_observation_is_too_few():
    few = list(read_observations(EPISODES, stride=8, limit=1))
    with pytest.raises(ValueError, match="1 observations: it takes one to calibrate"):
        Trial(load_checkpoint(CHECKPOINT), few)


def test_the_shipped_recipe_is_mixed_fits_all_of_its_family_and_harms_less_than_noise():
    recipe = orin_mixed()
    for name in FAMILIES["anchorvla4d"].presets:
        decided = decide(recipe, empty_policy(name)).values()
        assert {rule.format for rule in decided} == {"float32", "float", "w8a8"}, name
    report = json.loads(MIXED.read_text())
    assert report["measured"]["measured"] < report["noise_spread"] / 4
    formats = {r.pattern: r.format for r in recipe.rules}
    groups = {g: formats[patterns[0]] for g, patterns in GROUPS.items() if patterns[0] in formats}
    layers = layer_names(CONFIGS["readouts"]())
    made = make_recipe(groups).fitted(layers)
    assert [astuple(rule)[:3] for rule in recipe.rules] == [astuple(r)[:3] for r in made.rules]
