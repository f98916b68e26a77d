"""The simulated TensorRT on a virtual board, where the system's Python has it as JetPack's does."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tests.simulation.installed import SHIMS, VERSIONS
from tests.virtual_board.board import VirtualBoard

ROOT = Path(__file__).parents[2]
PLACE = "/usr/lib/python3/dist-packages"
"""What a virtual environment sees that was made with --system-site-packages."""
SHIM = "from tests.simulation.installed import put_in_place\n\nput_in_place()\n"
COMPILER = "tests/runtime/stand_ins/tensorrt_without_gpu/tensorrt.py"


def install_simulated_tensorrt(board: VirtualBoard) -> None:
    """Put `tensorrt`, `pycuda` and `cuda` into its Python; over what was put there before.

    They need numpy, ONNX Runtime and our runtime, which an environment brings that uses them.
    """
    board.ssh(["tar", "-x", "--no-same-owner", "-C", PLACE], stdin=_archive())
    names = [f"{PLACE}/tests", *(f"{PLACE}/{name}.py" for name in SHIMS)]
    board.ssh(["python3", "-m", "compileall", "-q", *names])
    board.ssh(["sync"])


def files() -> Iterator[tuple[str, str]]:
    """Path below the place, and text."""
    modules = sorted((ROOT / "tests" / "simulation").glob("*.py"))
    for path in (*(p for p in modules if not p.name.startswith("test_")), ROOT / COMPILER):
        yield str(path.relative_to(ROOT)), path.read_text()
    for name in SHIMS:
        yield f"{name}.py", SHIM
    for name, version in VERSIONS.items():
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        yield f"{name.replace('-', '_')}-{version}.dist-info/METADATA", about


def _archive() -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, text in files():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), 0o644
            tar.addfile(member, io.BytesIO(text.encode()))
    return raw.getvalue()
