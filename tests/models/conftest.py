"""Policies and their compositions, built once per session."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tokenizers import Tokenizer

import tests.qwen3 as qwen3_pairs
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.presets import demo, full, shallow
from models.anchorvla4d.reference import Composition
from models.families import to_json
from models.random_weights import random_weights
from tests.models.synthesized import OUTLIERS, SEED, command, small
from tests.oracles import IMAGE, TOKENIZER, random_policy


class Pair(NamedTuple):
    """Our policy, and the libraries' with the same weights."""

    ours: AnchorVLA4D
    oracle: Composition


CONFIGS = {
    "demo": demo,
    "wide": lambda: shallow(full(), vision=2, language=2, spatial=4, head=2),
}
"""`wide` has the published widths and few layers; `make test-depth` has the published depths."""


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


@pytest.fixture(scope="session")
def build(tokenizer):
    """Name in `CONFIGS` -> `Pair`. They are kept: 1.3 GB for `wide`."""
    built: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in built:
            model = random_policy(CONFIGS[name]())
            built[name] = Pair(model, Composition(model, tokenizer, IMAGE))
        return built[name]

    return pair


@pytest.fixture(scope="session")
def qwen3():
    """Name in `tests.qwen3.CONFIGS` -> `tests.qwen3.Pair`. They are kept: 1 GB for `wide`."""
    built: dict[str, qwen3_pairs.Pair] = {}

    def pair(name: str) -> qwen3_pairs.Pair:
        if name not in built:
            built[name] = qwen3_pairs.pair_of(qwen3_pairs.CONFIGS[name]())
        return built[name]

    return pair


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """One policy in every layout, by name."""
    base = tmp_path_factory.mktemp("layouts")
    (base / "config.json").write_text(to_json(small()))
    lines = {
        "published": ["--layout", "hf"],
        "newer": ["--layout", "hf", "--names", "newer"],
        "authors": ["--layout", "authors"],
        "shards": ["--layout", "authors", "--shards", "2"],
    }
    for name, words in lines.items():
        line = ["--config", base / "config.json", "--seed", SEED, "--outlier-channels", OUTLIERS]
        assert command("synthesize", *line, *words, "--out", base / name) == 0
    return {name: base / name for name in lines}


@pytest.fixture(scope="session")
def drawn():
    """Its tensors by their published names, as they are stored."""
    weights = random_weights(small(), SEED, outlier_channels=OUTLIERS, dtype=torch.bfloat16)
    return {name: source.read() for name, source in weights.items()}


@pytest.fixture
def copy(folders, tmp_path):
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))
