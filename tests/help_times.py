"""python -m tests.help_times: how long every command takes to answer --help and a wrong argument.

Prints the median of five; exit code 1 if one takes longer than it may.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from tests.test_command_lines import LINES, ROOT

RUNS, LIMIT_S = 5, 1.0


def main() -> int:
    seconds: dict[str, list[float]] = {line: [] for line in LINES}
    for _ in range(RUNS):
        for line, (package, words) in LINES.items():
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", package, *words], cwd=ROOT, capture_output=True, check=False
            )
            seconds[line].append(time.perf_counter() - start)
    medians = {line: statistics.median(each) for line, each in seconds.items()}
    for line, median in medians.items():
        print(f"{median:6.2f} s  {line}{'' if median < LIMIT_S else f'  over {LIMIT_S:g} s'}")
    slowest = max(medians, key=lambda line: medians[line])
    print(f"median of {RUNS}; slowest {medians[slowest]:.2f} s: {slowest}")
    return int(medians[slowest] >= LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
