"""What lowering leaves of quantized layers, and of the policies that are exported."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from export.build import build
from export.config import BuildConfig
from export.engines.lower import FLOAT32_OPS, MOVING_OPS, twin
from runtime.bundle import read_bundle
from tests.export.conftest import (
    INPUTS,
    ROUNDING,
    ROWS,
    lowered,
    normal,
    run_onnx,
    traced_layer,
    types_of,
)
from tests.oracles import relative_error

FORMATS = ("w8", "w8a8", "w4", "outliers")


@pytest.mark.parametrize("name", FORMATS)
def test_codes_survive_lowering_and_twin_to_the_bit(name, base):
    engine, exact = traced_layer(name)
    model = lowered(engine, exact, base)
    codes = [
        next(t for t in m.graph.initializer if t.name == "layer.codes").SerializeToString()
        for m in (exact, model, twin(model))
    ]
    assert codes[0] == codes[1] == codes[2]


@pytest.mark.parametrize("name", FORMATS)
def test_lowering_to_bfloat16_changes_no_scale(name):
    engine, exact = traced_layer(name)
    model = lowered(engine, exact, "bfloat16")
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert np.array_equal(
        weights["layer.scales/low"].astype(np.float32), engine.layer.scales.numpy()
    )


@pytest.mark.parametrize("name", FORMATS)
def test_what_comes_out_of_codes_is_the_base_format(name, base, kind):
    engine, exact = traced_layer(name)
    layer, model = engine.layer, lowered(engine, exact, base)
    types, nodes = types_of(model), model.graph.node
    quantizes = [n for n in nodes if n.op_type == "QuantizeLinear"]
    assert len(quantizes) == (layer.activation_scale is not None)
    assert {types[n.output[0]] for n in quantizes} <= {TensorProto.INT8}
    others = [n for n in nodes if n.op_type in ("DequantizeLinear", "MatMul")]
    assert len(others) == 2 + len(quantizes) + (layer.kept is not None)
    assert {types[n.output[0]] for n in others} == {kind}


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_layers_twin_equals_exact_products_rounded_once(name, base):
    """Products in float64, each result rounded as torch rounds it. What differs are float32 sums
    that lie within sqrt(256) * 2^-24 of a tie: see above, half a rounding is allowed.
    """
    engine, exact = traced_layer(name)
    layer = engine.layer
    dtype = getattr(torch, base)

    def rounded(values):
        return values.to(dtype).double()

    x = torch.from_numpy(normal(ROWS, INPUTS, seed=3))
    whole = inputs = rounded(x)
    if layer.input_factor is not None:
        inputs = rounded(inputs * layer.input_factor)
    if layer.activation_scale is not None:
        step = layer.activation_scale.double()
        inputs = (inputs / step).round().clamp(-128, 127) * step
    scales = layer.scales.double()
    if layer.block:
        scales = scales.repeat_interleave(layer.block, 0)
    y = rounded(inputs @ (layer.codes.double() * scales)[:INPUTS])
    if layer.kept is not None:
        y = rounded(y + rounded(whole[:, layer.kept] @ rounded(layer.kept_weight)))
    y = rounded(y + rounded(layer.bias))
    got = run_onnx(twin(lowered(engine, exact, base)), x.numpy())
    assert relative_error(got, y) <= ROUNDING[base] / 2


def test_in_an_exported_policy_no_float32_number_is_rounded_on_its_way_to_float32(exported):
    """A port that is split was: the pooling weights went through bfloat16 to a float32 product."""
    bundle = read_bundle(exported("orin-bf16"))
    for engine in bundle.manifest.engines.values():
        graph = onnx.load(bundle.file(engine.file), load_external_data=False).graph
        made = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
                source = node.input[0]
                while source in made and made[source].op_type in MOVING_OPS:
                    source = made[source].input[0]
                assert source in made and made[source].op_type != "Cast", node.input[0]


def test_in_an_exported_policy_activations_and_norms_are_float32(exported):
    """Nodes by what they are, not by what their writer called them; bfloat16 could not be seen in
    the result, where the loop's own noise is larger."""
    bundle, seen = read_bundle(exported("orin-bf16")), Counter()
    for engine in bundle.manifest.engines.values():
        model = onnx.load(bundle.file(engine.file))
        types = types_of(model)
        gates = {n.output[0] for n in model.graph.node if n.op_type == "Sigmoid"}
        for node in model.graph.node:
            is_silu = node.op_type == "Mul" and not gates.isdisjoint(node.input)
            if is_silu or node.op_type in (*FLOAT32_OPS, "Pow", "Sqrt", "ReduceMean", "Div"):
                seen["silu" if is_silu else node.op_type] += 1
                assert {types[name] for name in (*node.input, *node.output)} - {
                    TensorProto.INT64
                } == {TensorProto.FLOAT}, f"{engine.file}: {node.name}"
    assert min(seen[k] for k in ("silu", "Softmax", "Erf", "Tanh", "LayerNormalization", "Sqrt"))


def test_the_export_option_moves_every_softmax_into_the_base_and_says_so(cut_checkpoint, tmp_path):
    """And nothing else: the gates pass, and a bundle without the option has none there."""
    config = BuildConfig(
        recipe="orin-bf16",
        softmax="base",
        checkpoint=cut_checkpoint,
        out=tmp_path / "bundle",
        image_size=(112, 112),
        tokens=64,
        compile_check=False,
    )
    bundle = read_bundle(build(config))
    assert bundle.manifest.title == "orin-bf16, softmax in bfloat16"
    assert bundle.manifest.recipe.softmax == "base"
    kinds = {name: softmax_types(bundle, name) for name in bundle.manifest.engines}
    assert kinds.pop("denoise") == {TensorProto.FLOAT}, "the head's attention is float32 as a whole"
    assert kinds.pop("vision") == kinds.pop("language") == {TensorProto.BFLOAT16}
    assert kinds.pop("spatial") == {TensorProto.BFLOAT16}
    assert not any(kinds.values())


def softmax_types(bundle, engine):
    model = onnx.load(bundle.engine(engine))
    types = types_of(model)
    return {types[node.output[0]] for node in model.graph.node if node.op_type == "Softmax"}
