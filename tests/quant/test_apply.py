"""Recipes name every layer once; calibration sees what flows; layers compute in their format."""

import numpy as np
import pytest
import torch
from torch import nn

from models.anchorvla4d.presets import CONFIGS, shallow
from models.networks.spatial import AlternatingAttention
from quant.apply import quantize, quantize_alone, quantize_layer
from quant.calibrate import Statistics, calibrate
from quant.formats import round_to_bfloat16, up_to_bfloat16
from quant.methods import awq_scales, gptq
from quant.modules import QuantLinear
from quant.recipes import METHODS, Recipe, Rule
from tests.oracles import relative_error

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
        purpose="time",
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
    assert (layers[0].input_factor is None) == (
        method not in ("smooth", "tokens", "awq", "outliers")
    )
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


def layer_of(rule, *, inputs=200, outputs=24, outliers=()):
    """A quantized layer, what it was made of, and what was seen of its inputs."""
    random = np.random.default_rng(3)
    linear = nn.Linear(inputs, outputs).requires_grad_(False)
    linear.weight.copy_(torch.from_numpy(random.standard_normal((outputs, inputs), np.float32)))
    rows = random.standard_normal((64, inputs), np.float32) * np.exp(
        random.standard_normal(inputs, np.float32) / 2
    )
    rows = np.clip(rows, -5, 5)
    rows[7, list(outliers)] = 40
    # The sample may miss what calibration saw: ranges are those of `channel_max`.
    seen = Statistics(np.abs(rows).max(axis=0) * np.float32(1.25), rows, 64)
    weight = linear.weight.numpy().T.copy()
    return quantize_alone(linear, Rule("*", *rule), seen), linear, weight, seen


def up(values):
    return up_to_bfloat16(np.atleast_1d(np.asarray(values, np.float32)))


def int8_by_hand(weight):
    scales = up(np.abs(weight).max(axis=0) / np.float32(127))
    return np.rint(weight / scales), scales


def int4_by_hand(weight):
    padded = np.zeros((256, weight.shape[1]), np.float32)
    padded[: len(weight)] = weight
    blocks = padded.reshape(2, 128, -1)
    scales = up(np.abs(blocks).max(axis=1) / np.float32(7))
    return np.rint(blocks / scales[:, None]).reshape(padded.shape), scales


def check_layer(layer, linear, weight, *, step=None, factor=None):
    codes, scales = weight
    assert np.array_equal(layer.codes, codes) and np.array_equal(layer.scales, scales)
    assert layer.bias is linear.bias
    assert (layer.activation_scale is None) == (step is None)
    assert step is None or layer.activation_scale == up(step)[0]
    assert (layer.input_factor is None) == (factor is None)
    assert factor is None or np.array_equal(layer.input_factor, factor)


def test_w8_is_codes_alone():
    layer, linear, weight, _ = layer_of(("w8",))
    check_layer(layer, linear, int8_by_hand(weight))


def test_w8a8_has_the_step_of_the_largest_input():
    layer, linear, weight, seen = layer_of(("w8a8",))
    check_layer(layer, linear, int8_by_hand(weight), step=seen.channel_max.max() / 127)
    assert layer.kept is None


def test_smoothing_divides_the_weight_by_what_inputs_are_multiplied_with():
    layer, linear, weight, seen = layer_of(("w8a8", "smooth"))
    scales = np.sqrt(seen.channel_max / np.abs(weight).max(axis=1))
    factor = round_to_bfloat16((np.sqrt(scales.max() * scales.min()) / scales).astype(np.float32))
    # One in a thousand factors may lie on the other side of a tie: 200 of this seed do not.
    check_layer(
        layer,
        linear,
        int8_by_hand(weight / factor[:, None]),
        step=(seen.channel_max * factor).max() / 127,
        factor=factor,
    )


def test_a_token_has_a_scale_of_its_own_whatever_calibration_saw():
    layer, linear, weight, seen = layer_of(("w8a8", "tokens"))
    smoothed = layer_of(("w8a8", "smooth"))[0]
    factor = smoothed.input_factor.numpy()
    check_layer(layer, linear, int8_by_hand(weight / factor[:, None]), step=1 / 127, factor=factor)
    rows = seen.rows[:4] * np.array([[1.0], [1e-3], [1e3], [0.0]], np.float32)
    tokens = (rows * factor).astype(np.float64)
    size = np.maximum(np.abs(tokens).max(axis=1, keepdims=True), 2.0**-20)
    step = float(up(1 / 127)[0])
    codes, scales = int8_by_hand(weight / factor[:, None])
    want = np.rint(tokens / size / step) * step @ (codes * scales) * size + linear.bias.numpy()
    got = layer(torch.from_numpy(rows)).numpy()
    # One code of 200, on the other side of a tie, is 1 / 127 of a largest weight.
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    assert np.array_equal(got[3], linear.bias.numpy())
    exact = rows @ weight
    for row in range(3):
        off = np.linalg.norm(got[row] - linear.bias.numpy() - exact[row])
        assert off < 0.02 * np.linalg.norm(exact[row])
    assert (smoothed(torch.from_numpy(rows)).numpy()[2] - exact[2]).max() > exact[2].max() / 2


