"""Bundles of policy families that nobody trained: a graph, declarations and ONNX files by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from msgspec.structs import replace
from onnx import TensorProto, helper

from runtime.bundle import (
    EngineEntry,
    FileEntry,
    Manifest,
    Quantization,
    RecipeEntry,
    StageFigures,
)
from runtime.declarations import MADE, Input, Output, Store, Tensor
from runtime.graph import Graph, Stage
from runtime.storage.listed import sha256_of

SIDE, PATCH, CHUNK = 8, 4, (2, 3)
IMAGE = {"kind": "image", "shape": (SIDE, SIDE, 3), "dtype": "uint8"}
NOISE = {"kind": "noise", "source": "drawn", "shape": CHUNK, "dtype": "float32", "pace": "tick"}
VECTOR = {"kind": "vector", "source": "robot", "shape": CHUNK[1:], "dtype": "float32"}
PATCHES = {
    "grid": [SIDE // PATCH] * 2,
    "image": {"min_pixels": 1, "max_pixels": 4096, "patch_size": PATCH, "merge_size": 1},
}
CAMERA = Input(**IMAGE, source="robot", pace="tick")
JOINTS = Input(**VECTOR, pace="tick", unit="rad")
INPUTS = {"camera": CAMERA, "joints": JOINTS, "latent": Input(**NOISE)}
"""Of the smallest family that a robot can run."""


def toy_graph(inputs: Mapping[str, Input], every: int = 0, unread: Sequence[str] = ()) -> Graph:
    """Every input but the `unread` is averaged by an engine; the chunk is the sum of the averages.

    A leaf `brightness` is the first input's average alone.
    """
    tensors, stages = {"actions": Tensor(shape=CHUNK)}, []
    read = [name for name in inputs if name not in unread]
    for name, declared in inputs.items():
        if name in unread:
            continue
        if declared.kind in ("image", "video"):
            count = declared.shape[0] if declared.kind == "video" else 1
            shape: tuple[int, ...] = (count * (SIDE // PATCH) ** 2, 2 * 3 * PATCH**2)
            call = {"function": "patches", "inputs": {"image": name}, "params": PATCHES}
            port = "patches"
        else:
            shape, port = declared.shape, "value"
            call = {"function": "copy", "inputs": {"value": name}}
        tensors |= {f"{name}_rows": Tensor(shape=shape), f"{name}_mean": Tensor(shape=CHUNK)}
        stages += [
            Stage(name=f"{name}_rows", outputs={port: f"{name}_rows"}, **call),
            Stage(
                name=f"{name}_mean",
                engine="mean" + "x".join(map(str, shape)),
                inputs={"x": f"{name}_rows"},
                outputs={"y": f"{name}_mean"},
            ),
        ]
    ports = {f"x{i}": f"{name}_mean" for i, name in enumerate(read)}
    stages.append(Stage(name="sum", engine="sum", inputs=ports, outputs={"y": "actions"}))
    leaf = f"{read[0]}_mean"
    outputs = {"actions": Output(axes=("step", "action"), step_s=0.1), leaf: Output(every=every)}
    return Graph(inputs=inputs, outputs=outputs, tensors=tensors, stages=tuple(stages))


def with_store(graph: Graph, count: int, inputs: Sequence[str]) -> Graph:
    """A store of `count` averages, which what `toy_graph` makes of these pictures shares."""
    held = [f"average_{i}" for i in range(count)]
    tensors = {**graph.tensors, **dict.fromkeys(held, Tensor(shape=CHUNK))}
    store = Store(
        entries=tuple((name,) for name in held),
        members=tuple((f"{name}_mean",) for name in inputs),
    )
    return replace(graph, tensors=tensors, stores={"averages": store})


def expected(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The chunk of `toy_graph` in plain numpy, [2, 3]; images as Qwen2-VL's processor does."""
    return sum(np.full(CHUNK, _mean(value), np.float32) for value in values.values())


def _mean(value: np.ndarray) -> float:
    if value.dtype != np.uint8:
        return float(np.mean(value))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return float(np.mean((value / 255 - np.array(mean)) / np.array(std)))


