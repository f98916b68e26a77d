"""What flash-os refuses: nothing is written then, and the message says what to do."""

import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest

from export.errors import ExportError
from export.release.config import KeysConfig
from export.release.flash_os import flash_os
from export.release.signing import make_keys
from runtime.errors import BundleError, OutputError
from tests.flash.linux_for_tegra import RELEASED, SYSTEM, contents

IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root gives files to others")


def refused(config, words, kind=ExportError):
    """With these words, and nothing was written into the tree."""
    before = contents(config.l4t)
    with pytest.raises(kind, match=words):
        flash_os(config)
    assert contents(config.l4t) == before


# --- what is in the way ---


@pytest.mark.parametrize(
    "name",
    [
        "opt", "opt/anchorvla", "opt/anchorvla/releases", "etc/anchorvla", "etc/anchorvla/trust",
        "etc/sysusers.d", "etc/systemd", SYSTEM, f"{SYSTEM}/multi-user.target.wants",
    ],
)  # fmt: skip
def test_no_link_leads_out_of_the_tree(tree, stage, tmp_path, name):
    config = stage(tree)
    outside, path = tmp_path / "outside", tree / "rootfs" / name
    outside.mkdir()
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    refused(config, f"{path}: not a plain folder, and no link is followed out", OutputError)
    assert list(outside.iterdir()) == [] and path.is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        "opt/anchorvla/agent.pyz", "opt/anchorvla/first-boot.json", f"{SYSTEM}/anchorvla.service",
        "etc/sysusers.d/anchorvla.conf",
    ],
)  # fmt: skip
def test_no_file_is_written_through_a_link(tree, stage, tmp_path, name):
    outside, path = tmp_path / "outside", tree / "rootfs" / name
    outside.write_text("Written by flash, u anchorvla")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    refused(stage(tree), f"{path}: not a plain file", OutputError)
    assert outside.read_text() == "Written by flash, u anchorvla" and path.is_symlink()


@needs_root
@pytest.mark.parametrize("name", ["opt", "etc", SYSTEM])
@pytest.mark.parametrize(("owner", "mode"), [(1000, 0o755), (0, 0o775), (0, 0o757)])
def test_a_folder_that_others_may_change_is_refused(tree, stage, name, owner, mode):
    path = tree / "rootfs" / name
    os.chown(path, owner, 0)
    path.chmod(mode)
    refused(
        stage(tree), f"{path}: belongs to user {owner}, mode {mode:o}, and .* tar xpf", OutputError
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{SYSTEM}/anchorvla.service", "it is not a unit of flash"),
        (f"{SYSTEM}/anchorvla-first-boot.service", "it is not a unit of flash"),
        ("etc/sysusers.d/anchorvla.conf", "it is not a description of our user"),
        ("opt/anchorvla/current", "has current, so this is the file system of a board that ran"),
        ("opt/anchorvla/notes.txt", "has notes.txt, so this is"),
        ("opt/anchorvla/releases/notes.txt", "has releases/notes.txt, so this is"),
        ("etc/anchorvla/trust/other.pub", "trusts other.pub already"),
    ],
)
def test_somebodys_file_is_not_replaced(tree, stage, name, words):
    path = tree / "rootfs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("somebody's")
    refused(stage(tree), words, (OutputError, ExportError))


def test_somebodys_link_to_a_unit_of_that_name_is_not_replaced(tree, stage):
    link = tree / f"rootfs/{SYSTEM}/multi-user.target.wants/anchorvla.service"
    link.symlink_to("/usr/lib/systemd/system/anchorvla.service")
    refused(
        stage(tree), f"{link}: in the way of a link to /{SYSTEM}/anchorvla.service", OutputError
    )


# --- what does not belong together ---


def without(*names):
    def change(tree):
        for name in names:
            path = tree / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def released(words):
    return lambda tree: (tree / "rootfs/etc/nv_tegra_release").write_text(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("flash.sh"), "no flash.sh, so it is not NVIDIA's Linux_for_Tegra; unpack Jet"),
        (without("rootfs"), "no rootfs, so it is not NVIDIA's"),
        (without("flash.sh", "rootfs"), "no flash.sh, no rootfs, so"),
        (without("rootfs/usr"), "no /usr/bin in it; unpack NVIDIA's sample root file system there"),
        (without("rootfs/etc/nv_tegra_release"), r"run in .*: sudo ./apply_binaries.sh"),
        (released("nothing\n"), "names no release of Jetson Linux; run in .*apply_binaries.sh"),
        (released(RELEASED.format(35, "4.1")), r"Linux 35.4.1 \(JetPack 5\), .* JetPack 6.1 to"),
        (released(RELEASED.format(36, "3.0")), r"Jetson Linux 36.3.0 \(JetPack 6.0\), and orin"),
        (released(RELEASED.format(38, "2.1")), r"Linux 38.2.1 \(JetPack 7.0\)"),
        (released(RELEASED.format(39, "2.0")), r"python3 leads to python3.10, and JetPack 7.2 is"),
        (without("rootfs/usr/bin/python3.10"), "JetPack 6.2 is for python3.10, by which releases"),
        (without("jetson-agx-orin-devkit.conf"), "no jetson-agx-orin-devkit.conf, .* there are: "),
    ],
)  # fmt: skip
def test_a_tree_that_is_not_whole_or_of_another_version_is_refused(tree, stage, change, words):
    config = stage(tree)
    change(tree)
    refused(config, words)


