"""What qemu is told while it runs, through its monitor (QMP): one connection per word."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

TIMEOUT_S = 600.0
"""A snapshot of a machine on a busy host takes its time."""


class MonitorError(Exception):
    """qemu refuses, or is not there."""


def tell(folder: Path, command: str, **arguments: Any) -> Any:
    """What qemu answers.

    Args:
        folder: where the socket `monitor` is. The path may be longer than a socket's may.

    Raises:
        MonitorError: with qemu's own words.
    """
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(f"/proc/self/fd/{handle}/monitor")
            with connection.makefile("rw") as lines:
                lines.readline()  # its greeting
                for name, values in (("qmp_capabilities", {}), (command, arguments)):
                    lines.write(json.dumps({"execute": name, "arguments": values}) + "\n")
                    lines.flush()
                    answer = _answer(lines, command)
                return answer
    except OSError as error:
        raise MonitorError(f"{folder}: no qemu listens there ({error})") from None
    finally:
        os.close(handle)


def tell_in_words(folder: Path, words: str) -> None:
    """A command that only the monitor for people has; it says something only when it fails.

    Raises:
        MonitorError: with qemu's own words.
    """
    said = tell(folder, "human-monitor-command", **{"command-line": words})
    if said.strip():
        raise MonitorError(f"{words}: {said.strip()}")


def _answer(lines: Any, command: str) -> Any:
    for line in lines:
        message = json.loads(line)
        if "error" in message:
            raise MonitorError(f"{command}: {message['error'].get('desc', message['error'])}")
        if "return" in message:
            return message["return"]
    raise MonitorError(f"{command}: qemu ended before it answered")
