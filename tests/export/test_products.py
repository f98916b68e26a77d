"""What would falsify a product with a weight is planted in a real file, and found in it."""

import copy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.engines.audit import audit
from export.engines.products import Contents, Precision, Product, read_contents
from quant.recipes import Rule
from tests.export.conftest import INPUTS, OUTPUTS, ROWS, contents_of, put_constant


def node_of(graph, op_type, index=0):
    return [node for node in graph.node if node.op_type == op_type][index]


def insert(graph, before, *nodes):
    """Nodes in front of another one."""
    place = list(graph.node).index(before)
    all_nodes = [*graph.node[:place], *nodes, *graph.node[place:]]
    copies = [copy.deepcopy(node) for node in all_nodes]
    del graph.node[:]
    graph.node.extend(copies)


def set_attribute(node, name, value):
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def beside_nothing(graph, *, weight="copy", factor=0.0):
    """The quantized product times 0, and a product with a float copy that does the work."""
    put_constant(graph, weight, np.ones((INPUTS, OUTPUTS), np.float32))
    put_constant(graph, "nothing", np.float32(factor))
    add = node_of(graph, "Add")
    quantized = add.input[0]
    add.input[0] = "sum"
    insert(
        graph,
        add,
        helper.make_node("Mul", [quantized, "nothing"], ["gone"]),
        helper.make_node("MatMul", ["x", weight], ["real"]),
        helper.make_node("Add", ["gone", "real"], ["sum"]),
    )


def disconnect(graph):
    put_constant(graph, "layer.weight", np.ones((INPUTS, OUTPUTS), np.float32))
    add = node_of(graph, "Add")
    add.input[0] = "real"
    insert(graph, add, helper.make_node("MatMul", ["x", "layer.weight"], ["real"]))


def alpha_of_nothing(graph):
    product, add = node_of(graph, "MatMul"), node_of(graph, "Add")
    product.op_type = "Gemm"
    set_attribute(product, "alpha", 0.0)
    assert add.input[0] == product.output[0]


def unlike_scales(graph):
    put_constant(graph, "other", np.float32(2.0**-4))
    node_of(graph, "DequantizeLinear").input[1] = "other"


def zero_point_of(which, value=3, dtype=np.int8):
    def plant(graph):
        put_constant(graph, "offset", dtype(value))
        node = node_of(graph, which)
        node.input[:] = [*node.input[:2], "offset"]

    return plant


def weight_zero_points(graph):
    put_constant(graph, "offsets", np.arange(OUTPUTS, dtype=np.int8))
    node_of(graph, "DequantizeLinear").input.append("offsets")


def scales_of(*shape, value=0.5, **attributes):
    def plant(graph):
        put_constant(graph, "layer.scales", np.full(shape, value, np.float32))
        for name, number in attributes.items():
            set_attribute(node_of(graph, "DequantizeLinear", -1), name, number)

    return plant


def one_scale_is(value):
    def plant(graph):
        scales = np.full(OUTPUTS, 0.5, np.float32)
        scales[5] = value
        put_constant(graph, "layer.scales", scales)

    return plant


def input_scale_is(value):
    return lambda graph: put_constant(graph, "layer.activation_scale", np.float32(value))


def scales_per_channel_of_input(graph):
    put_constant(graph, "layer.activation_scale", np.full(INPUTS, 0.5, np.float32))


def moving_scale(graph):
    quantize = node_of(graph, "QuantizeLinear")
    insert(graph, quantize, helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0))
    node_of(graph, "QuantizeLinear").input[1] = "largest"


def moving_weight_scales(graph):
    dequantize = node_of(graph, "DequantizeLinear")
    insert(graph, dequantize, helper.make_node("ReduceMax", ["layer.bias"], ["largest"]))
    node_of(graph, "DequantizeLinear").input[1] = "largest"


