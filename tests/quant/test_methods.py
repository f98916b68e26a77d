"""Methods against nvidia-modelopt, the papers' definitions written out, and what they promise."""

import copy
import logging
from statistics import NormalDist

import modelopt.torch.quantization as modelopt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from quant.formats import (
    INT4_BLOCK,
    dequantize,
    int4_blocks,
    int8_per_channel,
    int8_per_tensor,
    up_to_bfloat16,
)
from quant.methods import (
    awq_scales,
    gptq,
    llm_int8,
    nf4,
    outlier_channels,
    smooth_scales,
)

# Zeros, the largest that is allowed, and everything between, subnormal numbers too.
TOP = float(np.float32(1e30))
floats = st.floats(-TOP, TOP, width=32) | st.sampled_from([0.0, TOP, -TOP, 2.0**-149])
sides = st.integers(1, 9)


@st.composite
def layers(draw, multiple=1):
    """Rows [R, K] and a weight [K, N]; K is some multiple."""
    num_rows, num_inputs, num_outputs = draw(sides), multiple * draw(sides), draw(sides)
    return (
        draw(arrays(np.float32, (num_rows, num_inputs), elements=floats)),
        draw(arrays(np.float32, (num_inputs, num_outputs), elements=floats)),
    )


def random_layer(seed=0, shape=(128, 256, 48), spread=1.0):
    """Rows whose channels differ in size by e^spread, and are correlated; a weight."""
    rng = np.random.default_rng(seed)
    num_rows, num_inputs, num_outputs = shape
    common = rng.standard_normal((num_rows, 4)) @ rng.standard_normal((4, num_inputs))
    rows = common + rng.standard_normal((num_rows, num_inputs))
    rows *= np.exp(spread * rng.standard_normal(num_inputs))
    weight = 0.02 * rng.standard_normal((num_inputs, num_outputs))
    return rows.astype(np.float32), weight.astype(np.float32)


def int4(weight):
    return dequantize(int4_blocks(weight))


def blocks_of_4(weight):
    return dequantize(int4_blocks(weight, block=4))


def error(outputs, rows, weight):
    """Relative, in float64."""
    exact = rows.astype(np.float64) @ weight
    return np.linalg.norm(outputs - exact) / np.linalg.norm(exact)


def scaled_error(rows, weight, scales, quantize):
    return error((rows / scales) @ quantize(weight * scales[:, None]), rows, weight)


def modelopts(config, rows, weight):
    """Its scales, in our convention (inputs are divided by them), and its layer's outputs."""
    model = nn.Sequential(nn.Linear(*weight.shape, bias=False))
    model[0].weight.data = torch.from_numpy(weight.T.copy())
    inputs = torch.from_numpy(rows)
    model = modelopt.quantize(model, config, lambda model: model(inputs))
    return 1 / model[0].input_quantizer.pre_quant_scale.numpy(), model(inputs).detach().numpy()


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.8])
def test_smooth_scales_are_modelopts_up_to_the_factor_that_centres_them(alpha):
    rows, weight = random_layer()
    config = copy.deepcopy(modelopt.INT8_SMOOTHQUANT_CFG)
    config["algorithm"] = {"method": "smoothquant", "alpha": alpha}
    theirs, _ = modelopts(config, rows, weight)
    ours = smooth_scales(np.abs(rows).max(axis=0), weight, alpha=alpha)
    # Theirs is two powers and three divisions in float32, each within 2 ulp of 1.2e-7.
    assert theirs / ours == pytest.approx(theirs[0] / ours[0], rel=5e-6)
    assert ours.max() * ours.min() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_awq_is_as_good_as_modelopts_and_means_the_same_by_a_scale(seed):
    rows, weight = random_layer(seed)
    theirs, outputs = modelopts(modelopt.INT4_AWQ_CFG, rows, weight)
    # A product of 256 terms in float32 is within 256 * 6e-8 of exact: far below 1% of the error.
    assert scaled_error(rows, weight, theirs, int4) == pytest.approx(
        error(outputs, rows, weight), rel=0.01
    )
    ours = scaled_error(rows, weight, awq_scales(rows, weight, int4), int4)
    # They also divide by a power of the mean weight and try 11 exponents; either may be luckier.
    assert ours <= 1.02 * error(outputs, rows, weight)
    assert ours < 0.95 * error(rows @ int4(weight), rows, weight)


