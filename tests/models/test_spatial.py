"""The spatial encoder against UniCeption."""

import pytest
import torch
from uniception.models.info_sharing.base import MultiViewTransformerInput

from tests.oracles import FAINT, MODULE, normal, relative_error

CASES = [
    ("demo", (18, 18)),
    ("demo", (14, 22)),
    ("demo", (2, 2)),
    ("wide", (18, 18)),
    ("wide", (8, 14)),
]


def library_outputs(oracle, anchor, frame, grid):
    """UniCeption's final output and taps, tokens of both views in a row, [2 N, dim] each."""
    views = [v.reshape(1, *grid, -1).permute(0, 3, 1, 2) for v in (anchor, frame)]
    final, taps = oracle.spatial.info_sharing(
        MultiViewTransformerInput(
            features=views, additional_input_tokens=oracle.spatial.scale_token[None, :, None]
        )
    )
    return [
        torch.cat([view[0].flatten(1).T for view in output.features]) for output in (final, *taps)
    ]


@pytest.mark.parametrize(("name", "grid"), CASES)
@torch.no_grad()
def test_final_output_and_both_taps_equal_uniception(build, name, grid):
    pair = build(name)
    anchor, frame = normal(2, grid[0] * grid[1], pair.ours.config.vision.patch_dim)
    want = library_outputs(pair.oracle, anchor, frame, grid)
    ours = pair.ours.info_sharing
    got = ours.trunk(ours.project(anchor), ours.project(frame)).chunk(3)
    assert len(want) == 3
    for got_ND, want_ND in zip(got, want, strict=True):
        assert relative_error(got_ND, want_ND) <= MODULE


@torch.no_grad()
def test_faint_tokens_show_the_epsilon_of_the_norms(build):
    pair = build("demo")
    ours, oracle = pair.ours.info_sharing.info_sharing, pair.oracle.spatial.info_sharing
    tokens = FAINT * normal(18 * 18, pair.ours.config.spatial.dim)
    blocks = zip(ours.self_attention_blocks, oracle.self_attention_blocks, strict=True)
    for got, want in blocks:
        assert relative_error(got(tokens), want(tokens[None], [None])[0]) <= MODULE
    assert relative_error(ours.norm(tokens), oracle.norm(tokens)) <= MODULE


@torch.no_grad()
def test_the_projected_tokens_equal_the_composition_in_their_order(build):
    pair = build("demo")
    anchor, frame = normal(2, 18 * 18, 1176)
    want = pair.oracle.spatial(torch.cat([anchor, frame]))[0]
    assert relative_error(pair.ours.info_sharing(anchor, frame), want) <= MODULE


@torch.no_grad()
def test_anchor_and_frame_are_not_interchangeable(build):
    encoder = build("demo").ours.info_sharing
    anchor, frame = normal(2, 4 * 4, 1176)
    swapped = encoder(frame, anchor).unflatten(0, (3, 2, 16)).flip(1).flatten(0, 2)
    assert relative_error(encoder(anchor, frame), swapped) > 100 * MODULE
