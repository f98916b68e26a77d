"""A mutant's verdict: which test notices it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mutants.child import (
    TIMED_OUT,
    Child,
    InPlaceOf,
    SharedFolder,
    fork,
    run_pytest,
)
from tests.mutants.choice import Trial
from tests.mutants.source import Mutant

KILLED, NO_TEST = 1, 5


@dataclass(frozen=True, slots=True)
class Verdict:
    mutant: Mutant
    killer: str
    """The test that failed, or what else went wrong; empty if it survived."""
    num_tests: int
    """That were tried."""


class Chosen:
    """A pytest plugin: only these tests, in this order; the first that fails is written down."""

    def __init__(self, tests: Sequence[str], killer: Path) -> None:
        self.rank = {test: number for number, test in enumerate(tests)}
        self.killer = killer

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.rank),
            key=lambda item: self.rank[item.nodeid],
        )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.killer.write_text(f"{report.nodeid} (import)")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.killer.write_text(report.nodeid)


def start(trial: Trial, folder: Path, shared: Path, mutant: Mutant | None) -> Child:
    """Run the tests of a trial on a mutant; on the project as it is without one."""
    killer = folder / "killer.txt"
    with suppress(FileNotFoundError):
        killer.unlink()

    def work() -> int:
        if mutant is not None:
            sys.meta_path.insert(0, InPlaceOf(mutant.module, mutant.path, mutant.text))
        files = list(dict.fromkeys(test.split("::")[0] for test in trial.tests))
        plugins = (Chosen(trial.tests, killer), SharedFolder(shared, trial.without, keep=False))
        return run_pytest(files, folder, *plugins)

    return fork(work, folder, 30 + 4 * trial.seconds)


def killer_of(child: Child, code: int) -> str:
    """What noticed the fault in a run that ended so."""
    if code in (0, NO_TEST):
        return ""
    if code == TIMED_OUT:
        return "(too slow)"
    killer = child.folder / "killer.txt"
    return killer.read_text() if killer.exists() else f"(exit {code})"
