"""The smallest engine: ports x, y -> z = x + y."""

from pathlib import Path

import onnx
from onnx import helper


def write_adder(path: Path, shape: tuple[int, ...], element: int = onnx.TensorProto.FLOAT) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "y"], ["z"])],
        "adder",
        [value(n, element, shape) for n in "xy"],
        [value("z", element, shape)],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path
