"""Every family's smallest policy through the whole toolchain: nothing here names one but the list.

What a family computes is held against libraries in tests/models; here it is exported, run, kept,
forecast and quantized as any other.
"""

import json

import numpy as np
import pytest
import torch

import runtime
from export.engines.counts import count
from export.measure import Modules, golden_of, made_up
from export.tokens import choose_tokens
from models.checkpoint import (
    load_checkpoint,
    normalizations,
    reference,
)
from models.families import family_of
from models.networks.work import Tokens
from runtime.declarations import from_source
from runtime.golden import Golden
from runtime.image import grid_of
from tests.export.conftest import random_bundle, random_checkpoint
from tests.oracles import END_TO_END, relative_error
from tests.warm_and_cold import Expectation, Pair, drive

NAMES = [
    "qwengr00t-tiny", "qwengr00t-tiny3", "qwenoft-tiny", "eventvla-tiny", "vlaadapter-tiny",
    "three-anchors", "smolvla-tiny", "upvla-tiny", "sgvla-tiny",
    *(pytest.param(n, marks=pytest.mark.full) for n in ("readouts", "sgvla-tiny-tokens")),
]  # fmt: skip
SIZE = (112, 112)


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, shared_folder):
    return random_checkpoint(shared_folder, name)


@pytest.fixture(scope="module")
def checkpoint(folder):
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def bundle(name, shared_folder):
    return random_bundle(shared_folder, name)


@pytest.fixture(scope="module")
def policies(bundle):
    with runtime.load(bundle) as warm, runtime.load(bundle) as cold:
        yield warm, cold


def with_latches(checkpoint, golden):
    """The same with a picture of its own in every latch: after an episode's first frame all show
    it."""
    latches = from_source(checkpoint.inputs(SIZE), "latch")
    random = np.random.default_rng(len(latches))
    return golden | {n: random.integers(0, 256, i.shape, np.uint8) for n, i in latches.items()}


@pytest.mark.parametrize("count", [15, pytest.param(200, marks=pytest.mark.full)])
def test_warm_equals_cold_and_only_what_changed_runs(policies, bundle, checkpoint, image, count):
    state = made_up(checkpoint, SIZE).now.get("state")
    pair = Pair(*policies, Expectation(bundle))
    pool = 8 if pair.remembered else 1000  # pictures that come again are what a store is for
    drive(pair, image, state, num_sequences=count, steps=8 if pair.has_memory else 5, pool=pool)
    assert not pair.has_memory or pair.num_kept > count, "no picture was kept: nothing was tried"
    assert not pair.expectation.leaves or pair.num_asked > count // 2, "no leaf was asked for"


def test_the_runtime_s_actions_are_those_of_libraries_in_robot_units(policies, checkpoint):
    library = family_of(checkpoint.config).reference(
        checkpoint.model, checkpoint.tokenizer, checkpoint.image
    )
    key = sorted(checkpoint.statistics)[0]
    to_policy, to_robot = normalizations(checkpoint.config, checkpoint.statistics[key], key)
    for seed in range(3):
        golden = with_latches(
            checkpoint, golden_of(checkpoint, made_up(checkpoint, SIZE, seed=seed), seed=seed)
        )
        observed = {n: golden[n] for n in golden.keys() - {"leftover", "embodiment"}}
        observed["instruction"] = str(golden["instruction"])
        if "state" in observed:
            observed["state"] = to_policy.to_policy(observed["state"])
        with torch.no_grad():
            want = to_robot.to_robot(library(*library.prepare(**observed)).numpy())
        seen = Golden.from_arrays(policies[0].graph, golden)
        with policies[0].start(**seen.given) as episode:
            got = episode.act({**seen.observed, **seen.drawn}).actions
        assert relative_error(got, want) <= END_TO_END


def test_a_bundle_keeps_its_own_check_and_follows_what_is_left_over(policies, checkpoint):
    policy, golden = policies[0], golden_of(checkpoint, made_up(checkpoint, SIZE), seed=4)
    assert all(verdict.passed for verdict in policy.check())
    loops = from_source(policy.inputs, "loop")
    random = np.random.default_rng(5)
    left = {n: random.uniform(0, 1, i.shape).astype(np.float32) for n, i in loops.items()}
    seen = Golden.from_arrays(policy.graph, golden)
    with policy.start(**seen.given) as episode:
        got = episode.act({**seen.observed, **seen.drawn, **left}).actions
        free = episode.act({**seen.observed, **seen.drawn}).actions
    given = {n: golden[n] for n in policy.inputs.keys() - {"instruction", "leftover"}} | left
    want = reference(checkpoint, instruction=str(golden["instruction"]), **given)
    assert relative_error(got, want) <= END_TO_END
    assert not left or relative_error(got, free) > 10 * END_TO_END


def test_every_tensor_is_what_the_libraries_modules_put_out(checkpoint):
    """In parts of one layer, so that what passes between engines is compared too."""
    config, family = checkpoint.config, family_of(checkpoint.config)
    layers = dict.fromkeys(family.depths(config), 1)
    grid = grid_of(*SIZE, checkpoint.image)
    slots = choose_tokens(checkpoint, grid, (), None).slots
    parts = family.split(checkpoint.model, checkpoint.parts, checkpoint.image, SIZE, slots, layers)
    golden = with_latches(checkpoint, golden_of(checkpoint, made_up(checkpoint, SIZE), seed=1))
    for seed, name in enumerate(from_source(parts.graph.inputs, "memory")):  # all that may be kept
        given, random = parts.graph.inputs[name], np.random.default_rng(seed)
        full = np.array([len(given.memory.slots)], np.float32) if given.memory else None
        golden[name] = random.integers(0, 256, given.shape, np.uint8) if full is None else full
    predicted = []
    hook = family.predictor(checkpoint.model).register_forward_hook(
        lambda _m, _i, out: predicted.append(out.numpy())
    )
    ours = Modules(checkpoint, parts).tensors(golden)
    hook.remove()
    ours |= {f"predicted_{k}": value for k, value in enumerate(predicted)}
    library = family.reference(checkpoint.model, checkpoint.tokenizer, checkpoint.image)
    kept = library.listen()
    observed = {n: golden[n] for n in golden.keys() - {"leftover", "embodiment"}}
    observed["instruction"] = str(golden["instruction"])
    if "state" in observed:
        key = sorted(checkpoint.statistics)[0]
        to_policy, _ = normalizations(config, checkpoint.statistics[key], key)
        observed["state"] = to_policy.to_policy(observed["state"])
    with torch.no_grad():
        last = library(*library.prepare(**observed))
    kept.setdefault("x", []).append(last)
    want = library.placed(kept, grid, layers, parts.fixed)
    assert set(parts.graph.engine_outputs) <= want.keys()
    for tensor, expected in want.items():
        there = ours[tensor][tuple(map(slice, expected.shape))]  # the rest is padding
        assert relative_error(there, expected.numpy()) <= END_TO_END, tensor


def test_engines_multiply_and_hold_what_their_files_do(checkpoint, bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    slots = manifest["graph"]["tensors"][f"{[*manifest['padded_share']][-1]}_embeddings"]["shape"][
        0
    ]
    grid = grid_of(*SIZE, checkpoint.image)
    tokens = Tokens.padded(slots, len(manifest["padded_share"]))
    works = family_of(checkpoint.config).engines_work(checkpoint.config, grid, tokens)
    assert list(works) == list(manifest["engines"])
    for engine, work in works.items():
        found = count(bundle / manifest["engines"][engine]["file"])
        assert found.by_weights + found.attention_flops == work.flops, engine
