"""A release staged in NVIDIA's root file system: what is there afterwards, and what is refused."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from export.errors import ExportError
from export.release import root_files
from export.release.agent import install, service
from export.release.agent.place import Place
from export.release.agent.transfer import hash_of
from export.release.archive import agent_archive
from export.release.flash import Prepared
from export.release.flash_os import flash_os
from export.release.jetson import JETSONS
from export.release.targets import JETPACKS
from quant.boards import BOARDS, OTHER_NAMES
from runtime.board.supported import TARGETS
from tests.flash.board import stand_in_commands
from tests.flash.linux_for_tegra import SYSTEM, contents, linux_for_tegra

IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root gives files to others")
UNITS = ("anchorvla.service", "anchorvla-settle.service", "anchorvla-first-boot.service")


# --- what is staged ---


def test_the_right_files_owners_modes_and_links(tree, stage):
    if IS_ROOT:
        for path in (*stage.wheels().rglob("*"), *stage.bundle.rglob("*")):
            os.chown(path, 1000, 1000)
    before = contents(tree / "rootfs")
    umask = os.umask(0o077)
    try:
        flash_os(stage(tree))
    finally:
        os.umask(umask)
    after = contents(tree / "rootfs")
    assert {name: after[name] for name in before} == before
    new = {name: entry for name, entry in after.items() if name not in before}
    (release,) = (tree / "rootfs/opt/anchorvla/releases").iterdir()
    at = f"opt/anchorvla/releases/{release.name}"
    (wheel,) = (stage.wheels() / "wheels").iterdir()
    bundle = {
        p.relative_to(stage.bundle).as_posix() for p in stage.bundle.rglob("*") if p.is_file()
    }
    (key,) = (tree / "rootfs/etc/anchorvla/trust").iterdir()
    files = {
        "opt/anchorvla/first-boot.json", f"{at}/release.json", f"{at}/requirements.txt",
        f"{at}/wheels/{wheel.name}", *(f"{at}/bundle/{name}" for name in bundle),
        f"etc/anchorvla/trust/{key.name}", "etc/sysusers.d/anchorvla.conf",
        *(f"{SYSTEM}/{unit}" for unit in UNITS),
    }  # fmt: skip
    links = {f"{SYSTEM}/multi-user.target.wants/{unit}": f"/{SYSTEM}/{unit}" for unit in UNITS}
    folders = {parent.as_posix() for name in files for parent in Path(name).parents} - before.keys()
    folders.remove(".")
    assert new.keys() == files | folders | links.keys() | {"opt/anchorvla/agent.pyz"}
    modes = {name: int(mode, 8) for name, (mode, *_) in new.items()}
    assert {modes[name] for name in files} == {stat.S_IFREG | 0o644}
    assert {modes[name] for name in folders} == {stat.S_IFDIR | 0o755}
    assert modes["opt/anchorvla/agent.pyz"] == stat.S_IFREG | 0o755
    assert {name: new[name][2] for name in links} == links
    assert {owner for _, owner, *_ in new.values()} == {root_files.OWNER}
    agent = tree / "rootfs/opt/anchorvla/agent.pyz"
    assert agent.read_bytes() == agent_archive()
    assert json.loads((tree / "rootfs/opt/anchorvla/first-boot.json").read_bytes()) == {
        "release": release.name
    }
    assert key.read_bytes() == stage.trust.read_bytes()


def test_the_release_lies_there_as_a_flash_unpacks_it(tree, stage, tmp_path):
    config = stage(tree)
    flash_os(config)
    target = JETPACKS[6]
    facts = {"machine": target.machine, "python": list(target.python), "glibc": "2.35"}
    release = Prepared(config.release).release_for(facts)
    board = Place(tmp_path / "board")
    board.incoming.mkdir(parents=True)
    for sha256, source in release.sources.items():
        shutil.copyfile(source, board.incoming / sha256)
    assert install.unpack(board, release.name, json.loads(release.to_json()))
    staged = Place(tree / "rootfs/opt/anchorvla")
    assert staged.all() == board.all() == [release.name]
    assert staged.described(release.name)["python"] == [3, 10]

    def seen(folder):
        return {
            path.relative_to(folder).as_posix(): (
                path.lstat().st_mode, path.is_file() and path.read_bytes(),
            )
            for path in folder.rglob("*")
        }  # fmt: skip

    assert seen(staged.folder(release.name)) == seen(board.folder(release.name))


def test_the_board_finds_its_units_as_it_would_write_them(tree, stage, tmp_path, monkeypatch):
    """Which is why the first boot may leave the user to systemd."""
    flash_os(stage(tree))
    commands = stand_in_commands(tmp_path, tmp_path / "state")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("ANCHORVLA_SYSTEMD", str(tmp_path / "state"))
    texts = service.units(Place(Path("/opt/anchorvla")))
    assert texts.keys() == {*UNITS[:2], "anchorvla.conf"}
    assert not service.install(Place(tree, tree / "rootfs"), texts)


def test_staging_again_changes_nothing(tree, stage, capsys):
    flash_os(stage(tree))
    before = contents(tree)
    capsys.readouterr()
    flash_os(stage(tree))
    assert "stage        all is there" in capsys.readouterr().out
    assert contents(tree) == before


def test_another_release_takes_the_place_of_the_staged_one_and_of_nothing_else(tree, stage):
    flash_os(stage(tree))
    mine = tree / "rootfs/opt/mine"
    mine.write_text("somebody's")
    before = contents(tree / "rootfs")
    flash_os(stage(tree, number=2))
    (release,) = (tree / "rootfs/opt/anchorvla/releases").iterdir()
    assert release.name.startswith("2-")
    armed = json.loads((tree / "rootfs/opt/anchorvla/first-boot.json").read_bytes())
    assert armed == {"release": release.name}
    after = contents(tree / "rootfs")
    changed = {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}
    assert {n.split("/releases/")[0] for n in changed} == {
        "opt/anchorvla", "opt/anchorvla/first-boot.json",
    }  # fmt: skip


DAMAGE = {
    "a byte": lambda release: (release / "bundle/manifest.json").write_bytes(b"{}"),
    "a mode": lambda release: (release / "requirements.txt").chmod(0o666),
    "a file more": lambda release: (release / "wheels/other.whl").write_text("x"),
    "a file less": lambda release: (release / "requirements.txt").unlink(),
    "a folder's mode": lambda release: (release / "wheels").chmod(0o777),
    "a description": lambda release: (release / "release.json").write_text("{}"),
    "a pipe": lambda release: os.mkfifo(release / "bundle/pipe", 0o755),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_changed_in_a_staged_release_is_put_right(tree, stage, damage):
    flash_os(stage(tree))
    (release,) = (tree / "rootfs/opt/anchorvla/releases").iterdir()
    whole = {n: entry[:3] for n, entry in contents(tree / "rootfs").items()}
    hashes = {p: hash_of(p) for p in release.rglob("*") if p.is_file()}
    DAMAGE[damage](release)
    flash_os(stage(tree))
    assert {n: entry[:3] for n, entry in contents(tree / "rootfs").items()} == whole
    assert {p: hash_of(p) for p in release.rglob("*") if p.is_file()} == hashes


@needs_root
@pytest.mark.parametrize("name", ["agent.pyz", "releases/*/bundle/manifest.json"])
def test_what_was_given_to_somebody_else_is_taken_back(tree, stage, name):
    flash_os(stage(tree))
    (path,) = (tree / "rootfs/opt/anchorvla").glob(name)
    os.chown(path, 1000, 0)
    flash_os(stage(tree))
    assert path.stat().st_uid == 0


def test_cut_off_anywhere_nothing_is_armed_that_is_not_whole_and_the_next_staging_converges(
    tree, stage, monkeypatch
):
    flash_os(stage(tree))
    wanted, count, cuts, was_cut = None, 0, 0, True
    config = stage(tree, number=2)

    class Cut(BaseException):
        pass

    while was_cut:
        left, real, was_cut = [count], os.fsync, False

        def fsync(number, left=left, real=real):
            if not left[0]:
                raise Cut
            left[0] -= 1
            return real(number)

        old = shutil.copytree(tree, tree.parent / "old", symlinks=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            try:
                flash_os(config)
            except Cut:
                was_cut, cuts = True, cuts + 1
        place = Place(tree / "rootfs/opt/anchorvla")
        if place.first_boot.exists():
            release = json.loads(place.first_boot.read_bytes())["release"]
            for name, entry in place.described(release)["files"].items():
                assert hash_of(place.folder(release) / name) == entry["sha256"]
        flash_os(config)
        assert place.all() and place.all()[0].startswith("2-")
        names = {n: entry[:3] for n, entry in contents(tree).items()}
        wanted = wanted or names
        assert names == wanted
        shutil.rmtree(tree)
        old.rename(tree)
        count += 4
    assert cuts > 5


@needs_root
def test_a_folder_that_hands_its_group_on_hands_it_to_nothing_of_ours(tree, stage):
    for name in ("opt", "etc", SYSTEM):
        os.chown(tree / "rootfs" / name, 0, 50)
        (tree / "rootfs" / name).chmod(0o2755)
    before = contents(tree / "rootfs")
    flash_os(stage(tree))
    new = {n: entry for n, entry in contents(tree / "rootfs").items() if n not in before}
    assert {owner for _, owner, *_ in new.values()} == {(0, 0)}


# --- how the board is flashed ---

NVME = (
    "./tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1 -c "
    "tools/kernel_flash/flash_l4t_t234_nvme.xml -p '-c bootloader/generic/cfg/flash_t234_qspi.xml' "
    "--showlogs --network usb0 {} internal"
)


@pytest.mark.parametrize(
    ("board", "released", "command"),
    [
        ("orin-agx-64", (36, "4.3"), "./flash.sh jetson-agx-orin-devkit internal"),
        ("orin-nx-16", (36, "5.0"), NVME.format("jetson-orin-nano-devkit")),
        ("orin-nano-8", (36, "4.0"), NVME.format("jetson-orin-nano-devkit")),
        ("orin-nx-16gb-super", (36, "4.4"), NVME.format("jetson-orin-nano-devkit-super")),
        ("orin-agx-64", (39, "2.0"), "./l4t_initrd_flash.sh jetson-agx-orin-devkit internal"),
        ("orin-nano-8", (39, "2.1"), "./l4t_initrd_flash.sh jetson-orin-nano-devkit internal"),
        ("thor", (39, "2.2"), "./l4t_initrd_flash.sh jetson-agx-thor-devkit internal"),
    ],
)
def test_the_vendors_command_is_printed_and_not_run(
    tmp_path, stage, capsys, board, released, command
):
    tree = linux_for_tegra(tmp_path / "L4T", *released)
    flash_os(stage(tree, board=board))
    assert capsys.readouterr().out.splitlines()[-1].endswith(f": cd {tree} && sudo {command}")
    assert not (tree / "ran").exists()
    (place,) = [Place(tree / "rootfs/opt/anchorvla")]
    assert place.described(place.all()[0])["python"] == [3, 10 if released[0] == 36 else 12]


def test_every_board_that_is_forecast_can_be_flashed_for_the_same_gpu():
    names = {**dict.fromkeys(BOARDS, ""), **OTHER_NAMES}
    found = {name: TARGETS[JETSONS[name].sm] for name in names}
    assert found == {name: BOARDS[OTHER_NAMES.get(name, name)].target for name in names}
    assert JETSONS.keys() == names.keys()


def test_another_carrier_board_has_its_own_configuration(tree, stage, capsys):
    (tree / "my-carrier+orin.conf").write_text("")
    flash_os(stage(tree, conf="my-carrier+orin"))
    assert capsys.readouterr().out.splitlines()[-1].endswith("./flash.sh my-carrier+orin internal")


def test_with_run_the_command_is_run_in_the_tree_after_all_was_staged(tree, stage):
    script = tree / "flash.sh"
    script.write_text(script.read_text().replace("for", "ls rootfs/opt/anchorvla > saw\nfor", 1))
    flash_os(stage(tree, run=True))
    assert (tree / "ran").read_text().splitlines() == [
        "./flash.sh", str(tree), "jetson-agx-orin-devkit", "internal",
    ]  # fmt: skip
    assert (tree / "saw").read_text().split() == ["agent.pyz", "first-boot.json", "releases"]
    (tree / "code").write_text("3")
    with pytest.raises(
        ExportError, match="flash.sh ended with exit code 3, see above; is the boar"
    ):
        flash_os(stage(tree, run=True))


# --- the units ---


def analyze(*words):
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or "--offline" not in analyze("--help")[1],
    reason="no systemd-analyze that looks at files",
)


@needs_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_staged_units_are_ones_that_systemd_takes_and_exposes_little(tree, stage, unit):
    flash_os(stage(tree))
    path = tree / f"rootfs/{SYSTEM}/{unit}"
    assert analyze("verify", "--man=no", str(path)) == (0, "")
    code, said = analyze("security", "--offline=yes", "--threshold=40", str(path))
    assert code == 0, said
    broken = tree / "broken.service"
    broken.write_text(path.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    assert analyze("verify", "--man=no", str(broken))[1] != "", "it says when it is not"


@needs_analyze
def test_a_boot_finds_no_cycle_among_the_staged_units(tree, stage, monkeypatch):
    flash_os(stage(tree))
    units = tree / "rootfs" / SYSTEM
    (units / "multi-user.target.wants/ssh.service").unlink()
    monkeypatch.setenv("SYSTEMD_UNIT_PATH", f"{units}:")
    assert analyze("verify", "--man=no", "multi-user.target") == (0, "")
    service = units / "anchorvla.service"
    cycle = service.read_text().replace("After=", "After=anchorvla-first-boot.service ", 1)
    service.write_text(cycle)
    assert "ordering cycle" in analyze("verify", "--man=no", "multi-user.target")[1]
