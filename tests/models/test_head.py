"""The ScaleDP head, its sampler and its pooling against torch built-ins and diffusers."""

import math

import numpy as np
import pytest
import torch

from models.anchorvla4d.presets import demo, full
from models.anchorvla4d.reference import ddim_scheduler
from models.networks.scale_dp import (
    ddim_coefficients,
    ddim_step,
    inference_timesteps,
    timestep_embedding,
)
from runtime.prompt import pooling_matrix
from tests.oracles import MODULE, normal, relative_error

STEP = 1e-6
"""Absolute. Outputs are of order 1, so this is some ten roundings of float32; the factor 204 of the
first step must not show, which demands the same order of operations as the library's."""


def test_timesteps_equal_those_of_diffusers():
    assert inference_timesteps(full().head) == ddim_scheduler(full().head).timesteps.tolist()


@pytest.mark.parametrize("k", range(10))
@pytest.mark.parametrize("saturated", [True, False])
def test_every_step_equals_diffusers(k, saturated):
    config = full().head
    scheduler, t = ddim_scheduler(config), inference_timesteps(config)[k]
    epsilon, clean = normal(2, 50, 12)
    a_t = scheduler.alphas_cumprod[t]
    clean = clean * 3 if saturated else clean.clamp(-2, 2) / 2.5
    x = a_t.sqrt() * clean + (1 - a_t).sqrt() * epsilon
    want = scheduler.step(epsilon[None], t, x[None])
    assert (want.pred_original_sample.abs() < 1).all() != saturated
    leftover = 9 * normal(50, 12, seed=7)
    got = ddim_step(x, epsilon, ddim_coefficients(config)[k], leftover, torch.zeros(50, 1))
    assert (got - want.prev_sample[0]).abs().max() <= STEP, "a leftover that weighs nothing is none"


def test_what_is_left_stays_on_the_way_from_its_noise_whatever_the_network_says():
    config = full().head
    scheduler, coefficients = ddim_scheduler(config), ddim_coefficients(config)
    noise, leftover = normal(2, 50, 12)
    leftover = leftover.clamp(-1, 1)
    x, weights = noise, torch.zeros(50, 1)
    weights[:20] = 1
    # The first sample is noise alone, and not yet the leftover's share of 1 / 204.
    drift = abs(float(coefficients[0, 1]))
    for k, t in enumerate(inference_timesteps(config)):
        x = ddim_step(x, 5 * normal(50, 12, seed=k), coefficients[k], leftover, weights)
        before = t - config.num_train_timesteps // config.num_inference_timesteps
        if before >= 0:
            want = scheduler.add_noise(leftover, noise, torch.tensor(before))
            assert (x - want)[:20].abs().max() <= 1.1 * drift
    assert torch.equal(x[:20], leftover[:20]), "the last step leaves no noise"
    assert (x[20:] - leftover[20:]).abs().max() > 0.5


@pytest.mark.parametrize("k", [0, 4, 9])
def test_a_soft_leftover_mixes_clean_actions_and_noise_alike(k):
    """By the library's clean action and by arithmetic in float64."""
    config = full().head
    scheduler, t = ddim_scheduler(config), inference_timesteps(config)[k]
    epsilon, clean, leftover = normal(3, 50, 12)
    weights = torch.linspace(0, 1, 50)[:, None]
    a_t = scheduler.alphas_cumprod[t]
    x = a_t.sqrt() * clean.clamp(-2, 2) / 2.5 + (1 - a_t).sqrt() * epsilon
    predicted = scheduler.step(epsilon[None], t, x[None]).pred_original_sample[0]
    a, w, x64, leftover64 = (value.double().numpy() for value in (a_t, weights, x, leftover))
    mixed = (1 - w) * predicted.double().numpy() + w * leftover64
    implied = (x64 - np.sqrt(a) * leftover64) / np.sqrt(1 - a)
    noise = (1 - w) * epsilon.double().numpy() + w * implied
    before = t - config.num_train_timesteps // config.num_inference_timesteps
    kept = float(scheduler.alphas_cumprod[before]) if before >= 0 else 1.0
    want = np.sqrt(kept) * mixed + np.sqrt(1 - kept) * noise
    got = ddim_step(x, epsilon, ddim_coefficients(config)[k], leftover, weights).numpy()
    # 1 - a_t of the last step but one is 1e-3 and loses three digits of float32 in both.
    assert np.abs(got - want).max() <= 1e-5


