"""A forecast agrees with the files of an export, and with arithmetic by hand."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from export.build import build
from export.engines.counts import Counts, count
from export.forecast.config import PUBLISHED, ForecastConfig
from export.forecast.forecast import Band, forecast
from export.forecast.page import page
from export.forecast.policy import prompt_of, size
from export.forecast.stages import stage_costs
from export.forecast.table import print_forecast
from export.forecast.words import summary
from models.anchorvla4d.presets import full
from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT
from models.families import CONFIGS, family_of
from models.networks.parts import WHOLE
from models.processor import read_image_config
from quant.boards import BOARDS, EFFICIENCY, OTHER_NAMES
from quant.recipes import RECIPES
from runtime.bundle import read_bundle
from tests.export.conftest import cut_config
from tests.export.test_full_width import export as export_at_width
from tests.export.test_full_width import write_checkpoint
from tests.once import once
from tests.pages import Page, broken_promises
from tests.qwen_vocabulary import qwen_tokenizer

AGX, NANO = BOARDS["agx-orin-64gb"], BOARDS["orin-nano-8gb"]
PROVED = 0.02
"""Largest difference of bytes by configuration and in the file, of the latter: constants of a graph
that are no weights are not forecast. FLOPs are the same."""
ALL = [name for name in RECIPES if name != "thor-fp8"]
"""What can be exported here."""
QUICK = ["orin-w8a8", "orin-w4a16", "cpu-int8"]
"""Every format that a layer may have, on bfloat16 and on float32."""


def sized(config, folder, slots, image_size=(112, 112)):
    """As an export of a checkpoint cuts it."""
    return size(
        config,
        name="policy",
        prompt=prompt_of(config, folder / "tokenizer.json"),
        image=read_image_config(folder / "preprocessor_config.json"),
        image_size=image_size,
        slots=slots,
        layers=WHOLE,
    )


def check_counts(bundle: Path, policy, recipe_name: str) -> None:
    """Every stage that actions need, by configuration against its file."""
    manifest = read_bundle(bundle).manifest
    files = {n: count(bundle / engine.file) for n, engine in manifest.engines.items()}
    stages = {stage.name: stage for stage in stage_costs(policy, RECIPES[recipe_name](), AGX)}
    seen: dict[str, list[Counts]] = {}
    graph = manifest.graph
    for stage in (graph.stages[index] for index in graph.needed_for(graph.target)):
        if stage.engine is not None:
            seen.setdefault(manifest.graph.rows[stage.name], []).append(files[stage.engine])
    assert stages.keys() == seen.keys()
    for name, counts in seen.items():
        cost = stages[name].cost
        assert cost.calls == len(counts), name
        assert cost.flops == sum(c.flops for c in counts), name
        weights = sum(c.weight_bytes for c in counts)
        assert cost.weight_bytes == pytest.approx(weights, rel=PROVED), name
        assert cost.port_bytes == sum(c.port_bytes for c in counts), name


def check_formats(bundle: Path, policy, recipe_name: str) -> None:
    """As much is multiplied in int8 as the recipe says."""
    recipe, manifest = RECIPES[recipe_name](), read_bundle(bundle).manifest
    works = policy.work()
    rules = recipe.decide({layer.name for w in works.values() for layer in w.layers} | _FOLDED)
    for name, engine in manifest.engines.items():
        integers = sum(
            2 * layer.rows * layer.num_inputs * layer.num_outputs
            for layer in works[name].layers
            if rules[layer.name].format == "w8a8"
        )
        assert count(bundle / engine.file).int8_flops == integers, name


_FOLDED = {"action_head.t_embedder.mlp.0", "action_head.t_embedder.mlp.2"}


@pytest.mark.parametrize("recipe", QUICK)
def test_forecast_and_count_agree_for_every_stage(recipe, exported, cut_checkpoint):
    policy = sized(load_checkpoint(cut_checkpoint).config, cut_checkpoint, 64)
    check_counts(exported(recipe), policy, recipe)
    check_formats(exported(recipe), policy, recipe)


@pytest.mark.full
@pytest.mark.parametrize("recipe", ALL)
def test_forecast_and_count_agree_for_the_demo(recipe, shared_folder):
    """Some recipes fail a gate without all observations; what they weigh is not touched by that."""
    bundle = once(
        shared_folder / f"demo-{recipe}",
        lambda out: build(cut_config(CHECKPOINT, out, recipe, force=True)),
    )
    policy = sized(load_checkpoint(CHECKPOINT).config, CHECKPOINT, 64)
    check_counts(bundle, policy, recipe)
    check_formats(bundle, policy, recipe)


@pytest.fixture(scope="module", params=["full", "xlerobot"])
def two_layers(request, tmp_path_factory):
    """The published widths with two layers of each network: more of them add the same each, see
    tests/models/test_work.py."""
    folder = tmp_path_factory.mktemp("widths") / request.param
    return write_checkpoint(
        folder, CONFIGS[request.param](), vision=2, language=2, spatial=2, head=2
    )


@pytest.mark.full
@pytest.mark.parametrize("recipe", ALL)
def test_forecast_and_count_agree_at_the_published_widths(recipe, two_layers, tmp_path):
    options = {"force": True} if RECIPES[recipe]().is_quantized else {}
    bundle = export_at_width(two_layers, recipe, tmp_path / "bundle", **options)
    config = load_checkpoint(two_layers).config
    policy = sized(config, two_layers, 112, image_size=(252, 252))
    check_counts(bundle, policy, recipe)
    check_formats(bundle, policy, recipe)
    shutil.rmtree(bundle)


@pytest.fixture(scope="module")
def nano():
    """The published policy on the smallest board."""
    return forecast(ForecastConfig(config="full", recipe="orin-w8a8", board="orin-nano-8"))


@pytest.fixture(scope="module")
def agx():
    return forecast(ForecastConfig(config="full", recipe="orin-w8a8", board="orin-agx-64"))


def cost_of(made, name):
    return next(stage.cost for stage in made.stages if stage.name == name)


# The published language model by hand: 36 layers of width 2048, MLP 11008, 2 pairs of heads of 128,
# 112 tokens behind 112.
PRODUCTS = 2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 11008
OUTPUTS = 2048 + 256 + 256 + 2048 + 11008 + 11008 + 2048
KEYS_AND_VALUES = 112 * 36 * 2 * 2 * 128 * 4


def test_a_language_call_is_charged_with_its_weights_and_its_keys_and_values(agx):
    suffix = cost_of(agx, "suffix")
    # An int8 weight is a byte, an output has a scale of two, q, k and v have biases of two; two
    # norms a layer and one behind them are float32.
    weights = 36 * (PRODUCTS + 2 * OUTPUTS + 2 * (2048 + 512)) + 73 * 2048 * 4
    assert suffix.weight_bytes == weights
    # Past and new keys and values, embeddings and hidden states, the mask, and rotary tables.
    ports = 2 * KEYS_AND_VALUES + 2 * 112 * 2048 * 4 + 112 * 224 * 4 + 2 * 112 * 128 * 4
    assert suffix.port_bytes == ports
    attention = 36 * 2 * 2 * 16 * 112 * 224 * 128
    assert suffix.flops == 36 * 2 * 112 * PRODUCTS + attention
    # 102 of 112 tokens are used, behind 102 of 112.
    used = 36 * (2 * 102 * PRODUCTS + 2 * 2 * 16 * 102 * 204 * 128)
    assert suffix.useful_flops == used
    # 152.8e9 bytes a second: its layers wait for weights; attention runs at 33.5e12 a second.
    want = 1e3 * 36 * (PRODUCTS + 2 * OUTPUTS) / 152.8e9
    memory = 1e3 * (ports + 73 * 2048 * 4) / 152.8e9
    assert suffix.roofline_ms == pytest.approx(want + max(memory, 1e3 * attention / 33.5e12))


def test_the_head_waits_for_its_weights_at_every_step(agx):
    """24 blocks of 12 times 1024 by 1024, ten times over, in int8: 19.8 ms at 152.8 GB/s."""
    denoise = cost_of(agx, "denoise")
    assert denoise.calls == 10
    assert denoise.weight_bytes == pytest.approx(10 * 24 * 12 * 1024**2, rel=0.01)
    assert denoise.roofline_ms == pytest.approx(19.8, rel=0.02)


def test_a_warm_tick_does_what_the_frame_changes_and_nothing_that_the_anchor_keeps(agx):
    kept = {stage.name for stage in agx.stages if stage.is_kept}
    assert kept == {"anchor_vision", "anchor_project", "prefix"}
    ticks = {stage.name: stage.cost for stage in agx.stages if not stage.is_kept}
    assert ticks.keys() == {
        "frame_vision", "frame_project", "suffix", "spatial", "condition", "denoise"
    }  # fmt: skip
    assert agx.warm.flops == sum(cost.flops for cost in ticks.values())
    # 2.28 and 1.28 TFLOP were computed by hand for 102 tokens a call.
    assert agx.cold.useful_flops == pytest.approx(2.28e12, rel=0.02)
    assert agx.warm.useful_flops == pytest.approx(1.28e12, rel=0.02)
    assert agx.cold.flops - agx.warm.flops == sum(
        cost_of(agx, name).flops for name in ("anchor_vision", "anchor_project", "prefix")
    )
    # Kept: keys and values, hidden states, 81 tokens of vision and 324 of the projection.
    tokens = (112 + 81) * 2048 * 4
    assert agx.kept_bytes == KEYS_AND_VALUES + tokens + 324 * 768 * 4 + 324 * 1176 * 4


def test_a_time_is_a_band_and_rate_and_energy_follow_from_it(agx):
    roofline, band = agx.warm.roofline_ms, agx.band(agx.warm)
    assert band == Band(best=roofline / EFFICIENCY[1], worst=roofline / EFFICIENCY[0])
    assert agx.rate_hz == Band(best=1e3 / band.best, worst=1e3 / band.worst)
    assert agx.actions_hz.best == pytest.approx(5 * agx.rate_hz.best)
    # 60 W for so many milliseconds.
    assert agx.energy_j.worst == pytest.approx(0.060 * band.worst)
    # The guide's figure for the linear layers, attention and ports on top.
    assert 51 < roofline < 60


def test_the_full_policy_fits_a_nano_in_int8_and_not_in_bfloat16(nano):
    assert nano.memory.weights == pytest.approx(4.28e9, rel=0.01)
    assert nano.memory.total == sum(
        getattr(nano.memory, part)
        for part in ("weights", "tensors", "twins", "scratch", "embedding_rows")
    )
    assert nano.room == pytest.approx(7.4e9 - nano.memory.total)
    assert nano.room > 2.9e9
    assert nano.fitting[0] == "orin-w4a16" and "orin-bf16" not in nano.fitting
    # Two bytes for each of 4.09e9 weights.
    assert nano.recipes["orin-bf16"] == pytest.approx(2 * 4.09e9, rel=0.03)
    asked = ForecastConfig(config="full", recipe="orin-bf16", board="orin-nano-8")
    words = " ".join(summary(forecast(asked)))
    assert re.search(r"does not fit: 8\.\d\d GB resident, 0\.9\d GB more than the 7\.4 GB", words)
    assert "recipes that fit: orin-w4a16 (2.75 GB)" in words


def test_where_nothing_fits_the_closest_recipe_and_what_it_lacks_are_named(monkeypatch):
    board = replace(NANO, memory_gb=2.0)
    monkeypatch.setitem(BOARDS, "orin-nano-8gb", board)
    made = forecast(ForecastConfig(config="full", recipe="orin-w8a8", board="orin-nano-8gb"))
    words = " ".join(summary(made))
    lacks = made.recipes["orin-w4a16"] - 2e9
    assert made.fitting == []
    assert f"the closest is orin-w4a16, {lacks / 1e9:.2f} GB too large" in words


def test_a_missing_figure_is_named_and_leaves_open_what_it_takes():
    made = forecast(ForecastConfig(config="full", recipe="thor-fp8", board="thor"))
    assert made.warm.roofline_ms is made.rate_hz is made.energy_j is None
    (line,) = made.missing
    assert line.startswith("thor-t5000 has no fp8_tflops (missing: ")
    # The head is bfloat16 in this recipe, and its time is known.
    assert cost_of(made, "denoise").roofline_ms > 0
    assert cost_of(made, "suffix").roofline_ms is None
    shown = Page(page(made))
    assert line in shown.texts and "missing" in shown.rows("Stages")["suffix"]
    assert json.loads(made.to_json())["ticks"]["warm"]["ms"] is None


def test_a_board_without_memory_and_power_leaves_both_open(monkeypatch):
    board = replace(AGX, memory_gb=None, power_w=None)
    monkeypatch.setitem(BOARDS, "agx-orin-64gb", board)
    made = forecast(ForecastConfig(config="demo"))
    assert made.room is made.energy_j is None and made.rate_hz is not None
    words = " ".join(summary(made))
    assert "whether it fits is not known" in words
    assert "agx-orin-64gb has no memory_gb" in words and "has no power_w" in words


def test_the_tokens_of_the_published_prompt_are_those_of_its_tokenizer():
    made = prompt_of(full())
    tokenizer = qwen_tokenizer()
    parts = family_of(full()).prompt(full(), tokenizer)
    assert list(map(len, made.parts.before)) == list(map(len, parts.before))
    assert len(made.parts.image_end) == len(parts.image_end)
    text = parts.tail.replace("{instruction}", "put the spoon on the towel")
    assert len(tokenizer.encode(text).ids) + len(parts.end_ids) == made.tail


def test_a_checkpoint_is_forecast_by_its_own_configuration_without_its_weights(tmp_path):
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((CHECKPOINT / name).read_bytes())
    asked = ForecastConfig(checkpoint=tmp_path, image_size=(112, 112), tokens=64)
    own, named = forecast(asked), forecast(ForecastConfig(config="demo"))
    assert (own.warm, own.cold) == (named.warm, named.cold)
    # Its leaf, which no tick runs, is held: 3 x 128 weights and 3 biases in float32.
    assert own.memory.weights - named.memory.weights == 4 * (3 * 128 + 3)
    with pytest.raises(ValueError, match="prompt takes .* but --tokens is 8: raise it"):
        forecast(replace(asked, tokens=8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"board": "orin"}, "unknown board 'orin'"),
        ({"recipe": "int8"}, "unknown recipe 'int8'"),
        ({"recipe": "float32"}, "recipe float32: it is made for a CPU"),
        ({"recipe": "thor-fp8"}, "recipe thor-fp8: it needs FP8, which an Orin"),
        ({"config": "fulll"}, "unknown configuration 'fulll'"),
        ({"tokens": 0}, "tokens must be positive"),
        ({"samples": 0}, "samples must be positive"),
        ({"image_size": (0, 9)}, "image_size must be positive"),
        ({"layers_per_part": 0}, "layers_per_part must be positive"),
    ],
)
def test_what_cannot_be_forecast_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ForecastConfig(**wrong)


def test_float32_products_take_their_time_and_leaves_are_beside_the_tick(tmp_path, capsys):
    """What chooses codes is float32: 1.42e12 operations a picture, 5.32e12 of them a second."""
    asked = ForecastConfig(config="upvla-calvin", board="orin-agx-64", tokens=1048, out=tmp_path)
    made = print_forecast(asked)
    *lines, last = capsys.readouterr().out.splitlines()
    codes = cost_of(made, "frame_codes")
    assert codes.flops == pytest.approx(1.42e12, rel=0.01)
    assert codes.roofline_ms == pytest.approx(1e3 * codes.flops / 5.32e12, rel=0.02)
    leaves = {stage.name: stage.cost for stage in made.leaves}
    assert leaves.keys() == {"future_codes", "future_frame"} == json.loads(last)["leaves"].keys()
    assert leaves["future_codes"].flops == 2 * 1024 * 2048 * 8192
    assert made.warm.flops == sum(s.cost.flops for s in made.stages if not s.is_kept)
    assert not leaves.keys() & {stage.name for stage in made.stages}
    assert sum(" future_" in line[:9] and "asked" in line for line in lines) == 2
    rows = Page((tmp_path / "upvla-calvin-orin-w8a8-agx-orin-64gb.html").read_text()).rows("Stages")
    assert rows["future_frame"][-1] == "if asked for"


def test_it_is_printed_with_one_json_line_and_a_page(tmp_path, capsys):
    asked = ForecastConfig(config="demo", board="orin-nano-8", out=tmp_path)
    made = print_forecast(asked)
    *lines, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["board"] == "orin-nano-8gb" and figures["recipe"] == "orin-w8a8"
    assert figures["ticks"]["warm"]["ms"] == [made.band(made.warm).best, made.band(made.warm).worst]
    assert figures["sources"] == dict(NANO.sources)
    text = " ".join(lines)
    assert "denoise x 10" in text and "memory: fits" in text and "no promise" in text
    shown = Page((tmp_path / "demo-orin-w8a8-orin-nano-8gb.html").read_text())
    assert broken_promises(shown) == []
    stages = shown.rows("Stages")
    assert {"prefix", "suffix", "denoise x 10", "a warm tick"} <= stages.keys()
    assert stages["prefix"][-1] == "with a new anchor" and stages["suffix"][-1] == "every tick"
    assert set(shown.rows("Memory")) >= set(made.recipes)
    assert shown.rows("The board")["FP8, TFLOPS"][1] == "missing"
    drawn = Counter(tag for tag in shown.tags if tag in ("svg", "circle", "polyline"))
    assert drawn["polyline"] == 3, "a roof for int8, one for bfloat16 and one for float32"
    kept = [stage for stage in made.stages if stage.is_kept]
    assert drawn["circle"] == len(made.stages) - len(kept) + 2, "twins share a dot"


def test_the_boards_of_the_make_target_are_known():
    assert set(OTHER_NAMES) == {"orin-agx-64", "orin-nx-16", "orin-nano-8", "thor"}
    assert PUBLISHED.tokens == 112
