"""Machines that are not here: which files a release for them installs.

A pin of requirements/robot*.txt is taken by the markers and tags of the machine that it is for.
What the files of both JetPacks are stands in `robot_files.json`, which `make resolve` writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

from export.release.config import KINDS

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
TABLE = Path(__file__).with_name("robot_files.json")

SOURCE_ONLY = {"pycuda": {"numpy", "setuptools", "wheel"}}
"""Built on the board, with what: its own word is held against this. All else has to be a wheel."""
LEFT_OUT = {
    "tokenizers": {"huggingface-hub"},
    "onnxruntime": {"coloredlogs", "flatbuffers", "packaging", "protobuf", "sympy"},
    "pycuda": {"mako", "platformdirs", "pytools"},
}
"""Distribution -> what it declares and a robot does without; the requirements say why."""
HEAVY = {"onnx", "torch", "torchaudio", "torchvision", "transformers"}
"""Never on a robot."""

MACHINES = ("aarch64", "x86_64")
PYTHONS = ((3, 10), (3, 14))
OLDEST_GLIBC = 17
"""Of manylinux2014."""


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an index says of a file."""

    sha256: str
    size: int = 0
    """Bytes; 0 if nobody counted them."""
    requires_python: str = ""
    requires: tuple[str, ...] = ()


Table = Mapping[str, File]
"""By name, which holds version and tags."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine that is not here."""

    name: str
    machine: str = "aarch64"
    python: tuple[int, int]
    glibc: int
    """Minor version of glibc 2: the newest manylinux whose wheels run there."""

    def __post_init__(self) -> None:
        if self.machine not in MACHINES:
            raise ValueError(f"machine must be one of {', '.join(MACHINES)}, got {self.machine!r}")
        if not PYTHONS[0] <= self.python <= PYTHONS[1]:
            first, last = (".".join(map(str, python)) for python in PYTHONS)
            raise ValueError(f"python must be from {first} to {last}, got {self.short_python}")
        if self.glibc < OLDEST_GLIBC:
            raise ValueError(f"glibc must be 2.{OLDEST_GLIBC} or newer, got 2.{self.glibc}")

    @classmethod
    def of(cls, machine: str, python: tuple[int, int], glibc: int) -> Target:
        """One that is no JetPack, for trials.

        Raises:
            ValueError: there are no pins for such a machine.
        """
        name = f"{machine}, Python {python[0]}.{python[1]}, glibc 2.{glibc}"
        return cls(name=name, machine=machine, python=python, glibc=glibc)

    @property
    def short_python(self) -> str:
        """As in "3.10"."""
        return ".".join(map(str, self.python))

    @property
    def slug(self) -> str:
        """As in "aarch64-cp310-glibc35"."""
        return "{}-cp{}{}-glibc{}".format(self.machine, *self.python, self.glibc)

    @property
    def environment(self) -> dict[str, str]:
        """Every variable that a marker may ask for."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.short_python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.short_python}.0",
            "python_version": self.short_python,
            "sys_platform": "linux",
        }

    @property
    def platforms(self) -> list[str]:
        """The newest manylinux first."""
        minors = range(self.glibc, OLDEST_GLIBC - 1, -1)
        newest_first = [f"manylinux_2_{minor}_{self.machine}" for minor in minors]
        return [*newest_first, f"manylinux2014_{self.machine}", f"linux_{self.machine}"]

    @cached_property
    def ranks(self) -> dict[Tag, int]:
        """Of the wheels that run there; pip takes the lowest."""
        interpreter = "cp{}{}".format(*self.python)
        found = [
            *cpython_tags(self.python, [interpreter], self.platforms),
            *compatible_tags(self.python, interpreter, self.platforms),
        ]
        return {tag: rank for rank, tag in reversed(list(enumerate(found)))}


JETPACKS = {
    6: Target(name="JetPack 6", python=(3, 10), glibc=35),
    7: Target(name="JetPack 7", python=(3, 12), glibc=39),
}
"""Ubuntu 22.04 and 24.04."""
TARGETS = tuple(JETPACKS.values())


def target_of(machine: str, python: tuple[int, int], glibc: str) -> Target:
    """A JetPack if it is one, or a machine for trials.

    Args:
        glibc: as in "2.35".

    Raises:
        ValueError: there are no pins for such a machine.
    """
    minor = int(glibc.partition(".")[2] or 0)
    found = Target.of(machine, python, minor)
    return next((target for target in TARGETS if target.slug == found.slug), found)


def read_table(path: Path = TABLE) -> dict[str, File]:
    """
    Raises:
        ValueError: it is no such table.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, File])
    except msgspec.DecodeError as error:
        raise ValueError(
            f"{path}: {error}; remove it, or write that of the JetPacks with: make resolve"
        ) from None


