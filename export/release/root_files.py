"""Files in a root file system that is somebody else's, and will be a board's.

A link in it leads where it likes on this machine: `/opt` of the board may be a link to `/opt` here.
So none is followed. Every folder on the way, below the first one, has to be of root alone, or
whoever owns it there could change what root runs on the board. What is written is root's too, and
whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from export.errors import ExportError
from runtime.errors import OutputError
from runtime.storage.files import Kind, remedy, sync

OWNER = (0, 0)
"""Of all that is written: user and group."""
FOLDER, FILE, PROGRAM = 0o755, 0o644, 0o755
OTHERS_WRITE = 0o022
PIECE = 1 << 20
FLAGS = os.O_RDONLY | os.O_CLOEXEC
A_LINK = (errno.ELOOP, errno.ENOTDIR)


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A file to be."""

    name: str
    """From the root on, without a slash in front."""
    data: bytes
    mode: int = FILE
    kind: Kind | None = None
    """What it may replace; None where the folder is ours alone."""


@dataclass(frozen=True, slots=True)
class RootFiles:
    """The file system below `path`."""

    path: Path

    @contextlib.contextmanager
    def folder(self, name: str, *, make: bool = False) -> Iterator[Path]:
        """A folder, by a path that leads to it whatever becomes of its name.

        Raises:
            FileNotFoundError: it is not there, and is not to be made.
            OutputError: a link or a file is on the way, or a folder that is not of root alone.
        """
        number = os.open(self.path, FLAGS | os.O_DIRECTORY)
        walked = self.path
        try:
            for part in PurePosixPath(name).parts:
                walked = walked / part
                if make:
                    _make(part, number)
                try:
                    inner = os.open(part, FLAGS | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=number)
                except OSError as error:
                    if error.errno not in A_LINK:
                        raise
                    raise OutputError(
                        f"{walked}: not a plain folder, and no link is followed out of this file "
                        "system; unpack NVIDIA's sample root file system again"
                    ) from None
                os.close(number)
                number = inner
                _check_owner(walked, number)
            yield Path(f"/proc/self/fd/{number}")
        finally:
            os.close(number)

    def has(self, name: str) -> bool:
        """Whether a plain file or folder is there."""
        return self._look(name) is not None

    def read(self, name: str, most: int) -> bytes | None:
        """The first bytes of a plain file; None where there is none."""
        parent, leaf = _split(name)
        with contextlib.suppress(FileNotFoundError), self.folder(parent) as folder:
            if stat.S_ISREG((folder / leaf).lstat().st_mode):
                with open(os.open(folder / leaf, FLAGS | os.O_NOFOLLOW), "rb") as stream:
                    return stream.read(most)
        return None

    def names(self, name: str) -> list[str]:
        """In a folder; empty where there is none."""
        with contextlib.suppress(FileNotFoundError), self.folder(name) as folder:
            return sorted(os.listdir(folder))
        return []

    def led(self, name: str) -> str | None:
        """What a link says; None where there is none."""
        parent, leaf = _split(name)
        with contextlib.suppress(FileNotFoundError), self.folder(parent) as folder:
            if os.path.islink(folder / leaf):
                return os.readlink(folder / leaf)
        return None

    def check(self, item: Item) -> None:
        """May it be written?

        Raises:
            OutputError: something is in its place that is not ours.
        """
        found = self._look(item.name)
        parent, leaf = _split(item.name)
        if found is None and leaf not in self.names(parent):
            return
        if found is None or not stat.S_ISREG(found.st_mode):
            raise OutputError(f"{self.path / item.name}: not a plain file; remove it")
        there = self.read(item.name, found.st_size)
        if item.kind is not None and there and not item.kind.is_borne_by(there):
            raise OutputError(
                f"{self.path / item.name}: there is a file already, and it is not "
                f"{item.kind.words}, so it is not replaced; remove it, if it may go"
            )

    def put(self, item: Item) -> bool:
        """Write it; its folder is made. Call `check` first.

        Returns:
            Whether it was not there already as it is to be.
        """
        parent, leaf = _split(item.name)
        with self._errors(item.name), self.folder(parent, make=True) as folder:
            found = self._look(item.name)
            if (
                found is not None
                and is_as(found, item.mode)
                and self.read(item.name, found.st_size + 1) == item.data
            ):
                return False
            partial = folder / f".{leaf}.partial"
            partial.unlink(missing_ok=True)
            with _new(partial, item.mode) as stream:
                _write_all(stream, item.data)
            partial.replace(folder / leaf)
            sync(folder)
        return True

    def copy(self, source: Path, name: str, sha256: str) -> None:
        """Copy a file into a folder that is ours alone.

        Raises:
            ExportError: it does not hash to that: it was changed meanwhile.
        """
        parent, leaf = _split(name)
        digest = hashlib.sha256()
        with self._errors(name), self.folder(parent, make=True) as folder:
            with _new(folder / leaf, FILE) as stream, source.open("rb") as data:
                while piece := data.read(PIECE):
                    digest.update(piece)
                    _write_all(stream, piece)
            sync(folder)
        if digest.hexdigest() != sha256:
            raise ExportError(f"{source}: was changed while it was copied; begin again")

    def check_link(self, name: str, target: str) -> None:
        """May a link to `target` be made, or is it there?

        Raises:
            OutputError: something else is in its place.
        """
        parent, leaf = _split(name)
        if leaf in self.names(parent) and self.led(name) != target:
            raise OutputError(f"{self.path / name}: in the way of a link to {target}; remove it")

    def lead(self, name: str, target: str) -> bool:
        """A link to `target`, a path of the board's. Call `check_link` first.

        Returns:
            Whether it was not there already.
        """
        parent, leaf = _split(name)
        with self._errors(name), self.folder(parent, make=True) as folder:
            if os.path.lexists(folder / leaf):
                return False
            (folder / leaf).symlink_to(target)
            os.chown(folder / leaf, *OWNER, follow_symlinks=False)
            sync(folder)
        return True

    def rename(self, name: str, leaf: str) -> None:
        """Within its folder."""
        parent, old = _split(name)
        with self._errors(name), self.folder(parent) as folder:
            (folder / old).rename(folder / leaf)
            sync(folder)

    def remove(self, name: str) -> None:
        """A folder with all that is in it, or a file. A link goes, and what it leads to stays."""
        parent, leaf = _split(name)
        with self._errors(name), self.folder(parent) as folder:
            if stat.S_ISDIR((folder / leaf).lstat().st_mode):
                shutil.rmtree(folder / leaf)
            else:
                (folder / leaf).unlink()
            sync(folder)

    def _look(self, name: str) -> os.stat_result | None:
        parent, leaf = _split(name)
        with contextlib.suppress(FileNotFoundError), self.folder(parent) as folder:
            found = (folder / leaf).lstat()
            return None if stat.S_ISLNK(found.st_mode) else found
        return None

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """By the name that a reader knows, and not by that of the open folder."""
        try:
            yield
        except OSError as error:
            plain = OSError(error.errno, error.strerror)
            raise OutputError(f"{self.path / name}: cannot be written: {remedy(plain)}") from error


