"""What `rounding` does to a model: to which of its layers, at which places, and that it ends."""

import numpy as np
import pytest
import torch
from torch import nn

from export.measure import JITTER, rounding, without_stores
from quant.formats import int8_per_channel
from quant.modules import QuantLinear
from tests.families import CAMERA, INPUTS, toy_graph, with_store


def test_an_export_computes_every_tensor_and_remembers_none():
    graph = toy_graph({**INPUTS, "second": CAMERA})
    assert without_stores(with_store(graph, 3, ("camera", "second"))) == graph
    assert without_stores(graph) == graph


def low(x):
    return x.to(torch.bfloat16).float()


@pytest.fixture
def x():
    return torch.from_numpy(np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32))


def linear(bias=True):
    torch.manual_seed(2)
    return nn.Linear(8, 3, bias=bias).requires_grad_(False)


def quantized():
    """A layer in int8 whose input stays in float."""
    layer = linear()
    return QuantLinear(int8_per_channel(layer.weight.numpy().T), layer.bias, None)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_rounds_input_weight_bias_and_output(x, bias):
    layer = linear(bias)
    want = low(x) @ low(layer.weight).T + (low(layer.bias) if bias else 0)
    with rounding(nn.Sequential(layer), "bfloat16", set()):
        got = layer(x)
        again = layer(x)
    # Sums of nine terms below 4, in another order: a bfloat16 at a tie may fall to either side.
    assert (got == low(want)).float().mean() >= 0.9
    assert torch.allclose(got, want, rtol=2**-8, atol=1e-6)
    assert torch.equal(got, low(got)) and torch.equal(got, again)
    assert not torch.equal(got, low(layer(x)))


def test_every_one_of_the_four_roundings_shows(x):
    """Each number lies between two of bfloat16, and what the product is tells which was rounded."""
    layer = linear()
    layer.weight.zero_()
    layer.bias.zero_()
    between = 1 + 2**-9  # rounds to 1
    one = torch.zeros(1, 8)
    model = nn.Sequential(layer)

    def first(number, weight, bias):
        layer.weight[0, 0], layer.bias[0], one[0, 0] = weight, bias, number
        with rounding(model, "bfloat16", set()):
            return float(layer(one)[0, 0])

    assert first(256 * between, 1.0, -256.0) == 0  # unrounded: 0.5
    assert first(1.0, 256 * between, -256.0) == 0
    assert first(1.0, 256.0, -256 * between) == 0
    assert first(1.0, 1.0, 2**-9) == 1


def test_a_quantized_layer_rounds_what_comes_and_what_goes_and_keeps_its_codes(x):
    layer = quantized()
    want = layer(low(x))
    with rounding(nn.Sequential(layer), "bfloat16", set()):
        got = layer(x)
    assert torch.equal(got, low(want))
    assert not torch.equal(want, layer(x)) and not torch.equal(got, want)


def test_a_layer_that_stays_float32_is_left_alone_but_for_what_a_quantized_one_is_given(x):
    model = nn.Sequential(linear(), quantized())
    wants = model[0](x), model[1](low(x))
    with rounding(model, "bfloat16", {"0", "1"}):
        gots = model[0](x), model[1](x)
    assert all(torch.equal(*pair) for pair in zip(gots, wants, strict=True))


def test_float32_moves_every_number_by_a_jitter_that_is_new_each_time(x):
    layer = linear()
    exact = layer(x)
    with rounding(nn.Sequential(layer), "float32", set()):
        first, second = layer(x), layer(x)
    # Input, weight and output each move by JITTER at most, the sum of magnitudes bounds the rest.
    most = 4 * JITTER * (x.abs() @ layer.weight.abs().T + layer.bias.abs())
    for got in (first, second):
        assert ((got - exact).abs() <= most).all() and not torch.equal(got, exact)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("make", [linear, quantized])
def test_it_ends_also_with_an_error(x, make):
    layer = make()
    want = layer(x)
    with pytest.raises(KeyError), rounding(nn.Sequential(layer), "bfloat16", set()):
        assert not torch.equal(layer(x), want)
        raise KeyError
    assert torch.equal(layer(x), want)
