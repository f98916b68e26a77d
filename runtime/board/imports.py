"""What the runtime imports on a Jetson, tried in a process of its own, and one call of CUDA.

A library that is missing shows when it is imported and not before, and one that takes its process
down takes nobody else along. The process prints a line of JSON for each thing that it did; what
it did not come to has no line.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODULES = ("tensorrt", "pycuda.driver", "cuda.bindings.runtime", "cuda.bindings.driver")
"""In the order in which the runtime imports them."""
TIMEOUT_S = 120.0
"""TensorRT alone was seen to take seconds on a cold disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CudaAnswer:
    """What CUDA's runtime says when it is asked for GPUs."""

    status: int
    """0 is success."""
    name: str
    """Of the status."""
    num_gpus: int
    driver: int
    """CUDA that the driver implements: 12060 is 12.6."""
    runtime: int
    """CUDA that cuda.bindings was made for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What came of it."""

    errors: Mapping[str, str] = field(default_factory=dict)
    """Module -> why it cannot be imported."""
    cuda: CudaAnswer | None = None
    """None where cuda.bindings cannot be imported."""


def try_imports() -> Imported:
    """Import everything in a child process."""
    command = [sys.executable, "-m", f"{__package__}.imports"]
    folder = Path(__file__).resolve().parents[2]  # `-m` finds us there
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
        ending = f"it ended the process (exit code {done.returncode})"
        return read_lines(done.stdout, ending)
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        return read_lines(printed.decode(errors="replace"), f"it took over {TIMEOUT_S:g} s")


def read_lines(printed: str, ending: str) -> Imported:
    """What the child printed; `ending` is why the module without a line has none."""
    told: dict[str, Any] = {}
    for line in printed.splitlines():
        if line.startswith('{"'):  # libraries print too
            told |= json.loads(line)
    missing = next((module for module in MODULES if module not in told), None)
    errors = {module: told[module] for module in MODULES if told.get(module)}
    if missing is not None:
        errors[missing] = ending
    answer = told.get("cuda")
    return Imported(errors=errors, cuda=None if answer is None else CudaAnswer(**answer))


def main() -> None:
    """In the child."""
    failed = False
    for module in MODULES:
        error = ""
        try:
            importlib.import_module(module)
        except Exception as why:  # whatever a library raises when it is loaded
            error = f"{type(why).__name__}: {why}"
        failed |= bool(error) and module.startswith("cuda.")
        print(json.dumps({module: error}), flush=True)
    if not failed:
        print(json.dumps({"cuda": _ask_cuda(importlib.import_module(MODULES[2]))}), flush=True)


def _ask_cuda(runtime: Any) -> dict[str, Any]:
    try:
        status, *count = runtime.cudaGetDeviceCount()
        versions = [
            call()[1] for call in (runtime.cudaDriverGetVersion, runtime.cudaRuntimeGetVersion)
        ]
    except RuntimeError as error:  # cuda-python 12.6 where there is no libcuda
        return {"status": -1, "name": str(error), "num_gpus": 0, "driver": 0, "runtime": 0}
    num_gpus = count[0] if count and status == 0 else 0
    name = getattr(status, "name", str(status))
    driver, made_for = (int(version or 0) for version in versions)
    return {
        "status": int(status),
        "name": name,
        "num_gpus": int(num_gpus),
        "driver": driver,
        "runtime": made_for,
    }


if __name__ == "__main__":
    main()
