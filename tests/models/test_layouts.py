"""Checkpoints of other layouts are read as the same policy, and what does not fit is named."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

import models.random_weights
from models.checkpoint import load_checkpoint, open_checkpoint
from models.layouts import writers
from models.layouts.hugging_face import published_name
from models.layouts.stored import stored_safetensors
from models.networks.vision_language import rotary
from models.random_weights import random_tensor, random_weights
from models.sources import Source, parameter_shapes
from runtime import prompt
from tests.models import authors_layout
from tests.models.synthesized import (
    BESIDE,
    OUTLIERS,
    RANK,
    command,
    edit_json,
    edit_rank,
    small,
)
from tests.oracles import MODULE, normal, relative_error


def assert_same(weights, want):
    assert list(weights) == list(want)
    for name, tensor in want.items():
        got = weights[name].read()
        assert got.dtype == weights[name].dtype == tensor.dtype, name
        assert got.shape == weights[name].shape and torch.equal(got, tensor), name


def by_hand(folder, folders, policy, ranks=1):
    """A folder of the authors' written by hand."""
    folder.mkdir()
    for name in BESIDE:
        shutil.copyfile(folders["authors"] / name, folder / name)
    authors_layout.save(folder, policy, small(), ranks)
    return folder


@pytest.mark.parametrize("name", ["published", "newer", "authors", "shards"])
def test_every_layout_of_a_seed_holds_the_same_policy_bit_for_bit(folders, drawn, name):
    checkpoint = open_checkpoint(folders[name])
    assert_same(checkpoint.weights, drawn)
    model = load_checkpoint(folders[name]).model
    for parameter, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32, parameter
        assert torch.equal(tensor, drawn[parameter].float()), parameter


@pytest.mark.parametrize("name", ["published", "newer", "authors", "shards"])
def test_import_writes_a_folder_of_our_own_and_says_what_went_where(
    folders, drawn, name, tmp_path, capsys
):
    out = tmp_path / "out"
    assert command("import", folders[name], "--out", out) == 0
    told = capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".safetensors") == [
        "config.json", "dataset_statistics.json", "model.safetensors.index.json",
        "preprocessor_config.json", "tokenizer.json",
    ]  # fmt: skip
    stored = {n: t for file in out.glob("*.safetensors") for n, t in load_file(file).items()}
    assert stored.keys() == drawn.keys()
    assert all(torch.equal(stored[n], t) and stored[n].dtype == t.dtype for n, t in drawn.items())
    rows = [line.split("  ")[0] for line in told.splitlines()]
    assert rows.count("vlm.model.layers.*.self_attn.k_proj.weight") == 1
    row = next(line for line in told.splitlines() if "*.self_attn.k_proj.weight" in line)
    their = "self_attention.linear_qkv" if name in ("authors", "shards") else "self_attn.k_proj"
    assert f"{their}.weight" in row and "64 x 128" in row and "BF16" in row and row.endswith("2")
    assert ("of 2 shards" in row) == (name == "shards")
    assert ("left out: args of model_optim_rng.pt: Megatron" in told) == (
        name in ("authors", "shards")
    )
    assert load_checkpoint(out).config == load_checkpoint(folders[name]).config


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_authors_files_by_hand_are_read(folders, drawn, tmp_path, ranks):
    folder = by_hand(tmp_path / "hand", folders, drawn, ranks)
    assert_same(open_checkpoint(folder).weights, drawn)


