"""What methods take, and what they refuse with the way to mend it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.methods import awq_scales, gptq, llm_int8, nf4, outlier_channels, smooth_scales
from tests.quant.test_methods import blocks_of_4, random_layer

FUNCTIONS = {
    "smooth_scales": lambda rows, weight: smooth_scales(np.abs(rows).max(axis=0), weight),
    "awq_scales": lambda rows, weight: awq_scales(rows, weight, blocks_of_4),
    "gptq": lambda rows, weight: gptq(rows, weight, block=4),
    "llm_int8": llm_int8,
    "nf4": lambda rows, weight: nf4(weight),
    "outlier_channels": lambda rows, weight: outlier_channels(rows),
}
TAKE_ROWS = sorted(set(FUNCTIONS) - {"nf4"})
TAKE_A_WEIGHT = sorted(set(FUNCTIONS) - {"outlier_channels"})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arrays_may_be_views_of_a_file_that_is_open_for_reading(name, tmp_path):
    rows, weight = random_layer(shape=(5, 8, 3))
    rows[1, 2] = 60  # an outlier: bitsandbytes writes to its argument, where that must not crash
    expected = FUNCTIONS[name](rows, weight)
    np.save(tmp_path / "rows.npy", np.repeat(rows, 2, axis=1))
    np.save(tmp_path / "weight.npy", weight.T)
    mapped = [np.load(tmp_path / f"{which}.npy", mmap_mode="r") for which in ("rows", "weight")]
    got = FUNCTIONS[name](mapped[0][:, ::2], mapped[1].T)
    if name == "gptq":
        got, expected = got.codes, expected.codes
    elif name in ("nf4", "llm_int8"):
        got, expected = got[0], expected[0]
    # Strides may change the order of summation, in products of 8 terms.
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", TAKE_A_WEIGHT)
@given(where=st.integers(0, 23), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
@settings(max_examples=10, deadline=None)
def test_a_weight_that_is_not_finite_is_refused(name, where, bad):
    rows, weight = random_layer(shape=(5, 8, 3))
    weight.flat[where] = bad
    with pytest.raises(ValueError, match="1 of 24 numbers in weight are NaN or infinity"):
        FUNCTIONS[name](rows, weight)


@pytest.mark.parametrize("name", TAKE_ROWS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_refused(name, bad):
    rows, weight = random_layer(shape=(5, 8, 3))
    rows[2, 7] = bad
    with pytest.raises(ValueError, match=r"1 of \d+ numbers in (rows|channel_max) are NaN or inf"):
        FUNCTIONS[name](rows, weight)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_beyond_the_range_is_refused(name):
    rows, weight = random_layer(shape=(5, 8, 3))
    rows[0, 0] = weight[0, 0] = 2e30
    with pytest.raises(ValueError, match=r"holds 2e\+30, beyond 1e\+30: scale it down first"):
        FUNCTIONS[name](rows, weight)


@pytest.mark.parametrize("name", sorted({*TAKE_ROWS} & {*TAKE_A_WEIGHT}))
def test_inputs_of_another_layer_are_refused(name):
    rows, weight = random_layer(shape=(5, 8, 3))
    what = "channel_max" if name == "smooth_scales" else "rows"
    with pytest.raises(
        ValueError, match=rf"^{what} is of 7 inputs, the weight \[8, 3\] of 8: pass"
    ):
        FUNCTIONS[name](rows[:, :7], weight)


@pytest.mark.parametrize("name", TAKE_A_WEIGHT)
@pytest.mark.parametrize("shape", [(8,), (8, 3, 1), (8, 0)])
def test_a_weight_of_other_axes_is_refused(name, shape):
    rows, _ = random_layer(shape=(5, 8, 3))
    with pytest.raises(ValueError, match=r"weight must be \[K, N\] and not empty, got shape \(8,"):
        FUNCTIONS[name](rows, np.ones(shape, np.float32))


@pytest.mark.parametrize("name", ["awq_scales", "gptq", "llm_int8", "outlier_channels"])
@pytest.mark.parametrize("shape", [(8,), (2, 5, 8), (0, 8)])
def test_rows_of_other_axes_are_refused(name, shape):
    _, weight = random_layer(shape=(5, 8, 3))
    with pytest.raises(ValueError, match=r"rows must be \[R, K\] and not empty, got shape"):
        FUNCTIONS[name](np.ones(shape, np.float32), weight)


def test_arguments_out_of_range_are_refused():
    rows, weight = random_layer(shape=(5, 8, 3))
    largest = np.abs(rows).max(axis=0)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha must be from 0 .* to 1, got"):
            smooth_scales(largest, weight, alpha=alpha)
    with pytest.raises(ValueError, match=r"channel_max holds -.*: it takes magnitudes, so pass ma"):
        smooth_scales(-largest, weight)
    with pytest.raises(ValueError, match=r"channel_max must be \[K\] and not empty, got shape \(5"):
        smooth_scales(rows, weight)
    with pytest.raises(ValueError, match="grid must be at least 1 .*, got 0"):
        awq_scales(rows, weight, blocks_of_4, grid=0)
    for damping in (0, -1, 1e-5, 1.5, float("nan")):
        with pytest.raises(ValueError, match="damping must be from 1e-4 .* to 1, got"):
            gptq(rows, weight, block=4, damping=damping)
    with pytest.raises(ValueError, match=r"8 inputs .* blocks of 128: pad it .* zeros to 128"):
        gptq(rows, weight)
    for threshold in (0, -6, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="threshold must be a positive number, got .*; 6 is"):
            outlier_channels(rows, threshold=threshold)
        with pytest.raises(ValueError, match="threshold must be a positive number, got .*; 6 is"):
            llm_int8(rows, weight, threshold=threshold)


@pytest.mark.parametrize("columns", [(1e30, 1e30), (1e-30, 1e30)], ids=["all", "one"])
def test_outputs_that_leave_float32_are_refused(columns):
    weight = np.array([columns, columns], np.float32)
    with pytest.raises(ValueError, match="outputs leave float32: scale down the rows or the wei"):
        llm_int8(np.full((2, 2), 1e30, np.float32), weight)
