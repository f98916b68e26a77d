"""SG-VLA synthesized: nobody published a layout, so it is a folder of our own."""

import dataclasses

import pytest
import torch

from models.checkpoint import load_checkpoint
from models.families import CONFIGS
from models.init import image_of, statistics_of
from models.random_weights import random_weights
from tests.models.synthesized import command, edit_json

TINY = CONFIGS["sgvla-tiny"]()


def test_what_is_synthesized_is_a_folder_of_our_own_and_says_so(tmp_path, capsys):
    line = ("synthesize", "--family", "sgvla", "--config", "tiny", "--out", tmp_path / "made")
    assert command(*line, "--seed", 5) == 0
    assert "nobody published a sgvla: this is a folder of our own" in capsys.readouterr().out
    loaded = load_checkpoint(tmp_path / "made")
    assert dataclasses.replace(loaded.config, description="") == TINY
    drawn = random_weights(TINY, 5, outlier_channels=8, dtype=torch.bfloat16)
    state = loaded.model.state_dict()
    assert state.keys() == drawn.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, drawn[name].read().float()), name
    assert loaded.statistics == statistics_of(TINY) and loaded.image == image_of(TINY)
    assert command(*line) == 0  # over its own
    (tmp_path / "made" / "notes.txt").write_text("mine")
    assert command(*line) != 0 and "notes.txt is not of this command" in capsys.readouterr().err
    (tmp_path / "made" / "notes.txt").unlink()
    edit_json(tmp_path / "made" / "config.json", lambda raw: raw.update(model_type="qwen2_5_vl"))
    assert command(*line) != 0 and "no synthesized weights" in capsys.readouterr().err
    assert command("init", "sgvla-tiny", "--out", tmp_path / "mine") == 0
    assert command(*line[:-1], tmp_path / "mine") != 0
    assert "no synthesized weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--layout", "starvla"), "a sgvla is written as --layout own only"),
        (("--names", "newer"), "--names, --weights and --settings belong to no --layout own"),
    ],
)
def test_no_layout_is_written_that_nobody_published(tmp_path, capsys, words, said):
    line = ("synthesize", "--family", "sgvla", "--config", "tiny", *words)
    assert command(*line, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
