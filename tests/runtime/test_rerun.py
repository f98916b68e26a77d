"""What the rerun viewer is given of a replayed run: by rerun itself, where that is installed."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.__main__ import main
from runtime.control.clock import VirtualClock
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.recorder import Recorder
from runtime.control.replay import replay
from runtime.errors import RecordingError
from runtime.recordings.journal import Journal
from runtime.recordings.rerun_file import _timeline, write_rerun
from tests.lerobot_reader import PYTHON
from tests.runtime.stand_ins.pondering import PlacedRobot, PonderingPolicy

WRITE = """
import sys
from pathlib import Path
from runtime.recordings.journal import Journal
from runtime.recordings.rerun_file import write_rerun
journal = Journal(Path(sys.argv[1]))
write_rerun(journal, [tick["action"] for tick in journal.ticks], Path(sys.argv[2]))
"""


@pytest.fixture
def recorded(tmp_path):
    """A journal of eight steps, and what its policy answers now."""
    with Recorder(tmp_path / "a.zip", every_step=True) as recorder:
        run_episode(
            PonderingPolicy(), PlacedRobot(8), LoopConfig(rate_hz=10, execute=4),
            clock=VirtualClock(), recorder=recorder,
        )  # fmt: skip
    with contextlib.closing(Journal(tmp_path / "a.zip")) as journal:
        yield journal, replay(journal, PonderingPolicy()).due


def test_every_tick_shows_what_was_seen_asked_and_sent(recorded):
    journal, due = recorded
    found = [{name: value for name, _, value in entries} for _, entries in _timeline(journal, due)]
    assert len(found) == 8
    for step, shown in enumerate(found):
        assert shown["seen/state"] == [step] and shown["seen/frame"].tolist() == [
            [[3 * step, 3 * step + 1, 3 * step + 2]]
        ]
        assert shown["action/1/predicted"] == shown["action/1/sent"] == [step % 4]
        assert shown["action/0/sent"] == [4 * (step // 4)]
        assert ("ms/thought" in shown) == (step in (0, 4)) and "guard" not in shown


def test_without_rerun_the_command_says_so_before_it_works(recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rerun", None)
    line = ["replay", str(tmp_path / "a.zip"), "no-bundle", "--rerun", str(tmp_path / "x.rrd")]
    assert main(line) == 6
    assert "needs rerun-sdk" in capsys.readouterr().err
    with pytest.raises(RecordingError, match=r"x\.rrd: writing it needs rerun-sdk"):
        write_rerun(*recorded, tmp_path / "x.rrd")
    assert main([*line[:2], *line[1:]]) == 2
    assert "--rerun is of one episode, got 2" in capsys.readouterr().err


def test_rerun_reads_what_we_write(recorded, tmp_path):
    if not PYTHON.exists():
        pytest.skip("rerun has an environment of its own, which make test-lerobot makes")
    path = tmp_path / "x.rrd"
    for _ in range(2):  # it replaces its own
        subprocess.run(
            [PYTHON, "-c", WRITE, tmp_path / "a.zip", path],
            cwd=Path(__file__).parents[2], check=True, env=os.environ | {"HOME": str(tmp_path)},
        )  # fmt: skip
    told = subprocess.run(
        [PYTHON.with_name("rerun"), "rrd", "print", "-vv", path],
        capture_output=True, text=True, check=True, env=os.environ | {"HOME": str(tmp_path)},
    ).stdout  # fmt: skip
    for name in ("/seen/frame", "/seen/state", "/action/2/sent", "/ms/age", "step", "anchorvla"):
        assert name in told, name