def no_quantizer(graph):
    quantize = node_of(graph, "QuantizeLinear")
    cast = helper.make_node("Cast", ["x"], [quantize.output[0]], to=TensorProto.INT8)
    insert(graph, quantize, cast)
    graph.node.remove(node_of(graph, "QuantizeLinear"))


def codes_of_the_caller(graph):
    quantize = node_of(graph, "QuantizeLinear")
    port = helper.make_tensor_value_info(quantize.output[0], TensorProto.INT8, [ROWS, INPUTS])
    graph.input.append(port)
    graph.node.remove(quantize)


def unsigned(graph):
    del node_of(graph, "QuantizeLinear").input[2]


def computed_weight(graph):
    put_constant(graph, "one", np.float32(1))
    product = node_of(graph, "MatMul")
    weight = product.input[1]
    product.input[1] = "same"
    insert(graph, product, helper.make_node("Div", [weight, "one"], ["same"]))


def between(op_type, **attributes):
    def plant(graph):
        product = next(n for n in graph.node if n.op_type in ("MatMul", "Gemm"))
        weight = product.input[1]
        product.input[1] = "passed"
        insert(graph, product, helper.make_node(op_type, [weight], ["passed"], **attributes))

    return plant


def rounded_input(graph):
    put_constant(graph, "step", np.float32(0.5))
    put_constant(graph, "zero", np.int8(0))
    product = node_of(graph, "Gemm")
    product.input[0] = "rounded"
    insert(
        graph,
        product,
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["eight"]),
        helper.make_node("DequantizeLinear", ["eight", "step", "zero"], ["back"]),
        helper.make_node("Identity", ["back"], ["rounded"]),
    )


def first_factor(graph):
    """W^T x^T, transposed: int8 codes may stand there, but a scale's axis means K then."""
    product = node_of(graph, "MatMul")
    x, weight, y = product.input[0], product.input[1], product.output[0]
    insert(
        graph,
        product,
        helper.make_node("Transpose", [x], ["x_t"], perm=[1, 0]),
        helper.make_node("Transpose", [weight], ["w_t"], perm=[1, 0]),
    )
    product = node_of(graph, "MatMul")
    product.input[:], product.output[0] = ["w_t", "x_t"], "y_t"
    insert(graph, node_of(graph, "Add"), helper.make_node("Transpose", ["y_t"], [y], perm=[1, 0]))


def convolution(graph):
    put_constant(graph, "kernel", np.ones((OUTPUTS, OUTPUTS, 1), np.float32))
    add = node_of(graph, "Add")
    put_constant(graph, "axis", np.array([0]))
    product = add.input[0]
    add.input[0] = "mixed"
    insert(
        graph,
        add,
        helper.make_node("Transpose", [product], ["t"], perm=[1, 0]),
        helper.make_node("Unsqueeze", ["t", "axis"], ["batch"]),
        helper.make_node("Conv", ["batch", "kernel"], ["convolved"], name="layer/Conv"),
        helper.make_node("Squeeze", ["convolved", "axis"], ["s"]),
        helper.make_node("Transpose", ["s"], ["mixed"], perm=[1, 0]),
    )


def foreign(graph):
    product = node_of(graph, "MatMul")
    product.domain, product.name = "com.microsoft", "layer/Odd"


def quantized_bias(graph):
    put_constant(graph, "bias_codes", np.ones(OUTPUTS, np.int8))
    put_constant(graph, "bias_scale", np.float32(0.5))
    add = node_of(graph, "Add")
    add.input[1] = "bias"
    node = helper.make_node("DequantizeLinear", ["bias_codes", "bias_scale"], ["bias"])
    insert(graph, add, node)


def constant_input(graph):
    """As the scale token, which is a weight too, meets the codes."""
    put_constant(graph, "token", np.ones((ROWS, INPUTS), np.float32))
    node_of(graph, "MatMul").input[0] = "token"


def transposed_codes(graph):
    node_of(graph, "MatMul").op_type = "Gemm"
    set_attribute(node_of(graph, "Gemm"), "transB", 1)


def half_of_the_bias(graph):
    set_attribute(node_of(graph, "Gemm"), "beta", 0.5)


