"""Two ways from a module to a TensorRT engine, side by side: through ONNX, and torch-tensorrt.

Every engine of the split is compiled by torch-tensorrt from `torch.export`, without ONNX, and timed
against the torch module and, where `anchorvla build` has made some, against the plans of a float32
bundle. A way that is slower or less exact than the other one points at a fault in it.

Nobody has run this with torch-tensorrt yet: the machines it was written on had none. Its tests put
a stand-in in the compiler's place and ONNX Runtime in that of the plans.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from export.config import CrosscheckConfig
from export.errors import ExportError
from export.measure import Modules, golden_of, made_up
from models.checkpoint import Checkpoint, load_checkpoint
from models.families import family_of
from models.networks.engines import EngineSpec
from models.split import Split
from models.stored import plain
from runtime.backends.parity import relative_error
from runtime.backends.registry import BACKENDS, MakeBackend
from runtime.bundle import Bundle, read_bundle
from runtime.engine import Backend
from runtime.errors import EngineError
from runtime.graph import Stage

WARM_UP = 3
"""Runs before the first one that counts."""
INSTALL = (
    "On JetPack 6, from NVIDIA's index for Jetson: torch-tensorrt 2.8.0 and the torch it asks for "
    "(2.9 to 2.12 have no wheel for an Orin). On a workstation: python3 -m pip install "
    "torch-tensorrt, in the version of its torch"
)
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Measured:
    """One way of running an engine."""

    median_ms: float
    error: float
    """Relative, of the worst output, against the float32 module on the CPU."""


@dataclass(frozen=True, slots=True)
class Row:
    """One engine."""

    engine: str
    ways: Mapping[str, Measured]
    """`torch`, `torch-tensorrt` and `plan`, as far as there are any."""
    refusal: str = ""
    """What torch-tensorrt said if it does not compile the engine."""


class Way(Protocol):
    """An engine that is ready to run on inputs that it already has."""

    def run(self) -> float:
        """Run once; seconds on the device."""

    def outputs(self) -> list[NDArray[Any]]:
        """Of the last run, in port order."""


def crosscheck(
    config: CrosscheckConfig,
    *,
    compiler: Any = None,
    device: str = "cuda",
    make_backend: MakeBackend = BACKENDS["tensorrt"],
) -> list[Row]:
    """Print a row per engine.

    Args:
        compiler: the module `torch_tensorrt`, imported by default.
        device: that torch runs on.
        make_backend: runs the plans of the bundle.

    Raises:
        CheckpointError, BundleError: that folder cannot be used.
        ExportError: torch-tensorrt or a GPU is missing, the bundle is of something else, a plan of
            it cannot be used, or torch-tensorrt refuses an engine; the others were measured then.
        ValueError: there is no such engine.
    """
    compiler = compiler or _import_compiler()
    bundle = None if config.bundle is None else read_bundle(config.bundle)
    checkpoint = load_checkpoint(config.checkpoint)
    checkpoint = replace(checkpoint, model=plain(checkpoint.model))
    parts = family_of(checkpoint.config).split(
        checkpoint.model, checkpoint.parts, checkpoint.image, config.image_size, config.tokens
    )
    if unknown := sorted(set(config.engines) - parts.engines.keys()):
        raise ValueError(f"unknown engines {unknown}; there are {sorted(parts.engines)}")
    if bundle is not None:
        _check_same(bundle, checkpoint, parts)
    tensors = Modules(checkpoint, parts).tensors(
        golden_of(checkpoint, made_up(checkpoint, config.image_size), seed=0)
    )
    try:
        rows = list(_rows(config, parts, tensors, compiler, device, bundle, make_backend))
    except EngineError as error:
        raise ExportError(f"the plans cannot be run: {error}") from error
    _print(rows)
    if refused := [row for row in rows if row.refusal]:
        said = "; ".join(f"{row.engine}: {row.refusal}" for row in refused)
        raise ExportError(f"torch-tensorrt does not compile {len(refused)} engine(s): {said}")
    return rows


def _import_compiler() -> Any:
    try:
        compiler = importlib.import_module("torch_tensorrt")
    except ImportError as error:
        raise ExportError(f"crosscheck needs torch-tensorrt: {error}. {INSTALL}") from None
    if not torch.cuda.is_available():
        raise ExportError(
            f"crosscheck needs a CUDA device, and torch {torch.__version__} sees none: look at "
            f"nvidia-smi, and at whether this torch was built for CUDA. {INSTALL}"
        )
    return compiler


def _check_same(bundle: Bundle, checkpoint: Checkpoint, parts: Split) -> None:
    manifest = bundle.manifest
    if manifest.source_sha256 != checkpoint.sha256:
        raise ExportError(
            f"{bundle.path}: made from weights {manifest.source_sha256[:12]}, but "
            f"{checkpoint.path} holds {checkpoint.sha256[:12]}; give the one it was made from"
        )
    if manifest.recipe.name != "float32":
        raise ExportError(
            f"{bundle.path}: recipe {manifest.recipe.name}, but torch-tensorrt is given float32 "
            "modules; compare with a bundle of: python -m export build float32"
        )
    if manifest.graph.tensors != parts.graph.tensors:
        raise ExportError(
            f"{bundle.path}: its tensors have other shapes; give the --image-size and --tokens "
            "that it was exported with"
        )


def _rows(
    config: CrosscheckConfig,
    parts: Split,
    tensors: Arrays,
    compiler: Any,
    device: str,
    bundle: Bundle | None,
    make_backend: MakeBackend,
) -> Iterator[Row]:
    backend = None if bundle is None else make_backend(bundle)
    try:
        for name in config.engines or parts.engines:
            spec, stage = parts.engines[name], _first_stage(parts, name)
            want = [tensors[stage.outputs[port]] for port in spec.outputs]
            ways: dict[str, Way] = {}
            if bundle is not None and backend is not None:
                ways["plan"] = PlanWay(backend, bundle, stage, tuple(spec.outputs), tensors)
            inputs = [tensors[stage.inputs[port]] for port in spec.inputs]
            module_ways, refusal = _torch_ways(spec, inputs, compiler, torch.device(device))
            yield Row(name, _measure({**module_ways, **ways}, want, config.runs), refusal)
            spec.module.cpu()  # the next one needs the room
    finally:
        if backend is not None:
            backend.close()


def _first_stage(parts: Split, engine: str) -> Stage:
    return next(stage for stage in parts.graph.stages if stage.engine == engine)


def _torch_ways(
    spec: EngineSpec, inputs: Sequence[NDArray[Any]], compiler: Any, device: torch.device
) -> tuple[dict[str, Way], str]:
    """The module as it is and compiled, and what the compiler said if it refused."""
    module = spec.module.eval().to(device)
    arguments = tuple(torch.from_numpy(array).to(device) for array in inputs)
    ways: dict[str, Way] = {"torch": TorchWay(module, arguments, device)}
    try:
        with torch.no_grad():
            program = torch.export.export(module, arguments)
            compiled = compiler.dynamo.compile(
                program,
                arg_inputs=arguments,
                use_explicit_typing=True,
                require_full_compilation=True,
                min_block_size=1,
            )
    except Exception as error:  # torch.export, torch-tensorrt and TensorRT share no class
        return ways, str(error).strip().partition("\n")[0] or type(error).__name__
    ways["torch-tensorrt"] = TorchWay(compiled, arguments, device)
    return ways, ""


class TorchWay:
    """A function of torch tensors that stay where they are."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[torch.Tensor, ...],
        device: torch.device,
    ) -> None:
        self._function, self._arguments, self._device = function, arguments, device
        self._results: tuple[torch.Tensor, ...] = ()

    @torch.no_grad()
    def run(self) -> float:
        if self._device.type != "cuda":
            start = time.perf_counter()
            self._call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self._call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def outputs(self) -> list[NDArray[Any]]:
        return [result.detach().cpu().numpy() for result in self._results]

    def _call(self) -> None:
        results = self._function(*self._arguments)
        self._results = tuple(results) if isinstance(results, (tuple, list)) else (results,)


