"""FLOPs and bytes of a file: small graphs, by hand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.engines.counts import count


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def saved(folder, nodes, inputs, outputs, constants, opset=21):
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def constant(name, values):
    return numpy_helper.from_array(values, name)


def test_a_product_with_a_weight_and_one_of_activations_are_told_apart(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    weight = constant("w", np.zeros((5, 7), np.float32))
    path = saved(tmp_path, nodes, [value("x", [3, 4, 5])], [value("y", [3, 4, 4])], [weight])
    found = count(path)
    assert found.float_flops == 2 * 3 * 4 * 5 * 7 and found.int8_flops == 0
    assert found.attention_flops == 2 * 3 * 4 * 7 * 4
    assert found.weight_bytes == 4 * 35 and found.port_bytes == 4 * (60 + 48)
    assert found.num_bytes == 140 + 432


def test_a_transposed_gemm_sums_over_its_first_axis(tmp_path):
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)]
    weight = constant("w", np.zeros((9, 2), np.float32))
    path = saved(tmp_path, nodes, [value("x", [9, 3])], [value("y", [3, 2])], [weight])
    assert count(path).flops == 2 * 3 * 9 * 2


def quantized(folder, *, input_too):
    zero = constant("zero", np.int8(0))
    nodes = [helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=1)]
    x = "x"
    if input_too:
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"]),
            helper.make_node("Reshape", ["d", "shape"], ["r"]),
        ]
        x = "r"
    nodes.append(helper.make_node("MatMul", [x, "w"], ["y"]))
    constants = [
        constant("codes", np.zeros((6, 8), np.int8)),
        constant("scales", np.ones(8, np.float32)),
    ]
    if input_too:
        constants += [constant("step", np.float32(1)), zero, constant("shape", np.array([4, 6]))]
    return saved(folder, nodes, [value("x", [4, 6])], [value("y", [4, 8])], constants)


def test_a_product_is_of_int8_only_if_both_factors_are(tmp_path):
    both, alone = count(quantized(tmp_path, input_too=True)), None
    alone = count(quantized(tmp_path, input_too=False))
    assert (both.int8_flops, both.float_flops) == (2 * 4 * 6 * 8, 0)
    assert (alone.int8_flops, alone.float_flops) == (0, 2 * 4 * 6 * 8)
    assert alone.weight_bytes == 48 + 32
    assert both.weight_bytes == 48 + 32 + 4 + 1 + 16


def test_int4_takes_half_a_byte_and_its_scales_count(tmp_path):
    codes = onnx.TensorProto(name="codes", data_type=TensorProto.INT4, dims=[128, 3])
    codes.raw_data = bytes(192)
    scales = onnx.TensorProto(name="scales", data_type=TensorProto.BFLOAT16, dims=[1, 3])
    scales.raw_data = bytes(6)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=0, block_size=128),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    low = TensorProto.BFLOAT16
    path = saved(tmp_path, nodes, [value("x", [2, 128], low)], [value("y", [2, 3], low)],
                 [codes, scales])  # fmt: skip
    found = count(path)
    assert found.weight_bytes == 192 + 6 and found.port_bytes == 2 * (256 + 6)
    assert found.float_flops == 2 * 2 * 128 * 3


def test_what_cannot_be_counted_is_an_error(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weight = constant("w", np.zeros((5, 7), np.float32))
    path = saved(tmp_path, nodes, [value("x", ["n", 5])], [value("y", ["n", 7])], [weight])
    with pytest.raises(ValueError, match="product y has no shape that ONNX can infer"):
        count(path)
    text = constant("w", np.array(["a"], object))
    path = saved(tmp_path, [helper.make_node("Identity", ["x"], ["y"])], [value("x", [5])],
                 [value("y", [5])], [text])  # fmt: skip
    with pytest.raises(ValueError, match="'w' holds STRING, of unknown size"):
        count(path)
