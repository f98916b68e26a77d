"""pytest in a fork of a process that has imported the libraries, but nothing of the project.

A child of its own process group writes what it prints to a file, has limits of its own, and is
gone with everything that it started when it ends. CPU time is limited rather than time, which a
busy machine stretches; what waits for ever meets the limit on time as well.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.abc
import importlib.machinery
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LIBRARIES = [
    *("numpy", "torch", "torch.onnx", "onnx", "onnx.reference", "onnxscript", "scipy.stats"),
    *("transformers", "diffusers", "modelopt.torch.quantization", "bitsandbytes", "tokenizers"),
    *("safetensors.torch", "hypothesis.extra.numpy", "tyro", "rich.progress", "tiktoken", "av"),
]
"""Without onnxruntime and pyarrow, which start threads when they are imported."""
TIMED_OUT = -signal.SIGXCPU
RUNNING: set[int] = set()


def import_libraries() -> None:
    """One thread is all that survives a fork, so no library may start another."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in LIBRARIES:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise SystemExit(f"mutants: {threads} threads after {LIBRARIES}; set OMP_NUM_THREADS=1")


@dataclass(frozen=True, slots=True)
class Child:
    """A fork that is running."""

    pid: int
    folder: Path
    """Where it writes, `output.txt` among others."""
    deadline_s: float

    def ended(self) -> int | None:
        """Its exit code; minus the signal that ended it."""
        over = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if over is None and time.monotonic() < self.deadline_s:
            return None
        _end_group(self.pid)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return TIMED_OUT if code in (-signal.SIGXCPU, -signal.SIGKILL) else code

    def result(self) -> int:
        """Waits for the exit code."""
        while (code := self.ended()) is None:
            time.sleep(0.05)
        return code


def fork(work: Callable[[], int], folder: Path, cpu_s: float) -> Child:
    """Run `work` in a child; it has `cpu_s` of CPU, and ten times that of time."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        RUNNING.add(pid)
        return Child(pid, folder, time.monotonic() + 60 + 10 * cpu_s)
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        seconds = int(cpu_s) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        home = folder / "home"
        home.mkdir(exist_ok=True)
        os.environ["HOME"] = str(home)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_group(pid: int) -> None:
    RUNNING.discard(pid)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@atexit.register
def _end_all() -> None:
    for pid in tuple(RUNNING):
        _end_group(pid)


def run_pytest(files: Sequence[str], base: Path, *plugins: Any) -> int:
    """Exit code of pytest on these files, with temporary files below `base`."""
    from hypothesis import settings

    settings.register_profile("mutants", derandomize=True, database=None, deadline=None)
    settings.load_profile("mutants")
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    arguments += ["-m", "not full and not gpu", f"--basetemp={base / 'tests'}", *files]
    return int(pytest.main(arguments, plugins=list(plugins)))


class SharedFolder:
    """Puts what earlier runs have made for all tests where this run's fixtures look for it."""

    def __init__(self, kept: Path, without: frozenset[str], *, keep: bool) -> None:
        self.kept, self.without, self.keep = kept, without, keep

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """`keep`: what this run makes stays for the next ones."""
        self.kept.mkdir(parents=True, exist_ok=True)
        factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
        folder = factory.getbasetemp() / "shared"
        if self.keep:
            folder.symlink_to(self.kept.resolve())
            return
        folder.mkdir()
        for path in self.kept.iterdir():
            if path.is_dir() and path.name not in self.without:
                # Copies: onnx takes weights with a second link for an attack.
                copy = os.link if path.name == "traces" else shutil.copy2
                shutil.copytree(path, folder / path.name, copy_function=copy)


class InPlaceOf(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from another text than its file's."""

    def __init__(self, module: str, path: Path, text: str) -> None:
        self.module, self.path, self.text = module, path.resolve(), text

    def find_spec(
        self, fullname: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=str(self.path))
        spec.has_location = True
        return spec

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_data(self, path: object) -> bytes:
        return self.text.encode()