def test_no_tree_at_all(tmp_path, stage):
    with pytest.raises(ExportError, match="no flash.sh, no apply_binaries.sh, no rootfs, so it is"):
        flash_os(stage(tmp_path / "gone"))


def test_a_thor_is_no_board_of_jetpack_6(tree, stage):
    refused(stage(tree, board="thor"), "thor is known to work with JetPack 7.2 or 7.2.2; unpack")


@pytest.mark.parametrize("conf", ["../evil", "-x", "a b", "a/b"])
def test_a_configuration_is_a_name(tree, stage, conf):
    refused(stage(tree, conf=conf), "no name of a configuration, such as jetson-agx-orin-devkit")


def test_a_recipe_for_another_gpu_is_refused_and_one_for_a_cpu_is_told(tree, stage, capsys):
    flash_os(stage(tree))
    assert (
        "WARNING, recipe float32 is made for a CPU; better: orin-mixed" in capsys.readouterr().out
    )
    manifest = stage.bundle / "manifest.json"
    for target in ("orin", "thor"):
        raw = json.loads(manifest.read_bytes())
        raw["recipe"] |= {"name": f"{target}-recipe", "target": target}
        manifest.write_text(json.dumps(raw))
        config = stage(tree, number=2)
        if target == "thor":
            refused(config, "thor-recipe is made for: thor, and orin-agx-64 is: orin; export it ag")
        else:
            flash_os(config)
            assert "made for a CPU" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "tags",
    [
        "cp312-cp312-manylinux2014_aarch64",
        "cp310-cp310-manylinux2014_x86_64",
        "cp310-cp310-macosx_11_0_arm64",
    ],
)
def test_packages_for_another_python_or_machine_are_refused(tree, stage, tags):
    config = stage(tree)
    good = "msgspec-0.22.0-cp310-cp310-manylinux2014_aarch64.whl"
    (config.release.wheelhouse / "wheels" / good).write_text("x")
    flash_os(config)
    foreign = f"numpy-2.2.6-{tags}.whl"
    (config.release.wheelhouse / "wheels" / foreign).write_text("x")
    refused(config, f"{foreign}: not for JetPack 6, which has Python 3.10 on aarch64")


def test_the_board_has_to_trust_who_signed(tree, stage, tmp_path):
    refused(stage(tree, trust=None), "a board has to trust a key .*: name it with --trust")
    make_keys(KeysConfig(out=tmp_path / "other"))
    other = tmp_path / "other/release.pub"
    refused(stage(tree, trust=other), f"signed by .*, and {other} is .*, so the board would refuse")
    refused(stage(tree, trust=stage.key), "a private key, which stays where", BundleError)
    config = stage(tree)
    signature = stage.bundle / "manifest.sig"
    forged = signature.read_bytes().replace(b"number 1\n", b"number 2\n")
    signature.write_bytes(forged)
    refused(config, "so the board would refuse it")
    signature.unlink()
    refused(config, "not signed, and boards run what somebody signed whom they trust")


def test_only_root_can_make_files_of_root(tree, stage, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused(stage(tree), "only root can make such: run this with sudo")


def test_a_disk_that_is_too_small_is_told_before_anything_is_copied(tree, stage, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    refused(stage(tree), "0.00 GB free, .* GB are needed: free some")


def test_a_file_that_changes_while_it_is_staged_arms_nothing(tree, stage, monkeypatch):
    config, real = stage(tree), shutil.disk_usage
    requirements = config.release.wheelhouse / "requirements.txt"
    whole = requirements.read_bytes()

    def meanwhile(path):
        requirements.write_bytes(whole + b"\n# another\n")
        return real(path)

    monkeypatch.setattr(shutil, "disk_usage", meanwhile)
    with pytest.raises(ExportError, match=f"{requirements}: was changed while it was copied"):
        flash_os(config)
    assert not (tree / "rootfs/opt/anchorvla/first-boot.json").exists()
    flash_os(config)
    (release,) = (tree / "rootfs/opt/anchorvla/releases").iterdir()
    assert (release / "requirements.txt").read_bytes() == requirements.read_bytes() != whole


def test_what_the_board_will_want_is_told(tree, stage, capsys):
    flash_os(stage(tree, backend="tensorrt"))
    assert "tried in vain" not in capsys.readouterr().out
    without("rootfs/usr/lib/python3.10")(tree)
    default = tree / f"rootfs/{SYSTEM}/default.target"
    default.symlink_to("nv-oem-config.target")
    flash_os(stage(tree, backend="tensorrt"))
    told = capsys.readouterr().out
    assert "sudo apt install python3.10-venv" in told and "apt install nvidia-jetpack" in told
    assert "sudo ./tools/l4t_create_default_user.sh" in told
    flash_os(stage(tree))
    assert "nvidia-jetpack" not in capsys.readouterr().out


def test_what_is_refused_is_not_flashed(tree, stage):
    refused(replace(stage(tree, run=True), board="thor"), "thor is known to work with JetPack 7.2")
    assert not (tree / "ran").exists()
