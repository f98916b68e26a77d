"""Whose releases this machine runs: a folder of public keys, one file each.

Without a key in it everything runs, as on a workstation. With one, nothing does that none of them
has signed. A development key is one that says so in its file: for a board on the desk. Where there
is another key too, it counts for nothing.

A key's file is PEM, as OpenSSL writes public keys, below a line that says what it is for. A folder
or a file that cannot be read stops everything: it may be the one that forbids.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BundleError
from .files import Kind, output_errors, write_file
from .signature import SHOWN, Signature, library, name_of, read_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

STORE = Path("/etc/anchorvla/trust")
STORE_VARIABLE = "ANCHORVLA_TRUST"
"""Names another folder."""
MOST_BYTES = 4096
"""Of a key's file, that are read; it has some 150."""
RELEASE, DEVELOPMENT = "release", "development"
KEY_FILE = Kind("a public key", (b"-----BEGIN PUBLIC KEY-----",))
HEAD = re.compile(rf"anchorvla ({RELEASE}|{DEVELOPMENT}) key\n")


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """One file of the folder."""

    name: str
    """`runtime.storage.signature.name_of` it."""
    kind: str
    """`release` or `development`."""
    public: Ed25519PublicKey
    path: Path

    def __str__(self) -> str:
        warning = ": for development only" if self.kind == DEVELOPMENT else ""
        return f"{self.name[:SHOWN]} {self.kind}{warning}"


def store() -> Path:
    """The folder."""
    return Path(os.environ.get(STORE_VARIABLE) or STORE)


def read_key(path: Path) -> TrustedKey:
    """A public key. One without a line of ours is a release key.

    Raises:
        BundleError: it is none, or not of Ed25519.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    serialization = library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if b"PRIVATE KEY" in data:
        raise BundleError(f"{path}: a private key, which stays where releases are signed")
    try:
        public = serialization.load_pem_public_key(data)
    except Exception as error:  # several kinds, by what is wrong
        raise BundleError(f"{path}: not a public key in PEM ({error})") from None
    if not isinstance(public, Ed25519PublicKey):
        raise BundleError(f"{path}: not a key of Ed25519; make one with: make keys")
    head = HEAD.match(data.decode("latin-1"))
    return TrustedKey(name_of(public), head[1] if head else RELEASE, public, path)


def key_file(public: Ed25519PublicKey, kind: str) -> bytes:
    """What `read_key` reads."""
    serialization = library()
    pem: bytes = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return f"anchorvla {kind} key\n".encode() + pem


def trusted_keys() -> Mapping[str, TrustedKey]:
    """All keys of the folder, by name.

    Raises:
        BundleError: one of them cannot be read, so that nobody knows whom this machine trusts.
    """
    folder = store()
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read ({error.strerror})") from None
    return {key.name: key for key in (read_key(folder / name) for name in names)}


def check_trusted(folder: Path, manifest: bytes) -> Signature | None:
    """May this machine run the bundle in `folder`? Its signature, if it has one that was checked.

    Args:
        manifest: its bytes; nothing has parsed them yet.

    Raises:
        BundleError: this machine trusts keys, and none of those that count has signed it.
    """
    keys = trusted_keys()
    if not keys:
        return None
    trusts = f"this machine runs what {_listed(keys)} signed ({store()})"
    found = read_signature(folder)
    if found is None:
        raise BundleError(
            f"{folder}: not signed, and {trusts}; sign it on the workstation: make sign BUNDLE=..."
        )
    if found.key not in keys:
        raise BundleError(
            f"{folder}: signed by the key {found.key[:SHOWN]}, but {trusts}; if that key is yours: "
            "anchorvla trust add KEY.pub"
        )
    key = keys[found.key]
    if key.kind == DEVELOPMENT and any(k.kind != DEVELOPMENT for k in keys.values()):
        raise BundleError(
            f"{folder}: signed by the key {key}, which counts for nothing beside a release key; "
            f"{trusts}"
        )
    if not found.is_by(key.public, manifest):
        raise BundleError(
            f"{folder}: the signature is not of this manifest: one of them was changed, or is of "
            "another release; copy the release again"
        )
    return found


def anybody(folder: Path, manifest: bytes) -> None:
    """In place of `check_trusted` where bundles are made: they are signed when they are whole."""


def add(path: Path) -> TrustedKey:
    """Trust the key in a file from now on.

    Raises:
        BundleError: it is none.
        OutputError: it cannot be kept.
    """
    key = read_key(path)
    kept = store() / f"{key.name[:SHOWN]}.pub"
    write_file(kept, key_file(key.public, key.kind), KEY_FILE)
    return read_key(kept)


def remove(name: str) -> TrustedKey:
    """Trust a key no more.

    Args:
        name: how its name begins.

    Raises:
        ValueError: none or several are called so.
        OutputError: it cannot be removed.
    """
    keys = trusted_keys()
    found = [key for key in keys.values() if name and key.name.startswith(name)]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} keys have a name that begins with {name!r}; trusted are "
            f"{_listed(keys) if keys else 'none'}"
        )
    with output_errors(found[0].path):
        found[0].path.unlink()
    return found[0]


def _listed(keys: Mapping[str, TrustedKey]) -> str:
    return ", ".join(map(str, keys.values()))
