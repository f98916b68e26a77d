"""Files from the workstation: only those that are not there, each from where it broke off.

The stream of `receive` is one after the other: a line of JSON, `{"sha256", "size", "offset"}`, then
the bytes from that offset on. A file has its name when all of it is there and hashes to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from export.release.agent.place import SHA, AgentError, Place, read_json
from runtime.storage.files import sync

PIECE = 1 << 20
MOST_LINE = 512
SYNC_BYTES = 64 << 20
"""After so many a file that is on its way is on the disk, and is not sent again after a cut."""


def missing(place: Place, files: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What of `files` has to be sent: `sha256`, `size`, and the `offset` from which on.

    A file of another release counts if it still hashes to its name: then it is linked, not sent.
    """
    place.incoming.mkdir(parents=True, exist_ok=True)
    sizes = {entry["sha256"]: entry["size"] for entry in files.values()}
    kept = _kept(place)
    wanted = []
    for sha256, size in sizes.items():
        path = place.incoming / sha256
        if path.is_file() or any(_reuse(other, path) for other in kept.get(sha256, ())):
            continue
        partial = _partial(path)
        offset = partial.stat().st_size if partial.is_file() else 0
        if offset > size:
            partial.unlink()
            offset = 0
        wanted.append({"sha256": sha256, "size": size, "offset": offset})
    sync(place.incoming)
    return wanted


def receive(place: Place, stream: IO[bytes]) -> int:
    """Take files in until the stream ends.

    Returns:
        Bytes that came.

    Raises:
        AgentError: it broke off, or a file is not what its name says. What came of the file that it
            broke off in is kept.
    """
    place.incoming.mkdir(parents=True, exist_ok=True)
    received = 0
    while line := stream.readline(MOST_LINE):
        try:
            head = json.loads(line)
            sha256, size, offset = head["sha256"], int(head["size"]), int(head["offset"])
        except (ValueError, KeyError, TypeError):
            raise AgentError("the stream of files is damaged; flash again") from None
        if not SHA.fullmatch(str(sha256)):
            raise AgentError(f"the stream names a file {sha256!r}, which is no SHA-256")
        received += _take(place.incoming / sha256, stream, size, offset)
    return received


def _take(path: Path, stream: IO[bytes], size: int, offset: int) -> int:
    partial, came, unsynced = _partial(path), 0, 0
    with partial.open("ab") as file:
        if file.tell() != offset:
            raise AgentError(f"{partial}: {file.tell()} bytes, sent from {offset}; flash again")
        while offset + came < size:
            piece = stream.read(min(PIECE, size - offset - came))
            if not piece:
                break
            file.write(piece)
            came += len(piece)
            unsynced += len(piece)
            if unsynced >= SYNC_BYTES:
                file.flush()
                os.fsync(file.fileno())
                unsynced = 0
        file.flush()
        os.fsync(file.fileno())
    if offset + came < size:
        raise AgentError(
            f"the connection broke off after {offset + came} of {size} bytes of a file"
        )
    if hash_of(partial) != path.name:
        partial.unlink()
        raise AgentError(f"{path.name}: came with another hash, and was thrown away; flash again")
    partial.replace(path)
    sync(path.parent)
    return came


def hash_of(path: Path) -> str:
    """Hex SHA-256, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _kept(place: Place) -> dict[str, list[Path]]:
    """Files of all releases, by hash."""
    found: dict[str, list[Path]] = {}
    for release in place.all():
        description = read_json(place.folder(release) / "release.json") or {}
        for name, entry in description.get("files", {}).items():
            found.setdefault(entry["sha256"], []).append(place.folder(release) / name)
    return found


def _reuse(kept: Path, path: Path) -> bool:
    """Link a file of another release, if it is what it was."""
    if not kept.is_file() or kept.is_symlink() or hash_of(kept) != path.name:
        return False
    with contextlib.suppress(FileExistsError):
        os.link(kept, path)
    return True


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def send(entries: Iterator[tuple[dict[str, Any], Path]], stream: IO[bytes]) -> int:
    """The other end: what `receive` takes in.

    Args:
        entries: of `missing`, each with the file here.

    Returns:
        Bytes that were sent.
    """
    sent = 0
    for entry, path in entries:
        stream.write(json.dumps(entry).encode() + b"\n")
        with path.open("rb") as file:
            file.seek(entry["offset"])
            while piece := file.read(PIECE):
                stream.write(piece)
                sent += len(piece)
    stream.flush()
    return sent
