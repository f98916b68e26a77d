"""python -m tests.resolve: does every pin of requirements/robot*.txt exist for both JetPacks?

Asks the package registry through pip and keeps what it found in `tests/robot_files.json`: names of
files (which hold version and tags), the Pythons that they are for and what they declare. The tests
hold the requirements against that table without a network. Markers and tags are the target's:
`pip --python-version` alone takes the markers of the machine it runs on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

ROOT = Path(__file__).parents[1]
FILES = tuple(sorted((ROOT / "requirements").glob("robot*.txt")))
TABLE = Path(__file__).with_name("robot_files.json")

SOURCE_ONLY = {"pycuda"}
"""Built on the board. Everything else has to be a wheel."""
LEFT_OUT = {
    "tokenizers": {"huggingface-hub"},
    "onnxruntime": {"coloredlogs", "flatbuffers", "packaging", "protobuf", "sympy"},
    "pycuda": {"mako", "platformdirs", "pytools"},
}
"""Distribution -> what it declares and a robot does without; the requirements say why."""

Table = Mapping[str, Mapping[str, Any]]
"""Name of a file -> `requires_python` and `requires`, as the file declares them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A machine that is not here."""

    name: str
    python: tuple[int, int]
    glibc: int
    """Minor version of glibc 2: the newest manylinux whose wheels run there."""

    @property
    def environment(self) -> dict[str, str]:
        """Every variable that a marker may ask for."""
        short = ".".join(map(str, self.python))
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{short}.0",
            "os_name": "posix",
            "platform_machine": "aarch64",
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{short}.0",
            "python_version": short,
            "sys_platform": "linux",
        }

    @property
    def platforms(self) -> list[str]:
        newest_first = [f"manylinux_2_{minor}_aarch64" for minor in range(self.glibc, 16, -1)]
        return [*newest_first, "manylinux2014_aarch64", "linux_aarch64"]

    @property
    def tags(self) -> frozenset[Tag]:
        """Of the wheels that run there."""
        interpreter = "cp{}{}".format(*self.python)
        return frozenset(cpython_tags(self.python, [interpreter], self.platforms)) | frozenset(
            compatible_tags(self.python, interpreter, self.platforms)
        )


TARGETS = (
    Target(name="JetPack 6", python=(3, 10), glibc=35),
    Target(name="JetPack 7", python=(3, 12), glibc=39),
)
"""Ubuntu 22.04 and 24.04."""


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


def problems(pins: Mapping[str, Requirement], table: Table, target: Target) -> Iterator[str]:
    """Why these pins cannot be installed on `target`; nothing if they can."""
    for name, pin in pins.items():
        words = f"{target.name}: {name}{pin.specifier}"
        of_version = [f for f in table if _is_of(f, name, pin)]
        files = [f for f in of_version if _fits(f, target)]
        if not of_version:
            yield f"{words}: no such file is known; make resolve asks the registry"
        elif not files:
            yield f"{words}: no file for it: {', '.join(of_version)}"
        for file in files:
            wanted = table[file]["requires_python"]
            if not SpecifierSet(wanted).contains(target.environment["python_version"]):
                yield f"{words}: needs Python {wanted}"
            yield from (
                f"{words}: {p}" for p in _missing(name, table[file]["requires"], pins, target)
            )


def _is_of(file: str, name: str, pin: Requirement) -> bool:
    parse = parse_wheel_filename if file.endswith(".whl") else parse_sdist_filename
    found, version, *_ = parse(file)
    return found == name and pin.specifier.contains(version, prereleases=True)


def _fits(file: str, target: Target) -> bool:
    if not file.endswith(".whl"):
        return parse_sdist_filename(file)[0] in SOURCE_ONLY
    return bool(parse_wheel_filename(file)[3] & target.tags)


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


def ask_registry(name: str, pin: Requirement, target: Target) -> tuple[str, dict[str, Any]]:
    """The file that pip takes for a pin on `target`, and what it declares.

    Raises:
        LookupError: there is none; the message is pip's.
    """
    form = ["--no-binary", name] if name in SOURCE_ONLY else ["--only-binary", ":all:"]
    tags = ["--implementation", "cp", "--python-version", target.environment["python_version"]]
    for platform in target.platforms:
        tags += ["--platform", platform]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--dry-run", "--no-deps", "--ignore-installed", "--no-build-isolation"),
            "--ignore-requires-python",  # it is held against this machine's; `problems` does it
            *("--target", "nowhere"),  # nothing is installed, but pip asks for it with tags
            *("--report", "-", *form, *tags, f"{name}{pin.specifier}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LookupError(_last_words(done.stderr))
    (found,) = json.loads(done.stdout)["install"]
    declared = found["metadata"]
    file = found["download_info"]["url"].rsplit("/", 1)[-1]
    return file, {
        "requires_python": declared.get("requires_python", ""),
        "requires": [r for r in declared.get("requires_dist", []) if "extra ==" not in r],
    }


def _last_words(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    return (errors or text.splitlines() or ["pip gave no reason"])[-1].removeprefix("ERROR: ")


def main(
    files: Iterable[Path] = FILES,
    ask: Callable[[str, Requirement, Target], tuple[str, dict[str, Any]]] = ask_registry,
    table: Path = TABLE,
) -> int:
    """0 if all can be installed; the table is written then. 1 with a line for each that cannot."""
    found: dict[str, dict[str, Any]] = {}
    wrong: dict[str, None] = {}
    for target in TARGETS:
        wanted = {path: pins_of(path, target) for path in files}
        for name, pin in {n: p for pins in wanted.values() for n, p in pins.items()}.items():
            try:
                file, declared = ask(name, pin, target)
            except LookupError as error:
                wrong[f"{target.name}: {name}{pin.specifier}: {error}"] = None
                continue
            print(f"{target.name}  {file}", flush=True)
            found[file] = declared
        if not wrong:
            for pins in wanted.values():
                wrong |= dict.fromkeys(problems(pins, found, target))
    for words in wrong:
        print(f"error: {words}", file=sys.stderr)
    if not wrong:
        table.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
        print(f"{len(found)} files, all for {' and '.join(t.name for t in TARGETS)}: {table.name}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
