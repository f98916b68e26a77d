"""The first file system of a boot, as small as it can be: modules for the disk, and a shell."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4", "crc32c_generic")
"""Disk, network and file system; what they need comes along."""
FOLDERS = ("bin", "dev", "modules", "root")
FOLDER = stat.S_IFDIR | 0o755
PROGRAM = stat.S_IFREG | 0o755
DATA = stat.S_IFREG | 0o644


def load_order(modules_dep: str, builtin: str, wanted: Iterable[str]) -> list[str]:
    """Files of modules, each after those that it needs.

    Args:
        modules_dep: text of `modules.dep`: `file: files that it needs`, the deepest last.
        builtin: text of `modules.builtin`: what the kernel holds itself.
        wanted: names, with underscores.

    Raises:
        ValueError: this kernel has no such module.
    """
    lines = (line.partition(":") for line in modules_dep.splitlines())
    needs = {file: rest.split() for file, _, rest in lines}
    files = {_name_of(file): file for file in needs}
    held = {_name_of(file) for file in builtin.split()}
    order: dict[str, None] = {}

    def add(file: str) -> None:
        for needed in needs[file]:
            add(needed)
        order.setdefault(file)

    for name in wanted:
        if name in files:
            add(files[name])
        elif name not in held:
            raise ValueError(f"this kernel has no module {name!r}")
    return list(order)


def _name_of(file: str) -> str:
    """`kernel/fs/ext4/ext4.ko.xz` is ext4."""
    return re.sub(r"\.ko(\.\w+)?$", "", file.rpartition("/")[2]).replace("-", "_")


def initrd(root: Path, first_process: bytes) -> bytes:
    """For the one kernel in `root`, a system with a static busybox.

    Args:
        first_process: a script; it finds the modules' names in `/modules/order`.
    """
    (modules,) = (root / "lib" / "modules").iterdir()
    texts = [(modules / name).read_text() for name in ("modules.dep", "modules.builtin")]
    order = [modules / file for file in load_order(texts[0], texts[1], MODULES)]
    if compressed := [path.name for path in order if path.suffix != ".ko"]:
        raise ValueError(f"modules are compressed, which busybox does not load: {compressed}")
    files = {
        "init": (PROGRAM, first_process),
        "bin/busybox": (PROGRAM, (root / "bin" / "busybox").read_bytes()),
        "modules/order": (DATA, "".join(f"{path.name}\n" for path in order).encode()),
    }
    files |= {f"modules/{path.name}": (DATA, path.read_bytes()) for path in order}
    return archive({name: (FOLDER, b"") for name in FOLDERS} | files)


def archive(entries: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Mode and content by path, as a cpio archive that the kernel unpacks (newc)."""
    return b"".join(_records({**entries, "TRAILER!!!": (0, b"")}))


def _records(entries: Mapping[str, tuple[int, bytes]]) -> Iterator[bytes]:
    for number, (path, (mode, content)) in enumerate(entries.items(), 1):
        name = path.encode() + b"\0"
        # inode, mode, user, group, links, time, size, 4 device numbers, length of name, no sum
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        yield _padded(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        yield _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
