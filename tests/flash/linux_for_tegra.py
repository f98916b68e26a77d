"""A Linux_for_Tegra made for a test: what staging looks at, and nothing that flashes anything."""

import os
from pathlib import Path

from export.release.config import FlashOsConfig, KeysConfig, ReleaseConfig, SignConfig
from export.release.signing import make_keys, sign
from tests.flash.board import stand_in_wheelhouse
from tests.runtime.test_declarations import family
from tests.runtime.test_refused_manifests import INPUTS

RELEASED = "# R{} (release), REVISION: {}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: x\n"
"""As /etc/nv_tegra_release says it."""
CONFS = (
    "jetson-agx-orin-devkit",
    "jetson-orin-nano-devkit",
    "jetson-orin-nano-devkit-super",
    "jetson-agx-thor-devkit",
)
SCRIPTS = (
    "flash.sh",
    "l4t_initrd_flash.sh",
    "tools/kernel_flash/l4t_initrd_flash.sh",
    "apply_binaries.sh",
)
RECORDS = (
    '#!/bin/sh\nfor word in "$0" "$PWD" "$@"; do echo "$word"; done >> ran\nexit $(cat code)\n'
)
"""In place of a script that flashes: says how it was called."""
SYSTEM = "etc/systemd/system"


def linux_for_tegra(folder: Path, major=36, revision="4.3"):
    """The tree, with the sample root file system and NVIDIA's packages in it."""
    python = "python3.12" if major > 36 else "python3.10"
    folder.mkdir()
    for name in CONFS:
        (folder / f"{name}.conf").write_text("")
    for name in SCRIPTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(RECORDS)
        (folder / name).chmod(0o755)
    (folder / "code").write_text("0")
    root = folder / "rootfs"
    for name in (
        "opt",
        "usr/bin",
        f"usr/lib/{python}/ensurepip",
        f"{SYSTEM}/multi-user.target.wants",
    ):
        (root / name).mkdir(parents=True)
    (root / f"usr/lib/{python}/dist-packages/tensorrt").mkdir(parents=True)
    (root / "usr/bin" / python).write_text("")
    (root / "usr/bin/python3").symlink_to(python)
    (root / "etc/nv_tegra_release").write_text(RELEASED.format(major, revision))
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / f"{SYSTEM}/multi-user.target.wants/ssh.service").symlink_to("/lib/ssh.service")
    (root / f"{SYSTEM}/ssh.service.d").mkdir()
    for path in (root, *root.rglob("*")):  # whatever the umask is
        if path.is_dir():
            path.chmod(0o755)
    return folder


class Maker:
    """Configurations of a small signed bundle for a tree. Args: a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        make_keys(KeysConfig(out=folder / "keys"))
        self.key = folder / "keys/release.key"
        self.trust = folder / "keys/release.pub"
        self.bundle = family(folder / "bundle", INPUTS)

    def wheels(self, *behaviour):
        path = self.folder / f"wheels-{'-'.join(behaviour)}"
        return path if path.exists() else stand_in_wheelhouse(path, *behaviour)

    def __call__(self, tree, *behaviour, board="orin-agx-64", number=1, signed=True, **changes):
        if signed:
            sign(SignConfig(bundle=self.bundle, key=self.key, number=number))
        own = {n: changes.pop(n) for n in ("conf", "run") if n in changes}
        given = {
            "bundle": self.bundle,
            "wheelhouse": self.wheels(*behaviour),
            "backend": "onnxruntime",
            "trust": self.trust,
            "health_s": 20.0,
        }
        return FlashOsConfig(board=board, l4t=tree, release=ReleaseConfig(**given | changes), **own)


def contents(folder: Path):
    """Every name below it: (mode, owner, what it is or leads to, inode and time of a file)."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        what = os.readlink(path) if path.is_symlink() else None
        when = (status.st_ino, status.st_mtime_ns) if path.is_file() else None
        found[path.relative_to(folder).as_posix()] = (
            oct(status.st_mode), (status.st_uid, status.st_gid), what, when,
        )  # fmt: skip
    return found
