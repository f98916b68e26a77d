"""Mutants that no caller can tell from the code, each with the argument, in `equivalent.json`.

Found by what they change, not by line numbers, so that the list survives edits elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.source import Mutant

LIST = Path(__file__).with_name("equivalent.json")


@dataclass(frozen=True, slots=True)
class Equivalent:
    module: str
    function: str
    before: str
    after: str
    why: str


def read_equivalents(path: Path = LIST) -> list[Equivalent]:
    """All that are listed."""
    return [Equivalent(**entry) for entry in json.loads(path.read_text())]


def sorted_out(
    mutants: Iterable[Mutant], equivalents: Iterable[Equivalent]
) -> tuple[list[Mutant], list[Mutant]]:
    """Mutants to try, and those that are known to be equivalent."""
    known = {(e.module, e.function, e.before, e.after) for e in equivalents}
    to_try, left_out = [], []
    for mutant in mutants:
        key = (mutant.module, mutant.place.name, mutant.before, mutant.after)
        (left_out if key in known else to_try).append(mutant)
    return to_try, left_out
