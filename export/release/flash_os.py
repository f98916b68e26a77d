"""A release in NVIDIA's root file system: boards that are flashed with it run it by themselves.

The agent, its units, the key that the board trusts and the release are staged as a flash leaves
them before it makes the environment. `first-boot.json` comes last: without it the board does
nothing, and with it goes on from there, by `export.release.agent.first_boot`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from packaging.utils import parse_wheel_filename

from export.errors import ExportError
from export.release.agent import service
from export.release.agent.place import ID, RELEASE, WHEELS, Place
from export.release.agent.transfer import hash_of
from export.release.archive import agent_archive
from export.release.config import ROOT, FlashOsConfig
from export.release.flash import GB, Prepared, tell
from export.release.jetson import JETSONS
from export.release.linux_for_tegra import Tree, lacks, look_at
from export.release.release import Release
from export.release.root_files import FILE, FOLDER, PROGRAM, Item, RootFiles, is_as
from export.release.targets import Target
from runtime.board.supported import RECIPES, TARGETS
from runtime.bundle import MANIFEST, Manifest
from runtime.storage.files import Kind
from runtime.storage.signature import SHOWN
from runtime.storage.trust import KEY_FILE, TrustedKey, key_file, read_key

PLACE = Place(Path(ROOT))
UNITS = (*service.UNITS, service.FIRST_BOOT)
LINKS = {f"etc/systemd/system/{service.WANTS}/{name}": str(PLACE.units / name) for name in UNITS}
"""As `systemctl enable` makes them."""
UNIT = Kind("a unit of flash", (b"Written by flash",))
USERS = Kind("a description of our user", (b"u anchorvla",))
OURS = re.compile(r"releases|\.?(agent\.pyz|first-boot\.json)(\.partial)?")
"""All that staging leaves in `ROOT`; a board that ran has more there."""
STAGED = re.compile(rf"{ID.pattern}|\.{ID.pattern}\.partial")
WIZARD = "nv-oem-config.target"
"""That NVIDIA's boards start into until they have a user; nothing of ours runs beside it."""


def flash_os(config: FlashOsConfig) -> None:
    """Stage a release, and say how the board is flashed, or flash it if that was asked for.

    Raises:
        BundleError: the bundle or the key is damaged.
        ExportError: tree, board, bundle and packages do not belong together, or somebody else than
            root asks; the message says what to do. Or NVIDIA's command failed.
        OutputError: something in the root file system is in the way.
    """
    tree = look_at(config.l4t, config.board, config.conf)
    if os.geteuid():
        raise ExportError(
            f"{tree.rootfs}: its files have to belong to root, and only root can make such: run "
            "this with sudo"
        )
    files = RootFiles(tree.rootfs)
    prepared = Prepared(config.release)
    tell("tree", f"{tree}, for {config.board}")
    key = _key(config, prepared)
    warnings = _check_recipe(config, prepared.bundle.manifest) + lacks(tree, config.release.backend)
    release = prepared.release_for(tree.facts)
    _check_wheels(release, tree.target)
    tell("release", f"{release.name}, {release.num_bytes / GB:.2f} GB, {prepared}")
    items = _items(key)
    armed = Item(
        name=_below(PLACE.first_boot), data=json.dumps({"release": release.name}).encode() + b"\n"
    )
    _check_place(files, key, [*items, armed])
    tell("stage", _staged(files, release, items, armed))
    for line in [*warnings, *_wizard(files)]:
        tell("board", line)
    _flash(config, tree)


def _key(config: FlashOsConfig, prepared: Prepared) -> TrustedKey:
    """The key that the board will trust, which signed the bundle."""
    if config.release.trust is None:
        raise ExportError(
            "a board has to trust a key from its first boot on: name it with --trust "
            "keys/release.pub"
        )
    key, found = read_key(config.release.trust), prepared.signature
    manifest = (prepared.bundle.path / MANIFEST).read_bytes()
    if not found.is_by(key.public, manifest):
        raise ExportError(
            f"{prepared.bundle.path}: signed by {found.key[:SHOWN]}, and {config.release.trust} is "
            f"{key}, so the board would refuse it; sign it with that key, or trust the other one"
        )
    return key


def _check_recipe(config: FlashOsConfig, manifest: Manifest) -> list[str]:
    """Is the bundle for this GPU? What runs, and not at its best, is a warning."""
    here, recipe = TARGETS[JETSONS[config.board].sm], manifest.recipe
    if manifest.twin_of or recipe.target == "cpu":
        return [f"WARNING, recipe {recipe.name} is made for a CPU; better: {RECIPES[here]}"]
    if recipe.target != here:
        raise ExportError(
            f"{config.release.bundle}: recipe {recipe.name} is made for: {recipe.target}, and "
            f"{config.board} is: {here}; export it again: python -m export build {RECIPES[here]}"
        )
    return []


def _check_wheels(release: Release, target: Target) -> None:
    names = [PurePosixPath(name) for name in release.description["files"]]
    wheels = [path.name for path in names if path.parts[0] == WHEELS and path.suffix == ".whl"]
    foreign = [n for n in wheels if parse_wheel_filename(n)[3].isdisjoint(target.ranks)]
    if foreign:
        raise ExportError(
            f"{', '.join(foreign)}: not for {target.name}, which has Python {target.short_python} "
            f"on {target.machine}; assemble the wheelhouse of that one, or name none"
        )


