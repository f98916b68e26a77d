"""A turned policy computes what it did, and what flows in it is spread over its channels."""

import numpy as np
import pytest
import scipy.linalg
import torch

from models.checkpoint import load_checkpoint
from models.stored import plain
from quant.rotate import hadamard, keep_mean, rotate, turn
from tests.oracles import relative_error
from tests.quant.test_fold import networks


def random(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


def test_hadamard_is_scipys():
    assert np.allclose(hadamard(16) * 4, scipy.linalg.hadamard(16))
    with pytest.raises(ValueError, match="2\\^n rows, got 12"):
        hadamard(12)


@pytest.mark.parametrize("make", [turn, keep_mean])
@pytest.mark.parametrize("width", [1, 2, 24, 95, 96, 128])
def test_a_turn_keeps_lengths_and_spreads_a_channel(make, width):
    matrix = make(width, random())
    assert torch.allclose(matrix @ matrix.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    if width == 128 and make is turn:
        assert torch.allclose(matrix.abs(), torch.full_like(matrix, 128**-0.5))


def test_a_turn_that_keeps_the_mean_keeps_what_a_layer_norm_does():
    matrix = keep_mean(96, random()).float()
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(1)) + 3
    norm = torch.nn.LayerNorm(96, eps=1e-6, elementwise_affine=False)
    assert torch.allclose(norm(x @ matrix.T), norm(x) @ matrix.T, atol=1e-5)
    assert not torch.allclose(norm(x @ matrix.T), norm(x), atol=0.1)


@pytest.fixture(scope="module")
def policy(cut_checkpoint):
    """Norms and biases that are not 1 and 0: what a turn has to carry along."""
    model = plain(load_checkpoint(cut_checkpoint).model)
    made = torch.Generator().manual_seed(3)
    for name, values in model.named_parameters():
        if "norm" in name or "ln_q" in name or name.endswith("bias"):
            values.data += 0.3 * torch.randn(values.shape, generator=made)
    return model.requires_grad_(False)


@pytest.mark.parametrize("rotations", [("heads",), ("residual",), ("heads", "residual")])
def test_a_turned_policy_computes_what_it_did(policy, rotations):
    """Embeddings and image tokens come out turned, as its own table and merger turn both."""
    want, turned = networks(policy), rotate(policy, rotations)
    before, after = policy.vlm.model.embed_tokens.weight, turned.vlm.model.embed_tokens.weight
    matrix = torch.linalg.lstsq(before.double(), after.double()).solution.float()
    got = networks(turned, embed=matrix)
    got["vision"] = got["vision"] @ matrix.T
    # float32 sums of other numbers in each product, and a dozen of products in a row.
    errors = {name: relative_error(got[name], want[name]) for name in want}
    assert max(errors.values()) < 2e-5, errors
    changed = not before.equal(after)
    assert changed == ("residual" in rotations)


def test_nothing_to_turn_is_the_same_policy(policy):
    assert rotate(policy, ()) is policy
    with pytest.raises(ValueError, match="unknown rotations \\['head'\\]; there are \\('heads', "):
        rotate(policy, ("head",))


def test_a_channel_that_stands_out_in_the_stream_stands_out_no_more(policy):
    """What q, k and v of the first layer read: peak over root mean square of its channels."""
    peaks = {}
    model = rotate(policy, ())
    model.vlm.model.embed_tokens.weight[:, 7] *= 50
    for rotations in ((), ("residual",)):
        turned, seen = rotate(model, rotations), []
        layer = turned.vlm.model.layers[0].self_attn.q_proj
        handle = layer.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        with torch.no_grad():
            ids = torch.arange(40)
            x = turned.vlm.model.embed_tokens(ids)
            angles = torch.zeros(40, turned.config.language.head_dim)
            mask = torch.full((40, 40), -1e9).triu(1)
            turned.vlm.model(x, turned.vlm.model.empty_past(0), mask, angles.cos(), angles.sin())
        handle.remove()
        channels = seen[0].square().mean(0).sqrt()
        peaks[rotations] = float(channels.max() / channels.square().mean().sqrt())
    assert peaks[()] > 5 and peaks["residual",] < 3
