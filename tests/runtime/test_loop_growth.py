"""The million ticks of `make soak-ticks` in small: nothing grows, and what grows is noticed."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.loop_ticks import ANSWERS, Ticks, run

ROOT = Path(__file__).parents[2]
TICKS = 1500


def test_ticks_with_faults_leave_nothing_behind_and_break_no_limit():
    result = run(TICKS, seed=3)
    assert result.num_ticks >= TICKS and result.num_commands > TICKS / 2
    assert result.interventions.total() > 0 and result.num_stops == result.num_records > 0
    assert not result.has_failed, "\n".join(result.words())


def test_a_planted_leak_is_noticed():
    """In a process of its own: in that of other tests it fills what they gave back."""
    leak = ["--ticks", str(TICKS), "--seed", "3", "--leak", "40000"]
    command = [sys.executable, "-m", "tests.loop_ticks", *leak]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    grown = re.search(r"memory: grew by ([\d.]+) MB, allowed are (\d+)", done.stdout)
    assert done.returncode == 1 and grown, done.stderr
    # 45 MB in the last three quarters.
    assert float(grown[1]) > 2 * float(grown[2]) > 0


def test_a_leak_of_a_hundred_bytes_a_tick_would_be_noticed_in_a_million():
    small, large = Ticks(num_ticks=1_000_000), Ticks(num_ticks=1_000_000)
    for result, per_tick in ((small, 90e-6), (large, 110e-6)):
        for tick in range(0, 1_000_001, 10_000):
            result.memory.add(tick, lambda mb=50 + per_tick * tick: mb)
        result.num_commands = 1
    assert not small.has_failed and large.has_failed
    assert large.growth_mb == pytest.approx(110.0)


@pytest.mark.parametrize("name", ANSWERS)
def test_every_fault_of_the_policy_is_one(name):
    good_TA = np.full((10, 4), 0.1, np.float32)
    changed = ANSWERS[name](good_TA.copy())
    assert changed.dtype != good_TA.dtype or not np.array_equal(changed, good_TA)
