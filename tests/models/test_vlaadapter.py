"""VLA-Adapter Pro, cameras to actions, against the composition of transformers; and its parts."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import runtime
from export.measure import Modules, golden_of, made_up
from models.checkpoint import load_checkpoint
from models.families import CONFIGS, family_of
from models.init import image_of
from models.networks.bridge import turn
from models.prismatic_chat import PromptConfig
from models.vlaadapter.family import prompt, published_prompt
from models.vlaadapter.model import actions
from models.vlaadapter.split import split
from tests.export.conftest import random_bundle, random_checkpoint
from tests.oracles import END_TO_END, MODULE, beside_libraries, relative_error, with_fields
from tests.warm_and_cold import redone

TINY, THIN = CONFIGS["vlaadapter-tiny"](), CONFIGS["vlaadapter-thin"]()
POLICIES = {
    "two views": TINY,
    "one view": dataclasses.replace(TINY, views=("frame",)),
    "three views": dataclasses.replace(TINY, views=("frame", "left", "right")),
    "other towers": dataclasses.replace(
        TINY,
        vision=dataclasses.replace(
            TINY.vision,
            featurizer=dataclasses.replace(TINY.vision.featurizer, reg_tokens=2, depth=4),
            image_size=84,
        ),
    ),
    "published widths": THIN,
}
INSTRUCTIONS = ("reach", "Push the PUCK", " ".join(6 * ["open the drawer, then close it"]))


@pytest.fixture(scope="module")
def policies(tokenizer):
    return beside_libraries(POLICIES, tokenizer, lambda name: image_of(POLICIES[name]))


def observed(config, seed=0, size=(120, 160)):
    random = np.random.default_rng(seed)
    seen = {name: random.integers(0, 256, (*size, 3), np.uint8) for name in config.views}
    return seen | {"state": random.uniform(-1, 1, config.state_dim).astype(np.float32)}


def act(model, tokenizer, instruction, seen):
    parts = prompt(model.config, tokenizer)
    tail = parts.tail_ids(tokenizer, instruction)
    return actions(model, parts, image_of(model.config), tail, seen)


@torch.no_grad()
def by_libraries(oracle, instruction, seen):
    return oracle(*oracle.prepare(instruction=instruction, **seen)).numpy()


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("name", POLICIES)
def test_actions_equal_those_of_the_libraries(policies, tokenizer, name, instruction):
    ours, oracle = policies(name)
    seen = observed(ours.config)
    want = by_libraries(oracle, instruction, seen)
    assert want.shape == ours.config.chunk
    assert relative_error(act(ours, tokenizer, instruction, seen), want) <= END_TO_END


@pytest.mark.parametrize("name", ["two views", "published widths"])
def test_towers_and_projector_equal_those_of_the_libraries(policies, name):
    """Each alone: where a head hardly looks at them, its actions would not tell."""
    ours, oracle = policies(name)
    side, size = ours.config.vision.image_size, ours.config.vision.patch_size
    picture = torch.from_numpy(np.random.default_rng(1).random((3, side, side), np.float32))
    n = side // size
    cut = picture.reshape(3, n, size, n, size).permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1)
    both = (ours.config.vision.featurizer, ours.config.vision.fused_featurizer)
    given = [
        (picture - torch.tensor(c.image_mean)[:, None, None])
        / torch.tensor(c.image_std)[:, None, None]
        for c in both
    ]
    with torch.no_grad():
        prefix = both[0].num_prefix_tokens
        wants = [
            oracle.first(given[0][None]).last_hidden_state[0, prefix:],
            oracle.second(given[1][None]).last_hidden_state[0],
        ]
        patches = (cut - 0.5) / 0.5  # as the host normalizes, for the second tower
        towers = (ours.vision_backbone.featurizer, ours.vision_backbone.fused_featurizer)
        for tower, want in zip(towers, wants, strict=True):
            assert relative_error(tower(patches), want) <= MODULE
        assert torch.equal(ours.vision_backbone(patches), torch.cat(list(map(
            lambda tower: tower(patches), towers)), dim=-1))  # fmt: skip


def test_every_input_moves_the_actions(policies, tokenizer):
    """Each patch of each view, the last of the last one too, and every number of the state."""
    ours, _ = policies("two views")
    seen = observed(ours.config, size=(56, 56))
    before = act(ours, tokenizer, "reach", seen)
    for view in ours.config.views:
        for row, column in ((0, 0), (0, 3), (3, 3)):
            moved = {**seen, view: seen[view].copy()}
            patch = moved[view][14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
            patch[:] = 255 - patch
            assert relative_error(act(ours, tokenizer, "reach", moved), before) > END_TO_END
    for number in range(ours.config.state_dim):
        moved = {**seen, "state": seen["state"].copy()}
        moved["state"][number] *= -1
        assert relative_error(act(ours, tokenizer, "reach", moved), before) > END_TO_END


def test_what_is_asked_is_put_in_small_letters_and_the_text_is_one(policies, tokenizer):
    ours, _ = policies("two views")
    parts = prompt(ours.config, tokenizer)
    ids = parts.tail_ids(tokenizer, "  Push the PUCK ")
    assert ids == parts.tail_ids(tokenizer, "push the puck")
    whole = PromptConfig().before + PromptConfig().text.replace("{instruction}", "push the puck")
    encoded = tokenizer.encode(whole, add_special_tokens=False).ids
    queries = ours.config.head.num_queries - 1
    assert [*parts.before[0], *ids[:-queries]] == encoded
    first = ours.config.language.vocab_size
    assert ids[-queries:] == tuple(range(first, first + queries)), "the last one is never read"


def test_as_many_tokens_as_published_are_counted_on():
    """By hand: system 1, newline 1, "You are Qwen, created by Alibaba Cloud. You are a helpful
    assistant." 17, <|im_end|> 1, newline 1, <|im_start|> 1, user 1, newline 1; what is asked 8,
    with its question mark, around an instruction of some 7; <|im_end|>, newline, <|im_start|>,
    assistant, newline."""
    libero = CONFIGS["vlaadapter-libero"]()
    parts, tail = published_prompt(libero)
    assert 35 <= tail - len(parts.end_ids) <= 46
    assert len(parts.end_ids) == 63 and parts.before == ((0,), ())


def test_the_published_sizes_hold_the_published_numbers():
    """In millions: towers without the blocks that never run, as timm counts them; the head's 217.9
    less 24 layers of 896 to 1792 that are never used."""
    libero = CONFIGS["vlaadapter-libero"]()
    model = family_of(libero).shapes(libero)
    found = {
        name: sum(p.numel() for p in model.get_submodule(name).parameters()) / 1e6
        for name in (
            "vision_backbone.featurizer",
            "vision_backbone.fused_featurizer",
            "action_head",
        )
    }
    assert found["vision_backbone.featurizer"] == pytest.approx(290.6, abs=0.05)
    assert found["vision_backbone.fused_featurizer"] == pytest.approx(397.2, abs=0.05)
    unused = 24 * (896 + 1) * 1792 / 1e6
    assert found["action_head"] == pytest.approx(217.9 - unused, abs=0.05)


def test_a_pair_of_neighbours_turns_by_the_angles_of_two_halves():
    """From the definition, number by number."""
    x = torch.arange(1.0, 9.0)[None]
    angles = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4])[None]
    turned = turn(x, angles.cos(), angles.sin())[0]
    for pair in range(4):
        a, b = x[0, 2 * pair], x[0, 2 * pair + 1]
        first, second = angles[0, 2 * pair], angles[0, 2 * pair + 1]
        assert turned[2 * pair] == pytest.approx(float(a * first.cos() - b * first.sin()))
        assert turned[2 * pair + 1] == pytest.approx(float(b * second.cos() + a * second.sin()))


def test_parts_of_unequal_depth_put_their_layers_where_the_head_reads_them(shared_folder):
    checkpoint = load_checkpoint(random_checkpoint(shared_folder, "vlaadapter-tiny"))
    golden = golden_of(checkpoint, made_up(checkpoint, (112, 112)), seed=1)
    whole, cut = (
        Modules(
            checkpoint,
            split(checkpoint.model, checkpoint.parts, checkpoint.image, (112, 112), 96, layers),
        ).tensors(golden)
        for layers in ({}, {"language": 2})
    )
    assert np.array_equal(whole["suffix_states"], cut["suffix_states"])
    assert np.array_equal(whole["actions"], cut["actions"])


@pytest.fixture(scope="module")
def bundle(shared_folder):
    return random_bundle(shared_folder, "vlaadapter-tiny")


VIEW = ("{}_patches", "{}_featurizer", "{}_fused_featurizer", "{}_projector", "read_{}", "{}_task")
TEXT = ("suffix_embeddings", "suffix_rotary", "suffix_mask", "places")
END = ("bridge", "denoised_actions", "actions")
REDONE = {
    "frame": {s.format("frame") for s in VIEW} | {"read_wrist", "wrist_task", "suffix", *END},
    "wrist": {s.format("wrist") for s in VIEW} | {"suffix", *END},
    "instruction": {*TEXT, "suffix", *END},
    "state": {"policy_state", *END},
}
"""As the table of families has it: a view redoes its towers, its call and those behind it; the
text its own call; the state the end of the head."""


@pytest.mark.parametrize("changed", REDONE)
def test_a_new_input_redoes_what_the_table_says_and_no_more(bundle, changed):
    seen, other = (observed(TINY, seed=seed, size=(112, 112)) for seed in (0, 1))
    assert redone(bundle, seen, changed, other) == REDONE[changed]


def test_a_bundle_hears_capitals_as_small_letters(bundle):
    seen = observed(TINY, size=(112, 112))
    with runtime.load(bundle) as policy:
        with policy.start(instruction="Push the PUCK") as episode:
            loud = episode.act(seen).actions
            episode.say("push the puck")
            episode.act(seen)
            assert not episode.stats.last_s, "the same to the policy"
        with policy.start(instruction="push the puck") as episode:
            assert np.array_equal(episode.act(seen).actions, loud)


def test_pictures_of_another_size_than_the_towers_are_refused(policies, tokenizer):
    ours, _ = policies("two views")
    image = dataclasses.replace(image_of(TINY), size=(112, 112))
    with pytest.raises(ValueError, match="8x8 patches, and the towers have places for 4x4"):
        split(ours, prompt(TINY, tokenizer), image, (112, 112), 80)


def test_the_bundle_says_nothing_of_what_its_prompt_does_not_do(bundle):
    """Other families' manifests stay as they are: a setting that is not set is not written."""
    given = json.loads((bundle / "manifest.json").read_text())["graph"]["inputs"]["instruction"]
    assert given["prompt"]["lowercase"] is True
    assert len(given["prompt"]["end_ids"]) == TINY.head.num_queries - 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision.featurizer.depth": 1}, "two blocks at least"),
        ({"vision.featurizer.num_heads": 5}, "vision.featurizer.num_heads=5 must divide"),
        ({"vision.fused_featurizer.image_std": (0.5, 0.0, 0.5)}, "vision.fused_featurizer.image_s"),
        ({"vision.image_size": 60}, "vision.patch_size=14 must divide vision.image_size=60"),
        ({"vision.out_hidden_size": 64}, "vision.out_hidden_size=64 must equal"),
        ({"head.num_heads": 3}, "head.num_heads=3 must divide"),
        ({"head.num_heads": 128}, "must be even"),
        ({"head.state_dim": 4}, "normalization.state has 3 modes"),
        ({"views": ("frame", "frame")}, "each once"),
        ({"prompt.text": "do it"}, "prompt.text must hold"),
        ({"model_type": "qwenoft"}, "model_type must be 'vlaadapter'"),
    ],
)
def test_a_configuration_that_does_not_fit_together_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        with_fields(TINY, changes)
