"""What the export's tests share: a policy that exports in seconds, and layers of every format."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import nn

from export.build import build
from export.config import DEMO_OPTIONS, BuildConfig
from export.engines.lower import float32_nodes, lower
from export.engines.onnx_file import export_graph, save
from export.engines.products import Contents, read_contents
from models.checkpoint import write_random_checkpoint
from models.demo import CHECKPOINT
from models.families import CONFIGS
from models.init import image_of, statistics_of
from models.networks.engines import EngineSpec
from models.policy_config import PolicyConfig
from quant.formats import int4_blocks, int8_per_channel, pad_inputs, up_to_bfloat16
from quant.modules import QuantLinear
from runtime.backends.onnxruntime_module import ort
from runtime.declarations import Tensor
from tests.once import once

INPUTS, OUTPUTS, ROWS = 200, 48, 24
KINDS = {"bfloat16": TensorProto.BFLOAT16, "float16": TensorProto.FLOAT16}
ROUNDING = {"bfloat16": 2.0**-9, "float16": 2.0**-11}
"""Largest relative error of rounding one number."""


def write_random(folder: Path, config: PolicyConfig) -> None:
    """A checkpoint with random weights of seed 0 and the demo's tokenizer."""
    write_random_checkpoint(
        folder,
        config,
        tokenizer=CHECKPOINT / "tokenizer.json",
        image=image_of(config),
        statistics=statistics_of(config),
        seed=0,
    )


def cut_config(checkpoint: Path, out: Path, recipe: str, **changes: Any) -> BuildConfig:
    """An export of the demo's shapes without what takes long."""
    fields = {
        "recipe": recipe,
        "checkpoint": checkpoint,
        "out": out,
        "max_observations": 4,
        "verdicts": out.with_name("none.json"),
        "yardsticks": False,
        "compile_check": False,
        **DEMO_OPTIONS,
    }
    return BuildConfig(**{**fields, **changes})


def random_checkpoint(shared_folder: Path, name: str) -> Path:
    """Of a named configuration, written once for all workers."""
    return once(
        shared_folder / f"{name}-checkpoint", lambda out: write_random(out, CONFIGS[name]())
    )


def random_bundle(shared_folder: Path, name: str) -> Path:
    """The same in float32, exported once for all workers."""
    folder = random_checkpoint(shared_folder, name)
    return once(
        shared_folder / name,
        lambda out: build(
            cut_config(folder, out, "float32", calibration=None, held_out=None, tokens=None)
        ),
    )


@pytest.fixture(scope="session")
def exported(cut_checkpoint: Path, shared_folder: Path) -> Callable[[str], Path]:
    """Recipe -> bundle of the cut policy, exported once. Tests must not write into it."""

    def export(recipe: str) -> Path:
        return once(
            shared_folder / f"cut-{recipe}",
            lambda out: build(cut_config(cut_checkpoint, out, recipe)),
        )

    return export


def spec_of(module: nn.Module, rows: int, width: int) -> EngineSpec:
    """An engine of one input `x` [rows, width]; its outputs are `y`, `y1` and so on."""
    with torch.no_grad():
        results = module.eval()(torch.zeros(rows, width))
    results = results if isinstance(results, tuple) else (results,)
    ports = [f"y{n or ''}" for n in range(len(results))]
    return EngineSpec(
        module,
        {"x": Tensor(shape=(rows, width))},
        {p: Tensor(shape=tuple(r.shape)) for p, r in zip(ports, results, strict=True)},
    )


def run_onnx(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first output, by ONNX Runtime as the runtime configures it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    output: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return output


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def quant_linear(kind: str) -> QuantLinear:
    """[INPUTS] -> [OUTPUTS] in a format; `outliers` keeps two channels out of w8a8."""
    weight_KN = normal(INPUTS, OUTPUTS, seed=1) / np.float32(INPUTS**0.5)
    bias = nn.Parameter(torch.from_numpy(normal(OUTPUTS, seed=2)), requires_grad=False)
    if kind == "w4":
        codes = int4_blocks(pad_inputs(weight_KN, 128), round_scales=up_to_bfloat16)
        return QuantLinear(codes, bias, None)
    if kind == "outliers":
        rows, stays_K = np.array([3, 70]), np.ones(INPUTS, np.float32)
        stays_K[rows] = 0
        codes = int8_per_channel(weight_KN * stays_K[:, None], round_scales=up_to_bfloat16)
        kept = (rows, weight_KN[rows])
        return QuantLinear(codes, bias, 2**-5, input_factor=stays_K, kept=kept)
    codes = int8_per_channel(weight_KN, round_scales=up_to_bfloat16)
    return QuantLinear(codes, bias, 2**-5 if kind == "w8a8" else None)


class Engine(nn.Module):
    """A layer one level down: what an engine's own forward does stays float32."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


@functools.cache
def traced_layer(kind: str) -> tuple[Engine, onnx.ModelProto]:
    """An engine that holds a layer (`float`, or as `quant_linear` says), and its float32 graph.

    Tracing takes a second, so it is done once, and copies are what is changed.
    """
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, OUTPUTS) if kind == "float" else quant_linear(kind)
    engine = Engine(layer.requires_grad_(False))
    return engine, export_graph(spec_of(engine, ROWS, INPUTS), opset=21 if kind == "w4" else 18)


def contents_of(
    folder: Path,
    kind: str,
    base: str = "float32",
    *,
    modules: Collection[str] = (),
    change: Callable[[onnx.GraphProto], object] | None = None,
) -> Contents:
    """What is read from the file of an engine, after `change` to its graph."""
    engine, exact = traced_layer(kind)
    model = copy.deepcopy(exact)
    if base != "float32":
        kept = float32_nodes(model, engine, modules=modules, tensors=())
        lower(model, base, kept, 21 if kind == "w4" else 20)
    if change is not None:
        change(model.graph)
    return read_contents(save(model, folder / "engine.onnx").path)


def put_constant(graph: onnx.GraphProto, name: str, values: NDArray[Any]) -> None:
    """An initializer, in place of one of that name."""
    old = [t for t in graph.initializer if t.name == name]
    (old[0] if old else graph.initializer.add()).CopyFrom(numpy_helper.from_array(values, name))


def rename_constant(graph: onnx.GraphProto, old: str, new: str) -> None:
    (tensor,) = (t for t in graph.initializer if t.name == old)
    tensor.name = new
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def lowered(
    module: nn.Module,
    model: onnx.ModelProto,
    base: str,
    *,
    modules: Collection[str] = (),
    tensors: Collection[str] = (),
) -> onnx.ModelProto:
    """A copy of a float32 graph in another format."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    lower(made, base, float32_nodes(made, module, modules=modules, tensors=tensors), opset=20)
    return made


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor, as ONNX itself infers it from inputs and weights."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {
        t.name: t.data_type for t in graph.initializer
    }


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest) -> str:
    """A format that graphs are lowered to."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def kind(base: str) -> int:
    """ONNX's number of it."""
    return KINDS[base]
