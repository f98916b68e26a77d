"""The device tests on another machine: copied there over ssh, run, results fetched, removed.

Nothing is installed and nothing stays. The host's key is always checked: a board that is not the
one we know gets neither bundle nor code.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import device_tests
import runtime
from device_tests.errors import RemoteError
from device_tests.page.report import JSON_NAME, PAGE_NAME, WRITTEN
from device_tests.provenance import read_commit
from runtime.storage.files import write_file

CONNECT_S = 10
SSH_FAILED = 255
"""What ssh itself exits with; a command's own code otherwise."""
MODULES = ("msgspec", "numpy", "PIL", "tokenizers", "pytest")
RESULT_BYTES = 256 << 20
FIXED = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": str(CONNECT_S),
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "6",
}
"""Said first: of two values ssh takes the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """Where to run."""

    address: str
    """host or user@host."""
    port: int | None
    python: str = "python3"
    options: tuple[str, ...] = ()
    """For `ssh -o`."""

    @classmethod
    def parse(cls, host: str, *, python: str = "python3", options: Sequence[str] = ()) -> Remote:
        """Read `user@host:port`, of which user and port may be left out.

        Raises:
            ValueError: it is nothing of the kind, or an option is not KEY=VALUE.
        """
        found = re.fullmatch(r"((?:\w[\w.-]*@)?(?:\w[\w.-]*|\[[0-9a-fA-F:.]+\]))(?::(\d+))?", host)
        if found is None:
            raise ValueError(f"--host must be user@host or user@host:port, got {host!r}")
        for option in options:
            if not re.fullmatch(r"[A-Za-z]+=.*", option):
                raise ValueError(f"--ssh-option must be KEY=VALUE, got {option!r}")
        address = found[1].replace("[", "").replace("]", "")
        port = int(found[2]) if found[2] else None
        return cls(address=address, port=port, python=python, options=tuple(options))

    def command(self, words: str) -> list[str]:
        """`words`, for the other machine's shell, as a command of this one."""
        options = [f"{key}={value}" for key, value in FIXED.items()] + list(self.options)
        port = [] if self.port is None else ["-p", str(self.port)]
        flags = [flag for option in options for flag in ("-o", option)]
        return ["ssh", "-T", *flags, *port, "--", self.address, words]


def run_remotely(
    remote: Remote,
    bundle: Path,
    results: Path,
    arguments: Sequence[str],
    *,
    baseline: Path | None = None,
    there: bool = False,
) -> int:
    """Run the device tests there.

    Args:
        remote: where.
        bundle: a verified bundle here, whose plans, if it needs any, fit the board.
        results: folder here for what was found.
        arguments: more options of `python -m device_tests`.
        baseline: last accepted result here.
        there: `bundle` is a path on the other machine, and nothing is copied but the tests.

    Returns:
        The exit code of the tests there.

    Raises:
        RemoteError: see the class. What was copied is removed all the same.
        FileNotFoundError: there is no ssh here.
    """
    folder = _ask(remote, "mktemp -d /tmp/device-test.XXXXXXXX").strip()
    if not re.fullmatch(r"/tmp/device-test\.\w+", folder):
        raise RemoteError(f"{remote.address}: mktemp answered {folder!r}, expected a new folder")
    finished = False
    try:
        _check_python(remote)
        _send(remote, folder, None if there else bundle, baseline)
        words = [str(bundle) if there else "bundle", *arguments]
        words += ["--baseline=baseline.json"] if baseline is not None else []
        code = _run(remote, folder, words)
        finished = True
        _fetch(remote, folder, results)
        return code
    finally:
        stop = "" if finished else f'kill "$(cat {folder}/pid)" 2>/dev/null; '
        _remove(remote, f"{stop}rm -rf -- {folder}", folder)


def _check_python(remote: Remote) -> None:
    python = shlex.quote(remote.python)
    code = f"import {', '.join(MODULES)}, sys; sys.exit(sys.version_info < (3, 10))"
    done = _ssh(remote, f"{python} -c {shlex.quote(code)}")
    if done.returncode in (126, 127):
        raise RemoteError(
            f"{remote.address}: no Python at {remote.python!r} there; name one with --python, such "
            "as that of the release's own environment"
        )
    missing = re.search(r"No module named '([\w.]+)'", done.stderr)
    if missing:
        raise RemoteError(
            f"{remote.address}: {remote.python} there has no {missing[1]}; the tests need "
            f"{', '.join(MODULES)}: install requirements/robot.txt and pytest, or name another "
            "Python with --python"
        )
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise RemoteError(
            f"{remote.address}: {remote.python} there is no Python 3.10 or newer that works"
            f"{': ' + words[-1] if words else ''}; name another with --python"
        )


