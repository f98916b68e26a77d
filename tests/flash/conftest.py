"""A board on loopback, NVIDIA's tree, keys, and releases of a small bundle."""

import os

import pytest

from export.release import root_files
from export.release.config import FlashConfig, KeysConfig, ReleaseConfig, SignConfig
from export.release.signing import make_keys, sign
from tests.flash.board import loopback_board, stand_in_wheelhouse
from tests.flash.linux_for_tegra import Maker, linux_for_tegra
from tests.runtime.test_declarations import family
from tests.runtime.test_refused_manifests import INPUTS


@pytest.fixture
def board(tmp_path):
    with loopback_board(tmp_path / "board") as board:
        yield board


@pytest.fixture
def keys(tmp_path):
    make_keys(KeysConfig(out=tmp_path / "keys"))
    return tmp_path / "keys"


@pytest.fixture
def make(tmp_path, keys, board):
    """Flash configurations of a small signed bundle."""
    bundle = family(tmp_path / "bundle", INPUTS)

    def make(*behaviour, number=1, dry_run=False, **changes):
        sign(SignConfig(bundle=bundle, key=keys / "release.key", number=number))
        wheels = tmp_path / f"wheels-{'-'.join(behaviour)}"
        if not wheels.exists():
            stand_in_wheelhouse(wheels, *behaviour)
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