@pytest.mark.parametrize(("name", "ranks"), [("authors", 1), ("shards", 2)])
def test_what_synthesize_writes_for_the_authors_is_what_one_writes_by_hand(
    folders, drawn, name, ranks
):
    import argparse

    for rank in range(ranks):
        with torch.serialization.safe_globals([argparse.Namespace]):
            file = folders[name] / RANK.format(rank)
            got = torch.load(file, weights_only=True)["model"]
        want = authors_layout.rank_state(drawn, small(), rank, ranks)
        assert got.keys() == want.keys()
        for part, tensors in want.items():
            assert {n for n, t in got[part].items() if t is not None} == tensors.keys()
            assert all(torch.equal(got[part][n], t) for n, t in tensors.items()), part


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_head_of_a_fused_tensor_finds_its_own_place(folders, drawn, tmp_path, ranks):
    """Every head has a constant of its own, so a wrong order of heads or groups shows."""
    policy = dict(drawn)
    language, vision = small().language, small().vision
    for letter, heads, base in (
        ("q", language.num_attention_heads, 0), ("k", language.num_key_value_heads, 32),
        ("v", language.num_key_value_heads, 64),
    ):  # fmt: skip
        for kind in ("weight", "bias"):
            for layer in range(language.num_hidden_layers):
                name = f"vlm.model.layers.{layer}.self_attn.{letter}_proj.{kind}"
                policy[name] = torch.zeros_like(drawn[name])
                for head in range(heads):
                    rows = slice(head * language.head_dim, (head + 1) * language.head_dim)
                    policy[name][rows] = base + head + 1
    width = vision.hidden_size // vision.num_heads
    for kind in ("weight", "bias"):
        for layer in range(vision.depth):
            name = f"vlm.visual.blocks.{layer}.attn.qkv.{kind}"
            policy[name] = torch.zeros_like(drawn[name])
            for head in range(3 * vision.num_heads):
                policy[name][head * width : (head + 1) * width] = 128 + head
    weights = open_checkpoint(by_hand(tmp_path / "hand", folders, policy, ranks)).weights
    assert_same(weights, policy)
    k_proj = weights["vlm.model.layers.1.self_attn.k_proj.bias"].read()
    assert k_proj.unique_consecutive().tolist() == [33, 34]
    q_proj = weights["vlm.model.layers.0.self_attn.q_proj.weight"].read()
    assert q_proj[:, 5].unique_consecutive().tolist() == [1, 2, 3, 4]
    qkv = weights["vlm.visual.blocks.0.attn.qkv.bias"].read()
    assert qkv.unique_consecutive().tolist() == list(range(128, 140))


@torch.no_grad()
@pytest.mark.parametrize("name", ["published", "newer"])
def test_transformers_loads_the_language_model_and_computes_the_same(folders, name):
    theirs, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folders[name], dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    ours = load_checkpoint(folders[name]).model
    mine = ours.state_dict()
    for key, tensor in theirs.state_dict().items():
        if published_name(key) != "vlm.lm_head.weight":
            assert torch.equal(tensor, mine[published_name(key)]), key
    patches = normal(8 * 8, ours.config.vision.patch_dim)
    want = theirs.model.visual(patches, grid_thw=torch.tensor([[1, 8, 8]])).pooler_output
    assert relative_error(ours.vlm.visual(patches, (8, 8)), want) <= MODULE
    length = 12
    embeddings = normal(length, ours.config.language.hidden_size)
    mask = torch.from_numpy(prompt.attention_mask(0, 0, length, length))
    cos, sin = rotary(ours.config.language, [4, (2, 3), 2])
    _, got = ours.vlm.model(embeddings, ours.vlm.model.empty_past(0), mask, cos, sin)
    positions = torch.from_numpy(prompt.mrope_positions([4, (2, 3), 2])[0])[:, None]
    want = theirs.model.language_model(inputs_embeds=embeddings[None], position_ids=positions)
    assert relative_error(got, want.last_hidden_state[0]) <= MODULE


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_float_type_is_kept(folders, tmp_path, dtype):
    line = ["--config", folders["authors"] / "policy.json", "--dtype", dtype]
    for layout in ("hf", "authors"):
        out = tmp_path / layout
        assert command("synthesize", *line, "--layout", layout, "--out", out) == 0
        weights = open_checkpoint(out).weights
        assert {source.dtype for source in weights.values()} == {getattr(torch, dtype)}
        want = random_weights(small(), 0, outlier_channels=8, dtype=getattr(torch, dtype))
        assert_same(weights, {name: source.read() for name, source in want.items()})


def test_numbers_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    shape = (37, 8)
    whole = random_tensor("vlm.model.embed_tokens.weight", shape, 5)
    monkeypatch.setattr(models.random_weights, "DRAWN", 24)
    assert torch.equal(random_tensor("vlm.model.embed_tokens.weight", shape, 5), whole)


