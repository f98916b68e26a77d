"""flash over a real sshd on loopback: what a release goes through, and how it comes back.

The release's own program is a stand-in here, so that it can fail where a test wants it to;
test_real_release.py flashes the real one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from device_tests.errors import RemoteError
from export.errors import ExportError
from export.release.board import StepFailed
from export.release.config import (
    RollbackConfig,
    StatusConfig,
)
from export.release.flash import STEPS, Prepared, flash, flash_board, preflight, reached, rollback
from export.release.status import status
from tests.flash.board import stand_in_wheelhouse, wait_until


def test_a_release_is_proven_switched_to_and_confirmed(board, make, capsys):
    flash(make())
    name = board.current
    assert name.startswith("1-")
    assert [line.split()[0] for line in board.said] == ["doctor", "check", "bench", "serve"]
    assert board.said[-1] == "serve bundle --backend onnxruntime"
    assert [event["what"] for event in board.events] == ["switched", "confirmed"]
    assert not (board.root / "trial.json").exists() and not (board.root / "incoming").exists()
    told = capsys.readouterr().out
    assert "licence of the weights: " in told and "confirmed after" in told
    assert (board.system / "etc/anchorvla/trust").is_dir()


def test_nothing_secret_is_sent_or_printed(board, make, keys, capfd):
    flash(make())
    flash(make(dry_run=True))
    private = (keys / "release.key").read_text().splitlines()[1]
    told = "".join(capfd.readouterr())
    assert private not in told and "PRIVATE" not in told
    for path in (path for root in (board.root, board.system) for path in root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            assert private.encode() not in data, path


def test_a_second_flash_of_the_same_release_does_nothing(flashed, make, capsys):
    board = flashed
    before, said = tree(board.folder), board.said
    capsys.readouterr()
    flash(make())
    assert capsys.readouterr().out.splitlines()[-1].endswith("runs there already")
    assert tree(board.folder) == before and board.said == said


def test_a_changed_release_sends_only_what_changed(flashed, make, capsys):
    board, config = flashed, make()
    first = board.current
    capsys.readouterr()
    flash(make(number=2))
    (sent,) = re.findall(
        r"upload +sent ([\d,]+) bytes of ([\d,]+); ([\d,]+)", capsys.readouterr().out
    )
    signature = (config.release.bundle / "manifest.sig").stat().st_size
    assert int(sent[0].replace(",", "")) == signature
    assert board.current.startswith("2-")
    kept = board.root / "releases" / first / "bundle/manifest.json"
    assert kept.samefile(board.root / "current/bundle/manifest.json")


def test_an_environment_of_the_same_packages_is_taken_over_and_stands_alone(board, make):
    flash(make())
    old = board.root / "releases" / board.current
    flash(make(number=2))
    venv = board.root / "current/venv"
    module = next((old / "venv/lib").glob("python3*/site-packages/runtime/__main__.py"))
    assert (venv / module.relative_to(old / "venv")).samefile(module)
    shutil.rmtree(old)
    said = [path.read_text() for path in (venv / "bin").iterdir() if not path.is_symlink()]
    assert said and not any(old.name in text for text in [*said, (venv / "pyvenv.cfg").read_text()])
    pip = next(path for path in (venv / "bin").iterdir() if path.name.startswith("pip3."))
    listed = subprocess.run([pip, "list"], capture_output=True, text=True, check=True).stdout
    assert re.search(r"^anchorvla-runtime +0\.0\.1$", listed, re.M)
    assert (
        board.current
        in subprocess.run([pip, "--version"], capture_output=True, text=True, check=True).stdout
    )


def test_other_packages_have_an_environment_of_their_own(flashed, make, tmp_path):
    """Whose pip is that of another environment, and whole."""
    old = flashed.root / "releases" / flashed.current
    flash(make(number=2, wheels_of=stand_in_wheelhouse(tmp_path / "others", "other")))
    paths = [
        next(folder.glob("venv/lib/python3*/site-packages/runtime/__main__.py"))
        for folder in (old, flashed.root / "current")
    ]
    assert not paths[0].samefile(paths[1]) and "'other'" in paths[1].read_text()
    assert "'other'" not in paths[0].read_text()
    venv = flashed.root / "current/venv"
    installed = next((old / "venv/lib").glob("python3*/site-packages/pip/__main__.py"))
    assert (venv / installed.relative_to(old / "venv")).samefile(installed)
    shutil.rmtree(old)
    python = [str(venv / "bin/python"), "-I", "-m", "pip"]
    check = subprocess.run([*python, "show", "-f", "pip"], capture_output=True, text=True)
    assert check.returncode == 0 and f"Location: {venv}" in check.stdout
    listed = [line.strip() for line in check.stdout.split("Files:")[1].split()]
    site = venv / installed.parent.parent.relative_to(old / "venv")
    missing = [name for name in listed if name.startswith("pip") and not (site / name).exists()]
    assert len(listed) > 100 and not missing


@pytest.mark.parametrize(
    ("behaviour", "changes", "words"),
    [
        ("parity", {}, r"golden data: FAIL prefix_kv +3.0e-01 \(.*\) \| error: 1 of 21 differ"),
        ("", {"budget_ms": 2.5}, r"a warm tick takes 3.0 ms \(99th percentile of 50\), its budget"),
    ],
)
def test_what_is_not_proven_is_never_switched_to(flashed, make, behaviour, changes, words):
    board, old = flashed, flashed.current
    with pytest.raises(StepFailed, match=words):
        flash(make(*[behaviour] if behaviour else [], number=2, **changes))
    assert board.current == old and [e["what"] for e in board.events] == ["switched", "confirmed"]
    assert board.said[-1] != "serve bundle --backend onnxruntime"
    flash(make(number=3))
    assert board.current.startswith("3-")
    names = sorted(p.name for p in (board.root / "releases").iterdir())
    assert names == [old, board.current], "what failed is removed by the next that succeeds"


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("crash", "its service was started 3 times and was never healthy"),
        ("silent", r"not healthy within 3 s: 0 of 3 good ticks"),
    ],
)
def test_a_release_that_is_not_healthy_gives_way_by_itself(flashed, make, capsys, behaviour, why):
    board, old = flashed, flashed.current
    with pytest.raises(StepFailed, match=f"was not confirmed: {why}; the board runs {old}"):
        flash(make(behaviour, number=2, health_s=3.0 if behaviour == "silent" else 20.0))
    assert board.current == old and not (board.root / "trial.json").exists()
    wait_until(lambda: working_folder(board) == old)
    capsys.readouterr()
    status(StatusConfig(board=board.config()))
    told = capsys.readouterr().out
    assert f"current   {old}" in told and "confirmed" in told and "returned 2-" in told


def test_the_first_release_that_is_not_healthy_leaves_nothing_running(board, make, capsys):
    with pytest.raises(StepFailed, match="the board runs nothing"):
        flash(make("crash"))
    status(StatusConfig(board=board.config()))
    assert capsys.readouterr().out.splitlines()[-1] == "nothing runs here; flash a release"


def test_rollback_returns_and_returns_again(flashed, make):
    board = flashed
    flash(make(number=2))
    old, new = sorted(p.name for p in (board.root / "releases").iterdir())
    assert board.current == new
    for expected in (old, new):
        rollback(RollbackConfig(board=board.config()))
        assert board.current == expected and working_folder(board) == expected
    assert board.events[-1]["what"] == "confirmed"


def test_a_board_without_a_release_before_has_nothing_to_roll_back_to(flashed, make):
    board = flashed
    with pytest.raises(StepFailed, match="there is no release before this one; flash another"):
        rollback(RollbackConfig(board=board.config()))
    flash(make(number=2))  # and nobody holds the board


def test_an_older_release_is_refused_unless_it_is_asked_for(flashed, make):
    board = flashed
    flash(make(number=2))
    with pytest.raises(StepFailed, match="release 1 is older than 2, .*: --allow-downgrade"):
        flash(make(number=1))
    assert board.current.startswith("2-")
    flash(make(number=1, allow_downgrade=True))
    assert board.current.startswith("1-")


def test_a_board_that_trusts_a_key_takes_no_other_from_a_flash(flashed):
    token = run_agent(flashed, "lock", "--who=somebody")
    folder = flashed.system / "etc/anchorvla/trust"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    words = ("trust", f"--token={token}", "--name=" + "ab" * 8 + ".pub")
    assert run_agent(flashed, *words, given="another key") is False
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and before


def test_two_at_once_and_the_second_says_who_is_first(flashed, make):
    board = flashed
    token = run_agent(board, "lock", "--who=ada on desk")
    with pytest.raises(StepFailed, match="this board is being flashed by ada on desk since"):
        flash(make(number=2))
    run_agent(board, "unlock", f"--token={token}")
    flash(make(number=2))


def test_cut_off_between_any_two_steps_the_next_flash_goes_on_from_there(flashed, make):
    board = flashed
    old, told, cuts = board.current, [], []

    class Gone(BaseException):
        pass

    def say(name, words):
        told.append(name)
        if name and name not in ("release", "preflight", *cuts):
            cuts.append(name)
            raise Gone

    config = make(number=2)
    while True:
        try:
            with reached(board.config(), board.server.address) as there:
                flash_board(there, Prepared(config.release), say=say)
            break
        except Gone:
            pass
        if cuts[-1] != "switch" and "switch" not in cuts:
            assert board.current == old
    names = [step.name for step in STEPS]
    assert cuts[:7] == names[:7] and cuts[-1] == "done", "the board settles what was switched to"
    assert board.current.startswith("2-") and not (board.root / "trial.json").exists()
    once = [line for line in board.said if line.startswith(("check", "bench"))]
    assert len(once) == 4, "what was proven is not proven again"


def test_an_unknown_host_gets_nothing(board, make):
    board.server.know("other")
    with pytest.raises(RemoteError, match="its host key is not the one we know"):
        flash(make())
    board.server.know("")
    with pytest.raises(RemoteError, match="its host key is unknown"):
        flash(make())
    assert not board.root.exists()


def test_an_unsigned_bundle_and_a_board_that_trusts_nobody_are_refused(board, make):
    config = make()
    with pytest.raises(ExportError, match="trusts no key yet: name the first one with --trust"):
        flash(replace(config, release=replace(config.release, trust=None)))
    (config.release.bundle / "manifest.sig").unlink()
    with pytest.raises(ExportError, match="not signed, and boards run what somebody signed"):
        flash(config)
    assert not board.root.exists()


def test_a_dry_run_prints_every_step_and_changes_nothing(board, make, capsys):
    flash(make(dry_run=True))
    assert not board.root.exists()
    told = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [words[0] for words in told] == ["release", "preflight", *(step.name for step in STEPS)]
    assert {words[1] for words in told[2:]} == {"to"}
    flash(make())
    before = tree(board.folder)
    capsys.readouterr()
    flash(make(dry_run=True))
    told = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert {words[1] for words in told[2:-1]} == {"done:"} and tree(board.folder) == before


def test_what_doctor_complains_of_is_told_and_tried(flashed, make, capsys):
    flash(make("doctor", number=2))
    assert flashed.current.startswith("2-")
    assert "doctor       errors, see above; it is tried all the same" in capsys.readouterr().out


def test_what_is_missing_on_a_board_is_all_told_at_once(board, make):
    release = make().release
    facts = {
        "has_systemd": False, "python": [3, 9], "has_venv": False, "has_tensorrt": False,
        "trusts": ["a.pub"], "free_bytes": 1000, "time": 0.0, "board": "x", "l4t": None,
        "current": None,
    }  # fmt: skip
    made = SimpleNamespace(bytes_in=lambda folder: 1000)
    done = {"missing_bytes": 10, "environment": False, "proven": False}
    config = replace(release, backend="tensorrt")
    with pytest.raises(ExportError) as caught:
        preflight(facts, made, done, config, "orin")
    words = str(caught.value)
    for expected in ("no systemd", "Python 3.9", "python3-venv", "no TensorRT", "GB free"):
        assert expected in words
    able = facts | dict.fromkeys(["has_systemd", "has_venv", "has_tensorrt"], True)
    able |= {"python": [3, 10], "free_bytes": 5510}
    with pytest.raises(ExportError, match="free"):
        preflight(able, made, done, config, "orin")
    able["free_bytes"] = 5512  # a tenth more than 10 + 4 * 1000 + 1000
    assert "WARNING, recordings" in preflight(able, made, done, config, "orin")


def tree(folder):
    """Names, sizes and links of what flash answers for."""
    roots = [folder / "opt", folder / "system/etc"]
    paths = [path for root in roots for path in root.rglob("*") if "venv" not in path.parts]
    return {
        str(p): os.readlink(p) if p.is_symlink() else p.stat().st_mtime_ns
        for p in paths
        if p.suffix != ".lock" and not p.is_dir()
    }


def working_folder(board):
    """In which the service's process runs."""
    shown = json.loads((board.system / "systemd/show").read_text())
    try:
        return os.path.basename(os.readlink(f"/proc/{shown['MainPID']}/cwd"))
    except OSError:
        return None


def run_agent(board, *words, given=""):
    command = [sys.executable, "-I", str(board.root / "agent.pyz"), "--root", str(board.root)]
    done = subprocess.run(
        [*command, "--system", str(board.system), *words],
        input=given,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)
