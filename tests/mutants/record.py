"""Which test runs which line, how long each takes, and what it leans on that is made once.

Measured by coverage, one test file at a time, and kept until the file changes. Lines are told from
the first line of their function, so that a record survives edits elsewhere in a module; of a
function that was edited, every test that ran any of it counts.
"""

from __future__ import annotations

import ast
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests import once
from tests.mutants.child import Child, SharedFolder, fork, run_pytest
from tests.mutants.source import place_at, places_of

MADE = "made: "
CPU_S = 1200.0


class Recorder:
    """A pytest plugin: coverage by test, seconds by test. Made before a conftest imports `once`."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: set[str] = set()
        self.made: dict[str, tuple[float, str]] = {}
        self.used: set[str] = set()
        self.now = ""
        make = once.once
        once.once = lambda path, maker: self._once(make, path, maker)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.now = nodeid
        self.measured.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.outcome != "passed":
            self.failed.add(report.nodeid)

    def _once(
        self, make_once: Callable[..., Path], path: Path, make: Callable[[Path], object]
    ) -> Path:
        self.used.add(path.name)

        def timed(path: Path) -> None:
            start, context = time.perf_counter(), self.now
            self._switch(MADE + path.name)
            make(path)
            self._switch(context)
            seconds = time.perf_counter() - start
            self.made[path.name] = seconds, context
            self.seconds[context] -= seconds

        return make_once(path, timed)

    def _switch(self, context: str) -> None:
        self.now = context
        self.measured.switch_context(context)


def start(test_file: str, sources: Mapping[str, Path], folder: Path, shared: Path) -> Child:
    """Run a test file; it writes its record, and one of each thing that it made for all."""
    scratch = folder / "scratch" / _name(test_file)

    def work() -> int:
        measured = coverage.Coverage(
            data_file=None, include=[str(p.resolve()) for p in sources.values()], config_file=False
        )
        measured.start()
        recorder = Recorder(measured)
        plugins = (recorder, SharedFolder(shared, frozenset(), keep=True))
        run_pytest([test_file, "--maxfail=1000"], scratch, *plugins)
        measured.stop()
        for name, (seconds, maker) in recorder.made.items():
            of_it = _lines(measured, sources, {MADE + name: True}.get)
            _write(folder / f"made-{name}.json", {"seconds": seconds, "maker": maker} | of_it)
        tests = {t: s for t, s in recorder.seconds.items() if t and t not in recorder.failed}
        found = {
            "test_file": test_file,
            "sha256": _hash(Path(test_file)),
            "tests": tests,
            "failed": sorted(recorder.failed),
            "used": sorted(recorder.used),
        }
        _write(folder / f"{_name(test_file)}.json", found | _lines(measured, sources, tests.get))
        return 0

    return fork(work, scratch, CPU_S)


def read(test_file: str, sources: Mapping[str, Path], folder: Path) -> dict[str, Any] | None:
    """The record of a test file, if it has not changed since and all sources were looked at."""
    path = folder / f"{_name(test_file)}.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    is_whole = sources.keys() <= found["lines"].keys()
    return found if is_whole and found["sha256"] == _hash(Path(test_file)) else None


def _name(test_file: str) -> str:
    return test_file.replace("/", "-").removesuffix(".py")


def _write(path: Path, found: Mapping[str, Any]) -> None:
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(found))
    new.rename(path)


def _hash(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()[:16]


def _lines(
    measured: coverage.Coverage, sources: Mapping[str, Path], wanted: Callable[[str], object]
) -> dict[str, Any]:
    """Module, function: its hash, and line of it: the numbers of the contexts that ran it."""
    numbers: dict[str, int] = {}
    modules: dict[str, dict[str, Any]] = {}
    for module, path in sources.items():
        source = path.read_text()
        places = places_of(source, ast.parse(source))
        found = modules[module] = {}
        for line, names in measured.get_data().contexts_by_lineno(str(path.resolve())).items():
            if names := sorted(name for name in names if wanted(name) is not None):
                place = place_at(places, line)
                entry = found.setdefault(place.name, {"sha256": place.sha256, "lines": {}})
                entry["lines"][line - place.first_line] = [
                    numbers.setdefault(name, len(numbers)) for name in names
                ]
    return {"contexts": list(numbers), "lines": modules}
