"""What `python -m export keys` and `sign` are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from runtime.storage.signature import MOST_NUMBER

KEYS = Path("keys")
PRIVATE_KEY, PUBLIC_KEY = "release.key", "release.pub"


@dataclass(frozen=True, kw_only=True, slots=True)
class KeysConfig:
    """Make a pair of keys: one signs releases here, a board is told to trust the other.

    example: python -m export keys --out keys
    """

    out: Path = KEYS
    """Folder for release.key, which only you may read, and release.pub. No key is replaced."""

    development: bool = False
    """For a board on the desk: one that trusts another key too does not heed this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SignConfig:
    """Sign a bundle, so that boards which trust the key run it.

    example: python -m export sign bundle --key keys/release.key
    """

    bundle: Positional[Path]
    """It is verified first; a signature that it has already is replaced."""

    key: Path = KEYS / PRIVATE_KEY
    """A private key, of `python -m export keys` or Ed25519 in PEM."""

    number: int | None = None
    """Of the release, larger than that of every one before; the time in UTC by default,
    20261128175500."""

    def __post_init__(self) -> None:
        if self.number is not None and not 1 <= self.number <= MOST_NUMBER:
            raise ValueError(f"number must be from 1 to {MOST_NUMBER}, got {self.number}")
