"""The public API: what it returns, and what it says when it is used wrongly."""

import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import runtime
from runtime import inputs
from runtime.inputs import draw_noise

STATE = np.array([0.0, 0.6, 0.2, 1.0], np.float32)


@pytest.fixture
def episode(policy, image):
    return policy.start(anchor=image(1), instruction="reach the green marker", seed=3)


def test_act_returns_a_chunk_in_robot_units_that_the_caller_owns(episode, image):
    chunk = episode.act({"frame": image(2), "state": STATE}).actions
    assert chunk.shape == (10, 4)
    assert chunk.dtype == np.float32
    kept = chunk.copy()
    episode.act({"frame": image(3), "state": STATE})
    assert (chunk == kept).all()


def test_the_same_seed_and_tick_give_the_same_noise_without_history(policy, episode, image):
    episode.act({"frame": image(4), "state": STATE})
    second = episode.act({"frame": image(2), "state": STATE}).actions
    again = policy.start(anchor=image(1), instruction="reach the green marker", seed=3)
    again.step = 1
    assert (again.act({"frame": image(2), "state": STATE}).actions == second).all()
    assert (again.act({"frame": image(2), "state": STATE}).actions != second).any()


def test_noise_is_standard_normal_and_differs_by_seed_and_tick():
    draws = np.stack([draw_noise(5, tick, (50, 12)) for tick in range(400)])
    # 240,000 draws: the mean's standard error is 0.002, that of the variance 0.003.
    assert abs(draws.mean()) < 0.01
    assert abs(draws.var() - 1) < 0.015
    assert len(np.unique(draws)) > 0.99 * draws.size
    assert (draw_noise(5, 0, (5, 7)) != draw_noise(6, 0, (5, 7))).all()


def test_of_several_noises_the_first_is_that_of_one_and_none_is_like_another():
    several = draw_noise(5, 3, (4, 10, 6))
    assert several[0].tobytes() == draw_noise(5, 3, (10, 6)).tobytes()
    correlations = np.corrcoef(several.reshape(4, -1)) - np.eye(4)
    assert np.abs(correlations).max() < 0.45  # 60 draws: 0.13 is usual, of 6 pairs 0.45 never
    places = [(seed, tick, stream) for seed in (5, 6) for tick in range(8) for stream in range(4)]
    others = {draw_noise(seed, tick, (10, 6), stream).tobytes() for seed, tick, stream in places}
    assert len(others) == 64
    assert len(others | {noise.tobytes() for noise in several}) == 67, "the first is there already"
    large = draw_noise(6, 0, (8, 50, 12)).reshape(8, -1)
    assert np.abs(large.mean(axis=1)).max() < 0.2 and np.abs(large.var(axis=1) - 1).max() < 0.3


@pytest.mark.parametrize("word", [0, 2**64 - 1], ids=["smallest", "largest"])
def test_noise_of_every_raw_word_is_finite(monkeypatch, word):
    """A draw of zero has no logarithm, and 2**-53 of all draws would be one."""

    class Stuck:
        def random_raw(self, size):
            return np.full(size, word, np.uint64)

    monkeypatch.setattr(inputs, "_PHILOX", Stuck())
    drawn = draw_noise(0, 0, (3, 3))
    assert np.isfinite(drawn).all()
    assert abs(drawn).max() < 9  # sqrt(-2 log 2**-54) is 8.65


def test_threads_that_draw_at_the_same_time_do_not_mix_their_noise():
    keys = [(seed, tick) for seed in (0, 2**64 - 1) for tick in (0, 1, 2**40)] * 50
    with ThreadPoolExecutor(8) as threads:
        drawn = list(threads.map(lambda key: draw_noise(*key, (50, 12)), keys))
    for (seed, tick), noise in zip(keys, drawn, strict=True):
        generator = np.random.Philox(key=seed, counter=tick << 192)
        words = generator.random_raw(600) >> np.uint64(11)
        uniform = (words.astype(np.float64) + 0.5) * 2.0**-53
        want = np.sqrt(-2 * np.log(uniform[:300])) * np.cos(2 * np.pi * uniform[300:])
        np.testing.assert_allclose(noise.ravel()[:300], want, rtol=1e-6)


