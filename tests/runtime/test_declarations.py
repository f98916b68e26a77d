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
from runtime.control.loop import MonotonicClock
from runtime.declarations import Input, Output, Prompt, check_inputs
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
    "first frame": {**INPUTS, "first": FIRST},
    "depth": {
        **INPUTS,
        "depth": Input(kind="depth", source="robot", shape=(6, 5), dtype="float32", pace="tick"),
    },
    "everything": {
        **INPUTS, "first": FIRST, "goal": GOAL, "history": RING, "past": HISTORY, "wrist": CAMERA,
        "second": Input(**NOISE),
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
                elif declared.source == "ring":
                    last = [seen[max(0, number - k)] for k in reversed(range(declared.shape[0]))]
                    values[name] = np.stack([past[declared.of] for past in last])
            if goal is not None:
                values["goal"] = goal
            answer = episode.act(now, at=0.1 * number)
            np.testing.assert_allclose(answer.actions, expected(values), atol=ATOL)
            assert (answer.step_s, answer.observed_at) == (0.1, 0.1 * number)


def test_noises_of_one_tick_differ_and_the_first_is_that_of_a_policy_with_one():
    one, two = (draw_noise(3, 4, (50, 12), stream) for stream in (0, 1))
    assert (one == draw_noise(3, 4, (50, 12))).all()
    assert len(np.intersect1d(one, two)) == 0
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.15  # 600 draws: 0.04 is usual


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
        ({}, "the observation lacks camera, joints; this policy looks at camera, joints"),
        ({"camera": 1}, "camera must be a numpy array, got int"),
        ({"lens": 1}, "no input 'lens'; what may be given here is: camera, joints, latent"),
        ({"joints": [1, 2]}, r"joints must be \[3\], got \[2\]"),
        ({"latent": np.zeros((3, 2))}, r"latent must be \[2, 3\], got \[3, 2\]"),
        ({"first": 1}, r"'first' cannot be given here: give it at the start or with give"),
        ({"past": 1}, "'past' cannot be given here: it keeps 'joints' by itself"),
        ([1], "an observation is a mapping from names to values, got list"),
    ],
)
def test_a_wrong_observation_is_named(tmp_path, values, message):
    inputs = {**INPUTS, "first": FIRST, "past": HISTORY}
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
        for first in (2, 2):  # latched in the tick after the failed one, and then no more
            answer = episode.act({**seen[2], **noise})
            values = {**seen[2], **noise, "first": seen[first]["camera"]}
            np.testing.assert_allclose(answer.actions, expected(values), atol=ATOL)
        answer = episode.act({**seen[0], **noise})
        values = {**seen[0], **noise, "first": seen[2]["camera"]}
        np.testing.assert_allclose(answer.actions, expected(values), atol=ATOL)


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
        for at in (5.0, None, 5.0):
            episode.act(observation(INPUTS, 0), at=at)
        with pytest.raises(runtime.ObservationError, match="of 4.9 s is older than the last one"):
            episode.act(observation(INPUTS, 0), at=4.9)
        assert episode.step == 3


def test_a_family_goes_through_every_verb_and_the_device_tests(tmp_path):
    inputs = FAMILIES["everything"]
    path = family(tmp_path, inputs, every=2)
    text = describe(read_bundle(path))
    assert "input history: video uint8 3x8x8x3, ring of camera, pace tick" in text
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


def _edit(path, change):
    raw = json.loads((path / "manifest.json").read_text())
    change(raw)
    (path / "manifest.json").write_text(json.dumps(raw))


def _inputs(name, **changes):
    return lambda raw: raw["graph"]["inputs"][name].update(changes)


