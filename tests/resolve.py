"""python -m tests.resolve: does every pin of requirements/robot*.txt exist for both JetPacks?

Asks the package registry and keeps what it found in `export/release/robot_files.json`: names of
files (which hold version and tags), their hashes and sizes, the Pythons that they are for and what
they declare. Every file is fetched, into `build/wheels`, and none of them is run. A wheelhouse
takes no others, and the tests hold the requirements against that table without a network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_sdist_filename

from export.errors import ExportError
from export.release.index import ask as ask_registry
from export.release.index import read_member
from export.release.targets import (
    REQUIREMENTS,
    SOURCE_ONLY,
    TABLE,
    TARGETS,
    File,
    Target,
    pins_of,
    problems,
    table_bytes,
)
from export.release.wheelhouse import fetch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILES = tuple(sorted(REQUIREMENTS.glob("robot*.txt")))

Ask = Callable[[Mapping[str, Requirement], Target], Mapping[str, File]]
Fetch = Callable[[Mapping[str, File], Target], Mapping[str, Path]]


def main(
    files: Iterable[Path] = FILES,
    ask: Ask = ask_registry,
    fetch: Fetch = fetch,
    table: Path = TABLE,
) -> int:
    """0 if all can be installed; the table is written then. 1 with a line for each that cannot."""
    found: dict[str, File] = {}
    wrong: dict[str, None] = {}
    for target in TARGETS:
        wanted = {path: pins_of(path, target) for path in files}
        pins = {name: pin for of_file in wanted.values() for name, pin in of_file.items()}
        asked: dict[str, File] = {}
        for name, pin in pins.items():
            try:
                asked |= ask({name: pin}, target)
            except ExportError as error:
                wrong[f"{target.name}: {name}{pin.specifier}: {error}"] = None
                continue
            print(f"{target.name}  {[*asked][-1]}", flush=True)
        found |= asked
        if not wrong:
            for of_file in wanted.values():
                wrong |= dict.fromkeys(problems(of_file, found, target))
        if not wrong:
            for file, path in fetch(asked, target).items():
                found[file] = msgspec.structs.replace(asked[file], size=path.stat().st_size)
                if not file.endswith(".whl"):
                    name, _ = parse_sdist_filename(file)
                    unlike = wrong_tools(name, path.read_bytes(), pins)
                    wrong |= {f"{target.name}: {file}: {words}": None for words in unlike}
    for words in wrong:
        print(f"error: {words}", file=sys.stderr)
    if not wrong:
        table.write_bytes(table_bytes(found))
        print(f"{len(found)} files, all for {' and '.join(t.name for t in TARGETS)}: {table.name}")
    return int(bool(wrong))


def wrong_tools(name: str, source: bytes, pins: Mapping[str, Requirement]) -> Iterator[str]:
    """What a source says it is built with, against what we say and pin."""
    said = tomllib.loads(read_member(source, "pyproject.toml").decode())["build-system"]["requires"]
    tools = {canonicalize_name(r.name): r for r in map(Requirement, said)}
    if tools.keys() != SOURCE_ONLY[name]:
        ours = ", ".join(sorted(SOURCE_ONLY[name]))
        yield f"is built with {', '.join(sorted(tools))}, and SOURCE_ONLY says {ours}"
    for tool in tools.keys() & pins.keys():
        if not any(tools[tool].specifier.contains(p.version) for p in pins[tool].specifier):
            yield f"is built with {tools[tool]}, but the pin is {pins[tool].specifier}"


if __name__ == "__main__":
    sys.exit(main())
