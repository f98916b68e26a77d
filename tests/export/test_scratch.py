"""A bound on scratch memory, from the graph alone."""

import onnx
import pytest
from onnx import TensorProto, helper

import runtime
from export.engines.scratch import unfused_scratch_bytes

ROW = 4 * 8
"""Bytes of the tensors."""


def write(path, nodes, *, tensors, weights=()):
    """x -> y; all tensors are float32 [8]."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, inputs, outputs) for op, inputs, outputs in nodes],
        "graph",
        [info("x", TensorProto.FLOAT, [8])],
        [info("y", TensorProto.FLOAT, [8])],
        initializer=list(weights),
        value_info=[info(name, TensorProto.FLOAT, [8]) for name in tensors],
    )
    onnx.save(helper.make_model(graph), path)
    return path


@pytest.mark.parametrize(
    ("nodes", "tensors", "rows"),
    [
        ([("Neg", "x", "y")], "", 0),
        ([("Neg", "x", "a"), ("Neg", "a", "b"), ("Neg", "b", "y")], "ab", 2),
        ([("Neg", "x", "a"), ("Neg", "x", "b"), ("Neg", "x", "c"), ("Sum", "abc", "y")], "abc", 3),
        ([("Neg", "x", "a"), ("Neg", "a", "b"), ("Neg", "b", "c"), ("Add", "cx", "y")], "abc", 2),
        ([("Neg", "x", "a"), ("Identity", "a", "b"), ("Neg", "b", "y")], "ab", 1),
        ([("Neg", "x", "a"), ("Identity", "a", "b"), ("Neg", "x", "c"), ("Add", "bc", "y")],
         "abc", 2),
    ],
    ids=["nothing between", "a chain", "all at once", "let go", "a view", "a view that lives on"],
)  # fmt: skip
def test_what_lives_at_once_is_counted(nodes, tensors, rows, tmp_path):
    path = write(tmp_path / "engine.onnx", nodes, tensors=tensors)
    assert unfused_scratch_bytes(path) == rows * ROW


def test_weights_that_are_dequantized_are_no_scratch(tmp_path):
    codes = helper.make_tensor("w", TensorProto.INT8, [8], [1] * 8)
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.5])
    nodes = [("DequantizeLinear", "ws", "a"), ("Neg", "x", "b"), ("Add", "ab", "y")]
    path = write(tmp_path / "engine.onnx", nodes, tensors="ab", weights=[codes, scale])
    assert unfused_scratch_bytes(path) == ROW


def test_the_demo_bundle_says_it_for_every_engine(demo_bundle):
    for name, entry in runtime.read_bundle(demo_bundle).manifest.engines.items():
        if name != "project":  # one product, from input to output
            assert entry.unfused_scratch_bytes > 0, name
        assert entry.unfused_scratch_bytes < 8 << 20
