"""One ONNX file -> one TensorRT plan, in a process of its own.

`compile_apart` starts `python -m runtime.plans.compiler`, hands it a `CompileSpec` as JSON and
reads JSON lines: progress, then the answer. A compiler may take its process down, or need more
memory than there is, without harm to the caller; the price is to load the libraries once per
engine. Nothing here decides a precision: the network is strongly typed, and float32 stays float32
(no TF32).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..board.machine import peak_bytes
from ..errors import EngineError
from ..storage.files import beside
from .diagnosis import SHORT_OF_MEMORY, OutOfMemory, diagnose, joined

ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
MAX_WARNINGS = 4
OUT_OF_MEMORY = 3
"""Exit code, so that the caller knows what to try again."""

OnProgress = Callable[[str, int, int], None]
"""(phase, steps done, steps in it)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileSpec:
    """What to compile, and how."""

    onnx: str
    """Absolute path."""
    plan: str | None = None
    """Where the plan goes; nowhere if only asked whether it compiles."""
    backend: str = "tensorrt"
    """`tensorrt` or `tensorrt_rtx`."""
    workspace_bytes: int | None = None
    """Scratch memory that kernels may use; the compiler's own limit if not given."""
    timing_cache: str | None = None
    """File of measured times, read if it is there and written afterwards."""
    capability: str | None = None
    """Build for a GPU that need not be there, such as `SM86`; TensorRT for RTX only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What became of it."""

    seconds: float
    num_bytes: int
    """Of the plan."""
    int8_products: tuple[str, ...]
    """ONNX nodes that multiply two int8 tensors: w8a8."""
    timing_cache: str
    """`none`, `new`, `reused` or `refused` (made by another version, so begun anew)."""
    peak_bytes: int = 0
    """Of memory, that the compiler's process held at most."""


def compile_apart(spec: CompileSpec, on_progress: OnProgress | None = None) -> Compiled:
    """Compile in a subprocess, which dies with this one.

    Raises:
        OutOfMemory: an allocation failed, or a kernel wanted more than there was.
        EngineError: the compiler refuses the file, in its own words, or died.
    """
    command = [sys.executable, "-m", f"{__package__}.compiler"]
    # The folder of our package: `-m` finds us there, and no file of the caller's folder.
    folder = Path(__file__).resolve().parents[2]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as noise,
        subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            errors="replace",
        ) as process,
    ):
        try:
            last = _talk(process, spec, on_progress)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        if code == 0 and "answer" in last:
            answer = dict(last["answer"])
            return Compiled(**{**answer, "int8_products": tuple(answer["int8_products"])})
        noise.seek(0)
        raise _failure(code, last, noise.read())


