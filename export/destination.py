"""The folder that an export writes: alone, with enough disk, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from export.errors import ExportError


@contextlib.contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """One export per destination. The lock dies with its process.

    Raises:
        ExportError: somebody else holds it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f"{out.name}.lock")
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise ExportError(
                f"{out}: another export writes it (process {holder}); wait for it or stop it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary(out: Path) -> Iterator[Path]:
    """A working folder beside `out`, gone afterwards whatever happens short of SIGKILL."""
    folder = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    for left in out.parent.glob(f"{out.name}.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)  # from an export that was killed: we hold the lock
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path) -> None:
    """Put a complete folder in the place of `out`. The old one is moved aside, then removed."""
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    folder.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def check_disk(out: Path, num_bytes: int) -> None:
    """Is there room for so much beside `out`?

    Raises:
        ExportError: there is not.
    """
    free = shutil.disk_usage(out.parent).free
    if free < num_bytes * 1.1:
        raise ExportError(
            f"{out.parent}: {free / 1e9:.1f} GB free, the bundle needs about "
            f"{num_bytes * 1.1 / 1e9:.1f} GB; free some or choose another --out"
        )


@contextlib.contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """A disk that fills up half-way becomes an `ExportError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ExportError(f"{out}: the disk is full; free some space and export again") from error
