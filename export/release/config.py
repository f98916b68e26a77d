"""What `python -m export keys`, `sign` and `wheelhouse` are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tyro.conf import Positional

from runtime.storage.signature import MOST_NUMBER

KEYS = Path("keys")
PRIVATE_KEY, PUBLIC_KEY = "release.key", "release.pub"
WHEELS = Path("build/wheels")

Kind = Literal["tensorrt", "onnxruntime", "serve", "signed", "cameras"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Of what a robot installs: requirements/robot-KIND.txt."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelhouseConfig:
    """Put all that a board installs into a folder, without running any of it.

    example: python -m export wheelhouse --jetpack 6 --kinds tensorrt serve signed
    """

    jetpack: Literal[6, 7]
    """6 is Python 3.10 and glibc 2.35, 7 is Python 3.12 and glibc 2.39; both are aarch64."""

    kinds: tuple[Kind, ...] = ("tensorrt",)
    """Of what is needed beside the runtime: files requirements/robot-KIND.txt."""

    out: Path = Path("build/wheelhouse")
    """Folder for wheels/ and requirements.txt. A wheelhouse that lies there is replaced."""

    cache: Path = WHEELS
    """Folder for what was fetched once."""
