"""What a policy does, in a terminal: drawn over a few times a second, off the tick.

A thread of its own looks and writes, so a terminal that is slow, or that somebody holds with
Ctrl-S, keeps nobody waiting. Where there is no terminal a line is written now and then instead.
"""

from __future__ import annotations

import contextlib
import os
import textwrap
import threading
import unicodedata
from collections.abc import Callable, Mapping
from typing import IO

from ...control.sight import Figure, Scene, Sight

PERIOD_S, LINE_PERIOD_S = 0.25, 1.0
"""Between two drawings, and between two lines where nothing can be drawn."""
INDENT, MIN_COLUMNS = 16, 8
PLAIN, BOLD, FAINT, BAD = "0", "1", "2", "1;33"
"""Parameters of SGR, as ECMA-48 calls it; the last one is bold and yellow."""
ALARM = "1;37;41"
"""White on red."""

Piece = tuple[str, str]
"""How, and what."""


def lines(sight: Sight, columns: int, rows: int) -> list[list[Piece]]:
    """A drawing that fits: at most `rows` lines of `columns` characters, in pieces of one look."""
    drawn: list[list[Piece]] = [[(BOLD, sight.title)]]
    if sight.stop is not None:
        drawn.append([(ALARM, f" STOPPED: {sight.stop.why} ")])
    for figure in [*sight.figures, *stages(sight)]:
        name, how = f"  {figure.name}".ljust(INDENT), BAD if figure.is_bad else PLAIN
        for part in textwrap.wrap(figure.words, max(columns - INDENT, MIN_COLUMNS)) or [""]:
            drawn.append([(FAINT, name), (how, part)])
            name = " " * INDENT
    return [_cut(pieces, columns) for pieces in drawn[:rows]]


def line(sight: Sight) -> str:
    """The same in one line."""
    told = [figure for figure in [*sight.figures, *stages(sight)] if figure.name != "kept"]
    stop = "" if sight.stop is None else f"STOPPED: {sight.stop.why}; "
    words = "; ".join(f"{figure.name} {figure.words}" for figure in told)
    return _printable(f"{sight.title}: {stop}{words}")


def stages(sight: Sight) -> list[Figure]:
    """What the last thought computed anew, and what it kept."""
    if not sight.stages:
        return []
    ran = [f"{name} {ms:.1f} ms" for name, ms in sight.stages.items() if ms is not None]
    kept = [name for name, ms in sight.stages.items() if ms is None]
    return [
        Figure("recomputed", ", ".join(ran) or "nothing"),
        Figure("kept", ", ".join(kept) or "nothing"),
    ]


class Screen:
    """Draws a scene until it is closed.

    Args:
        scene: looked at in a thread.
        stream: where to; what stands on it above stays.
        size: columns and rows of the terminal, asked for every drawing.
        environment: `NO_COLOR` (any text but none) and `TERM=dumb` are heeded.
    """

    def __init__(
        self,
        scene: Scene,
        stream: IO[str],
        *,
        size: Callable[[], tuple[int, int]] | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._scene, self._stream = scene, stream
        self._size = size or (lambda: _size_of(stream))
        self._draws = stream.isatty() and environment.get("TERM") != "dumb"
        self._has_colour = not environment.get("NO_COLOR")
        self._height, self._last_size = 0, (0, 0)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Draw a last time. A terminal that takes nothing is waited for a second, and left."""
        self._is_over.set()
        self._thread.join(1.0)

    def draw(self) -> None:
        """Once, over the last drawing."""
        if not self._draws:
            self._stream.write(line(self._scene.look()) + "\n")
            self._stream.flush()
            return
        size = self._size()
        # Its lines were broken anew where the window has changed: they cannot be found again.
        back = f"\x1b[{self._height}F" if self._height else ""
        if self._height and size != self._last_size:
            back = "\x1b[H\x1b[2J"
        drawn = lines(self._scene.look(), max(size[0] - 1, 1), max(size[1] - 1, 1))
        text = "".join(f"{self._written(pieces)}\x1b[K\n" for pieces in drawn)
        self._stream.write(f"{back}{text}\x1b[J")
        self._stream.flush()
        self._height, self._last_size = len(drawn), size

    def _run(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            while not self._is_over.wait(PERIOD_S if self._draws else LINE_PERIOD_S):
                self.draw()
            self.draw()

    def _written(self, pieces: list[Piece]) -> str:
        if not self._has_colour:
            return "".join(words for _, words in pieces)
        return "".join(
            words if how == PLAIN else f"\x1b[{how}m{words}\x1b[0m" for how, words in pieces
        )


def _size_of(stream: IO[str]) -> tuple[int, int]:
    columns, rows = os.get_terminal_size(stream.fileno())
    return columns, rows


def _cut(pieces: list[Piece], columns: int) -> list[Piece]:
    """What fits into a line, with a mark where something does not."""
    left, cut = columns, list[Piece]()
    for how, words in pieces:
        words = _printable(words)
        if _width(words) > left:
            mark = "..."[: max(left, 0)]
            while words and _width(words) > left - len(mark):
                words = words[:-1]
            words += mark
        cut.append((how, words))
        left -= _width(words)
    return cut


def _printable(words: str) -> str:
    """An instruction may hold anything, and a terminal obeys some of it."""
    return "".join(c if c.isprintable() else "?" for c in words)


def _width(words: str) -> int:
    """In columns."""
    wide = sum(unicodedata.east_asian_width(c) in ("W", "F") for c in words)
    return len(words) + wide - sum(unicodedata.combining(c) > 0 for c in words)
