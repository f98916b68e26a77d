"""The random language model has outliers and prompts as it should, and its run ends in figures."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import quant.layerwise.full_size
from models.anchorvla4d.presets import demo
from models.checkpoint import INDEX, CheckpointError
from quant.layerwise.full_size import (
    FullSizeConfig,
    full_size,
    seeded_prompts,
    write_random_language,
)

LAYERS, TOKENS = 3, 40


def small():
    language = dataclasses.replace(demo().language, num_hidden_layers=LAYERS)
    return dataclasses.replace(demo(), language=language)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("language")
    write_random_language(path, small(), seed=0, outlier_channels=2)
    return path


def test_outlier_channels_are_tens_of_times_as_large_in_front_of_every_layer(checkpoint):
    gains = []
    for index in range(LAYERS):
        tensors = load_file(checkpoint / f"model-layer-{index:02d}.safetensors")
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weight = tensors[f"vlm.model.layers.{index}.{norm}.weight"].float()
            gains.append(weight.abs() / weight.abs().median())
    outliers = [torch.nonzero(gain > 10).flatten().tolist() for gain in gains]
    assert len(outliers[0]) == 2 and outliers == outliers[:1] * len(gains)
    # The ordinary weight itself is 1 + 0.1 normal.
    assert all(20 < g < 80 for gain in gains for g in gain[outliers[0]].tolist())


def test_prompts_are_seeded_and_laid_out_like_the_policys(checkpoint):
    prompts = seeded_prompts(checkpoint, seed=0, prompts=3, tokens=TOKENS)
    assert [p.embeddings_SD.shape for p in prompts] == [(TOKENS, 128)] * 3
    again = seeded_prompts(checkpoint, seed=0, prompts=3, tokens=TOKENS)
    other = seeded_prompts(checkpoint, seed=1, prompts=3, tokens=TOKENS)
    assert all(a.embeddings_SD.equal(b.embeddings_SD) for a, b in zip(again, prompts, strict=True))
    assert not other[0].embeddings_SD.equal(prompts[0].embeddings_SD)
    time, height, _ = prompts[0].positions_3S
    # Two images of 4 x 4 tokens: each stands still in time while it goes through its rows.
    assert (np.diff(time) == 0).sum() == 2 * (16 - 1)
    assert (np.diff(height) < 0).sum() == 0


def test_a_folder_without_configuration_or_with_damaged_weights_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no usable config.json"):
        seeded_prompts(tmp_path / "nowhere", seed=0, prompts=1, tokens=8)
    path = shutil.copytree(checkpoint, tmp_path / "damaged")
    (path / INDEX).unlink()
    (path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="model.safetensors: not a whole safetensors file"):
        seeded_prompts(path, seed=0, prompts=1, tokens=8)


def test_the_full_size_target_prints_figures_and_cleans_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quant.layerwise.full_size, "full", small)
    config = FullSizeConfig(folder=tmp_path / "full", outlier_channels=2, tokens=16, keep=True)

    def figures(config, code):
        assert full_size(config) == code
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    first = figures(config, 0)
    assert (first["recipe"], first["layers"], first["resumed"]) == ("orin-w8a8", LAYERS, 0)
    assert 0 < first["peak_gb"] < 14 and 0 < first["worst_error"] <= 1
    again = figures(config, 0)
    assert (again["checkpoint_seconds"], again["resumed"]) == (0, LAYERS)
    with pytest.raises(ValueError, match="is there, and it is no random language model, seed 1"):
        full_size(dataclasses.replace(config, seed=1))
    monkeypatch.setattr(quant.layerwise.full_size, "PEAK_LIMIT", 0)
    figures(dataclasses.replace(config, keep=False), 1)
    assert not config.folder.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recipe": "w3"}, "unknown recipe 'w3'"),
        ({"prompts": 0}, "at least 1 prompt of 8 tokens, got 0 of 128"),
        ({"tokens": 7}, "at least 1 prompt of 8 tokens, got 4 of 7"),
        ({"outlier_channels": -1}, "outlier_channels cannot be negative"),
    ],
)
def test_a_full_size_configuration_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FullSizeConfig(**fields)