def test_outliers_are_tens_of_times_the_others_in_the_same_channels_of_all_norms(drawn):
    norms = [t.float().abs() for name, t in drawn.items() if "layernorm" in name]
    assert len(norms) == 4
    outliers = [set(torch.nonzero(n > 10 * n.median()).flatten().tolist()) for n in norms]
    assert len(outliers[0]) == OUTLIERS and all(found == outliers[0] for found in outliers)
    gains = [float(n[i] / n.median()) for n in norms for i in outliers[0]]
    assert all(20 < gain < 80 for gain in gains)  # 30 to 60, of weights 1 + 0.1 normal


@pytest.mark.parametrize("name", ["published", "shards"])
def test_a_tensor_that_is_read_is_mapped_alone_and_let_go(folders, name):
    weights = open_checkpoint(folders[name]).weights
    source = weights["vlm.model.layers.1.input_layernorm.weight"]
    file = str(source.stored[0].file.resolve())

    def mapped():
        lines = Path("/proc/self/maps").read_text().splitlines()
        return [line.split()[0].split("-") for line in lines if line.endswith(file)]

    assert mapped() == []
    value = source.read()
    pages = [(int(a, 16), int(b, 16)) for a, b in mapped()]
    assert any(a <= value.data_ptr() < b for a, b in pages)
    assert sum(b - a for a, b in pages) <= source.num_bytes + 2 * 4096
    del value
    assert mapped() == []


def test_tied_embeddings_written_out_are_left_out_by_name(copy, drawn, capsys):
    folder = copy("published")
    shard = next(folder.glob("*.safetensors"))
    tensors = load_file(shard)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, shard)
    edit_json(
        folder / "model.safetensors.index.json",
        lambda i: i["weight_map"].update({"lm_head.weight": shard.name}),
    )
    weights = open_checkpoint(folder).weights
    assert_same(weights, drawn)
    assert [(u.name, u.file.name) for u in weights.unused] == [("lm_head.weight", shard.name)]
    hand = copy("authors")
    lm_head = "text_decoder.output_layer.weight"
    edit_rank(hand, lambda c: c["model"]["vlm"].update({lm_head: torch.zeros(2, 2)}))
    assert_same(open_checkpoint(hand).weights, drawn)
    load_checkpoint(hand)
    assert f"left out, as this policy does not use it: vlm.{lm_head}, " in capsys.readouterr().err


def test_one_file_without_folders_is_read_and_so_is_one_without_model(copy, drawn):
    folder = copy("authors")
    shutil.move(folder / RANK.format(0), folder / "anchorvla.pt")
    shutil.rmtree(folder / "iter_0000001")
    (folder / "latest_checkpointed_iteration.txt").unlink()
    assert_same(open_checkpoint(folder).weights, drawn)

    def unwrap(content):
        content.update(content.pop("model"))

    edit_rank(folder, unwrap, pattern="anchorvla.pt")
    assert_same(open_checkpoint(folder).weights, drawn)


def test_the_parameters_are_in_the_policys_order(folders):
    assert list(open_checkpoint(folders["shards"]).weights) == list(parameter_shapes(small()))


def test_numbers_of_several_widths_are_aligned_in_one_file(tmp_path):
    kinds = (torch.bfloat16, torch.float64, torch.float32)
    values = {str(kind): normal(3, seed=i).to(kind) for i, kind in enumerate(kinds)}
    tensors = {
        name: Source(name, (3,), value.dtype, (), "made", partial(getattr, value, "data"))
        for name, value in values.items()
    }
    writers.write_safetensors(tmp_path / "a.safetensors", tensors)
    assert all(torch.equal(t, values[n]) for n, t in load_file(tmp_path / "a.safetensors").items())
    for each in stored_safetensors(tmp_path / "a.safetensors"):
        start = each.read.args[1]
        assert start % each.dtype.itemsize == 0 and torch.equal(each.read(), values[each.name])


def test_small_shards_are_as_good_as_one(folders, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "SHARD_BYTES", 200_000)
    assert command("import", folders["newer"], "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 5
    assert_same(open_checkpoint(tmp_path / "out").weights, drawn)
