"""The language model, its positions and its two-call prefill against transformers."""

import numpy as np
import pytest
import torch

from models.anchorvla4d.prompt import prompt as prompt_parts
from models.networks.vision_language import rotary
from runtime import prompt
from tests.oracles import FAINT, MODULE, normal, relative_error

GRIDS = [(18, 18), (16, 16), (14, 22), (22, 14), (36, 36), (2, 2)]


def segments_of(parts, grid, num_tail):
    image = (grid[0] // 2, grid[1] // 2)
    prefix = [len(parts.before[0]), image, len(parts.image_end)]
    return prefix, [len(parts.before[1]), image, num_tail]


def prompt_of(pair, grid, instruction):
    """Token ids, the transformers positions and our segments of a whole prompt."""
    oracle = pair.oracle
    ids = torch.tensor([oracle.input_ids(grid[0] * grid[1] // 4, instruction)])
    positions, _ = oracle.qwen.get_rope_index(
        ids, (ids == oracle.image_pad_id).int(), image_grid_thw=torch.tensor([[1, *grid]] * 2)
    )
    parts = prompt_parts(pair.ours.config, oracle.tokenizer)
    tail = prompt.encode_tail(oracle.tokenizer, parts.tail, parts.end_ids, instruction)
    prefix, suffix = segments_of(parts, grid, len(tail))
    return ids, positions, prefix, suffix


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_words", [1, 7, 60])
def test_positions_equal_those_of_transformers(build, grid, num_words):
    instruction = " ".join(["carrot"] * num_words)
    ids, want, prefix, suffix = prompt_of(build("demo"), grid, instruction)
    assert prompt.num_tokens(prefix + suffix) == ids.shape[1]
    first, following = prompt.mrope_positions(prefix)
    second, _ = prompt.mrope_positions(suffix, start=following)
    assert np.array_equal(np.concatenate([first, second], axis=1), want[:, 0].numpy())


@pytest.mark.parametrize("name", ["demo", "wide"])
@pytest.mark.parametrize("grid", [(18, 18), (14, 22)])
def test_rotary_tables_equal_those_of_transformers(build, name, grid):
    pair = build(name)
    _, positions, prefix, suffix = prompt_of(pair, grid, "push the puck")
    want = pair.oracle.qwen.language_model.rotary_emb(torch.zeros(1), positions)
    config = pair.ours.config.language
    for got, expected in zip(rotary(config, prefix + suffix), want, strict=True):
        assert got.dtype == torch.float32
        assert relative_error(got, expected[0]) <= MODULE


@pytest.mark.parametrize(
    ("name", "grid", "instruction", "scale"),
    [
        ("demo", (18, 18), "push", 1),
        ("demo", (14, 22), " ".join(12 * ["reach the red marker"]), 1),
        ("demo", (36, 36), "push the puck", 1),
        ("demo", (18, 18), "push", FAINT),
        ("wide", (18, 18), "put the carrot on the plate", 1),
    ],
)
@torch.no_grad()
def test_a_whole_prompt_equals_transformers(build, name, grid, instruction, scale):
    pair = build(name)
    config = pair.ours.config.language
    ids, positions, prefix, suffix = prompt_of(pair, grid, instruction)
    length = ids.shape[1]
    embeddings = scale * normal(length, config.hidden_size)
    mask = torch.from_numpy(prompt.attention_mask(0, 0, length, length))
    cos, sin = rotary(config, prefix + suffix)
    _, got = pair.ours.vlm.model(embeddings, pair.ours.vlm.model.empty_past(0), mask, cos, sin)
    want = pair.oracle.qwen.language_model(inputs_embeds=embeddings[None], position_ids=positions)
    assert relative_error(got, want.last_hidden_state[0]) <= MODULE


@pytest.mark.parametrize("spare", [0, 1, 30])
@pytest.mark.parametrize("name", ["demo", "wide"])
@torch.no_grad()
def test_prefix_then_suffix_in_padded_slots_equals_one_pass(build, name, spare):
    pair = build(name)
    config, model = pair.ours.config.language, pair.ours.vlm.model
    _, positions, prefix, suffix = prompt_of(pair, (18, 18), "open the drawer")
    num_prefix, num_suffix = prompt.num_tokens(prefix), prompt.num_tokens(suffix)
    slots = max(num_prefix, num_suffix) + spare
    embeddings = normal(num_prefix + num_suffix, config.hidden_size)
    want = pair.oracle.qwen.language_model(inputs_embeds=embeddings[None], position_ids=positions)
    want_LD = want.last_hidden_state[0]
    tables = rotary(config, prefix + suffix)

    def call(rows, num_past, past):
        """One call of the engine: `rows` of the prompt, then garbage up to `slots`."""
        count = rows.stop - rows.start
        garbage = 10 * normal(slots - count, config.hidden_size, seed=1)
        cos, sin = (
            torch.cat([table[rows], normal(slots - count, config.head_dim, seed=2)])
            for table in tables
        )
        mask = torch.from_numpy(prompt.attention_mask(num_past, slots, count, slots))
        kv, hidden = model(torch.cat([embeddings[rows], garbage]), past, mask, cos, sin)
        assert torch.isfinite(hidden).all() and torch.isfinite(kv).all()
        return kv, hidden[:count]

    kv, first = call(
        slice(0, num_prefix), 0, 10 * normal(*pair.ours.vlm.model.empty_past(slots).shape)
    )
    assert kv.shape == pair.ours.vlm.model.empty_past(slots).shape
    _, second = call(slice(num_prefix, num_prefix + num_suffix), num_prefix, kv)
    assert relative_error(first, want_LD[:num_prefix]) <= MODULE
    assert relative_error(second, want_LD[num_prefix:]) <= MODULE
