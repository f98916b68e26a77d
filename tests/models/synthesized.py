"""A small policy in every layout, and how its files are changed."""

from __future__ import annotations

import argparse
import dataclasses
import json

import torch

import models.__main__
from models.anchorvla4d.presets import demo

SEED, OUTLIERS = 3, 2
BESIDE = ("policy.json", "tokenizer.json", "preprocessor_config.json", "dataset_statistics.json")
RANK = "iter_0000001/mp_rank_{:02d}/model_optim_rng.pt"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"


def small():
    """The demo with two layers a network, of which one vision block attends over all."""
    config = demo()
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=2, fullatt_block_indexes=(1,)),
        language=dataclasses.replace(config.language, num_hidden_layers=2),
        spatial=dataclasses.replace(config.spatial, depth=2, indices=(0, 1)),
        head=dataclasses.replace(config.head, depth=1),
    )


def command(*words):
    """`python -m models` with these words; its exit code."""
    try:
        return models.__main__.main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def edit_json(path, edit):
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))


def edit_rank(folder, edit, rank=0, pattern=RANK):
    """Change what a rank's file holds."""
    file = folder / pattern.format(rank)
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(file, weights_only=True)
    edit(content)
    torch.save(content, file)
