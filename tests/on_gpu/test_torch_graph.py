"""The torch stand-in computes what ONNX Runtime does, on a CPU; then a GPU shows the driver alone.

Two float32 implementations of one graph differ by the order of their sums, 1e-4 at worst (see
`quant.recipes.float32`).
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from runtime.backends.onnxruntime_module import ort
from runtime.backends.parity import relative_error
from runtime.bundle import read_bundle, read_golden
from tests.on_gpu.torch_graph import TorchGraph


def test_every_stage_of_the_demo_equals_the_golden_one(demo_bundle):
    bundle = read_bundle(demo_bundle)
    golden = read_golden(bundle)
    graphs = {}
    for stage in bundle.manifest.graph.stages:
        if not stage.engine:
            continue
        if stage.engine not in graphs:
            path = bundle.file(bundle.manifest.engines[stage.engine].file)
            graphs[stage.engine] = TorchGraph(path, "cpu")
        graph = graphs[stage.engine]
        given = {p: torch.from_numpy(golden[f"stage/{t}"]) for p, t in stage.inputs.items()}
        with torch.inference_mode():
            made = graph(given)
        assert made.keys() == stage.outputs.keys()
        for port, tensor in stage.outputs.items():
            assert tuple(made[port].shape) == graph.outputs[port][0]
            assert relative_error(made[port].numpy(), golden[f"stage/{tensor}"]) <= 1e-4, stage.name


def save(path: Path, nodes, inputs, outputs, constants, opset=21) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path)
    return path


def info(name, shape, kind=onnx.TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def test_codes_of_int8_and_int4_become_the_numbers_that_onnx_says(tmp_path):
    """Per tensor and per channel, in blocks, on ties and beyond the range; equal to the bit."""
    random = np.random.default_rng(0)
    x = (random.integers(-300, 300, (4, 256)) / 2).astype(np.float32)  # ties at odd halves
    codes = random.integers(-8, 8, (256, 6)).astype(np.int8)
    packed = helper.make_tensor("w4", onnx.TensorProto.INT4, codes.shape, codes.reshape(-1))
    constants = [
        numpy_helper.from_array(np.float32(1.0), "step"),
        numpy_helper.from_array(np.int8(3), "zero"),
        packed,
        numpy_helper.from_array(random.random((2, 6)).astype(np.float32), "scales"),
        numpy_helper.from_array(codes, "w8"),
        numpy_helper.from_array(random.random(6).astype(np.float32), "scale"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["near"]),
        helper.make_node("DequantizeLinear", ["w4", "scales"], ["four"], axis=0, block_size=128),
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["eight"], axis=1),
    ]
    outputs = [info("near", [4, 256]), info("four", [256, 6]), info("eight", [256, 6])]
    path = save(tmp_path / "codes.onnx", nodes, [info("x", [4, 256])], outputs, constants)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    want = dict(zip(["near", "four", "eight"], session.run(None, {"x": x}), strict=True))
    made = TorchGraph(path, "cpu")({"x": torch.from_numpy(x)})
    for name, array in want.items():
        assert np.array_equal(made[name].numpy(), array), name


def test_bfloat16_weights_keep_their_bits(tmp_path):
    weights = torch.tensor([1.0, -2.5, 3.1415926], dtype=torch.bfloat16)
    raw = weights.view(torch.uint16).numpy().tobytes()
    constant = helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [3], raw, raw=True)
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    kind = onnx.TensorProto.BFLOAT16
    path = save(
        tmp_path / "b.onnx", nodes, [info("x", [3], kind)], [info("y", [3], kind)], [constant]
    )
    made = TorchGraph(path, "cpu")({"x": torch.zeros(3, dtype=torch.bfloat16)})
    assert torch.equal(made["y"], weights)


def test_an_operator_that_nobody_computes_is_named(tmp_path):
    nodes = [helper.make_node("Sin", ["x"], ["y"])]
    path = save(tmp_path / "sin.onnx", nodes, [info("x", [3])], [info("y", [3])], [])
    with pytest.raises(ValueError, match=r"no operator \['Sin'\]"):
        TorchGraph(path, "cpu")
