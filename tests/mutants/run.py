"""Records of the tests that are up to date, and mutants judged with them, a few at a time."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.mutants import record
from tests.mutants.child import Child, SharedFolder, fork, run_pytest
from tests.mutants.choice import Choice, Trial
from tests.mutants.source import Mutant
from tests.mutants.trial import Chosen, Verdict, killer_of, start

LEFT_OUT = {"tests/runtime/test_metaworld.py", "tests/export/test_full_width.py"}
"""Minutes, for no line of these modules that others do not run."""
PACKAGES = ("runtime", "models", "quant", "export")


class Run:
    """Everything between the mutants and their verdicts."""

    def __init__(
        self,
        sources: Mapping[str, Path],
        folder: Path,
        tests: Sequence[str],
        *,
        budget_s: float,
        jobs: int,
    ) -> None:
        self.sources, self.folder, self.tests = sources, folder, tests
        self.budget_s, self.jobs = budget_s, jobs
        self.records_folder, self.shared = folder / "records", folder / "shared"
        self.records: list[dict[str, Any]] = []
        self._sound: dict[str, bool] = {}

    def measure(self, *, again: bool) -> None:
        """Bring the records up to date; those that are measured first are of use first."""
        found = (sorted(Path(folder).glob("test_*.py")) for folder in self.tests)
        files = [str(path) for paths in found for path in paths if str(path) not in LEFT_OUT]
        self.records_folder.mkdir(parents=True, exist_ok=True)
        self._drop_outdated()
        waiting = [f for f in files if again or self._read(f) is None]
        running: dict[str, Child] = {}
        while waiting or running:
            while waiting and len(running) < self.jobs:
                file = waiting.pop(0)
                running[file] = record.start(file, self.sources, self.records_folder, self.shared)
            for file, child in list(running.items()):
                if (code := child.ended()) is None:
                    continue
                del running[file]
                if code:
                    sys.exit(f"mutants: {file}: exit {code}: see {child.folder}/output.txt")
                print(f"measured {file}", flush=True)
            time.sleep(0.02)
        for file in files:
            self.records.append(self._read(file) or {})
        for test in (test for found in self.records for test in found["failed"]):
            print(f"  {test} fails here, or is skipped: it judges nothing")

    def _read(self, file: str) -> dict[str, Any] | None:
        return record.read(file, self.sources, self.records_folder)

    def judge(self, mutants: Sequence[Mutant]) -> Iterator[Verdict]:
        """One verdict each, as they come."""
        choice = Choice(self.records, self._made(), self.budget_s)
        trials = {mutant.id: choice.trials(mutant) for mutant in mutants}
        self._make_again(choice, [t for found in trials.values() for t in found])
        waiting = list(reversed(mutants))
        running: dict[int, tuple[Mutant, int, Child]] = {}
        while waiting or running:
            for slot in range(self.jobs):
                if slot not in running and waiting:
                    mutant = waiting.pop()
                    if trials[mutant.id]:
                        running[slot] = mutant, 0, self._start(slot, mutant, trials[mutant.id][0])
                    else:
                        yield Verdict(mutant, "", 0)
            for slot, (mutant, number, child) in list(running.items()):
                if (code := child.ended()) is None:
                    continue
                del running[slot]
                tried = trials[mutant.id][: number + 1]
                killer = self._confirmed(killer_of(child, code), trials[mutant.id][number])
                if not killer and number + 1 < len(trials[mutant.id]):
                    following = trials[mutant.id][number + 1]
                    running[slot] = mutant, number + 1, self._start(slot, mutant, following)
                else:
                    yield Verdict(mutant, killer, sum(len(trial.tests) for trial in tried))
            time.sleep(0.02)

    def _start(self, slot: int, mutant: Mutant | None, trial: Trial) -> Child:
        return start(trial, self.folder / f"slot{slot}", self.shared, mutant)

    def _confirmed(self, killer: str, trial: Trial) -> str:
        """The killer, if it passes on the project as it is; once per test."""
        if killer not in trial.tests:
            return killer
        if killer not in self._sound:
            alone = Trial([killer], trial.seconds)
            child = start(alone, self.folder / "sound", self.shared, None)
            code = child.result()
            self._sound[killer] = code == 0
            if code:
                print(f"  {killer} fails without any fault here (exit {code}): it judges nothing")
        return killer if self._sound[killer] else ""

    def _made(self) -> dict[str, dict[str, Any]]:
        return {
            path.stem.removeprefix("made-"): json.loads(path.read_text())
            for path in self.records_folder.glob("made-*.json")
        }

    def _drop_outdated(self) -> None:
        """What was made by other sources than today's."""
        stamp, now = self.shared / "sources", _hash_of_sources()
        if not stamp.exists() or stamp.read_text() != now:
            shutil.rmtree(self.shared, ignore_errors=True)
            self.shared.mkdir(parents=True)
            stamp.write_text(now)

    def _make_again(self, choice: Choice, trials: Iterable[Trial]) -> None:
        """What the tests of these trials find ready-made must come from the project as it is."""
        files = {test.split("::")[0] for trial in trials for test in trial.tests}
        wanted = {name for file in files for name in choice.needs[file]}
        for name, made in self._made().items():
            if name in wanted and not (self.shared / name).exists():
                maker = made["maker"]
                plugins = (
                    Chosen([maker], self.folder / "killer.txt"),
                    SharedFolder(self.shared, frozenset(), keep=True),
                )

                def work(file: str = maker.split("::")[0], plugins: Any = plugins) -> int:
                    return run_pytest([file], self.folder / "make", *plugins)

                print(f"making {name} again: the sources have changed", flush=True)
                code = fork(work, self.folder / "make", record.CPU_S).result()
                if code:
                    sys.exit(f"mutants: {maker}: exit {code}; see {self.folder}/make/output.txt")


def _hash_of_sources() -> str:
    texts = (p.read_bytes() for name in PACKAGES for p in sorted(Path(name).rglob("*.py")))
    return sha256(b"".join(texts)).hexdigest()[:16]
