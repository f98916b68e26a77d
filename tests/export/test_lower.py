"""A lowered graph has the types that were promised, and its twin computes what torch computes."""

import ast
import copy
import functools
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from export.engines.lower import FLOAT32_OPS, float32_nodes, lower, modules_beside, twin
from export.engines.onnx_file import export_graph, save
from models.networks.layers import GeluMLP, RMSNorm, SelfAttention
from tests.export.conftest import (
    KINDS,
    ROUNDING,
    Engine,
    lowered,
    normal,
    run_onnx,
    spec_of,
    types_of,
)
from tests.oracles import relative_error

WIDTH, HEADS, TOKENS = 128, 4, 64
PRODUCTS = ("MatMul", "Gemm")


class Layer(nn.Module):
    """What a policy's networks are made of."""

    def __init__(self):
        super().__init__()
        self.norm, self.second = RMSNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = SelfAttention(WIDTH, HEADS)
        self.mlp = GeluMLP(WIDTH, 2 * WIDTH, approximate="none")

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.mlp(self.second(x))


class Policy(nn.Module):
    """A layer, a product, and arithmetic at the top level."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = Layer(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.last(self.layer(x)) * 0.5 + x


def layer():
    return Engine(Layer())


def activations():
    return Engine(Activations())


class TwoPorts(nn.Module):
    """The first output is also what the second one is computed from."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        y = self.first(x)
        return y, self.second(y)


def seeded(module):
    """Every weight different from its start, so that no two are merged into one."""
    random = np.random.default_rng(5)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.from_numpy(random.standard_normal(value.shape, np.float32))
            noise /= value.shape[1] ** 0.5 if value.ndim > 1 else 10
            value.copy_(1 + noise if "norm" in name or "second.weight" in name else noise)
    return module.requires_grad_(False).eval()


@functools.cache
def traced(make):
    """A module and its float32 graph. Tracing takes a second, so copies are what is lowered."""
    module = seeded(make())
    return module, export_graph(spec_of(module, TOKENS, WIDTH), opset=18)


