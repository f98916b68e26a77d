"""Any graph with declarations runs, or is refused before anything is loaded: never a KeyError."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import device_tests.measure.latency as latency
import runtime
from device_tests.measure.scene import Scene
from runtime.bundle import read_bundle
from runtime.control.clock import MonotonicClock
from runtime.declarations import Input, Tensor
from runtime.golden import vary
from runtime.graph import Stage
from runtime.inputs import draw_noise
from runtime.pages.benchmark import measure
from runtime.pages.report import summarize
from runtime.pages.show import describe, draw
from tests.families import (
    CAMERA,
    CHUNK,
    IMAGE,
    INPUTS,
    JOINTS,
    NOISE,
    PATCHES,
    expected,
    golden_of,
    toy_graph,
    write_bundle,
)

PROMPT = {"tokenizer": "t", "template": "", "end_ids": []}
ATOL = 1e-5
"""Sums of at most 10 means of a few hundred float32 numbers of size 1: some 100 * 2^-24."""
RING = Input(
    kind="video", source="ring", of="camera", shape=(3, 8, 8, 3), dtype="uint8", pace="tick"
)
GOAL = Input(**IMAGE, source="operator", pace="episode")
FIRST = Input(**IMAGE, source="latch", of="camera", pace="episode")
HISTORY = Input(
    kind="vector", source="ring", of="joints", shape=(4, 3), dtype="float32", pace="tick"
)


AGO = Input(**IMAGE, source="delay", of="camera", steps=1, pace="tick")


def family(folder: Path, inputs, every=0):
    return write_bundle(folder / "toy", toy_graph(inputs, every), golden_of(inputs))


def observation(inputs, number):
    """What the robot gives at a tick."""
    golden = golden_of(inputs, seed=100 + number)
    return {n: golden[n] for n, i in inputs.items() if i.source == "robot"}


FAMILIES = {
    "renamed": {"eye": CAMERA, "q": JOINTS, "eps": Input(**NOISE)},
    "second camera": {**INPUTS, "wrist": CAMERA},
    "no noise": {"camera": CAMERA, "joints": JOINTS},
    "no state": {"camera": CAMERA, "latent": Input(**NOISE)},
    "no camera": {"joints": JOINTS, "latent": Input(**NOISE)},
    "three noises": {**INPUTS, "second": Input(**NOISE), "third": Input(**NOISE)},
    "ring of three frames": {**INPUTS, "history": RING},
    "ring of states": {**INPUTS, "past": HISTORY},
    "goal": {**INPUTS, "goal": GOAL},
    "delays": {
        **INPUTS, "ago_1": AGO, "ago_3": replace(AGO, steps=3),
        "then": replace(JOINTS, source="delay", of="joints", steps=2),
    },
    "first frame": {**INPUTS, "first": FIRST},
    "depth": {
        **INPUTS,
        "depth": Input(kind="depth", source="robot", shape=(6, 5), dtype="float32", pace="tick"),
    },
    "clip": {**INPUTS, "clip": replace(RING, source="robot", of="")},
    "everything": {
        **INPUTS, "first": FIRST, "goal": GOAL, "history": RING, "past": HISTORY, "wrist": CAMERA,
        "second": Input(**NOISE), "ago": AGO,
    },
}  # fmt: skip


@pytest.mark.parametrize("inputs", FAMILIES.values(), ids=FAMILIES)
def test_a_family_is_its_graph_and_acts_as_its_numbers_say(tmp_path, inputs):
    path = family(tmp_path, inputs)
    goal = golden_of(inputs, seed=7).get("goal")
    drawn = [n for n, i in inputs.items() if i.source == "drawn"]
    with runtime.load(path) as policy:
        assert all(verdict.passed for verdict in policy.check())
        episode = policy.start(seed=5)
        if goal is not None:
            episode.give(goal=goal)
        seen = [observation(inputs, number) for number in range(5)]
        for number, now in enumerate(seen):
            values = dict(now)
            for stream, name in enumerate(drawn):
                values[name] = draw_noise(5, number, CHUNK, stream)
            for name, declared in inputs.items():
                if declared.source == "latch":
                    values[name] = seen[0][declared.of]
                elif declared.source == "delay":
                    values[name] = seen[max(0, number - declared.steps)][declared.of]
                elif declared.source == "ring":
                    last = [seen[max(0, number - k)] for k in reversed(range(declared.shape[0]))]
                    values[name] = np.stack([past[declared.of] for past in last])
            if goal is not None:
                values["goal"] = goal
            answer = episode.act(now, at=0.1 * number)
            np.testing.assert_allclose(answer.actions, expected(values), atol=ATOL)
            assert (answer.step_s, answer.observed_at) == (0.1, 0.1 * number)


@pytest.mark.parametrize("inputs", [FAMILIES[name] for name in ("clip", "depth", "no camera")])
def test_no_array_of_the_caller_is_kept(tmp_path, inputs):
    noise = {"latent": np.zeros(CHUNK, np.float32)}
    with runtime.load(family(tmp_path, inputs)) as policy:
        episode = policy.start()
        seen = observation(inputs, 0) | noise
        for number in range(3):
            for name, value in (observation(inputs, number) | noise).items():
                seen[name][...] = value
            answer = episode.act(seen)
            np.testing.assert_allclose(answer.actions, expected(seen), atol=ATOL)


def test_variations_shift_pictures_sideways_and_leave_the_original_alone():
    inputs = FAMILIES["depth"] | {"clip": FAMILIES["clip"]["clip"]}
    seen = observation(inputs, 0)
    kept = {name: value.copy() for name, value in seen.items()}
    found = vary(inputs, seen, 2)
    assert np.array_equal(found["camera"][:, 2:], kept["camera"][:, :-2])
    assert np.array_equal(found["depth"][:, 2:], kept["depth"][:, :-2])
    assert np.array_equal(found["clip"][:, :, 2:], kept["clip"][:, :, :-2])
    assert (found["joints"] != kept["joints"]).all() and found["joints"].dtype == np.float32
    assert all(np.array_equal(seen[name], value) for name, value in kept.items())


def test_noises_of_one_tick_differ_and_the_first_is_that_of_a_policy_with_one():
    one, two = (draw_noise(3, 4, (50, 12), stream) for stream in (0, 1))
    assert (one == draw_noise(3, 4, (50, 12))).all()
    assert len(np.intersect1d(one, two)) == 0
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.15  # 600 draws: 0.04 is usual
    places = [(tick, stream) for tick in range(4) for stream in range(4)]
    assert len({draw_noise(3, tick, (2, 2), stream).tobytes() for tick, stream in places}) == 16


def test_the_actions_may_be_as_far_off_as_the_export_found_them(tmp_path):
    path = family(tmp_path, INPUTS)
    raw = json.loads((path / "manifest.json").read_text()) | {"action_error": 0.25}
    (path / "manifest.json").write_text(json.dumps(raw))
    with runtime.load(path) as policy:
        *stages, actions = policy.check()
    assert (actions.name, actions.allowed) == ("actions", pytest.approx(0.2501))
    assert {stage.allowed for stage in stages if stage.name != "actions"} == {1e-4}


def test_a_ring_of_a_failed_tick_is_as_it_was(tmp_path, monkeypatch):
    inputs = FAMILIES["ring of states"]
    with runtime.load(family(tmp_path, inputs)) as policy:
        answers = []
        for fails in (False, True):
            episode = policy.start(seed=1)
            for number in range(4):
                if fails and number == 2:
                    with monkeypatch.context() as patch:
                        patch.setattr(policy.interpreter, "run", lambda *leaves: 1 / 0)
                        with pytest.raises(ZeroDivisionError):
                            episode.act(observation(inputs, 99))
                answers.append(episode.act(observation(inputs, number)).actions)
        assert np.array_equal(answers[:4], answers[4:])
        assert (answers[2] != answers[3]).any()


def compare(episode, seen, **kept):
    """An observation with its noise gives what plain numpy makes of it and of what is kept."""
    answer = episode.act(seen)
    np.testing.assert_allclose(answer.actions, expected({**seen, **kept}), atol=ATOL)


def test_a_latch_takes_the_frame_of_the_tick_after_it_was_asked(tmp_path):
    inputs = FAMILIES["first frame"]
    seen = [observation(inputs, number) for number in range(4)]
    with runtime.load(family(tmp_path, inputs)) as policy:
        episode = policy.start()
        noise = np.zeros(CHUNK, np.float32)
        for number, now in enumerate(seen):
            if number == 2:
                episode.latch("first")
            first = seen[2 if number >= 2 else 0]["camera"]
            values = {**now, "latent": noise, "first": first}
            answer = episode.act({**now, "latent": noise})
            np.testing.assert_allclose(answer.actions, expected(values), atol=ATOL)
        given = seen[3]["camera"]
        episode.give(first=given)
        values = {**seen[0], "latent": noise, "first": given}
        answer = episode.act({**seen[0], "latent": noise})
        np.testing.assert_allclose(answer.actions, expected(values), atol=ATOL)
        with pytest.raises(runtime.ObservationError, match="no latch 'goal'; this policy has f"):
            episode.latch("goal")


def test_nothing_of_the_last_episode_is_left_in_the_next(tmp_path):
    inputs = FAMILIES["everything"]
    with runtime.load(family(tmp_path, inputs)) as policy:
        goal = golden_of(inputs)["goal"]
        chunks = []
        for _ in range(2):
            episode = policy.start(seed=2, goal=goal)
            chunks += [episode.act(observation(inputs, number)).actions for number in range(3)]
        assert np.array_equal(chunks[:3], chunks[3:])
        episode = policy.start(seed=2)
        with pytest.raises(runtime.ObservationError, match="nobody gave goal: .* give.goal=...."):
            episode.act(observation(inputs, 0))
        assert (episode.step, episode.stats.failed_ticks) == (0, 0)


def test_a_frame_that_only_its_latch_is_made_of_has_to_have_its_grid(tmp_path):
    inputs = {**INPUTS, "first": FIRST}
    graph = toy_graph(inputs, unread=("camera",))
    path = write_bundle(tmp_path / "toy", graph, golden_of(inputs))
    with runtime.load(path) as policy:
        seen = observation(inputs, 0)
        wide = np.concatenate([seen["camera"]] * 3, axis=1)
        with pytest.raises(runtime.ObservationError, match="an image of 24x8 gives 2x6 patc"):
            policy.start().act({**seen, "camera": wide})


def test_a_picture_has_the_grids_of_all_stages_that_cut_it(tmp_path):
    graph = toy_graph(INPUTS)
    fine = {"grid": [4, 4], "image": {**PATCHES["image"], "patch_size": 2}}
    stage = Stage(
        name="fine", function="patches", inputs={"image": "camera"},
        outputs={"patches": "fine"}, params=fine,
    )  # fmt: skip
    tensors = {**graph.tensors, "fine": Tensor(shape=(16, 24))}
    graph = replace(graph, tensors=tensors, stages=(*graph.stages, stage))
    with runtime.load(write_bundle(tmp_path / "toy", graph, golden_of(INPUTS))) as policy:
        seen = observation(INPUTS, 0)
        tall = np.concatenate([seen["camera"], seen["camera"][:2]])  # 10 rows: 2 or 5 patches
        with pytest.raises(runtime.ObservationError, match="8x10 gives 5x4 .* exported for 4x4"):
            policy.start().act({**seen, "camera": tall})


def test_a_picture_for_a_ring_has_its_declared_size_and_others_fit_the_grid(tmp_path):
    for name, inputs in (("ring", FAMILIES["ring of three frames"]), ("none", INPUTS)):
        with runtime.load(family(tmp_path / name, inputs)) as policy:
            seen = observation(inputs, 0)
            larger = seen["camera"][:, :, :].repeat(1, axis=0)[:7]  # 7 rows round to the same grid
            episode = policy.start()
            if name == "none":
                episode.act({**seen, "camera": larger})
                continue
            with pytest.raises(runtime.ObservationError, match=r"camera must be \[8, 8, 3\] as it"):
                episode.act({**seen, "camera": larger})


@pytest.mark.parametrize("every", [0, 1, 3])
def test_a_leaf_comes_at_its_rate_and_when_it_is_asked_for(tmp_path, every):
    with runtime.load(family(tmp_path, INPUTS, every)) as policy:
        episode = policy.start()
        with pytest.raises(runtime.EpisodeError, match="camera_mean was asked for before anything"):
            episode.ask("camera_mean")
        for number in range(7):
            now = observation(INPUTS, number)
            leaves = episode.act(now).leaves
            assert set(leaves) == ({"camera_mean"} if every and number % every == 0 else set())
            want = expected({"camera": now["camera"]})
            for value in (*leaves.values(), episode.ask("camera_mean")):
                np.testing.assert_allclose(value, want, atol=ATOL)
        with pytest.raises(runtime.ObservationError, match="no output 'x'; this policy has act"):
            episode.ask("x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "the observation lacks camera, joints, depth; this policy looks at camera, joints"),
        ({"camera": 1}, "camera must be a numpy array, got int"),
        ({"lens": 1}, "no input 'lens'; what may be given here is: camera, joints, latent, depth"),
        ({"depth": np.full((6, 5), -0.5)}, "depth holds -0.5 m, a depth is at least 0"),
        (
            {"depth": np.ones((6, 5), np.uint16)},
            "depth must be metres .*, got uint16",
        ),
        ({"joints": [1, 2]}, r"joints must be \[3\], got \[2\]"),
        ({"latent": np.zeros((3, 2))}, r"latent must be \[2, 3\], got \[3, 2\]"),
        ({"first": 1}, r"'first' cannot be given here: give it at the start or with give"),
        ({"past": 1}, "'past' cannot be given here: it keeps 'joints' by itself"),
        ({"ago": 1}, "'ago' cannot be given here: it keeps 'camera' by itself"),
        ([1], "an observation is a mapping from names to values, got list"),
    ],
)
def test_a_wrong_observation_is_named(tmp_path, values, message):
    inputs = {**FAMILIES["depth"], "first": FIRST, "past": HISTORY, "ago": AGO}
    with runtime.load(family(tmp_path, inputs)) as policy:
        episode = policy.start()
        good = observation(inputs, 0)
        if isinstance(values, dict) and values:
            values = {**good, **values}
        with pytest.raises(runtime.ObservationError, match=message):
            episode.act(values)
        episode.act(good)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"camera": 1}, "'camera' cannot be given here: it belongs into every observation"),
        ({"latent": 1}, "'latent' cannot be given here: it is drawn from the seed"),
        ({"instruction": "go"}, "no input 'instruction'; what may be given here is: goal"),
        (
            {"anchor_policy": runtime.anchor.Every(2)},
            r"has 0 latches \(none\): give anchor_p",
        ),
        ({"anchor_policy": {"goal": runtime.anchor.First()}}, "of goal, but the latches are: none"),
    ],
)
def test_a_start_with_what_the_policy_has_not_is_refused(tmp_path, given, message):
    with (
        runtime.load(family(tmp_path, FAMILIES["goal"])) as policy,
        pytest.raises(runtime.ObservationError, match=message),
    ):
        policy.start(**given)


def test_a_latch_that_was_asked_for_waits_for_a_tick_that_succeeds(tmp_path, monkeypatch):
    inputs = FAMILIES["first frame"]
    noise = {"latent": np.zeros(CHUNK, np.float32)}
    seen = [observation(inputs, number) for number in range(3)]
    with runtime.load(family(tmp_path, inputs)) as policy:
        episode = policy.start()
        episode.act({**seen[0], **noise})
        episode.latch("first")
        with monkeypatch.context() as patch:
            patch.setattr(policy.interpreter, "run", lambda *leaves: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                episode.act({**seen[1], **noise})
        for number in (2, 2, 0):  # latched in the tick after the failed one, and then no more
            compare(episode, {**seen[number], **noise}, first=seen[2]["camera"])


def test_what_is_given_counts_though_a_latch_was_asked_for_before(tmp_path):
    inputs = FAMILIES["first frame"]
    noise = {"latent": np.zeros(CHUNK, np.float32)}
    seen = [observation(inputs, number) for number in range(3)]
    with runtime.load(family(tmp_path, inputs)) as policy:
        episode = policy.start()
        episode.act({**seen[0], **noise})
        episode.latch("first")
        episode.give(first=seen[1]["camera"])
        compare(episode, {**seen[2], **noise}, first=seen[1]["camera"])


def test_the_first_frame_of_an_episode_repeats_none_of_the_one_before(tmp_path):
    seen = observation(INPUTS, 0)
    with runtime.load(family(tmp_path, INPUTS)) as policy:
        for _ in range(2):
            episode = policy.start()
            episode.act(seen)
            assert episode.stats.repeated_frames == {"camera": 0}
        episode.act(seen)
        assert episode.stats.repeated_frames == {"camera": 1}


def test_say_needs_one_text(tmp_path):
    with (
        runtime.load(family(tmp_path, INPUTS)) as policy,
        pytest.raises(runtime.ObservationError, match=r"has 0 texts \(none\)"),
    ):
        policy.start().say("go")


@pytest.mark.parametrize(
    ("anchor_policy", "message"),
    [
        (runtime.anchor.Semantic(), "asks how like 'first' the present is, which no output"),
        (runtime.anchor.Kinematic(), r"looks at the vector 'state', the robot gives \['joints'\]"),
    ],
)
def test_an_anchor_policy_that_the_graph_cannot_serve_is_refused(tmp_path, anchor_policy, message):
    with (
        runtime.load(family(tmp_path, FAMILIES["first frame"])) as policy,
        pytest.raises(runtime.ObservationError, match=message),
    ):
        policy.start(anchor_policy=anchor_policy)


def test_each_of_several_latches_has_its_own_anchor_policy(tmp_path):
    second = replace(FIRST, pace="event")
    inputs = {**INPUTS, "first": FIRST, "second": second}
    seen = [observation(inputs, number) for number in range(5)]
    noise = np.zeros(CHUNK, np.float32)
    with runtime.load(family(tmp_path, inputs)) as policy:
        with pytest.raises(runtime.ObservationError, match="has 2 latches"):
            policy.start(anchor_policy=runtime.anchor.Every(2))
        episode = policy.start(anchor_policy={"second": runtime.anchor.Every(2)})
        for number, now in enumerate(seen):
            values = {
                **now,
                "latent": noise,
                "first": seen[0]["camera"],
                "second": seen[number // 2 * 2]["camera"],
            }
            answer = episode.act({**now, "latent": noise})
            np.testing.assert_allclose(answer.actions, expected(values), atol=ATOL)


@pytest.mark.parametrize("at", [True, "now", float("nan"), float("inf")])
def test_a_stamp_that_is_no_time_is_refused(tmp_path, at):
    with runtime.load(family(tmp_path, INPUTS)) as policy:
        episode = policy.start()
        with pytest.raises(runtime.ObservationError, match="at must be seconds"):
            episode.act(observation(INPUTS, 0), at=at)


def test_an_observation_older_than_the_last_is_refused_and_an_equal_one_is_not(tmp_path):
    with runtime.load(family(tmp_path, INPUTS)) as policy:
        episode = policy.start()
        for at in (5.0, 5.0, None):
            episode.act(observation(INPUTS, 0), at=at)
        with pytest.raises(runtime.ObservationError, match="of 4.9 s is older than the last one"):
            episode.act(observation(INPUTS, 0), at=4.9)
        assert episode.step == 3


def test_a_family_goes_through_every_verb_and_the_device_tests(tmp_path):
    inputs = FAMILIES["everything"]
    path = family(tmp_path, inputs, every=2)
    text = describe(read_bundle(path))
    assert "input history: video uint8 3x8x8x3, ring of camera, pace tick" in text
    assert "input ago: image uint8 8x8x3, delay of camera by 1 step, pace tick" in text
    assert "input joints: vector float32 3, robot, pace tick, rad" in text
    picture = str(draw(read_bundle(path).manifest.graph))
    assert all(f">{name}<" in picture for name in inputs)
    assert "kept while the first and goal stay" in picture
    with runtime.load(path) as policy:
        timings = measure(policy, 2)
        assert set(timings["cold"].stages) == {s.name for s in policy.graph.stages}
        assert not {"goal_rows", "first_mean"} & timings["warm"].stages.keys()
        assert summarize(policy.graph, []).kept == ("first",)
        found = latency.measure_latency(
            policy, Scene(policy), MonotonicClock(), seconds=0.0, num_idle=1, idle_s=0.0
        )
    assert set(found) == {
        "warm", "first of an episode", "new first", "new goal", "everything", "after a pause"
    }  # fmt: skip
    assert "goal_mean" in found["new goal"].stages and "first_mean" not in found["new goal"].stages
    assert "first_mean" in found["new first"].stages
    assert not {"goal_mean", "first_mean"} & found["warm"].stages.keys()


@pytest.fixture
def renamed(demo_bundle, tmp_path):
    """The demo bundle with other names for what a robot gives and what is drawn."""
    path = tmp_path / "renamed"
    shutil.copytree(demo_bundle, path, copy_function=lambda a, b: Path(b).hardlink_to(a))
    names = {"frame": "camera_0", "noise": "latent", "state": "q", "instruction": "task"}
    raw = json.loads((path / "manifest.json").read_text())
    graph = raw["graph"]
    graph["inputs"] = {names.get(n, n): i for n, i in graph["inputs"].items()}
    graph["inputs"]["anchor"]["of"] = "camera_0"
    for stage in graph["stages"]:
        ports = stage.get("inputs", {})
        ports |= {p: names[s] for p, s in ports.items() if s in names}
    raw["dependencies"] = {
        t: sorted(names.get(n, n) for n in needs) for t, needs in raw["dependencies"].items()
    }
    with np.load(path / "golden.npz") as golden:
        arrays = {names.get(n, n): golden[n] for n in golden.files}
    (path / "golden.npz").unlink()
    np.savez(path / "golden.npz", **arrays)
    data = (path / "golden.npz").read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    raw["files"]["golden.npz"] = entry
    (path / "manifest.json").unlink()
    (path / "manifest.json").write_text(json.dumps(raw))
    return path


def test_the_demo_under_other_names_answers_with_the_same_bits(demo_bundle, renamed, image):
    state = np.array([0.0, 0.6, 0.2, 1.0], np.float32)
    with runtime.load(demo_bundle) as old, runtime.load(renamed) as new:
        assert all(verdict.passed for verdict in new.check())
        first = old.start(instruction="touch the red marker", seed=4)
        second = new.start(task="touch the red marker", seed=4)
        for number in range(3):
            want = first.act({"frame": image(number), "state": state}).actions
            got = second.act({"camera_0": image(number), "q": state}).actions
            assert got.tobytes() == want.tobytes()
        first.say("touch the blue marker")
        second.say("touch the blue marker")
        want = first.act({"frame": image(1), "state": state}).actions
        assert second.act({"camera_0": image(1), "q": state}).actions.tobytes() == want.tobytes()