def table_bytes(table: Table) -> bytes:
    """As `read_table` takes it."""
    return msgspec.json.format(msgspec.json.encode(dict(sorted(table.items()))), indent=1) + b"\n"


def pins_of(path: Path, target: Target) -> dict[str, Requirement]:
    """What a requirements file, and those that it includes, installs on `target`, by name."""
    found: dict[str, Requirement] = {}
    for line in path.read_text().splitlines():
        words = line.split("#")[0].strip()
        if words.startswith("-r "):
            found |= pins_of(path.parent / words.removeprefix("-r ").strip(), target)
        elif words:
            pin = Requirement(words)
            if pin.marker is None or pin.marker.evaluate(target.environment):
                found[canonicalize_name(pin.name)] = pin
    return found


def pins_for(
    kinds: Iterable[str], target: Target, requirements: Path = REQUIREMENTS
) -> dict[str, Requirement]:
    """What a robot of these kinds installs, by name.

    Raises:
        ValueError: there is no such kind, or something is pinned that no robot may have.
    """
    pins = pins_of(requirements / "robot.txt", target)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; there are {', '.join(KINDS)}")
        pins |= pins_of(requirements / f"robot-{kind}.txt", target)
    if heavy := sorted(HEAVY & pins.keys()):
        raise ValueError(
            f"{requirements}: {', '.join(heavy)} among the pins of a robot, which runs without"
        )
    return dict(sorted(pins.items()))


def problems(pins: Mapping[str, Requirement], table: Table, target: Target) -> Iterator[str]:
    """Why these pins cannot be installed on `target`; nothing if they can."""
    for name, pin in pins.items():
        words = f"{target.name}: {name}{pin.specifier}"
        of_version = [file for file in table if is_of(file, name, pin)]
        files = fitting(name, pin, table, target)
        if not of_version:
            yield f"{words}: no such file is known; make resolve asks the registry"
        elif not files:
            yield f"{words}: no file for it: {', '.join(of_version)}"
        for tool in sorted(SOURCE_ONLY.get(name, set()) - pins.keys()):
            yield f"{words}: is built with {tool}, which is no pin"
        for file in files:
            wanted = table[file].requires_python
            if not SpecifierSet(wanted).contains(target.short_python):
                yield f"{words}: needs Python {wanted}"
            missing = _missing(name, table[file].requires, pins, target)
            yield from (f"{words}: {problem}" for problem in missing)


def choose(pins: Mapping[str, Requirement], table: Table, target: Target) -> dict[str, str]:
    """The file that `target` installs for each pin, by its name. There are no `problems`."""
    return {name: fitting(name, pin, table, target)[0] for name, pin in pins.items()}


def fitting(name: str, pin: Requirement, table: Table, target: Target) -> list[str]:
    """Files of a pin that `target` can install; the one that pip would take comes first."""
    ranks = {file: _rank(file, target) for file in table if is_of(file, name, pin)}
    return sorted((f for f, rank in ranks.items() if rank is not None), key=lambda f: ranks[f] or 0)


def is_of(file: str, name: str, pin: Requirement) -> bool:
    """Has a wheel or source of this name the pinned version?"""
    parse = parse_wheel_filename if file.endswith(".whl") else parse_sdist_filename
    found, version, *_ = parse(file)
    return found == name and pin.specifier.contains(version, prereleases=True)


def _rank(file: str, target: Target) -> int | None:
    if not file.endswith(".whl"):
        return 0 if parse_sdist_filename(file)[0] in SOURCE_ONLY else None
    ranks = (target.ranks.get(tag) for tag in parse_wheel_filename(file)[3])
    return min((rank for rank in ranks if rank is not None), default=None)


def _missing(
    name: str, declared: Iterable[str], pins: Mapping[str, Requirement], target: Target
) -> Iterator[str]:
    """Installation is without dependencies, so each one is a pin or is left out on purpose."""
    for words in declared:
        wanted = Requirement(words)
        other = canonicalize_name(wanted.name)
        if wanted.marker and not wanted.marker.evaluate({**target.environment, "extra": ""}):
            continue
        if other in LEFT_OUT.get(name, ()):
            continue
        if other not in pins:
            yield f"declares {words}, which is no pin and not left out on purpose"
        elif not any(wanted.specifier.contains(p.version) for p in pins[other].specifier):
            yield f"declares {words}, but the pin is {pins[other].specifier}"
