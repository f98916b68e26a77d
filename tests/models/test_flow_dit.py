"""The flow-matching head against a composition of diffusers' own blocks."""

import dataclasses
import json

import pytest
import torch

from models.fields import parse
from models.networks.config import FlowDiTConfig
from models.networks.flow_dit import FlowDiT, coefficients_of, euler_step, inference_times
from models.qwengr00t.reference import Head, composed_name
from tests.oracles import FAINT, MODULE, normal, relative_error

CONTEXT = 48
SMALL = FlowDiTConfig(
    num_layers=4, num_heads=3, head_dim=8, action_dim=3, action_horizon=4, state_dim=5,
    hidden_size=16, output_dim=20, num_future_tokens=3, max_seq_len=9,
)  # fmt: skip
BASE = FlowDiTConfig(num_layers=4, num_heads=12, head_dim=64, action_dim=7, action_horizon=16)
LARGE = dataclasses.replace(BASE, num_layers=2, num_heads=32, head_dim=48, state_dim=7)
CONFIGS = {
    "small": (SMALL, CONTEXT),
    "no state": (dataclasses.replace(SMALL, state_dim=None), CONTEXT),
    "all cross": (dataclasses.replace(SMALL, interleave_self_attention=False), CONTEXT),
    "no positions": (dataclasses.replace(SMALL, add_pos_embed=False), CONTEXT),
    "7 steps": (dataclasses.replace(SMALL, num_inference_timesteps=7), CONTEXT),
    "DiT-B": (BASE, 2048),
    "DiT-L": (LARGE, 2560),
}


class Oracle(Head):
    """The head composed of diffusers' blocks, alone."""

    @torch.no_grad()
    def forward(self, context, noise, state=None, mask=None):
        x, steps = noise[None], self.config.num_inference_timesteps
        state = None if state is None else state[None]
        mask = torch.ones(1, len(context), dtype=torch.bool) if mask is None else mask[None]
        for k in range(steps):
            t = int(k / steps * self.config.num_timestep_buckets)
            x = x + super().forward(x, t, context[None], mask, state) / steps
        return x[0]


WRITE_ROWS = (
    "action_encoder.layer3", "future_tokens", "position_embedding", "state_encoder.layer2",
    "attn1.to_out", "ff.net.2",
)  # fmt: skip


def pair(name, *, faint=False):
    """Ours with random weights, and the oracle with the same.

    Args:
        faint: what is written to the rows is small, so that their mean square is near the epsilons
            of the norms: wrong ones would pass unseen where it is 1.
    """
    config, context = CONFIGS[name]
    ours, oracle = FlowDiT(config, context), Oracle(config, context)
    random = torch.Generator().manual_seed(0)
    for key, tensor in ours.state_dict().items():
        scale = 1.5 / tensor.shape[-1] ** 0.5 if tensor.ndim > 1 else 0.3
        scale *= FAINT if faint and any(part in key for part in WRITE_ROWS) else 1.0
        tensor.copy_(torch.randn(tensor.shape, generator=random) * scale)
    weights = {f"action_head.{key}": value for key, value in ours.state_dict().items()}
    renamed = {composed_name(key).removeprefix("head."): value for key, value in weights.items()}
    oracle.load_state_dict(renamed, strict=True)
    return ours.eval().requires_grad_(False), oracle.eval().requires_grad_(False)


def given(config, context, length=11):
    state = normal(config.state_dim, seed=3) if config.state_dim else None
    noise = normal(config.action_horizon, config.action_dim, seed=2)
    return normal(length, context, seed=1), noise, state


@pytest.mark.parametrize("name", CONFIGS)
def test_the_chunk_equals_that_of_diffusers_blocks(name):
    ours, oracle = pair(name)
    observed = given(*CONFIGS[name])
    want = oracle(*observed)
    assert relative_error(ours(*observed), want) <= MODULE
    # The weights are large enough for the head to do more than pass its noise on.
    assert relative_error(observed[1], want) > 0.1


@pytest.mark.parametrize("name", ["small", "all cross"])
def test_faint_rows_show_the_epsilons_of_the_norms(name):
    ours, oracle = pair(name, faint=True)
    observed = given(*CONFIGS[name])
    assert relative_error(ours(*observed), oracle(*observed)) <= MODULE


@pytest.mark.parametrize("num_padded", [1, 6])
def test_padded_language_rows_change_nothing(num_padded):
    """On either side, whatever stands in them; the published mask does the same."""
    ours, oracle = pair("small")
    context, noise, state = given(*CONFIGS["small"])
    padding = 10 * normal(num_padded, CONTEXT, seed=9)
    want = oracle(context, noise, state)
    for padded, real in (
        (torch.cat([padding, context]), slice(num_padded, None)),
        (torch.cat([context, padding]), slice(0, len(context))),
    ):
        mask = torch.full((len(padded),), -1e9)
        mask[real] = 0.0
        x, keys_values, row = noise, ours.keys_values(padded), ours.state_row(state)
        for step in ours.step_tables():
            x = x + ours.velocity(x, keys_values, mask, step, row) / 4
        assert relative_error(x, want) <= MODULE
        published = torch.zeros(len(padded), dtype=torch.bool)
        published[real] = True
        assert relative_error(oracle(padded, noise, state, published), want) <= MODULE


def test_which_blocks_attend_to_the_language_model_shows_in_their_keys():
    """Older runs attend to it in all of them, and their configurations do not say so."""
    for name, wanted in (("small", (CONTEXT, 24, CONTEXT, 24)), ("all cross", (CONTEXT,) * 4)):
        ours, _ = pair(name)
        keys = [block.attn1.to_k.in_features for block in ours.model.blocks]
        assert tuple(keys) == wanted
        held = ours.keys_values(normal(5, CONTEXT))
        assert held.shape == (5, wanted.count(CONTEXT), 2, 24)