def test_outliers_are_kept_out_of_codes_and_step():
    kept = [3, 70]
    layer, linear, weight, seen = layer_of(("w8a8", "outliers"), outliers=kept)
    stays = np.ones(200, np.float32)
    stays[kept] = 0
    check_layer(
        layer,
        linear,
        int8_by_hand(weight * stays[:, None]),
        step=np.delete(seen.channel_max, kept).max() / 127,
        factor=stays,
    )
    assert layer.kept.tolist() == kept and np.array_equal(layer.kept_weight, weight[kept])


def test_smoothing_is_for_inputs_that_stand_out():
    """Two inputs as large as those in front of a language model's layers; other rows are judged."""
    errors = {}
    for method in ("plain", "smooth"):
        layer, linear, _, seen = layer_of(("w8a8", method), outliers=(3, 90))
        rows = torch.from_numpy(np.delete(seen.rows, 7, axis=0))
        errors[method] = relative_error(layer(rows), linear(rows))
    assert errors["smooth"] < errors["plain"] / 2, errors


def test_without_outliers_the_layer_is_plain():
    layer, linear, weight, seen = layer_of(("w8a8", "outliers"))
    check_layer(layer, linear, int8_by_hand(weight), step=seen.channel_max.max() / 127)
    assert layer.kept is None and layer.kept_weight is None


def test_w4_pads_its_inputs_to_blocks():
    layer, linear, weight, _ = layer_of(("w4",))
    check_layer(layer, linear, int4_by_hand(weight))


def test_awq_takes_the_factor_that_is_best_for_the_rows():
    layer, linear, weight, seen = layer_of(("w4", "awq"))

    def trip(values):
        codes, scales = int4_by_hand(values)
        return (codes * scales.repeat(128, axis=0))[: len(values)].astype(np.float32)

    factor = round_to_bfloat16(1 / awq_scales(seen.rows, weight, trip))
    assert len(set(factor.tolist())) > 10
    check_layer(layer, linear, int4_by_hand(weight / factor[:, None]), factor=factor)


def test_gptq_pads_weight_and_rows_and_is_damped_tenfold():
    layer, linear, weight, seen = layer_of(("w4", "gptq"))
    rows = np.hstack([seen.rows, np.zeros((64, 56), np.float32)])
    padded = np.vstack([weight, np.zeros((56, 24), np.float32)])
    want = gptq(rows, padded, damping=0.1, round_scales=up_to_bfloat16)
    check_layer(layer, linear, (want.codes, want.scales))
    plain = int4_by_hand(weight)[0]
    assert not np.array_equal(layer.codes, plain) and not layer.codes[200:].any()


@pytest.mark.parametrize(
    ("rule", "looks"),
    [(("w8",), False), (("w4",), False), (("w8a8",), True), (("w8a8", "smooth"), True),
     (("w8a8", "tokens"), True),
     (("w8a8", "outliers"), True), (("w4", "awq"), True), (("w4", "gptq"), True)],
)  # fmt: skip
def test_what_looks_at_inputs_wants_to_have_seen_them(rule, looks):
    model, chosen = make_model(), recipe(("0", *rule), ("*", "float"))
    if not looks:
        assert isinstance(quantize(model, chosen, {})[0], QuantLinear)
        return
    with pytest.raises(ValueError, match=r"no calibration of 1 layers, \['0'\] first: the obs"):
        quantize(model, chosen, {})


def test_a_step_of_nothing_is_small_and_positive():
    model = nn.Sequential(nn.Linear(4, 4))
    seen = {"0": Statistics(np.zeros(4, np.float32), np.zeros((1, 4), np.float32), 1)}
    layer = quantize(model, recipe(("*", "w8a8")), seen)[0]
    assert layer.activation_scale == up(1e-6 / 127)[0]


def test_a_format_that_is_only_written_is_refused():
    with pytest.raises(ValueError, match=r"^\*: format fp8 has no emulation, it is only written$"):
        quantize_layer(nn.Linear(4, 4), Rule("*", "fp8"), None)


def test_float_layers_and_buffers_are_shared_and_the_rest_is_not():
    model = nn.Sequential(
        nn.Linear(4, 4),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
        AlternatingAttention(
            shallow(CONFIGS["demo"](), vision=1, language=1, spatial=2, head=1).spatial, 8
        ),
    )
    rules = ("0", "w8"), ("1", "float"), ("*", "float32")
    made = quantize(model, recipe(*rules), {})
    assert made is not model and made[1].weight is model[1].weight
    assert made[2].bias is model[2].bias and made[3].view_pos_table is model[3].view_pos_table
    assert isinstance(made[0], QuantLinear) and made[0].bias is model[0].bias
