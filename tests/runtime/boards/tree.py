"""A board from its JSON file, written out as a folder that a test may edit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.board.doctor import Probe, doctor
from runtime.board.imports import CudaAnswer, Imported
from runtime.board.machine import Machine, read_machine
from runtime.board.supported import Finding

BOARDS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.json")))
TOOLS = {"nvcc": "/usr/local/cuda/bin/nvcc", "g++": "/usr/bin/g++"}
ANSWER = CudaAnswer(status=0, name="cudaSuccess", num_gpus=1, driver=13020, runtime=13020)


@dataclass
class Board:
    """A machine to look at. Everything can be changed before it is looked at."""

    root: Path
    commands: dict[str, str]
    python: str
    wheels: dict[str, str]
    free_bytes: int = 10**12
    priority: int = 99
    tools: dict[str, str] = field(default_factory=lambda: dict(TOOLS))
    """What is on PATH."""
    errors: dict[str, str] = field(default_factory=dict)
    """Module -> why it cannot be imported."""
    cuda: CudaAnswer | None = ANSWER

    def fail(self, module: str, error: str) -> None:
        """It cannot be imported; without cuda.bindings nobody can be asked for GPUs."""
        self.errors[module] = error
        if module.startswith("cuda."):
            self.cuda = None

    def run(self, arguments: Sequence[str]) -> str:
        return self.commands.get(" ".join(arguments), "")

    def write(self, path: str, text: str) -> None:
        for name in expand(path):
            file = self.root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def remove(self, path: str) -> None:
        """A file or a folder, which must be there."""
        target = self.root / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()

    def machine(self) -> Machine:
        return read_machine(self.root, self.run, self.python)

    def probe(self) -> Probe:
        return Probe(
            root=self.root,
            run=self.run,
            version_of=self.wheels.get,
            free_bytes=lambda path: self.free_bytes,
            realtime_priority=lambda: self.priority,
            which=self.tools.get,
            try_imports=lambda: Imported(errors=self.errors, cuda=self.cuda),
        )

    def findings(self, bundle: Path | None = None) -> dict[str, Finding]:
        return {f.name: f for f in doctor(self.machine(), bundle, self.probe())}


def plant(name: str, root: Path) -> Board:
    """Write the board `name` of `BOARDS` below `root`."""
    raw = json.loads((Path(__file__).parent / f"{name}.json").read_text())
    board = Board(root, raw["commands"], raw["python"], raw["wheels"])
    for path, text in raw["files"].items():
        board.write(path, text)
    return board


def pc(root: Path) -> Board:
    """An x86 machine: no device tree, no Jetson Linux."""
    wheels = {
        "numpy": "2.4.6",
        "tokenizers": "0.23.3",
        "msgspec": "0.22.0",
        "pillow": "13.0.0",
        "onnxruntime": "1.31.1",
    }
    board = Board(root, {"uname -m": "x86_64\n"}, "3.11.7", wheels)
    meminfo = "MemTotal: 24684084 kB\nMemAvailable: 22377996 kB\nSwapTotal: 0 kB\n"
    board.write("proc/meminfo", meminfo)
    board.write("sys/devices/system/cpu/online", "0-1\n")
    return board


def expand(path: str) -> Iterator[str]:
    found = re.search(r"\{(\d+)-(\d+)\}", path)
    if found is None:
        yield path
        return
    for number in range(int(found[1]), int(found[2]) + 1):
        yield path.replace(found[0], str(number))