def scope(node):
    """Module and function that the exporter says a node is from."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            return tuple(ast.literal_eval(entry.value)[-2:])
    return (None, "")


@pytest.fixture(scope="module")
def policy(base):
    return lowered(*traced(Policy), base)


def test_the_types_in_the_file_are_those_that_onnx_infers(policy):
    inferred = types_of(policy)
    written = {v.name: v.type.tensor_type.elem_type for v in policy.graph.value_info}
    assert {name: inferred[name] for name in written} == written
    made = {name for node in policy.graph.node for name in node.output}
    assert made - written.keys() == {"y"}


def test_products_take_and_give_the_base_format(policy, kind):
    types = types_of(policy)
    products = [node for node in policy.graph.node if node.op_type in PRODUCTS]
    assert len(products) == 7  # qkv, scores, values, proj, fc1, fc2, last
    for node in products:
        assert {types[n] for n in (*node.input, *node.output)} == {kind}, scope(node)


def test_sums_between_layers_are_in_the_base_format(policy, kind):
    types = types_of(policy)
    sums = [n for n in policy.graph.node if scope(n)[0] == "layer" and n.op_type == "Add"]
    assert [types[n.output[0]] for n in sums] == [kind, kind]


def test_softmax_in_the_base_leaves_no_cast_between_the_products_of_attention(base, kind):
    module, exact = traced(Policy)
    model = copy.deepcopy(exact)
    kept = float32_nodes(model, module, modules=(), tensors=(), softmax="base")
    lower(model, base, kept, opset=20)
    types, made = types_of(model), {name: n for n in model.graph.node for name in n.output}
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    assert {types[n] for n in (*softmax.input, *softmax.output)} == {kind}
    assert made[softmax.input[0]].op_type in PRODUCTS
    (reader,) = (n for n in model.graph.node if softmax.output[0] in n.input)
    assert reader.op_type in PRODUCTS
    others = [n for n in model.graph.node if n.op_type in FLOAT32_OPS - {"Softmax"}]
    assert others and {types[node.output[0]] for node in others} == {TensorProto.FLOAT}
    x = normal(TOKENS, WIDTH)
    want, got = run_onnx(exact, x), run_onnx(twin(model), x)
    assert 0 < relative_error(got, want) <= 4 * ROUNDING[base]


@pytest.mark.parametrize(
    ("what", "count"),
    [
        (lambda node: scope(node)[0] == "layer.norm", 6),
        (lambda node: node.op_type == "LayerNormalization", 1),
        (lambda node: node.op_type == "Softmax", 1),
        (lambda node: scope(node)[1] == "gelu", 5),
        (lambda node: scope(node)[0] == "", 2),
    ],
    ids=["rms norm", "layer norm", "softmax", "activation function", "top level"],
)
def test_stays_float32(policy, what, count):
    types = types_of(policy)
    nodes = [node for node in policy.graph.node if what(node)]
    assert len(nodes) == count
    for node in nodes:
        found = {types[name] for name in (*node.input, *node.output)} - {TensorProto.INT64}
        assert found == {TensorProto.FLOAT}, node.op_type


@pytest.mark.parametrize("make", [Policy, TwoPorts])
def test_ports_keep_name_and_float32(make, base):
    module, model = traced(make)
    spec, graph = spec_of(module, TOKENS, WIDTH), lowered(module, model, base).graph
    for ports, values in ((spec.inputs, graph.input), (spec.outputs, graph.output)):
        assert [v.name for v in values] == list(ports)
        assert {v.type.tensor_type.elem_type for v in values} == {TensorProto.FLOAT}


def test_an_output_that_is_used_inside_is_passed_on_in_the_base_format(base, kind):
    """The first port is a product of two rounded factors, rounded: three roundings."""
    module, model = traced(TwoPorts)
    model = lowered(module, model, base)
    products = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert [types_of(model)[node.input[0]] for node in products] == [kind, kind]
    x = normal(TOKENS, WIDTH)
    want = module(torch.from_numpy(x))[0]
    assert 0 < relative_error(run_onnx(twin(model), x), want) <= 3 * ROUNDING[base]


def test_weights_of_products_are_stored_in_the_base_format_and_in_no_other(policy, kind):
    weights = {t.name: t for t in policy.graph.initializer}
    large = {name for name, t in weights.items() if len(t.dims) == 2}
    assert len(large) == 5
    assert {weights[name].data_type for name in large} == {kind}
    floats = {n for n, t in weights.items() if t.data_type == TensorProto.FLOAT and t.dims}
    assert floats == {"layer.norm.weight", "layer.second.weight", "layer.second.bias"}


def test_stored_weights_are_the_nearest_numbers_of_the_format(base):
    module, model = traced(Policy)
    weights = {t.name: t for t in lowered(module, model, base).graph.initializer}
    stored = numpy_helper.to_array(weights["last.weight/low"]).astype(np.float32)
    rounded = module.last.weight.to(getattr(torch, base)).float().numpy()
    assert np.array_equal(stored, rounded)


def test_the_file_passes_the_checker(policy, tmp_path):
    copy = onnx.ModelProto()
    copy.CopyFrom(policy)
    file = save(copy, tmp_path / "engine.onnx")
    onnx.checker.check_model(str(file.path), full_check=True)


def by_hand(layer, x, kind):
    """`Layer` in torch's own `kind`: norms, softmax and GELU in float32, all else rounded.

    Constants too: torch by itself would multiply with the scale of the scores in float32.
    """

    def low(values):
        return values.to(kind)

    def linear(module, values):
        return functional.linear(values, low(module.weight), low(module.bias))

    normed = functional.rms_norm(x, (WIDTH,), layer.norm.weight, 1e-6)
    heads = linear(layer.attention.qkv, low(normed)).view(TOKENS, 3, HEADS, -1)
    q, k, v = heads.permute(1, 2, 0, 3)
    scores = (q * low(torch.tensor((WIDTH // HEADS) ** -0.5))) @ k.transpose(1, 2)
    attended = low(torch.softmax(scores.float(), -1)) @ v
    x = low(x) + linear(layer.attention.proj, attended.transpose(0, 1).reshape(TOKENS, WIDTH))
    second = layer.second
    normed = functional.layer_norm(x.float(), (WIDTH,), second.weight, second.bias)
    hidden = linear(layer.mlp.fc1, low(normed))
    return (x + linear(layer.mlp.fc2, low(functional.gelu(hidden.float())))).float()


def test_the_twin_computes_what_torch_computes_in_the_format(base):
    """Both round at the same places, so what is left are sums of float32 numbers in another order:
    off by some sqrt(256) * 2^-24, they fall to the other side of a tie in one of a hundred numbers
    for float16 and of a thousand for bfloat16. A hundredth of the numbers off by two roundings is
    a fifth of a rounding in the norm; half of one is allowed, and no rounding is left out unseen.
    """
    module, model = traced(layer)
    x = normal(TOKENS, WIDTH)
    want = by_hand(module.layer, torch.from_numpy(x), getattr(torch, base))
    got = run_onnx(twin(lowered(module, model, base)), x)
    assert relative_error(got, want) <= ROUNDING[base] / 2
    exact = module(torch.from_numpy(x))
    assert relative_error(exact, want) > ROUNDING[base] / 2, "the bound would see no rounding"


class Activations(nn.Module):
    """Every way to an activation function, and two operators beside them."""

    def __init__(self):
        super().__init__()
        self.first, self.silu, self.gelu = nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.GELU()

    def forward(self, x):
        x = self.first(x)
        x = functional.relu(self.silu(x) * torch.sigmoid(x))
        x = functional.silu(functional.gelu(self.gelu(x), approximate="tanh"))
        x = functional.layer_norm(torch.softmax(x, -1), (WIDTH,))
        return torch.erf(torch.tanh(x))


def test_activation_functions_stay_float32_however_they_are_written(base, kind):
    model = lowered(*traced(activations), base)
    types = types_of(model)
    made = {name: node for node in model.graph.node for name in node.output}
    names = [node.name for node in model.graph.node if node.op_type != "Cast"]
    low = {"layer.first/Gemm", "layer/Relu", "layer/Mul"}
    assert low <= set(names)
    assert {made[n].op_type for n in made} >= {*FLOAT32_OPS, "Div", "Pow", "Mul"}
    for node in model.graph.node:
        if node.op_type != "Cast":
            want = kind if node.name in low else TensorProto.FLOAT
            assert {types[name] for name in (*node.input, *node.output)} == {want}, node.name


class Halves(nn.Module):
    """Splits, which the exporter's optimizer makes and names no module for."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH // 2, 8)

    def forward(self, x):
        a, b = self.first(x).chunk(2, -1)
        c, d = (torch.cat([b, a], -1) * 2).chunk(2, -1)
        e, f = x.chunk(2, -1)
        return self.second(a) + self.second(b), c, d, e, f


