"""A quantized layer's file holds the operators and types that its module names, and computes it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from export.engines.compile_check import check_compiles, is_available
from export.engines.onnx_file import write_onnx
from models.networks.engines import EngineSpec
from quant.formats import int4_blocks, int8_per_channel, int8_per_tensor, pad_inputs
from quant.modules import QuantLinear
from runtime.backends.onnxruntime_module import ort
from runtime.declarations import Tensor

INPUTS, OUTPUTS, ROWS = 200, 48, 24


def weight():
    values = np.random.default_rng(0).standard_normal((INPUTS, OUTPUTS)) / INPUTS**0.5
    return values.astype(np.float32)


LAYERS = {
    "w8": lambda: (int8_per_channel(weight()), None),
    "w8 per tensor": lambda: (int8_per_tensor(weight()), None),
    "w8a8": lambda: (int8_per_channel(weight()), 4 / 127),
    "w4": lambda: (int4_blocks(pad_inputs(weight(), 128)), None),
}


@pytest.fixture(scope="module", params=LAYERS)
def layer(request, tmp_path_factory):
    """Module, ONNX file and name of a layer."""
    quantized, activation_scale = LAYERS[request.param]()
    bias = nn.Parameter(torch.linspace(-1, 1, OUTPUTS))
    module = QuantLinear(quantized, bias, activation_scale)
    spec = EngineSpec(
        module,
        {"x": Tensor(shape=(ROWS, INPUTS))},
        {"y": Tensor(shape=(ROWS, OUTPUTS))},
    )
    path = tmp_path_factory.mktemp("layer") / "layer.onnx"
    write_onnx(spec, path, opset=21 if quantized.block else 18)
    return module, path, request.param


def test_the_file_computes_what_the_module_computes(layer):
    module, path, _ = layer
    x = np.random.default_rng(1).standard_normal((ROWS, INPUTS)).astype(np.float32)
    options = ort.SessionOptions()
    # By default a float input of a weight-only product is rounded to int8 on the way.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    (got,) = ort.InferenceSession(str(path), options).run(None, {"x": x})
    with torch.no_grad():
        want = module(torch.from_numpy(x)).numpy()
    # ONNX Runtime multiplies integers where torch multiplies their floats: K roundings of 6e-8.
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_codes_have_the_type_of_their_format_and_no_float_weight_is_left(layer):
    _, path, name = layer
    model = onnx.load(path)
    onnx.checker.check_model(model)
    types = {i.name: i.data_type for i in model.graph.initializer}
    assert types["codes"] == (TensorProto.INT4 if name == "w4" else TensorProto.INT8)
    floats = [i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT]
    assert max(onnx.numpy_helper.to_array(i).size for i in floats) <= 2 * OUTPUTS
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("QuantizeLinear") == (name == "w8a8")
    assert operators.count("DequantizeLinear") == 1 + (name == "w8a8")
    assert operators.count("MatMul") == 1 and "Gemm" not in operators


@pytest.mark.skipif(not is_available(), reason="TensorRT for RTX is not installed")
def test_the_file_compiles(layer):
    _, path, _ = layer
    verdict = check_compiles(path)
    assert verdict.ok, verdict.message


def test_int4_halves_the_file():
    sizes = {name: make()[0].num_bytes for name, make in LAYERS.items()}
    assert sizes["w4"] < 0.7 * sizes["w8"]  # 256 padded rows of four bits, 200 of eight


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_an_activation_scale_that_cannot_be_is_refused(scale):
    with pytest.raises(ValueError, match="activation scale must be positive"):
        QuantLinear(int8_per_channel(weight()), None, scale)