def _send(remote: Remote, folder: str, bundle: Path | None, baseline: Path | None) -> None:
    """A tar of the two packages and the bundle, written straight into the other machine's."""
    process = subprocess.Popen(
        remote.command(f"tar -xf - -C {folder}"), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None and process.stderr is not None
    try:
        _write_tar(process.stdin, bundle, baseline)
        process.stdin.close()
    except BrokenPipeError:  # the other side says why
        pass
    words = process.stderr.read().decode(errors="replace")
    if process.wait():
        raise error_of(remote, process.returncode, words, "copying the bundle and the tests")


def _write_tar(stream: IO[bytes], bundle: Path | None, baseline: Path | None) -> None:
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        for package in (runtime, device_tests):
            root = Path(str(package.__file__)).parent
            for path in sorted(root.rglob("*.py")):
                archive.add(path, str(path.relative_to(root.parent)), filter=_anonymous)
        if bundle is not None:
            archive.add(bundle.resolve(), "bundle", filter=_anonymous)
        if baseline is not None:
            archive.add(baseline.resolve(), "baseline.json", filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _run(remote: Remote, folder: str, arguments: Sequence[str]) -> int:
    """Its output is ours, as it comes."""
    words = [remote.python, "-u", "-m", "device_tests", "--results=results", *arguments]
    if not any(word.startswith("--commit=") for word in arguments):
        words.append(f"--commit={read_commit()}")
    line = f"cd {folder} && echo $$ > pid && exec {shlex.join(words)}"
    code = subprocess.run(remote.command(line), stdin=subprocess.DEVNULL, check=False).returncode
    if code == SSH_FAILED:
        raise RemoteError(
            f"{remote.address}: the connection was lost while the tests ran; run them again, and "
            "look at power and cable if it happens twice"
        )
    return code


def _fetch(remote: Remote, folder: str, results: Path) -> None:
    """Only the two files we expect, as plain files: the other machine names no path here."""
    process = subprocess.Popen(
        remote.command(f"test ! -d {folder}/results || tar -cf - -C {folder}/results ."),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        found = read_results(process.stdout)
        words = process.stderr.read().decode(errors="replace")
    if process.returncode:
        raise error_of(remote, process.returncode, words, "fetching the results")
    for name, data in found.items():
        kind = WRITTEN[name]
        if not kind.is_borne_by(data):
            raise RemoteError(
                f"{remote.address}: the {name} that its tests wrote is not {kind.words}; are they "
                "of this version?"
            )
        write_file(results / name, data, kind)
        print(f"fetched: {results / name}")


def read_results(stream: IO[bytes]) -> dict[str, bytes]:
    """The result files of a tar, by name; whatever else it holds is passed over."""
    found = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                expected = name in (JSON_NAME, PAGE_NAME) and member.isfile()
                if expected and member.size <= RESULT_BYTES:
                    file = archive.extractfile(member)
                    found[name] = file.read() if file is not None else b""
    except tarfile.ReadError:  # an empty stream: the tests ended before there was a result
        return {}
    return found


def _remove(remote: Remote, words: str, folder: str) -> None:
    done = _ssh(remote, words)
    if done.returncode:
        print(f"warning: {folder} may be left on {remote.address}; remove it", file=sys.stderr)


def _ask(remote: Remote, words: str) -> str:
    done = _ssh(remote, words)
    if done.returncode:
        raise error_of(remote, done.returncode, done.stderr, words)
    return done.stdout


def _ssh(remote: Remote, words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        remote.command(words),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def error_of(remote: Remote, code: int, stderr: str, what: str) -> RemoteError:
    """What ssh said, with what to do about it.

    Args:
        code: of ssh, or of the command there.
        what: was asked for.
    """
    said = stderr.strip().splitlines()
    last = said[-1] if said else f"exit code {code}"
    if code != SSH_FAILED:
        return RemoteError(f"{remote.address}: {what} failed there: {last}")
    if "IDENTIFICATION HAS CHANGED" in stderr:
        return RemoteError(
            f"{remote.address}: its host key is not the one we know; unless the board was "
            "installed anew, somebody else answers. If it was: ssh-keygen -R HOST, then connect "
            "once by hand and compare the fingerprint"
        )
    if "Host key verification failed" in stderr:
        return RemoteError(
            f"{remote.address}: its host key is unknown; connect once by hand with ssh, compare "
            "the fingerprint with the board's own (ssh-keygen -lf), and accept it"
        )
    if "Permission denied" in stderr:
        return RemoteError(
            f"{remote.address}: it does not take our key ({last}); put one there with ssh-copy-id"
        )
    return RemoteError(
        f"{remote.address}: not reached ({last}); check name, network and that sshd runs there"
    )
