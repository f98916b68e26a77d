"""The disk of a virtual board, its kernel and its keys: made once, kept in a cache.

Debian 12 is unpacked by debootstrap, told to be a board by `setup.sh` and the files in `root/`, and
becomes an ext4 image without anything being mounted. Everything is remade when what it is made of
has changed; the unpacked Debian only when its packages have.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.runtime.boards.tree import plant
from tests.virtual_board.initrd import initrd

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "virtual-board"
SUITE, ARCHITECTURE = "bookworm", "amd64"
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "openssh-server", "sudo"),
    *("python3", "python3-venv", "e2fsprogs", "busybox-static", "linux-image-cloud-amd64"),
)
SIZE_MB = 3072
"""Sparse. The system takes some 300; three releases with an environment each fit."""
JETSON = "orin-nano-jetpack-6.2"
"""Whose identity files the board has: one of `tests/runtime/boards`."""
BELOW = "srv/board"
"""Where all of that board's files are, for those who read another root than `/`: /proc and /sys
are this machine's own."""
TOOLS = ("debootstrap", "unshare", "mkfs.ext4", "ssh-keygen", "ssh", "qemu-img", "e2fsck")
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """Files of a machine. The disk is never written: boards have overlays over it."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    @property
    def key(self) -> Path:
        """What root and robot are logged in with."""
        return self.folder / "key"

    @property
    def host_key(self) -> str:
        """The public one, as a line of known hosts without the host."""
        return (self.folder / "host.pub").read_text().strip()


def environment() -> dict[str, str]:
    """Tools of the administrator are not on everybody's PATH."""
    return {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", ""), *SBIN])}


def find_tool(name: str) -> str | None:
    return shutil.which(name, path=environment()["PATH"])


def reasons_to_skip(cache: Path = CACHE) -> Iterator[str]:
    """What is missing here; an image that is there needs less."""
    if missing := [tool for tool in (*TOOLS, "qemu-system-x86_64") if find_tool(tool) is None]:
        yield f"no {', '.join(missing)}: make board-tools installs them"
    if os.geteuid() != 0 and not _is_made(cache / "image", image_digest()):
        yield "only root may unpack a Debian with its owners and devices"


def image_digest() -> str:
    """Of all that an image is made of."""
    return _digest([_packages_words(), str(SIZE_MB), JETSON, *_sources()])


def _sources() -> Iterator[str]:
    board = HERE.parent / "runtime" / "boards" / f"{JETSON}.json"
    own = sorted(path for path in (HERE / "root").rglob("*") if path.is_file())
    for path in (Path(__file__), HERE / "initrd.py", HERE / "setup.sh", HERE / "initrd.sh", board):
        yield path.read_text()
    for path in own:
        yield f"{path.relative_to(HERE)}\n{path.read_text()}"


def _packages_words() -> str:
    return " ".join([SUITE, ARCHITECTURE, *PACKAGES])


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _is_made(folder: Path, digest: str) -> bool:
    done = folder.with_suffix(".done")
    return done.is_file() and done.read_text() == digest


def make_image(cache: Path = CACHE, say: Say = print) -> Image:
    """The image in `cache`, made if it is not there or was made of something else.

    Raises:
        SystemExit: a tool failed; its log is named.
    """
    digest = image_digest()
    image = Image(folder=cache / "image")
    if _is_made(image.folder, digest):
        return image
    debian = _unpacked(cache, say)
    start = time.monotonic()
    image.folder.with_suffix(".done").unlink(missing_ok=True)
    shutil.rmtree(image.folder, ignore_errors=True)
    image.folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="root-", dir=cache) as work:
        root = Path(work, "root")
        _run(["cp", "--archive", "--reflink=auto", str(debian), str(root)], cache / "setup.log")
        _furnish(root, image)
        inside = ["unshare", "--mount", "chroot", str(root), "/bin/sh", "/setup.sh"]
        _run(inside, cache / "setup.log")
        (root / "setup.sh").unlink()
        (kernel,) = (root / "boot").glob("vmlinuz-*")
        shutil.copy(kernel, image.kernel)
        image.initrd.write_bytes(initrd(root, (HERE / "initrd.sh").read_bytes()))
        with image.disk.open("wb") as disk:
            disk.truncate(SIZE_MB << 20)
        make = ["mkfs.ext4", "-q", "-F", "-m", "1", "-L", "board", "-d", str(root)]
        _run([*make, str(image.disk)], cache / "setup.log")
    image.folder.with_suffix(".done").write_text(digest)
    used = image.disk.stat().st_blocks * 512 / 1e6
    say(f"virtual board: image of {used:.0f} MB in {time.monotonic() - start:.0f} s")
    return image


def _unpacked(cache: Path, say: Say) -> Path:
    folder, digest = cache / "debian", _digest([_packages_words()])
    if _is_made(folder, digest):
        return folder
    start = time.monotonic()
    folder.with_suffix(".done").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    say(f"virtual board: unpack Debian {SUITE} (minutes; log in {cache / 'debootstrap.log'})")
    words = [f"--arch={ARCHITECTURE}", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    inside = ["unshare", "--mount", "debootstrap", *words, SUITE, str(folder)]
    _run(inside, cache / "debootstrap.log")
    folder.with_suffix(".done").write_text(digest)
    say(f"virtual board: unpacked in {time.monotonic() - start:.0f} s")
    return folder


def _furnish(root: Path, image: Image) -> None:
    """Put in what `setup.sh` and the system find there."""
    shutil.copytree(HERE / "root", root, dirs_exist_ok=True)
    shutil.copy(HERE / "setup.sh", root / "setup.sh")
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "board", "-f"]
    log = image.folder / "keys.log"
    _run([*make, str(image.key)], log)
    (root / HOST_KEY).unlink(missing_ok=True)
    _run([*make, str(root / HOST_KEY)], log)
    shutil.copy(root / f"{HOST_KEY}.pub", image.folder / "host.pub")
    shutil.copy(image.key.with_suffix(".pub"), root / "authorized_keys")
    _make_jetson(root)


def _make_jetson(root: Path) -> None:
    """Files and commands by which a Jetson is known, as far as this machine may have them."""
    board = plant(JETSON, root / BELOW)
    for path in (root / BELOW / "etc").iterdir():
        shutil.copy(path, root / "etc" / path.name)
    packages = []
    for words, said in board.commands.items():
        name = words.split()[-3] if words.startswith("timeout") else words.split()[0]
        if name == "dpkg-query":
            packages.append(f"{words.split()[-1]} {said}\n")
            continue
        program = root / "usr" / "sbin" / name
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{said.rstrip()}\nEND\n")
        program.chmod(0o755)
    (root / "packages.txt").write_text("".join(packages))


def _run(command: Sequence[str], log: Path) -> None:
    with log.open("a") as out:
        code = subprocess.run(
            command, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out
        ).returncode
    if code:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
        raise SystemExit(f"error: {command[0]} failed with exit code {code}, {log}:\n{last}")