def test_awq_takes_the_best_exponent_of_its_grid():
    rows, weight = random_layer(shape=(64, 128, 16))
    mean = np.abs(rows).mean(axis=0, dtype=np.float64)
    candidates = [mean ** (k / 5) for k in range(5)]
    candidates = [s / np.sqrt(s.max() * s.min()) for s in candidates]
    errors = [scaled_error(rows, weight, s.astype(np.float32), int4) for s in candidates]
    best = int(np.argmin(errors))
    assert best > 0
    # float32 powers of numbers that float32 holds: 2 ulp.
    assert awq_scales(rows, weight, int4, grid=5) == pytest.approx(candidates[best], rel=1e-5)


def test_a_grid_of_one_exponent_scales_nothing():
    rows, weight = random_layer(shape=(16, 128, 4))
    assert (awq_scales(rows, weight, int4, grid=1) == 1).all()


def test_the_unit_of_a_weight_changes_no_awq_scale():
    """Squared errors of weights of 1e22 leave float32."""
    rows, weight = random_layer()
    scales = awq_scales(rows, weight, int4)
    assert not (scales == 1).all()
    assert (awq_scales(rows, weight * np.float32(2.0**80), int4) == scales).all()


def optimal_brain_quantization(rows, weight, block, damping, rounding=None):
    """GPTQ as its paper defines it, equations 2 and 3: the inverse itself, one input at a time."""
    x, w = rows.astype(np.float64), weight.astype(np.float64)
    hessian = x.T @ x
    inverse = np.linalg.inv(hessian + damping * np.diag(hessian).mean() * np.eye(len(w)))
    codes, scales = np.zeros(w.shape, np.int8), []
    for k in range(len(w)):
        if k % block == 0:
            scales.append(np.abs(w[k : k + block]).max(axis=0) / 7)
            if rounding is not None:
                scales[-1] = rounding(scales[-1].astype(np.float32))
        codes[k] = np.clip(np.rint(w[k] / scales[-1]), -7, 7)
        w[k:] -= np.outer(inverse[:, 0], (w[k] - codes[k] * scales[-1]) / inverse[0, 0])
        inverse = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
    return codes, np.array(scales)


@pytest.mark.parametrize(
    ("shape", "block", "damping"),
    [
        ((6, 24, 5), 8, 0.01),  # fewer rows than inputs
        ((90, 24, 5), 8, 0.01),
        ((40, 64, 16), 16, 0.1),
        ((40, 60, 7), 60, 1.0),
        ((200, 256, 12), INT4_BLOCK, 0.01),
    ],
)
def test_gptq_is_optimal_brain_quantization_in_order(shape, block, damping):
    rows, weight = random_layer(shape=shape)
    codes, scales = optimal_brain_quantization(rows, weight, block, damping)
    ours = gptq(rows, weight, block=block, damping=damping)
    # Theirs is float64, ours float32 from the error on: about 1e-6 of a step, times K terms. Of
    # some thousand weights, none of these seeds comes that close to a tie.
    assert np.array_equal(ours.codes, codes)
    assert ours.scales == pytest.approx(scales, rel=1e-4)
    assert (ours.axis, ours.block, ours.bits) == (0, block, 4)
    assert ours.codes.dtype == np.int8 and ours.scales.dtype == np.float32


def next_bfloat16(values):
    """The least bfloat16 that is not smaller, by search around torch's nearest one."""
    near = torch.from_numpy(values).to(torch.bfloat16)
    up = torch.where(
        near.float() < torch.from_numpy(values), near.view(torch.int16) + 1, near.view(torch.int16)
    )
    return up.view(torch.bfloat16).float().numpy()


@pytest.mark.parametrize("shape", [(6, 24, 5), (40, 64, 16), (90, 64, 300)])
def test_gptq_makes_up_for_scales_that_are_rounded(shape):
    rows, weight = random_layer(shape=shape)
    codes, scales = optimal_brain_quantization(rows, weight, 8, 0.01, next_bfloat16)
    ours = gptq(rows, weight, block=8, round_scales=up_to_bfloat16)
    assert np.array_equal(ours.codes, codes)
    assert np.array_equal(ours.scales, scales)


