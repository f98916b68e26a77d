"""How a policy is cut for a board: every part within its limit, and a plan that says so."""

import re

import pytest

from export.config import PartsConfig
from export.parts import EngineSizes, choose_layers, print_parts
from models.anchorvla4d.presets import demo, full
from models.demo import CHECKPOINT
from models.networks.parts import WHOLE
from quant.boards import BOARDS
from quant.recipes import RECIPES
from runtime.graph import whole_of
from tests.export.conftest import cut_config


def sizes_of(config, recipe_name):
    return EngineSizes(config, RECIPES[recipe_name]())


NANO = BOARDS["orin-nano-8gb"].largest_engine_bytes
LAYER = 2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 11008
"""Weights of a decoder layer's products at the published width, by hand."""


@pytest.mark.parametrize(
    ("recipe", "bytes_per_weight", "per_part"), [("orin-bf16", 2, 2), ("orin-w4a16", 0.5, 9)]
)
def test_a_part_is_as_large_as_the_board_was_seen_to_build(recipe, bytes_per_weight, per_part):
    sizes = sizes_of(full(), recipe)
    layers = choose_layers(sizes, per_part=None, limit=NANO)
    assert layers.get("language") == per_part
    one = sizes.part("language", range(1)).num_bytes
    # int4 adds a scale of two bytes to a block of 128, norms and biases are below a thousandth.
    scales = 2 / 128 if bytes_per_weight == 0.5 else 0
    assert one == pytest.approx(LAYER * (bytes_per_weight + scales), rel=1e-3)
    assert per_part * one <= NANO < (per_part + 1) * one
    trunks = {n: e for n, e in sizes.engines(layers).items() if e.layers is not None}
    assert max(engine.num_bytes for engine in trunks.values()) <= NANO
    for trunk, depth in sizes.depths.items():
        held = [i for n, e in trunks.items() if whole_of(n) == trunk for i in e.layers]
        assert held == list(range(depth))


def test_no_part_of_another_trunk_weighs_more_than_one_of_the_language_model():
    sizes = sizes_of(full(), "orin-bf16")
    layers = choose_layers(sizes, per_part=1, limit=10**12)
    assert layers["language"] == 1 and {"vision", "spatial"} <= layers.keys()
    engines = sizes.engines(layers)
    most = max(e.num_bytes for n, e in engines.items() if whole_of(n) == "language")
    parts = {n: e for n, e in engines.items() if whole_of(n) in ("vision", "spatial")}
    assert max(part.num_bytes for part in parts.values()) <= most
    # One block more would be above it, or the cut is finer than it has to be.
    for trunk in ("vision", "spatial"):
        finer = sizes.engines({**layers, trunk: layers[trunk] + 1})
        assert max(e.num_bytes for n, e in finer.items() if whole_of(n) == trunk) > most


def test_what_stands_behind_the_layers_counts_to_the_last_part():
    """32 blocks of the vision tower: the last 8 of them come with the merger, the last 4 too."""
    sizes = sizes_of(full(), "orin-bf16")
    limit = sizes.part("vision", range(8)).num_bytes
    assert sizes.part("vision", range(24, 32)).num_bytes > limit
    assert sizes.most_layers("vision", limit) == 7


def test_what_is_small_or_has_no_limit_stays_in_one_piece():
    small, large = sizes_of(demo(), "orin-bf16"), sizes_of(full(), "orin-bf16")
    assert choose_layers(small, per_part=None, limit=NANO) == WHOLE
    assert choose_layers(small, per_part=99, limit=1) == WHOLE
    no_limit = BOARDS["agx-orin-64gb"].largest_engine_bytes
    assert choose_layers(large, per_part=None, limit=no_limit) == WHOLE
    assert choose_layers(large, per_part=None, limit=1)["language"] == 1


def test_the_plan_of_a_board_is_printed_without_weights(capsys):
    print_parts(PartsConfig(board="orin-nano-8gb", config="full", recipe="orin-w4a16"))
    out = capsys.readouterr().out
    sizes = {
        name: int(size.replace(",", ""))
        for name, size in re.findall(r"(\w+) .*?([\d,]+) \S+\n", out)
        if name in ("denoise", "condition") or "_" in name
    }
    largest = max(sizes, key=sizes.get)
    assert sizes["language_0"] == pytest.approx(9 * LAYER * (0.5 + 2 / 128), rel=1e-3)
    assert f"the largest single block is {largest}, {sizes[largest] / 1e6:.1f} MB" in out
    assert "an engine of 358.0 MB was seen to build" in out
    assert "above that" not in out


def test_the_plan_says_what_may_not_build_and_that_others_need_no_parts(capsys):
    print_parts(PartsConfig(board="orin-nano-8gb", recipe="orin-bf16"))
    assert "denoise is 604.5 MB, above that: it may fail to build" in capsys.readouterr().out
    print_parts(PartsConfig(board="agx-orin-64gb", config="demo"))
    out = " ".join(capsys.readouterr().out.split())  # a long title takes two lines
    assert "nothing has to be cut" in out and "language_0" not in out
    wanted = [name for name in RECIPES if RECIPES[name]().target == "orin"]
    assert all(f"demo for agx-orin-64gb, recipe {name}" in out for name in wanted)
    assert "cpu-int8" not in out and "thor-fp8" not in out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"board": "orin"}, r"unknown board 'orin'; there are \['agx-orin-64gb'"),
        ({"layers_per_part": 0}, "layers_per_part must be positive, got 0"),
        ({"recipe": "int8"}, "unknown recipe 'int8'"),
        ({"config": "fulll"}, "unknown configuration 'fulll'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PartsConfig(**{"board": "orin-nano-8gb", **wrong})


@pytest.mark.parametrize("wrong", [{"board": "orin"}, {"layers_per_part": 0}])
def test_an_export_refuses_them_too(wrong, tmp_path):
    with pytest.raises(ValueError, match="unknown board|must be positive"):
        cut_config(CHECKPOINT, tmp_path, "float32", **wrong)
