"""The demo's training runs end to end at a hundredth of its length, resumes, and is loadable."""

import json

import numpy as np
import pytest

from models.checkpoint import load_checkpoint
from models.demo.collect import CollectConfig, collect
from models.demo.train import TrainConfig, Trainer
from runtime.errors import RobotError
from runtime.metaworld import rendering_backend

TASKS = ("touch-red", "button-press-topdown")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    try:
        rendering_backend()
    except RobotError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("data")
    collect(CollectConfig(out=folder, tasks=TASKS, rollouts=8, frames=3))
    return folder


@pytest.fixture
def config(data, tmp_path):
    return TrainConfig(
        data=data, out=tmp_path / "out", tasks=TASKS, see_steps=3, all_steps=3, head_steps=4,
        batch=4, head_batch=8,
    )  # fmt: skip


class Silent:
    def print(self, *words, **options):
        pass


def test_data_hold_the_anchor_with_its_markers_and_frames_without(data):
    raw = np.load(data / "touch-red.npz", allow_pickle=False)
    assert raw["anchors"].shape[1:] == (112, 112, 3)
    assert raw["chunks"].shape[1:] == (10, 4)
    assert len(raw["images"]) == len(raw["states"]) == len(raw["episode"])

    def red(images):
        wide = images.astype(int)
        return ((wide[..., 0] > 200) & (wide[..., 1] < 60)).sum(axis=(1, 2))

    assert (red(raw["anchors"]) > 0).all()
    assert (red(raw["images"]) == 0).all()


def test_training_writes_a_checkpoint_that_loads_and_a_curve(config):
    trainer = Trainer(config)
    before = {n: p.clone() for n, p in trainer.average.state_dict().items()}
    trainer.run(Silent())
    checkpoint = load_checkpoint(config.out)
    assert "seed 0" in checkpoint.config.description
    assert (config.out / "model.safetensors").stat().st_size <= 10e6
    curve = json.loads((config.out / "curve.json").read_text())
    assert [point["stage"] for point in curve] == ["see", "all", "head"]
    assert all(np.isfinite(list(point.values())[2:]).all() for point in curve)
    moved = {n for n, p in trainer.average.state_dict().items() if not p.equal(before[n])}
    for part in ("vlm.visual", "vlm.model", "info_sharing", "action_head"):
        assert any(name.startswith(part) for name in moved), part


def test_a_run_that_was_cut_off_goes_on_where_it_was(config):
    first = Trainer(config)
    first._train("see", config.see_steps, first._see, Silent())
    first.stage, first.step = 1, 0
    first._save()
    again = Trainer(config)
    again._resume(Silent())
    assert (again.stage, again.step) == (1, 0)
    weights = again.model.state_dict()
    assert all(weights[n].equal(p) for n, p in first.model.state_dict().items())


def test_missing_data_names_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"no data: .*python -m models.demo.collect"):
        Trainer(TrainConfig(data=tmp_path, out=tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"batch": 3}, "batch must be even"), ({"see_steps": 0}, "at least one step")],
)
def test_a_training_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ("fly",)}, r"unknown tasks \['fly'\]"),
        ({"seed": 10_000}, r"training seeds lie in \[0, 10000\)"),
        ({"rollouts": 0}, "rollouts must be positive"),
    ],
)
def test_a_collection_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CollectConfig(**fields)