def test_a_split_moves_numbers_in_the_format_that_they_have(base, kind):
    module, exact = traced(Halves)
    splits = [node for node in exact.graph.node if node.op_type == "Split"]
    assert [scope(node) for node in splits] == 3 * [(None, "")]
    model = lowered(module, exact, base)
    types = types_of(model)
    splits = [node for node in model.graph.node if node.op_type == "Split"]
    assert [types[node.input[0]] for node in splits] == [kind, *2 * [TensorProto.FLOAT]]
    assert [types[node.output[1]] for node in splits] == [kind, *2 * [TensorProto.FLOAT]]


class Shared(nn.Module):
    """A table that is added inside of a module and outside of it."""

    class Inner(nn.Module):
        def __init__(self, table):
            super().__init__()
            self.table = table

        def forward(self, x):
            return functional.relu(x + self.table)

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(WIDTH))
        self.inner = Shared.Inner(self.table)

    def forward(self, x):
        return self.inner(x) * self.table


def test_a_constant_of_both_formats_is_stored_in_both(base, kind):
    module, exact = traced(Shared)
    model = lowered(module, exact, base)
    weights = {t.name: t for t in model.graph.initializer}
    assert {n: t.data_type for n, t in weights.items() if "table" in n} == {
        "inner.table": TensorProto.FLOAT, "inner.table/low": kind
    }  # fmt: skip
    assert np.array_equal(numpy_helper.to_array(weights["inner.table"]), module.table.numpy())
    x = normal(TOKENS, WIDTH)
    low = functional.relu(
        torch.from_numpy(x).to(getattr(torch, base)) + module.table.to(getattr(torch, base))
    )
    assert np.array_equal(run_onnx(twin(model), x), (low.float() * module.table).numpy())


