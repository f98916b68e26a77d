"""What a long command is doing: one line that is written over on a terminal, plain lines elsewhere.

In: names of steps, counts within one. Out: lines with the seconds since the start. The trade-off:
what is piped gets every step but only some of the counts, so that a log stays readable.
"""

from __future__ import annotations

import sys
import time
from typing import IO

PERIOD_S = 5.0
"""Between two counts of a step in plain lines."""


class Progress:
    """Of one command. `step` begins something, `count` says how far it is."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        """
        Args:
            stream: where to; standard output by default.
        """
        self._stream = stream or sys.stdout
        self._rewrites = self._stream.isatty()
        self._start_s = time.monotonic()
        self._step, self._told_s, self._width = "", self._start_s, 0

    def step(self, name: str) -> None:
        """Something else begins."""
        self._step = name
        self._tell(name)

    def count(self, done: int, total: int) -> None:
        """So many of the step's parts are done."""
        if self._rewrites or done == total or time.monotonic() - self._told_s >= PERIOD_S:
            self._tell(f"{self._step}: {done} of {total}")

    def close(self) -> None:
        """Leave the line, so that what follows stands on its own."""
        if self._rewrites and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0

    def _tell(self, words: str) -> None:
        self._told_s = time.monotonic()
        line = f"{self._told_s - self._start_s:6.1f} s  {words}"
        if self._rewrites:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
