"""The demo's training runs end to end at a hundredth of its length, resumes, and is loadable."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file

from models.anchorvla4d.presets import demo
from models.checkpoint import load_checkpoint
from models.demo import training
from models.demo.collect import collect
from models.demo.config import CollectConfig, TrainConfig
from models.demo.data import load_data, make_batch
from models.demo.train import Touch
from models.demo.training import Trainer

TASKS = ("touch-red", "button-press-topdown")


@pytest.fixture(scope="module")
def data(simulator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    collect(CollectConfig(out=folder, tasks=TASKS, rollouts=13, frames=3))
    return folder


@pytest.fixture
def config(data, tmp_path):
    return TrainConfig(
        data=data, out=tmp_path / "out", tasks=TASKS, see_steps=3, all_steps=3, head_steps=4,
        scenes=4, head_batch=8,
    )  # fmt: skip


class Silent:
    def print(self, *words, **options):
        pass


def trainer_of(config):
    return Trainer(Touch(config), config.out)


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
    trainer = trainer_of(config)
    before = {n: p.clone() for n, p in trainer.lesson.average.state_dict().items()}
    trainer.run(Silent())
    checkpoint = load_checkpoint(config.out)
    assert "seed 0" in checkpoint.config.description
    assert (config.out / "model.safetensors").stat().st_size <= 10e6
    curve = json.loads((config.out / "curve.json").read_text())
    assert [point["stage"] for point in curve] == ["see", "all", "head"]
    assert all(np.isfinite(list(point.values())[2:]).all() for point in curve)
    for picture in ("loss.svg", "held-out.svg"):
        assert "<polyline" in (config.out / picture).read_text()
    moved = {n for n, p in trainer.lesson.average.state_dict().items() if not p.equal(before[n])}
    for part in ("vlm.visual", "vlm.model", "info_sharing", "action_head"):
        assert any(name.startswith(part) for name in moved), part


@pytest.mark.full  # two minutes
def test_a_tenth_of_the_recipe_learns_something(simulator, tmp_path):
    collect(CollectConfig(out=tmp_path / "data", rollouts=CollectConfig().rollouts // 10))
    whole = TrainConfig(data=tmp_path / "data", out=tmp_path / "out")
    steps = {name: getattr(whole, name) // 10 for name in ("see_steps", "all_steps", "head_steps")}
    trainer = trainer_of(replace(whole, **steps))
    trainer.run(Silent())
    ignorance_m = float(np.linalg.norm(trainer.lesson.data.goal_spread_m))
    last = trainer.curve[-1]
    # Who knows nothing is off by the spread of the goals, and cannot tell noise from actions. The
    # whole recipe ends at 0.3 of the spread; the condition is the last to learn.
    assert last["held_out_m"] < 0.8 * ignorance_m
    assert last["held_out_condition_m"] < 0.9 * ignorance_m
    assert last["epsilon"] < 0.3
    load_checkpoint(whole.out)


def test_a_run_that_was_cut_off_ends_in_the_same_bits(config, monkeypatch):
    monkeypatch.setattr(training, "REPORT_STEPS", 2)  # a state file every other step
    whole = replace(config, out=config.out / "whole")
    trainer_of(whole).run(Silent())

    class Cut(Exception):
        pass

    class CuttingConsole(Silent):
        lines = 0

        def print(self, *words, **options):
            CuttingConsole.lines += 1
            if CuttingConsole.lines == 3:  # within the second stage
                raise Cut

    cut = replace(config, out=config.out / "cut")
    with pytest.raises(Cut):
        trainer_of(cut).run(CuttingConsole())
    trainer_of(cut).run(Silent())
    weights = [load_file(c.out / "model.safetensors") for c in (whole, cut)]
    assert weights[0].keys() == weights[1].keys()
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


def test_a_scene_answers_every_instruction_that_it_could_be_given(data):
    both = ("touch-red", "touch-green", "button-press-topdown")
    loaded = load_data(data, TASKS, demo())
    assert loaded.goals.shape[1:] == (2, 3)
    known = ~loaded.goals.isnan().any(dim=2)
    assert known.sum(dim=1).eq(1).all()  # red markers and buttons do not share a scene
    (data / "touch-green.npz").write_bytes((data / "touch-red.npz").read_bytes())
    known = ~load_data(data, both, demo()).goals.isnan().any(dim=2)
    assert known[:, 2].sum() == (~known[:, 0]).sum()
    assert known[known[:, 0], 1].all() and known[known[:, 1], 0].all()


def test_a_batch_without_an_anchor_shows_the_frame_twice(data):
    loaded = load_data(data, TASKS, demo())
    options = {"every_task": False, "device": "cpu"}
    index = np.array([0, 1, 2])
    with_it = make_batch(loaded, index, without_anchor=False, **options)
    without = make_batch(loaded, index, without_anchor=True, **options)
    assert len(with_it.anchors) == len(set(loaded.episode[index])) < 3
    assert len(without.anchors) == 3
    assert without.anchors.equal(without.frames) and without.frames.equal(with_it.frames)


def test_too_few_rollouts_are_refused(simulator, tmp_path):
    collect(CollectConfig(out=tmp_path, tasks=TASKS[:1], rollouts=2, frames=2))
    with pytest.raises(ValueError, match="2 roll-outs are too few: .* collect at least 21"):
        trainer_of(TrainConfig(data=tmp_path, out=tmp_path / "out", tasks=TASKS[:1]))


def test_missing_data_names_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"no data: .*python -m models.demo.collect"):
        trainer_of(TrainConfig(data=tmp_path, out=tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"scenes": 1}, "at least two scenes"), ({"see_steps": 0}, "at least one step")],
)
def test_a_training_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ("fly",)}, r"unknown tasks \['fly'\]"),
        ({"seed": 10_000}, r"seed must be in \[0, 1000\)"),
        ({"rollouts": 0}, "rollouts must be positive"),
    ],
)
def test_a_collection_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CollectConfig(**fields)