@pytest.mark.parametrize("seed", range(4))
def test_gptq_beats_plain_rounding_on_correlated_inputs_it_saw_and_on_others(seed):
    rows, weight = random_layer(seed, shape=(1024, 256, 24))
    rows, unseen = rows[:512], rows[512:]
    quantized = dequantize(gptq(rows, weight))
    for inputs, gain in [(rows, 0.7), (unseen, 0.9)]:
        plain = error(inputs @ int4(weight), inputs, weight)
        assert error(inputs @ quantized, inputs, weight) < gain * plain


def test_gptq_is_plain_rounding_where_inputs_are_independent_or_never_seen():
    _, weight = random_layer()
    plain = int4_blocks(weight)
    for rows in (3 * np.eye(256, dtype=np.float32), np.zeros((4, 256), np.float32)):
        ours = gptq(rows, weight)
        assert np.array_equal(ours.codes, plain.codes)
        assert np.array_equal(ours.scales, plain.scales)


def test_gptq_rounds_dead_channels_to_nearest_and_keeps_them_out_of_the_rest():
    rows, weight = random_layer()
    dead = np.array([0, 5, 130, 255])
    rows[:, dead] = 0
    weight[dead] *= 0.5  # so that none of them sets a scale
    ours = gptq(rows, weight)
    steps = ours.scales.repeat(INT4_BLOCK, axis=0)[dead]
    assert np.array_equal(ours.codes[dead], np.rint(weight[dead] / steps))
    changed = weight.copy()
    changed[dead] = 0
    alive = np.setdiff1d(np.arange(256), dead)
    assert np.array_equal(gptq(rows, changed).codes[alive], ours.codes[alive])


def w8a8(rows, weight):
    return dequantize(int8_per_tensor(rows)) @ dequantize(int8_per_channel(weight))


def test_smoothing_pays_where_a_few_channels_are_large():
    rows, weight = random_layer(spread=0.0)
    rows[:, [3, 77, 200]] *= 100
    scales = smooth_scales(np.abs(rows).max(axis=0), weight)
    smoothed = error(w8a8(rows / scales, weight * scales[:, None]), rows, weight)
    assert smoothed < 0.5 * error(w8a8(rows, weight), rows, weight)


@pytest.mark.parametrize("choose", ["smooth", "awq"])
def test_a_channel_without_inputs_or_weights_does_not_set_the_range_of_the_others(choose):
    rows, weight = random_layer()
    rows[:, 9], weight[20] = 0, 0
    alive = np.setdiff1d(np.arange(256), [9, 20])
    largest = np.abs(rows).max(axis=0)
    if choose == "smooth":
        scales = smooth_scales(largest, weight)
        assert (largest / scales)[20] <= (largest / scales)[alive].max()
    else:
        scales = awq_scales(rows, weight, int4)
    assert scales[9] <= np.median(scales[alive])
    assert (smooth_scales(np.zeros(256, np.float32), 0 * weight) == 1).all()
    assert (awq_scales(0 * rows, weight, int4) == 1).all()


def test_outlier_channels_are_those_that_were_planted():
    rng = np.random.default_rng(0)
    rows = rng.uniform(-5.9, 5.9, (32, 100)).astype(np.float32)
    assert not len(outlier_channels(rows))
    rows[3, 98], rows[31, 7], rows[0, 40] = -6, 6, 1e30
    found = outlier_channels(rows)
    assert found.tolist() == [7, 40, 98] and found.dtype == np.int64
    assert outlier_channels(rows, threshold=7).tolist() == [40]


def normal_float():
    """The 16 numbers of NF4: quantiles of the normal distribution, QLoRA's equation 4."""
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(0.9677083, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(0.9677083, 0.5, 8)[:-1]]
    return np.sort([*above, 0.0, *below]) / max(above)


