"""python -m tests.help_times: how long every command takes to answer --help and a wrong argument.

Prints medians of five, in seconds: by the clock, which counts, and of the processor, which is about
what the clock would say on an idle machine. Exit code 1 if a command takes longer than it may.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

from tests.test_command_lines import LINES, ROOT

RUNS, LIMIT_S = 5, 1.0


def main() -> int:
    clock: dict[str, list[float]] = {line: [] for line in LINES}
    processor: dict[str, list[float]] = {line: [] for line in LINES}
    for _ in range(RUNS):
        for line, (package, words) in LINES.items():
            start, before = time.perf_counter(), _processor_s()
            subprocess.run(
                [sys.executable, "-m", package, *words], cwd=ROOT, capture_output=True, check=False
            )
            clock[line].append(time.perf_counter() - start)
            processor[line].append(_processor_s() - before)
    medians = {line: statistics.median(each) for line, each in clock.items()}
    for line, median in medians.items():
        mark = "" if median < LIMIT_S else f"  over {LIMIT_S:g} s"
        print(f"{median:6.2f}  {statistics.median(processor[line]):6.2f}  {line}{mark}")
    slowest = max(medians, key=lambda line: medians[line])
    print(f"medians of {RUNS}; slowest {medians[slowest]:.2f} s: {slowest}")
    return int(medians[slowest] >= LIMIT_S)


def _processor_s() -> float:
    """Of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