def test_noise_is_pinned_to_recorded_numbers():
    # Recorded on numpy 2.4: a robot's replay must not depend on numpy's version.
    expected = [1.3332365, -0.9997766, -1.3834149, -1.0388675]
    np.testing.assert_allclose(draw_noise(7, 11, (2, 2)).ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["frame", "state", "noise"])
def test_an_argument_may_be_overwritten_after_a_call(policy, episode, image, name):
    # None of these was given before: what is the same to the bit is not taken again.
    state, noise = STATE + np.float32(0.03), np.full((10, 4), 0.3, np.float32)
    arguments = {"frame": image(30), "state": state, "noise": noise}
    episode.act({"frame": image(31), "state": STATE, "noise": noise + 1})
    before = episode.act(arguments).actions
    arguments[name][:] = image(3) if name == "frame" else 0.5
    after = episode.act(arguments).actions
    assert (after != before).any(), "the episode kept the caller's array, and saw no change"
    policy.forget()
    assert (episode.act(arguments).actions == after).all()


def test_an_anchor_may_be_overwritten_after_it_was_given(policy, image):
    noise = np.zeros((10, 4), np.float32)
    anchor = image(1)
    episode = policy.start(anchor=anchor, instruction="reach the green marker")
    anchor[:] = image(9)
    first = episode.act({"frame": image(2), "state": STATE, "noise": noise}).actions
    again = policy.start(anchor=image(1), instruction="reach the green marker")
    assert (again.act({"frame": image(2), "state": STATE, "noise": noise}).actions == first).all()
    anchor = image(3)
    again.give(anchor=anchor)
    anchor[:] = image(9)
    moved = again.act({"frame": image(2), "state": STATE, "noise": noise}).actions
    again.give(anchor=image(3))
    assert (again.act({"frame": image(2), "state": STATE, "noise": noise}).actions == moved).all()
    assert not again.stats.last_s, "it was the same picture"
    assert (moved != first).any()


class Watching:
    """Keeps what an anchor policy is told, and asks for what it is told to."""

    def __init__(self, *answers):
        self.ticks, self.similarities, self.answers = [], [], list(answers)

    def wants(self, tick):
        self.ticks.append((tick.step, tick.since_anchor, tick.observation["state"].tolist()))
        self.similarities.append(tick.similarity())
        assert not any(value.flags.writeable for value in tick.observation.values())
        return self.answers.pop(0) if self.answers else False


def test_an_anchor_policy_sees_the_tick_and_how_old_the_anchor_is(policy, image):
    watching = Watching(False, False, True)
    episode = policy.start(anchor=image(1), instruction="open the drawer", anchor_policy=watching)
    states = [np.full(4, number, np.float32) for number in range(6)]
    for number, state in enumerate(states):
        if number == 4:
            episode.give(anchor=image(40))
        episode.act({"frame": image(10 + number), "state": state})
    since = [0, 1, 2, 1, 0, 1]  # its own anchor at tick 2, the operator's before tick 4
    assert watching.ticks == [
        (number, age, states[number].tolist()) for number, age in enumerate(since)
    ]


def test_similarity_compares_the_frame_with_the_anchor(policy, image):
    watching = Watching()
    episode = policy.start(anchor=image(1), instruction="open the drawer", anchor_policy=watching)
    for frame in (image(1), image(2), np.full_like(image(1), 200) + (image(1) > 250)):
        episode.act({"frame": frame, "state": STATE})
        means = [
            policy.memory.host(name).astype(np.float64).mean(axis=0)
            for name in ("anchor_tokens", "frame_tokens")
        ]
        want = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
        # Means and products of 16 x 128 float32 numbers: a few units in the last place.
        assert abs(watching.similarities[-1] - want) < 1e-5
    same, other, flat = watching.similarities
    assert abs(same - 1) < 1e-6
    assert other < 1 - 1e-4
    assert flat < other


