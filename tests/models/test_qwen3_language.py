"""Qwen3-VL's decoder, its positions and its two-call prefill against transformers."""

import numpy as np
import pytest
import torch

from models.networks.engines import language_engines
from models.networks.vision_language import rotary, rotary_settings
from runtime import prompt
from tests.oracles import FAINT, MODULE, normal, relative_error
from tests.qwen3 import levels_of, pair_of, positions_of, prompt_of, small

PICTURES = {
    "one": [(14, 14)],
    "wide one": [(6, 22)],
    "high one": [(22, 6)],
    "of three shapes": [(8, 8), (4, 12), (14, 2)],
}


def language_model(pair, embeddings, positions, is_picture, levels):
    """Final hidden states of transformers."""
    features = [level[is_picture] for level in levels]
    return pair.oracle.language_model(
        inputs_embeds=embeddings[None],
        position_ids=positions,
        visual_pos_masks=is_picture[None],
        deepstack_visual_embeds=features,
    ).last_hidden_state[0]


@pytest.mark.parametrize("pictures", PICTURES)
def test_positions_equal_those_of_transformers(qwen3, pictures):
    seen = prompt_of(PICTURES[pictures])
    got, following = prompt.mrope_positions(seen.segments)
    want = positions_of(qwen3("small"), seen)[:, 0].numpy()
    assert np.array_equal(got, want) and following == want.max() + 1


@pytest.mark.parametrize("name", ["small", "wide"])
@pytest.mark.parametrize("pictures", PICTURES)
def test_rotary_tables_equal_those_of_transformers(qwen3, name, pictures):
    pair, seen = qwen3(name), prompt_of(PICTURES[pictures])
    want = pair.oracle.language_model.rotary_emb(torch.zeros(1), positions_of(pair, seen))
    for got, expected in zip(rotary(pair.language, seen.segments), want, strict=True):
        assert got.dtype == torch.float32
        assert relative_error(got, expected[0]) <= MODULE


def test_the_settings_of_the_rotary_function_say_that_sections_take_turns(qwen3):
    assert rotary_settings(qwen3("wide").language) == {
        "theta": 5e6,
        "sections": [24, 20, 20],
        "interleaved": True,
    }


@pytest.mark.parametrize(
    ("name", "pictures", "scale"),
    [
        ("small", "one", 1),
        ("small", "of three shapes", 1),
        ("small", "wide one", FAINT),
        ("wide", "one", 1),
        ("wide", "of three shapes", 1),
    ],
)
@torch.no_grad()
def test_a_whole_prompt_equals_transformers(qwen3, name, pictures, scale):
    pair, seen = qwen3(name), prompt_of(PICTURES[pictures])
    length = seen.ids.shape[1]
    embeddings = scale * normal(length, pair.language.hidden_size)
    levels = levels_of(pair, seen.is_picture)
    mask = torch.from_numpy(prompt.attention_mask(0, 0, length, length))
    tables = rotary(pair.language, seen.segments)
    model = pair.ours.model
    kv, got = model(embeddings, model.empty_past(0), mask, *tables, *levels)
    want = language_model(pair, embeddings, positions_of(pair, seen), seen.is_picture, levels)
    assert relative_error(got, want) <= MODULE
    c = pair.language
    assert kv.shape == (length, c.num_hidden_layers, 2, c.num_key_value_heads, c.head_dim)


def chain(specs, given, levels, past):
    """One call of the engine, or of its parts in a row; past and new keys are joined layers."""
    at, x, kv = 0, given["embeddings"], []
    for spec in specs.values():
        count = spec.inputs["past"].shape[1]
        own = {"x": x, "past": past[:, at : at + count]} | levels | given
        new, x = spec.module(*(own[port] for port in spec.inputs))
        kv.append(new)
        at += count
    return torch.cat(kv, dim=1), x


