"""Formats on one scale: by what they do to products, on rows that they were not fitted to."""

import numpy as np
import pytest
import torch
from torch import nn

from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT
from quant.apply import linear_layers
from quant.calibrate import Statistics
from quant.search.yardsticks import LLM_INT8, NF4, yardsticks

NAMES = ["w8", "w8a8 smooth", "w4 plain", "w4 awq", "w4 gptq", NF4, LLM_INT8]


def make_model(*widths, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b, bias=bias) for a, b in widths))


def statistics_of(model, num_rows=128):
    """Normal inputs, independent of each other, so that nothing can be learned from a sample."""
    random = np.random.default_rng(1)
    found = {}
    for name, layer in linear_layers(model).items():
        rows = random.standard_normal((num_rows, layer.in_features)).astype(np.float32)
        found[name] = Statistics(np.abs(rows).max(axis=0), rows, num_rows)
    return found


def measure(model, **more):
    return {stick.name: stick for stick in yardsticks(model, statistics_of(model), **more)}


def test_bytes_are_codes_scales_factors_and_padding():
    found = measure(make_model((192, 64)))
    assert list(found) == NAMES
    # 192 x 64 weights; int8: 64 scales. smooth and awq: 192 factors, and w8a8 the input's step.
    # int4: 256 inputs, padded, in 2 blocks. NF4: a scale for 64 weights.
    weights = 192 * 64
    expected = {
        "w8": weights + 4 * 64,
        "w8a8 smooth": weights + 4 * (64 + 192 + 1),
        "w4 plain": 256 * 64 / 2 + 4 * 2 * 64,
        "w4 awq": 256 * 64 / 2 + 4 * (2 * 64 + 192),
        "w4 gptq": 256 * 64 / 2 + 4 * 2 * 64,
        NF4: weights / 2 + 4 * weights / 64,
        LLM_INT8: weights + 4 * 64,
    }
    assert {n: s.bytes_per_weight * weights for n, s in found.items()} == pytest.approx(expected)


def test_errors_are_what_the_steps_say():
    """Uniform weights and normal inputs: an error is a step over sqrt(12), relative to the rms.

    For weights uniform in +-a the rms is a / sqrt(3), so a step of a / 127 is 1 / 254 of it, one of
    a / 7 is 1 / 14; the largest of 128 or more weights is a within 2 %. The step of an input is
    1 / 127 of the largest of 16384 normals, some 4: 1 / 110 of the rms, which adds in squares.
    A row of LLM.int8 has a step of its own, of the largest of 128, some 2.7.
    """
    errors = {name: stick.error for name, stick in measure(make_model((128, 256))).items()}
    assert errors["w8"] == pytest.approx(1 / 254, rel=0.05)
    assert errors["w4 plain"] == pytest.approx(1 / 14, rel=0.05)
    assert errors["w8a8 smooth"] == pytest.approx(np.hypot(1 / 254, 1 / 110), rel=0.15)
    assert errors[LLM_INT8] == pytest.approx(np.hypot(1 / 254, 2.7 / 127 / 12**0.5), rel=0.15)
    # NF4's 16 levels are those of a normal distribution; 15 even ones suit a uniform one better.
    assert errors["w4 plain"] < errors[NF4] < 2 * errors["w4 plain"]


def test_a_method_is_not_measured_on_the_rows_that_it_was_fitted_to():
    """With fewer rows than inputs GPTQ can make its own rows nearly exact, but not the others."""
    found = measure(make_model((512, 32)))
    assert found["w4 gptq"].error > 0.8 * found["w4 plain"].error


def test_the_error_is_the_root_mean_square_over_layers():
    model, first, second = make_model((128, 32), (256, 32)), {}, {}
    seen = statistics_of(model)
    for name, into in (("0", first), ("1", second)):
        into |= {s.name: s.error for s in yardsticks(model, {name: seen[name]})}
    for stick in yardsticks(model, seen):
        mean_square = (first[stick.name] ** 2 + second[stick.name] ** 2) / 2
        assert stick.error == pytest.approx(mean_square**0.5)
        assert stick.num_layers == 2


def test_the_bias_plays_no_part_and_the_model_stays_as_it_is():
    model = make_model((128, 32))
    with torch.no_grad():
        model[0].bias.fill_(1e3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with_bias = measure(model)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    model[0].bias = None
    without = measure(model)
    assert {n: s.error for n, s in with_bias.items()} == {n: s.error for n, s in without.items()}


def test_layers_are_taken_evenly_up_to_the_limit():
    model = make_model(*[(n, 2) for n in (4, 8, 16, 32, 64)])
    # The first, the middle and the last: 4 + 16 + 64 inputs of 2 outputs, whose scales take 4 each.
    (stick, *_) = yardsticks(model, statistics_of(model), limit=3)
    assert stick.num_layers == 3
    assert stick.bytes_per_weight == pytest.approx((84 * 2 + 3 * 2 * 4) / (84 * 2))
    assert next(iter(measure(model).values())).num_layers == 5


def test_layers_that_no_recipe_quantizes_are_left_out():
    model = load_checkpoint(CHECKPOINT).model
    kept = {n: s for n, s in statistics_of(model, 4).items() if "t_embedder" in n}
    assert kept
    with pytest.raises(ValueError, match="no layer to measure: statistics are of 2 layers"):
        yardsticks(model, kept)


def test_a_measurement_of_nothing_is_refused():
    model = make_model((8, 8))
    with pytest.raises(ValueError, match="no layer to measure: statistics are of 0 layers"):
        yardsticks(model, {})
    with pytest.raises(ValueError, match="two sampled rows"):
        yardsticks(model, statistics_of(model, num_rows=1))
    with pytest.raises(ValueError, match="limit must be at least 1 layer, got 0"):
        yardsticks(model, statistics_of(model), limit=0)
