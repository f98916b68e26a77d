"""Published numbers come from files, and the README shows those files."""

from pathlib import Path

import pytest

from export.results import place, render

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_committed_results():
    text = (ROOT / "README.md").read_text()
    assert place(text, render(ROOT / "docs" / "results")) == text, "run: python -m export results"


def test_a_text_without_markers_is_refused():
    with pytest.raises(ValueError, match="once and in this order"):
        place("no markers", "table")
