"""Folders that a command writes: alone, whole or not at all, and never in the place of another's.

A folder is replaced only if everything in it is ours, which whoever writes it can tell; anything
else is refused, and nothing is removed. It is made in a workshop beside its place, `.NAME.writing`:
`lock` (held by the process that works there), `new`, and `old` for a moment. When it is whole, it
changes places with the old one in one step (renameat2), so one of the two is there at any moment.

Where the file system cannot exchange two folders, the old one is moved into the workshop first. A
process that is killed right then leaves neither in its place: the old one lies whole in the
workshop, and the next command that writes there puts it back before it does anything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ..errors import OutputError
from .files import output_errors, sync, take_lock

Foreign = Callable[[Path], str | None]
"""Says what in a folder is not ours, as in "notes.txt is not in its manifest"; None if all is."""
NEW, OLD, LOCK = "new", "old", "lock"
MARK = "anchorvla is writing here: process "
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def workshop(out: Path) -> Path:
    """The folder beside `out` that is there while somebody writes `out`."""
    return out.with_name(f".{out.name}.writing")


@contextlib.contextmanager
def exclusive(out: Path, foreign: Foreign) -> Iterator[None]:
    """One writer per place. The lock dies with its process; what that left is put in order.

    Raises:
        OutputError: somebody else writes there, it cannot be written, or it may not be replaced.
    """
    out = _absolute(out)
    refuse_foreign(out, foreign)
    place = workshop(out)
    with output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(out, place)
    try:
        with output_errors(out):
            _tidy(out)
        yield
    finally:
        with lock, contextlib.suppress(OSError):
            _tidy(out)
            (place / LOCK).unlink()
            place.rmdir()


@contextlib.contextmanager
def temporary(out: Path) -> Iterator[Path]:
    """An empty folder to work in, gone afterwards whatever happens. Hold `exclusive` meanwhile."""
    out = _absolute(out)
    folder = workshop(out) / NEW
    with output_errors(out):
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path, foreign: Foreign) -> None:
    """Put the complete `folder` of `temporary` in the place of `out`.

    Raises:
        OutputError: it cannot be written, or what is there by now may not be replaced.
    """
    out = _absolute(out)
    refuse_foreign(out, foreign)
    with output_errors(out):
        sync_all(folder)
        if not out.exists() or not os.listdir(out):
            folder.rename(out)
        elif not _exchange(folder, out):
            out.rename(workshop(out) / OLD)
            folder.rename(out)
        sync(out.parent)


def sync_all(folder: Path) -> None:
    """Until all of a folder is on the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def check_folder(out: Path, foreign: Foreign) -> None:
    """Can `out` be made, or written into, and may it? It is made; nothing else is changed.

    For folders that grow file by file, in a run that goes on where an earlier one was cut off.

    Raises:
        OutputError: it cannot, or something in it is not ours.
    """
    refuse_foreign(out, foreign)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass


def check_disk(out: Path, num_bytes: int) -> None:
    """Is there room for so much beside `out`?

    Raises:
        OutputError: there is not.
    """
    free = shutil.disk_usage(_absolute(out).parent).free
    if free < num_bytes * 1.1:
        raise OutputError(
            f"{out.parent}: {free / 1e9:.1f} GB free, {out.name} needs about "
            f"{num_bytes * 1.1 / 1e9:.1f} GB; free some or choose another --out"
        )


def refuse_foreign(out: Path, foreign: Foreign) -> None:
    """
    Raises:
        OutputError: `out` is there, and it is no folder, or something in it is not ours.
    """
    with output_errors(out):
        if not os.path.lexists(out):
            return
        if out.is_symlink() or not out.is_dir():
            what = "a link" if out.is_symlink() else "a file"
            raise OutputError(f"{out}: {what}, where a folder is to be written; name a folder")
        if not os.listdir(out):
            return
        linked = next((path for path in out.rglob("*") if path.is_symlink()), None)
        words = f"{linked.relative_to(out)} is a link" if linked is not None else foreign(out)
    if words is not None:
        raise OutputError(
            f"{out}: not empty and not ours to replace: {words}. Nothing was removed; choose "
            "another folder, or remove this one"
        )


def _absolute(out: Path) -> Path:
    """With a name, whatever it is called relative to."""
    path = Path(os.path.abspath(out))
    if not path.name:
        raise OutputError(f"{out}: the root of the file system; name a folder in it")
    return path


def _lock(out: Path, place: Path) -> IO[str]:
    """Make the workshop, and hold it. The lock file is the last to go, so it may be gone again."""
    while True:
        place.mkdir(exist_ok=True)
        if not _is_workshop(place):
            raise OutputError(f"{place}: in the way, and not a folder of ours; move it elsewhere")
        try:
            lock = (place / LOCK).open("a+")
        except FileNotFoundError:
            continue
        if holder := take_lock(lock, MARK):
            lock.close()
            raise OutputError(
                f"{out}: another command is writing it (process {holder}); wait for it or stop it"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), (place / LOCK).stat()):
                return lock
        lock.close()


def _is_workshop(place: Path) -> bool:
    """Made by `_lock`, be it only just: then the lock is not there or empty."""
    if place.is_symlink() or not {NEW, OLD, LOCK}.issuperset(os.listdir(place)):
        return False
    lock = place / LOCK
    if not os.path.lexists(lock):
        return not os.listdir(place)
    if lock.is_symlink() or not lock.is_file():
        return False
    words = lock.read_bytes()[: len(MARK)]
    return words == MARK.encode() or (not words and os.listdir(place) == [LOCK])


def _tidy(out: Path) -> None:
    """Empty the workshop; the old folder is put back if neither is in its place.

    What is removed is called `new` first, so that `old` is always whole.
    """
    new, old = workshop(out) / NEW, workshop(out) / OLD
    shutil.rmtree(new, ignore_errors=True)
    if os.path.lexists(old):
        old.rename(new if out.exists() else out)
        sync(out.parent)
        shutil.rmtree(new, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Change the places of two folders in one step; False where that cannot be done."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    if rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(second))
