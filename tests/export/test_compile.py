"""The compiler for a GPU that is not there takes our engines, and says why it refuses others."""

import numpy as np
import onnx
import pytest
from onnx import helper
from tokenizers import Tokenizer

from export.engines import compile_check
from export.engines.compile_check import check_compiles, is_available
from export.engines.lower import float32_nodes, lower
from export.engines.onnx_file import export_graph, save, write_onnx
from models.anchorvla4d.presets import full, shallow
from models.anchorvla4d.prompt import prompt as prompt_parts
from models.anchorvla4d.split import split
from models.demo import CHECKPOINT
from models.init import image_of
from models.networks.layers import SelfAttention
from runtime.plans.compiler import CompileSpec, compile_apart
from tests.export.conftest import INPUTS, ROWS, Engine, quant_linear, spec_of
from tests.oracles import random_policy

pytestmark = pytest.mark.skipif(
    not is_available(), reason="TensorRT for RTX has wheels for x86-64 Linux only"
)
ENGINES = ("vision", "language", "project", "spatial", "condition", "denoise")


@pytest.fixture(scope="module")
def full_width():
    """The published widths and image size, two layers of each network (one attends globally)."""
    config = shallow(full(), vision=2, language=1, spatial=2, head=1)
    model = random_policy(config)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    parts = prompt_parts(config, tokenizer)
    return split(model, parts, image_of(config), (252, 252), 112)


@pytest.mark.parametrize("name", ENGINES)
def test_full_width_engines_compile_for_orins_nearest_relative(full_width, name, tmp_path):
    file = write_onnx(full_width.engines[name], tmp_path / f"{name}.onnx", opset=18)
    compiled = check_compiles(file.path)
    assert compiled.ok, compiled.message
    assert compiled.message.startswith("SM86 in")


def test_a_graph_that_does_not_compile_fails_with_the_compilers_message(tmp_path):
    value = helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "mixed",
        [value("x", onnx.TensorProto.FLOAT16, [2, 4])],
        [value("y", onnx.TensorProto.FLOAT16, [2, 4])],
        [weight],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx")
    compiled = check_compiles(tmp_path / "m.onnx")
    assert not compiled.ok
    assert "type" in compiled.message.lower()


def test_a_missing_compiler_is_said_and_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_check, "is_available", lambda: False)
    compiled = check_compiles(tmp_path / "any.onnx")
    assert compiled.ok
    assert (
        compiled.message
        == "not checked: TensorRT for RTX is not installed (it is in the dev extra)"
    )


@pytest.mark.parametrize("base", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("kind", "products"),
    [("w8a8", ["layer/MatMul"]), ("outliers", ["layer/MatMul"]), ("w8", []), ("w4", [])],
)
def test_the_compiler_finds_the_products_that_the_exporter_wrote_in_int8(
    kind, products, base, tmp_path
):
    """What `anchorvla build` audits on the robot is read from the same parsed network."""
    module = Engine(quant_linear(kind))
    opset = 21 if kind == "w4" or base != "float32" else 18
    model = export_graph(spec_of(module, ROWS, INPUTS), opset=opset)
    if base != "float32":
        lower(model, base, float32_nodes(model, module, modules=set(), tensors=()), opset)
    path = tmp_path / "engine.onnx"
    save(model, path)
    spec = CompileSpec(onnx=str(path), backend="tensorrt_rtx", capability="SM86")
    found = compile_apart(spec).int8_products
    assert sorted(found) == products


@pytest.mark.parametrize("softmax", ["float32", "base"])
@pytest.mark.parametrize("base", ["bfloat16", "float16"])
def test_attention_compiles_with_casts_around_its_softmax_and_without(base, softmax, tmp_path):
    module = Engine(SelfAttention(INPUTS, 4).requires_grad_(False))
    model = export_graph(spec_of(module, ROWS, INPUTS), opset=18)
    kept = float32_nodes(model, module, modules=(), tensors=(), softmax=softmax)
    lower(model, base, kept, opset=20)
    save(model, tmp_path / "engine.onnx")
    compiled = check_compiles(tmp_path / "engine.onnx")
    assert compiled.ok and compiled.message.startswith("SM86 in"), compiled.message


def test_the_check_prints_its_verdict_and_ends_with_it(tmp_path, capsys):
    assert compile_check.main(tmp_path / "none.onnx") == 1
    assert "Input file cannot be found" in capsys.readouterr().out