def test_every_counts_from_an_anchor_that_the_operator_gave(policy, image):
    episode = policy.start(
        anchor=image(77), instruction="open the drawer", anchor_policy=runtime.anchor.Every(3)
    )
    anchored = []
    for number in range(8):
        if number == 2:
            episode.give(anchor=image(99))
        episode.act({"frame": image(10 + number), "state": STATE})
        anchored.append("anchor_vision" in episode.stats.last_s)
    # The first tick has the episode's anchor to compute, the third the operator's, and three ticks
    # after that the policy asks.
    assert anchored == [True, False, True, False, False, True, False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame": np.zeros((112, 112, 3))}, "must be uint8 in 0..255, got float64, max 0.0"),
        ({"frame": np.ones((3, 112, 112), np.uint8)}, r"looks like \[3, H, W\], transpose it"),
        ({"frame": np.full((112, 112, 3), 9, np.uint8)}, r"one value everywhere \(9\)"),
        ({"frame": [[1]]}, "must be a numpy array, got list"),
        ({"state": np.zeros(7)}, r"state must be \[4\], got \[7\]"),
        ({"state": np.array([0, np.nan, 0, 0])}, "state holds NaN or infinity"),
        ({"state": {"q": 1}}, r"state must be \[4\] numbers, got dict of object"),
        ({"state": [[1, 2], [3]]}, r"state must be \[4\] numbers: "),
        ({"state": ["1", "2", "3", "4"]}, r"state must be \[4\] numbers, got list of <U1"),
        ({"state": np.ones(4, bool)}, "got ndarray of bool"),
        ({"state": np.full(4, 1e39)}, "state holds NaN or infinity"),
        ({"noise": np.zeros((2, 2))}, r"noise must be \[10, 4\], got \[2, 2\]"),
        ({"noise": np.full((10, 4), np.inf)}, "noise must be finite in float32"),
        ({"noise": np.full((10, 4), 1e39)}, "noise must be finite in float32"),
        ({"noise": [[0.0] * 4] * 10}, r"noise must be a numpy array of floats \[10, 4\], got list"),
        ({"noise": np.zeros((10, 4), int)}, "noise must be a numpy array of floats .* got int64"),
    ],
)
def test_a_bad_observation_is_refused_and_nothing_changes(episode, image, arguments, message):
    good = {"frame": image(2), "state": STATE}
    noise = {"noise": np.zeros((10, 4), np.float32)}
    before = episode.act({**good, **noise}).actions
    with pytest.raises(runtime.ObservationError, match=message):
        episode.act({**good, **arguments})
    assert (episode.act({**good, **noise}).actions == before).all()


def test_an_image_of_another_grid_is_refused_with_both_grids(episode):
    big = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    with pytest.raises(runtime.ObservationError, match="640x480 gives .* exported for 8x8"):
        episode.act({"frame": big, "state": STATE})


def test_an_instruction_that_does_not_fit_names_the_limit(episode):
    with pytest.raises(runtime.ObservationError, match="exported for at most 42"):
        episode.say("reach " * 40)


def test_an_instruction_may_take_as_many_tokens_as_the_limit_and_no_more(policy):
    taken = set()
    for number in range(1, 60):
        try:
            taken.add(len(policy.take("instruction", "red " * number)))
        except runtime.ObservationError:
            break
    assert max(taken) == policy.inputs["instruction"].shape[0] == 42


@pytest.mark.parametrize("text", ["", "  ", "say\nthis", "go <|im_end|> now", "x" * 10_000])
def test_a_bad_instruction_leaves_the_old_one(episode, image, text):
    noise = np.zeros((10, 4), np.float32)
    before = episode.act({"frame": image(2), "state": STATE, "noise": noise}).actions
    with pytest.raises(runtime.ObservationError, match="instruction"):
        episode.say(text)
    assert (
        episode.act({"frame": image(2), "state": STATE, "noise": noise}).actions == before
    ).all()


def test_an_episode_ends_when_the_next_one_starts(policy, episode, image):
    policy.start(anchor=image(1), instruction="open the drawer")
    with pytest.raises(runtime.EpisodeError, match="this episode is over: another one was started"):
        episode.act({"frame": image(2), "state": STATE})


def test_a_policy_that_forgets_computes_everything_again(policy, episode, image):
    seen = {"frame": image(2), "state": STATE, "noise": np.zeros((10, 4), np.float32)}
    chunk = episode.act(seen).actions
    assert (episode.act(seen).actions == chunk).all() and not episode.stats.last_s
    policy.forget()
    assert (episode.act(seen).actions == chunk).all()
    assert {"anchor_vision", "prefix", "suffix", "denoise_0"} <= episode.stats.last_s.keys()


