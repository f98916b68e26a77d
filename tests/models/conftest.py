"""Policies and their compositions, built once per session."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from tokenizers import Tokenizer

from export.evidence.composition import Composition
from models.anchorvla4d.policy import AnchorVLA4D
from models.anchorvla4d.presets import demo, full, shallow
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