def test_the_first_step_multiplies_an_error_of_the_predicted_noise_by_204():
    sqrt_1m_a, sqrt_a, _, _ = ddim_coefficients(full().head)[0].tolist()
    assert round(sqrt_1m_a / sqrt_a) == 204


def _bfloat16(value):
    """Round float64 to the nearest bfloat16, ties to even, by its bits."""
    bits = np.asarray(value, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("t", range(10))
def test_the_timestep_embedding_rounds_to_bfloat16_where_the_original_does(t):
    products = _bfloat16(-math.log(10000) * np.arange(128))
    frequencies = _bfloat16(np.exp(_bfloat16(products / 128)))
    want = _bfloat16(np.concatenate([np.cos(t * frequencies), np.sin(t * frequencies)]))
    got = timestep_embedding(torch.tensor(t))
    assert got.dtype == torch.bfloat16
    assert np.array_equal(got.double().numpy(), want)


def test_float32_frequencies_would_be_another_network():
    exact = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angles = 9 * exact
    wrong = torch.cat([angles.cos(), angles.sin()]).bfloat16()
    assert relative_error(wrong.float(), timestep_embedding(torch.tensor(9)).float()) > 1e-3


CASES = ["demo", "wide"]


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_predicted_noise_equals_the_composition_at_every_timestep(build, name):
    pair = build(name)
    config = pair.ours.config.head
    x = normal(config.prediction_horizon, config.action_dim)
    condition = normal(config.n_emb, seed=1)
    for t in inference_timesteps(config):
        got = pair.ours.action_head.epsilon(x, torch.tensor(t), condition)
        want = pair.oracle.head(x[None], t, condition[None])[0]
        assert relative_error(got, want) <= MODULE


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_condition_equals_the_composition(build, name):
    pair = build(name)
    config = pair.ours.config
    tokens = normal(2171, config.language.hidden_size)
    state = normal(config.head.state_dim, seed=1)
    bins = config.head.adaptive_pool_dim
    matrix = torch.from_numpy(pooling_matrix(bins, 1944, 102, 125, 125))
    padded = torch.zeros(1944 + 250, config.language.hidden_size)
    padded[: 1944 + 102], padded[1944 + 125 :] = tokens[:2046], tokens[2046:]
    got = pair.ours.action_head.condition(matrix @ padded, state)
    want = pair.oracle.head.condition(tokens[None], state[None])[0]
    assert relative_error(got, want) <= MODULE


@pytest.mark.parametrize(
    ("num_spatial", "num_prefix", "num_suffix", "slots"),
    [
        (1944, 102, 102, 112),
        (1944, 102, 112, 112),
        (1848, 98, 131, 160),
        (96, 25, 33, 64),
        (24, 21, 22, 22),
    ],
)
def test_the_pooling_matrix_equals_adaptive_pooling_and_ignores_padding(
    num_spatial, num_prefix, num_suffix, slots
):
    bins = demo().head.adaptive_pool_dim
    spatial, prefix, suffix = (normal(n, 32, seed=n) for n in (num_spatial, num_prefix, num_suffix))
    garbage = 1e6 * normal(slots, 32, seed=3)
    padded = torch.cat([spatial, prefix, garbage[num_prefix:], suffix, garbage[num_suffix:]])
    matrix = torch.from_numpy(pooling_matrix(bins, num_spatial, num_prefix, num_suffix, slots))
    tokens = torch.cat([spatial, prefix, suffix])
    want = torch.nn.AdaptiveAvgPool1d(bins)(tokens.T[None])[0].T
    assert relative_error(matrix @ padded, want) <= MODULE
    assert torch.allclose(matrix.sum(dim=1), torch.ones(bins), atol=1e-6)
