"""The service that runs the current release: its units, its start, its health, its end.

    anchorvla.service          start: counts, and returns after too many; then the release's command
    anchorvla-settle.service   at a boot in a trial: waits for health, then confirms or returns
    anchorvla-first-boot.service   only where a release came with the system: `first_boot`

The board settles a trial by itself. A workstation that flashed it only looks on.
"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.release.agent import lock, trial
from export.release.agent.install import environment
from export.release.agent.place import (
    BUNDLE,
    PROVEN,
    ROOT,
    VENV,
    AgentError,
    Place,
    events,
    led_to,
    read_json,
)
from runtime.storage.files import write_file

UNITS = ("anchorvla.service", "anchorvla-settle.service")
USERS = "anchorvla.conf"
SERVICE, SETTLE = UNITS
FIRST_BOOT = "anchorvla-first-boot.service"
WANTS = "multi-user.target.wants"
"""Folder beside the units: links in it are those that a boot starts."""
POLL_S = 0.5
SHOWN = (
    *("ActiveState", "SubState", "Result", "ExecMainStatus"),
    *("MainPID", "NRestarts", "ActiveEnterTimestamp"),
)
STOPPED_BY_GUARD = "6"
"""Exit code of a command whose guard stopped the robot, see `runtime.cli.command`."""


def units(place: Place, names: Sequence[str] = (*UNITS, USERS)) -> dict[str, str]:
    """What systemd reads, by file, for the folders of this board."""
    found = {}
    for name in names:
        text = pkgutil.get_data("export.release.agent", name)
        assert text is not None
        agent = f"{place.root}/agent.pyz --root {place.root} --system {place.system}"
        pieces = text.decode().split(f"{ROOT}/agent.pyz")
        found[name] = agent.join(piece.replace(ROOT, str(place.root)) for piece in pieces)
    return found


def install(place: Place, texts: Mapping[str, str]) -> bool:
    """Write the units and the user they run as, and let systemd read them.

    Args:
        texts: by name.

    Returns:
        Whether any was new.
    """
    changed = set()
    for name, text in texts.items():
        path = (place.users if name == USERS else place.units) / name
        if not path.is_file() or path.read_text() != text:
            write_file(path, text)
            changed.add(name)
    if USERS in changed:
        _command("systemd-sysusers", str(place.users / USERS))
    if changed:
        _command("systemctl", "daemon-reload")
    if any(_said("is-enabled", name) != "enabled" for name in UNITS):
        _command("systemctl", "enable", *UNITS)
    return bool(changed)


def forget(place: Place, name: str) -> None:
    """Remove a unit of ours that has done what it was for."""
    for path in (place.units / WANTS / name, place.units / name):
        path.unlink(missing_ok=True)
    _command("systemctl", "daemon-reload")


def restart(place: Place) -> None:
    """Start what is current now, and let the board settle the trial if it is one."""
    if led_to(place.current) is None:
        _command("systemctl", "stop", SERVICE)
        return
    _command("systemctl", "reset-failed", SERVICE, check=False)
    _command("systemctl", "restart", "--no-block", SERVICE)
    if trial.trial_of(place) is not None:
        _command("systemctl", "restart", "--no-block", SETTLE)


def start(place: Place) -> str:
    """Before the service's command: count, and return to the release before where that is due.

    Raises:
        AgentError: there is nothing to start.
    """
    with place.changing():
        trial.recover(place)
    now = led_to(place.current)
    if now is None:
        raise AgentError(f"{place.current}: no release here; flash one")
    started = trial.count_start(place, int(place.described(now)["most_starts"]))
    if started is None:
        raise AgentError("the release on trial did not start, and there is none before it")
    return started


def execute(place: Place) -> None:
    """Become the current release's command.

    Raises:
        AgentError: there is no release.
    """
    now = led_to(place.current)
    if now is None:
        raise AgentError(f"{place.current}: no release here; flash one")
    folder = place.folder(now)
    words = [BUNDLE if word == "{bundle}" else word for word in place.described(now)["service"]]
    command = [str(folder / VENV / "bin/python"), "-I", "-u", "-m", "runtime", *words]
    os.chdir(folder)
    os.execve(command[0], command, environment(place))


def health(place: Place) -> tuple[bool, str]:
    """Is the current release's own process up, and does its loop do good ticks? With the words."""
    now = led_to(place.current)
    if now is None:
        return False, "there is no release"
    shown = show()
    words = f"{shown.get('ActiveState', 'unknown')} ({shown.get('SubState', '')})"
    process = int(shown.get("MainPID") or 0)
    if shown.get("ActiveState") != "active" or not process:
        return False, f"the service is {words}, last result {shown.get('Result', '')}"
    status = read_json(place.status) or {}
    if status.get("pid") != process:
        return False, f"the service is {words} and has not said how it does"
    if _release_of(process) not in (now, None):
        return False, f"the process that runs is of {_release_of(process)}"
    wanted, ticks = int(place.described(now)["health"]["ticks"]), int(status.get("ticks", 0))
    return ticks >= wanted, f"{ticks} of {wanted} good ticks"


