"""A long command says what it does: over and over on a terminal, line by line where it is piped."""

import io

import pytest

from runtime.cli import progress
from runtime.cli.progress import PERIOD_S, Progress


class Stream(io.StringIO):
    def __init__(self, *, terminal):
        super().__init__()
        self.terminal, self.flushed = terminal, ""

    def isatty(self):
        return self.terminal

    def flush(self):
        self.flushed = self.getvalue()


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_piped_output_gets_a_line_per_step_at_once(clock):
    stream = Stream(terminal=False)
    shown = Progress(stream)
    shown.step("load")
    clock[0] += 12.25
    shown.step("run")
    assert stream.flushed == "   0.0 s  load\n  12.2 s  run\n"
    shown.close()
    assert stream.getvalue() == stream.flushed


def test_piped_output_gets_some_counts_and_the_last_one(clock):
    stream = Stream(terminal=False)
    shown = Progress(stream)
    shown.step("run")
    for done in range(1, 9):
        clock[0] += PERIOD_S / 2
        shown.count(done, 8)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "   0.0 s  run"
    assert [line.split("s  ")[1] for line in lines[1:]] == [
        "run: 2 of 8", "run: 4 of 8", "run: 6 of 8", "run: 8 of 8"
    ]  # fmt: skip


def test_a_terminal_has_one_line_that_is_written_over_and_wiped(clock):
    stream = Stream(terminal=True)
    shown = Progress(stream)
    shown.step("a long name")
    shown.step("short")
    shown.count(1, 2)
    shown.close()
    shown.close()
    longest = len("   0.0 s  a long name")
    assert "\n" not in stream.getvalue()
    assert stream.flushed == (
        "\r   0.0 s  a long name"
        + "\r" + "   0.0 s  short".ljust(longest)
        + "\r   0.0 s  short: 1 of 2"
        + "\r" + " " * len("   0.0 s  short: 1 of 2") + "\r"
    )  # fmt: skip
