"""The device tests over ssh: a real sshd on loopback, with keys and known hosts of its own."""

import io
import json
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from device_tests.__main__ import main
from device_tests.errors import RemoteError
from device_tests.remote import Remote, read_results, run_remotely
from tests.sshd import Server

QUICK = ["--seconds=0.1", "--num-idle=1", "--idle-s=0", "--memory-share=0.001"]
STAND_IN = """
import json, pathlib, sys
print("the tests say", *sys.argv[1:])
if "--board=silent" not in sys.argv:
    results = pathlib.Path("results")
    results.mkdir()
    there = {"files": sorted(str(p) for p in pathlib.Path().rglob("*") if p.is_file())}
    there |= {"verdict": "fail", "provenance": {}}
    (results / "device.json").write_text(json.dumps(there))
    page = '<meta name="generator" content="anchorvla">'
    (results / "device.html").write_text("page" if "--board=odd" in sys.argv else page)
    (results / "other.txt").write_text("not asked for")
sys.exit(1)
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with Server.running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def server(running):
    running.know("host")
    return running


@pytest.fixture
def python(tmp_path):
    """A Python over there that runs a stand-in for the tests: it reports what was copied."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    wrapper = tmp_path / "python"
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *device_tests*) shift 3; exec {sys.executable} {script} "$@";; '
        f'*) exec {sys.executable} "$@";; esac\n'
    )
    wrapper.chmod(0o700)
    return str(wrapper)


@pytest.fixture
def leftovers():
    """What the test leaves in the folder of temporary files over there."""
    before = set(Path("/tmp").glob("device-test.*"))
    return lambda: set(Path("/tmp").glob("device-test.*")) - before


def test_the_tests_run_over_there_and_their_results_come_back(
    server, demo_bundle, tmp_path, leftovers, capfd
):
    options = [f"--ssh-option={option}" for option in server.options()]
    results = tmp_path / "results"
    code = main(
        [str(demo_bundle), f"--host={server.address}", f"--python={sys.executable}"]
        + ["--board=x86-cpu", f"--results={results}", "--commit=1234abc", *QUICK, *options]
    )
    found = json.loads((results / "device.json").read_text())
    assert code == (1 if found["verdict"] == "fail" else 0)
    assert found["provenance"]["commit"] == "1234abc"
    assert {path.name for path in results.iterdir()} == {"device.json", "device.html"}
    out = capfd.readouterr().out
    assert "measuring: latency" in out and "measured against allowed" in out
    assert not leftovers()


def test_what_is_copied_is_the_runtime_the_tests_and_the_bundle(
    server, python, demo_bundle, tmp_path, leftovers, capfd
):
    baseline = tmp_path / "old.json"
    baseline.write_text("{}")
    code = run_remotely(
        server.remote(python=python),
        demo_bundle,
        tmp_path / "new",
        ["--board=thor"],
        baseline=baseline,
    )
    assert code == 1  # the stand-in's own
    out = capfd.readouterr().out
    assert "the tests say --results=results bundle --board=thor --baseline=baseline.json --" in out
    files = json.loads((tmp_path / "new" / "device.json").read_text())["files"]
    assert {name.split("/")[0] for name in files} == {
        "runtime",
        "device_tests",
        "bundle",
        "baseline.json",
        "pid",
    }
    assert {"bundle/manifest.json", "bundle/engines/vision.onnx"} <= set(files)
    assert not [name for name in files if "__pycache__" in name]
    assert not (tmp_path / "new" / "other.txt").exists()
    assert not leftovers()


def test_tests_that_end_without_a_result_pass_their_code_on(
    server, python, demo_bundle, tmp_path, leftovers
):
    there = server.remote(python=python)
    assert run_remotely(there, demo_bundle, tmp_path / "new", ["--board=silent"]) == 1
    assert not (tmp_path / "new").exists()
    assert not leftovers()


def refused(remote, bundle, tmp_path):
    with pytest.raises(RemoteError) as error:
        run_remotely(remote, bundle, tmp_path / "new", [])
    assert not (tmp_path / "new").exists()
    return str(error.value)


def test_an_unknown_host_gets_nothing(server, demo_bundle, tmp_path, leftovers):
    server.know(None)
    words = refused(server.remote(), demo_bundle, tmp_path)
    assert "its host key is unknown; connect once by hand" in words
    assert not leftovers() and server.known.read_text() == ""


def test_a_host_with_another_key_gets_nothing(server, demo_bundle, tmp_path, leftovers):
    server.know("other")
    words = refused(server.remote(), demo_bundle, tmp_path)
    assert "its host key is not the one we know" in words and "ssh-keygen -R" in words
    assert not leftovers()


def test_an_option_cannot_turn_the_check_of_the_host_key_off(server, demo_bundle, tmp_path):
    server.know("other")
    options = [*server.options(), "StrictHostKeyChecking=no"]
    remote = Remote.parse(server.address, python=sys.executable, options=options)
    assert "its host key is not the one we know" in refused(remote, demo_bundle, tmp_path)


def test_a_key_that_the_host_does_not_take_is_an_error(server, demo_bundle, tmp_path):
    words = refused(server.remote(key="other"), demo_bundle, tmp_path)
    assert "it does not take our key" in words and "ssh-copy-id" in words


