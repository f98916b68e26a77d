"""NVIDIA's tree for flashing a board: is it whole, of which release, and for this board?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from export.errors import ExportError
from export.release.agent.facts import L4T, l4t_of
from export.release.jetson import COMMANDS, JETSONS
from export.release.root_files import RootFiles
from export.release.targets import JETPACKS, Target
from runtime.board.supported import RELEASES, jetpack_of, releases_for

CONF = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*")
MOST_BYTES = 4096
FLASH_SH, APPLY = "flash.sh", "apply_binaries.sh"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """A `Linux_for_Tegra` that was looked at."""

    path: Path
    l4t: str
    """Version of Jetson Linux: 36.4.3."""
    jetpack: str
    target: Target
    """What packages have to be for."""
    command: tuple[str, ...]
    """That flashes the board."""

    @property
    def rootfs(self) -> Path:
        return self.path / "rootfs"

    @property
    def facts(self) -> dict[str, Any]:
        """That a board of it will tell, as far as its packages depend on them."""
        target = self.target
        return {
            "machine": target.machine,
            "python": list(target.python),
            "glibc": f"2.{target.glibc}",
        }

    def __str__(self) -> str:
        return (
            f"Jetson Linux {self.l4t} (JetPack {self.jetpack}), Python {self.target.short_python}"
        )


def look_at(path: Path, name: str, conf: str | None = None) -> Tree:
    """Is this a whole tree, and for this board?

    Args:
        name: key of `JETSONS`.
        conf: NVIDIA's name of another configuration, for another carrier board.

    Raises:
        ExportError: it is not; the message says what to do.
    """
    jetson = JETSONS[name]
    _check_whole(path)
    l4t = _version(path)
    rows = releases_for(l4t, jetson.sm, (jetson.module,))
    if not rows:
        known = (row for row in RELEASES if jetson.sm in row.sms)
        raise ExportError(
            f"{path}: Jetson Linux {l4t} (JetPack {jetpack_of(l4t) or 'unknown'}), and {name} is "
            f"known to work with JetPack {' or '.join(row.jetpack for row in known)}; unpack that "
            "one from NVIDIA's page of Jetson Linux, and name its Linux_for_Tegra"
        )
    number, target = next(
        (number, target)
        for number, target in JETPACKS.items()
        if target.short_python == rows[0].python
    )
    conf = conf or jetson.conf
    _check_conf(path, name, conf)
    command = tuple(word.format(conf=conf) for word in COMMANDS[number, jetson.storage])
    if not (path / command[0]).is_file():
        raise ExportError(f"{path}: no {command[0]}, which flashes {name}; unpack the tree again")
    tree = Tree(path=path, l4t=l4t, jetpack=jetpack_of(l4t) or "", target=target, command=command)
    files, python = RootFiles(tree.rootfs), f"python{target.short_python}"
    led = PurePosixPath(files.led("usr/bin/python3") or "nowhere").name
    if not files.has(f"usr/bin/{python}") or led != python:
        raise ExportError(
            f"{tree.rootfs}: usr/bin/python3 leads to {led}, and JetPack {tree.jetpack} is for "
            f"{python}, by which releases are run; unpack NVIDIA's sample root file system of that "
            "version"
        )
    return tree


def lacks(tree: Tree, backend: str) -> list[str]:
    """What the board will want besides, and the root file system has not, in words."""
    python = f"usr/lib/python{tree.target.short_python}"
    wanted = [(f"{python}/ensurepip", f"python{tree.target.short_python}-venv")]
    if backend == "tensorrt":
        wanted.append((f"{python}/dist-packages/tensorrt", "nvidia-jetpack python3-libnvinfer"))
    files = RootFiles(tree.rootfs)
    return [
        f"WARNING, no {path}: until there is, each boot tries in vain; on the board, then reboot: "
        f"sudo apt install {package}"
        for path, package in wanted
        if not files.has(path)
    ]


def _check_whole(path: Path) -> None:
    missing = [name for name in (FLASH_SH, APPLY, "rootfs") if not (path / name).exists()]
    if missing:
        raise ExportError(
            f"{path}: no {', no '.join(missing)}, so it is not NVIDIA's Linux_for_Tegra; unpack "
            "Jetson_Linux_R*_aarch64.tbz2, and name the Linux_for_Tegra that comes out"
        )
    if not RootFiles(path / "rootfs").has("usr/bin"):
        raise ExportError(
            f"{path / 'rootfs'}: no /usr/bin in it; unpack NVIDIA's sample root file system there: "
            "sudo tar xpf Tegra_Linux_Sample-Root-Filesystem_*.tbz2 -C rootfs, then sudo "
            f"./{APPLY}"
        )


def _version(path: Path) -> str:
    words = RootFiles(path / "rootfs").read(L4T, MOST_BYTES)
    if words is None:
        raise ExportError(
            f"{path / 'rootfs' / L4T}: not there, so NVIDIA's packages are not in the root file "
            f"system yet; run in {path}: sudo ./{APPLY} (for a Thor with --openrm)"
        )
    found = l4t_of(words.decode(errors="replace"))
    if found is None:
        raise ExportError(
            f"{path / 'rootfs' / L4T}: names no release of Jetson Linux; run in {path}: sudo "
            f"./{APPLY}"
        )
    return found


def _check_conf(path: Path, name: str, conf: str) -> None:
    if not CONF.fullmatch(conf):
        raise ExportError(
            f"--conf {conf!r}: no name of a configuration, such as {JETSONS[name].conf}"
        )
    if not (path / f"{conf}.conf").is_file():
        there = sorted(found.stem for found in path.glob("jetson-*.conf"))
        raise ExportError(
            f"{path}: no {conf}.conf, which flashes {name}; there are: "
            f"{', '.join(there) or 'none'}. Unpack the tree that has it, or name the "
            "one of your carrier board with --conf"
        )
