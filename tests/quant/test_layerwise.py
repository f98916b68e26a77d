"""Layer by layer is the same as all at once, survives a kill, and reads back as it was."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import quant.apply
import quant.layerwise.language
import quant.layerwise.shards
from models.anchorvla4d.policy import AnchorVLA4D
from models.anchorvla4d.presets import demo
from models.checkpoint import INDEX, CheckpointError
from quant.apply import quantize
from quant.calibrate import calibrate
from quant.layerwise.full_size import seeded_prompts, write_random_language
from quant.layerwise.language import CalibrationPrompt, quantize_language
from quant.layerwise.shards import read_layer
from quant.modules import QuantLinear
from quant.recipes import Recipe, Rule
from runtime import prompt
from runtime.errors import OutputError
from tests.oracles import relative_error

LAYERS, TOKENS = 3, 40
NUM_LINEAR = 7
UP = "vlm.model.layers.1.mlp.up_proj.weight"


def small():
    """Its FFN is no multiple of a block, so that codes are padded."""
    language = dataclasses.replace(demo().language, num_hidden_layers=LAYERS, intermediate_size=320)
    return dataclasses.replace(demo(), language=language)


def recipe(number_format, method="plain"):
    rules = (
        Rule("vlm.model.layers.*.mlp.*", number_format, method),
        Rule("vlm.model.layers.*.k_proj", "float"),
        Rule("vlm.model.layers.*", "w8"),
        Rule("vlm.visual.patch_embed.proj", "float"),
        Rule("vlm.visual.*", "w8a8", "smooth"),
        Rule("*", "float32"),
    )
    return Recipe(
        name=f"{number_format}-{method}-unproved",
        rules=rules,
        target="thor" if number_format == "fp8" else "orin",
        purpose="memory",
        base="bfloat16",
        chain_tolerance=1.0,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("language")
    write_random_language(path, small(), seed=0, outlier_channels=2)
    return path


@pytest.fixture(scope="module")
def prompts(checkpoint):
    return seeded_prompts(checkpoint, seed=0, prompts=3, tokens=TOKENS)


@pytest.fixture
def damaged(checkpoint, tmp_path):
    """A function that changes the tensors of a layer, and returns the checkpoint."""

    def damage(layer, change):
        for file in checkpoint.glob("*.*"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        shard = f"model-layer-{layer:02d}.safetensors"
        tensors = load_file(tmp_path / shard)
        change(tensors)
        save_file(tensors, tmp_path / shard)
        index = json.loads((tmp_path / INDEX).read_text())["weight_map"]
        index = {n: s for n, s in index.items() if s != shard} | dict.fromkeys(tensors, shard)
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
        return tmp_path

    return damage


def whole_policy(checkpoint):
    """All of the language model at once; the rest of the policy has no weights."""
    with torch.device("meta"):
        policy = AnchorVLA4D(small())
    for file in checkpoint.glob("*.safetensors"):
        weights = {name: value.float() for name, value in load_file(file).items()}
        policy.load_state_dict(weights, strict=False, assign=True)
    return policy.requires_grad_(False)


def tables_of(given):
    language = small().language
    length = len(given.embeddings_SD)
    rotary = prompt.mrope_tables(
        given.positions_3S, theta=language.rope_theta, sections=language.mrope_section
    )
    mask = prompt.attention_mask(0, 0, length, length)
    return [torch.from_numpy(table) for table in (mask, *rotary)]


def run_layer(layer, x, tables):
    language = small().language
    with torch.no_grad():
        return layer(
            x, torch.zeros(0, 2, language.num_key_value_heads, language.head_dim), *tables
        )[0]


def shards_of(out):
    return {file.name: file.read_bytes() for file in sorted(out.glob("layer-*"))}


def figures_of(report):
    return [dataclasses.replace(layer, seconds=0.0) for layer in report.layers]


@pytest.mark.parametrize(
    ("number_format", "method"),
    [
        ("w4", "awq"),
        ("w4", "gptq"),
        ("w8a8", "smooth"),
        ("w8a8", "outliers"),
        ("float", "plain"),
    ],
)
def test_layer_by_layer_is_the_whole_model_bit_for_bit(
    checkpoint, prompts, tmp_path, monkeypatch, number_format, method
):
    # bitsandbytes, which looks for them otherwise, takes seconds to import.
    found = lambda rows: np.flatnonzero(np.abs(rows).max(axis=0) > 2.5)  # noqa: E731
    monkeypatch.setattr(quant.apply, "outlier_channels", found)
    chosen = recipe(number_format, method)
    report = quantize_language(checkpoint, chosen, prompts, tmp_path)

    policy = whole_policy(checkpoint)
    past = policy.empty_past(0)
    seen = calibrate(
        policy,
        [lambda p=p: policy.vlm.model(p.embeddings_SD, past, *tables_of(p)) for p in prompts],
    )
    language_only = dataclasses.replace(
        chosen, rules=tuple(r for r in chosen.rules if not r.pattern.startswith("vlm.visual"))
    )
    want = quantize(policy, language_only, seen).vlm.model.layers

    kept = 0
    for index in range(LAYERS):
        got = read_layer(tmp_path / f"layer-{index:02d}.safetensors", small().language)
        expected = want[index].state_dict()
        assert got.state_dict().keys() == expected.keys()
        for name, value in got.state_dict().items():
            assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name
        x, tables = prompts[0].embeddings_SD, tables_of(prompts[0])
        assert torch.equal(run_layer(got, x, tables), run_layer(want[index], x, tables))
        modules = [m for m in got.modules() if isinstance(m, QuantLinear)]
        assert len(modules) == (3 if number_format == "float" else NUM_LINEAR - 1)
        kept += sum(module.kept is not None for module in modules)
    assert (kept > 0) == (method == "outliers")
    assert [layer.layer for layer in report.layers] == list(range(LAYERS))


def test_reported_errors_are_those_of_layers_alone_and_in_a_chain(checkpoint, prompts, tmp_path):
    report = quantize_language(checkpoint, recipe("w4", "awq"), prompts, tmp_path)
    floats = whole_policy(checkpoint).vlm.model.layers
    exact = chain = [given.embeddings_SD for given in prompts]
    tables = [tables_of(given) for given in prompts]
    for index, figures in enumerate(report.layers):
        layer = read_layer(tmp_path / f"layer-{index:02d}.safetensors", small().language)
        alone = [run_layer(layer, x, t) for x, t in zip(exact, tables, strict=True)]
        chain = [run_layer(layer, x, t) for x, t in zip(chain, tables, strict=True)]
        exact = [run_layer(floats[index], x, t) for x, t in zip(exact, tables, strict=True)]
        # float32 sums in another order: 1e-6 of the outputs, which differ by some 1e-2.
        want = relative_error(torch.cat(alone), torch.cat(exact))
        assert figures.error == pytest.approx(want, rel=1e-3)
        want = relative_error(torch.cat(chain), torch.cat(exact))
        assert figures.chain_error == pytest.approx(want, rel=1e-3)
    assert report.worst.error == max(layer.error for layer in report.layers)
    assert report.layers[-1].chain_error > report.layers[-1].error > 0


def test_bytes_are_those_of_the_files(checkpoint, prompts, tmp_path):
    report = quantize_language(checkpoint, recipe("w4", "awq"), prompts, tmp_path)
    width, ffn, padded, kv = 128, 320, 384, 64
    codes = (2 * width * ffn + padded * width) // 2 + 2 * width * width + width * kv
    scales = 4 * (2 * ffn + padded // 128 * width + 2 * width + kv)
    factors = 4 * (2 * width + ffn)
    in_bfloat16 = 2 * (width * kv + 2 * width + width + 2 * kv)
    assert report.layers[0].num_bytes == codes + scales + factors + in_bfloat16
    for figures in report.layers:
        stored = load_file(checkpoint / f"model-layer-{figures.layer:02d}.safetensors")
        assert figures.float_bytes == sum(t.nbytes for t in stored.values())
        written = load_file(tmp_path / f"layer-{figures.layer:02d}.safetensors")
        assert figures.num_bytes == sum(t.nbytes for t in written.values())
        for name in stored.keys() & written.keys():
            assert written[name].dtype == torch.bfloat16 and written[name].equal(stored[name])


def test_layers_that_no_run_of_ours_left_are_refused_and_stay(checkpoint, prompts, tmp_path):
    (tmp_path / "layer-07.safetensors").write_text("somebody's")
    with pytest.raises(OutputError, match="layer-07.safetensors: in the way, and no run of ours"):
        quantize_language(checkpoint, recipe("w4", "awq"), prompts, tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["somebody's"]


@pytest.mark.parametrize(
    ("module", "function", "call", "finished"),
    [
        (quant.layerwise.language, "quantize_layer", 9, 1),
        (quant.layerwise.shards, "save_file", 4, 1),  # half the shard of layer 1 is written
        (
            quant.layerwise.shards,
            "save_file",
            5,
            1,
        ),  # the shard is there, but not what belongs to it
        (quant.layerwise.shards, "save_file", 3, 0),
        (quant.layerwise.shards, "save_file", 1, 0),  # the state of a run that has done nothing yet
    ],
)
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    checkpoint, prompts, tmp_path, monkeypatch, module, function, call, finished
):
    chosen = recipe("w4", "awq")
    want = quantize_language(checkpoint, chosen, prompts, tmp_path / "whole")
    real, calls = getattr(module, function), []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == call:
            if function == "save_file":
                arguments[1].write_bytes(b"half")
            raise KeyboardInterrupt
        return real(*arguments)

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(module, function, killed)
        with pytest.raises(KeyboardInterrupt):
            quantize_language(checkpoint, chosen, prompts, out)
    got = quantize_language(checkpoint, chosen, prompts, out)
    assert (want.resumed, got.resumed) == (0, finished)
    assert len(shards_of(out)) == LAYERS
    assert shards_of(out) == shards_of(tmp_path / "whole")
    assert figures_of(got) == figures_of(want)
    assert got.layers[0].seconds > 0
    assert not list(out.glob("*.partial"))


def test_a_finished_run_is_not_repeated(checkpoint, prompts, tmp_path):
    first = quantize_language(checkpoint, recipe("w8"), prompts, tmp_path)
    again = quantize_language(checkpoint, recipe("w8"), prompts, tmp_path)
    assert again.resumed == LAYERS and again.layers == first.layers


def change_recipe(checkpoint, prompts, out):
    return recipe("w4"), prompts


def change_prompts(checkpoint, prompts, out):
    return recipe("w8"), prompts[:2]


def lose_a_shard(checkpoint, prompts, out):
    (out / "layer-01.safetensors").unlink()
    return recipe("w8"), prompts


@pytest.mark.parametrize("change", [change_recipe, change_prompts, lose_a_shard])
def test_another_run_begins_anew(checkpoint, prompts, tmp_path, change):
    quantize_language(checkpoint, recipe("w8"), prompts, tmp_path / "out")
    (tmp_path / "out" / "layer-07.safetensors").write_bytes(b"of a deeper model")
    arguments = change(checkpoint, prompts, tmp_path / "out")
    report = quantize_language(checkpoint, *arguments, tmp_path / "out")
    assert report.resumed == 0
    quantize_language(checkpoint, *arguments, tmp_path / "fresh")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "fresh")


@pytest.mark.parametrize(("number_format", "method", "gain"), [("w8a8", "smooth", 2)])
def test_planted_outliers_are_what_the_methods_are_for(
    checkpoint, prompts, tmp_path, number_format, method, gain
):
    plain = quantize_language(checkpoint, recipe(number_format), prompts, tmp_path / "plain")
    better = quantize_language(checkpoint, recipe(number_format, method), prompts, tmp_path / "m")
    for a, b in zip(plain.layers, better.layers, strict=True):
        assert b.error < a.error / gain


def lose(tensors):
    del tensors[UP]


def misshape(tensors):
    tensors[UP] = tensors[UP][:5].clone()


def poison(tensors):
    tensors[UP][3, 4] = float("nan")


def overflow(tensors):
    tensors[UP][:] = 1e38


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose, rf"1 tensors of the language model do not fit config.json; {UP} is missing"),
        (misshape, rf"{UP} is \[5, 128\], expected \[320, 128\]"),
        (poison, rf"model-layer-01.safetensors: {UP} holds NaN or infinity; copy it again"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_layer(damaged, prompts, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        quantize_language(damaged(1, change), recipe("w4"), prompts, tmp_path / "out")


def test_what_overflows_names_the_layer(damaged, prompts, tmp_path):
    with pytest.raises(ValueError, match="layers.1: the input of mlp.down_proj is NaN or infinite"):
        quantize_language(damaged(1, overflow), recipe("w4"), prompts, tmp_path / "out")


def test_a_format_without_emulation_names_the_layer(checkpoint, prompts, tmp_path):
    with pytest.raises(ValueError, match="layers.0: .* format fp8 has no emulation"):
        quantize_language(checkpoint, recipe("fp8"), prompts, tmp_path)


def test_prompts_that_do_not_fit_are_refused(checkpoint, prompts, tmp_path):
    with pytest.raises(ValueError, match="pass at least one prompt"):
        quantize_language(checkpoint, recipe("w4"), [], tmp_path)
    first = prompts[0]
    for x, positions in [
        (first.embeddings_SD[:, :5], first.positions_3S),
        (first.embeddings_SD.double(), first.positions_3S),
        (first.embeddings_SD, first.positions_3S[:, :5]),
    ]:
        wrong = [first, CalibrationPrompt(x, positions)]
        with pytest.raises(ValueError, match=r"prompt 1: .*expected float32 \[S, 128\] and \[3, S"):
            quantize_language(checkpoint, recipe("w4"), wrong, tmp_path)
