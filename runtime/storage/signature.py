"""A signature beside a manifest: who vouches for a bundle, and which release it is.

The manifest holds the hash of every other file, so a signature over its bytes is one over all of
them. It is a text of four lines, of one form and no other, so that nothing has to be parsed that
nobody has vouched for yet:

    anchorvla release 1
    key 9f86d0...           SHA-256 of the public key, 64 hex digits
    number 20261128175500   larger than that of every release before
    Ed25519 3q2+...==       over the three lines above, then the manifest: RFC 8032

`cryptography` does the arithmetic; it is imported where it is used.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BundleError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE = "manifest.sig"
MOST_BYTES = 512
"""Of a signature's file, that are read; it has some 250."""
MOST_NUMBER = 10**18 - 1
FORM = re.compile(
    rb"anchorvla release 1\nkey ([0-9a-f]{64})\nnumber ([1-9][0-9]{0,17})\n"
    rb"Ed25519 ([A-Za-z0-9+/]{86}==)\n"
)
SHOWN = 16
"""Digits of a key's name that are enough to tell it by."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What the file says; whether that is true, `is_by` knows."""

    key: str
    """Name of the key, 64 hex digits."""
    number: int
    """Of the release."""
    value: bytes
    """64 bytes."""

    @property
    def head(self) -> bytes:
        """The lines that are signed with the manifest."""
        return b"anchorvla release 1\nkey %s\nnumber %d\n" % (self.key.encode(), self.number)

    def to_bytes(self) -> bytes:
        """The file."""
        return self.head + b"Ed25519 " + base64.b64encode(self.value) + b"\n"

    def message(self, manifest: bytes) -> bytes:
        """What Ed25519 signs."""
        return self.head + manifest

    def is_by(self, key: Ed25519PublicKey, manifest: bytes) -> bool:
        """Whether it is of this manifest, and by this key."""
        from cryptography.exceptions import InvalidSignature

        try:
            key.verify(self.value, self.message(manifest))
        except InvalidSignature:
            return False
        return True


def name_of(key: Ed25519PublicKey) -> str:
    """Of a public key: SHA-256 of its 32 bytes, in hex."""
    return sha256(key.public_bytes_raw()).hexdigest()


def read_signature(folder: Path) -> Signature | None:
    """The signature of the bundle in `folder`; None where it has none.

    Raises:
        BundleError: it is no plain file, or has another form.
        OSError: it cannot be read.
    """
    path = folder / SIGNATURE
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise BundleError(f"{path}: not a plain file; copy the release again")
    if not path.exists():
        return None
    with path.open("rb") as stream:
        data = stream.read(MOST_BYTES)
    found = FORM.fullmatch(data)
    if found is None:
        raise BundleError(
            f"{path}: not a signature of this version of anchorvla; copy the release again, or "
            "install the runtime that it was made for"
        )
    key, number, value = found.groups()
    made = Signature(key.decode(), int(number), base64.b64decode(value))
    if made.to_bytes() != data:  # base64 has bits that mean nothing
        raise BundleError(f"{path}: damaged; copy the release again")
    return made


def library() -> Any:
    """`cryptography`'s module of keys.

    Raises:
        BundleError: it is not installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise BundleError(
            "signatures need the package cryptography: pip install 'anchorvla-runtime[signed]', "
            "on a robot requirements/robot-signed.txt"
        ) from None
    return serialization
