"""Files that a command writes: whole or not at all, and never in the place of somebody else's.

The rule for all of them: what we write replaces a file only if that is empty or of the same kind,
which is told by marks that every file of the kind bears. Anything else is refused, and stays. A
link is followed, so what it points to is what counts; devices and pipes are refused, because a
file is written beside its place, synced and renamed into it: the old one or the new one is there
at any moment, whatever is killed and whenever the power fails.

What a process that was killed leaves beside the place is removed by the next one that writes there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import OutputError

LFS_POINTER = b"version https://git-lfs"
"""What a file begins with that git-lfs has not fetched."""
FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_PERMITTED = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
PARTIAL = re.compile(r"\..+\.(\d+)\.partial")
"""Name of a file that is being written, with the process that writes it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file of ours is, and how one is told from somebody else's."""

    words: str
    """With its article: "a page"."""
    marks: tuple[bytes, ...]
    """All of them stand somewhere in every such file."""

    def is_borne_by(self, data: bytes | mmap.mmap) -> bool:
        """Do all marks stand in it?"""
        return all(data.find(mark) >= 0 for mark in self.marks)


MARK = "anchorvla"
PAGE = Kind("a page of this project", (f'name="generator" content="{MARK}"'.encode(),))
DRAWING = Kind("a drawing of this project", (b"<svg", MARK.encode()))
PICTURE = Kind("a picture of this project", (MARK.encode(),))
"""PNG or GIF; the mark is its comment."""


def check_output(path: Path, kind: Kind) -> None:
    """Can `path` be written, and may it? Its folder is made. Nothing else is changed.

    Raises:
        OutputError: it cannot, or something else is in its place.
    """
    real = _real(path)
    _refuse_foreign(path, real, kind)
    with output_errors(path):
        real.parent.mkdir(parents=True, exist_ok=True)
        trial = _partial(real)
        trial.touch()
        trial.unlink()


def write_file(path: Path, data: bytes | memoryview | str, kind: Kind | None = None) -> None:
    """Put `data` into `path`, whose folder is made.

    Args:
        kind: what may be replaced; anything, if left out: for folders that are ours alone.

    Raises:
        OutputError: it cannot be written, or something else is in its place.
    """
    with replacing(path, kind) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing(path: Path, kind: Kind | None = None) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place when the block ends without an error.

    Arguments and errors are those of `write_file`.
    """
    real = _real(path)
    if kind is not None:
        _refuse_foreign(path, real, kind)
    with output_errors(path):
        real.parent.mkdir(parents=True, exist_ok=True)
        with beside(real) as partial:
            yield partial
            marked = kind is None or bears_marks(partial, kind)
            assert marked, f"{path}: written without the marks of {kind and kind.words}"


@contextlib.contextmanager
def beside(path: Path, *, synced: bool = True) -> Iterator[Path]:
    """The mechanism alone, for who has words of his own for an `OSError`: written, synced, renamed,
    whatever `path` is.

    Args:
        synced: wait for the disk; not where a file need not outlive a power cut.
    """
    sweep(path)
    partial = _partial(path)
    try:
        yield partial
        if synced:
            sync(partial)
        partial.replace(path)
        if synced:
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove what processes that are gone left beside `path`: plain files of our pattern only."""
    with os.scandir(path.parent) as entries:
        for entry in entries:
            found = PARTIAL.fullmatch(entry.name)
            if (
                found
                and entry.name.startswith(f".{path.name}.{found[1]}.")
                and entry.is_file(follow_symlinks=False)
                and not _is_alive(int(found[1]))
            ):
                Path(entry.path).unlink(missing_ok=True)


def take_lock(lock: IO[str], mark: str = "") -> str | None:
    """Hold a file, open for appending and reading, until it is closed or its process dies.

    Args:
        lock: the file; it tells others who holds it.
        mark: what it says before the number of the process.

    Returns:
        Who holds it already; None where it is ours now.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        return lock.read().removeprefix(mark).strip() or "unknown"
    lock.truncate(0)
    lock.write(f"{mark}{os.getpid()}\n")
    lock.flush()
    return None


def sync(path: Path) -> None:
    """Until a file or the names in a folder are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def bears_marks(path: Path, kind: Kind) -> bool:
    """Is this file of that kind?"""
    if path.stat().st_size == 0:
        return not kind.marks
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return kind.is_borne_by(data)


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """An `OSError` while `path` is written becomes an `OutputError`.

    Raises:
        OutputError: says what is wrong with the place, and what to do.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {remedy(error)}") from error


def remedy(error: OSError) -> str:
    """What the system says, where, and what to do about it."""
    said = error.strerror or str(error)
    at = f" ({error.filename})" if error.filename else ""
    if error.errno in FULL:
        return f"the disk is full{at}; free some space or choose another place"
    if error.errno in NOT_PERMITTED:
        return f"{said.lower()}{at}; choose another place, or run as a user who may write there"
    if error.errno in IN_THE_WAY:
        return f"{said.lower()}{at}; something is in the way: move it or choose another place"
    return f"{said.lower()}{at}; choose another place"


def _real(path: Path) -> Path:
    """Where a link leads."""
    return Path(os.path.realpath(path))


def _refuse_foreign(path: Path, real: Path, kind: Kind) -> None:
    with output_errors(path):
        if not os.path.lexists(real):
            return
        if not real.is_file():
            what = "a folder" if real.is_dir() else "a device, a pipe or the like"
            raise OutputError(f"{path}: {what}; name a plain file to write {kind.words} to")
        if real.stat().st_size and not bears_marks(real, kind):
            raise OutputError(
                f"{path}: there is a file already, and it is not {kind.words}, so it is not "
                "replaced; choose another name, or remove it"
            )


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
