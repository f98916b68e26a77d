"""What an engine holds is read from its file, and refused where it is not the recipe's."""

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.build import build
from export.engines import engine as engines
from export.engines.audit import audit, check_target, mistyped_scales
from export.engines.join import layers_of
from export.engines.onnx_file import export_graph, save
from export.engines.products import Precision, read_contents
from export.errors import ExportError
from models.checkpoint import load_checkpoint
from quant.apply import decide, quantize_folded
from quant.recipes import RECIPES, Recipe, Rule
from runtime import read_bundle
from tests.export.conftest import (
    INPUTS,
    OUTPUTS,
    ROWS,
    contents_of,
    cut_config,
    put_constant,
    rename_constant,
    spec_of,
)

NAMES = {"engine": {"layer": "policy.layer"}}
PLANTED = "vlm.model.layers.0.mlp.down_proj"


def audit_one(contents, rule, base, *, rules=None, folded=()):
    method = "outliers" if rule == "outliers" else "plain"
    rules = rules or {"policy.layer": Rule("*", "w8a8" if rule == "outliers" else rule, method)}
    return audit({"engine": contents}, NAMES, rules, base, folded=folded)


def precisions_of(contents):
    return {product.weight: product.precision for product in contents.products}


@pytest.mark.parametrize("base", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["float", "w8", "w8a8", "w4", "outliers"])
def test_every_format_is_read_from_the_file_and_passes(name, base, tmp_path):
    contents = contents_of(tmp_path, name, base)
    low = "" if base == "float32" else "/low"
    want = {
        "float": {f"layer.weight{low}": Precision(base, base)},
        "w8": {"layer.codes": Precision("w8", base)},
        "w8a8": {"layer.codes": Precision("w8a8", base)},
        "w4": {"layer.codes": Precision("w4", base)},
        "outliers": {
            "layer.codes": Precision("w8a8", base),
            f"layer.kept_weight{low}": Precision(base, base),
        },
    }[name]
    assert precisions_of(contents) == want
    assert audit_one(contents, name, base) == []


def test_a_precision_says_what_it_is_computed_in():
    assert str(Precision("w8", "bfloat16")) == "w8 in bfloat16"
    assert str(Precision("float16", "float16")) == "float16"


@pytest.mark.parametrize(
    ("layer", "base", "modules", "rule", "expected_base", "sentence"),
    [
        ("float", "float32", (), "w8", "float32",
         "engine: policy.layer is float32, the recipe says w8 in float32"),
        ("float", "bfloat16", (), "w8a8", "bfloat16",
         "engine: policy.layer is bfloat16, the recipe says w8a8 in bfloat16"),
        ("w8", "bfloat16", (), "w8a8", "bfloat16",
         "engine: policy.layer is w8 in bfloat16, the recipe says w8a8 in bfloat16"),
        ("w8a8", "bfloat16", (), "w8", "bfloat16",
         "engine: policy.layer is w8a8 in bfloat16, the recipe says w8 in bfloat16"),
        ("w8", "float32", (), "w4", "float32",
         "engine: policy.layer is w8 in float32, the recipe says w4 in float32"),
        ("w8", "bfloat16", {"layer"}, "w8", "bfloat16",
         "engine: policy.layer is w8 in float32, the recipe says w8 in bfloat16"),
        ("w4", "float16", (), "w4", "bfloat16",
         "engine: policy.layer is w4 in float16, the recipe says w4 in bfloat16"),
        ("float", "bfloat16", {"layer"}, "float", "bfloat16",
         "engine: policy.layer is float32, the recipe says bfloat16"),
        ("float", "bfloat16", (), "float32", "bfloat16",
         "engine: policy.layer is bfloat16, the recipe says float32"),
        ("outliers", "float32", (), "w8a8", "float32",
         "engine: policy.layer keeps 2 of 200 channels in float"),
    ],
    ids=[
        "left in float32", "left in bfloat16", "no activation quantizer",
        "an activation quantizer too many", "int8 for int4", "codes in float32",
        "another base", "float32 for the base", "the base for float32", "channels kept unasked",
    ],
)  # fmt: skip
def test_what_differs_from_the_recipe_is_said(
    layer, base, modules, rule, expected_base, sentence, tmp_path
):
    contents = contents_of(tmp_path, layer, base, modules=modules)
    assert audit_one(contents, rule, expected_base) == [sentence]