def golden_of(inputs: Mapping[str, Input], seed: int = 0) -> dict[str, np.ndarray]:
    """An observation that fits."""
    random = np.random.default_rng(seed)
    golden = {}
    for name, declared in inputs.items():
        if declared.dtype == "uint8" and declared.source not in MADE:
            golden[name] = random.integers(0, 255, declared.shape, dtype=np.uint8)
        elif declared.source not in MADE:
            golden[name] = random.standard_normal(declared.shape).astype(np.float32)
            if declared.kind == "depth":
                golden[name] = np.abs(golden[name])
    return golden


def write_bundle(folder: Path, graph: Graph, golden: Mapping[str, Any]) -> Path:
    """A bundle of `toy_graph`; its golden tensors are those of `golden`, each first of its kind."""
    (folder / "engines").mkdir(parents=True)
    values = dict(golden)
    for name, declared in graph.inputs.items():
        if declared.source == "ring":
            values[name] = np.stack([golden[declared.of]] * declared.shape[0])
        elif declared.source == "delay":
            values[name] = golden[declared.of]
    values = {n: v for n, v in values.items() if f"{n}_mean" in graph.tensors}
    means = {f"{n}_mean": np.full(CHUNK, _mean(v), np.float32) for n, v in values.items()}
    tensors = {**means, "actions": expected(values)}
    stages = {f"stage/{name}": value for name, value in tensors.items()}
    np.savez(folder / "golden.npz", **golden, **stages, actions=tensors["actions"])
    engines = {}
    for stage in graph.stages:
        if stage.engine:
            ports = [graph.tensors[name] for name in stage.inputs.values()]
            write_engine(folder / "engines" / f"{stage.engine}.onnx", ports)
            engines[stage.engine] = EngineEntry(
                file=f"engines/{stage.engine}.onnx",
                inputs={port: graph.tensors[name] for port, name in stage.inputs.items()},
                outputs={port: graph.tensors[name] for port, name in stage.outputs.items()},
                parameters=1,
                parity=0.0,
            )
    figures = StageFigures(noise_floor=1e-3, error=0.0, allowed=1.0, where="", parity=1e-6)
    manifest = Manifest(
        policy="toy", license="none", description="by hand", source_sha256="0", twin_of="",
        recipe=RecipeEntry(name="float32", target="cpu", base="float32", tolerance=1e-4, rules=()),
        graph=graph, dependencies=graph.listed_dependencies, statistics={}, tables={},
        engines=engines, padded_share={}, tolerance=dict.fromkeys(tensors, 1e-4),
        quantization=Quantization(
            layers={}, precisions={}, islands={},
            stages={s.name: figures for s in graph.stages if s.engine},
        ),
        files={
            path.relative_to(folder).as_posix(): FileEntry(
                sha256=sha256_of(path), bytes=path.stat().st_size
            )
            for path in sorted(folder.rglob("*")) if path.is_file()
        },
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return folder


def list_again(bundle: Path, name: str) -> None:
    """A file of the bundle was changed: the manifest says so."""
    manifest, path = bundle / "manifest.json", bundle / name
    raw = json.loads(manifest.read_bytes())
    raw["files"][name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    manifest.write_text(json.dumps(raw))


def write_engine(path: Path, ports: list[Tensor]) -> None:
    """y [2, 3]: the sum of its inputs' means, each of which is the mean of all its numbers."""
    nodes, names = [], [f"x{i}" if len(ports) > 1 else "x" for i in range(len(ports))]
    for name in names:
        nodes.append(helper.make_node("ReduceMean", [name], [f"{name}_mean"], keepdims=0))
    nodes.append(helper.make_node("Sum", [f"{name}_mean" for name in names], ["total"]))
    nodes.append(helper.make_node("Expand", ["total", "shape"], ["y"]))
    graph = helper.make_graph(
        nodes,
        path.stem,
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, port.shape)
            for name, port in zip(names, ports, strict=True)
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, CHUNK)],
        [helper.make_tensor("shape", TensorProto.INT64, [2], CHUNK)],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
