"""Published numbers come from files, and README, docs and model card show those files."""

import dataclasses
from pathlib import Path

import pytest

from export.evidence.results import ResultsConfig, place, update

ROOT = Path(__file__).parents[2]


def test_readme_docs_and_card_show_the_committed_results(tmp_path):
    config = ResultsConfig(results=ROOT / "docs" / "results")
    copies = {name: tmp_path / name for name in ("numbers", "readme", "precision", "card")}
    for name, copy in copies.items():
        copy.write_text((ROOT / getattr(config, name)).read_text())
    update(dataclasses.replace(config, **copies))
    for name, copy in copies.items():
        committed = (ROOT / getattr(config, name)).read_text()
        assert copy.read_text() == committed, f"{name}: run: python -m export results"


def test_a_text_without_markers_is_refused():
    with pytest.raises(ValueError, match="once and in this order"):
        place("no markers", "table")