def _items(key: TrustedKey) -> list[Item]:
    """All files but the release's."""
    texts = service.units(PLACE, (*UNITS, service.USERS))
    folders = {name: PLACE.users if name == service.USERS else PLACE.units for name in texts}
    kinds = {name: USERS if name == service.USERS else UNIT for name in texts}
    return [
        Item(name=_below(PLACE.root / "agent.pyz"), data=agent_archive(), mode=PROGRAM),
        Item(name=_below(_key_path(key)), data=key_file(key.public, key.kind), kind=KEY_FILE),
        *(
            Item(name=_below(folders[name] / name), data=text.encode(), kind=kinds[name])
            for name, text in texts.items()
        ),
    ]


def _check_place(files: RootFiles, key: TrustedKey, items: list[Item]) -> None:
    """Is all that is there ours to replace?"""
    folder = _below(PLACE.releases)
    foreign = {n for n in files.names(_below(PLACE.root)) if not OURS.fullmatch(n)}
    foreign |= {f"releases/{n}" for n in files.names(folder) if not STAGED.fullmatch(n)}
    if foreign:
        raise ExportError(
            f"{files.path / _below(PLACE.root)}: has {', '.join(sorted(foreign))}, so this is the "
            "file system of a board that ran releases; flash that one over ssh, or remove this "
            "folder"
        )
    others = set(files.names(_below(PLACE.trust))) - {_key_path(key).name}
    if others:
        raise ExportError(
            f"{files.path / _below(PLACE.trust)}: trusts {', '.join(sorted(others))} already; sign "
            "with that key, or remove it there. Further keys are added on the board: anchorvla "
            "trust add"
        )
    for item in items:
        files.check(item)
    for name, target in LINKS.items():
        files.check_link(name, target)


def _staged(files: RootFiles, release: Release, items: list[Item], armed: Item) -> str:
    """Write all of it, `armed` last; what there is to tell."""
    folder = _below(PLACE.releases)
    wanted = {name: entry["sha256"] for name, entry in release.description["files"].items()}
    described = json.dumps(json.loads(release.to_json()), indent=1).encode() + b"\n"
    known = _is_staged(files, f"{folder}/{release.name}", wanted, described)
    others = [name for name in files.names(folder) if not (known and name == release.name)]
    changed = 0
    if others or not known:
        _check_disk(files.path, 0 if known else release.num_bytes)
        if files.has(armed.name):
            files.remove(armed.name)  # what it names may be gone in a moment
        for name in others:
            files.remove(f"{folder}/{name}")
    if not known:
        changed += len(wanted) + 1
        partial = f"{folder}/.{release.name}.partial"
        for name, sha256 in wanted.items():
            files.copy(release.sources[sha256], f"{partial}/{name}", sha256)
        files.put(Item(name=f"{partial}/{RELEASE}", data=described))
        files.rename(partial, release.name)
    changed += sum(files.put(item) for item in items)
    changed += sum(files.lead(name, target) for name, target in LINKS.items())
    changed += files.put(armed)
    removed = f"; removed {', '.join(others)}" if others else ""
    return f"{changed} files written into {files.path}{removed}" if changed else "all is there"


def _is_staged(files: RootFiles, folder: str, wanted: Mapping[str, str], described: bytes) -> bool:
    """Whether a release is there, to the byte, with owners and modes, and nothing besides."""
    if not files.has(folder):
        return False
    found = {}
    with files.folder(folder) as top:
        for path in top.rglob("*"):
            status = path.lstat()
            is_file = stat.S_ISREG(status.st_mode)
            if not is_as(status, FILE if is_file else FOLDER):
                return False
            if is_file:
                found[path.relative_to(top).as_posix()] = path
            elif not stat.S_ISDIR(status.st_mode):
                return False
        if found.keys() != {*wanted, RELEASE} or found[RELEASE].read_bytes() != described:
            return False
        return all(hash_of(found[name]) == sha256 for name, sha256 in wanted.items())


def _check_disk(rootfs: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(rootfs).free
    if num_bytes * 1.1 > free:
        raise ExportError(
            f"{rootfs}: {free / GB:.2f} GB free, {num_bytes * 1.1 / GB:.2f} GB are needed: free "
            "some"
        )


def _wizard(files: RootFiles) -> list[str]:
    default = "etc/systemd/system/default.target"
    if PurePosixPath(files.led(default) or "").name != WIZARD:
        return []
    return [
        "asks at its screen for a user first, and the release waits for that; to make one now: "
        "sudo ./tools/l4t_create_default_user.sh"
    ]


def _flash(config: FlashOsConfig, tree: Tree) -> None:
    if not config.run:
        line = shlex.join(["sudo", *tree.command])
        tell(
            "flash",
            f"in recovery mode, connected by USB: cd {shlex.quote(str(tree.path))} && {line}",
        )
        return
    tell("flash", shlex.join(tree.command))
    code = subprocess.run(tree.command, cwd=tree.path, check=False).returncode
    if code:
        raise ExportError(
            f"{tree.command[0]} ended with exit code {code}, see above; is the board in recovery "
            "mode, and connected by USB? What was staged stays, so run this again"
        )
    tell("flash", "done; the board starts, and proves its release by itself")


def _key_path(key: TrustedKey) -> Path:
    return PLACE.trust / f"{key.name[:SHOWN]}.pub"


def _below(path: Path) -> str:
    """As `RootFiles` names it."""
    return str(path.relative_to("/"))
