"""What `anchorvla doctor` says of TensorRT, pycuda and cuda.bindings: do they load and fit?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from .imports import CudaAnswer, Imported
from .machine import Machine, paths_of
from .supported import CUDA_ERRORS, INSTALL, Finding, judge, major_minor

DISTRIBUTIONS = {
    "tensorrt": ("tensorrt",),
    "pycuda": ("pycuda",),
    "cuda-bindings": ("cuda-bindings", "cuda-python"),
}
"""Name of a finding -> distributions, one of which brings its modules."""
MODULES = {
    "tensorrt": ("tensorrt",),
    "pycuda": ("pycuda.driver",),
    "cuda-bindings": ("cuda.bindings.runtime", "cuda.bindings.driver"),
}
NVCC = "usr/local/cuda/bin/nvcc"
REBUILD_PYCUDA = (
    "it was built for another CUDA or numpy, build it again: python3 -m pip install --no-deps "
    "--no-cache-dir --force-reinstall pycuda==VERSION, as in requirements/robot-tensorrt.txt"
)
REMEDIES = (
    (
        r"libnvdla_compiler",
        "sudo apt install nvidia-l4t-dla-compiler, on the board: in a container the file comes "
        "from there. JetPack 7.2 has no such package, and its own TensorRT needs none: use that",
    ),
    (
        r"libcudla",
        "sudo apt install libcudla-12-6, with the numbers of this JetPack's CUDA",
    ),
    (
        r"libcuda\.so",
        "the driver is not there: sudo apt install nvidia-l4t-cuda; in a container: docker run "
        "--runtime nvidia",
    ),
    (r"libnv(infer|onnxparser)", "sudo apt install tensorrt, the release that this JetPack has"),
    (
        r"lib(cudart|cublas|cudnn|nvrtc|cufft|curand)",
        "sudo apt install nvidia-jetpack: CUDA's libraries are missing",
    ),
    (r"undefined symbol|numpy\.core|multiarray|_ARRAY_API", REBUILD_PYCUDA),
)
"""What an import says -> what mends it. The libraries are of public reports, from boards and
containers with a thin board support package."""


def check_gpu_software(
    machine: Machine,
    root: Path,
    *,
    imported: Imported,
    version_of: Callable[[str], str | None],
    which: Callable[[str], str | None],
) -> Iterator[Finding]:
    """Imports, one call of CUDA, and what pycuda needs where it is still to be built."""
    for name in DISTRIBUTIONS:
        yield _judge_import(name, imported, version_of)
    if imported.cuda is not None:
        yield _judge_driver(imported.cuda)
    if imported.errors.get("pycuda.driver"):
        yield from _build_prerequisites(machine, root, which)


def _judge_import(
    name: str, imported: Imported, version_of: Callable[[str], str | None]
) -> Finding:
    versions = (version_of(distribution) for distribution in DISTRIBUTIONS[name])
    version = next((v for v in versions if v is not None), None)
    error = next((imported.errors[m] for m in MODULES[name] if m in imported.errors), "")
    known = (remedy for words, remedy in REMEDIES if re.search(words, error))
    return judge(
        name,
        not error,
        f"{version or 'not installed'}: {error}" if error else version or "imports",
        expected="can be imported",
        remedy=INSTALL[name] if version is None else next(known, INSTALL[name]),
    )


def _judge_driver(answer: CudaAnswer) -> Finding:
    """Asked for GPUs, CUDA says whether driver and bindings fit."""
    if answer.status == 0:
        found = f"CUDA {_version(answer.driver)}, {answer.num_gpus} GPU"
    else:
        found = (
            f"error {answer.status} ({answer.name}): driver {_version(answer.driver)}, "
            f"cuda.bindings for {_version(answer.runtime)}"
        )
    return judge(
        "CUDA driver",
        answer.status == 0 and answer.num_gpus > 0,
        found,
        expected="one GPU",
        remedy=CUDA_ERRORS.get(
            answer.status,
            "the GPU does not answer: let this user into its group (sudo usermod -aG video,render "
            "$USER, and log in again); in a container: docker run --runtime nvidia; else start the "
            "board again",
        ),
    )


def _version(number: int) -> str:
    """12060 is 12.6; 0 is what CUDA says where there is no driver."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else "none"


def _build_prerequisites(
    machine: Machine, root: Path, which: Callable[[str], str | None]
) -> Iterator[Finding]:
    """pycuda comes as a source and is compiled on the board."""
    python = major_minor(machine.python)
    headers = [
        p for p in ("usr", "usr/local") if (root / p / f"include/python{python}/Python.h").exists()
    ]
    on_path = which("nvcc")
    is_there = bool(paths_of(root, NVCC))
    yield judge(
        "nvcc",
        on_path is not None,
        on_path or (f"/{NVCC}, which is not on PATH" if is_there else "none"),
        expected="on PATH: pycuda is compiled here",
        remedy="export PATH=/usr/local/cuda/bin:$PATH, in ~/.profile too"
        if is_there
        else "sudo apt install nvidia-jetpack, and then: export PATH=/usr/local/cuda/bin:$PATH",
    )
    yield judge(
        "g++",
        which("g++") is not None,
        which("g++") or "none",
        expected="on PATH: pycuda is compiled here",
        remedy="sudo apt install g++",
    )
    yield judge(
        "python3-dev",
        bool(headers),
        "headers of Python" if headers else f"no Python.h of Python {python}",
        expected="the headers of this Python: pycuda is compiled here",
        remedy=f"sudo apt install python{python}-dev",
    )
    has_venv = bool(paths_of(root, f"usr/lib/python{python}/ensurepip"))
    yield judge(
        "python3-venv",
        has_venv,
        "present" if has_venv else "python3 -m venv makes no environment with pip",
        expected="present: the runtime has an environment of its own",
        remedy=f"sudo apt install python{python}-venv",
        otherwise="warning",
    )
