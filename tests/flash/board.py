"""A board without a board: an sshd on loopback, folders for its disk, systemd in small."""

import base64
import hashlib
import json
import os
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

from export.release.config import BoardConfig
from tests.sshd import Server

HERE = Path(__file__).parent
VERSION = "0.0.1"


class LoopbackBoard:
    """Args: folder of its own; `server`, where it is reached."""

    def __init__(self, folder, server):
        self.folder, self.server = folder, server
        self.root, self.system = folder / "opt", folder / "system"

    def config(self, **changes):
        given = {
            "host": self.server.address,
            "ssh_option": tuple(self.server.options()),
            "python": sys.executable,
            "root": str(self.root),
            "system": str(self.system),
        }
        return BoardConfig(**given | changes)

    @property
    def said(self):
        """What the release's program was asked for, in order; each time from the beginning."""
        path = self.system / "said"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def current(self):
        return os.path.basename(os.readlink(self.root / "current"))

    @property
    def events(self):
        lines = (self.root / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@contextmanager
def loopback_board(folder):
    """Running; at the end its service is stopped."""
    (folder / "sshd").mkdir(parents=True)
    state = folder / "system/systemd"
    commands = stand_in_commands(folder, state)
    settings = f"SetEnv PATH={commands}:{os.environ['PATH']} ANCHORVLA_SYSTEMD={state}\n"
    with Server.running(folder / "sshd", settings) as server:
        board = LoopbackBoard(folder, server)
        try:
            yield board
        finally:
            end_service(state)


def stand_in_commands(folder, state):
    """A folder for PATH, with systemd in small; its state lies in `state`, of a board's system."""
    commands = folder / "commands"
    for path in (state, commands):
        path.mkdir(parents=True)
    for name, script in (("systemctl", "systemctl.py"), ("systemd-sysusers", None)):
        words = f'exec {sys.executable} {HERE / script} "$@"' if script else "exit 0"
        (commands / name).write_text(f"#!/bin/sh\n{words}\n")
        (commands / name).chmod(0o755)
    return commands


def end_service(state):
    """As at a shutdown."""
    os.environ["ANCHORVLA_SYSTEMD"] = str(state)
    from tests.flash import systemctl

    systemctl.STATE = state
    systemctl.end()
    del os.environ["ANCHORVLA_SYSTEMD"]


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came true")


def stand_in_wheelhouse(folder, *behaviour):
    """A folder of one wheel, whose `runtime` behaves like that; see runtime_stand_in.py."""
    (folder / "wheels").mkdir(parents=True)
    source = (HERE / "runtime_stand_in.py").read_text()
    source = source.replace("BEHAVIOUR = {}", f"BEHAVIOUR = set({sorted(behaviour)!r})")
    info = f"anchorvla_runtime-{VERSION}.dist-info"
    files = {
        "runtime/__init__.py": "",
        "runtime/__main__.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: anchorvla-runtime\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = "".join(f"{name},{_digest(text)},{len(text)}\n" for name, text in files.items())
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    wheel = folder / "wheels" / f"anchorvla_runtime-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "requirements.txt").write_text(
        f"anchorvla-runtime=={VERSION} --hash=sha256:{sha256}\n"
    )
    return folder


def _digest(text):
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
