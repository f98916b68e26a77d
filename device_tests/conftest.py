"""One measured run for all device tests, and what becomes of it: a table, a JSON file, a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from device_tests.budgets import Budget
from device_tests.config import OPTIONS, flag, read_config
from device_tests.errors import EXIT_OFFSET, USER_ERRORS, exit_code
from device_tests.ledger import Ledger
from device_tests.measured import measure_all
from device_tests.page.report import write_results
from device_tests.result import Measured, TimedRun
from runtime.cli.command import one_line

BOOK = pytest.StashKey[Ledger]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("device tests")
    for name, kind in OPTIONS.items():
        group.addoption(flag(name), type=kind, help=f"see MeasureConfig.{name}")
    group.addoption("--results", type=Path, help="folder for device.json and device.html")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BOOK] = Ledger()


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Iterator[Measured]:
    """Everything, measured once. What was found is written when the last test is done."""
    options = request.config.option
    try:
        found = measure_all(read_config(vars(options)), on_part=_announcer(request.config))
    except USER_ERRORS as error:
        _exit(error)
    yield found
    if options.results is not None:
        try:
            write_results(options.results, found, request.config.stash[BOOK].rows)
        except USER_ERRORS as error:
            _exit(error)


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest, measured: Measured) -> Ledger:
    """The book of this run; every row is marked if the board throttled."""
    book = request.config.stash[BOOK]
    book.mark = "throttled" if measured.throttled else ""
    return book


@pytest.fixture(scope="session")
def budget(measured: Measured) -> Budget:
    return measured.budget


@pytest.fixture
def run(measured: Measured, ledger: Ledger, request: pytest.FixtureRequest) -> TimedRun:
    """The timed part; without parity there is none, and the tests that want it have no verdict."""
    if measured.run is None:
        words = request.node.name.removeprefix("test_").replace("_", " ")
        ledger.not_measured(words, "parity failed: an engine that computes something else")
    return measured.run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = terminalreporter.config.stash[BOOK].rows
    if rows:
        terminalreporter.section("measured against allowed")
    for row in rows:
        terminalreporter.write_line(f"{row.verdict:<13} {row}")
    folder = terminalreporter.config.option.results
    if rows and folder is not None:
        terminalreporter.write_line(f"\nreport: {folder / 'device.html'}")


def _exit(error: Exception) -> NoReturn:
    pytest.exit(f"error: {one_line(error)}", returncode=EXIT_OFFSET + exit_code(error))


def _announcer(config: pytest.Config) -> Callable[[str], None]:
    capture = config.pluginmanager.getplugin("capturemanager")

    def announce(part: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"measuring: {part}", flush=True)

    return announce
