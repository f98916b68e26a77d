"""What is measured of policies of the published size: limits that are held, and the table."""

import copy
import json

import pytest

from export.evidence.config import FullSizeConfig
from export.evidence.full_size import complaints_of, full_size
from export.evidence.results import full_size_table

WELL = {
    "synthesize": {"layout": "authors", "bytes": 8.8e9, "seconds": 90.0, "peak_bytes": 1.2e9},
    "export": {
        "engines": 12,
        "engine_bytes": 4286e6,
        "gates": {"folding": "pass (x)", "success": "not measured (y)"},
        "action_error": 0.08,
        "seconds": 3599.0,
        "peak_bytes": 11.9e9,
    },
    "counts": {
        "stages": {"prefix": {"flops": [100, 100], "weight_bytes": [98, 100], "port_bytes": [8, 8]}}
    }
    | {"seconds": 1.0, "peak_bytes": 1e9},
    "compile": {
        "parts": {
            "language_0": {"seconds": 5.0, "plan_bytes": 1, "onnx_bytes": 1, "peak_bytes": 4e9},
            "vision": {"seconds": 7.0, "plan_bytes": 1, "onnx_bytes": 1, "peak_bytes": 7e9},
        },
        "seconds": 12.0,
        "peak_bytes": 4.9e9,
    },
    "ticks": {
        "cold_s": 9.0,
        "warm_s": 5.0,
        "speedup": 1.8,
        "kept_for_anchor_bytes": 9.5e6,
        "seconds": 60.0,
        "peak_bytes": 23e9,
    },
}


@pytest.mark.parametrize(
    ("part", "figure", "value", "words"),
    [
        ("export", "seconds", 3601.0, "the export took 60 minutes, allowed are 60"),
        ("export", "peak_bytes", 12.1e9, "export took 12.1 GB of memory, allowed are 12"),
        ("synthesize", "peak_bytes", 12.1e9, "synthesize took 12.1 GB of memory"),
        ("compile", "peak_bytes", 5.1e9, "compile took 12.1 GB of memory, allowed are 12"),
        ("ticks", "peak_bytes", 24.1e9, "ticks took 24.1 GB of memory, allowed are 24"),
        ("ticks", "speedup", 1.59, "a warm tick is 1.59 times as fast as a cold one, not 1.6"),
    ],
)
def test_each_limit_is_held(part, figure, value, words):
    assert list(complaints_of(WELL)) == []
    measured = copy.deepcopy(WELL)
    measured[part][figure] = value
    (complaint,) = complaints_of(measured)
    assert words in complaint


@pytest.mark.parametrize("kind", ["flops", "weight_bytes", "port_bytes"])
@pytest.mark.parametrize("forecast", [97, 103])
def test_a_forecast_that_is_two_percent_off_is_told(kind, forecast):
    measured = copy.deepcopy(WELL)
    measured["counts"]["stages"]["prefix"][kind] = [forecast, 100]
    assert list(complaints_of(measured)) == [
        f"prefix: {kind} {forecast} forecast, 100 in the files"
    ]


def test_the_table_has_a_column_for_each_case_and_a_row_for_each_part():
    machine = {"date": "2026-11-28", "commit": "abc", "processor": "a CPU", "threads": 2}
    failed = copy.deepcopy(WELL) | {"machine": machine}
    failed["export"]["gates"]["folding"] = "fail (x)"
    del failed["compile"]
    table = full_size_table({"cases": {"full/a": WELL | {"machine": machine}, "full/b": failed}})
    assert "| | `full/a` | `full/b` |" in table
    assert "| exported in, at most | 60 min, 11.9 GB | 60 min, 11.9 GB |" in table
    assert "| gates | none fails | folding |" in table
    assert "| forecast from count, farthest | 2.0% | 2.0% |" in table
    assert "| warm against cold | 1.80 x | 1.80 x |" in table
    assert "| kept for the anchor | 9.5 MB | 9.5 MB |" in table
    assert table.endswith("| language_0 | 5 s, 4.0 |\n| vision | 7 s, 7.0 |\n")


@pytest.mark.parametrize("case", ["full", "full/int1", "huge/orin-w8a8"])
def test_an_unknown_case_is_refused(case):
    with pytest.raises(ValueError, match=f"unknown case '{case}': name CONFIG/RECIPE, of "):
        FullSizeConfig(cases=(case,))


@pytest.mark.full
def test_the_demos_sizes_go_all_the_way(tmp_path, capsys):
    """A policy so small ticks too fast for its anchor to matter, and forecasts its bytes worse."""
    config = FullSizeConfig(
        cases=("demo/orin-w8a8",), work=tmp_path / "work", results=tmp_path / "results"
    )
    full_size(config)
    found = json.loads((tmp_path / "results/full-size.json").read_text())
    measured = found["cases"]["demo/orin-w8a8"]
    assert set(measured) >= {"synthesize", "export", "counts", "ticks", "machine"}
    assert measured["ticks"]["speedup"] > 1
    assert not list((tmp_path / "work").iterdir())
    assert "`demo/orin-w8a8`" in capsys.readouterr().out