def test_heads_of_odd_width_are_taken_where_the_sinusoids_fit():
    config = dataclasses.replace(SMALL, num_heads=2, head_dim=5)
    assert config.width == 10
    assert FlowDiT(config, CONTEXT)(*given(config, CONTEXT)).shape == (4, 3)


def test_a_batch_is_its_parts():
    ours, _ = pair("small")
    context, _, state = given(*CONFIGS["small"])
    noises = normal(3, 4, 3, seed=5)
    given_all = (ours.keys_values(context), torch.zeros(len(context)), ours.step_tables()[1])
    velocity = ours.velocity(noises, *given_all, ours.state_row(state))
    for noise, got in zip(noises, velocity, strict=True):
        alone = ours.velocity(noise, *given_all, ours.state_row(state))
        assert relative_error(got, alone) <= MODULE


@pytest.mark.parametrize("name", ["small", "7 steps"])
def test_what_is_left_over_takes_the_place_of_what_the_velocity_points_at(name):
    """Restated from the end: in flow matching a velocity v at time t points at x + (1 - t) v."""
    ours, oracle = pair(name)
    context, noise, state = given(*CONFIGS[name])
    leftover, steps = normal(*noise.shape, seed=6), ours.config.num_inference_timesteps
    weights = torch.tensor([1.0, 0.7, 0.2, 0.0])[:, None]
    mask = torch.ones(1, len(context), dtype=torch.bool)
    x = noise[None]
    for k in range(steps):
        bucket, left = int(k / steps * 1000), 1 - k / steps
        velocity = Head.forward(oracle, x, bucket, context[None], mask, state[None])
        end = weights * leftover + (1 - weights) * (x + left * velocity)
        x = x + (end - x) / left / steps
    got = ours(context, noise, state, leftover, weights)
    assert relative_error(got, x[0]) <= MODULE
    assert relative_error(got[0], leftover[0]) <= MODULE
    nothing = ours(context, noise, state, leftover, torch.zeros_like(weights))
    assert torch.equal(nothing, ours(context, noise, state))


def test_a_row_that_is_left_over_goes_straight_from_its_noise():
    velocity, leftover, x = (normal(2, 3, seed=seed) for seed in (1, 2, 3))
    once = euler_step(x, velocity, torch.tensor([0.25, 0.75]), leftover, torch.ones(2, 1))
    assert torch.allclose(once, x + (leftover - x) / 3, atol=1e-6)


def test_coefficients_are_the_length_of_a_step_and_of_the_way():
    assert coefficients_of(BASE).tolist() == [[0.25, 1.0], [0.25, 0.75], [0.25, 0.5], [0.25, 0.25]]


def test_times_are_whole_numbers_of_the_thousand_that_it_was_trained_with():
    assert inference_times(BASE).tolist() == [0, 250, 500, 750]
    seven = dataclasses.replace(BASE, num_inference_timesteps=7)
    assert inference_times(seven).tolist() == [0, 142, 285, 428, 571, 714, 857]


def test_the_published_head_has_155_million_parameters():
    """Of DiT-B with the encoder of states that is stored: counted by hand from the widths."""
    with torch.device("meta"):
        head = FlowDiT(dataclasses.replace(BASE, num_layers=16, state_dim=7), 2048)
    w, c = 768, 2048
    cross = 2 * (w * w + w) + 2 * (c * w + w)
    own = 4 * (w * w + w)
    block = (2 * w * w + 2 * w) + (8 * w * w + 5 * w)
    time = 256 * w + w + w * w + w
    out = 2 * w * w + 2 * w + w * 1024 + 1024
    actions = (7 * w + w) + (2 * w * w + w) + (w * w + w) + (1024 * 1024 + 1024) + (1024 * 7 + 7)
    state, tables = (7 * 1024 + 1024) + (1024 * w + w), (32 + 1024) * w
    want = 8 * cross + 8 * own + 16 * block + time + out + actions + state + tables
    assert sum(p.numel() for p in head.parameters()) == want
    assert want == pytest.approx(155.2e6, rel=0.001)


def test_a_state_without_an_encoder_is_refused():
    ours, _ = pair("no state")
    context, noise, _ = given(*CONFIGS["no state"])
    with pytest.raises(ValueError, match="a state is given to a head that has no encoder"):
        ours(context, noise, normal(5))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_comes_back_from_json(name):
    config, _ = CONFIGS[name]
    assert parse(FlowDiTConfig, json.loads(json.dumps(dataclasses.asdict(config))), "") == config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"interleave_self_attention": 1}, "head.interleave_self_attention must be bool, got 1"),
        ({"num_layers": True}, "head.num_layers must be int, got True"),
        ({"state_dim": "7"}, r"head.state_dim must be int \| None, got '7'"),
        ({"state_dim": False}, r"head.state_dim must be int \| None, got False"),
    ],
)
def test_json_of_another_type_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        parse(FlowDiTConfig, dataclasses.asdict(SMALL) | fields, "head")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_heads": 3, "head_dim": 5}, "width must be even, got 3x5"),
        ({"action_horizon": 10}, "action_horizon=10 must be at most max_seq_len=9"),
        ({"num_inference_timesteps": 0}, "must be from 1 to 1000, got 0"),
        ({"num_inference_timesteps": 1001}, "must be from 1 to 1000, got 1001"),
        ({"action_dim": 0}, "head.action_dim must be from 1"),
        ({"state_dim": 0}, "head.state_dim must be from 1"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **fields)
