"""What the policy with a memory does with it and without it, by the command that measures it.

Few episodes: the card's own figures come from two hundred. The bounds are far from what was
measured there, and on one machine the outcome is the same every time.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from device_tests.success.posed import PosedPolicy
from export.evidence import success
from export.evidence.config import BLINK_OPTIONS, RecallConfig
from export.evidence.kept_episodes import evaluate_kept
from export.evidence.recall import measure
from export.evidence.reference_policy import load_either
from export.evidence.success import float32_bundle
from export.evidence.success_table import render_recall
from export.subject import _digest_of_all
from models.checkpoint import load_checkpoint
from models.demo import BLINK_CHECKPOINT, BLINK_EPISODES
from models.demo.blinks import EVENT
from models.eventvla.reference import Composition
from quant.data.episode import Observation
from runtime import load, read_bundle
from runtime.errors import ObservationError
from runtime.golden import Golden
from runtime.recordings.recording import FRAME, load_recording

EPISODES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(scope="module")
def bundle(folder):
    return float32_bundle(BLINK_CHECKPOINT, folder / "bundle", BLINK_OPTIONS)


@pytest.fixture(scope="module")
def config(bundle, folder, simulator):
    return RecallConfig(episodes=EPISODES, work=folder, results=folder, film=folder / "film.gif")


@pytest.fixture(scope="module")
def runs():
    """What was evaluated, in order."""
    return []


@pytest.fixture(scope="module")
def result(config, runs):
    def noted(folder, config, **options):
        runs.append((config.episodes, config.forgetful, config.cold))
        return evaluate_kept(folder, config, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(success, "evaluate_kept", noted)
        return json.loads(measure(config).read_text())


@pytest.fixture(scope="module")
def recorded():
    return load_recording(min(BLINK_EPISODES.glob("*.npz")))


def drive(policy, recorded, see=True):
    """Answers at every fifth step of a recorded episode, as the loop would ask."""
    answers = []
    for step, frame in enumerate(recorded.streams[FRAME].values[:60]):
        if step % 5 == 0:
            answers.append(policy.act({"frame": frame}, at=None))
        elif see:
            assert policy.see({"frame": frame}) is False
    return answers


def test_the_policy_solves_the_task_with_its_memory_and_not_without(result):
    assert result["with"]["n"] == result["without"]["n"] == EPISODES
    assert result["with"]["successes"] >= 5
    assert result["without"]["successes"] <= 4
    assert result["without"]["successes"] < result["with"]["successes"]


def test_recomputing_everything_gives_the_same_episodes(result, runs):
    assert result["cold"] == {"same": EPISODES // 4, "n": EPISODES // 4}
    assert runs == [(8, False, False), (8, True, False), (2, False, True)]


def test_the_table_shows_both_rows(result, config):
    text = render_recall(config.results)
    for name in ("with", "without"):
        share = 100 * result[name]["successes"] / EPISODES
        assert f"| {share:.0f} % [" in text
    assert "same bits in 2 of 2 episodes" in text
    assert render_recall(config.results / "nowhere") == ""


def test_the_reference_remembers_nothing_and_says_so():
    with pytest.raises(ValueError, match="has keyframe_0, keyframes: evaluate its bundle"):
        load_either(BLINK_CHECKPOINT)


def test_film_and_sheet_are_pictures(result, config):
    with Image.open(config.film) as film:
        assert film.n_frames > 5
    assert config.film.stat().st_size <= 1.5e6
    with Image.open(config.work / "sheet.png") as sheet:
        assert sheet.width > 112


def test_a_picture_passes_the_tower_once_whichever_input_shows_it(bundle, recorded):
    with load(bundle) as policy:
        episode = policy.start(instruction=recorded.instruction)
        answers = drive(episode, recorded)
        towers = [n for name, n in episode.stats.num_runs.items() if name.endswith("vision")]
        # One for each question and one for the keyframe, whose step nobody asked about; none for
        # the first frame, and none for the slot while it is empty, which the warm-up has shown.
        assert sum(towers) == len(answers) + 1


def test_a_policy_that_forgets_answers_as_one_that_just_began(bundle, recorded):
    frames = recorded.streams[FRAME].values
    with load(bundle) as policy:
        forgetful = PosedPolicy(policy, forgetful=True)
        forgotten = drive(forgetful.start(seed=0, instruction=recorded.instruction), recorded)
        remembering = PosedPolicy(policy)
        known = drive(remembering.start(seed=0, instruction=recorded.instruction), recorded)
        for number, answer in enumerate(forgotten):
            told = {"instruction": recorded.instruction, "first_frame": frames[0]}
            fresh = policy.start(**told).act({"frame": frames[5 * number]})
            assert (fresh.actions == answer.actions).all()
        plain = drive(policy.start(instruction=recorded.instruction), recorded)
    assert all((a.actions == b.actions).all() for a, b in zip(known, plain, strict=True))
    assert forgetful.digest != remembering.digest
    assert (known[0].actions == forgotten[0].actions).all()
    assert (known[-1].actions != forgotten[-1].actions).any()


def test_the_keyframe_shows_the_blink_and_actions_are_those_of_the_libraries(bundle, recorded):
    """End to end, trained weights: robot units are fractions, and float32 is promised at 1e-4."""
    frames, is_lit = (recorded.streams[name].values for name in (FRAME, EVENT))
    checkpoint = load_checkpoint(BLINK_CHECKPOINT)
    oracle = Composition(checkpoint.model, checkpoint.tokenizer, checkpoint.image)
    asked = next(step for step in range(0, len(frames), 5) if is_lit[step, 0])
    kept = frames[asked + 1]
    assert is_lit[asked + 1, 0]
    with load(bundle) as policy:
        answers = drive(policy.start(instruction=recorded.instruction), recorded)
    for number, answer in enumerate(answers):
        count = float(5 * number > asked)
        observed = {
            "first_frame": frames[0],
            "frame": frames[5 * number],
            "keyframe_0": kept,
            "keyframes": np.array([count], np.float32),
        }
        with torch.no_grad():
            prepared = oracle.prepare(instruction=recorded.instruction, **observed)
            expected = oracle.predicted(*prepared)
        np.testing.assert_allclose(answer.actions, expected.actions_TA, atol=1e-4)


def test_the_golden_observation_shows_a_keyframe_and_a_board_would_prove_it(bundle):
    golden = Golden.of(read_bundle(bundle))
    assert read_bundle(bundle).manifest.gates["split"].kind == "pass"
    assert golden.recalled["keyframes"].tolist() == [1]
    assert golden.recalled["keyframe_0"].any()
    with load(bundle) as policy:
        assert all(parity.passed for parity in policy.check())
        assert policy.probe().passed

        def ask(**recalled):
            episode = policy.start(**golden.given)
            episode.recall({**golden.recalled, **recalled})
            return episode.act(golden.observed).actions

        want = golden.tensors["actions"]
        np.testing.assert_allclose(ask(), want, atol=1e-4)
        other = np.roll(golden.recalled["keyframe_0"], 20, axis=1)
        for change in ({"keyframe_0": other}, {"keyframes": np.zeros(1, np.float32)}):
            assert np.abs(ask(**change) - want).max() > 1e-2, change


def test_what_is_recalled_is_a_memory_s_and_fits_it(bundle, recorded):
    frame = recorded.streams[FRAME].values[0]
    with load(bundle) as policy:
        episode = policy.start(instruction=recorded.instruction)
        before = episode.act({"frame": frame}).actions
        for values, message in (
            ({"frame": frame}, "'frame' cannot be given here"),
            ({"keyframes": np.ones(2, np.float32)}, "keyframes"),
            ({"keyframe_0": frame[:5]}, "an image of 112x5"),
        ):
            with pytest.raises(ObservationError, match=message):
                episode.recall(values)
        assert (episode.act({"frame": frame}).actions == before).all()


def test_a_probe_leaves_what_an_episode_remembers(bundle, recorded):
    frames = recorded.streams[FRAME].values
    with load(bundle) as policy:
        answers = []
        for is_probed in (False, True):
            episode = policy.start(instruction=recorded.instruction)
            drive(episode, recorded)
            if is_probed:
                assert policy.probe().passed
            answers.append(episode.act({"frame": frames[60]}).actions)
        fresh = policy.start(instruction=recorded.instruction, first_frame=frames[0])
        alone = fresh.act({"frame": frames[60]}).actions
    assert (answers[0] == answers[1]).all() and (answers[0] != alone).any()


def test_an_export_that_resumes_has_seen_the_same_past(recorded):
    """What was worked out is kept by what calibration was shown: all of it, not the present."""
    checkpoint = load_checkpoint(BLINK_CHECKPOINT)
    frames = recorded.streams[FRAME].values

    def key(past):
        now, first = {"frame": frames[41]}, {"frame": frames[0]}
        at = {"frame": past}
        return _digest_of_all(checkpoint, [Observation(first, now, "go", "", 41, lambda _: at)])

    assert key(frames[20]) == key(frames[20].copy()) != key(frames[21])
