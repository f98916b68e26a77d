"""The book of a device test: every promise with what was measured, what is allowed, and a verdict.

A promise that cannot be measured on this machine is a row too, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import pytest

RowVerdict = Literal["pass", "fail", "not measured"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One promise."""

    name: str
    verdict: RowVerdict
    measured: str = ""
    """With its unit; empty if it was not measured."""
    allowed: str = ""
    note: str = ""
    """Why there is no measurement, or what to know about this one."""

    def __str__(self) -> str:
        if self.verdict == "not measured":
            return f"{self.name}: not measured: {self.note}"
        words = f"{self.name}: measured {self.measured}, allowed {self.allowed}"
        return words + (f" ({self.note})" if self.note else "")


@dataclass(slots=True)
class Ledger:
    """Writes rows. A broken promise is an AssertionError, after its row is written."""

    rows: list[Row] = field(default_factory=list)
    mark: str = ""
    """Note on every row that has none of its own, such as that the board throttled."""

    def at_most(self, name: str, measured: float, allowed: float, unit: str = "") -> None:
        """`measured` may be `allowed` at most; NaN is too much."""
        words = [f"{value:.4g} {unit}".strip() for value in (measured, allowed)]
        self._judge(name, measured <= allowed, words[0], f"at most {words[1]}")

    def nothing(self, name: str, found: Sequence[str], *, allowed: bool = False) -> None:
        """`found` must be empty, unless it is allowed not to be."""
        words = ", ".join(found) or "none"
        self._judge(name, allowed or not found, words, "any" if allowed else "none")

    def not_measured(self, name: str, reason: str) -> NoReturn:
        """This machine, or this run, cannot tell."""
        self.rows.append(Row(name=name, verdict="not measured", note=reason))
        pytest.skip(f"not measured: {reason}")

    def _judge(self, name: str, passed: bool, measured: str, allowed: str) -> None:
        row = Row(
            name=name,
            verdict="pass" if passed else "fail",
            measured=measured,
            allowed=allowed,
            note=self.mark,
        )
        self.rows.append(row)
        print(row)
        if not passed:
            raise AssertionError(str(row))