def unsigned_codes(graph):
    put_constant(graph, "layer.codes", np.ones((INPUTS, OUTPUTS), np.uint8))


def moving_zero_point(graph):
    quantize = node_of(graph, "QuantizeLinear")
    cast = helper.make_node("Cast", ["layer.activation_scale"], ["offset"], to=TensorProto.INT8)
    insert(graph, quantize, cast)
    node_of(graph, "QuantizeLinear").input[2] = "offset"


def no_zero_point_of_dequantizer(graph):
    del node_of(graph, "DequantizeLinear").input[2]


LAYER = "engine: policy.layer"
TWICE = f"{LAYER} is computed by 2 products"
NOT_INT4 = "expected [2, 48] along axis 0 in blocks of 128: one for each output"
NOT_INT8 = "expected [48] along axis 1 in blocks of 1: one for each output"


@pytest.mark.parametrize(
    ("name", "plant", "sentences"),
    [
        # The float copy of a weight that does the work.
        ("w8a8", beside_nothing,
         ["engine: gone multiplies by 'nothing', which is 0",
          "engine: copy is float32, and of no known layer"]),
        ("w8", lambda graph: beside_nothing(graph, factor=1e-30),
         ["engine: copy is float32, and of no known layer"]),
        ("w8", lambda graph: beside_nothing(graph, weight="layer.weight", factor=1e-30),
         [f"{LAYER} is float32, the recipe says w8 in float32",
          f"{TWICE} (layer.codes, layer.weight), expected one"]),
        ("w4", lambda graph: beside_nothing(graph, weight="layer.kept_weight", factor=1e-30),
         [f"{LAYER} keeps 200 of 256 channels in float"]),
        ("w4", disconnect,
         [f"{LAYER}: no output depends on it",
          f"{LAYER} is float32, the recipe says w4 in float32",
          f"{TWICE} (layer.codes, layer.weight), expected one"]),
        ("w8", alpha_of_nothing, [f"{LAYER}: it is multiplied by alpha = 0"]),
        ("float", half_of_the_bias, [f"{LAYER}: it is multiplied by beta = 0.5"]),
        ("w8", transposed_codes,
         [f"{LAYER}: its codes are not the second factor as they are, [K, N]"]),
        ("w8", constant_input, []),
        ("w8", unsigned_codes, [f"{LAYER} is uint8 in float32, the recipe says w8 in float32"]),
        ("float", lambda graph: put_constant(graph, "layer.weight", np.ones((OUTPUTS, INPUTS))),
         [f"{LAYER} is unknown, the recipe says float32"]),
        ("w8", convolution, ["engine: kernel is float32, and of no known layer"]),
        ("w8", foreign, ["engine: layer/Odd is a MatMul, which this audit cannot read"]),
        # An input's Q and its DQ.
        ("w8a8", unlike_scales,
         [f"{LAYER}: its input is quantized by 0.03125 and dequantized by 0.0625"]),
        ("w8a8", zero_point_of("QuantizeLinear"),
         [f"{LAYER}: the Q of its input has a zero point that is not 0"]),
        ("w8a8", zero_point_of("DequantizeLinear"),
         [f"{LAYER}: the DQ of its input has a zero point that is not 0"]),
        ("w8a8", zero_point_of("DequantizeLinear", 0, np.uint8),
         [f"{LAYER}: the DQ of its input has codes that are not int8"]),
        ("w8a8", moving_zero_point,
         [f"{LAYER}: the Q of its input has a zero point that is no constant"]),
        ("w8a8", no_zero_point_of_dequantizer, []),
        ("w8a8", unsigned,
         [f"{LAYER}: the Q of its input has no int8 zero point, so codes are unsigned"]),
        ("w8a8", scales_per_channel_of_input,
         [f"{LAYER}: the Q of its input has 200 scales, expected one"]),
        ("w8a8", moving_scale, [f"{LAYER}: the Q of its input has no constant scale"]),
        ("w8a8", no_quantizer, [f"{LAYER}: its input is dequantized, and was not quantized"]),
        ("w8a8", codes_of_the_caller,
         [f"{LAYER}: its input is dequantized, and was not quantized"]),
        ("w8a8", input_scale_is(0),
         [f"{LAYER}: the scale of the Q of its input is 0, not positive",
          f"{LAYER}: the scale of the DQ of its input is 0, not positive"]),
        ("float", rounded_input,
         [f"{LAYER}: its input is rounded to int8, and its weight is not"]),
        # A weight's scales.
        ("w8", scales_of(),
         [f"{LAYER}: its scales are [] along axis 1 in blocks of 1, {NOT_INT8}"]),
        ("w8", scales_of(1),
         [f"{LAYER}: its scales are [1] along axis 1 in blocks of 1, {NOT_INT8}"]),
        ("w8", scales_of(INPUTS, axis=0),
         [f"{LAYER}: its scales are [200] along axis 0 in blocks of 1, {NOT_INT8}"]),
        ("w8", scales_of(2, OUTPUTS, axis=0, block_size=100),
         [f"{LAYER}: its scales are [2, 48] along axis 0 in blocks of 100, {NOT_INT8}"]),
        ("w4", scales_of(OUTPUTS, axis=1, block_size=0),
         [f"{LAYER}: its scales are [48] along axis 1 in blocks of 1, {NOT_INT4}"]),
        ("w4", scales_of(4, OUTPUTS, block_size=64),
         [f"{LAYER}: its scales are [4, 48] along axis 0 in blocks of 64, {NOT_INT4}"]),
        ("w4", scales_of(1, OUTPUTS, block_size=256),
         [f"{LAYER}: its scales are [1, 48] along axis 0 in blocks of 256, {NOT_INT4}"]),
        ("w8", one_scale_is(0), [f"{LAYER}: a scale of its weight is 0, not positive"]),
        ("w8", one_scale_is(-1), [f"{LAYER}: a scale of its weight is -1, not positive"]),
        ("w8", one_scale_is(np.nan), [f"{LAYER}: a scale of its weight is nan, not positive"]),
        ("w8", one_scale_is(np.inf), [f"{LAYER}: a scale of its weight is inf, not positive"]),
        ("w8", weight_zero_points, [f"{LAYER}: its weight has a zero point that is not 0"]),
        ("w8", moving_weight_scales,
         [f"{LAYER}: its scales are no constants",
          f"{LAYER} is w8 in unknown, the recipe says w8 in float32"]),
        # What stands between weight and product.
        ("w8", between("Identity"),
         [f"{LAYER}: between its codes and the product stand Identity, DequantizeLinear"]),
        ("float", between("Cast", to=TensorProto.FLOAT),
         [f"{LAYER}: its weight is cast on the way"]),
        ("w8", first_factor,
         [f"{LAYER}: between its codes and the product stand Transpose, DequantizeLinear",
          f"{LAYER}: its codes are not the second factor as they are, [K, N]"]),
        ("w8", computed_weight,
         ["engine: 'layer.codes' is dequantized, and for no product with a weight",
          "engine: same: its weight is computed by a Div",
          "engine: same is unknown, and of no known layer",
          "policy.layer is in no engine, the recipe says w8"]),
        ("w8", quantized_bias,
         ["engine: 'bias_codes' is dequantized, and for no product with a weight"]),
    ],
)  # fmt: skip
def test_what_falsifies_a_product_is_said(name, plant, sentences, tmp_path):
    contents = {"engine": contents_of(tmp_path, name, change=plant)}
    rules = {"policy.layer": Rule("*", name)}
    assert audit(contents, {"engine": {"layer": "policy.layer"}}, rules, "float32") == sentences