@pytest.mark.parametrize(
    ("name", "spare", "per_part"),
    [("small", 0, None), ("small", 7, None), ("small", 1, 1), ("small", 3, 3), ("wide", 2, None)],
)
@torch.no_grad()
def test_two_calls_with_a_cache_equal_one_pass(qwen3, name, spare, per_part):
    """As a split makes them: a picture in each, padded slots full of garbage."""
    pair = qwen3(name)
    seen = prompt_of([(8, 10), (6, 12)])
    num_prefix = prompt.num_tokens(seen.segments[:2])
    length, width = seen.ids.shape[1], pair.language.hidden_size
    slots = max(num_prefix, length - num_prefix) + spare
    embeddings, levels = normal(length, width), levels_of(pair, seen.is_picture)
    want = language_model(pair, embeddings, positions_of(pair, seen), seen.is_picture, levels)
    tables = rotary(pair.language, seen.segments)
    specs = language_engines(pair.ours.model, slots, per_part)

    def call(rows, num_past, past):
        count = rows.stop - rows.start

        def padded(values, seed):
            garbage = 10 * normal(slots - count, values.shape[1], seed=seed)
            return torch.cat([values[rows], garbage])

        given = {"embeddings": padded(embeddings, 1)}
        given |= {port: padded(t, 2) for port, t in zip(("cos", "sin"), tables, strict=True)}
        given["mask"] = torch.from_numpy(prompt.attention_mask(num_past, slots, count, slots))
        added = {f"deepstack_{k}": padded(level, 3) for k, level in enumerate(levels)}
        kv, hidden = chain(specs, given, added, past)
        assert torch.isfinite(hidden).all() and torch.isfinite(kv).all()
        return kv, hidden[:count]

    empty = pair.ours.model.empty_past(slots)
    kv, first = call(slice(0, num_prefix), 0, 10 * normal(*empty.shape))
    assert kv.shape == empty.shape
    _, second = call(slice(num_prefix, length), num_prefix, kv)
    assert relative_error(first, want[:num_prefix]) <= MODULE
    assert relative_error(second, want[num_prefix:]) <= MODULE


def test_a_level_is_read_by_the_part_that_holds_its_layer(qwen3):
    def levels(per_part):
        specs = language_engines(qwen3("small").ours.model, 8, per_part)
        return [[p for p in spec.inputs if p.startswith("deep")] for spec in specs.values()]

    assert levels(None) == [["deepstack_0", "deepstack_1"]]
    assert levels(3) == [["deepstack_0", "deepstack_1"], []]
    assert levels(1) == [["deepstack_0"], ["deepstack_1"], [], []]
    spec = language_engines(qwen3("small").ours.model, 8)["language"]
    assert spec.inputs["deepstack_1"].shape == spec.inputs["embeddings"].shape == (8, 80)
    assert list(spec.inputs)[:5] == ["embeddings", "past", "mask", "cos", "sin"]


@pytest.mark.parametrize("padding", [1, 30])
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(padding):
    """As a shorter prompt in a batch has it: the mask and the positions of transformers."""
    pair, seen = pair_of(small()), prompt_of(PICTURES["of three shapes"])
    ids = torch.cat([torch.zeros(1, padding, dtype=torch.long), seen.ids], dim=1)
    is_token = torch.arange(ids.shape[1])[None] >= padding
    kinds = (ids == seen.ids[0, 3]).int()
    positions, _ = pair.oracle.get_rope_index(
        ids, kinds, image_grid_thw=seen.grids, attention_mask=is_token.long()
    )
    patches = normal(int(seen.grids.prod(dim=1).sum()), pair.vision.patch_dim)
    want = pair.oracle(
        input_ids=ids,
        position_ids=positions,
        attention_mask=is_token.long(),
        pixel_values=patches,
        image_grid_thw=seen.grids,
        use_cache=False,
    ).last_hidden_state[0, padding:]
    counts = [int(grid.prod()) for grid in seen.grids]
    looks = [
        pair.ours.visual(part, tuple(grid[1:].tolist()))
        for part, grid in zip(patches.split(counts), seen.grids, strict=True)
    ]
    rows = pair.ours.model.embed_tokens(seen.ids[0])
    levels = [torch.zeros_like(rows) for _ in range(2)]
    for target, values in zip((rows, *levels), zip(*looks, strict=True), strict=True):
        target[seen.is_picture] = torch.cat(values)
    length = len(rows)
    mask = torch.from_numpy(prompt.attention_mask(0, 0, length, length))
    tables = rotary(pair.language, seen.segments)
    model = pair.ours.model
    _, got = model(rows, model.empty_past(0), mask, *tables, *levels)
    assert relative_error(got, want) <= 10 * MODULE  # of a vision tower and a decoder in a row
