"""The anchor cache is right: warm equals cold to the bit, and only what changed is recomputed."""

import numpy as np
import pytest

import runtime
from tests.warm_and_cold import Expectation, Pair, drive

NUM_SEQUENCES = 50
STATE = np.array([0.0, 0.6, 0.2, 1.0], np.float32)


@pytest.fixture(scope="module")
def policies(demo_bundle):
    return runtime.load(demo_bundle), runtime.load(demo_bundle)


def test_warm_equals_cold_and_only_what_changed_runs(policies, demo_bundle, image):
    pair = Pair(*policies, Expectation(demo_bundle))
    drive(pair, image, STATE, num_sequences=NUM_SEQUENCES, steps=6)


@pytest.mark.parametrize(
    ("stage", "forgotten"),
    [
        ("prefix", "anchor"),
        ("suffix", "instruction"),
        ("spatial", "anchor"),
        ("pooling", "instruction"),
    ],
)
def test_a_planted_missing_dependency_is_caught(demo_bundle, image, stage, forgotten):
    broken, cold = runtime.load(demo_bundle), runtime.load(demo_bundle)
    interpreter = broken.interpreter
    index = [s.name for s in broken.graph.stages].index(stage)
    interpreter._needs[index] -= {forgotten}
    interpreter._versions.setdefault(interpreter._needs[index], 0)
    pair = Pair(broken, cold, Expectation(demo_bundle))
    with pytest.raises(AssertionError):
        drive(pair, image, STATE, num_sequences=20, steps=6)


def test_a_new_instruction_recomputes_what_depends_on_the_text_and_nothing_else(policy, image):
    episode = policy.start(anchor=image(1), instruction="open the drawer")
    state = np.zeros(4, np.float32)
    noise = np.zeros(policy.chunk_shape, np.float32)
    episode.act({"frame": image(2), "state": state, "noise": noise})
    episode.say("close the drawer")
    episode.act({"frame": image(2), "state": state, "noise": noise})
    ran = set(episode.stats.last_s)
    assert {"suffix_tail", "suffix", "pooling", "condition", "denoise_0"} <= ran
    assert not ran & {"anchor_vision", "frame_vision", "prefix", "spatial", "policy_state", "x_0"}


def test_a_repeated_frame_costs_no_vision_pass(policy, image):
    episode = policy.start(anchor=image(1), instruction="open the drawer")
    for step in range(3):
        episode.act({"frame": image(5), "state": np.full(4, step, np.float32)})
    assert episode.stats.num_runs["frame_vision"] == 1
    assert episode.stats.repeated_frames == {"frame": 2}


def test_a_new_episode_with_the_same_anchor_keeps_it(policy, image):
    policy.start(anchor=image(7), instruction="open the drawer").act(
        {"frame": image(2), "state": np.zeros(4)}
    )
    episode = policy.start(anchor=image(7), instruction="open the drawer")
    episode.act({"frame": image(3), "state": np.zeros(4)})
    assert episode.stats.num_runs["prefix"] == 0
