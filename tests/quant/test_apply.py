"""Recipes name every layer once; calibration sees what flows; layers compute in their format."""

import numpy as np
import pytest
import torch
from torch import nn

from quant.apply import quantize
from quant.calibrate import calibrate
from quant.modules import QuantLinear
from quant.recipes import METHODS, Recipe, Rule

WIDTH = 128


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8, bias=False)
    )


def recipe(*rules):
    return Recipe(
        name="trial",
        rules=tuple(Rule(*rule) for rule in rules),
        target="cpu",
        tolerance=1e-4,
        chain_tolerance=1e-4,
    )


def run(model, seed=0, rows=64):
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(x)


def statistics_of(model):
    return calibrate(model, [lambda s=s: run(model, s) for s in range(3)])


def relative(a, b):
    return float((a - b).norm() / b.norm())


def test_calibration_is_the_largest_magnitude_of_each_channel():
    model = nn.Sequential(nn.Linear(3, 2))
    inputs = [
        torch.tensor([[1.0, -5.0, 0.0]]),
        torch.tensor([[[-2.0, 1.0, 0.5], [0.0, 0.0, 0.25]]]),
    ]
    seen = calibrate(model, [lambda x=x: model(x) for x in inputs])
    assert list(seen) == ["0"]
    assert seen["0"].channel_max.tolist() == [2.0, 5.0, 0.5]
    assert (seen["0"].max, seen["0"].num_rows) == (5.0, 3)
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "nothing to calibrate on"),
        ([lambda: run(make_model())], "nothing to calibrate on"),
    ],
)
def test_a_calibration_of_nothing_is_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        calibrate(make_model(), runs)


def test_a_calibration_that_overflows_names_the_layer():
    model = make_model()
    with torch.no_grad():
        model[0].weight.fill_(3e38)
    with pytest.raises(ValueError, match="the input of 2 is NaN or infinite"):
        calibrate(model, [lambda: run(model)])


@pytest.mark.parametrize(
    ("number_format", "bound"),
    # A rounding to steps of s adds s / sqrt(12) of noise. int8 of a uniform weight: 1 / 220 of its
    # rms; the input's step is 1 / 127 of its largest of some thousand normals, four times the rms.
    # int4: 1 / 12 of the rms. Three layers, and room for the GELU.
    [("w8", 0.01), ("w8a8", 0.03), ("w4", 0.2)],
)
def test_formats_cost_about_what_their_steps_say(number_format, bound):
    model = make_model()
    quantized = quantize(model, recipe(("*", number_format)), statistics_of(model))
    assert sum(isinstance(m, QuantLinear) for m in quantized.modules()) == 3
    error = relative(run(quantized, seed=9), run(model, seed=9))
    assert bound / 10 < error < bound


def is_bfloat16(values):
    return values.equal(values.to(torch.bfloat16).float())


EVERY_METHOD = [("w8", "plain"), *((f, m) for f, methods in METHODS.items() for m in methods)]


@pytest.mark.parametrize(("number_format", "method"), EVERY_METHOD)
def test_scales_and_factors_are_bfloat16_numbers_in_every_format(number_format, method):
    """So lowering to bfloat16, which rounds them, changes none."""
    model = make_model()
    seen = statistics_of(model)
    seen["0"].rows[::7, 5] = seen["0"].channel_max[5] = 9  # an outlier
    layers = quantize(model, recipe(("*", number_format, method)), seen)
    for layer in (layers[0], layers[2], layers[3]):
        assert is_bfloat16(layer.scales)
        for more in (layer.activation_scale, layer.input_factor):
            assert more is None or is_bfloat16(more)
    assert (layers[0].activation_scale is None) == (number_format != "w8a8")
    assert (layers[0].input_factor is None) == (method not in ("smooth", "awq", "outliers"))
    assert (layers[0].kept is None) == (method != "outliers")


def test_the_model_itself_stays_and_shares_what_is_not_replaced():
    model = make_model()
    before = run(model)
    quantized = quantize(model, recipe(("0", "w8"), ("*", "float32")), {})
    assert run(model).equal(before)
    assert quantized[2].weight is model[2].weight
    assert isinstance(quantized[0], QuantLinear) and isinstance(model[0], nn.Linear)


def test_the_first_rule_that_matches_decides():
    formats = recipe(("1", "w4"), ("*", "w8")).decide(["0", "1", "2"])
    assert {n: rule.format for n, rule in formats.items()} == {"0": "w8", "1": "w4", "2": "w8"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("0", "w8")], r"no rule for 2 layers, \['2', '3'\] first"),
        ([("*", "w8"), ("0", "w4")], r"\['0'\] decide about no layer"),
        ([("9", "w8"), ("*", "w8")], r"\['9'\] decide about no layer"),
        ([("*", "w8a8")], r"no calibration of 3 layers, \['0', '2', '3'\] first"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        quantize(make_model(), recipe(*rules), {})


def test_an_input_that_was_always_zero_has_a_scale():
    model = nn.Sequential(nn.Linear(4, 4))
    seen = calibrate(model, [lambda: model(torch.zeros(2, 4))])
    quantized = quantize(model, recipe(("*", "w8a8")), seen)
    assert np.isfinite(quantized(torch.ones(2, 4)).detach().numpy()).all()
