"""Folders of SmolVLA as they are written: read back, LeRobot's own settings, what is replaced, what
is refused."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import load_checkpoint, open_checkpoint
from models.errors import CheckpointError
from models.families import CONFIGS
from models.init import statistics_of
from models.layouts import lerobot
from models.random_weights import random_weights
from tests.models.lerobot_folders import settings, weights
from tests.models.synthesized import command, edit_json

TINY = CONFIGS["smolvla-tiny"]()
SEED, OUTLIERS = 7, 2
LINE = ("synthesize", "--family", "smolvla", "--config", "tiny")
CONFIG, OWN = "config.json", "anchorvla.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "folder"
    words = ("--seed", SEED, "--outlier-channels", OUTLIERS, "--layout", "lerobot")
    assert command(*LINE, *words, "--out", folder) == 0
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "folder")


def read(path):
    return json.loads(path.read_text())


def test_what_is_written_is_read_back_to_the_bit(written, capsys):
    loaded = load_checkpoint(written)
    assert dataclasses.replace(
        loaded.config, license=TINY.license, description=TINY.description
    ) == TINY  # fmt: skip
    drawn = random_weights(TINY, SEED, outlier_channels=OUTLIERS, dtype=torch.bfloat16)
    state = loaded.model.state_dict()
    assert state.keys() == drawn.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, drawn[name].read().float()), name
    assert list(loaded.statistics.values()) == list(statistics_of(TINY).values())
    assert "units" not in capsys.readouterr().err


def test_outlier_channels_are_the_language_models_alone(written):
    """Norms are near 1 elsewhere, and a few of its channels many times as large."""
    held = load_file(written / "model.safetensors")
    gains = {n: t.float() for n, t in held.items() if "norm" in n and n.endswith("weight")}
    planted = {name for name, gain in gains.items() if gain.abs().max() > 3}
    layers = f"{lerobot.VLM}text_model.layers."
    read_ones = [
        f"{i}.{which}_layernorm" for i in range(4) for which in ("input", "post_attention")
    ]
    assert planted == {f"{layers}{name}.weight" for name in read_ones[:-1]}


def test_names_and_shapes_are_those_that_lerobot_stores(written):
    """Of a folder made by other code, with what is stored and never read."""
    held = {name: tuple(t.shape) for name, t in load_file(written / "model.safetensors").items()}
    assert held == {name: tuple(t.shape) for name, t in weights(TINY).items()}
    assert len(open_checkpoint(written).weights.unused) == 8


def test_settings_are_those_that_lerobot_saves(written):
    config, known = read(written / CONFIG), settings(TINY)
    assert config.keys() <= known.keys()
    differ = {name for name in config if config[name] != known[name]}
    # No tag, pictures of another size, a name, 0 for "as many as the language model".
    assert differ == {"tags", "input_features", "vlm_model_name", "num_expert_layers"}
    assert config["num_expert_layers"] == config["num_vlm_layers"] == 4
    made = {
        kind: read(written / f"policy_{kind}.json")["steps"]
        for kind in ("preprocessor", "postprocessor")
    }
    assert {kind: [step["registry_name"] for step in steps] for kind, steps in made.items()} == {
        "preprocessor": [
            "rename_observations_processor", "to_batch_processor", "smolvla_new_line_processor",
            "tokenizer_processor", "device_processor", "normalizer_processor",
        ],
        "postprocessor": ["unnormalizer_processor", "device_processor"],
    }  # fmt: skip
    before, behind = (steps[n]["config"] for steps, n in zip(made.values(), (5, 0), strict=True))
    assert before["norm_map"] == behind["norm_map"] == config["normalization_mapping"]
    assert before["features"] == config["input_features"] | behind["features"]
    assert behind["features"] == config["output_features"] and before["eps"] == 1e-8
    tokenizer = made["preprocessor"][3]["config"]
    assert tokenizer["max_length"] == 48 and tokenizer["tokenizer_name"] == config["vlm_model_name"]


def test_a_published_language_model_is_named_and_not_described(tmp_path, monkeypatch):
    whole = dataclasses.replace(TINY.language, num_hidden_layers=9, vocab_size=1024)
    monkeypatch.setitem(lerobot.KNOWN, "somebody/known", lambda: (TINY.vision, whole))
    assert command(*LINE, "--out", tmp_path / "folder") == 0
    assert read(tmp_path / "folder" / CONFIG)["vlm_model_name"] == "somebody/known"
    assert read(tmp_path / "folder" / OWN).keys() == {"action_units", "state_units"}
    assert open_checkpoint(tmp_path / "folder").config.language == TINY.language


def test_units_that_nobody_states_are_told(folder):
    edit_json(folder / OWN, lambda own: own.pop("state_units"))
    opened = open_checkpoint(folder)
    assert any("units: those of the data set" in line for line in opened.said)
    assert opened.config.normalization.state_units == ("fraction",) * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda own: own.update(fast=True), r"anchorvla.json: unknown fields \['fast'\]"),
        (lambda own: own.pop("vision"), "say in anchorvla.json beside it of which sizes"),
        (lambda own: own["vision"].update(num_heads=5), "vision.num_heads=5 must divide"),
        (lambda own: own.update(state_units=["m", "m"]), "normalization.state"),
        (lambda own: own.update(state_units=["inch"] * 3), "state_units must be one of"),
    ],
)  # fmt: skip
def test_a_file_of_ones_own_that_does_not_fit_is_refused(folder, change, said):
    edit_json(folder / OWN, change)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(folder)


def test_synthesize_replaces_what_it_wrote_and_nothing_else(folder, capsys):
    def first():
        return open_checkpoint(folder).weights["state_proj.weight"].read()[0, 0].item()

    before, line = first(), (*LINE, "--out", folder)
    assert command(*line, "--seed", 8) == 0 and first() != before
    (folder / "notes.txt").write_text("mine")
    assert command(*line) != 0 and "notes.txt is not of this command" in capsys.readouterr().err
    (folder / "notes.txt").unlink()
    edit_json(folder / CONFIG, lambda raw: raw.update(tags=["lerobot"]))
    assert command(*line) != 0 and "no synthesized weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--layout", "starvla"), "a smolvla is written as --layout lerobot only"),
        (("--layout", "lerobot", "--names", "newer"), "--names, --weights and --settings bel"),
        (("--weights", "safetensors"), "--names, --weights and --settings belong to no --layout"),
    ],
)
def test_what_no_such_folder_has_is_not_written(tmp_path, capsys, words, said):
    assert command(*LINE, *words, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def within(config, part, **changes):
    return dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **changes)}
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (within(TINY, "prompt", text="{instruction}"), "prompt.text="),
        (within(TINY, "head", intermediate_size=128), "head.intermediate_size=128 cannot be said"),
        (within(TINY, "normalization", state=("mean_std", "mean_std", "q99")), "normalization.st"),
        (within(TINY, "normalization", action=("q99", "q99", "q99", "identity")), "normalization."),
        (within(TINY, "normalization", action=("bounds",) * 4), "no normalization ['bounds']"),
        (dataclasses.replace(TINY, views=("empty_camera_0", "wrist")), "would be read as others"),
    ],
)
def test_a_policy_that_such_a_folder_cannot_say_is_not_written(
    tmp_path, monkeypatch, capsys, changed, said
):
    monkeypatch.setitem(CONFIGS, "other", lambda: changed)
    assert command("synthesize", "--config", "other", "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_policy_that_differs_in_every_setting_is_read_back(tmp_path, monkeypatch):
    """In double precision, 60 / 88 times 88 is below 60."""
    language = dataclasses.replace(
        TINY.language, hidden_size=88, num_hidden_layers=3, num_attention_heads=2,
        mrope_section=(22, 0, 0), rope_theta=500.0, rms_norm_eps=1e-6,
    )  # fmt: skip
    head = dataclasses.replace(
        TINY.head, hidden_size=60, action_horizon=5, max_action_dim=7, max_state_dim=6,
        self_attn_every_n_layers=3, num_inference_timesteps=3, min_period=0.01, max_period=2.0,
    )  # fmt: skip
    n = dataclasses.replace(
        TINY.normalization, action=("q99",) * 4, state=("min_max",) * 3,
        action_units=("rad", "rad", "m", "fraction"),
    )  # fmt: skip
    changed = dataclasses.replace(
        TINY,
        language=language,
        vision=dataclasses.replace(TINY.vision, out_hidden_size=88),
        head=head,
        normalization=n,
        views=("top", "left", "right"),
        prompt=dataclasses.replace(TINY.prompt, max_length=40),
    )
    monkeypatch.setitem(CONFIGS, "other", lambda: changed)
    line = ("synthesize", "--config", "other", "--outlier-channels", 0, "--dtype", "float32")
    assert command(*line, "--out", tmp_path / "out") == 0
    opened = open_checkpoint(tmp_path / "out")
    assert dataclasses.replace(
        opened.config, license=TINY.license, description=TINY.description
    ) == changed  # fmt: skip
