"""A bundle of two engines of one matrix product each, written by hand in milliseconds."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.bundle import (
    Bundle,
    EngineEntry,
    FileEntry,
    Manifest,
    Quantization,
    RecipeEntry,
    StageFigures,
    Table,
    read_bundle,
)
from runtime.declarations import Input, Prompt, Tensor
from runtime.graph import Graph, Stage
from runtime.plans.key import PlanKey
from tests.graphs import leaves

TENSORRT = Path(__file__).parent / "tensorrt_without_gpu"
KEY = PlanKey(
    gpu="Orin",
    compute_capability="8.7",
    num_sms=16,
    backend="tensorrt",
    version="10.3.0",
    cuda="12.6",
)
ROWS, WIDTH = 16, 64
INT8_PRODUCT = "layer/MatMul"
figures = partial(StageFigures, error=0.0, allowed=1.0, where="nowhere")
STAGES = {
    "first": figures(parity=1e-6, noise_floor=2e-3, rounding=4e-3),
    "second": figures(parity=2e-3, noise_floor=1e-3),
    "second_again": figures(parity=4e-3, noise_floor=1e-3),
}


def tiny_bundle(folder: Path, seed: int = 0, *, largest: str = "first") -> Bundle:
    """Engine `first` (w8a8) runs in one stage, `second` (float32) in two.

    Args:
        largest: of the two, which is so by weights that nothing reads.
    """
    (folder / "engines").mkdir(parents=True)
    _write(folder / "engines" / "first.onnx", *_int8_product(seed))
    _write(folder / "engines" / "second.onnx", *_float_product(seed))
    for name in ("first", "second"):
        words = b"weights that nothing reads" * (1500 if name == largest else 1)
        (folder / "engines" / f"{name}.weights").write_bytes(words)
    (folder / "embedding.bin").write_bytes(bytes(2 * WIDTH * 4))
    (folder / "tokenizer.json").write_bytes(b"not read here")
    golden = dict.fromkeys(("instruction", "d", "stage/b", "stage/c", "stage/d"), np.zeros(1))
    np.savez(folder / "golden.npz", **golden)
    tensor = Tensor(shape=(ROWS, WIDTH))
    ports = {"inputs": {"x": tensor}, "outputs": {"y": tensor}}
    engines = {
        name: EngineEntry(file=f"engines/{name}.onnx", parameters=1, parity=0.0, **ports)
        for name in ("first", "second")
    }
    manifest = Manifest(
        policy="tiny", license="none", description="", source_sha256="", twin_of="",
        recipe=RecipeEntry(name="tiny", target="cpu", base="float32", tolerance=1e-4, rules=()),
        graph=(graph := _graph(tensor)), dependencies=graph.listed_dependencies, statistics={},
        tables={"words": Table(file="embedding.bin", shape=(2, WIDTH), dtype="float32")},
        engines=engines, files=_files(folder), padded_share={}, tolerance={},
        quantization=Quantization(layers={}, precisions={}, islands={}, stages=STAGES),
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return read_bundle(folder)


def _graph(tensor: Tensor) -> Graph:
    def stage(name: str, engine: str, source: str, target: str) -> Stage:
        return Stage(name=name, engine=engine, inputs={"x": source}, outputs={"y": target})

    pack = Stage(
        name="pack",
        function="embed",
        inputs={"ids": "instruction"},
        outputs={"embeddings": "a"},
        params={"table": "words"},
    )
    prompt = Prompt(tokenizer="tokenizer.json", template="{instruction}", end_ids=())
    text = Input(
        kind="text", source="operator", shape=(ROWS,), dtype="int64", pace="event", prompt=prompt
    )
    return Graph(
        inputs={"instruction": text},
        tensors=dict.fromkeys("abcd", tensor),
        stages=(
            pack,
            stage("first", "first", "a", "b"),
            stage("second", "second", "b", "c"),
            stage("second_again", "second", "c", "d"),
        ),
        outputs=leaves("d"),
    )


def _files(folder: Path) -> dict[str, FileEntry]:
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _int8_product(seed: int):  # type: ignore[no-untyped-def]
    codes = np.random.default_rng(seed).integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
    scales = np.full(WIDTH, 0.01, np.float32)
    constants = {"codes": codes, "scales": scales, "zeros": np.zeros(WIDTH, np.int8)}
    constants |= {"scale": np.float32(0.05), "zero": np.int8(0)}
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="layer/QuantizeLinear"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="layer/DequantizeLinear"),
        node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], name="layer/w", axis=1),
        node("MatMul", ["d", "w"], ["y"], name=INT8_PRODUCT),
    ]
    return nodes, constants


def _float_product(seed: int):  # type: ignore[no-untyped-def]
    weight = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH), np.float32)
    return [helper.make_node("MatMul", ["x", "weight"], ["y"], name="plain/MatMul")], {
        "weight": weight
    }


def _write(path: Path, nodes, constants) -> None:  # type: ignore[no-untyped-def]
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        path.stem,
        [port("x", TensorProto.FLOAT, [ROWS, WIDTH])],
        [port("y", TensorProto.FLOAT, [ROWS, WIDTH])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
