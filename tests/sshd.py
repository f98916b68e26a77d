"""A real sshd on loopback, with keys and known hosts of its own."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from device_tests.remote import Remote

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Server:
    """An sshd that the user who runs the tests can log in to.

    Args:
        folder: an empty one of its own.
        settings: more lines of its configuration.
    """

    def __init__(self, folder, settings=""):
        if SSHD is None or shutil.which("ssh") is None:
            pytest.skip("no sshd or no ssh here: make sshd installs openssh-server")
        with suppress(OSError):  # where only root may make it, only root needs it
            Path("/run/sshd").mkdir(exist_ok=True)
        self.folder, self.user, self.settings = folder, getpass.getuser(), settings
        self._process = None
        for name in ("host", "user", "other"):
            self._generate(name)
        keys = folder / "authorized"
        keys.write_text((folder / "user.pub").read_text())
        keys.chmod(0o600)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.known = folder / "known"
        self.know("host")

    def _generate(self, name):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
        subprocess.run(command, check=True)

    def know(self, name):
        """Make `name` the key that this side expects; nothing, for an unknown host."""
        key = (self.folder / f"{name}.pub").read_text() if name else ""
        self.known.write_text(f"[127.0.0.1]:{self.port} {key}" if key else "")

    def start(self):
        config = self.folder / "config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPidFile none\nUsePAM no\n"
            "StrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n"
            f"{self.settings}"
        )
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=log)
        self._wait_until_it_listens()

    def _wait_until_it_listens(self):
        while self._process.poll() is None:
            if "Server listening" in (self.folder / "log").read_text():
                return
        pytest.skip(f"sshd does not start here: {(self.folder / 'log').read_text()[-200:]}")

    def stop(self):
        self._process.terminate()
        self._process.wait()

    @property
    def address(self):
        return f"{self.user}@127.0.0.1:{self.port}"

    def options(self, key="user"):
        return [
            f"UserKnownHostsFile={self.known}",
            "GlobalKnownHostsFile=none",
            f"IdentityFile={self.folder / key}",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
        ]

    def remote(self, *, key="user", python=sys.executable):
        return Remote.parse(self.address, python=python, options=self.options(key))

    @classmethod
    @contextmanager
    def running(cls, folder, settings=""):
        """Started, and left by a user who may log in."""
        server = cls(folder, settings)
        server.start()
        try:
            done = subprocess.run(server.remote().command("true"), capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"this user cannot log in over ssh here: {done.stderr.strip()}")
            yield server
        finally:
            server.stop()
