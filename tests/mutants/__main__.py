"""Mutation testing: does a test fail when the code has a small fault?

    python -m tests.mutants                        a sample of all modules
    python -m tests.mutants runtime.graph          all mutants of a module
    python -m tests.mutants runtime.graph --sample 20

Every mutant is one small fault (`operators.py`) in a module of `SOURCES`. The tests that run its
line (`record.py`) are tried, quickest first, until one fails or BUDGET seconds of tests are over;
what no test notices by then has survived, so that the score is a lower bound. A survivor is a test
that is missing, or a change that no caller can see: the latter is listed in `equivalent.json`, with
the argument. Records, results and scratch are in build/mutants.

Not mutmut and not cosmic-ray, both tried on this tree. mutmut 3.8 leaves constants of modules and
classes, properties and decorated functions alone (limits of recipes among them); it neither samples
nor limits what a survivor costs; every mutant makes the exported bundle again (4 s each for
`runtime.policy`), forked from a process in which ONNX Runtime has run, and three mutants of
`quant.recipes.float32` ran into its time limit. cosmic-ray 8.7 starts a new Python per mutant and
runs the same tests on each: six a minute with two small test files.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.mutants.child import import_libraries
from tests.mutants.choice import sample
from tests.mutants.equivalent import read_equivalents, sorted_out
from tests.mutants.run import Run
from tests.mutants.score import report
from tests.mutants.source import mutants_of

NAMES = {
    "runtime": "graph interpreter policy episode inputs golden declarations anchor bundle "
    "functions.calls functions.numbers functions.tokens image prompt normalization engine",
    "runtime.backends": "device_memory onnxruntime tensorrt cuda cuda_launch schedule parity",
    "runtime.storage": "listed signature trust",
    "runtime.control": "chunks delay guard heartbeat limiter pursuit stops watch flight",
    "runtime.plans": "record key folder",
    "quant": "recipes formats methods apply fold",
    "export": "judge held_out gates",
    "export.engines": "audit products lower",
}
SOURCES = {
    f"{package}.{name}": Path(*package.split("."), f"{name}.py")
    for package, names in NAMES.items()
    for name in names.split()
}
TESTS = ("tests/simulation", "tests/runtime", "tests/quant", "tests/export")
FOLDER = Path("build/mutants")


def main() -> int:
    """Exit code 1 below the lowest score."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("modules", nargs="*", help="dotted names or files; all if none is given")
    parser.add_argument(
        "--sample", type=int, help="mutants; 240 of all, every one of named modules"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests per mutant")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--only", default="", help="mutants whose id or change contains this")
    parser.add_argument("--record", action="store_true", help="measure all test files again")
    parser.add_argument("--results", type=Path, default=FOLDER / "result.json")
    options = parser.parse_args()
    names = [name.removesuffix(".py").replace("/", ".") for name in options.modules] or [*SOURCES]
    if unknown := [name for name in names if name not in SOURCES]:
        parser.error(f"{unknown} are not among {', '.join(SOURCES)}")
    found = [mutant for name in names for mutant in mutants_of(name, SOURCES[name])]
    found, equivalent = sorted_out(found, read_equivalents())
    found = [m for m in found if options.only in f"{m.id} {m.before} {m.after}"]
    number = options.sample or (len(found) if options.modules else 240)
    chosen = sample(found, number, options.seed)
    print(f"{len(chosen)} of {len(found)} mutants; {len(equivalent)} equivalent ones left out")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    import_libraries()
    run = Run(SOURCES, FOLDER, TESTS, budget_s=options.budget, jobs=options.jobs)
    run.measure(again=options.record)
    return report(run.judge(chosen), found, options.results)


if __name__ == "__main__":
    sys.exit(main())