def test_a_seed_of_numpy_is_kept_as_a_number(policy, image):
    episode = policy.start(anchor=image(1), instruction="open the drawer", seed=np.uint8(3))
    assert type(episode.seed) is int
    assert repr(episode) == "<Episode at step 0, seed 3, running>"


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "3"])
def test_a_seed_that_is_none_is_refused(policy, image, seed):
    with pytest.raises(runtime.ObservationError, match="seed must be an integer in"):
        policy.start(anchor=image(1), instruction="open the drawer", seed=seed)


class Locked:
    def __init__(self):
        self.lock = threading.Lock()

    def wants(self, tick):
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anchor": np.zeros((2, 2))}, "anchor must be uint8"),
        ({"anchor": np.eye(480, dtype=np.uint8)[:, :, None].repeat(3, 2)}, "480x480 gives 34x34"),
        ({"instruction": ""}, "instruction is empty"),
        ({"seed": -1}, "seed must be"),
        ({"anchor_policy": "first"}, r"must have a method wants\(tick\), got 'first'"),
        ({"anchor_policy": runtime.anchor.Every}, r"must have a method wants\(tick\)"),
        ({"anchor_policy": Locked()}, "cannot be copied .* keep files, locks and threads out"),
    ],
)
def test_a_refused_start_leaves_the_running_episode_alone(
    policy, episode, image, arguments, message
):
    noise = np.zeros((10, 4), np.float32)
    before = episode.act({"frame": image(2), "state": STATE, "noise": noise}).actions
    good = {"anchor": image(9), "instruction": "open the drawer"}
    with pytest.raises(runtime.ObservationError, match=message):
        policy.start(**{**good, **arguments})
    assert (
        episode.act({"frame": image(2), "state": STATE, "noise": noise}).actions == before
    ).all()
    assert not episode.stats.last_s, "nothing had changed"


def test_an_anchor_of_another_size_is_refused_and_the_old_one_stays(episode, image):
    noise = np.zeros((10, 4), np.float32)
    before = episode.act({"frame": image(2), "state": STATE, "noise": noise}).actions
    with pytest.raises(runtime.ObservationError, match="480x480 gives 34x34 .* exported for 8x8"):
        episode.give(anchor=np.eye(480, dtype=np.uint8)[:, :, None].repeat(3, 2))
    assert (
        episode.act({"frame": image(2), "state": STATE, "noise": noise}).actions == before
    ).all()


def test_another_noise_for_the_same_observation_is_no_repeated_frame(episode, image):
    for seed in range(4):
        episode.act({"frame": image(2), "state": STATE, "noise": draw_noise(seed, 0, (10, 4))})
    assert episode.stats.repeated_frames == {"frame": 0}
    episode.act(
        {"frame": image(2), "state": STATE + np.float32(0.1), "noise": draw_noise(9, 0, (10, 4))}
    )
    assert episode.stats.repeated_frames == {"frame": 1}, "the robot moved and the picture did not"
    episode.act({"frame": image(2), "state": STATE + np.float32(0.1)})
    assert episode.stats.repeated_frames == {"frame": 2}


def left_over(weights, seed=0):
    """[10, 5]: weights, and actions that no network would say."""
    actions = np.random.default_rng(seed).uniform(-0.9, 0.9, (10, 4)).astype(np.float32)
    return np.concatenate([np.float32(weights)[:, None], actions], axis=1)


def test_what_is_left_comes_out_as_it_went_in_and_the_rest_bends_towards_it(episode, image):
    seen, noise = {"frame": image(2), "state": STATE}, draw_noise(3, 0, (10, 4))
    free = episode.act(seen | {"noise": noise}).actions
    leftover = left_over([1, 1, 1, 0.5, 0.2, 0, 0, 0, 0, 0])
    bent = episode.act(seen | {"noise": noise, "leftover": leftover}).actions
    assert bent[:3].tobytes() == leftover[:3, 1:].tobytes()
    assert (np.abs(bent[3:5] - free[3:5]) > 0).any(axis=1).all()
    assert np.abs(bent[3] - leftover[3, 1:]).sum() < np.abs(free[3] - leftover[3, 1:]).sum()
    again = episode.act(seen | {"noise": noise}).actions
    assert again.tobytes() == free.tobytes(), "a leftover is for its tick"
    weightless = episode.act(seen | {"noise": noise, "leftover": left_over([0] * 10)}).actions
    assert weightless.tobytes() == free.tobytes()