class PlanWay:
    """An engine of a bundle, on the backend that has a plan for it."""

    def __init__(
        self,
        backend: Backend,
        bundle: Bundle,
        stage: Stage,
        ports: tuple[str, ...],
        tensors: Arrays,
    ) -> None:
        assert stage.engine is not None
        graph, manifest = bundle.manifest.graph, bundle.manifest
        self._memory = backend.memory(graph)
        engine = backend.engine(bundle.file(manifest.engines[stage.engine].file))
        bound = engine.bind(stage.inputs, stage.outputs, self._memory)
        self._launch = backend.launcher(graph, {stage.name: bound}, self._memory)
        self._stage, self._outputs = stage.name, [stage.outputs[port] for port in ports]
        for name in stage.inputs.values():
            self._memory.host(name)[...] = tensors[name]
            self._memory.upload(name)

    def run(self) -> float:
        return self._launch((self._stage,), frozenset())[self._stage]

    def outputs(self) -> list[NDArray[Any]]:
        for name in self._outputs:
            self._memory.download(name)
        return [self._memory.host(name).copy() for name in self._outputs]


def _measure(
    ways: Mapping[str, Way], want: Sequence[NDArray[Any]], runs: int
) -> dict[str, Measured]:
    """In turns, so that a clock that drifts is no advantage to any."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UP + runs):
        for name, way in ways.items():
            elapsed = way.run()
            if number >= WARM_UP:
                seconds[name].append(elapsed)
    return {
        name: Measured(1e3 * statistics.median(seconds[name]), _error(way.outputs(), want))
        for name, way in ways.items()
    }


def _error(outputs: Sequence[NDArray[Any]], want: Sequence[NDArray[Any]]) -> float:
    return max(
        relative_error(np.asarray(got), exact) for got, exact in zip(outputs, want, strict=True)
    )


def _print(rows: Sequence[Row]) -> None:
    names = [
        name for name in ("torch", "torch-tensorrt", "plan") if any(name in r.ways for r in rows)
    ]
    table = Table(title="time in ms, relative error against the float32 module on the CPU")
    table.add_column("engine")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [row.ways.get(name) for name in names]
        words = ["refused" if c is None else f"{c.median_ms:.3f}  {c.error:.1e}" for c in cells]
        table.add_row(row.engine, *words)
    Console().print(table)
