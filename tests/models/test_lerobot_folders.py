"""Folders of SmolVLA as LeRobot publishes them: read, and refused by name."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import load_checkpoint, open_checkpoint
from models.errors import CheckpointError
from models.families import CONFIGS
from models.layouts import lerobot
from models.layouts.lerobot import mlp_width
from models.random_weights import random_tensors
from models.smolvla.model import SmolVLA
from tests.models.lerobot_folders import NAME, numbers, write

TINY = CONFIGS["smolvla-tiny"]()


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The small language model, whose heads no tensor tells."""
    whole = dataclasses.replace(TINY.language, num_hidden_layers=9)
    monkeypatch.setattr(lerobot, "KNOWN", {**lerobot.KNOWN, NAME: lambda: (TINY.vision, whole)})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("lerobot") / "folder", TINY)


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "folder")


def edit(path, change):
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_it_is_the_policy_that_was_written(written, capsys):
    loaded = load_checkpoint(written)
    assert dataclasses.replace(
        loaded.config, license=TINY.license, description=TINY.description,
        normalization=TINY.normalization,
    ) == TINY  # fmt: skip
    assert loaded.config.normalization.state == ("mean_std",) * 3
    assert loaded.image.letterbox == "top_left" and loaded.image.size == (64, 64)
    with torch.device("meta"):
        empty = SmolVLA(TINY)
    drawn = dict(random_tensors(empty, 0))
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, drawn[name]), name
    (robot,) = loaded.statistics.values()
    for kind, seed, width in (("state", 1, 3), ("action", 2, 4)):
        for name, want in numbers(width, seed).items():
            assert np.float32(robot[kind][name]).tobytes() == want.numpy().tobytes()
    told = capsys.readouterr().err
    assert "vlm.lm_head.weight" in told and "text_model.norm.weight" in told


def test_what_is_stored_and_never_read_is_told_with_its_reason(written):
    unused = {u.name: u.why for u in open_checkpoint(written).weights.unused}
    last = f"{lerobot.VLM}text_model.layers.3."
    assert sorted(name.removeprefix(last) for name in unused if name.startswith(last)) == [
        "mlp.down_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight",
        "post_attention_layernorm.weight", "self_attn.o_proj.weight", "self_attn.q_proj.weight",
    ]  # fmt: skip
    assert len(unused) == 8 and all("keys and values" in why for why in unused.values())


def test_cameras_that_are_not_there_are_left_out_and_their_order_is_kept(folder):
    def change(raw):
        seen = {"type": "VISUAL", "shape": [3, 480, 640]}
        raw["input_features"] = {
            "observation.images.wrist": seen, "observation.images.empty_camera_0": seen,
            "observation.state": raw["input_features"]["observation.state"],
            "observation.image": seen,
        }  # fmt: skip
        raw["empty_cameras"] = 1

    edit(folder / "config.json", change)
    opened = open_checkpoint(folder)
    assert opened.config.views == ("wrist", "image")
    assert any("empty_camera_0 are never seen" in line for line in opened.said)


@pytest.mark.parametrize(("width", "hidden"), [(720, 2048), (72, 256), (480, 1280), (960, 2560)])
def test_the_expert_is_as_wide_as_lerobot_makes_it(width, hidden):
    """By hand: two thirds, times 4, up to a multiple of 256."""
    assert mlp_width(width) == hidden


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_mode": "self_attn"}, "attention_mode='self_attn' is not here"),
        ({"add_image_special_tokens": True}, "add_image_special_tokens=True is not here"),
        ({"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha=True is not here"),
        ({"use_peft": True}, "use_peft=True is not here"),
        ({"n_obs_steps": 2}, "n_obs_steps=2 is not here, only 1"),
        ({"think": True}, r"unknown settings \['think'\]"),
        ({"vlm_model_name": "x/y"}, "vlm_model_name='x/y' is not here"),
        ({"num_expert_layers": 2}, "num_expert_layers=2 of num_vlm_layers=4"),
        ({"resize_imgs_with_padding": [64, 32]}, r"resize_imgs_with_padding=\[64, 32\] is not"),
        ({"num_steps": 2.5}, "num_steps must be like 10, got 2.5"),
        ({"chunk_size": True}, "chunk_size must be like 50, got True"),
        ({"normalization_mapping": {}}, "normalization_mapping must be an object"),
        ({"normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD",
          "ACTION": "MEAN_STD"}}, "normalization_mapping.VISUAL must be IDENTITY"),
        ({"normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD",
          "ACTION": "QUANTILE10"}}, "normalization_mapping.ACTION must be MEAN_STD or"),
        ({"output_features": {"action": {"type": "ACTION", "shape": [4, 2]}}}, "a shape of one"),
        ({"input_features": {"observation.state": {"type": "STATE", "shape": [3]}}}, "must hold p"),
        ({"num_vlm_layers": 5}, "missing tensors: action_head.layers.4"),
        ({"max_state_dim": 6}, "another shape: model.state_proj.weight"),
    ],
)  # fmt: skip
def test_what_is_not_here_is_refused_by_name(folder, changes, said):
    edit(folder / "config.json", lambda raw: raw.update(changes))
    with pytest.raises(CheckpointError, match=said) as refused:
        open_checkpoint(folder)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "neither model.safetensors nor"),
        ("policy_preprocessor.json", "migrate_policy_normalization"),
        ("policy_postprocessor_step_0_unnormalizer_processor.safetensors", "names it"),
        ("tokenizer.json", f"copy it from {NAME}"),
    ],
)
def test_a_file_that_is_missing_is_named(folder, name, said):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=said) as refused:
        open_checkpoint(folder)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({"normalize_inputs.buffer_observation_state.mean": torch.zeros(3)}),
         "from before LeRobot had processors"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "extra tensors: model.extra"),
        (lambda t: t.pop("model.action_out_proj.bias"), "missing tensors: action_head.action_out"),
        (lambda t: t.update({"model.a.lora_A.weight": torch.zeros(1)}), "as LoRA"),
    ],
)  # fmt: skip
def test_weights_of_something_else_are_refused(folder, change, said):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(folder)


def test_numbers_that_are_not_there_are_missed(folder):
    file = folder / "policy_preprocessor_step_5_normalizer_processor.safetensors"
    tensors = load_file(file)
    del tensors["observation.state.std"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="state: the statistics hold no 'std'"):
        open_checkpoint(folder)