@pytest.mark.parametrize("shape", [(256, 24), (64, 1), (50, 7), (1, 1)])
def test_nf4_is_the_nearest_normal_float_in_blocks_of_64_inputs(shape):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    back, num_bytes = nf4(weight)
    for start in range(0, weight.size, 64):
        values = weight.T.ravel()[start : start + 64].astype(np.float64)
        numbers = normal_float() * np.abs(values).max()
        nearest = np.abs(values[:, None] - numbers).min(axis=1)
        distance = np.abs(back.T.ravel()[start : start + 64] - values)
        # The quotient, the product and the table are in float32; a few ulp of the largest.
        assert distance == pytest.approx(nearest, abs=1e-6 * np.abs(values).max())
        got = back.T.ravel()[start : start + 64]
        off_table = np.abs(got[:, None] - numbers).min(axis=1)
        assert (off_table <= 1e-6 * np.abs(values).max()).all()
    assert num_bytes == -(-weight.size // 2) + 4 * -(-weight.size // 64)
    assert back.shape == shape and back.dtype == np.float32


@pytest.mark.parametrize("planted", [[], [11], [3, 40, 63]])
def test_llm_int8_is_its_definition(planted):
    rows, weight = random_layer(shape=(16, 64, 12), spread=0.0)
    rows = np.clip(rows, -5, 5)
    rows[2, planted] = 50
    outputs, num_bytes = llm_int8(rows, weight)

    # Elementwise float32 in the order of bitsandbytes, so that ties fall to the same side.
    def codes(values_along_last, largest):
        return np.rint(values_along_last * (np.float32(127) / largest)[:, None])

    column_max = np.abs(weight).max(axis=0)
    weight_codes = codes(weight.T, column_max).T
    row_max = np.abs(np.where(np.abs(rows) >= 6, 0, rows)).max(axis=1)
    others = np.setdiff1d(np.arange(64), planted)
    products = codes(rows[:, others], row_max) @ weight_codes[others]
    expected = products * np.outer(row_max, column_max) / 127**2
    expected += rows[:, planted] @ (weight_codes[planted] * column_max / 127)
    # Sums of integers are exact and the rest is some ten float32 operations, but bitsandbytes'
    # 1 / 127^2 is 6.200124e-5 on a CPU, 1.8e-5 too large.
    largest = float(np.abs(expected).max())
    assert outputs == pytest.approx(expected, rel=2e-5, abs=2e-5 * largest)
    assert num_bytes == 64 * 12 + 4 * 12
    assert error(outputs, rows, weight) < 0.02
    if planted:
        assert error(outputs, rows, weight) < 0.5 * error(w8a8(rows, weight), rows, weight)


@given(layers(), st.floats(0, 1))
def test_smooth_scales_are_finite_and_positive_whatever_comes(layer, alpha):
    rows, weight = layer
    scales = smooth_scales(np.abs(rows).max(axis=0), weight, alpha=alpha)
    assert scales.shape == weight.shape[:1] and scales.dtype == np.float32
    assert np.isfinite(scales).all() and (scales > 0).all()
    assert np.isfinite(rows / scales).all() and np.isfinite(weight * scales[:, None]).all()


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value):RuntimeWarning")
@given(layers(multiple=4))
@settings(max_examples=50)
def test_awq_is_never_worse_than_no_scaling_whatever_comes(layer):
    rows, weight = layer
    scales = awq_scales(rows, weight, blocks_of_4, grid=4)
    assert scales.shape == weight.shape[:1] and scales.dtype == np.float32
    assert np.isfinite(scales).all() and (scales > 0).all()
    unit = rows.astype(np.float64) / (np.abs(rows).max() or 1)

    def loss(s):
        return np.linalg.norm((unit / s) @ blocks_of_4(weight * s[:, None]) - unit @ weight)

    # What the choice could not see: its own float32 sums of at most 36 terms.
    unseen = 36 * 2.0**-23 * np.linalg.norm(np.abs(unit) @ np.abs(weight.astype(np.float64)))
    assert loss(scales) <= loss(np.ones_like(scales)) + 4 * unseen


@given(layers(multiple=4))
@settings(max_examples=50)
def test_gptq_has_codes_in_range_and_scales_that_divide_whatever_comes(layer):
    rows, weight = layer
    quantized = gptq(rows, weight, block=4)
    assert np.abs(quantized.codes).max() <= 7
    assert np.isfinite(quantized.scales).all() and (quantized.scales > 0).all()
    assert np.isfinite(dequantize(quantized)).all()
    if not weight.any():
        assert not quantized.codes.any()
    # The size of the rows does not matter. Halves are exact, except of subnormal numbers.
    if (np.abs(rows[rows != 0]) > 1e-30).all():
        halved = gptq(rows / np.float32(2), weight, block=4)
        assert np.array_equal(halved.codes, quantized.codes)


