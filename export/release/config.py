"""What the verbs of releases are asked for: keys, sign, wheelhouse, flash, flash-os, rollback,
status."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tyro.conf import OmitArgPrefixes, Positional

from export.release.jetson import JETSONS
from runtime.storage.signature import MOST_NUMBER

ROOT = "/opt/anchorvla"
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


@dataclass(frozen=True, kw_only=True, slots=True)
class AnyBoardConfig:
    """How boards are reached with ssh, and where they keep releases."""

    ssh_option: tuple[str, ...] = ()
    """For ssh -o, such as ProxyJump=gate."""

    python: str = "python3"
    """The board's own Python, 3.10 or newer."""

    root: str = ROOT
    """Folder of the releases there."""

    system: str = "/"
    """What stands for / there: units, trust and status lie below it. For trials."""

    def __post_init__(self) -> None:
        for name in ("root", "system"):
            if not getattr(self, name).startswith("/"):
                raise ValueError(f"{name} must be an absolute path, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardConfig(AnyBoardConfig):
    """One board."""

    host: str
    """user@host or user@host:port, root or one who may sudo; its key must be known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseConfig:
    """What a release consists of beside its bundle, and how it is run."""

    bundle: Path
    """Signed with `make sign`."""

    trust: Path | None = None
    """A public key for a board that trusts none yet: the first one, keys/release.pub. Later ones
    are added there with `anchorvla trust`."""

    backend: Literal["tensorrt", "onnxruntime"] = "tensorrt"
    """What computes there."""

    service: str | None = None
    """The command that runs there, after `anchorvla`; {bundle} stands for the bundle. By default
    the bundle is served to clients on that board: serve {bundle} --backend BACKEND."""

    kinds: tuple[Kind, ...] = ("serve", "signed")
    """Of packages beside those of the runtime and the backend."""

    wheelhouse: Path | None = None
    """Folder that `make wheelhouse` wrote, instead of packages for the board's own Python."""

    budget_ms: float | None = None
    """Of a warm tick, 99th percentile; measured and not judged by default."""

    health_ticks: int = 3
    """Good ticks that the service has to do to be confirmed."""

    health_s: float = 300.0
    """Seconds in which it has to do them, or the release before comes back."""

    most_starts: int = 3
    """Of the service until then, or the release before comes back."""

    allow_downgrade: bool = False
    """Flash a release with a smaller number than the one that runs there."""

    def __post_init__(self) -> None:
        if self.health_ticks < 1 or self.most_starts < 1:
            raise ValueError(
                "health_ticks and most_starts must be positive, got "
                f"{self.health_ticks}, {self.most_starts}"
            )
        if not 0 < self.health_s <= 3600:
            raise ValueError(f"health_s must be in (0, 3600], got {self.health_s}")
        if self.budget_ms is not None and not self.budget_ms > 0:
            raise ValueError(f"budget_ms must be positive, got {self.budget_ms}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FlashConfig:
    """Bring a signed bundle to a board, prove it there, switch to it, or return.

    example: python -m export flash --host robot@orin --bundle bundle --trust keys/release.pub
    """

    board: OmitArgPrefixes[BoardConfig]
    release: OmitArgPrefixes[ReleaseConfig]

    dry_run: bool = False
    """Print every step, and whether it was done already. Nothing is changed there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlashOsConfig:
    """Put a signed bundle into NVIDIA's root file system, for boards that are flashed whole.

    example: python -m export flash-os --board thor --l4t Linux_for_Tegra
    --bundle bundle --trust keys/release.pub
    """

    board: str
    """orin-agx-64, orin-nx-16, orin-nano-8 or thor; see `export.release.jetson.JETSONS`."""

    l4t: Path
    """Linux_for_Tegra, with the sample root file system and NVIDIA's packages in it."""

    release: OmitArgPrefixes[ReleaseConfig]

    conf: str | None = None
    """NVIDIA's configuration for another carrier board than the developer kit's: a name of a file
    NAME.conf in the tree."""

    run: bool = False
    """Run the command that flashes the board, which has to be in recovery mode. It erases what is
    on the board. Otherwise the command is printed."""

    def __post_init__(self) -> None:
        if self.board not in JETSONS:
            raise ValueError(f"unknown board {self.board!r}; there are {', '.join(JETSONS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetConfig:
    """Flash many boards: one first, the others when it has confirmed the release.

    example: python -m export fleet --hosts boards.txt --bundle bundle
    """

    hosts: Path
    """A file: user@host a line, the one to try first."""

    board: OmitArgPrefixes[AnyBoardConfig]
    release: OmitArgPrefixes[ReleaseConfig]

    parallel: int = 4
    """Boards at a time, after the first."""

    most_failures: int = 1
    """After so many no other board is begun."""

    def __post_init__(self) -> None:
        if self.parallel < 1 or self.most_failures < 1:
            raise ValueError(
                f"parallel and most_failures must be positive, got {self.parallel}, "
                f"{self.most_failures}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RollbackConfig:
    """Return a board to the release before, which has to become healthy like any other.

    example: python -m export rollback --host robot@orin
    """

    board: OmitArgPrefixes[BoardConfig]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusConfig:
    """What runs on a board, since when, how soon it answers, what happened last.

    example: python -m export status --host robot@orin
    """

    board: OmitArgPrefixes[BoardConfig]

    json: bool = False
    """All of it, for programs."""
