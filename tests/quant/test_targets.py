"""Costs of a tick agree with arithmetic by hand, and with what the engines are called with."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.presets import full
from quant.boards import BOARDS, FIGURES, OTHER_NAMES, Board, find_board, name_of_board
from quant.recipes import KEPT
from quant.search.sensitivity import CANDIDATES, group_layers
from quant.targets import (
    MissingFigureError,
    Product,
    roofline_ms,
    tick_costs,
    tick_products,
)

FORMATS = ("float", "w8", "w8a8", "w4")
BOARD = Board(bandwidth_gb_s=100.0, int8_tops=40.0, bf16_tflops=20.0, target="thor")


def meta(config):
    with torch.device("meta"):
        return AnchorVLA4D(config)


def test_a_product_takes_as_long_as_its_arithmetic_or_its_bytes():
    floats, integers = "bf16_tflops", "int8_tops"
    assert roofline_ms(BOARD, 4e9, 1e6, rate=floats) == pytest.approx(0.2)  # 4 GFLOP at 20 TFLOPS
    assert roofline_ms(BOARD, 4e9, 1e6, rate=integers) == pytest.approx(0.1)
    assert roofline_ms(BOARD, 4e9, 1e8, rate=integers) == pytest.approx(1.0)  # 100 MB at 100 GB/s


def test_a_figure_that_nobody_gave_is_missing_and_not_made_up():
    with pytest.raises(MissingFigureError, match="fp8_tflops"):
        Product(10, 10, rows=1, calls=1).time_ms(BOARD, "fp8")
    eight = replace(BOARD, fp8_tflops=80.0)
    assert Product(1000, 1000, rows=10**4, calls=1).time_ms(eight, "fp8") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("number_format", "num_bytes"),
    # 200 inputs, 10 outputs, two calls; scales of two bytes. int4 pads to 256 inputs, two blocks.
    [
        ("float32", 2 * 8000),
        ("float", 2 * 4000),
        ("w8", 2 * (2000 + 20)),
        ("w8a8", 2 * (2000 + 20)),
        ("w4", 2 * (1280 + 40)),
    ],
)
def test_weights_are_read_in_their_format_with_their_scales(number_format, num_bytes):
    product = Product(200, 10, rows=3, calls=2)
    assert product.num_bytes(number_format) == num_bytes
    assert product.flops == 2 * 200 * 10 * 3 * 2


def test_only_int8_inputs_make_arithmetic_faster():
    times = {f: Product(1000, 1000, rows=10**4, calls=1).time_ms(BOARD, f) for f in FORMATS}
    assert times == pytest.approx({"float": 1.0, "w8": 1.0, "w8a8": 0.5, "w4": 1.0})


@pytest.mark.parametrize(
    ("target", "want"),
    # 12.8 million weights against one row, at 100 GB/s: bfloat16 0.256 ms. int8 with int8 inputs
    # half of it; without, 1 + 2 + 2 bytes where bfloat16 reads 2. int4 with 2 bytes of scale for
    # 128: 0.25 + 1 / 128, or by what was measured on an Orin.
    [
        ("thor", {"w8a8": 0.5, "w8": 2.5, "w4": 0.25 + 1 / 128}),
        ("orin", {"w8a8": 0.5, "w8": 2.5, "w4": 167 / 146}),
    ],
)
def test_a_format_that_was_measured_to_save_no_time_counts_so(target, want):
    board = replace(BOARD, target=target)
    product = Product(12800, 1000, rows=1, calls=1)
    base = product.time_ms(board, "float")
    assert base == pytest.approx(0.256)
    # A scale per output is 2 bytes beside 12800.
    times = {f: product.time_ms(board, f) / base for f in want}
    assert times == pytest.approx(want, rel=2e-4)


def test_on_an_orin_int8_products_are_half_as_fast_again_as_bfloat16():
    """52 of 33.5 were measured on an AGX Orin; its relatives have the factor and no measurement."""
    gains = {n: b.int8_tops / b.bf16_tflops for n, b in BOARDS.items() if b.target == "orin"}
    assert len(gains) == 4
    assert gains.pop("agx-orin-64gb") == pytest.approx(52 / 33.5)
    assert set(gains.values()) == {1.5}


def test_a_warm_tick_multiplies_what_its_engines_are_called_with():
    """Rows of a layer are held against its module in tests/models/test_work.py."""
    products = tick_products(group_layers(meta(full())), full(), (18, 18), 102)
    calls = {group: {product.calls for product in of} for group, of in products.items()}
    assert calls.pop("head.attention") == calls.pop("head.mlp") == {10}
    assert set().union(*calls.values()) == {1}
    rows = {group: {product.rows for product in of} for group, of in products.items()}
    assert rows["vision.qkv"] == {324} and rows["vision.merger"] == {81}
    assert rows["language.qkv"] == {102} and rows["modulation"] == {10}
    assert rows["spatial.project"] == {324}, "the frame's, not the scale token's"
    assert rows["spatial.mlp"] == {648, 649} and rows["head.mlp"] == {5}


def test_the_full_policy_costs_about_what_was_computed_for_it_by_hand():
    products = tick_products(group_layers(meta(full())), full(), (18, 18), 102)
    # 252 x 252 on an AGX Orin in bf16: language 36 ms and head 43 ms, both waiting for weights;
    # vision 0.43 TFLOP, 13 ms, of which attention is a small part.
    times = tick_costs(products, BOARDS["agx-orin-64gb"], CANDIDATES)["ms"]
    sums: Counter[str] = Counter()
    for group, of in times.items():
        sums[group.split(".")[0]] += of["float"]
    assert sums["language"] == pytest.approx(36, rel=0.05)
    assert sums["head"] + sums["modulation"] == pytest.approx(43, rel=0.05)
    assert sums["vision"] == pytest.approx(13, rel=0.05)


def test_the_full_policys_tick_is_what_the_guide_says_of_an_agx_orin():
    products = tick_products(group_layers(meta(full())), full(), (18, 18), 112)
    times = tick_costs(products, BOARDS["agx-orin-64gb"], FORMATS)["ms"]
    sums = {f: round(sum(of[f] for of in times.values())) for f in ("float", "w8a8", "w4")}
    words = (
        f"on an AGX Orin take, at full size: {sums['float']} ms in bfloat16, "
        f"{sums['w8a8']} ms in int8, {sums['w4']} ms in int4."
    )
    guide = Path(__file__).parents[2] / "docs" / "precision.md"
    assert words in " ".join(guide.read_text().split())


def test_shares_are_of_what_float32_reads():
    products = tick_products(group_layers(meta(full())), full(), (18, 18), 112)
    shares = tick_costs(products, BOARDS["agx-orin-64gb"], FORMATS)["share"]
    assert sum(of["float"] for of in shares.values()) == pytest.approx(0.5)
    # A scale per output is a per mille, one per 128 weights 1 / 32 of the int4 codes.
    assert sum(of["w8"] for of in shares.values()) == pytest.approx(0.25, rel=0.003)
    assert sum(of["w4"] for of in shares.values()) == pytest.approx(0.125 * (1 + 1 / 32), rel=0.01)


def test_every_board_says_where_its_numbers_come_from():
    for name, board in BOARDS.items():
        assert tuple(board.sources) == FIGURES
        for figure, source in board.sources.items():
            is_missing = getattr(board, figure) is None
            assert source.startswith(("measured", "datasheet", "derived", "missing")), name
            assert is_missing == source.startswith("missing"), f"{name}: {figure}"


def test_a_board_goes_by_the_names_that_people_call_it():
    assert find_board("orin-nano-8") is BOARDS["orin-nano-8gb"]
    assert {name_of_board(name) for name in OTHER_NAMES} <= BOARDS.keys()
    assert [name_of_board(name) for name in BOARDS] == list(BOARDS)
    with pytest.raises(ValueError, match="unknown board 'orin'.*also called"):
        name_of_board("orin")


def test_kept_layers_are_in_no_group():
    layers = group_layers(meta(full()))
    names = {name for of in layers.values() for name in of}
    assert not names & {rule.pattern for rule in KEPT}