def test_modules_beside_a_tensor_are_those_that_make_and_that_read_it():
    module, model = traced(Policy)
    outputs = {scope(n)[0]: n.output[0] for n in model.graph.node if n.op_type == "Gemm"}
    assert modules_beside(model, {outputs["layer.mlp.fc1"]}) == {"layer.mlp.fc1", "layer.mlp"}
    assert modules_beside(model, {outputs["last"]}) == {"last", ""}
    assert modules_beside(model, {"x"}) == {"layer.norm", "layer", ""}
    assert modules_beside(model, ()) == set()
    (split,) = [n for n in traced(Halves)[1].graph.node if n.op_type == "Split"][:1]
    assert modules_beside(traced(Halves)[1], {split.output[0]}) == {"", "second"}


@pytest.mark.parametrize(("asked", "got"), [(17, 18), (18, 18), (20, 20), (21, 21)])
def test_a_lowered_graph_has_at_least_the_opset_that_is_asked_for(asked, got):
    module, exact = traced(TwoPorts)
    model = copy.deepcopy(exact)
    model.opset_import.append(helper.make_opsetid("pkg.elsewhere", 1))
    lower(model, "bfloat16", float32_nodes(model, module, modules=(), tensors=()), asked)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    assert versions[""] == got and versions["pkg.elsewhere"] == 1


def test_a_tensor_of_unknown_type_is_refused_by_name():
    module, exact = traced(TwoPorts)
    model = copy.deepcopy(exact)
    model.opset_import.append(helper.make_opsetid("pkg.elsewhere", 1))
    node = model.graph.node[0]
    odd = helper.make_node("Odd", [node.output[0]], ["odd"], domain="pkg.elsewhere")
    model.graph.node.insert(1, odd)
    with pytest.raises(ValueError, match=r"^tensor 'odd' has no type in the exported graph$"):
        lower(model, "bfloat16", set(), 20)


def test_a_tensor_is_cast_once_for_all_that_read_it(policy):
    casts = Counter(
        (node.input[0], node.attribute[0].i) for node in policy.graph.node if node.op_type == "Cast"
    )
    assert casts and set(casts.values()) == {1}


def low_node(op_type, kind=TensorProto.BFLOAT16):
    """A graph of one node with a result of `kind`."""
    value = functools.partial(helper.make_tensor_value_info, shape=[4])
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x"], ["y"])],
        "one",
        [value("x", TensorProto.FLOAT)],
        [],
        value_info=[value("y", kind)],
    )
    return helper.make_model(graph)


