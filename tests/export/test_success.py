"""What the shipped policy does in closed loop, by the command that measures it for the card.

Few episodes: the card's own figures come from a hundred a task. The bounds are far from what was
measured there, and on one machine the outcome is the same every time.
"""

import json
import math

import pytest
from PIL import Image

from export.evidence.reference_policy import ReferencePolicy, load_either
from export.evidence.success import MEMORY_TASKS, SuccessTableConfig, measure
from export.evidence.success_table import render_success
from models.checkpoint import CheckpointError, load_checkpoint
from models.demo import CHECKPOINT
from models.demo.config import DEMO_TASKS
from runtime.policy import Policy

EPISODES = 4


@pytest.fixture(scope="module")
def config(simulator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("success")
    return SuccessTableConfig(
        episodes=EPISODES, work=folder, results=folder, film=folder / "film.gif"
    )


@pytest.fixture(scope="module")
def result(config):
    return json.loads(measure(config).read_text())


def share(row):
    return row["successes"] / row["n"]


def test_the_shipped_policy_solves_its_tasks(result):
    row = result["rows"]["anchor kept"]
    assert set(row) == {*DEMO_TASKS, "mean"}
    assert row["mean"]["n"] == EPISODES * len(DEMO_TASKS)
    assert share(row["mean"]) >= 0.7


@pytest.mark.parametrize("name", ["current frame as anchor", "wrong anchor"])
def test_what_is_to_be_remembered_comes_from_the_anchor(result, name):
    with_anchor = sum(result["rows"]["anchor kept"][t]["successes"] for t in MEMORY_TASKS)
    row = result["rows"][name]
    assert set(row) == {*MEMORY_TASKS, "mean"}
    assert row["mean"]["successes"] <= with_anchor / 3


def test_runtime_and_torch_reference_answer_alike(result):
    # Robot units are fractions here; the bound is what this project promises of float32.
    assert result["recorded_error"] <= 1e-4
    ours, theirs = (result["rows"][name]["mean"] for name in ("anchor kept", "torch reference"))
    assert abs(ours["successes"] - theirs["successes"]) <= 2


def test_recomputing_everything_gives_the_same_episodes(result):
    assert result["cold"] == {
        "same": math.ceil(EPISODES / 4) * len(DEMO_TASKS),
        "n": math.ceil(EPISODES / 4) * len(DEMO_TASKS),
    }


def test_the_named_marker_is_touched_more_often_than_the_scenes_own(result):
    others = [
        cell
        for told, scenes in result["instructions"].items()
        for scene, cell in scenes.items()
        if scene != told
    ]
    assert len(others) == 6
    assert sum(c["named"] for c in others) > 2 * sum(c["own"] for c in others)


def test_the_tables_show_every_row(result, config):
    text = render_success(config.results)
    for name, row in result["rows"].items():
        assert f"| {name} | " in text
        assert f"{100 * share(row['mean']):.0f} % [" in text
    assert "touch the green marker" in text
    assert render_success(config.results / "nowhere") == ""


def test_film_and_sheet_are_pictures(result, config):
    with Image.open(config.film) as film:
        assert film.n_frames > 5
    assert config.film.stat().st_size <= 1.5e6
    with Image.open(config.work / "sheet.png") as sheet:
        assert sheet.height == len(DEMO_TASKS) * (112 + 56)


def test_a_folder_is_run_as_what_it_is(result, config, tmp_path):
    assert isinstance(load_either(config.work / "shipped"), Policy)
    assert isinstance(load_either(CHECKPOINT), ReferencePolicy)
    with pytest.raises(CheckpointError):
        load_either(tmp_path)


def test_the_shipped_weights_are_small_trained_and_free():
    checkpoint = load_checkpoint(CHECKPOINT)
    assert (CHECKPOINT / "model.safetensors").stat().st_size <= 10e6
    assert "trained by models/demo/train.py, seed" in checkpoint.config.description
    assert checkpoint.config.license == "Apache-2.0"
