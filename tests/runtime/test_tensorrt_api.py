"""The robot's code uses only names that every TensorRT it may meet has.

`tensorrt_api.json` holds the names of three versions, read from their bindings: per class, names by
the versions (as digits) that have them. The code is walked, not run: no TensorRT is needed.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[2] / "runtime"
API = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text())
EVERYWHERE = "".join(map(str, range(len(API["versions"]))))
MODULE = "the module"
HANDLES = {
    "trt": MODULE,
    "self._trt": MODULE,
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "cache": "ITimingCache",
    "config.get_timing_cache()": "ITimingCache",
    "plan": "IHostMemory",
    "layer": "ILayer",
    "tensor": "ITensor",
    "kinds": "LayerType",
    "severity": "ILogger",
    "trt.ILogger.Severity": "ILogger",
    "runtime": "Runtime",
    "self._runtime": "Runtime",
    "deserialized": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "inspector": "EngineInspector",
}
"""What an expression of these files is."""
FILES = [path for path in sorted(RUNTIME.rglob("*.py")) if "trt." in path.read_text()]
RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
"""TensorRT for RTX alone builds for a GPU that is not there; the code asks for the module first."""


def versions_of(kind: str, name: str) -> str:
    """Digits of the versions in which class `kind` has `name`."""
    entry = API["classes"].get(kind, {})
    return next((v for v, names in entry.items() if v != "in" and name in names), "")


def missing_names(source: str) -> Iterator[str]:
    """Uses of TensorRT that not every version has, or that nobody can place."""
    known = {
        n for e in API["classes"].values() for v, names in e.items() if v != "in" for n in names
    }
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or node.attr in {"__init__", *RTX_ONLY}:
            continue
        where, name = ast.unparse(node.value), node.attr
        kind = HANDLES.get(where, "")
        if kind == MODULE:
            if name != "__version__" and API["classes"].get(name, {}).get("in") != EVERYWHERE:
                yield f"line {node.lineno}: not every version has {name}"
            continue
        prefix, _, last = where.rpartition(".")
        if HANDLES.get(prefix) == MODULE:
            kind = last
        if not kind and "_" in name.strip("_") and name in known:
            yield f"line {node.lineno}: what is {where}, that has {name}?"
        if kind and versions_of(kind, name) != EVERYWHERE:
            yield f"line {node.lineno}: not every version has {kind}.{name}"


def test_the_files_that_use_tensorrt_are_known():
    assert {path.name for path in FILES} == {"tensorrt.py", "compiler.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_name_is_in_every_version(path):
    assert list(missing_names(path.read_text())) == []


def test_the_walk_sees_what_the_files_use():
    source = (RUNTIME / "backends" / "tensorrt.py").read_text()
    for name in ("execute_async_v3", "set_tensor_address", "device_memory_size_v2"):
        assert list(missing_names(source.replace(name, f"{name}_x"))) != []


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ("self._engine.device_memory_size", "not every version has ICudaEngine.device_memory_size"),
        ("trt.BuilderFlag.FP16", "not every version has BuilderFlag.FP16"),
        ("trt.IInt8Calibrator", "not every version has IInt8Calibrator"),
        ("context.set_tensor_adress('x', 1)", "IExecutionContext.set_tensor_adress"),
        ("thing.execute_async_v3(0)", "what is thing, that has execute_async_v3?"),
    ],
)
def test_a_planted_bad_name_is_found(planted, words):
    found = list(missing_names(planted))
    assert len(found) == 1
    assert words in found[0]