def test_islands_are_float32_whatever_the_base(tmp_path):
    contents = {"engine": contents_of(tmp_path, "w8", "float16", modules={"layer"})}
    rules = {"policy.layer": Rule("*", "w8")}
    assert audit(contents, NAMES, rules, "float16", {"policy.layer"}) == []
    assert audit(contents, NAMES, rules, "float16", {"policy.other"}) != []


def test_kept_channels_in_another_format_are_said(tmp_path):
    def lower_kept(graph):
        put_constant(graph, "layer.kept_weight", np.ones((2, OUTPUTS), np.float16))

    assert audit_one(
        contents_of(tmp_path, "outliers", change=lower_kept), "outliers", "float32"
    ) == ["engine: policy.layer is float16, the recipe says float32"]


def test_keeping_every_channel_is_said(tmp_path):
    def keep_all(graph):
        put_constant(graph, "layer.kept_weight", np.ones((INPUTS, OUTPUTS), np.float32))

    assert audit_one(contents_of(tmp_path, "outliers", change=keep_all), "outliers", "float32") == [
        "engine: policy.layer keeps 200 of 200 channels in float"
    ]


def test_kept_channels_alone_are_no_layer(tmp_path):
    def lose_the_codes(graph):
        rename_constant(graph, "layer.codes", "val_9")

    contents = contents_of(tmp_path, "outliers", change=lose_the_codes)
    assert audit_one(contents, "outliers", "float32") == [
        "engine: val_9 is w8a8 in float32, and of no known layer",
        "engine: policy.layer is computed by the channels that it keeps, and nothing else",
    ]


def test_channels_are_kept_once(tmp_path):
    def keep_again(graph):
        put_constant(graph, "layer.kept_weight/low", np.ones((2, OUTPUTS), np.float32))
        product = copy.deepcopy(graph.node[-3])
        assert product.input[1] == "layer.kept_weight"
        product.input[1], product.output[0] = "layer.kept_weight/low", "again"
        graph.node.append(product)
        graph.output.add().name = "again"

    contents = contents_of(tmp_path, "outliers", change=keep_again)
    weights = "layer.codes, layer.kept_weight, layer.kept_weight/low"
    assert audit_one(contents, "outliers", "float32") == [
        f"engine: policy.layer is computed by 3 products ({weights}), expected one"
    ]


def test_layers_in_no_engine_are_said_in_the_order_of_their_names(tmp_path):
    rules = {name: Rule("*", "w8") for name in ("policy.layer", "policy.b", "policy.a")}
    sentences = audit_one(contents_of(tmp_path, "w8"), "", "float32", rules=rules)
    assert [words.split()[0] for words in sentences] == ["policy.a", "policy.b"]


def test_a_layer_in_no_engine_is_said_in_every_format(tmp_path):
    contents = contents_of(tmp_path, "w8")
    for lost in ("w8a8", "float", "float32"):
        rules = {"policy.layer": Rule("*", "w8"), "policy.lost": Rule("*", lost)}
        assert audit_one(contents, "w8", "float32", rules=rules) == [
            f"policy.lost is in no engine, the recipe says {lost}"
        ]


def test_layers_whose_results_are_constants_are_in_no_engine(tmp_path):
    layer = "head.times.mlp.0"
    rules = {"policy.layer": Rule("*", "w8"), layer: Rule("*", "float32")}
    contents = contents_of(tmp_path, "w8")
    assert audit_one(contents, "w8", "float32", rules=rules, folded=[layer]) == []
    for others in ([], ["head.times.*", "head.times.mlp"]):
        assert audit_one(contents, "w8", "float32", rules=rules, folded=others) == [
            f"{layer} is in no engine, the recipe says float32"
        ]


