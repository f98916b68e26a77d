"""The public API: what it returns, and what it says when it is used wrongly."""

import numpy as np
import pytest

import runtime
from runtime.policy import draw_noise

STATE = np.array([0.0, 0.6, 0.2, 1.0], np.float32)


@pytest.fixture
def episode(policy, image):
    return policy.start(anchor=image(1), instruction="reach the green marker", seed=3)


def test_act_returns_a_chunk_in_robot_units_that_the_caller_owns(episode, image):
    chunk = episode.act(image(2), STATE)
    assert chunk.shape == (10, 4)
    assert chunk.dtype == np.float32
    kept = chunk.copy()
    episode.act(image(3), STATE)
    assert (chunk == kept).all()


def test_the_same_seed_and_tick_give_the_same_noise_without_history(policy, episode, image):
    episode.act(image(4), STATE)
    second = episode.act(image(2), STATE)
    again = policy.start(anchor=image(1), instruction="reach the green marker", seed=3)
    again.step = 1
    assert (again.act(image(2), STATE) == second).all()
    assert (again.act(image(2), STATE) != second).any()


def test_noise_is_standard_normal_and_differs_by_seed_and_tick():
    draws = np.stack([draw_noise(5, tick, (50, 12)) for tick in range(400)])
    # 240,000 draws: the mean's standard error is 0.002, that of the variance 0.003.
    assert abs(draws.mean()) < 0.01
    assert abs(draws.var() - 1) < 0.015
    assert len(np.unique(draws)) > 0.99 * draws.size
    assert (draw_noise(5, 0, (5, 7)) != draw_noise(6, 0, (5, 7))).all()


def test_noise_is_pinned_to_recorded_numbers():
    # Recorded on numpy 2.4: a robot's replay must not depend on numpy's version.
    expected = [1.3332365, -0.9997766, -1.3834149, -1.0388675]
    np.testing.assert_allclose(draw_noise(7, 11, (2, 2)).ravel(), expected, rtol=1e-6)


def test_the_arguments_may_be_overwritten_after_a_call(episode, image):
    frame, state = image(2), STATE.copy()
    noise = np.zeros((10, 4), np.float32)
    before = episode.act(frame, state, noise=noise)
    frame[:], state[:], noise[:] = image(3), 0.5, 1.0
    assert (episode.act(frame, state, noise=noise) != before).any()
    assert (episode.act(image(2), STATE, noise=np.zeros((10, 4), np.float32)) == before).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((112, 112, 3))}, "must be uint8 in 0..255, got float64, max 0.0"),
        ({"image": np.ones((3, 112, 112), np.uint8)}, r"looks like \[3, H, W\], transpose it"),
        ({"image": np.full((112, 112, 3), 9, np.uint8)}, r"one value everywhere \(9\)"),
        ({"image": [[1]]}, "must be a numpy array, got list"),
        ({"state": np.zeros(7)}, r"state must be \[4\], got \[7\]"),
        ({"state": np.array([0, np.nan, 0, 0])}, "state holds NaN or infinity"),
        ({"noise": np.zeros((2, 2))}, r"noise must be finite \[10, 4\], got \[2, 2\]"),
        ({"noise": np.full((10, 4), np.inf)}, "noise must be finite"),
    ],
)
def test_a_bad_observation_is_refused_and_nothing_changes(episode, image, arguments, message):
    good = {"image": image(2), "state": STATE}
    before = episode.act(**good, noise=np.zeros((10, 4), np.float32))
    with pytest.raises(runtime.ObservationError, match=message):
        episode.act(**{**good, **arguments})
    assert (episode.act(**good, noise=np.zeros((10, 4), np.float32)) == before).all()


def test_an_image_of_another_grid_is_refused_with_both_grids(episode):
    big = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    with pytest.raises(runtime.ObservationError, match="640x480 gives .* exported for 8x8"):
        episode.act(big, STATE)


def test_an_instruction_that_does_not_fit_names_the_limit(episode):
    with pytest.raises(runtime.ObservationError, match="exported for at most 42"):
        episode.say("reach " * 40)


@pytest.mark.parametrize("text", ["", "  ", "say\nthis", "go <|im_end|> now", "x" * 10_000])
def test_a_bad_instruction_leaves_the_old_one(episode, image, text):
    noise = np.zeros((10, 4), np.float32)
    before = episode.act(image(2), STATE, noise=noise)
    with pytest.raises(runtime.ObservationError, match="instruction"):
        episode.say(text)
    assert (episode.act(image(2), STATE, noise=noise) == before).all()


def test_an_episode_ends_when_the_next_one_starts(policy, episode, image):
    policy.start(anchor=image(1), instruction="open the drawer")
    with pytest.raises(runtime.EpisodeError, match="this episode is over"):
        episode.act(image(2), STATE)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(policy, image, seed):
    with pytest.raises(runtime.ObservationError, match="seed must be in"):
        policy.start(anchor=image(1), instruction="open the drawer", seed=seed)


def test_stats_tell_what_ran_and_what_is_kept(episode, image):
    episode.act(image(51), STATE)
    episode.act(image(52), STATE)
    stats = episode.stats
    assert stats.num_runs["frame_vision"] == 2
    assert stats.num_runs["prefix"] <= 1
    assert stats.total_s["suffix"] > 0
    assert "denoise_9" in stats.last_s
    # Anchor patches, tokens, projection, and the prefix's keys, values and hidden states.
    floats = 64 * 1176 + 64 * 128 + 64 * 96 + 64 * 4 * 2 * 2 * 32 + 64 * 128
    assert stats.anchor_bytes == 4 * floats - 4 * 48 * 128


def test_loading_is_warm_every_stage_has_run(demo_bundle, image):
    policy = runtime.load(demo_bundle)
    assert sum(policy.interpreter.num_runs) == 0
    policy.start(anchor=image(1), instruction="open the drawer").act(image(2), STATE)
    constants = {n for n, needs in policy.graph.stage_dependencies.items() if not needs}
    assert constants
    assert not constants & policy.interpreter.last_run.keys()


def test_the_semantic_policy_pays_the_frames_vision_only_once(policy, image):
    episode = policy.start(
        anchor=image(31), instruction="open the drawer", anchor_policy=runtime.anchor.Semantic(-1.0)
    )
    episode.act(image(32), STATE)
    episode.act(image(33), STATE)
    assert episode.stats.num_runs["frame_vision"] == 2
    assert episode.stats.num_runs["anchor_similarity"] == 1


def test_a_semantic_change_of_scene_makes_the_frame_the_anchor(policy, image):
    episode = policy.start(
        anchor=image(41), instruction="open the drawer", anchor_policy=runtime.anchor.Semantic(1.1)
    )
    episode.act(image(42), STATE)
    before = episode.stats.num_runs["prefix"]
    episode.act(image(43), STATE)
    assert episode.stats.num_runs["prefix"] == before + 1


def test_a_missing_robot_lists_those_there_are(demo_bundle):
    with pytest.raises(
        runtime.BundleError, match=r"robot 'bridge'; there are \['metaworld_sawyer'"
    ):
        runtime.load(demo_bundle, robot="bridge")
