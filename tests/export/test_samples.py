"""Several chunks in one tick: each is what a policy with one would say, and one is chosen."""

import numpy as np
import pytest

import runtime
from export.build import build
from export.forecast.policy import prompt_of, size
from models.checkpoint import load_checkpoint, normalizations, reference
from models.networks.parts import WHOLE
from models.processor import read_image_config
from quant.recipes import RECIPES
from runtime.golden import Golden
from runtime.inputs import draw_noise
from tests.export.conftest import cut_config
from tests.export.test_forecast import check_counts, check_formats

SAMPLES = 3
STATE = np.array([0.05, 0.6, 0.2, 0.5], np.float32)


@pytest.fixture(scope="module", params=["float32", "cpu-int8"])
def recipe(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(recipe, cut_checkpoint, tmp_path_factory):
    """A gate's verdict on so few observations is another test's business."""
    out = tmp_path_factory.mktemp("samples") / "bundle"
    return build(cut_config(cut_checkpoint, out, recipe, samples=SAMPLES, force=True))


@pytest.fixture(scope="module")
def policy(bundle):
    with runtime.load(bundle, accept_failed_gates=True) as policy:
        yield policy


@pytest.fixture(scope="module")
def one(recipe, exported):
    """The policy that samples once."""
    with runtime.load(exported(recipe), accept_failed_gates=True) as policy:
        yield policy


def episode_of(policy):
    golden = Golden.of(policy.bundle)
    return policy.start(seed=5, **golden.given), golden.observed["frame"]


def test_every_sample_is_the_chunk_of_its_noise_and_the_first_that_of_a_policy_with_one(
    policy, one
):
    (several, frame), (single, _) = episode_of(policy), episode_of(one)
    seen = {"frame": frame, "state": STATE}
    several.act(seen)
    samples_KTA = several.ask("denoised_actions")
    noises = draw_noise(5, 0, (SAMPLES, *policy.chunk_shape))
    first = single.act(seen).actions
    chunks = [single.act(seen | {"noise": noise}).actions for noise in noises]
    assert samples_KTA.shape == (SAMPLES, *policy.chunk_shape)
    # Products of other shapes add up in another order; ten steps carry that on, the first of them
    # 204-fold. In int8 a code may turn over.
    atol = 1e-4 if policy.bundle.manifest.recipe.name == "float32" else 0.05
    np.testing.assert_allclose(first, chunks[0], atol=0, rtol=0)
    np.testing.assert_allclose(samples_KTA, chunks, atol=atol)
    assert np.abs(samples_KTA[0] - samples_KTA[1]).max() > 3 * atol


def test_the_samples_are_those_of_the_reference(bundle, policy, recipe, cut_checkpoint):
    golden = Golden.of(policy.bundle)
    episode = policy.start(seed=2, **golden.given)
    leftover = np.zeros((10, 5), np.float32)
    leftover[:4] = [[w, 0.1, -0.1, 0.2, 1] for w in (1, 1, 0.6, 0.2)]
    answer = episode.act(golden.observed | {"leftover": leftover})
    want = reference(
        load_checkpoint(cut_checkpoint),
        anchor=golden.given["anchor"],
        instruction=golden.given["instruction"],
        noise=draw_noise(2, 0, (SAMPLES, *policy.chunk_shape)),
        leftover=leftover,
        **golden.observed,
    )
    got = episode.ask("denoised_actions")
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    allowed = policy.bundle.manifest.action_error if RECIPES[recipe]().is_quantized else 0
    assert error <= max(3 * allowed, 1e-4)
    assert answer.actions[:2].tobytes() == leftover[:2, 1:].tobytes(), "what is left, to the bit"


def test_the_sample_nearest_to_the_others_is_carried_out_and_says_how_near(policy, cut_checkpoint):
    episode, frame = episode_of(policy)
    answer = episode.act({"frame": frame, "state": STATE})
    samples_KTA = episode.ask("denoised_actions")
    loaded = load_checkpoint(cut_checkpoint)
    key = policy.embodiment
    _, mapping = normalizations(loaded.config, loaded.statistics[key], key)
    scaled = mapping.to_policy(samples_KTA.astype(np.float64))
    distances = np.array([[np.sqrt(np.mean((a - b) ** 2)) for b in scaled] for a in scaled])
    chosen = int(distances.sum(axis=1).argmin())
    np.testing.assert_array_equal(answer.actions, samples_KTA[chosen])
    others = np.delete(distances[chosen], chosen)
    assert answer.spread == pytest.approx(np.sqrt(np.mean(others**2)), rel=1e-5)


def test_the_check_compares_all_samples(policy):
    verdicts = {verdict.name: verdict for verdict in policy.check()}
    assert all(verdict.passed for verdict in verdicts.values())
    assert "denoised_actions" in verdicts and "actions" not in verdicts
    assert verdicts["leftover"].passed


def test_forecast_and_count_agree(bundle, recipe, cut_checkpoint):
    sized = size(
        load_checkpoint(cut_checkpoint).config,
        name="policy",
        prompt=prompt_of(load_checkpoint(cut_checkpoint).config, cut_checkpoint / "tokenizer.json"),
        image=read_image_config(cut_checkpoint / "preprocessor_config.json"),
        image_size=(112, 112),
        slots=64,
        layers=WHOLE,
        samples=SAMPLES,
    )
    check_counts(bundle, sized, recipe)
    check_formats(bundle, sized, recipe)
    assert sized.recut(WHOLE).samples == SAMPLES