def is_as(found: os.stat_result, mode: int) -> bool:
    """Of this mode, and of the right owner?"""
    return stat.S_IMODE(found.st_mode) == mode and (found.st_uid, found.st_gid) == OWNER


@contextlib.contextmanager
def _new(path: Path, mode: int) -> Iterator[int]:
    """A file that was not there, on the disk at the end."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        yield number
        os.fchown(number, *OWNER)
        os.fchmod(number, mode)
        os.fsync(number)
    finally:
        os.close(number)


def _write_all(number: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]


def _make(part: str, parent: int) -> None:
    try:
        os.mkdir(part, FOLDER, dir_fd=parent)
    except FileExistsError:
        return
    number = os.open(part, FLAGS | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.fchown(number, *OWNER)
        os.fchmod(number, FOLDER)
        os.fsync(parent)
    finally:
        os.close(number)


def _check_owner(path: Path, number: int) -> None:
    found = os.fstat(number)
    if found.st_uid != OWNER[0] or found.st_mode & OTHERS_WRITE:
        raise OutputError(
            f"{path}: belongs to user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}, and "
            "on a board only root may change what is in it; unpack the sample root file system as "
            "root: sudo tar xpf Tegra_Linux_Sample-Root-Filesystem_*.tbz2 -C rootfs"
        )


def _split(name: str) -> tuple[str, str]:
    pure = PurePosixPath(name)
    return str(pure.parent), pure.name
