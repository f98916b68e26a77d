"""Where a board keeps releases, and what stands in one.

    agent.pyz           this program
    incoming/           files by their SHA-256: whole ones, and the beginnings of others
    releases/ID/        release.json, bundle/, wheels/, venv/, and last of all proven.json
    current, previous   links to releases
    trial.json          the current release is on trial
    first-boot.json     a release that came with the system, and is not yet current
    events.jsonl        what happened

What is listed here is what others rely on: a release's folder is whole from the moment it has its
name, and `current` leads to one that was proven on this board.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from runtime.storage.files import sync, write_file

ROOT = "/opt/anchorvla"
FORMAT = 1
RELEASE, PROVEN = "release.json", "proven.json"
REQUIREMENTS = "requirements.txt"
BUNDLE, WHEELS, VENV, PLANS = "bundle", "wheels", "venv", "plans"
ID = re.compile(r"[0-9]{1,18}-[0-9a-f]{12}")
MOST_BYTES = 16 << 20
"""Of a description or a journal that is read at once."""
MOST_EVENTS = 200
"""That are kept."""
SHA = re.compile(r"[0-9a-f]{64}")


class AgentError(Exception):
    """A step that cannot be done; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """The folders of one board."""

    root: Path
    """Of the releases."""
    system: Path = Path("/")
    """What stands for `/`: units, trust and status are below it."""

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def current(self) -> Path:
        return self.root / "current"

    @property
    def previous(self) -> Path:
        return self.root / "previous"

    @property
    def trial(self) -> Path:
        return self.root / "trial.json"

    @property
    def first_boot(self) -> Path:
        return self.root / "first-boot.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def trust(self) -> Path:
        return self.system / "etc/anchorvla/trust"

    @property
    def units(self) -> Path:
        return self.system / "etc/systemd/system"

    @property
    def users(self) -> Path:
        return self.system / "etc/sysusers.d"

    @property
    def status(self) -> Path:
        return self.system / "run/anchorvla/status.json"

    def folder(self, release: str) -> Path:
        """Of a release.

        Raises:
            AgentError: that is no name of one.
        """
        if not ID.fullmatch(release):
            raise AgentError(f"{release!r} is no name of a release; status lists them")
        return self.releases / release

    def described(self, release: str) -> dict[str, Any]:
        """Its `release.json`.

        Raises:
            AgentError: there is none of this form.
        """
        path = self.folder(release) / RELEASE
        found = read_json(path)
        if found is None:
            raise AgentError(f"{path}: missing; flash that release again")
        return checked(found, str(path))

    def all(self) -> list[str]:
        """Releases whose folder is whole, oldest number first."""
        if not self.releases.is_dir():
            return []
        names = [path.name for path in self.releases.iterdir() if ID.fullmatch(path.name)]
        return sorted(names, key=lambda name: (int(name.split("-")[0]), name))

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Alone with links and trial, for a moment: the service's start and a flash both change
        them."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "change.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def checked(found: Any, where: str) -> dict[str, Any]:
    """A description of a release, if it is one.

    Raises:
        AgentError: it is of another form, or names a file outside of its folder.
    """
    fields = {"format", "policy", "number", "license", "python", "backend", "files", "service"}
    fields |= {"budget_ms", "health", "most_starts"}
    if not isinstance(found, dict) or found.get("format") != FORMAT or not fields <= found.keys():
        raise AgentError(f"{where}: not a release of format {FORMAT}; flash with this version")
    for name, entry in found["files"].items():
        pure = PurePosixPath(name)
        is_inside = not pure.is_absolute() and ".." not in pure.parts and str(pure) == name
        is_known = pure.parts[:1] in ((BUNDLE,), (WHEELS,)) or name == REQUIREMENTS
        if not is_inside or not is_known or "\\" in name:
            raise AgentError(f"{where}: names {name!r}, which is no place in a release")
        if not SHA.fullmatch(str(entry.get("sha256"))) or not isinstance(entry.get("size"), int):
            raise AgentError(f"{where}: {name} has no hash or no size")
    return found


def read_json(path: Path) -> Any:
    """What a file holds; None if there is none.

    Raises:
        AgentError: it is damaged.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES)
    except FileNotFoundError:
        return None
    try:
        return json.loads(data)
    except ValueError as error:
        raise AgentError(f"{path}: damaged ({error}); remove it") from None


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all, and on the disk when this returns."""
    write_file(path, json.dumps(value, indent=1) + "\n")


def link(path: Path, release: str | None) -> None:
    """Let `path` lead to a release, or to nothing; the one or the other is there at any moment, and
    on the disk when this returns."""
    if release is None:
        path.unlink(missing_ok=True)
    else:
        partial = path.with_name(f".{path.name}.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(Path("releases", release))
        partial.replace(path)
    sync(path.parent)


def led_to(path: Path) -> str | None:
    """The release that a link leads to; None without one, or where it leads to nothing whole."""
    try:
        name = Path(os.readlink(path)).name
    except (FileNotFoundError, OSError):
        return None
    return name if ID.fullmatch(name) and (path / RELEASE).is_file() else None


def tell(place: Place, what: str, release: str, **more: object) -> None:
    """Write down what happened, and say it."""
    event = {"at": time.time(), "what": what, "release": release, **more}
    lines = events(place)[-(MOST_EVENTS - 1) :] + [event]
    write_file(place.events, "".join(json.dumps(line) + "\n" for line in lines))


def events(place: Place) -> list[Mapping[str, Any]]:
    """What was written down, oldest first; a line that is damaged is passed over."""
    try:
        words = place.events.read_bytes()[-MOST_BYTES:].decode(errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for line in words.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]
