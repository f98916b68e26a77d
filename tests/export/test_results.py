"""Published numbers come from files, and README, docs and model card show those files."""

import dataclasses
import json
from pathlib import Path

import pytest

from export.evidence.delays import DELAYS, delay_pictures, render_delays
from export.evidence.results import ResultsConfig, place, update

ROOT = Path(__file__).parents[2]
NAMES = ("numbers", "readme", "precision", "card", "recall_card")


def test_readme_docs_and_card_show_the_committed_results(tmp_path):
    config = ResultsConfig(results=ROOT / "docs" / "results")
    copies = {name: tmp_path / name for name in NAMES}
    for name, copy in copies.items():
        copy.write_text((ROOT / getattr(config, name)).read_text())
    update(dataclasses.replace(config, **copies))
    for name, copy in copies.items():
        committed = (ROOT / getattr(config, name)).read_text()
        assert copy.read_text() == committed, f"{name}: run: python -m export results"
    for name in delay_pictures(config.results):
        committed = (ROOT / config.numbers).with_name(name).read_text()
        assert (tmp_path / name).read_text() == committed, f"{name}: run: python -m export results"


def test_a_text_without_markers_is_refused():
    with pytest.raises(ValueError, match="once and in this order"):
        place("no markers", "table")


def interval(value, low, high, **more):
    return {"difference": value, "ratio": value, "low": low, "high": high} | more


def row(chunks, steps, successes, jerk=None, refused=""):
    return {
        "chunks": chunks,
        "delay_steps": steps,
        "refused": refused,
        "rate": None if refused else {"successes": successes, "n": 8, "low": 0.5, "high": 0.75},
        "seconds": 7.04,
        "overtaken": 13.28,
        "success": None if jerk is None else interval(-0.031, -0.1, 0.05),
        "motion": None
        if jerk is None
        else {
            "figures": {
                "mean_jerk": interval(jerk, jerk - 0.03, jerk + 0.04),
                "seam_step": interval(0.5, 0.4, 0.6),
            }
        },
    }


def test_delays_are_a_row_each_and_two_pictures(tmp_path):
    assert render_delays(tmp_path) == "" and delay_pictures(tmp_path) == {}
    rows = [
        row("sync", 0, 8), row("sync", 8, 8, 1.0), row("async", 1, 4, 0.99), row("rtc", 1, 6, 0.46),
        row("rtc", 8, 0, refused="chunks=rtc cannot be"),
    ]  # fmt: skip
    machine = {"date": "2026-01-02", "commit": "abc", "processor": "a processor"}
    config = {"episodes": 4, "tasks": ["one", "two"], "execute": 5}
    found = {"machine": machine, "config": config, "bundle": {"recipe": "r"}, "delays": rows}
    (tmp_path / DELAYS).write_text(json.dumps(found))
    lines = render_delays(tmp_path).splitlines()
    assert "recipe `r`, 4 episodes of each of 2 tasks" in lines[1] and "at 10 Hz" in lines[1]
    told = [line for line in lines if line.startswith("| `")]
    assert told[0] == "| `sync` | 0 ms | 8 of 8, [50.0, 75.0] |  |  |  | 13.3 | 7.0 s |"
    assert told[3] == (
        "| `rtc` | 100 ms | 6 of 8, [50.0, 75.0] | -3.1 [-10.0, 5.0] | 0.46 [0.43, 0.50] | "
        "0.50 [0.40, 0.60] | 13.3 | 7.0 s |"
    )
    assert told[4].startswith("| `rtc` | 800 ms | refused")
    success, jerk = delay_pictures(tmp_path).values()
    for picture in (success, jerk):
        assert all(f">{way}<" in picture for way in ("sync", "async", "rtc"))
    assert "success, %" in success and ">100<" in success and "jerk" in jerk
