"""What a run found, in words and in a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from device_tests.success.intervals import wilson_interval
from tests.mutants.source import Mutant
from tests.mutants.trial import Verdict

LOWEST = 0.90


def report(verdicts: Iterable[Verdict], mutants: Sequence[Mutant], results: Path) -> int:
    """Print survivors as they come, then a line for each module; 1 below the lowest score.

    Whoever interrupts it gets the lines of what was judged by then.

    Args:
        verdicts: of a sample, or of all.
        mutants: all that there are, for how many were not tried.
    """
    found: list[Verdict] = []
    with suppress(KeyboardInterrupt):
        for verdict in verdicts:
            found.append(verdict)
            if not verdict.killer:
                print(_survivor(verdict), flush=True)
            if len(found) % 20 == 0:
                print(f"{sum(bool(v.killer) for v in found)} of {len(found)} killed", flush=True)
    of_all = Counter(mutant.module for mutant in mutants)
    print(f"\n{len(found)} judged\n{'module':34} {'killed':>9}  score  95 % interval  of all")
    for module in of_all:
        _print_score(module, [v for v in found if v.mutant.module == module], of_all[module])
    _print_score("all", found, len(mutants))
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps([_entry(verdict) for verdict in found], indent=1))
    print(f"survivors and killers: {results}")
    return int(sum(bool(v.killer) for v in found) < LOWEST * len(found))


def _survivor(verdict: Verdict) -> str:
    mutant = verdict.mutant
    tried = f"{verdict.num_tests} tests passed" if verdict.num_tests else "no test runs it"
    return (
        f"survived: {mutant.id} {mutant.place.name} ({mutant.operator}; {tried})\n{mutant.diff()}"
    )


def _print_score(name: str, verdicts: Sequence[Verdict], of_all: int) -> None:
    killed, number = sum(bool(v.killer) for v in verdicts), len(verdicts)
    if not number:
        return
    low, high = wilson_interval(killed, number)
    interval = f"[{100 * low:.0f}, {100 * high:.0f}]"
    print(f"{name:34} {killed:4}/{number:4}  {killed / number:5.0%}  {interval:>13}  {of_all:6}")


def _entry(verdict: Verdict) -> dict[str, object]:
    mutant = verdict.mutant
    return {
        "id": mutant.id,
        "module": mutant.module,
        "function": mutant.place.name,
        "operator": mutant.operator,
        "before": mutant.before,
        "after": mutant.after,
        "killer": verdict.killer,
        "num_tests": verdict.num_tests,
    }
