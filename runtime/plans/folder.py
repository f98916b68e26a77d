"""The folder that plans are built in: one build at a time, and plain words where the disk fails."""

from __future__ import annotations

import contextlib
import errno
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..bundle import PLANS, Bundle
from ..errors import EngineError
from ..storage.files import take_lock

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def exclusive(bundle: Bundle) -> Iterator[None]:
    """One build per bundle. The lock dies with its process; the file stays."""
    folder = bundle.path / PLANS
    if folder.is_symlink():
        raise EngineError(f"{folder}: a link; plans are plain files. Remove it and build again")
    folder.mkdir(exist_ok=True)
    with (folder / "build.lock").open("a+") as lock:
        if holder := take_lock(lock):
            raise EngineError(
                f"{bundle.path}: another build is under way (process {holder}); wait for it or "
                "stop it"
            )
        yield


@contextlib.contextmanager
def disk_errors(bundle: Bundle) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise EngineError(
                f"{bundle.path}: the disk is full; free some space, then go on with: "
                f"{how_to_build(bundle.path)}"
            ) from error
        if error.errno in READ_ONLY:
            raise EngineError(
                f"{bundle.path}: cannot write plans there ({error.strerror}); build as the user "
                "that owns the bundle, on a disk that may be written"
            ) from error
        raise


def how_to_build(bundle: Path) -> str:
    """The command, to be copied into a shell."""
    return shlex.join(["anchorvla", "build", str(bundle)])


def check_disk(path: Path, num_bytes: int) -> None:
    """Plans are about as large as their ONNX files."""
    free = shutil.disk_usage(path).free
    if free < num_bytes * 1.2:
        raise EngineError(
            f"{path}: {free / 1e9:.1f} GB free, the plans need about {num_bytes * 1.2 / 1e9:.1f} "
            f"GB; free some space, then: {how_to_build(path)}"
        )