def test_a_yardstick_asks_nobody_to_install_what_it_does_not_use():
    nf4(np.ones((2, 2), np.float32))
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)


@given(layers())
@settings(deadline=None)  # the first of them imports bitsandbytes
def test_yardsticks_are_finite_and_keep_zeros_whatever_comes(layer):
    rows, weight = layer
    back, _ = nf4(weight)
    assert np.isfinite(back).all() and (back[weight == 0] == 0).all()
    assert (
        outlier_channels(rows).tolist() == np.flatnonzero((np.abs(rows) >= 6).any(axis=0)).tolist()
    )
    outputs, _ = llm_int8(rows, np.sign(weight))
    assert np.isfinite(outputs).all() and (outputs[:, ~weight.any(axis=0)] == 0).all()


def test_defaults_are_those_of_the_papers():
    rows, weight = random_layer(shape=(200, 256, 12))
    largest = np.abs(rows).max(axis=0)
    pairs = [
        (smooth_scales(largest, weight), smooth_scales(largest, weight, alpha=0.5)),
        (awq_scales(rows, weight, int4), awq_scales(rows, weight, int4, grid=20)),
        (gptq(rows, weight).codes, gptq(rows, weight, block=128, damping=0.01).codes),
    ]
    for ours, want in pairs:
        assert np.array_equal(ours, want)
    assert gptq(rows, weight).scales.shape == (2, 12)


def test_smooth_scales_are_the_formula():
    rows, weight = random_layer(shape=(5, 8, 3))
    largest = np.abs(rows).max(axis=0)
    for alpha in (0.0, 0.3, 1.0):
        want = largest.astype(np.float64) ** alpha / np.abs(weight).max(axis=1) ** (1 - alpha)
        want /= np.sqrt(want.max() * want.min())
        assert smooth_scales(largest, weight, alpha=alpha) == pytest.approx(want, rel=1e-6)


def test_channel_scales_end_at_ten_thousand():
    weight = np.ones((3, 2), np.float32)
    scales = smooth_scales(np.array([1e-20, 1, 1e20], np.float32), weight, alpha=1)
    assert scales.tolist() == [np.float32(1e-4), 1, 1e4]


def test_a_dead_channel_counts_as_the_smallest_that_is_alive():
    largest = np.array([4, 0, 1, 16], np.float32)
    weight = np.array([[2], [3], [0], [1]], np.float32)
    filled = smooth_scales(np.array([4, 1, 1, 16], np.float32), np.maximum(weight, 1))
    assert np.array_equal(smooth_scales(largest, weight), filled)
    nothing = smooth_scales(np.zeros(4, np.float32), np.zeros((4, 1), np.float32))
    assert nothing.tolist() == [1, 1, 1, 1]


def test_awq_leaves_channels_alone_where_nothing_is_better():
    """All exponents give equal channels the scale 1: the first, no scaling, is kept."""
    rows = np.ones((6, 8), np.float32)
    _, weight = random_layer(shape=(5, 8, 3))
    assert awq_scales(rows, weight, blocks_of_4).tolist() == [1.0] * 8


def test_damping_may_reach_both_of_its_ends():
    rows, weight = random_layer(shape=(5, 8, 3))
    for damping in (1e-4, 1.0):
        codes, _ = optimal_brain_quantization(rows, weight, 4, damping)
        assert np.array_equal(gptq(rows, weight, block=4, damping=damping).codes, codes)


def test_numbers_that_are_refused_are_counted_and_told():
    rows, weight = random_layer(shape=(5, 8, 3))
    largest = np.float32(1e30)
    weight[0, 0] = largest
    smooth_scales(np.abs(rows).max(axis=0), weight)
    weight[0, 0] = np.nextafter(largest, np.float32(2e30))
    with pytest.raises(ValueError, match=r"^weight holds 1e\+30, beyond 1e\+30: scale it down fir"):
        smooth_scales(np.abs(rows).max(axis=0), weight)
    with pytest.raises(ValueError, match=r"^channel_max is of 7 inputs, the weight \[8, 3\] of 8"):
        smooth_scales(np.ones(7, np.float32), weight * 0)
