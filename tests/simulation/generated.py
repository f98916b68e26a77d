"""Random graphs: parts that overlap partially, engines and host functions in any order.

All arithmetic is on whole numbers that float32 holds exactly, so the runtime on the simulated GPU
and `in_order` here, plain numpy over all stages, agree to the bit or one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from runtime.declarations import Tensor
from runtime.functions.function import Function
from runtime.graph import Graph, Stage
from tests.graphs import leaves, vectors

UNIT = 64
"""Elements: 256 bytes, so every part may be a port."""
INPUTS = ("slow", "quick")
FUNCTION = "generated"
LIMIT = 97
"""Host functions keep their numbers below it; a chain of 12 engines doubles them 12 times."""


class Generator:
    """Makes one graph and remembers where each tensor lies."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.tensors: dict[str, Tensor] = {}
        self.stages: list[Stage] = []
        self.written: dict[str, np.ndarray] = {}
        self.free: list[tuple[str, int, int]] = []
        """Windows that nobody writes yet: root, first unit, one past the last."""
        self.reads: set[str] = set()

    def graph(self) -> Graph:
        for number in range(int(self.random.integers(3, 6))):
            self._add_root(f"r{number}")
        for number in range(int(self.random.integers(6, 13))):
            if self.free:
                self._add_stage(f"s{number}", is_host=number == 0 or self.random.random() < 0.3)
        windows = [self._window() for _ in range(3)]
        return Graph(
            inputs=vectors(*INPUTS, width=UNIT),
            tensors=self.tensors,
            stages=tuple(self.stages),
            outputs=leaves(*windows),
        )

    def _add_root(self, name: str) -> None:
        units = int(self.random.integers(2, 7))
        self.tensors[name] = Tensor(shape=(units * UNIT,))
        self.written[name] = np.zeros(units, bool)
        cuts = sorted({0, units, *self.random.integers(1, units, 2).tolist()})
        self.free += [(name, a, b) for a, b in zip(cuts, cuts[1:], strict=False)]

    def _add_stage(self, name: str, *, is_host: bool) -> None:
        inputs: dict[str, str] = {}
        if self.stages:
            inputs = {"x": self._window(), "y": self._window()}
        if is_host:
            inputs["value"] = INPUTS[int(self.random.random() < 0.6)]
        count = 1 + int(self.random.random() < 0.3 and len(self.free) > 1)
        outputs = {}
        for port in ("z", "w")[:count]:
            root, a, b = self.free.pop(int(self.random.integers(len(self.free))))
            outputs[port] = self._part(root, a, b)
        if is_host:
            params = {"salt": len(self.stages)}
            stage = Stage(
                name=name, function=FUNCTION, inputs=inputs, outputs=outputs, params=params
            )
        else:
            sizes = [self.tensors[t].size // UNIT for t in (*inputs.values(), *outputs.values())]
            engine = "mix" + "-".join(map(str, sizes))
            stage = Stage(name=name, engine=engine, inputs=inputs, outputs=outputs)
        self.stages.append(stage)
        for target in outputs.values():
            root, first, last = self._extent(target)
            self.written[root][first:last] = True

    def _window(self) -> str:
        """Any part that is wholly written; it may reach over several writers."""
        while True:
            root = str(self.random.choice(list(self.written)))
            units = len(self.written[root])
            a, b = sorted(self.random.integers(0, units + 1, 2).tolist())
            if a < b and self.written[root][a:b].all():
                return self._part(root, a, b)

    def _part(self, root: str, a: int, b: int) -> str:
        name = f"{root}[{a}:{b}]"
        self.tensors.setdefault(name, Tensor(shape=((b - a) * UNIT,), part_of=(root, a * UNIT)))
        return name

    def _extent(self, name: str) -> tuple[str, int, int]:
        part = self.tensors[name].part_of
        assert part is not None
        return part[0], part[1] // UNIT, part[1] // UNIT + self.tensors[name].size // UNIT


def write_engine(folder: Path, name: str) -> Path:
    """z = x + y, w = x - y, every port of so many units as the name says, repeated to fit."""
    path = folder / f"{name}.onnx"
    if path.exists():
        return path
    sizes = [int(units) * UNIT for units in name.removeprefix("mix").split("-")]
    ports = dict(zip(("x", "y", "z", "w"), sizes, strict=False))
    nodes, constants = [], []
    for out, operator in (("z", "Add"), ("w", "Sub")):
        if out not in ports:
            continue
        for source in ("x", "y"):
            rows = np.arange(ports[out]) % ports[source]
            constants.append(numpy_helper.from_array(rows, f"{source}_{out}_rows"))
            taken = [f"{source}_{out}"]
            nodes.append(helper.make_node("Gather", [source, f"{source}_{out}_rows"], taken))
        nodes.append(helper.make_node(operator, [f"x_{out}", f"y_{out}"], [out]))
    infos = {
        port: helper.make_tensor_value_info(port, onnx.TensorProto.FLOAT, [size])
        for port, size in ports.items()
    }
    graph = helper.make_graph(
        nodes,
        name,
        [infos["x"], infos["y"]],
        [infos[port] for port in ("z", "w") if port in infos],
        constants,
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def host_function(params: Mapping[str, Any], resources: Any) -> Callable[..., None]:
    """Made by `GENERATED`."""

    def run(values: Mapping[str, Any], out: Mapping[str, np.ndarray]) -> None:
        for number, target in enumerate(out.values()):
            total = np.full(target.shape, params["salt"] + number, np.float32)
            for source in values.values():
                total += np.resize(source, target.shape)
            target[...] = np.mod(total, LIMIT)

    return run


GENERATED = Function(params=dict, make=host_function, inputs={}, outputs=())
"""For `runtime.functions.calls.FUNCTIONS`, under the name `FUNCTION`."""


def in_order(graph: Graph, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor after every stage ran once in its turn."""
    roots = {name: np.zeros(graph.tensors[name].size, np.float32) for name in graph.roots}
    views = {}
    for name in graph.tensors:
        root, start, stop = graph.extent(name)
        views[name] = roots[root][start:stop]
    for stage in graph.stages:
        given = {p: values[s] if s in values else views[s] for p, s in stage.inputs.items()}
        if stage.function:
            out = {port: views[name] for port, name in stage.outputs.items()}
            host_function(stage.params, None)(given, out)
            continue
        for port, name in stage.outputs.items():
            x, y = (np.resize(given[source], views[name].shape) for source in ("x", "y"))
            views[name][...] = x + y if port == "z" else x - y
    return views
