"""The real thing over a real sshd: the demo's bundle, the runtime's own wheel and what it needs."""

import shutil
import sys

import pytest

from export.errors import ExportError
from export.release.config import FlashConfig, KeysConfig, ReleaseConfig, SignConfig, StatusConfig
from export.release.flash import flash
from export.release.signing import make_keys, sign
from export.release.status import status
from tests.flash.board import loopback_board


@pytest.fixture
def board(tmp_path):
    with loopback_board(tmp_path / "board") as board:
        yield board


def test_the_demo_is_flashed_served_and_confirmed_and_a_foreign_one_is_not(
    board, demo_bundle, tmp_path, capsys
):
    """Packages come from the registry the first time, as `make setup` has them."""
    bundle = tmp_path / "bundle"
    shutil.copytree(demo_bundle, bundle)
    for name in ("ours", "theirs"):
        make_keys(KeysConfig(out=tmp_path / name))

    def release(signed_by, number):
        sign(SignConfig(bundle=bundle, key=tmp_path / signed_by / "release.key", number=number))
        return FlashConfig(
            board=board.config(),
            release=ReleaseConfig(
                bundle=bundle,
                trust=tmp_path / "ours/release.pub",
                backend="onnxruntime",
                service="serve {bundle} --port 0",
                health_ticks=2,
                health_s=120.0,
            ),
        )

    flash(release("ours", 1))
    assert board.current.startswith("1-")
    capsys.readouterr()
    status(StatusConfig(board=board.config()))
    told = capsys.readouterr().out
    assert "confirmed" in told and "active (running)" in told
    assert " good ones; last " in told and "unknown" not in told
    with pytest.raises(ExportError, match="signed by the key .* but this machine runs what"):
        flash(release("theirs", 2))
    assert board.current.startswith("1-")
    version = "{}.{}".format(*sys.version_info[:2])
    installed = board.root / "current/venv/lib" / f"python{version}" / "site-packages"
    assert (installed / "runtime").is_dir() and not (installed / "torch").exists()
