"""The demo's leaf: how it is fitted, what it leaves alone, and what its model card says of it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT
from models.demo.collect import collect
from models.demo.config import DEMO_TASKS, GOAL, CollectConfig, ReadoutConfig, TrainConfig
from models.demo.readout import MEASURED, Asked, fit, readout
from models.demo.train import train
from models.demo.training import is_own
from runtime.errors import OutputError

TASKS = ("touch-red", "button-press-topdown")


@pytest.fixture(scope="module")
def data(simulator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    collect(CollectConfig(out=folder, tasks=TASKS, rollouts=13, frames=2))
    return folder


def test_the_fit_is_ridge_regression():
    """Against least squares with the penalty as more rows, by numpy."""
    random = np.random.default_rng(0)
    x, ridge = 3 + 5 * random.normal(size=(200, 7)) @ random.normal(size=(7, 7)), 0.05
    y = x @ random.normal(size=(7, 3)) + random.normal(size=(200, 3)) + 40
    weight, bias = fit(Asked(torch.from_numpy(x), torch.from_numpy(y), torch.zeros(200)), ridge)
    z = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    rows = np.concatenate([z, np.sqrt(ridge * 200) * np.eye(7)])
    wanted = np.concatenate([y - y.mean(axis=0), np.zeros((7, 3))])
    slopes, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    assert weight.dtype == bias.dtype == torch.float32
    # Solved in float64 and rounded to float32: 2^-24 of sums of seven numbers up to 1000.
    got = x @ weight.double().numpy().T + bias.double().numpy()
    assert got == pytest.approx(z @ slopes + y.mean(axis=0), abs=1e-3)


def test_a_feature_that_never_varies_says_nothing():
    x = torch.ones(50, 2)
    x[:, 1] = torch.linspace(0, 1, 50)
    weight, _ = fit(Asked(x, x[:, 1:] * torch.ones(3), torch.zeros(50)), 1e-6)
    assert weight[:, 0].abs().max() == 0
    assert weight[:, 1].tolist() == pytest.approx([1, 1, 1], abs=1e-3)


@pytest.mark.full
def test_only_the_leaf_is_added_and_a_second_time_gives_the_same_bits(data, tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(CHECKPOINT, folder)
    config = ReadoutConfig(data=data, out=folder, tasks=TASKS, frames=40, episodes=1)
    before = (folder / "model.safetensors").read_bytes()
    written = []
    for _ in range(2):
        readout(config)
        written.append([(folder / n).read_bytes() for n in ("readouts.safetensors", MEASURED)])
    assert written[0] == written[1]
    assert (folder / "model.safetensors").read_bytes() == before
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config == load_checkpoint(CHECKPOINT).config
    layer = load_file(folder / "readouts.safetensors")
    assert layer["goal.bias"].equal(checkpoint.model.readouts["goal"].bias + 0)
    measured = json.loads((folder / MEASURED).read_text())
    assert measured["tasks"].keys() == set(TASKS) and measured["seed0"] == 10_000


def test_who_trains_anew_gets_the_leaf_too(tmp_path, monkeypatch):
    done = []

    class Training:
        def __init__(self, lesson, out):
            self.out = out

        def run(self, console):
            done.append(self.out)

    monkeypatch.setattr("models.demo.train.Touch", lambda config: config)
    monkeypatch.setattr("models.demo.train.Trainer", Training)
    monkeypatch.setattr("models.demo.train.readout", done.append)
    whole = TrainConfig(data=tmp_path / "data", out=tmp_path / "out", tasks=TASKS)
    train(whole)
    assert done == [whole.out, ReadoutConfig(data=whole.data, out=whole.out, tasks=TASKS)]
    done.clear()
    train(replace(whole, without_anchor=True))  # it never sees a marker
    assert done == [whole.out]
    assert all(is_own(CHECKPOINT / name) for name in ("readouts.safetensors", MEASURED))


def test_what_is_no_policy_of_a_training_gets_none(tmp_path):
    with pytest.raises(OutputError, match="no policy of models.demo train in it; run: python -m"):
        readout(ReadoutConfig(out=tmp_path))
    (tmp_path / MEASURED).write_text("mine")
    with pytest.raises(OutputError, match=MEASURED):
        readout(ReadoutConfig(out=tmp_path))


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"episodes": 0}, {"ridge": 0}, {"ridge": 1.5}])
def test_what_cannot_be_fitted_is_refused(wrong):
    with pytest.raises(ValueError, match=r"frames and episodes must be positive and ridge in"):
        ReadoutConfig(**wrong)


def test_the_model_card_says_what_was_measured():
    measured = json.loads((CHECKPOINT / MEASURED).read_text())
    card = (CHECKPOINT / "README.md").read_text()
    assert list(measured["tasks"]) == list(DEMO_TASKS)
    for task, row in measured["tasks"].items():
        figures = (
            f"{row['median_cm']:.1f} ({row['p95_cm']:.1f})",
            f"{row['constant_median_cm']:.1f} ({row['constant_p95_cm']:.1f})",
        )
        assert f"| {task} | {' | '.join(figures)} |" in card
        # What it is for: less than a quarter of what knowing nothing costs.
        assert row["median_cm"] < row["constant_median_cm"] / 4
    assert f"`{GOAL.name}`" in card and f"{measured['episodes']} episodes" in card
