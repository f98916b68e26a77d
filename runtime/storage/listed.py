"""Files of a folder against a list of them: in their place, as large as it says, and of its hash.

Sizes and places are cheap to check; a hash reads the whole file.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from ..errors import BundleError


class Listed(Protocol):
    """What a list says about a file."""

    @property
    def sha256(self) -> str: ...

    @property
    def bytes(self) -> int: ...


def check_places(folder: Path, files: Mapping[str, Listed]) -> None:
    """Is every file of the list inside `folder`, a plain one, and as large as it says?

    Raises:
        BundleError: one is not.
    """
    for name, entry in files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or str(pure) != name:
            raise BundleError(f"{folder}: the manifest names {name!r}, which leaves the folder")
        path = folder / name
        inside = [folder / p for p in (pure, *pure.parents) if str(p) != "."]
        if any(p.is_symlink() for p in inside):
            raise BundleError(f"{path}: a link; a bundle holds plain files only")
        if not path.is_file():
            raise BundleError(f"{path}: missing; copy the bundle again")
        if path.stat().st_size != entry.bytes:
            raise BundleError(
                f"{path}: {path.stat().st_size} bytes, the manifest says {entry.bytes}; "
                "copy the bundle again"
            )


def check_none_else(folder: Path, names: Collection[str], *, but: str) -> None:
    """Is there no file that nobody listed, except in the folder `but`?

    Raises:
        BundleError: there is one.
    """
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name not in names and name.split("/")[0] != but and not path.is_dir():
            raise BundleError(f"{path}: not in the manifest; remove it")


def check_hash(path: Path, entry: Listed) -> None:
    """Does the file hold what the list says?

    Raises:
        BundleError: it does not.
    """
    if sha256_of(path) != entry.sha256:
        raise BundleError(f"{path}: SHA-256 differs from the manifest's; copy the bundle again")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """What the disk refuses inside is a `BundleError`."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{error.filename or folder}: cannot be read ({error.strerror}); give this user the "
            "right to read the whole bundle, or copy it again"
        ) from error
