"""All that a board installs, in a folder: wheels, sources, and their hashes.

No code of theirs runs here. `pip install --no-index --no-deps --require-hashes --find-links wheels
-r requirements.txt` installs it there, without a network.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import parse_sdist_filename, parse_wheel_filename

from export.errors import ExportError
from export.release.config import WHEELS, WheelhouseConfig
from export.release.index import ask, fetch_source, fetch_wheels, last_words
from export.release.targets import (
    JETPACKS,
    REQUIREMENTS,
    TABLE,
    TARGETS,
    File,
    Target,
    choose,
    fitting,
    pins_for,
    problems,
    read_table,
    table_bytes,
)
from runtime.storage.files import output_errors, write_file
from runtime.storage.folders import exclusive, publish, temporary

RUNTIME = Path(__file__).parents[2] / "runtime"
LIST, FOLDER = "requirements.txt", "wheels"
MARK = "# anchorvla wheelhouse: "
KEPT = re.compile(r"[0-9a-f]{64}|[a-z0-9_]+-cp\d+-glibc\d+\.json")
"""What lies in the cache: a folder per file, by its sha256, and a table per machine for trials."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheelhouse:
    """What was assembled."""

    folder: Path
    target: Target
    files: Mapping[str, File]
    """What lies in `wheels`, by name; every size is counted."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def wheelhouse(config: WheelhouseConfig) -> Path:
    """Assemble one for a JetPack and say what is in it.

    Raises:
        ExportError: a file is not to be had, or not the one that is meant.
        OutputError: the folder cannot be written.
    """
    target = JETPACKS[config.jetpack]
    made = assemble(target, config.kinds, config.out, cache=config.cache)
    for name, file in sorted(made.files.items(), key=lambda named: -named[1].size):
        print(f"{file.size / 1e6:6.1f} MB  {name}")
    print(f"{made.size / 1e6:6.1f} MB  {len(made.files)} files for {target.name}: {made.folder}")
    return made.folder


def assemble(
    target: Target,
    kinds: Iterable[str],
    out: Path,
    *,
    cache: Path = WHEELS,
    requirements: Path = REQUIREMENTS,
    table: Path = TABLE,
) -> Wheelhouse:
    """Write a wheelhouse.

    Args:
        kinds: files requirements/robot-KIND.txt; robot.txt comes with them.
        out: a folder, which is replaced if it is a wheelhouse.
        cache: a folder for what was fetched. What lies there is never fetched again.
        requirements: the folder with the pins.
        table: what the files of the JetPacks are; of other machines the index is believed.

    Raises:
        ValueError: there is no such kind, or something is pinned that no robot may have.
        ExportError: a file is not to be had, or not the one that is meant.
        OutputError: `out` or `cache` cannot be written.
    """
    pins = pins_for(kinds, target, requirements)
    with exclusive(out, _foreign), exclusive(cache, _foreign_in_cache):
        if target in TARGETS:
            known = read_table(table)
        else:
            known = _asked(pins, target, cache / f"{target.slug}.json")
        if wrong := list(problems(pins, known, target)):
            raise ExportError("; ".join(wrong))
        chosen = {file: known[file] for file in choose(pins, known, target).values()}
        paths = _fetched(chosen, target, cache)
        with temporary(out) as folder, output_errors(out):
            wheels = folder / FOLDER
            wheels.mkdir()
            for path in paths.values():
                shutil.copyfile(path, wheels / path.name)
            _build_runtime(wheels)
            files = {path.name: _seen(path, chosen) for path in sorted(wheels.iterdir())}
            lines = [f"{MARK}{target.name}", *map(_line, files, files.values())]
            (folder / LIST).write_text("\n".join(lines) + "\n")
            publish(folder, out, _foreign)
    return Wheelhouse(folder=out, target=target, files=files)


def fetch(files: Mapping[str, File], target: Target, cache: Path = WHEELS) -> dict[str, Path]:
    """The files, from the cache or from an index, by name.

    Raises:
        ExportError: one is not to be had, or not the one that is meant.
        OutputError: the cache cannot be written.
    """
    with exclusive(cache, _foreign_in_cache):
        return _fetched(files, target, cache)


def _fetched(files: Mapping[str, File], target: Target, cache: Path) -> dict[str, Path]:
    """A file counts if its bytes do, so one that was cut off is fetched again."""
    paths = {name: cache / file.sha256 / name for name, file in files.items()}
    missing = {n: files[n] for n, path in paths.items() if _sha256(path) != files[n].sha256}
    if missing:
        size_mb = sum(file.size for file in missing.values()) / 1e6
        of_size = f", {size_mb:.1f} MB" if size_mb else ""
        print(f"to fetch: {len(missing)}{of_size}", flush=True)
    wheels = {name: file for name, file in missing.items() if name.endswith(".whl")}
    for name in missing.keys() - wheels.keys():
        distribution, _ = parse_sdist_filename(name)
        write_file(paths[name], fetch_source(distribution, name, files[name].sha256))
    if wheels:
        with temporary(cache) as folder, output_errors(cache):
            fetch_wheels(wheels, target, folder)
            for name, file in wheels.items():
                if (got := _sha256(folder / name)) != file.sha256:
                    raise ExportError(
                        f"{name}: pip fetched {got or 'no such file'}, expected sha256 "
                        f"{file.sha256}; make resolve asks the index again"
                    )
                paths[name].parent.mkdir(parents=True, exist_ok=True)
                (folder / name).replace(paths[name])
    return paths


def _asked(pins: Mapping[str, Requirement], target: Target, table: Path) -> dict[str, File]:
    """What an index said of these pins, now or before."""
    known = read_table(table) if table.exists() else {}
    new = {name: pin for name, pin in pins.items() if not fitting(name, pin, known, target)}
    if new:
        print(f"to ask an index about, for {target.name}: {', '.join(new)}", flush=True)
        known |= ask(new, target)
        write_file(table, table_bytes(known))
    return known


def _build_runtime(folder: Path) -> None:
    """Our own wheel: the same bytes from the same sources."""
    words = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(RUNTIME))
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"the lean wheel: {last_words(done.stderr or done.stdout)}")


def _seen(path: Path, chosen: Mapping[str, File]) -> File:
    """What lies there now."""
    sha256 = _sha256(path)
    assert path.name not in chosen or chosen[path.name].sha256 == sha256, path
    return File(sha256=sha256, size=path.stat().st_size)


def _sha256(path: Path) -> str:
    """Nothing where there is no file."""
    if not path.is_file():
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _line(name: str, file: File) -> str:
    return f"{_pin_of(name)} --hash=sha256:{file.sha256}"


def _pin_of(name: str) -> str:
    parse = parse_wheel_filename if name.endswith(".whl") else parse_sdist_filename
    distribution, version, *_ = parse(name)
    return f"{distribution}=={version}"


def _foreign(folder: Path) -> str | None:
    """Ours is what `requirements.txt` lists."""
    listed = folder / LIST
    text = listed.read_text(errors="replace") if listed.is_file() else ""
    if not text.startswith(MARK):
        return f"it has no {LIST} of a wheelhouse"
    pins = {line.split(" ")[0] for line in text.splitlines()}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name in (LIST, FOLDER):
            continue
        try:
            is_ours = path.parent == folder / FOLDER and _pin_of(path.name) in pins
        except ValueError:
            is_ours = False
        if not is_ours:
            return f"{name} is not in its {LIST}"
    return None


def _foreign_in_cache(folder: Path) -> str | None:
    return next(
        (f"{p.name} is no file of a cache" for p in folder.iterdir() if not KEPT.fullmatch(p.name)),
        None,
    )
