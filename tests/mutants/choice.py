"""Which tests are tried on a mutant, in which order, and which mutants make a sample."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.mutants.record import MADE
from tests.mutants.source import MODULE_LEVEL, Mutant, Place

LEAST = 4
"""Mutants of a module in a sample, however small it is."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Tests in their order, and what they must make themselves because the fault may be in it."""

    tests: Sequence[str]
    seconds: float
    without: frozenset[str] = frozenset()


class Choice:
    """Answers from the records of all test files."""

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        made: Mapping[str, Mapping[str, Any]],
        budget_s: float,
    ) -> None:
        self.budget_s = budget_s
        self.seconds: dict[str, float] = {}
        self.made = {name: record["seconds"] for name, record in made.items()}
        self.needs: dict[str, set[str]] = defaultdict(set)
        self.users: dict[str, list[str]] = defaultdict(list)
        self._places: dict[tuple[str, str], list[tuple[str, dict[int, list[str]]]]] = defaultdict(
            list
        )
        for record in records:
            self.seconds |= record["tests"]
            for name in record["used"]:
                self.users[name] += record["tests"]
                self.needs[record["test_file"]].add(name)
        for record in (*records, *made.values()):
            contexts = record["contexts"]
            for module, places in record["lines"].items():
                for name, entry in places.items():
                    lines = {
                        int(line): [contexts[number] for number in numbers]
                        for line, numbers in entry["lines"].items()
                    }
                    self._places[module, name].append((entry["sha256"], lines))

    def trials(self, mutant: Mutant) -> list[Trial]:
        """First those whose own code runs the line; then those that use what the line has made."""
        contexts = self._contexts(mutant)
        own = [context for context in contexts if context in self.seconds]
        found = [self._trial(mutant, own, self.budget_s)] if own else []
        made = [c.removeprefix(MADE) for c in contexts if c.startswith(MADE)]
        if made:
            without = frozenset(made)
            cheapest = min(made, key=lambda name: self.made.get(name, 0.0))
            users = self.users[cheapest]
            found.append(self._trial(mutant, users, self.budget_s, without))
        return [trial for trial in found if trial.tests]

    def _contexts(self, mutant: Mutant) -> set[str]:
        place = mutant.place
        if place.name == MODULE_LEVEL or (mutant.module, place.name) not in self._places:
            return self._of_module(mutant.module)
        found: set[str] = set()
        for sha256, lines in self._places[mutant.module, place.name]:
            wanted = _offsets(mutant, place) if sha256 == place.sha256 else None
            for line, contexts in lines.items():
                if wanted is None or line in wanted:
                    found.update(contexts)
        return found

    def _of_module(self, module: str) -> set[str]:
        of_module = (v for (m, _), v in self._places.items() if m == module)
        return {c for v in of_module for _, lines in v for found in lines.values() for c in found}

    def _trial(
        self,
        mutant: Mutant,
        tests: Iterable[str],
        budget_s: float,
        without: frozenset[str] = frozenset(),
    ) -> Trial:
        """Of the module's own test file first, then the quickest; files are not torn apart."""
        own = "/test_" + mutant.module.rpartition(".")[2] + ".py"
        files: dict[str, list[str]] = defaultdict(list)
        total = 0.0
        for test in sorted(set(tests), key=lambda t: (own not in t, self.seconds[t], t)):
            if total and total + self.seconds[test] > budget_s:
                break
            total += self.seconds[test]
            files[test.split("::")[0]].append(test)

        def cost(file: str) -> tuple[bool, float]:
            return own not in file, sum(self.seconds[test] for test in files[file])

        ordered = [test for file in sorted(files, key=cost) for test in files[file]]
        return Trial(ordered, total + sum(self.made.get(name, 0.0) for name in without), without)


def _offsets(mutant: Mutant, place: Place) -> set[int] | None:
    """Lines of the function whose runs count; None for all of them: its head runs with any."""
    if mutant.lines.start <= place.header_end:
        return None
    return {line - place.first_line for line in mutant.lines}


def sample(mutants: Sequence[Mutant], number: int, seed: int) -> list[Mutant]:
    """As many of each module as its share of all, at least `LEAST`; the same for the same seed.

    In random order, so that one who stops half-way has a sample, too.
    """
    modules: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        modules[mutant.module].append(mutant)
    chosen = []
    for module, found in modules.items():
        share = min(len(found), max(LEAST, round(number * len(found) / len(mutants))))
        chosen += random.Random(f"{seed} {module}").sample(found, share)
    random.Random(seed).shuffle(chosen)
    return chosen
