"""Does NVIDIA's compiler take an engine? Asked without a GPU.

TensorRT for RTX installs from a wheel and builds for a GPU that is not there. It knows no SM 8.7;
SM 8.6 is Orin's nearest relative. Its plans do not run on a Jetson and its parser is newer than
JetPack's: a pass proves that a graph is well typed and compilable, not that every TensorRT takes
it. `runtime.plans.compiler` does the work, as it does on the robot.

    python -m export.engines.compile_check ENGINE.onnx
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import EngineError
from runtime.plans.compiler import CompileSpec, compile_apart

MODULE = "tensorrt_rtx"
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
    spec = CompileSpec(onnx=str(path.resolve()), backend=MODULE, capability=COMPUTE_CAPABILITY)
    try:
        plan = compile_apart(spec)
    except EngineError as error:
        return Compiled(False, str(error))
    megabytes = plan.num_bytes / 1e6
    return Compiled(True, f"{COMPUTE_CAPABILITY} in {plan.seconds:.1f} s, {megabytes:.1f} MB")


def main(path: Path) -> int:
    compiled = check_compiles(path)
    print(compiled.message)
    return 0 if compiled.ok else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
