"""One flash at a time: who holds a board, across the many connections that a flash makes.

The holder is written down with a token that its later steps show, and each of them says that it is
still there. A holder that was not heard of for `LOST_S`, and of whom no step is at work, or of
before the board's last boot, is gone: its workstation died, or the link to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from export.release.agent.place import AgentError, Place, read_json, write_json
from runtime.storage.files import sync

LOST_S = 30.0
BOOT = Path("/proc/sys/kernel/random/boot_id")


def take(place: Place, who: str) -> str:
    """Hold the board.

    Returns:
        The token.

    Raises:
        AgentError: somebody else holds it; the message says who, and since when.
    """
    place.root.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    with (place.root / "step.lock").open("a") as lock:
        if not _is_free(lock.fileno()):
            raise AgentError(_busy(place))
        held = read_json(_path(place))
        if held is not None and held["boot"] == _boot():
            silent_s = time.time() - _path(place).stat().st_mtime
            if 0 <= silent_s < LOST_S:
                raise AgentError(_busy(place))
        write_json(
            _path(place), {"who": who, "token": token, "since": time.time(), "boot": _boot()}
        )
    return token


def stay(place: Place, token: str) -> None:
    """Say that the holder is still there; nothing if somebody else holds it by now."""
    held = read_json(_path(place))
    if held is not None and held["token"] == token:
        os.utime(_path(place))


def leave(place: Place, token: str) -> bool:
    """Hold it no more; nothing if somebody else does by now."""
    held = read_json(_path(place))
    if held is None or held["token"] != token:
        return False
    _path(place).unlink()
    sync(place.root)
    return True


@contextlib.contextmanager
def working(place: Place, token: str) -> Iterator[None]:
    """While a step of the holder is at work.

    Raises:
        AgentError: somebody else holds the board, or another step of the holder is at work.
    """
    held = read_json(_path(place))
    if held is None or held["token"] != token:
        raise AgentError(f"another flash took over: {_busy(place)}" if held else "lock it first")
    with (place.root / "step.lock").open("a") as lock:
        if not _is_free(lock.fileno()):
            raise AgentError(f"a step is still at work: {_busy(place)}")
        os.utime(_path(place))
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.utime(_path(place))


def holder(place: Place) -> str | None:
    """Who holds it, in words."""
    held = read_json(_path(place))
    if held is None or held["boot"] != _boot():
        return None
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(held["since"]))
    return f"{held['who']} since {since} UTC"


def _busy(place: Place) -> str:
    who = holder(place) or "a flash that is gone"
    return f"this board is being flashed by {who}; wait, or stop that flash"


def _is_free(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _path(place: Place) -> Path:
    return place.root / "holder.json"


def _boot() -> str:
    return BOOT.read_text().strip() if BOOT.exists() else "unknown"
