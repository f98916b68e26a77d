"""The whole policy, camera to actions, against the composition of public libraries."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from models.anchorvla4d.presets import demo
from models.anchorvla4d.reference import Composition
from models.checkpoint import Checkpoint, reference
from tests.oracles import END_TO_END, IMAGE, Observation, act, patches_of, relative_error

CASES = [
    ("demo", (112, 112), "push the puck"),
    ("demo", (252, 252), "put the carrot on the plate"),
    ("demo", (256, 256), "reach"),
    ("demo", (196, 308), " ".join(6 * ["open the drawer, then close it"])),
    ("demo", (100, 50), "don't touch the 2 red cubes"),
    ("wide", (252, 252), "put the carrot on the plate"),
]


def by_library(oracle, seen):
    return oracle.act(**{f.name: getattr(seen, f.name) for f in dataclasses.fields(seen)})


@pytest.mark.parametrize(("name", "size", "instruction"), CASES)
def test_actions_equal_those_of_the_composition(build, tokenizer, name, size, instruction):
    pair = build(name)
    seen = Observation.random(pair.ours.config, size, instruction, seed=0)
    got, want = act(pair.ours, tokenizer, seen), by_library(pair.oracle, seen)
    head = pair.ours.config.head
    assert got.shape == want.shape == (head.prediction_horizon, head.action_dim)
    assert got.dtype == want.dtype == np.float32
    # Where the sampler's clip holds, both would agree whatever the networks say.
    assert (np.abs(want) < 0.99).mean() > 0.5
    assert relative_error(got, want) <= END_TO_END


@torch.no_grad()
def test_everything_observed_changes_the_actions(build):
    oracle = build("demo").oracle
    seen = Observation.random(demo(), (112, 112), "push the puck", seed=1)
    other = Observation.random(demo(), (112, 112), "open the drawer", seed=2)
    want = by_library(oracle, seen)
    for field in dataclasses.fields(seen):
        changed = dataclasses.replace(seen, **{field.name: getattr(other, field.name)})
        assert relative_error(by_library(oracle, changed), want) > 10 * END_TO_END, field.name


@torch.no_grad()
def test_the_composition_reads_our_patches_and_shares_our_weights(build):
    pair = build("demo")
    seen = Observation.random(demo(), (120, 90), "push", seed=3)
    inputs = pair.oracle.prepare(**dataclasses.asdict(seen))
    ours = torch.cat([patches_of(seen.anchor), patches_of(seen.frame)])
    assert torch.equal(inputs.pixel_values, ours)
    mine = {t.data_ptr() for t in pair.ours.state_dict().values()}
    assert {t.data_ptr() for t in pair.oracle.state_dict().values()} == mine


@torch.no_grad()
def test_in_bfloat16_it_hears_and_sees_the_same_and_leaves_our_weights_alone(build, tokenizer):
    ours = build("demo").ours
    seen = Observation.random(demo(), (112, 112), "push the puck", seed=0)
    exact, rounded = (Composition(ours, tokenizer, IMAGE) for _ in range(2))
    inputs = exact.prepare(**dataclasses.asdict(seen))
    rounded.cast(torch.bfloat16)
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    for rotary in (rounded.qwen.language_model.rotary_emb, rounded.qwen.visual.rotary_pos_emb):
        assert rotary.inv_freq.dtype == torch.float32
    assert rounded(*inputs).dtype == torch.float32
    sixteen, thirty_two = (
        c.qwen(
            input_ids=inputs.input_ids,
            position_ids=inputs.position_ids,
            pixel_values=inputs.pixel_values,
            image_grid_thw=inputs.image_grid_thw,
        ).last_hidden_state.float()
        for c in (rounded, exact)
    )
    # Some twenty roundings of at most 2^-9 one after another, which add up like a random walk.
    assert relative_error(sixteen, thirty_two) < 0.03


def test_images_of_two_sizes_are_refused(build):
    seen = Observation.random(demo(), (112, 112), "push", seed=3)
    wider = dataclasses.replace(seen, anchor=np.zeros((112, 140, 3), np.uint8))
    with pytest.raises(ValueError, match=r"give \[8, 10\] and \[8, 8\] patches"):
        build("demo").oracle.prepare(**dataclasses.asdict(wider))


def test_a_tokenizer_without_image_pads_is_refused(build, tokenizer):
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] != "<|image_pad|>"]
    other = type(tokenizer).from_str(json.dumps(spec))
    with pytest.raises(ValueError, match=r"no token '<\|image_pad\|>'"):
        Composition(build("demo").ours, other, IMAGE)


def test_the_reference_takes_and_gives_robot_units(build, tokenizer, tmp_path):
    pair = build("demo")
    low, high = np.array([-1, 0, 2, 0.0]), np.array([1, 0.5, 4, 1.0])
    bounds = {"min": low.tolist(), "max": high.tolist()}
    checkpoint = Checkpoint(
        tmp_path,
        demo(),
        pair.ours,
        tokenizer,
        IMAGE,
        {"r": {"state": bounds, "action": bounds}},
        "",
    )
    seen = Observation.random(demo(), (112, 112), "push the puck", seed=4)
    want = by_library(pair.oracle, seen) * (high - low) / 2 + (high + low) / 2
    got = reference(
        checkpoint,
        anchor=seen.anchor,
        frame=seen.frame,
        instruction=seen.instruction,
        state=(seen.state * (high - low) / 2 + (high + low) / 2).astype(np.float32),
        noise=seen.noise,
    )
    assert got.dtype == np.float32
    assert relative_error(got, want) <= END_TO_END