def _stage(number, **changes):
    return lambda raw: raw["graph"]["stages"][number].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_inputs("camera", shape=[8, 8]), r"'camera': image must be uint8 \[H, W, 3\], not uint8"),
        (_inputs("camera", dtype="float32"), r"image must be uint8 \[H, W, 3\], not float32"),
        (_inputs("camera", pace="episode"), "pace 'episode', what comes from 'robot' has tick or"),
        (_inputs("camera", source="drawn"), "image from 'drawn'; noise is drawn, and nothing e"),
        (_inputs("camera", of="joints"), "a latch or a ring names the input it keeps in 'of'"),
        (_inputs("camera", kind="sound"), "Invalid enum value 'sound'"),
        (_inputs("camera", shape=[8, 0, 3]), "every side must be at least 1"),
        (_inputs("camera", similarity="x"), "only a latch has a 'similarity'"),
        (_inputs("first", similarity="x"), "its similarity 'x' is no output"),
        (_inputs("first", of="latent"), "keeps 'latent', which is no input that the robot gives"),
        (_inputs("first", of="gone"), "keeps 'gone', which is no input that the robot gives"),
        (_inputs("first", pace="load"), "pace 'load', what comes from 'latch' has episode or even"),
        (_inputs("first", shape=[9, 8, 3]), r"a latch of 'camera' is image uint8 \[8, 8, 3\]"),
        (_inputs("past", shape=[4, 2]), r"a ring of 'joints' is vector float32 \[4, 3\]"),
        (_inputs("latent", prompt={}), "missing required field"),
        (
            _inputs("goal", kind="text", dtype="int64", shape=[4], prompt=PROMPT),
            r"its prompt's template has no \{instruction\}",
        ),
        (_inputs("first", similarity="actions"), "its similarity must be one number"),
        (
            lambda raw: raw["graph"]["tensors"]["camera_mean"].update(dtype="bfloat16"),
            r"outputs \['camera_mean'\] are bfloat16",
        ),
        (_inputs("goal", kind="text", dtype="int64"), "a text needs a 'prompt'"),
        (_inputs("joints", width=3), "unknown field `width`"),
        (_inputs("joints", kind="video", shape=[3, 3]), r"a video is \[n, H, W, 3\], not \[3, 3\]"),
        (_stage(0, function="copy"), r"reads \['image'\], not \['value'\]"),
        (_stage(0, params={}), "missing required field `grid`"),
        (_stage(0, params={"grid": [2, 2], "image": {"min_pixels": 9, "max_pixels": 1}}), "9, 1"),
        (
            _stage(
                2,
                function="patches",
                inputs={"image": "joints"},
                outputs={"patches": "joints_rows"},
            ),
            "'image' takes image or video, 'joints' is a vector",
        ),
        (_stage(0, inputs={"image": "camera_mean"}), "reads 'camera_mean' before all of it is wri"),
        (_stage(0, outputs={"rows": "camera_rows"}), r"writes \['rows'\], not \['patches'\]"),
        (
            lambda raw: raw["graph"]["stages"][0]["params"].update(grid=[2, 3]),
            r"'patches' is \[4, 96\], \[6, 96\] is wanted",
        ),
        (
            lambda raw: raw["graph"]["stages"][2].update(inputs={"value": "past"}),
            "are not those the graph implies",
        ),
        (lambda raw: raw["graph"]["outputs"].clear(), "a graph needs at least one output"),
        (
            lambda raw: raw["graph"].update(outputs={"camera_rows": {}}),
            r"no tolerance for \['camera_rows'\]",
        ),
        (
            lambda raw: raw["graph"]["outputs"]["actions"].update(axes=["step"]),
            r"is \[2, 3\], its axes are",
        ),
        (
            lambda raw: raw["graph"]["outputs"]["actions"].update(units=["m"]),
            "has 1 units for 3 entries",
        ),
        (lambda raw: raw["graph"]["outputs"]["actions"].update(step_s=0), "step_s is 0"),
        (lambda raw: raw["graph"]["outputs"]["actions"].update(every=-1), "every is -1"),
        (
            lambda raw: raw["graph"]["inputs"].update(extra=raw["graph"]["inputs"]["joints"]),
            "extra",
        ),
    ],
)
def test_a_manifest_that_cannot_be_fed_is_refused_in_one_line(tmp_path, change, message):
    path = family(tmp_path, {**INPUTS, "first": FIRST, "goal": GOAL, "past": HISTORY})
    read_bundle(path)
    _edit(path, change)
    with pytest.raises(runtime.BundleError, match=message) as caught:
        read_bundle(path)
    assert "\n" not in str(caught.value)


def test_every_field_of_a_declaration_counts():
    with pytest.raises(ValueError, match="input 'a': a text from 'robot'; only an operator says"):
        text = Input(
            kind="text", source="robot", shape=(3,), dtype="int64", pace="tick",
            prompt=Prompt(tokenizer="t", template="{instruction}", end_ids=()),
        )  # fmt: skip
        check_inputs({"a": text}, {"out": Output()})


def test_manifest_bytes_are_verified_before_anything_parses_them(tmp_path):
    path = family(tmp_path, INPUTS)
    seen = []
    read_bundle(path, verify=seen.append)
    assert seen == [(path / "manifest.json").read_bytes()]
    (path / "manifest.json").write_bytes(b"[" * 100)

    def refuse(data):
        raise runtime.BundleError(f"not signed: {len(data)} bytes")

    with pytest.raises(runtime.BundleError, match="not signed: 100 bytes"):
        read_bundle(path, verify=refuse)