@pytest.mark.parametrize(
    "op_type",
    [
        *("Concat", "Expand", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze", "DequantizeLinear"),
    ],
)
def test_a_twin_does_not_round_what_only_moves(op_type):
    """Nor codes times scales: a compiler multiplies them inside of the product."""
    assert [node.op_type for node in twin(low_node(op_type)).graph.node] == [op_type]


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("op_type", ["Add", "MatMul", "Relu", "LayerNormalization"])
def test_a_twin_rounds_every_other_result_there_and_back(op_type, kind):
    made = twin(low_node(op_type, kind)).graph
    assert [node.op_type for node in made.node] == [op_type, "Cast", "Cast"]
    assert [node.attribute[0].i for node in made.node[1:]] == [kind, TensorProto.FLOAT]
    assert [(node.input[0], node.output[0]) for node in made.node] == [
        ("x", "y/exact"), ("y/exact", "y/rounded"), ("y/rounded", "y")
    ]  # fmt: skip
    assert made.value_info[0].type.tensor_type.elem_type == TensorProto.FLOAT
    float32 = twin(low_node(op_type, TensorProto.FLOAT)).graph
    assert [node.op_type for node in float32.node] == [op_type]


def test_constants_of_a_twin_are_the_stored_numbers(base, kind):
    model = lowered(*traced(Policy), base)
    stored = {t.name: t for t in model.graph.initializer}
    made = {t.name: t for t in twin(model).graph.initializer}
    assert stored.keys() == made.keys()
    for name, tensor in stored.items():
        was_low = tensor.data_type == kind
        assert made[name].data_type == (TensorProto.FLOAT if was_low else tensor.data_type)
        values = numpy_helper.to_array(tensor).astype(np.float32)
        assert np.array_equal(numpy_helper.to_array(made[name]), values)


def test_a_float16_file_runs_as_it_is_and_equals_its_twin():
    """ONNX Runtime leaves out casts there and back, so both differ by the rounding of ten places,
    which adds as its root: sqrt(10) * 2^-11 / sqrt(3), that is two roundings."""
    x = normal(TOKENS, WIDTH)
    model = lowered(*traced(layer), "float16")
    assert relative_error(run_onnx(model, x), run_onnx(twin(model), x)) <= 2 * ROUNDING["float16"]


def test_the_twin_rounds_and_computes_in_float32(policy, kind):
    before = policy.SerializeToString()
    made = twin(policy)
    assert policy.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    types = types_of(made)
    low = {name for name, found in types.items() if found == kind}
    casts = {
        name: node for node in made.graph.node for name in node.output if node.op_type == "Cast"
    }
    assert low and low <= casts.keys()
    for name in low:
        (reader,) = [node for node in made.graph.node if name in node.input]
        assert reader.op_type == "Cast" and types[reader.output[0]] == TensorProto.FLOAT


def test_the_twin_of_a_float32_graph_is_that_graph():
    _, model = traced(Policy)
    assert twin(model).SerializeToString() == model.SerializeToString()


def test_layers_that_are_to_stay_float32_do(base, kind):
    module, model = traced(Policy)
    model = lowered(module, model, base, modules={"last"})
    types = types_of(model)
    (last,) = [node for node in model.graph.node if scope(node)[0] == "last"]
    assert {types[name] for name in (*last.input, *last.output)} == {TensorProto.FLOAT}
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert np.array_equal(weights["last.weight"], module.last.weight.numpy())
    others = [n for n in model.graph.node if n.op_type in PRODUCTS and n is not last]
    assert {types[n.output[0]] for n in others} == {kind}


def test_what_touches_a_tensor_beyond_the_range_stays_float32(base, kind):
    module, model = traced(Policy)
    (hidden,) = [n.output[0] for n in model.graph.node if scope(n)[0] == "layer.mlp.fc1"]
    model = lowered(module, model, base, tensors={hidden})
    types = types_of(model)
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            island = scope(node)[0] == "layer.mlp.fc1"
            assert types[node.output[0]] == (TensorProto.FLOAT if island else kind), scope(node)


def test_a_weight_that_float16_cannot_hold_is_refused_by_name():
    module, model = traced(Policy)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    (weight,) = [t for t in changed.graph.initializer if t.name == "layer.mlp.fc1.weight"]
    values = numpy_helper.to_array(weight).copy()
    values[5, 7] = -70_000
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    message = r"layer\.mlp\.fc1\.weight: 7e\+04 leaves float16, which ends at 65504: keep this in"
    with pytest.raises(ValueError, match=message):
        lowered(module, changed, "float16")
    lowered(module, changed, "bfloat16")
    lowered(module, changed, "float16", modules={"layer.mlp.fc1"})
