"""Does NVIDIA's compiler take an engine? Asked without a GPU.

TensorRT for RTX installs from a wheel and builds for a GPU that is not there. It knows no SM 8.7;
SM 8.6 is Orin's nearest relative. Its plans do not run on a Jetson and its parser is newer than
JetPack's: a pass proves that a graph is well typed and compilable, not that every TensorRT takes
it. Compiling runs in a process of its own, because a compiler may take the process down with it.

    python -m export.compile_check ENGINE.onnx
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

COMPUTE_CAPABILITY = "SM86"
NOT_INSTALLED = "not checked: TensorRT for RTX is not installed (it is in the dev extra)"


@dataclass(frozen=True, slots=True)
class Compiled:
    """A verdict. `message` is the compiler's own where it refused."""

    ok: bool
    message: str


def is_available() -> bool:
    """Whether the compiler is installed here."""
    return importlib.util.find_spec("tensorrt_rtx_bindings") is not None


def check_compiles(path: Path) -> Compiled:
    """Compile `path` for SM 8.6 in a subprocess."""
    if not is_available():
        return Compiled(True, NOT_INSTALLED)
    command = [sys.executable, "-m", "export.compile_check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        answer = json.loads(done.stdout.splitlines()[-1])
        seconds, size = answer["seconds"], answer["bytes"]
        return Compiled(True, f"{COMPUTE_CAPABILITY} in {seconds:.1f} s, {size / 1e6:.1f} MB")
    if done.returncode < 0:
        return Compiled(False, f"the compiler died of signal {-done.returncode}")
    return Compiled(False, done.stderr.strip() or f"exit code {done.returncode}")


def main(path: Path) -> int:
    import tensorrt_rtx_libs  # noqa: F401, I001  (loads the libraries that the bindings need)
    import tensorrt_rtx_bindings as trt

    messages: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    logger = Logger()
    start = time.monotonic()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        messages += [str(parser.get_error(i)) for i in range(parser.num_errors)]
        print("\n".join(messages), file=sys.stderr)
        return 1
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, COMPUTE_CAPABILITY), 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        print("\n".join(messages) or "the compiler gave no reason", file=sys.stderr)
        return 1
    print(json.dumps({"seconds": time.monotonic() - start, "bytes": plan.nbytes}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
