"""Folders of VLA-Adapter Pro as they are written: the authors' settings, what is replaced, what is
refused."""

import dataclasses
import shutil

import pytest

from models.checkpoint import open_checkpoint
from models.families import CONFIGS
from tests.models import prismatic_folders
from tests.models.prismatic_folders import (
    CONFIG,
    PREPROCESSOR,
    PRESETS,
    STATISTICS,
    read,
    synthesized,
)
from tests.models.synthesized import command, edit_json


@pytest.fixture(autouse=True)
def family(monkeypatch):
    prismatic_folders.register(monkeypatch)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        prismatic_folders.register(patch)
        return synthesized(tmp_path_factory.mktemp("folders") / "made", "like-libero")


def test_settings_are_those_that_the_authors_publish(written):
    """Names and values of pretrained_models/configs/, by hand."""
    config, image = read(written / CONFIG), read(written / PREPROCESSOR)
    assert config["architectures"] == ["OpenVLAForActionPrediction"]
    assert config["model_type"] == "openvla" and config["llm_backbone_id"] == "qwen25-0_5b-extra"
    assert config["timm_model_ids"] == [
        "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"
    ]  # fmt: skip
    assert config["text_config"]["rope_theta"] == 1000.0 and config["image_sizes"] == [56, 56]
    assert image["tvf_normalize_params"][0] == {
        "inplace": False, "mean": [0.484375, 0.455078125, 0.40625],
        "std": [0.228515625, 0.2236328125, 0.224609375],
    }  # fmt: skip
    assert image["tvf_resize_params"][1] == {
        "antialias": True, "interpolation": 3, "max_size": None, "size": [56, 56]
    }  # fmt: skip
    assert read(written / STATISTICS)["libero_spatial_no_noops"]["action"]["mask"][5:] == [
        True, False
    ]  # fmt: skip


def test_synthesize_replaces_what_it_wrote_and_nothing_else(written, tmp_path, capsys):
    made = shutil.copytree(written, tmp_path / "folder")

    def first():
        return open_checkpoint(made).weights["proprio_projector.fc1.weight"].read()[0, 0].item()

    before = first()
    line = ("synthesize", "--family", "vlaadapter", "--config", "like-libero", "--out", made)
    assert command(*line, "--seed", 8) == 0 and first() != before
    (made / "notes.txt").write_text("mine")
    assert command(*line) != 0 and "notes.txt is not of this command" in capsys.readouterr().err
    (made / "notes.txt").unlink()
    edit_json(made / CONFIG, lambda raw: raw.update(_name_or_path="VLA-Adapter/LIBERO-Long-Pro"))
    assert command(*line) != 0 and "no synthesized weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--layout", "starvla"), "a vlaadapter is written as --layout prismatic only"),
        (("--layout", "prismatic", "--names", "newer"), "--names, --weights and --settings bel"),
        (("--weights", "safetensors"), "--names, --weights and --settings belong to no --layout"),
    ],
)
def test_what_no_such_folder_has_is_not_written(tmp_path, capsys, words, said):
    line = ["synthesize", "--family", "vlaadapter", "--config", "tiny", *words]
    assert command(*line, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: {"prompt": dataclasses.replace(c.prompt, text="{instruction}")}, "prompt="),
        (lambda c: {"head": dataclasses.replace(c.head, num_heads=4)}, "head.num_heads=4 cannot"),
        (lambda c: {"head": dataclasses.replace(c.head, rope_theta=10.0)}, "head.rope_theta=10.0"),
        (lambda c: {"language": dataclasses.replace(c.language, mrope_section=(0, 16, 0))},
         "language.mrope_section="),
        (lambda c: {"vision": dataclasses.replace(c.vision, featurizer=dataclasses.replace(
            c.vision.featurizer, image_mean=(0.5, 0.5, 0.5)))}, "image_mean of vit_large_patch14"),
    ],
)  # fmt: skip
def test_a_policy_that_such_a_folder_cannot_say_is_not_written(
    tmp_path, monkeypatch, capsys, change, said
):
    config = PRESETS["tiny"]()
    made = dataclasses.replace(config, **change(config))
    monkeypatch.setitem(CONFIGS, "other", lambda: made)
    assert command("synthesize", "--config", "other", "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