def test_a_host_that_is_not_there_is_an_error(server, demo_bundle, tmp_path):
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        remote = Remote.parse(f"127.0.0.1:{taken.getsockname()[1]}", options=server.options())
        words = refused(remote, demo_bundle, tmp_path)
    assert "not reached (ssh: connect to host 127.0.0.1" in words and "sshd runs there" in words


def test_a_host_without_that_python_is_an_error(server, demo_bundle, tmp_path, leftovers):
    words = refused(server.remote(python="/nowhere/python"), demo_bundle, tmp_path)
    assert "no Python at '/nowhere/python' there; name one with --python" in words
    assert not leftovers()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo \"ModuleNotFoundError: No module named 'pytest'\" >&2; exit 1",
            "there has no pytest; the tests need msgspec, numpy, PIL, tokenizers, pytest",
        ),
        ("exit 1", "there is no Python 3.10 or newer that works; name another"),
        ("echo Killed >&2; exit 9", "3.10 or newer that works: Killed; name another"),
    ],
)
def test_a_python_that_will_not_do_is_an_error(
    server, demo_bundle, tmp_path, script, words, leftovers
):
    wrapper = tmp_path / "python"
    wrapper.write_text(f"#!/bin/sh\n{script}\n")
    wrapper.chmod(0o700)
    assert words in refused(server.remote(python=str(wrapper)), demo_bundle, tmp_path)
    assert not leftovers()


def test_a_lost_connection_is_an_error_and_the_folder_is_removed(
    server, python, demo_bundle, tmp_path, leftovers
):
    Path(python).write_text('#!/bin/sh\ncase "$*" in *device_tests*) exit 255;; esac\n')
    words = refused(server.remote(python=python), demo_bundle, tmp_path)
    assert "the connection was lost while the tests ran" in words
    assert not leftovers()


def test_an_interrupt_ends_the_tests_over_there_and_removes_the_folder(
    server, python, demo_bundle, tmp_path, leftovers, monkeypatch
):
    Path(python).write_text(
        '#!/bin/sh\ncase "$*" in *device_tests*) echo begun; exec sleep 600;; esac\n'
    )
    run, begun = subprocess.run, []

    def interrupt(command, **options):
        if "-m device_tests" not in command[-1]:
            return run(command, **options)
        begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert begun[0].stdout.readline() == "begun\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_remotely(server.remote(python=python), demo_bundle, tmp_path / "new", [])
    begun[0].communicate(timeout=60)  # it ends because the process over there was ended
    assert not leftovers()


def test_results_that_are_not_of_this_project_are_refused(server, python, demo_bundle, tmp_path):
    with pytest.raises(
        RemoteError, match=r"the device\.html that its tests wrote is not a page of"
    ):
        run_remotely(server.remote(python=python), demo_bundle, tmp_path / "new", ["--board=odd"])
    assert not (tmp_path / "new" / "device.html").exists()


def test_a_bundle_that_is_there_already_is_not_copied(
    server, python, demo_bundle, tmp_path, leftovers, capfd
):
    there = server.remote(python=python)
    run_remotely(there, demo_bundle, tmp_path / "new", [], there=True)
    assert f"the tests say --results=results {demo_bundle} --commit=" in capfd.readouterr().out
    files = json.loads((tmp_path / "new" / "device.json").read_text())["files"]
    assert {name.split("/")[0] for name in files} == {"runtime", "device_tests", "pid"}
    assert not leftovers()


def test_the_command_ends_with_the_hosts_exit_code_and_one_line(server, demo_bundle, capsys):
    server.know(None)
    options = [f"--ssh-option={option}" for option in server.options()]
    assert main([str(demo_bundle), f"--host={server.address}", *options]) == 7
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("orin.local", "orin.local", None),
        ("me@orin", "me@orin", None),
        ("me@10.0.0.7:2222", "me@10.0.0.7", 2222),
        ("me@[fe80::1]:22", "me@fe80::1", 22),
    ],
)
def test_a_host_is_read(host, address, port):
    remote = Remote.parse(host)
    assert (remote.address, remote.port) == (address, port)


@pytest.mark.parametrize(
    "host", ["", "-oProxyCommand=x", "me@-x", "-l@h", "a b", "h:", "h:x", "me@me@h", "h;ls", "a\nb"]
)
def test_what_is_no_host_is_refused(host):
    with pytest.raises(ValueError, match="--host must be user@host or user@host:port, got"):
        Remote.parse(host)


def test_the_command_line_ends_the_options_before_the_address():
    command = Remote.parse("me@h:2222", options=["ProxyJump=gate"]).command("true")
    assert command[0] == "ssh" and command[-3:] == ["--", "me@h", "true"]
    assert command.index("StrictHostKeyChecking=yes") < command.index("ProxyJump=gate")
    assert command[command.index("-p") + 1] == "2222"


def test_a_result_that_names_other_paths_writes_nothing_there():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("../device.json", "/device.html", "sub/device.json", "./device.html"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("device.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    stream.seek(0)
    assert read_results(stream) == {"device.html": b"abc"}