def compile_engine(spec: CompileSpec, on_progress: OnProgress) -> Compiled:
    """Compile in this process.

    Raises:
        OutOfMemory, EngineError: as `compile_apart`.
    """
    trt = load_tensorrt(spec.backend)
    start, messages = time.monotonic(), list[str]()
    logger = error_logger(trt, messages)
    with _translated(messages):
        builder = trt.Builder(logger)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(spec.onnx):
            messages += [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise EngineError(joined(messages) or "the parser gave no reason")
        int8_products = tuple(find_int8_products(trt, network))
        config = builder.create_builder_config()
        _configure(trt, config, spec)
        monitor = config.progress_monitor = _monitor(trt, on_progress)
        cache = _load_timing_cache(config, spec)
        plan = builder.build_serialized_network(network, config)
        del monitor  # the configuration does not keep it alive
        if plan is None:
            raise diagnose(messages)
        if spec.plan is not None:
            with beside(Path(spec.plan)) as partial:
                partial.write_bytes(memoryview(plan))
        if spec.timing_cache is not None:
            times = config.get_timing_cache().serialize()
            with beside(Path(spec.timing_cache)) as partial:
                partial.write_bytes(memoryview(times))
    return Compiled(
        seconds=time.monotonic() - start,
        num_bytes=int(plan.nbytes),
        int8_products=int8_products,
        timing_cache=cache,
        peak_bytes=peak_bytes(),
    )


def load_tensorrt(backend: str) -> Any:
    """TensorRT's Python module.

    Raises:
        EngineError: it is not installed.
        ValueError: for another name than `tensorrt` and `tensorrt_rtx`.
    """
    # The libraries of TensorRT for RTX come in a wheel of their own and are loaded first.
    imports = {
        "tensorrt": ["tensorrt"],
        "tensorrt_rtx": ["tensorrt_rtx_libs", "tensorrt_rtx_bindings"],
    }
    if backend not in imports:
        raise ValueError(f"backend must be one of {sorted(imports)}, got {backend!r}")
    try:
        return [importlib.import_module(name) for name in imports[backend]][-1]
    except ImportError as error:
        raise EngineError(
            f"{backend} cannot be imported ({error}). On a Jetson it comes with JetPack (apt: "
            "python3-libnvinfer); a virtual environment sees it with --system-site-packages"
        ) from None


def find_int8_products(trt: Any, network: Any) -> Iterator[str]:
    """ONNX names of the matrix products of a parsed network whose factors are both int8."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    made = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    for layer in layers:
        if layer.type == trt.LayerType.MATRIX_MULTIPLY and all(
            _was_int8(trt, layer.get_input(i), made) for i in range(2)
        ):
            names = ONNX_LAYER.findall(layer.metadata)
            yield names[0] if names else layer.name


def main() -> int:
    """Read a spec from stdin, compile, print one line of JSON."""
    _die_with_parent()
    spec = CompileSpec(**json.loads(sys.stdin.read()))
    try:
        compiled = compile_engine(spec, _print_progress())
    except EngineError as error:
        if not isinstance(error, OutOfMemory):
            print(json.dumps({"error": str(error)}), flush=True)
            return 1
        told = {"block_bytes": error.block_bytes, "is_workspace": error.is_workspace}
        print(json.dumps({"error": str(error), "memory": told}), flush=True)
        return OUT_OF_MEMORY
    print(json.dumps({"answer": asdict(compiled)}), flush=True)
    return 0


def _talk(
    process: subprocess.Popen[str], spec: CompileSpec, on_progress: OnProgress | None
) -> dict[str, Any]:
    """Hand over the spec; the last line that is no progress, {} if there was none."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code will say
        process.stdin.write(json.dumps(asdict(spec)))
        process.stdin.close()
    last: dict[str, Any] = {}
    for line in process.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # a library's own words
        if not isinstance(message, dict):
            continue
        if "phase" not in message:
            last = message
        elif on_progress is not None:
            on_progress(message["phase"], message["done"], message["of"])
    return last


def _failure(code: int, last: Mapping[str, Any], noise: str) -> EngineError:
    error = str(last.get("error", ""))
    if code == OUT_OF_MEMORY:
        return OutOfMemory(error, **last.get("memory", {}))
    if code == -signal.SIGKILL:
        return OutOfMemory(
            "the compiler was killed (signal 9), as the kernel does when memory runs out"
        )
    if code < 0:
        words = f"the compiler died of signal {-code}: {noise.strip() or 'it said nothing'}"
        return OutOfMemory(words) if SHORT_OF_MEMORY.search(noise) else EngineError(words)
    return EngineError(error or noise.strip() or f"the compiler ended with exit code {code}")


@contextlib.contextmanager
def _translated(messages: list[str]) -> Iterator[None]:
    """What TensorRT and the disk raise, as errors of ours."""
    try:
        yield
    except EngineError:
        raise
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise OutOfMemory(str(error)) from None
        raise EngineError(f"{error}; a plan needs a folder and a disk with room for it") from None
    except (MemoryError, RuntimeError, TypeError) as error:
        raise diagnose([*messages, f"{type(error).__name__}: {error}"]) from None


def _configure(trt: Any, config: Any, spec: CompileSpec) -> None:
    if spec.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.max_aux_streams = 0  # a captured CUDA graph stays on one stream
    config.clear_flag(trt.BuilderFlag.TF32)
    if spec.capability is None:
        return
    known = getattr(trt, "ComputeCapability", None)
    if not hasattr(known, spec.capability):
        names = [name for name in dir(known) if name.startswith("SM")] if known else "none"
        raise EngineError(
            f"{spec.backend} {trt.__version__} cannot build for {spec.capability}; it knows {names}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(known, spec.capability), 0)


def _load_timing_cache(config: Any, spec: CompileSpec) -> str:
    if spec.timing_cache is None:
        return "none"
    path = Path(spec.timing_cache)
    old = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(old)
    if cache is not None and config.set_timing_cache(cache, False):
        return "reused" if old else "new"
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return "refused"


def _was_int8(trt: Any, tensor: Any, made: Mapping[str, Any]) -> bool:
    """Was the tensor dequantized from int8, but for casts and reshapes on the way?"""
    kinds = trt.LayerType
    while tensor is not None and tensor.name in made:
        layer = made[tensor.name]
        tensor = layer.get_input(0) if layer.num_inputs else None
        if layer.type == kinds.DEQUANTIZE:
            return bool(tensor.dtype == trt.DataType.INT8)
        if layer.type not in (kinds.CAST, kinds.SHUFFLE, kinds.IDENTITY):
            return False
    return False


def error_logger(trt: Any, messages: list[str]) -> Any:
    """A logger of TensorRT that keeps what an exception has to say: errors, and want of memory.

    Which allocation failed is told in a warning. Every kernel that needs too much gives one too,
    some thousand in a build, so only the last `MAX_WARNINGS` stay.
    """
    severity = trt.ILogger.Severity

    class Logger(trt.ILogger):  # type: ignore[misc]  # the bindings carry no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.warnings: list[str] = []

        def log(self, level: object, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                messages.append(message)
            elif level == severity.WARNING and SHORT_OF_MEMORY.search(message):
                self.warnings.append(message)
                messages.append(message)
                if len(self.warnings) > MAX_WARNINGS:
                    oldest = self.warnings.pop(0)
                    with contextlib.suppress(ValueError):  # somebody began anew meanwhile
                        messages.remove(oldest)

    return Logger()


def _monitor(trt: Any, on_progress: OnProgress) -> Any:
    steps: dict[str, int] = {}

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the bindings carry no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            steps[phase] = num_steps

        def step_complete(self, phase: str, step: int) -> bool:
            on_progress(phase, step + 1, steps.get(phase, 0))
            return True

        def phase_finish(self, phase: str) -> None:
            steps.pop(phase, None)

    return Monitor()


def _print_progress() -> OnProgress:
    """Prints whole percents only: a phase may have a hundred thousand steps."""
    last = ("", -1)

    def report(phase: str, done: int, of: int) -> None:
        nonlocal last
        now = (phase, 100 * done // max(of, 1))
        if now != last:
            last = now
            print(json.dumps({"phase": phase, "done": done, "of": of}), flush=True)

    return report


def _die_with_parent() -> None:
    """A compiler nobody waits for must not go on; and if memory runs out, it goes first."""
    with contextlib.suppress(OSError, AttributeError):
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, int(signal.SIGKILL))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main())
