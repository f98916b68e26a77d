"""Readouts of AnchorVLA4D: leaves beside the actions, against torch's layer on public features."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.measure import Modules, golden_of, made_up
from export.tokens import choose_tokens
from models.anchorvla4d.checkpoint import READOUTS
from models.anchorvla4d.presets import demo, readouts
from models.anchorvla4d.reference import Composition
from models.checkpoint import load_checkpoint, open_checkpoint
from models.demo import CHECKPOINT
from models.errors import CheckpointError
from models.families import family_of, read_config, to_json
from models.family import layer_names
from models.networks.readout_config import ReadoutConfig
from quant.recipes import RECIPES
from runtime.image import grid_of
from tests.export.conftest import write_random
from tests.models.synthesized import command
from tests.oracles import END_TO_END, relative_error

SIZE = (112, 112)
WORDS = ("touch the red marker", "touch the blue marker", "press the button from above")


@pytest.fixture(scope="module")
def shipped():
    return load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    """Random weights of the preset that reads in both ways."""
    folder = tmp_path_factory.mktemp("readouts") / "random"
    write_random(folder, readouts())
    return load_checkpoint(folder)


def composed(checkpoint):
    return Composition(checkpoint.model, checkpoint.tokenizer, checkpoint.image)


def split_of(checkpoint):
    grid = grid_of(*SIZE, checkpoint.image)
    slots = choose_tokens(checkpoint, grid, (), None).slots
    family = family_of(checkpoint.config)
    return family.split(checkpoint.model, checkpoint.parts, checkpoint.image, SIZE, slots)


def test_each_kind_reads_its_rows(random):
    """Of random weights, which no bias of the demo's goal hides."""
    parts = split_of(random)
    for seed in range(2):
        golden = golden_of(random, made_up(random, SIZE, seed=seed), seed=seed)
        golden["anchor"] = golden["frame"][::-1].copy()
        ours = Modules(random, parts).tensors(golden)
        wanted = {n: golden[n] for n in ("anchor", "frame", "state", "noise")}
        read = composed(random).read(instruction=str(golden["instruction"]), **wanted)
        assert read.keys() == {"goal", "brightness"}
        for name, want in read.items():
            assert relative_error(ours[name], want) <= END_TO_END, name


def test_what_is_read_of_the_frame_knows_nothing_of_the_instruction(random):
    golden = golden_of(random, made_up(random, SIZE), seed=0)
    wanted = {n: golden[n] for n in ("anchor", "frame", "state", "noise")}
    library = composed(random)
    one, other = (library.read(instruction=words, **wanted) for words in WORDS[:2])
    assert relative_error(one["brightness"], other["brightness"]) <= END_TO_END
    assert relative_error(one["goal"], other["goal"]) > 10 * END_TO_END


def test_without_readouts_nothing_is_there_of_them(shipped):
    bare = dataclasses.replace(
        shipped, config=dataclasses.replace(shipped.config, readouts=()), path=shipped.path
    )
    family = family_of(bare.config)
    model = family.shapes(bare.config)
    grid = grid_of(*SIZE, bare.image)
    cut = family.split(model, bare.parts, bare.image, SIZE, 64)
    whole = split_of(shipped)
    own = {"goal_readout", "goal_rows"}
    assert [*whole.engines] == [*cut.engines, "goal_readout"]
    assert {s.name for s in whole.graph.stages} - {s.name for s in cut.graph.stages} == own
    assert whole.graph.tensors.keys() - cut.graph.tensors.keys() == {"goal", "goal_rows"}
    assert [*whole.graph.outputs] == [*cut.graph.outputs, "goal"]
    assert not any(name.startswith("readouts") for name in model.state_dict())
    assert grid == (8, 8)


def test_every_recipe_leaves_a_readout_in_float32():
    layers = [*layer_names(demo()), "readouts.goal"]
    for make in RECIPES.values():
        assert make().decide(layers)["readouts.goal"].format == "float32"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Goal"}, "small letters and single _ between them, got 'Goal'"),
        ({"name": "goal_2"}, "small letters"),
        ({"elements": ()}, "readouts.goal: elements must be names that differ, at least one"),
        ({"elements": ("x", "x")}, "elements must be names that differ"),
    ],
)
def test_a_readout_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        ReadoutConfig(**{"name": "goal", "elements": ("x",), "unit": "cm", **changes})


@pytest.mark.parametrize(
    "names",
    [
        ("frame",), ("anchor",), ("anchor_similarity",), ("actions",), ("state",), ("instruction",),
        ("noise",), ("leftover",), ("spread",), ("denoised_actions",), ("goal", "goal"),
    ],
)  # fmt: skip
def test_a_name_is_had_once(names):
    made = tuple(ReadoutConfig(name=name, elements=("x",), unit="cm") for name in names)
    with pytest.raises(ValueError, match=f"readouts: the name '{names[0]}' is taken"):
        dataclasses.replace(demo(), readouts=made)


def test_a_file_that_says_nothing_of_them_has_none(tmp_path):
    raw = json.loads(to_json(readouts()))
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_config(tmp_path / "config.json") == readouts()
    del raw["readouts"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_config(tmp_path / "config.json").readouts == ()
    raw["readouts"] = [{"name": "goal", "elements": ["x"], "unit": "cm", "reads": "anchor"}]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"readouts\.reads must be one of .*'end', 'frame'"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("layout", ["hf", "authors"])
def test_every_layout_holds_them_and_an_import_keeps_them(layout, tmp_path):
    out, own = tmp_path / layout, tmp_path / "own"
    assert command("synthesize", "--config", "readouts", "--layout", layout, "--out", out) == 0
    weights = open_checkpoint(out).weights
    assert weights["readouts.goal.weight"].shape == (3, 128)
    assert command("import", out, "--out", own) == 0
    again = open_checkpoint(own).weights
    for name in ("goal.weight", "goal.bias", "brightness.weight", "brightness.bias"):
        one, other = (w[f"readouts.{name}"].read() for w in (weights, again))
        assert torch.equal(one, other) and one.abs().sum() > 0


def test_weights_without_their_configuration_and_the_reverse_are_refused(tmp_path):
    missing, extra = tmp_path / "missing", tmp_path / "extra"
    shutil.copytree(CHECKPOINT, missing)
    (missing / READOUTS).unlink()
    with pytest.raises(CheckpointError, match=r"missing.*readouts\.goal\.bias"):
        open_checkpoint(missing)
    shutil.copytree(CHECKPOINT, extra)
    config = dataclasses.replace(read_config(CHECKPOINT / "config.json"), readouts=())
    (extra / "config.json").write_text(to_json(config))
    with pytest.raises(CheckpointError, match=r"goal\.weight"):
        open_checkpoint(extra)
    layer = load_file(CHECKPOINT / READOUTS)
    save_file({name: value[:2].contiguous() for name, value in layer.items()}, missing / READOUTS)
    with pytest.raises(CheckpointError, match=r"goal\.weight \[2, 128\], expected \[3, 128\]"):
        open_checkpoint(missing)
