"""Layers that read one tensor with one step: one QuantizeLinear, one product, the same numbers."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export.engines import onnx_file
from export.engines.audit import audit
from export.engines.join import layers_of
from export.engines.lower import float32_nodes, lower, twin
from export.engines.onnx_file import export_graph, save
from export.engines.products import read_contents
from quant.formats import int8_per_channel, up_to_bfloat16
from quant.modules import QuantLinear
from quant.recipes import Rule
from tests.export.conftest import normal, run_onnx, spec_of

WIDTH, ROWS = 40, 6
STEP = 2**-5


def layer(outputs, *, bias, seed, step=STEP, per_token=False):
    weight = int8_per_channel(normal(WIDTH, outputs, seed=seed), round_scales=up_to_bfloat16)
    added = nn.Parameter(torch.from_numpy(normal(outputs, seed=seed + 50)), requires_grad=False)
    return QuantLinear(weight, added if bias else None, step, per_token=per_token)


class Readers(nn.Module):
    """Some layers of one input; their outputs meet, so that none is left out."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return torch.cat([torch.tanh(layer(x)) for layer in self.layers], dim=-1)


def trace(*layers):
    module = Readers(*layers)
    return module, export_graph(spec_of(module, ROWS, WIDTH), opset=18)


def counts(model):
    return Counter(node.op_type for node in model.graph.node)


def agrees(module, model):
    x = normal(ROWS, WIDTH, seed=9)
    with torch.no_grad():
        want = module(torch.from_numpy(x)).numpy()
    onnx.checker.check_model(model, full_check=True)
    # Sums of integers are exact; scales and a bias round numbers up to 20 by 2^-24 each. One code
    # more or less is 7e-4.
    return np.abs(run_onnx(model, x) - want).max() <= 5e-6


@pytest.mark.parametrize("bias", [False, True])
def test_three_readers_become_one_product_with_one_rounding(bias):
    module, model = trace(*(layer(n, bias=bias, seed=n) for n in (5, 7, 4)))
    found = counts(model)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 2)
    assert (found["MatMul"], found["Split"], found["Add"]) == (1, 1, int(bias))
    codes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    (name,) = (name for name in codes if name.endswith(".codes"))
    assert layers_of(name.removesuffix(".codes")) == ["layers.0", "layers.1", "layers.2"]
    side_by_side = np.concatenate([part.codes.numpy() for part in module.layers], axis=1)
    assert np.array_equal(codes[name], side_by_side)
    assert agrees(module, model)


def test_readers_with_and_without_bias_are_joined_apart_and_rounded_once():
    module, model = trace(*(layer(5, bias=n % 2 == 0, seed=n) for n in range(4)))
    found = counts(model)
    assert (found["QuantizeLinear"], found["MatMul"], found["Split"]) == (1, 2, 2)
    assert agrees(module, model)


def test_another_step_is_another_rounding():
    module, model = trace(layer(5, bias=True, seed=1), layer(5, bias=True, seed=2, step=STEP / 2))
    found = counts(model)
    assert (found["QuantizeLinear"], found["MatMul"], found["Split"]) == (2, 2, 0)
    assert agrees(module, model)


def test_layers_without_int8_inputs_are_left_alone():
    module, model = trace(*(layer(5, bias=True, seed=n, step=None) for n in (1, 2)))
    assert counts(model)["MatMul"] == 2 and not counts(model)["Split"]
    assert agrees(module, model)


def test_what_a_token_is_divided_by_is_found_once():
    module, model = trace(
        *(layer(n, bias=False, seed=n, step=1 / 127, per_token=True) for n in (5, 7))
    )
    found = counts(model)
    assert (found["ReduceMax"], found["Div"], found["QuantizeLinear"], found["MatMul"]) == (
        1, 1, 1, 1,
    )  # fmt: skip
    assert agrees(module, model)


def test_a_graph_without_rounding_is_not_touched(monkeypatch):
    torch.manual_seed(0)
    shared = Readers(nn.Linear(WIDTH, 5), nn.Linear(WIDTH, 7)).requires_grad_(False)
    shared.layers.append(layer(4, bias=True, seed=1, step=None))
    spec = spec_of(shared, ROWS, WIDTH)
    first = export_graph(spec, opset=18).SerializeToString(deterministic=True)
    monkeypatch.setattr(onnx_file, "share_inputs", lambda model: None)
    assert export_graph(spec, opset=18).SerializeToString(deterministic=True) == first


@pytest.mark.parametrize("swapped", [False, True])
def test_the_audit_reads_a_joined_product_as_all_of_its_layers(tmp_path, swapped):
    module, model = trace(*(layer(n, bias=True, seed=n) for n in (5, 7)))
    lower(model, "bfloat16", float32_nodes(model, module, modules=(), tensors=()), 20)
    agreed = run_onnx(twin(model), normal(ROWS, WIDTH, seed=9))
    assert np.isfinite(agreed).all()
    contents = read_contents(save(model, tmp_path / "engine.onnx").path)
    names = {"layers.0": "policy.a", "layers.1": "policy.b"}
    rules = {"policy.a": Rule("*", "w8a8"), "policy.b": Rule("*", "w8" if swapped else "w8a8")}
    found = audit({"engine": contents}, {"engine": names}, rules, "bfloat16")
    assert found == (
        ["engine: policy.b is w8a8 in bfloat16, the recipe says w8 in bfloat16"] if swapped else []
    )


def test_a_joined_layer_that_no_recipe_names_is_found(tmp_path):
    _, model = trace(*(layer(n, bias=True, seed=n) for n in (5, 7)))
    contents = read_contents(save(model, tmp_path / "engine.onnx").path)
    rules = {"policy.a": Rule("*", "w8a8")}
    (words, lost) = audit(
        {"engine": contents}, {"engine": {"layers.0": "policy.a"}}, rules, "float32"
    )
    assert "layers.0+layers.1.codes is w8a8 in float32, and of no known layer" in words
    assert lost == "policy.a is in no engine, the recipe says w8a8"