def test_a_new_leftover_computes_the_denoise_steps_alone(episode, image):
    seen = {"frame": image(2), "state": STATE, "noise": draw_noise(3, 0, (10, 4))}
    episode.act(seen)
    leftover = left_over([1] * 10)
    want = leftover[:, 1:].copy()
    got = episode.act(seen | {"leftover": leftover}).actions
    leftover[:] = 0
    assert got.tobytes() == want.tobytes(), "the caller's array is not kept"
    ran = set(episode.stats.last_s)
    assert ran == {f"denoise_{k}" for k in range(10)} | {
        "leftover_actions", "denoised_actions", "actions"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("leftover", "message"),
    [
        (np.zeros((10, 4), np.float32), r"leftover must be \[10, 5\], got \[10, 4\]"),
        (
            left_over([1.01] + [0] * 9),
            r"weights of leftover, its first column, must be in \[0, 1\], got",
        ),
        (
            left_over([-0.01] + [0] * 9),
            r"weights of leftover, its first column, must be in \[0, 1\], got",
        ),
        (left_over([np.nan] + [0] * 9), "leftover holds NaN or infinity"),
        ("left", "leftover must be .10, 5. numbers, got str"),
    ],
)
def test_a_leftover_that_is_none_is_refused(episode, image, leftover, message):
    with pytest.raises(runtime.ObservationError, match=message):
        episode.act({"frame": image(2), "state": STATE, "leftover": leftover})


def test_a_leftover_is_no_word_of_the_operator(policy, episode):
    with pytest.raises(
        runtime.ObservationError, match=r"'leftover' cannot be given here: it belongs"
    ):
        episode.give(leftover=left_over([1] * 10))


def test_the_check_finds_an_engine_that_ignores_the_leftover(policy, monkeypatch):
    assert {v.name: v.passed for v in policy.check()}["leftover"]
    stages, download = policy.interpreter._host_calls, policy.memory.host
    monkeypatch.setitem(
        stages, "leftover_actions", lambda values: download("leftover_weights").fill(0)
    )
    verdicts = {v.name: v for v in policy.check()}
    assert not verdicts["leftover"].passed and verdicts["leftover"].error > 0.1
    assert all(v.passed for name, v in verdicts.items() if name != "leftover")


def test_threads_on_one_episode_take_turns_and_no_noise_is_used_twice(policy, image):
    start = {"anchor": image(1), "instruction": "open the drawer", "seed": 5}
    episode = policy.start(**start)
    alone = {episode.act({"frame": image(2), "state": STATE}).actions.tobytes() for _ in range(12)}
    episode = policy.start(**start)
    chunks, hurry = [], sys.getswitchinterval()

    def think():
        for _ in range(4):
            chunks.append(episode.act({"frame": image(2), "state": STATE}).actions.tobytes())

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=think) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(hurry)
    assert episode.step == 12
    assert set(chunks) == alone


def test_a_closed_policy_says_so(demo_bundle, image):
    with runtime.load(demo_bundle) as policy:
        with policy.start(anchor=image(1), instruction="open the drawer", seed=8) as ended:
            assert re.fullmatch("<Episode at step 0, seed 8, running>", repr(ended))
        assert "ended, it was closed" in repr(ended)
        with pytest.raises(runtime.EpisodeError, match="this episode is over: it was closed"):
            ended.act({"frame": image(2), "state": STATE})
        episode = policy.start(anchor=image(1), instruction="open the drawer")
        words = (
            r"<Policy anchorvla4d \(float32\) of .* on onnxruntime: 10 actions of 4, embodiment "
        )
        assert re.match(words + "metaworld_sawyer>", repr(policy))
    assert repr(policy).endswith(", closed>")
    policy.close()
    for call in (
        lambda: episode.act({"frame": image(2), "state": STATE}).actions,
        lambda: episode.say("close the drawer"),
        lambda: episode.give(anchor=image(2)),
        lambda: episode.stats,
        lambda: policy.start(anchor=image(1), instruction="open the drawer"),
    ):
        with pytest.raises(runtime.EpisodeError, match="this policy was closed: load the bundle"):
            call()


