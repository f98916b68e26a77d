"""What tests of wheelhouses assemble from: an index on this machine, requirements, a cache."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from export.release.targets import File, Target, table_bytes
from export.release.wheelhouse import Wheelhouse, assemble
from tests.simple_index import SimpleIndex, sha256, source

HERE = Target.of(
    platform.machine(),
    sys.version_info[:2],
    int(platform.libc_ver()[1].split(".")[1]),
)
TRAP = """
import pathlib
from setuptools import setup
pathlib.Path({marker!r}).write_text("ran")
setup(name={name!r}, version={version!r})
"""
WHEEL, SOURCE = "alpha-1.0-py3-none-any.whl", "pycuda-2026.1.tar.gz"
TOOLS = ("numpy", "setuptools", "wheel")


@dataclass
class Bench:
    """An index, requirements and a cache of a test."""

    index: SimpleIndex
    folder: Path

    @property
    def marker(self) -> Path:
        """Written by whoever runs a source of the index."""
        return self.folder / "ran"

    @property
    def out(self) -> Path:
        return self.folder / "wheelhouse"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def trap(self, name: str, version: str) -> bytes:
        words = {"name": name, "version": version, "marker": str(self.marker)}
        return source(name, version, TRAP.format(**words))

    def require(self, kind: str, *pins: str) -> None:
        name = f"robot-{kind}.txt" if kind else "robot.txt"
        lines = ["-r robot.txt", *pins] if kind else pins
        (self.folder / "requirements" / name).write_text("\n".join(lines))

    def known(self, **changed: str) -> Path:
        """A table of what the index has, as if make resolve had seen other hashes."""
        files = {
            file: File(sha256=changed.get(file.split("-")[0], sha256(data)))
            for file, data in self.index.files.items()
        }
        path = self.folder / "table.json"
        path.write_bytes(table_bytes(files))
        return path

    def assemble(self, *kinds: str, target: Target = HERE, **given: Path) -> Wheelhouse:
        requirements = self.folder / "requirements"
        given = {"out": self.out, "cache": self.cache, "requirements": requirements, **given}
        return assemble(target, kinds, **given)
