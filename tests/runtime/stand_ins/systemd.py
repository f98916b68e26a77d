"""What systemd does for a service of Type=notify: a real datagram socket, and a watchdog that ends
a process that is silent."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MAX_WAIT_S = 60.0
"""For what comes within a second or two of a machine that is not busy."""


class Systemd:
    """A service's socket and its runtime folder.

    Args:
        folder: for both.
        watchdog_s: None for none.
        is_abstract: the socket has a name and no place.
    """

    def __init__(
        self, folder: Path, watchdog_s: float | None = 4e-6, *, is_abstract: bool = False
    ) -> None:
        name = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name}" if is_abstract else name)
        self.folder = folder / "run"
        self.folder.mkdir()
        self.watchdog_s = watchdog_s
        self.environment = {
            "NOTIFY_SOCKET": f"@{name}" if is_abstract else name,
            "RUNTIME_DIRECTORY": str(self.folder),
        }
        if watchdog_s is not None:
            self.environment["WATCHDOG_USEC"] = str(round(watchdog_s * 1e6))

    def close(self) -> None:
        self._socket.close()

    def heard(self, wait_s: float = 0.0) -> list[dict[str, str]]:
        """What has come, a datagram each; waits for the first one."""
        found = []
        self._socket.settimeout(wait_s)
        with contextlib.suppress(BlockingIOError, TimeoutError):
            while True:
                lines = self._socket.recv(1 << 16).decode().split("\n")
                found.append(dict(line.split("=", 1) for line in lines))
                self._socket.settimeout(0.0)
        return found

    def status(self) -> dict[str, Any]:
        """Of the file."""
        told = json.loads((self.folder / "status.json").read_text())
        assert isinstance(told, dict)
        return told

    def keep(
        self, command: Sequence[str], *, patience_s: float | None = None, **options: Any
    ) -> tuple[list[dict[str, str]], int]:
        """Run a service until it ends by itself, or is silent.

        Args:
            command: what it runs.
            patience_s: for how long it may be silent, if not for as long as it knows.
            options: of `subprocess.Popen`.

        Returns:
            All that it told, and its exit code, which is -SIGABRT if the watchdog ended it.
        """
        silence_s = patience_s or self.watchdog_s or math.inf
        process = subprocess.Popen(command, env=os.environ | self.environment, **options)
        told = list[dict[str, str]]()
        fed_at = time.monotonic() + MAX_WAIT_S  # until it is ready, another limit counts
        while process.poll() is None:
            new = self.heard(0.02)
            told += new
            if any(words.keys() & {"READY", "WATCHDOG"} for words in new):
                fed_at = time.monotonic()
            elif time.monotonic() > fed_at + silence_s:
                process.send_signal(signal.SIGABRT)
                process.wait(MAX_WAIT_S)
        return told + self.heard(), process.returncode


@contextlib.contextmanager
def systemd(watchdog_s: float | None = 4e-6, *, is_abstract: bool = False) -> Iterator[Systemd]:
    """In a folder of its own, whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        one = Systemd(Path(folder), watchdog_s, is_abstract=is_abstract)
        with contextlib.closing(one):
            yield one
