"""Tables of a dataset, parquet or JSON lines, as rows whose cells are checked when taken out.

Goes in: a file that somebody else's tools wrote. Comes out: rows that know where they stand, so
that an error names file, row and column. The trade-off: every row is a dict, slow for millions of
them. pyarrow is imported when it is needed: a robot does without.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecordingError
from ..storage.files import LFS_POINTER

LISTED = 12
"""Columns shown in an error before "and so many more"."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table."""

    cells: Mapping[str, Any]
    path: Path
    name: str
    """What to call it in an error: `row 3`, `episode 1`."""

    def whole(self, column: str) -> int:
        """An index or a count; what pandas made a float of counts as what it was."""
        value = self._cell(column)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            raise self._wrong(column, "a whole number")
        if value < 0:
            raise self._wrong(column, "a number that is not negative")
        return int(value)

    def number(self, column: str) -> float:
        """A finite number."""
        value = self._cell(column)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self._wrong(column, "a finite number")
        return float(value)

    def text(self, column: str) -> str:
        """A text, of any length."""
        value = self._cell(column)
        if not isinstance(value, str):
            raise self._wrong(column, "a text")
        return value

    def called(self, name: str) -> Row:
        """The same row under the name that its reader knows."""
        return Row(self.cells, self.path, name)

    def _cell(self, column: str) -> Any:
        if column not in self.cells:
            raise RecordingError(
                f"{self.path}: {self.name} lacks {column!r}, it has {_some(list(self.cells))}; "
                "mend the file, or convert the dataset again"
            )
        return self.cells[column]

    def _wrong(self, column: str, expected: str) -> RecordingError:
        return RecordingError(
            f"{self.path}: {self.name} has {self.cells[column]!r} as {column}, where {expected} is "
            "expected; mend the table, or convert the dataset again"
        )


def check_file(path: Path) -> None:
    """
    Raises:
        RecordingError: no such file, one that may not be read, or a git-lfs pointer in its place.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except FileNotFoundError:
        raise RecordingError(
            f"{path}: no such file, the dataset is incomplete; copy it again"
        ) from None
    except OSError as error:
        raise RecordingError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    if start == LFS_POINTER:
        raise RecordingError(f"{path}: a git-lfs pointer, not the file itself; run git lfs pull")


def read_json(path: Path) -> dict[str, Any]:
    """A file with one JSON object."""
    check_file(path)
    return _object(path.read_bytes(), str(path))


def read_lines(path: Path) -> list[Row]:
    """A table with one JSON object in a line; lines of white space count for nothing."""
    check_file(path)
    # Not splitlines(), which takes U+2028 or U+0085 inside a text for the end of a line.
    lines = path.read_bytes().split(b"\n")
    return [
        Row(_object(line, f"{path}: line {number}"), path, f"line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_file(path)
    try:
        return [str(name) for name in pq.read_schema(path).names]
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(path, error) from error


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, *, where: Sequence[Any] | None = None
) -> list[Row]:
    """Rows of a parquet file.

    Args:
        path: the file.
        columns: those to read; all by default.
        where: `(column, operator, value)`, all of which have to hold.

    Raises:
        RecordingError: no parquet file, or one that lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = columns_of(path)
    needed = [*(columns or ()), *(column for column, _, _ in where or ())]
    if missing := [column for column in needed if column not in names]:
        raise RecordingError(
            f"{path}: lacks column {missing[0]!r}, it has {_some(names)}; "
            "take the file from the same dataset, or convert it again"
        )
    try:
        # Without partitioning: a folder named key=value on the way would add a column.
        table = pq.read_table(
            path,
            columns=None if columns is None else list(columns),
            filters=where,
            partitioning=None,
        )
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(path, error) from error
    return [Row(cells, path, f"row {number}") for number, cells in enumerate(table.to_pylist())]


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data.decode())
    except ValueError as error:
        raise RecordingError(f"{where}: not JSON ({error}); copy the file again") from error
    if not isinstance(value, dict):
        raise RecordingError(f"{where}: must be an object, got {type(value).__name__}")
    return value


def _no_parquet(path: Path, error: Exception) -> RecordingError:
    reason = str(error).strip().split("\n")[0]
    return RecordingError(f"{path}: not a whole parquet file ({reason}); copy it again")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
