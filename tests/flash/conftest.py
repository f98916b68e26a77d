"""A board on loopback, NVIDIA's tree, keys, and releases of a small bundle."""

import os
import subprocess

import pytest

from export.release import root_files
from export.release.config import FlashConfig, KeysConfig, ReleaseConfig, SignConfig
from export.release.flash import flash
from export.release.signing import make_keys, sign
from tests.flash.board import loopback_board, stand_in_wheelhouse
from tests.flash.linux_for_tegra import Maker, linux_for_tegra
from tests.runtime.test_declarations import family
from tests.runtime.test_refused_manifests import INPUTS


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release-keys")
    make_keys(KeysConfig(out=folder / "keys"))
    return folder / "keys"


@pytest.fixture
def board(tmp_path):
    """That nothing was flashed to."""
    with loopback_board(tmp_path / "board") as board:
        yield board


@pytest.fixture
def make(tmp_path, keys, board):
    return maker(tmp_path, keys, board)


@pytest.fixture(scope="session")
def once_flashed(tmp_path_factory, keys):
    """The folder of a board with release 1."""
    folder = tmp_path_factory.mktemp("once")
    with loopback_board(folder / "board") as board:
        flash(maker(folder, keys, board)())
    return folder / "board"


@pytest.fixture
def flashed(board, once_flashed):
    """A board with release 1, whose service is not running."""
    for name in ("opt", "system"):
        copy = ["cp", "-a", f"{once_flashed / name}/.", str(board.folder / name)]
        (board.folder / name).mkdir(exist_ok=True)
        subprocess.run(copy, check=True)
    for left in ("show", "supervisor"):
        (board.system / "systemd" / left).unlink(missing_ok=True)
    return board


def maker(folder, keys, board):
    """Makes flash configurations of a small signed bundle."""
    bundle = family(folder / "bundle", INPUTS)

    def make(*behaviour, number=1, dry_run=False, wheels_of=None, **changes):
        sign(SignConfig(bundle=bundle, key=keys / "release.key", number=number))
        wheels = wheels_of or folder / "wheels"
        if not wheels.exists():
            stand_in_wheelhouse(wheels)
        (board.system / f"behaviour-{number}").write_text(" ".join(behaviour))
        given = {"trust": keys / "release.pub", "health_s": 20.0} | changes
        release = ReleaseConfig(bundle=bundle, wheelhouse=wheels, backend="onnxruntime", **given)
        return FlashConfig(board=board.config(), release=release, dry_run=dry_run)

    return make


@pytest.fixture
def root(monkeypatch):
    """Who tests as somebody else than root stages files of his own."""
    if os.geteuid():
        monkeypatch.setattr(root_files, "OWNER", (os.getuid(), os.getgid()))
        monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def tree(tmp_path, root):
    return linux_for_tegra(tmp_path / "Linux_for_Tegra")


@pytest.fixture
def stage(tmp_path, root):
    """Makes what `flash_os` is asked for."""
    return Maker(tmp_path)