def contents_by_hand(folder, *nodes, **constants):
    """Of a file of x [4, 4] -> y that nobody checks."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "by hand",
        [value("x", TensorProto.FLOAT, [4, 4])],
        [value("y", TensorProto.FLOAT, [4, 4])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(graph), folder / "hand.onnx")
    return read_contents(folder / "hand.onnx")


WEIGHT = np.ones((4, 4), np.float32)


@pytest.mark.parametrize(
    "op_type",
    [
        *("Attention", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "GRU"),
        *("LSTM", "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN"),
    ],
)
def test_whatever_else_adds_up_products_is_said(op_type, tmp_path):
    node = helper.make_node(op_type, ["x", "w"], ["y"])
    contents = contents_by_hand(tmp_path, node, w=WEIGHT)
    assert contents == Contents((), (f"y is a {op_type}, which this audit cannot read",))


def test_a_convolution_has_a_weight_as_any_product_has(tmp_path):
    kernel = np.ones((5, 4, 1, 1), np.float16)
    node = helper.make_node("Conv", ["x", "kernel"], ["y"])
    product = Product("kernel", (5, 4, 1, 1), Precision("float16", "float16"))
    assert contents_by_hand(tmp_path, node, kernel=kernel) == Contents((product,))
    node = helper.make_node("Conv", ["w", "x"], ["y"])
    contents = contents_by_hand(tmp_path, node, w=WEIGHT)
    assert "y is a Conv whose weight is computed" in contents.faults


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_operators_of_onnx_are_known_by_both_names_of_it(domain, tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], domain=domain)
    product = Product("w", (4, 4), Precision("float32", "float32"))
    assert contents_by_hand(tmp_path, node, w=WEIGHT) == Contents((product,))


@pytest.mark.parametrize(
    "op_type", ["Transpose", "Reshape", "Identity", "Unsqueeze", "Squeeze", "Expand"]
)
def test_a_weight_is_known_behind_what_passes_it_on(op_type, tmp_path):
    nodes = [
        helper.make_node(op_type, ["w"], ["passed"]),
        helper.make_node("MatMul", ["x", "passed"], ["y"]),
    ]
    product = Product("w", (4, 4), Precision("float32", "float32"))
    assert contents_by_hand(tmp_path, *nodes, w=WEIGHT) == Contents((product,))


@pytest.mark.parametrize("order", [0, 1])
def test_a_weight_may_be_either_factor_and_two_activations_are_no_product_with_a_weight(
    order, tmp_path
):
    names = ["x", "w"][::-1] if order else ["x", "w"]
    one = contents_by_hand(tmp_path, helper.make_node("MatMul", names, ["y"]), w=WEIGHT)
    assert [product.weight for product in one.products] == ["w"]
    square = contents_by_hand(tmp_path, helper.make_node("MatMul", ["x", "x"], ["y"]))
    assert square == Contents(())


def test_a_weight_in_a_constant_node_is_computed(tmp_path):
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT))
    contents = contents_by_hand(tmp_path, constant, helper.make_node("MatMul", ["x", "w"], ["y"]))
    assert contents.products == (
        Product(
            "w", (), Precision("unknown", "unknown"), ("its weight is computed by a Constant",)
        ),
    )


@pytest.mark.parametrize(
    ("op_type", "values", "said"),
    [("Mul", 0 * WEIGHT, True), ("Mul", WEIGHT, False), ("Mul", np.eye(4), False),
     ("Add", 0 * WEIGHT, False)],
)  # fmt: skip
def test_a_product_by_zeros_is_said_wherever_it_stands(op_type, values, said, tmp_path):
    for names in (["x", "c"], ["c", "x"]):
        node = helper.make_node(op_type, names, ["y"], name="here")
        faults = contents_by_hand(tmp_path, node, c=values).faults
        assert faults == (("here multiplies by 'c', which is 0",) if said else ())


def test_a_product_that_another_output_needs_is_used(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Add", ["x", "a"], ["y"]),
    ]
    contents = contents_by_hand(tmp_path, *nodes, w=WEIGHT, v=WEIGHT)
    assert [product.faults for product in contents.products] == [
        (), ("no output depends on it",)
    ]  # fmt: skip
