"""Doctor imports what the runtime will import, in a process that may die."""

import json
import subprocess
import sys

import pytest

from runtime.board import imports
from runtime.board.imports import MODULES, CudaAnswer, Imported, read_lines, try_imports

RUNTIME = """
import enum
class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInsufficientDriver = 35
def cudaGetDeviceCount(): return {count}
def cudaDriverGetVersion(): return (Status.cudaSuccess, 12060)
def cudaRuntimeGetVersion(): return (Status.cudaSuccess, 12060)
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder of stand-ins that the child process finds; all are there and well."""
    write(tmp_path / "tensorrt.py", "print('TensorRT says hello')")
    write(tmp_path / "pycuda" / "driver.py", "")
    write(
        tmp_path / "cuda" / "bindings" / "runtime.py",
        RUNTIME.format(count="(Status.cudaSuccess, 1)"),
    )
    write(tmp_path / "cuda" / "bindings" / "driver.py", "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_everything_is_imported_and_cuda_asked(modules):
    answer = CudaAnswer(status=0, name="cudaSuccess", num_gpus=1, driver=12060, runtime=12060)
    here = set(MODULES) & set(sys.modules)  # stand-ins that other tests left
    assert try_imports() == Imported(errors={}, cuda=answer)
    assert set(MODULES) & set(sys.modules) == here, "in the child, and not here"


def test_what_fails_is_told_in_its_own_words_and_the_rest_is_tried(modules):
    write(modules / "tensorrt.py", "raise ImportError('libnvdla_compiler.so: no such file')")
    (modules / "cuda" / "bindings" / "driver.py").unlink()
    found = try_imports()
    assert found.errors == {
        "tensorrt": "ImportError: libnvdla_compiler.so: no such file",
        "cuda.bindings.driver": "ModuleNotFoundError: No module named 'cuda.bindings.driver'",
    }
    assert found.cuda is None


def test_a_library_that_takes_its_process_down_is_named(modules):
    write(
        modules / "pycuda" / "driver.py", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    )
    assert try_imports() == Imported(
        errors={"pycuda.driver": "it ended the process (exit code -11)"}, cuda=None
    )


def test_a_library_that_hangs_is_given_up(monkeypatch):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, 120, output=b'{"tensorrt": ""}\n')

    monkeypatch.setattr(imports.subprocess, "run", run)
    assert try_imports() == Imported(errors={"pycuda.driver": "it took over 120 s"}, cuda=None)


@pytest.mark.parametrize(
    ("count", "status", "name"),
    [
        ("(Status.cudaErrorInsufficientDriver, None)", 35, "cudaErrorInsufficientDriver"),
        ("(Status.cudaErrorInsufficientDriver,)", 35, "cudaErrorInsufficientDriver"),
        ("_no()", -1, "Failed to dlopen libcuda.so.1"),
    ],
    ids=["cuda-bindings", "without a value", "cuda-python 12.6 without a driver"],
)
def test_what_cuda_answers_is_kept(modules, count, status, name):
    text = RUNTIME.format(count=count)
    text += "def _no(): raise RuntimeError('Failed to dlopen libcuda.so.1')\n"
    write(modules / "cuda" / "bindings" / "runtime.py", text)
    answer = try_imports().cuda
    assert answer is not None
    assert (answer.status, answer.name, answer.num_gpus) == (status, name, 0)
    assert (answer.driver, answer.runtime) == ((12060, 12060) if status > 0 else (0, 0))


def test_a_child_that_prints_nothing_failed_at_the_first_module():
    assert read_lines("", "it ended") == Imported(errors={"tensorrt": "it ended"}, cuda=None)
    printed = "\n".join(["{broken", *(json.dumps({module: ""}) for module in MODULES)])
    assert read_lines(printed, "it ended") == Imported(errors={}, cuda=None)