def test_stats_tell_what_ran_and_what_is_kept(episode, image):
    episode.act({"frame": image(51), "state": STATE})
    episode.act({"frame": image(52), "state": STATE})
    stats = episode.stats
    assert stats.num_runs["frame_vision"] == 2
    assert stats.num_runs["prefix"] <= 1
    assert stats.total_s["suffix"] > 0
    assert "denoise_9" in stats.last_s
    # Anchor patches, tokens, projection, and the prefix's keys, values and hidden states.
    floats = 64 * 1176 + 64 * 128 + 64 * 96 + 64 * 4 * 2 * 2 * 32 + 64 * 128
    assert stats.kept_bytes["anchor"] == 4 * floats - 4 * 48 * 128


def test_loading_is_warm_every_stage_has_run(demo_bundle, image):
    policy = runtime.load(demo_bundle)
    assert sum(policy.interpreter.num_runs) == 0
    policy.start(anchor=image(1), instruction="open the drawer").act(
        {"frame": image(2), "state": STATE}
    )
    constants = {n for n, needs in policy.graph.stage_dependencies.items() if not needs}
    assert constants
    assert not constants & policy.interpreter.last_run.keys()


def test_the_semantic_policy_pays_the_frames_vision_only_once(policy, image):
    episode = policy.start(
        anchor=image(31), instruction="open the drawer", anchor_policy=runtime.anchor.Semantic(-1.0)
    )
    episode.act({"frame": image(32), "state": STATE})
    episode.act({"frame": image(33), "state": STATE})
    assert episode.stats.num_runs["frame_vision"] == 2
    assert episode.stats.num_runs["anchor_similarity"] == 1


def test_a_similarity_that_is_no_number_undoes_the_tick(policy, image, monkeypatch):
    episode = policy.start(
        anchor=image(41), instruction="open the drawer", anchor_policy=runtime.anchor.Semantic(0.5)
    )
    episode.act({"frame": image(42), "state": STATE})
    with monkeypatch.context() as patch:
        patch.setattr("runtime.functions.numbers.similarity", lambda a, b: float("nan"))
        told = "tick 1: .* NaN or infinity in 'anchor_similarity', and the tick was undone"
        with pytest.raises(runtime.EngineError, match=told):
            episode.act({"frame": image(43), "state": STATE})
    assert episode.step == 1
    episode.act({"frame": image(43), "state": STATE})
    assert episode.step == 2


def test_an_answer_that_is_no_number_is_computed_again_when_it_is_asked_for_again(
    episode, image, monkeypatch
):
    episode.act({"frame": image(44), "state": STATE})
    with monkeypatch.context() as patch:
        patch.setattr("runtime.functions.numbers.similarity", lambda a, b: float("nan"))
        with pytest.raises(runtime.EngineError, match="NaN or infinity in 'anchor_similarity'"):
            episode.ask("anchor_similarity")
    assert np.isfinite(episode.ask("anchor_similarity")).all()


def test_a_semantic_change_of_scene_makes_the_frame_the_anchor(policy, image):
    episode = policy.start(
        anchor=image(41), instruction="open the drawer", anchor_policy=runtime.anchor.Semantic(1.1)
    )
    episode.act({"frame": image(42), "state": STATE})
    before = episode.stats.num_runs["prefix"]
    episode.act({"frame": image(43), "state": STATE})
    assert episode.stats.num_runs["prefix"] == before + 1


def test_an_unknown_backend_lists_those_there_are(demo_bundle):
    with pytest.raises(ValueError, match="no backend 'cuda'; there are onnxruntime, tensorrt, ten"):
        runtime.load(demo_bundle, backend="cuda")


def test_a_missing_embodiment_lists_those_there_are(demo_bundle):
    with pytest.raises(
        runtime.BundleError, match=r"embodiment 'bridge'; there are \['metaworld_sawyer'"
    ):
        runtime.load(demo_bundle, embodiment="bridge")