def settle(
    place: Place,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool | None:
    """Wait until the release on trial is healthy, and confirm it; else return to the one before.

    Returns:
        Whether it was confirmed; None where none was on trial.
    """
    with place.changing():
        trial.recover(place)
    begun = trial.trial_of(place)
    if begun is None:
        return None
    within_s = float(place.described(begun.release)["health"]["within_s"])
    end, words = clock() + within_s, ""
    while clock() < end:
        now = trial.trial_of(place)
        if now is None or now.release != begun.release:
            say(f"{begun.release}: {_how_it_ended(place, begun.release)}")
            return led_to(place.current) == begun.release
        is_healthy, words = health(place)
        if is_healthy:
            trial.confirm(place)
            say(f"{begun.release}: confirmed, {words}")
            return True
        sleep(POLL_S)
    stopped = show().get("ExecMainStatus") == STOPPED_BY_GUARD
    if stopped:
        words += "; the guard stopped the robot, so nothing is started"
    given = trial.give_back(place, f"not healthy within {within_s:g} s: {words}")
    if given is not None and not stopped:
        restart(place)
    say(f"{begun.release}: not healthy within {within_s:g} s ({words}); returned")
    return False


def report(place: Place) -> dict[str, Any]:
    """What runs here, since when, how soon it answers, and what happened last."""
    now, running = led_to(place.current), trial.trial_of(place)
    told = events(place)
    releases = {
        release: {
            "number": trial.number_of(place, release),
            "policy": place.described(release)["policy"],
            "proven": read_json(place.folder(release) / PROVEN),
        }
        for release in place.all()
    }
    return {
        "current": now,
        "previous": led_to(place.previous),
        "trial": None if running is None else running.starts,
        "within_s": None if now is None else place.described(now)["health"]["within_s"],
        "since": next((e["at"] for e in reversed(told) if e["what"] == "switched"), None),
        "releases": releases,
        "service": show(),
        "status": read_json(place.status),
        "events": told[-10:],
        "holder": lock.holder(place),
        "time": time.time(),
    }


def show() -> dict[str, str]:
    """What systemd says of the service."""
    said = _said("show", SERVICE, *(f"--property={name}" for name in SHOWN))
    pairs = (line.partition("=") for line in said.splitlines())
    return {name: value for name, _, value in pairs if name in SHOWN}


def _command(*words: str, check: bool = True) -> str:
    """What a command of systemd's prints.

    Raises:
        AgentError: it fails.
    """
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise AgentError(f"no {words[0]} here: releases are run by systemd") from None
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise AgentError(f"{' '.join(words)}: {said[-1] if said else done.returncode}")
    return done.stdout.strip()


def _said(*words: str) -> str:
    return _command("systemctl", *words, check=False)


def _release_of(process: int) -> str | None:
    """Whose folder a process works in; None if that cannot be seen."""
    try:
        return Path(os.readlink(f"/proc/{process}/cwd")).name
    except OSError:
        return None


def _how_it_ended(place: Place, release: str) -> str:
    for event in reversed(events(place)):
        if event.get("release") == release and event["what"] != "switched":
            return json.dumps({k: v for k, v in event.items() if k in ("what", "why", "to")})
    return "over"
