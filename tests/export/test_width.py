"""How far a prompt is padded changes no action: the shortest width, the usual and a long one."""

from dataclasses import replace

import numpy as np
import pytest

from export.measure import Modules, golden_of, reference_actions
from export.tokens import choose_tokens
from models.anchorvla4d.prompt import fixed_tokens
from models.anchorvla4d.split import split
from models.checkpoint import load_checkpoint
from models.demo import EPISODES
from quant.apply import prepare_folded, quantize_folded
from quant.calibrate import calibrate
from quant.data.observations import read_observations
from quant.recipes import RECIPES
from runtime.image import grid_of
from tests.oracles import relative_error

SIZE = (112, 112)


@pytest.fixture(scope="module")
def seen():
    return list(read_observations(EPISODES, stride=20, limit=2))


@pytest.fixture(scope="module")
def widths(checkpoint, seen):
    """In tokens, both calls of the language engine alike."""
    grid = grid_of(*SIZE, checkpoint.image)
    prefix, suffix = fixed_tokens(checkpoint.config, checkpoint.parts, grid).values()
    tail = max(len(checkpoint.tail_ids(observation.instruction)) for observation in seen)
    shortest = max(prefix, suffix + tail)
    usual = choose_tokens(checkpoint, grid, tuple(o.instruction for o in seen), None).slots
    assert shortest < usual
    return shortest, usual, 3 * usual


@pytest.fixture(scope="module")
def checkpoint(cut_checkpoint):
    return load_checkpoint(cut_checkpoint)


def actions(checkpoint, slots, golden):
    parts = split(checkpoint.model, checkpoint.parts, checkpoint.image, SIZE, slots)
    return Modules(checkpoint, parts).actions(golden)


def test_actions_do_not_depend_on_the_width(checkpoint, widths, seen):
    """Against the reference, which pads nothing. Padded columns weigh exactly 0; what is left is
    float32 rounding of sums in another order, 204 times by the first denoise step."""
    for observation in seen:
        golden = golden_of(checkpoint, observation, seed=0)
        want = reference_actions(checkpoint, golden)
        for slots in widths:
            assert relative_error(actions(checkpoint, slots, golden), want) < 1e-4, slots


@pytest.mark.parametrize("recipe", ["orin-w8a8", "cpu-int8"])
def test_nor_do_those_of_an_int8_policy(checkpoint, widths, seen, recipe):
    """Scales belong to layers or to tokens. A number on the edge between two codes may fall to the
    other side, which is the recipe's own `chain_tolerance`."""
    chosen = RECIPES[recipe]()
    goldens = [golden_of(checkpoint, observation, seed=0) for observation in seen]
    runs = [lambda golden=golden: reference_actions(checkpoint, golden) for golden in goldens]
    folded = prepare_folded(checkpoint.model, chosen, calibrate(checkpoint.model, runs))
    quantized = replace(checkpoint, model=quantize_folded(folded, chosen))
    for golden in goldens:
        found = [actions(quantized, slots, golden) for slots in widths]
        assert np.isfinite(found).all()
        for other in found[1:]:
            assert relative_error(other, found[0]) < chosen.chain_tolerance