def test_a_float32_weight_without_a_name_is_that_of_the_one_layer_that_lacks_it(tmp_path):
    """So is `final_projection`, which the condition transposes; but a copy has no such place."""

    def lose_the_name(graph):
        rename_constant(graph, "layer.weight", "val_7")

    contents = contents_of(tmp_path, "float", change=lose_the_name)
    lacks = {"policy.layer": Rule("*", "float32")}
    assert audit_one(contents, "", "bfloat16", rules=lacks) == []
    assert audit_one(contents, "", "bfloat16", rules={"policy.layer": Rule("*", "float")}) == [
        "policy.layer is in no engine, the recipe says float",
        "engine: val_7 is float32, and of no known layer",
    ]
    twice = {"one": contents, "other": contents}
    names = {"one": {}, "other": {}}
    assert audit(twice, names, lacks, "bfloat16") == [
        "other: val_7 is float32, and of no known layer"
    ]


def test_a_layer_of_batched_inputs_is_read_too(tmp_path):
    """The exporter folds the transposed weight of batched inputs into a constant of its own."""

    class Batched(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(INPUTS, OUTPUTS).requires_grad_(False)

        def forward(self, x):
            return self.layer(x[None])

    model = export_graph(spec_of(Batched(), ROWS, INPUTS), opset=18)
    contents = read_contents(save(model, tmp_path / "engine.onnx").path)
    assert audit_one(contents, "float", "bfloat16") == [
        "engine: policy.layer is float32, the recipe says bfloat16"
    ]


def test_a_low_product_that_nobody_knows_is_said(tmp_path):
    def lose_the_name(graph):
        rename_constant(graph, "layer.weight/low", "val_7/low")

    contents = contents_of(tmp_path, "float", "bfloat16", change=lose_the_name)
    assert audit_one(contents, "", "bfloat16", rules={"policy.x": Rule("*", "float32")}) == [
        "engine: val_7/low is bfloat16, and of no known layer",
        "policy.x is in no engine, the recipe says float32",
    ]


@pytest.mark.parametrize("recipe", ["orin-bf16", "orin-w8a8"])
def test_the_files_of_an_export_hold_as_many_of_each_format_as_its_recipe_says(
    recipe, exported, cut_checkpoint
):
    bundle, chosen = read_bundle(exported(recipe)), RECIPES[recipe]()
    found = Counter(
        precision.format
        for engine in bundle.manifest.engines.values()
        for weight, precision in precisions_of(read_contents(bundle.file(engine.file))).items()
        for _ in layers_of(weight)
    )
    rules = decide(chosen, load_checkpoint(cut_checkpoint).model)
    formats = [rule.format for rule in rules.values()]
    formats.append(rules["info_sharing.info_sharing.proj_embed"].format)  # used in two engines
    want = Counter({"float": chosen.base}.get(form, form) for form in formats)
    want["float32"] -= 2  # t_embedder's: the embeddings of all steps are constants of the engine
    assert found == want


def test_one_layer_left_in_float_stops_the_export(cut_checkpoint, tmp_path, monkeypatch):
    def lazy(folded, recipe, work):
        rules = (Rule(PLANTED, "float32"), *recipe.rules)
        return quantize_folded(folded, replace(recipe, rules=rules))

    monkeypatch.setattr("export.subject.quantize_folded", lazy)
    message = (
        "gate precision_audit: 1 layers are not what recipe orin-w8a8 says: "
        f"language: {PLANTED} is bfloat16, the recipe says w8a8 in bfloat16. No recipe helps"
    )
    with pytest.raises(ExportError) as error:
        build(cut_config(cut_checkpoint, tmp_path / "bundle", "orin-w8a8"))
    assert str(error.value).startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle-failed.html"]


def model_with(nodes, weights=(), *, opset=21):
    """x -> y [4, 4] by `nodes`."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "planted",
        [value("x", TensorProto.FLOAT, [4, 4])],
        [value("y", TensorProto.FLOAT, [4, 4])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def fp8_cast():
    return model_with(
        [
            helper.make_node("Cast", ["x"], ["eight"], to=TensorProto.FLOAT8E4M3FN),
            helper.make_node("Cast", ["eight"], ["y"], to=TensorProto.FLOAT),
        ]
    )


def fp8_quantizer():
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    return model_with(
        [
            helper.make_node(
                "QuantizeLinear", ["x", "scale"], ["eight"], output_dtype=TensorProto.FLOAT8E4M3FN
            ),
            helper.make_node("DequantizeLinear", ["eight", "scale"], ["y"]),
        ],
        [scale],
    )


def fp8_weight():
    weight = helper.make_tensor("eight", TensorProto.FLOAT8E4M3FN, [4, 4], np.ones(16))
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    return model_with(
        [
            helper.make_node("DequantizeLinear", ["eight", "scale"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        [weight, scale],
    )


def int4(kind=TensorProto.INT4, *, zero_point=False, opset=21):
    scale = numpy_helper.from_array(np.ones(4, np.float32), "scale")
    weights = [helper.make_tensor("four", kind, [4, 4], np.ones(16, np.int8)), scale]
    inputs = ["four", "scale"]
    if zero_point:
        weights.append(helper.make_tensor("zero", kind, [4], np.ones(4, np.int8)))
        inputs.append("zero")
    nodes = [
        helper.make_node("DequantizeLinear", inputs, ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = model_with(nodes, weights)
    model.opset_import[0].version = opset
    return model


@pytest.mark.parametrize("make", [fp8_cast, fp8_quantizer, fp8_weight])
def test_fp8_is_for_a_thor_and_not_for_an_orin(make, tmp_path):
    onnx.save(make(), tmp_path / "m.onnx")
    message = "m.onnx: 'eight' is FP8, which needs SM 8.9 or newer; an Orin is SM 8.7: use int8"
    with pytest.raises(ValueError, match=message):
        check_target(tmp_path / "m.onnx", "orin")
    check_target(tmp_path / "m.onnx", "thor")


@pytest.mark.parametrize("target", ["orin", "thor"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: int4(TensorProto.UINT4), r"'four' is asymmetric int4 \(uint4\), .* symmetric"),
        (
            lambda: int4(zero_point=True),
            r"'four' is asymmetric int4 \(it has a zero point\), .* make it symmetric",
        ),
        (lambda: int4(opset=20), "int4 needs opset 21, this is 20"),
    ],
    ids=["uint4", "zero point", "opset 20"],
)
def test_int4_that_tensorrt_does_not_take_is_refused(make, message, target, tmp_path):
    onnx.save(make(), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=f"m.onnx: {message}"):
        check_target(tmp_path / "m.onnx", target)


def scaled(scale, result=None, *, opset=20, declared=None):
    """x [4, 4] float32 through a Q and its DQ; `scale` is the types of their scales.

    Args:
        result: `output_dtype` of the DQ.
        declared: type that the DQ's result is declared as, beside what is written.
    """
    quantized, dequantized = (numpy_helper.from_array(np.ones((), t), t) for t in scale)
    zero = numpy_helper.from_array(np.int8(0), "zero")
    attributes = {} if result is None else {"output_dtype": result}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", quantized.name, "zero"], ["q"], name="Q"),
        helper.make_node(
            "DequantizeLinear", ["q", dequantized.name], ["d"], name="D", **attributes
        ),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    scales = {t.name: t for t in (quantized, dequantized)}.values()
    model = model_with(nodes, [*scales, zero], opset=opset)
    if declared is not None:
        model.graph.value_info.append(helper.make_tensor_value_info("d", declared, [4, 4]))
    return model


def straight_out(model):
    """The DQ writes the output, which is declared as float32."""
    del model.graph.node[-1]
    model.graph.node[-1].output[0] = "y"
    return model


HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.mark.parametrize("target", ["orin", "cpu", "thor"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: scaled(("float16", "float32"), opset=23),
            "'Q' is a QuantizeLinear whose scale is float16 and whose input is float",
        ),
        (
            lambda: scaled(("float16", "float32")),
            "'Q' is a QuantizeLinear whose scale is float16 and whose input is float",
        ),
        (
            lambda: scaled(("float32", "float16"), FLOAT, opset=23),
            "'D' is a DequantizeLinear whose scale is float16 and whose result is float",
        ),
        (
            lambda: scaled(("float32", "float32"), HALF, opset=23),
            "'D' is a DequantizeLinear whose scale is float and whose result is float16",
        ),
        (
            lambda: scaled(("float32", "float16"), declared=FLOAT),
            "'D' is a DequantizeLinear whose scale is float16 and whose result is float",
        ),
        (
            lambda: straight_out(scaled(("float32", "float16"))),
            "'D' is a DequantizeLinear whose scale is float16 and whose result is float",
        ),
    ],
    ids=["input, opset 23", "input", "wider result", "narrower result", "declared", "an output"],
)
def test_a_scale_of_another_type_is_refused_for_it_builds_on_thor_alone(
    make, message, target, tmp_path
):
    """NVIDIA/TensorRT issue 4832."""
    onnx.save(make(), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=f"m.onnx: {message}.*write the scale in the same type"):
        check_target(tmp_path / "m.onnx", target)


@pytest.mark.parametrize(
    "make",
    [
        lambda: scaled(("float32", "float32")),
        lambda: scaled(("float32", "float16")),  # the result is float16: nobody says otherwise
        lambda: scaled(("float32", "float16"), declared=HALF),
        lambda: scaled(("float32", "float16"), HALF, opset=23),
    ],
)
def test_scales_of_the_type_of_what_they_scale_are_taken(make, tmp_path):
    onnx.save(make(), tmp_path / "m.onnx")
    check_target(tmp_path / "m.onnx", "orin")


@pytest.mark.parametrize("recipe", ["orin-w8a8", "orin-w4a16", "cpu-int8"])
def test_no_engine_of_ours_has_a_scale_of_another_type(recipe, exported):
    """Q and DQ of their own kind in each, so that there is something to find."""
    files = sorted((exported(recipe) / "engines").glob("*.onnx"))
    models = [onnx.load(path, load_external_data=False) for path in files]
    assert any(n.op_type == "DequantizeLinear" for model in models for n in model.graph.node)
    assert [words for model in models for words in mistyped_scales(model)] == []


def test_a_node_that_reads_nothing_is_no_weight(tmp_path):
    model = int4()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["nothing"], value_float=1.0))
    onnx.save(model, tmp_path / "m.onnx")
    check_target(tmp_path / "m.onnx", "orin")


def test_symmetric_int4_is_taken_and_its_weights_are_not_read(tmp_path):
    """They may be gigabytes; that they are gone shows that nobody asked for them."""
    aside = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}
    onnx.save(int4(), tmp_path / "m.onnx", **aside)
    (tmp_path / "m.data").unlink()
    check_target(tmp_path / "m.onnx", "orin")


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (fp8_cast, "is FP8, which needs SM 8.9"),
        (lambda: int4(TensorProto.UINT4), "is asymmetric int4"),
        (lambda: int4(zero_point=True), "is asymmetric int4"),
    ],
    ids=["fp8", "uint4", "zero point"],
)
def test_the_target_is_asked_before_the_compiler(
    planted, message, cut_checkpoint, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(engines, "check_compiles", asked.append)
    monkeypatch.setattr(engines, "lower", lambda model, *rest: model.CopyFrom(planted()))
    with pytest.raises(ExportError, match=f"^engine vision: vision.onnx: .* {message}"):
        build(cut_config(cut_checkpoint, tmp_path / "bundle", "orin-bf16", compile_check=True))
    assert asked == []
    assert not list(tmp_path.iterdir())


def test_a_recipe_with_fp8_is_for_a_thor_only():
    assert RECIPES["thor-fp8"]().target == "thor"
    fields = {"name": "trial", "rules": (Rule("*", "fp8"),), "purpose": "time"}
    fields["chain_tolerance"] = 1.0
    Recipe(target="thor", **fields)
    with pytest.raises(
        ValueError, match=r"trial: FP8 needs .* SM 8\.9 or newer, and orin has none"
    ):
        Recipe(target="orin", **fields)


def test_fp8_is_not_written_yet_and_an_export_says_so(cut_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="format fp8 has no emulation"):
        build(cut_config(cut_checkpoint, tmp_path / "bundle", "thor-fp8"))
    assert not list(tmp_path.iterdir())
