"""A bundle with a readout: what the leaf says, when its stages run, what its numbers are called."""

import json

import numpy as np
import pytest

import runtime
from models.anchorvla4d.reference import Composition
from models.checkpoint import load_checkpoint
from models.demo import EPISODES
from models.demo.config import GOAL
from runtime.recordings.recording import load_recording

NEAR_CM = 1e-3
"""Numbers up to 100 have steps of 8e-6 in float32; 128 products and two layers in front add up to
some ten times that."""
WORDS = ("touch the red marker", "touch the blue marker", "press the button from above")


@pytest.fixture(scope="module")
def shipped(cut_checkpoint):
    """The shipped weights with fewer layers; its readout is the shipped one."""
    return load_checkpoint(cut_checkpoint)


@pytest.fixture(scope="module")
def policy(exported):
    with runtime.load(exported("float32")) as loaded:
        yield loaded


def frames_of(task):
    (file,) = EPISODES.glob(f"{task}-*.npz")
    recording = load_recording(file)
    return recording.streams["frame"].values, recording.streams["state"].values


def given(frame, state):
    return {"frame": frame, "state": state}


def test_the_leaf_is_torch_s_layer_on_what_transformers_makes_of_the_prompt(policy, shipped):
    library = Composition(shipped.model, shipped.tokenizer, shipped.image)
    layer = shipped.model.readouts["goal"]
    heard = []
    library.qwen.language_model.register_forward_hook(
        lambda _m, _i, out: heard.append(out.last_hidden_state[0])
    )
    zeros = np.zeros(4, np.float32), np.zeros((10, 4), np.float32)
    seen = []
    for task in ("touch-red", "button-press-topdown"):
        frames, states = frames_of(task)
        for words in WORDS:
            episode = policy.start(instruction=words, seed=0)
            for step in (0, 20):
                episode.act(given(frames[step], states[step]))
                got = episode.ask(GOAL.name)
                read = library.read(
                    anchor=frames[0], frame=frames[step], instruction=words,
                    state=zeros[0], noise=zeros[1],
                )  # fmt: skip
                want = (layer.weight @ heard[-1][-1] + layer.bias).detach()
                assert got.shape == (3,) and got.dtype == np.float32
                assert np.abs(got - want.numpy()).max() <= NEAR_CM
                assert np.abs(got - read[GOAL.name]).max() <= NEAR_CM
                seen.append(got)
    # Every picture and every instruction moves it by far more than that.
    apart = [np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
    assert min(apart) > 10 * NEAR_CM


def test_a_tick_runs_no_stage_for_it_and_acts_the_same_bits(policy):
    frames, states = frames_of("touch-red")
    asking, silent = [], []
    for answers, asks in ((asking, True), (silent, False)):
        policy.forget()
        episode = policy.start(instruction=WORDS[0], seed=5)
        for step in range(0, 20, 5):
            answers.append(episode.act(given(frames[step], states[step])).actions.copy())
            ran = set(episode.stats.last_s)
            assert not ran & {"goal_readout", "goal_rows"}
            if asks:
                before = dict(episode.stats.num_runs)
                episode.ask(GOAL.name)
                more = {n: c - before.get(n, 0) for n, c in episode.stats.num_runs.items()}
                assert {n for n, c in more.items() if c} <= {"goal_readout", "goal_rows"}
                assert more["goal_readout"] == 1
                episode.ask(GOAL.name)
                assert episode.stats.num_runs["goal_readout"] == before.get("goal_readout", 0) + 1
    assert all(np.array_equal(a, b) for a, b in zip(asking, silent, strict=True))


def test_the_bundle_says_what_its_numbers_are(policy):
    output = policy.outputs[GOAL.name]
    assert (output.names, output.units) == (("x", "y", "z"), ("cm",) * 3)
    assert policy.graph.tensors[GOAL.name].shape == (3,)
    manifest = json.loads((policy.bundle.path / "manifest.json").read_text())
    assert manifest["graph"]["outputs"]["goal"] == {
        "axes": ["element"], "units": ["cm"] * 3, "names": ["x", "y", "z"],
    }  # fmt: skip
    assert all(verdict.passed for verdict in policy.check())
    assert GOAL.name in [verdict.name for verdict in policy.check()]
