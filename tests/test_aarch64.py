"""The run on aarch64 says why it was skipped, and fails where a command there fails."""

import os
import shutil
from pathlib import Path

import pytest

from tests import aarch64
from tests.aarch64 import in_namespaces, main, reasons_to_skip

SAID = {
    "check": (0, "ok   spatial_tokens\nok   actions  1e-06 of 1e-04\n"),
    "run": (0, "report: /srv/report.html\n"),
    "doctor": (1, "aarch64, 2 CPUs, 25.3 GB\nwarning  recipe\n"),
}


@pytest.fixture
def arguments(tmp_path):
    bundle, episode = tmp_path / "bundle", tmp_path / "episode.npz"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    episode.write_bytes(b"")
    return [str(bundle), "--episode", str(episode), "--cache", str(tmp_path / "cache")]


@pytest.fixture
def said(monkeypatch):
    """What each command says there; the user space is a folder."""
    said, ran = dict(SAID), []

    def make_root(cache):
        (cache / "root" / "srv").mkdir(parents=True)
        return cache / "root"

    def inside(root, command, log):
        ran.append(command)
        code, words = said.get(command[1], (0, ""))
        log.write_text(words)
        return code

    monkeypatch.setattr(aarch64, "reasons_to_skip", lambda: [])
    monkeypatch.setattr(aarch64, "make_root", make_root)
    monkeypatch.setattr(aarch64, "inside", inside)
    monkeypatch.setattr(aarch64, "assemble", lambda target, kinds, out: out.mkdir())
    said["ran"] = ran
    return said


def test_without_the_tools_it_is_skipped_with_what_to_install(arguments, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert told.startswith("skipped: no debootstrap: apt-get install --no-install-recommends deb")
    assert "no qemu-aarch64-static: apt-get install" in told


def test_without_root_it_is_skipped(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert list(reasons_to_skip()) == ["only root may make the namespaces that are needed"]


def test_a_kernel_that_lends_no_emulator_is_skipped(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(aarch64, "in_namespaces", lambda call: 1)
    (reason,) = reasons_to_skip()
    assert reason.startswith("this kernel gives a user namespace no binfmt_misc of its own")


def test_the_wheel_is_installed_and_each_command_run(arguments, said, capsys):
    assert main(arguments) == 0
    assert "aarch64: the lean wheel works there" in capsys.readouterr().out
    commands = [" ".join(command) for command in said["ran"]]
    assert commands[1].endswith(
        "--no-index --no-deps --require-hashes --find-links /srv/wheelhouse/wheels "
        "-r /srv/wheelhouse/requirements.txt"
    )
    assert [c.split()[1] for c in commands[2:]] == ["check", "run", "doctor"]


@pytest.mark.parametrize(
    ("verb", "answer", "words"),
    [
        ("check", (1, "FAIL actions\n"), "anchorvla check failed on aarch64"),
        ("check", (0, "nothing was compared\n"), "anchorvla check does not say"),
        ("run", (6, "no such recording\n"), "anchorvla run failed on aarch64"),
        ("doctor", (2, SAID["doctor"][1]), "anchorvla doctor failed on aarch64"),
        ("doctor", (1, "x86_64, 2 CPUs\n"), "anchorvla doctor does not say"),
        ("doctor", (1, "aarch64, 0 CPUs\n"), "anchorvla doctor does not say"),
    ],
)
def test_a_command_that_fails_there_fails_the_run(arguments, said, verb, answer, words):
    said[verb] = answer
    with pytest.raises(SystemExit, match=f"error: {words}"):
        main(arguments)


def test_a_missing_bundle_is_said(arguments, said, capsys):
    Path(arguments[0], "manifest.json").unlink()
    with pytest.raises(SystemExit):
        main(arguments)
    assert "manifest.json: no such file; make demo or make export" in capsys.readouterr().err


def test_namespaces_are_apart_and_give_the_answer_back():
    if os.geteuid() != 0 or in_namespaces(lambda: 0) != 0:
        pytest.skip("no namespaces for this user here")
    assert in_namespaces(lambda: 7) == 7
    assert in_namespaces(lambda: 0 if os.getpid() == 1 and os.getuid() == 0 else 1) == 0
    assert in_namespaces(lambda: 1 // 0) == 1, "an error is no success"
