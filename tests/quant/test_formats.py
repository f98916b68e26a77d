"""Formats against onnxruntime's quantizer, ONNX's own operators, torch, and their definitions."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization.quant_utils import quantize_data

from quant.formats import (
    INT4_BLOCK,
    Quantized,
    dequantize,
    int4_blocks,
    int8_per_channel,
    int8_per_tensor,
    pad_inputs,
    round_to_bfloat16,
    round_to_float16,
    up_to_bfloat16,
)

FORMATS = {
    "int8 per tensor": (int8_per_tensor, 127),
    "int8 per channel": (int8_per_channel, 127),
    "int4 blocks": (lambda w: int4_blocks(w, block=4), 7),
}
floats = st.floats(-(2.0**120), 2.0**120, width=32, allow_subnormal=True)
weights = array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
    lambda shape: arrays(np.float32, (4 * shape[0], shape[1]), elements=floats)
)


def random_weight(shape=(256, 24), seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scales_of_each_weight(quantized):
    blocks = quantized.scales.repeat(quantized.block or 1, axis=0) if quantized.block else None
    return np.broadcast_to(quantized.scales if blocks is None else blocks, quantized.codes.shape)


@pytest.mark.parametrize("name", FORMATS)
@given(weight=weights)
def test_every_weight_is_within_half_a_step_and_the_largest_is_kept(name, weight):
    quantize, top = FORMATS[name]
    quantized = quantize(weight)
    assert np.abs(quantized.codes).max() <= top
    assert np.isfinite(quantized.scales).all() and (quantized.scales > 0).all()
    step = scales_of_each_weight(quantized).astype(np.float64)
    error = np.abs(dequantize(quantized).astype(np.float64) - weight)
    # Half a step, and the rounding of quotient and product: at most `top` steps times 2 ulp.
    assert (error <= step * (0.5 + 2 * top * 2.0**-23)).all()
    assert (quantized.codes[weight == 0] == 0).all()


@pytest.mark.parametrize("name", FORMATS)
@given(weight=weights)
def test_quantizing_again_changes_nothing(name, weight):
    quantize, _ = FORMATS[name]
    once = quantize(weight)
    assert np.array_equal(quantize(dequantize(once)).codes, once.codes)


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_have_codes_of_zero_and_a_scale_that_divides(name):
    quantized = FORMATS[name][0](np.zeros((8, 3), np.float32))
    assert not quantized.codes.any() and (quantized.scales == 1).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(name, bad):
    weight = random_weight((8, 3))
    weight[2, 1] = bad
    with pytest.raises(ValueError, match="1 of 24 weights are NaN or infinity"):
        FORMATS[name][0](weight)


def test_int8_equals_onnxruntimes_quantizer():
    weight = random_weight()
    for column, ours in [(None, int8_per_tensor(weight)), (7, int8_per_channel(weight))]:
        part = weight if column is None else weight[:, column]
        _, scale, codes = quantize_data(part, TensorProto.INT8, symmetric=True)
        assert scale == pytest.approx(ours.scales if column is None else ours.scales[column])
        theirs = ours.codes if column is None else ours.codes[:, column]
        # The same scale to the last bit but one, so codes may differ where a quotient is a tie.
        assert np.abs(codes.astype(int) - theirs).max() <= 1
        assert (codes != theirs).mean() < 0.01


@pytest.mark.parametrize(
    ("quantized", "kind"),
    [
        (int8_per_tensor(random_weight()), TensorProto.INT8),
        (int8_per_channel(random_weight()), TensorProto.INT8),
        (int4_blocks(random_weight(), block=128), TensorProto.INT4),
    ],
)
def test_dequantize_is_the_onnx_operator(quantized: Quantized, kind):
    attributes = {} if quantized.axis is None else {"axis": quantized.axis}
    attributes |= {} if quantized.block is None else {"block_size": quantized.block}
    codes = helper.make_tensor("codes", kind, quantized.codes.shape, quantized.codes.ravel())
    node = helper.make_node("DequantizeLinear", ["codes", "scales"], ["out"], **attributes)
    graph = helper.make_graph(
        [node],
        "dequantize",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, quantized.codes.shape)],
        [codes, onnx.numpy_helper.from_array(quantized.scales, "scales")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (theirs,) = ReferenceEvaluator(model).run(None, {})
    assert np.array_equal(theirs, dequantize(quantized))


def test_int4_blocks_are_int4_columns_of_their_own():
    weight = random_weight()
    quantized = int4_blocks(weight, block=128)
    for row, part in enumerate((weight[:128], weight[128:])):
        scales = np.abs(part).max(axis=0) / np.float32(7)
        assert np.array_equal(quantized.scales[row], scales)
        assert np.array_equal(
            quantized.codes[128 * row : 128 * row + 128], np.rint(part / scales).astype(np.int8)
        )


def test_a_weight_that_does_not_divide_into_blocks_is_refused_and_can_be_padded():
    weight = random_weight((3420, 3))
    with pytest.raises(ValueError, match=r"3420 inputs .* blocks of 128: pad it to 3456"):
        int4_blocks(weight)
    padded = pad_inputs(weight, 128)
    assert padded.shape == (3456, 3) and not padded[3420:].any()
    assert np.array_equal(padded[:3420], weight)
    assert pad_inputs(padded, 128).shape == (3456, 3)
    assert not int4_blocks(padded).codes[3420:].any()


def test_bytes_are_those_of_packed_codes_and_scales():
    weight = random_weight((256, 24))
    assert int8_per_tensor(weight).num_bytes == 256 * 24 + 4
    assert int8_per_channel(weight).num_bytes == 256 * 24 + 4 * 24
    assert int4_blocks(weight).num_bytes == 256 * 24 // 2 + 4 * 2 * 24


@given(arrays(np.float32, 16, elements=st.floats(width=32)))
def test_bfloat16_is_torchs(values):
    theirs = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(round_to_bfloat16(values), theirs, equal_nan=True)


def test_bfloat16_is_torchs_at_every_tie_and_beside_it():
    upper = np.arange(2**16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = (upper[:, None] | lower).view(np.float32)
    theirs = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(round_to_bfloat16(values), theirs, equal_nan=True)


def test_float16_is_torchs_and_refuses_what_it_cannot_hold():
    values = random_weight((64, 64)) * 1e4
    theirs = torch.from_numpy(values).to(torch.float16).to(torch.float32).numpy()
    assert np.array_equal(round_to_float16(values), theirs)
    values[3, 5] = -7e4
    with pytest.raises(ValueError, match=r"7e\+04 leaves float16, which ends at 65504"):
        round_to_float16(values)


@given(arrays(np.float32, 8, elements=st.floats(2.0**-149, 2.0**127, width=32)))
def test_up_to_bfloat16_is_the_least_that_is_not_smaller(values):
    up = up_to_bfloat16(values)
    assert np.array_equal(round_to_bfloat16(up), up) and (up >= values).all()
    # Positive floats are ordered as their bits are, and a bfloat16 is the upper half of them.
    below = (up.view(np.uint32) - np.uint32(0x10000)).view(np.float32)
    assert (below < values).all()


ROUNDED = {
    "int8 per channel": (int8_per_channel, 127, 8),
    "int4 blocks": (lambda w, **more: int4_blocks(w, block=4, **more), 7, 4),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_scales_are_what_codes_are_of(name):
    quantize, top, rows = ROUNDED[name]
    weight = random_weight((8, 24))
    largest = np.abs(weight).reshape(-1, rows, 24).max(axis=1)
    scales = up_to_bfloat16(largest / np.float32(top)).repeat(rows, axis=0)
    quantized = quantize(weight, round_scales=up_to_bfloat16)
    assert np.array_equal(scales_of_each_weight(quantized), scales)
    assert np.array_equal(quantized.codes, np.rint(weight / scales))
    assert not np.array_equal(quantize(weight).scales, quantized.scales)


@pytest.mark.parametrize("name", ROUNDED)
def test_codes_end_where_their_format_ends(name):
    """Rounding a scale down is against the contract; what is too large is cut off, not wrapped."""
    quantize, top, _ = ROUNDED[name]
    weight = random_weight((8, 24))
    halved = quantize(weight, round_scales=lambda scales: scales / 2)
    assert (halved.codes.max(), halved.codes.min()) == (top, -top)
    far = np.abs(weight) > 0.75 * np.abs(weight).max(axis=0)
    assert np.array_equal(halved.codes[far], (top * np.sign(weight))[far])


@pytest.mark.parametrize(("name", "bits"), [(n, 4 if "int4" in n else 8) for n in FORMATS])
def test_a_scale_that_float32_cannot_divide_by_is_one(name, bits):
    quantize, top = FORMATS[name]
    tiny = np.float32(2.0**-126)
    for largest, scale in [(tiny * np.float32(top), tiny), (tiny * np.float32(top / 2), 1)]:
        quantized = quantize(np.full((4, 1), largest, np.float32))
        assert (quantized.scales == scale).all()
        assert (quantized.codes == (top if scale == tiny else 0)).all()
        assert (quantized.bits, quantized.codes.dtype) == (bits, np.int8)
        assert quantized.scales.dtype == np.float32


def test_formats_say_their_axis_and_block():
    weight = random_weight((8, 3))
    per_tensor, per_channel = int8_per_tensor(weight), int8_per_channel(weight)
    blocks = int4_blocks(weight, block=4)
    assert (per_tensor.axis, per_tensor.block, per_tensor.scales.shape) == (None, None, ())
    assert (per_channel.axis, per_channel.block, per_channel.scales.shape) == (1, None, (3,))
    assert (blocks.axis, blocks.block, blocks.scales.shape) == (0, 4, (2, 3))
    assert int4_blocks(random_weight((256, 3))).block == INT4_BLOCK == 128


def test_a_weight_without_inputs_has_scales_of_one():
    empty = np.zeros((0, 3), np.float32)
    assert int8_per_tensor(empty).scales == 1
    assert (int8_per_channel(empty).scales == [1, 1, 1]).all()
    assert int4_blocks(empty).scales.shape == (0, 3)


def test_an_odd_number_of_int4_codes_takes_a_whole_byte():
    assert int4_blocks(random_weight((3, 3)), block=3).num_bytes == 5 + 4 * 3


@pytest.mark.parametrize("rounding", [round_to_bfloat16, up_to_bfloat16])
def test_rounding_takes_views_and_leaves_them_as_they_are(rounding):
    weight = np.abs(random_weight((6, 4)))
    before = weight.copy()
    assert np.array_equal(rounding(weight.T), rounding(weight).T)
    assert np.array_equal(weight, before)


def test_float16_ends_at_its_largest_number():
    edge = np.array([65504, -65504], np.float32)
    assert np.array_equal(round_to_float16(edge), edge)
    for beyond in (65504.01, -65520.0, np.inf):
        with pytest.raises(ValueError, match="leaves float16, which ends at 65504: keep this in"):
            round_to_float16(np.array([1, beyond], np.float32))
    assert round_to_float16(np.zeros(0, np.float32)).dtype == np.float32
