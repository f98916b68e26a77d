"""Ticks of policies that remember pictures: what is timed, and how fast an exact cache may be."""

import dataclasses
import json

import numpy as np
import pytest
from msgspec.structs import replace

import export.evidence.bench
import runtime
from export.engines.counts import count
from export.errors import ExportError
from export.evidence.bench import interleaved
from export.evidence.config import PicturesConfig
from export.evidence.limits import engine_flops, kinds, least_flops
from export.evidence.pictures import (
    MOST_TICKS,
    Case,
    Script,
    bench_pictures,
)
from export.evidence.pictures_table import pictures_table, render_pictures
from export.evidence.subject import Subject, with_words
from export.forecast.config import ForecastConfig
from export.forecast.policy import Prompt, prompt_of, size, size_policy
from models.checkpoint import load_checkpoint
from models.eventvla.presets import one_view, thin, thin_recent, tiny
from models.families import family_of, to_json
from runtime.functions.keyframes import EventSettings
from runtime.prompt import encode_tail
from tests.oracles import END_TO_END

SIDE, ROUNDS, TOLD = 64, 3, "put the carrot on the plate"
VIEWS, DELAYS, SLOTS = 2, 2, 2
"""Of the tiny policy: pictures of each moment, moments of the past, and keyframes."""


EVENTS = EventSettings(threshold=0.01, nms_window=8, cooldown=8, most_keyframes=SLOTS)
"""One in each chunk or two, whatever the weights say."""
RECENT, REMEMBERS = "recent", "remembers"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Of the tiny policy and of the same that keeps nothing; without the minutes of a compiler."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, speaks in ((RECENT, False), (REMEMBERS, True)):
        config = dataclasses.replace(tiny(), events=EVENTS, predicts_keyframes=speaks)
        (folder / f"{name}.json").write_text(to_json(config))
    asked = PicturesConfig(
        configs=tuple(str(folder / f"{name}.json") for name in (RECENT, REMEMBERS)),
        limits=("eventvla-one-view",), image=SIDE, rounds=ROUNDS, work=folder / "work",
        results=folder / "results",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.evidence.bench, "_has_compiler", lambda: False)
        found = bench_pictures(asked)
    return folder, found


def test_a_tick_of_each_kind_is_timed_and_set_beside_its_limit(measured):
    folder, found = measured
    (path,) = (folder / "results").iterdir()
    assert path.name.startswith("pictures-") and json.loads(path.read_text()) == found
    ticks = [(t["kind"], t["different"], t["pictures"], t["keyframes"]) for t in found["ticks"]]
    assert ticks == [("first", 2, 8, 0), ("usual", 8, 8, 0), ("usual", 10, 10, 2)]
    towers = [tuple(tick["towers"].values()) for tick in found["ticks"]]
    assert towers == [(8, 2), (8, 2), (10, 2)]
    for tick in found["ticks"]:
        assert list(tick["towers"]) == ["recomputed", "warm"]
        assert tick["error"] <= END_TO_END
        for row in ("recomputed", "eager"):
            ratio = tick[f"{row}_ms"] / tick["warm_ms"]
            assert tick["speedup"][row] == pytest.approx(ratio, rel=0.01)
            assert 0 < tick[f"{row}_ms"] <= tick[f"{row}_p99_ms"]
        every, new = (sum(tick[key].values()) for key in ("recomputed_gflops", "gflops"))
        assert tick["limit"] == pytest.approx(every / new, rel=0.01) and tick["limit"] > 1
        assert tick["vision_share"] == pytest.approx(
            tick["recomputed_gflops"]["vision"] / every, abs=0.01
        )
    assert "compiled" not in found["ticks"][0]["speedup"]
    assert found["rounds"] == ROUNDS and found["machine"]["threads"] >= 1


def test_the_table_shows_what_was_measured(measured):
    folder, found = measured
    table = render_pictures(folder / "results")
    assert table == f"\n{pictures_table(found)}\n"
    assert "| | 2, the first tick | 8 | 10, 2 of them keyframes |" in table
    warm = " | ".join(f"{t['warm_ms']:.0f} ({t['warm_p99_ms']:.0f})" for t in found["ticks"])
    assert f"| **our runtime, warm** | {warm} |" in table
    limits = " | ".join(f"{t['limit']:.2f} x" for t in found["ticks"])
    assert f"| **limit of an exact cache** | {limits} |" in table
    assert "torch.compile" not in table
    faster = " | ".join(f"{t['speedup']['eager']:.2f} x" for t in found["ticks"])
    assert f"| warm against eager | {faster} |" in table
    assert (
        "| pictures through the tower, recomputed and warm | 8 and 2 | 8 and 2 | 10 and 2 |"
        in table
    )
    (limit,) = found["limits"]
    assert f"| usual tick | {limit['kinds']['usual']['limit']:.2f} x |" in table
    assert "| | 8 pictures, 24 vision and 36 language layers |" in table
    assert render_pictures(folder) == ""


@pytest.fixture(scope="module")
def bundles(measured):
    """By name: checkpoint, bundle loaded, and the policy without weights."""
    folder, _ = measured
    loaded = {}
    for work in (folder / "work").iterdir():
        name = RECENT if RECENT in work.name else REMEMBERS
        checkpoint, policy = load_checkpoint(work / "checkpoint"), runtime.load(work / "bundle")
        sized = size(
            checkpoint.config, name=name, image=checkpoint.image, image_size=(SIDE, SIDE),
            prompt=Prompt(parts=checkpoint.parts, tail=len(checkpoint.tail_ids(TOLD))), layers={},
            slots=policy.graph.tensors["suffix_embeddings"].shape[0],
        )  # fmt: skip
        loaded[name] = checkpoint, policy, sized
    yield loaded
    for _, policy, _ in loaded.values():
        policy.close()


def ran(policy):
    """What the files of the engines say that the last tick multiplied, and towers it ran."""
    manifest, stages = policy.bundle.manifest, {s.name: s for s in policy.graph.stages}
    engines = [stages[name].engine for name in policy.interpreter.last_run]
    files = [manifest.engines[engine].file for engine in engines if engine]
    return sum(count(policy.bundle.path / file).flops for file in files), engines.count("vision")


@pytest.mark.parametrize(
    ("name", "kind", "towers"),
    [
        (RECENT, "first", VIEWS),
        (RECENT, "usual", VIEWS),
        (RECENT, "all", 8),
        (REMEMBERS, "usual", VIEWS),
        (REMEMBERS, "all", 10),
    ],
)
def test_a_tick_is_what_it_is_called_and_runs_what_its_files_say(
    measured, bundles, name, kind, towers
):
    checkpoint, policy, sized = bundles[name]
    subject = Subject(
        name=name, checkpoint=checkpoint, sized=sized, policy=policy, shown={}, libraries={}
    )
    case = Case(subject, Script(policy), "first" if kind == "first" else "usual")
    case.prepare()
    case.tick(cold=kind == "all")
    flops, seen = ran(policy)
    assert seen == towers
    assert flops == sum(engine_flops(sized, kinds(sized.graph)[kind]).values())
    shown = [policy.interpreter.values[cone.source] for cone in policy.graph.cones["pictures"]]
    different = len({value.tobytes() for value in shown})
    assert len(shown) == (8 if name == RECENT else 10)
    assert different == VIEWS if kind == "first" else different >= VIEWS * (2 + DELAYS)
    assert name == RECENT or policy.interpreter.values["keyframes"][0] == SLOTS
    case.tick(cold=True)
    for tick in measured[1]["ticks"]:
        if name in tick["config"] and tick["kind"] == kind:
            assert tick["padded_limit"] == pytest.approx(ran(policy)[0] / flops, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "place"), [("all", None), ("first", 0), ("usual", 2), ("waited", 6), ("keyframe", 8)]
)
def test_the_least_is_what_stands_behind_the_first_picture_that_changed(bundles, kind, place):
    """By hand; where pictures stand is what transformers' prompt says."""
    checkpoint, policy, sized = bundles[REMEMBERS]
    library = family_of(checkpoint.config).reference(
        checkpoint.model, checkpoint.tokenizer, checkpoint.image
    )
    Script(policy).settle()
    values = policy.interpreter.values
    shown = {name: values[name] for name in policy.inputs if name != "instruction"}
    told = library.prepare(instruction=TOLD, **shown)
    is_picture = (told.input_ids[0] == library.image_pad_id).numpy()
    begins = np.flatnonzero(np.diff(is_picture, prepend=False) & is_picture)
    total, merged = len(is_picture), is_picture.sum() // len(begins)
    assert len(begins) == 10
    # The first call ends with the pictures of the first step, and sees nothing behind them.
    cut = begins[VIEWS - 1] + merged
    kept = 0 if place is None else begins[place]
    calls = [(cut - kept, cut), (total - cut, total)] if kept < cut else [(total - kept, total)]
    lm = tiny().language
    width, keys, hidden = lm.hidden_size, lm.num_key_value_heads * lm.head_dim, lm.intermediate_size
    queries = lm.num_attention_heads * lm.head_dim
    weights = 2 * width * queries + 2 * width * keys + 3 * width * hidden
    products = sum(2 * new * weights + 4 * queries * new * seen for new, seen in calls)
    least = least_flops(sized, kinds(sized.graph)[kind])
    assert least.pop("language") == lm.num_hidden_layers * products
    towers = {"all": 10, "keyframe": 0}.get(kind, VIEWS)
    engines = policy.bundle.manifest.engines
    calls = {"vision": towers, "act": 1, "events": 1}
    assert least == {
        name: calls[name] * count(policy.bundle.path / engines[name].file).flops
        for name in calls if calls[name]
    }  # fmt: skip


def test_rows_take_turns_and_what_is_done_before_is_not_timed(monkeypatch):
    now, done = [0.0], []

    def work(name, seconds):
        def run():
            done.append(name)
            now[0] += seconds

        return run

    monkeypatch.setattr(export.evidence.bench.time, "perf_counter", lambda: now[0])
    rows = {"a": work("a", 0.25), "b": work("b", 0.5)}
    timed = interleaved(rows, {"b": work("before b", 64.0)}, 3, lambda done, total: None)
    assert done == 3 * ["a", "before b", "b"]
    assert {row: (q.p50, q.n) for row, q in timed.items()} == {"a": (250.0, 3), "b": (500.0, 3)}


def test_at_the_published_depth_the_limit_is_far_from_three():
    """Two thirds of a usual tick's tokens stand behind the first picture that changes."""
    for name, pictures in (("eventvla-one-view", 8), ("eventvla-robotwin", 16)):
        policy = size_policy(ForecastConfig(config=name, image_size=(224, 224)))
        ticks = kinds(policy.graph)
        every, usual, waited, events = (
            sum(least_flops(policy, ticks[kind]).values())
            for kind in ("all", "usual", "waited", "keyframe")
        )
        assert len(ticks["all"].changed) == pictures
        assert 1.3 < every / usual < 1.5 < every / waited


def test_the_thin_policy_has_the_published_widths_and_prompt(tmp_path):
    published, ours = one_view(), thin()
    for trunk, depth, few in (
        ("vision", "depth", {"deepstack_visual_indexes"}),
        ("language", "num_hidden_layers", {"vocab_size"}),
    ):
        pair = [dataclasses.asdict(getattr(config, trunk)) for config in (published, ours)]
        changed = {name for name in pair[0] if pair[0][name] != pair[1][name]}
        assert changed == {depth} | few
    assert 3 * ours.vision.depth == 2 * ours.language.num_hidden_layers
    assert 3 * published.vision.depth == 2 * published.language.num_hidden_layers
    assert ours.vision.num_deepstack == 1 and thin_recent().most_keyframes == 0
    tokenizer = with_words("eventvla-thin")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompts = [prompt_of(published), prompt_of(ours, tmp_path / "tokenizer.json")]
    (tokens, tail), (ours_tokens, ours_tail) = (
        (family_of(ours).fixed_tokens(ours, p.parts, (14, 14)), p.tail) for p in prompts
    )
    assert abs(ours_tail - tail) <= 8
    assert all(abs(ours_tokens[call] - tokens[call]) <= 8 for call in tokens)
    assert max(tokenizer.get_vocab().values()) < ours.language.vocab_size
    words = encode_tail(tokenizer, prompts[1].parts.tail, (), TOLD)
    assert words.count(prompts[1].parts.action_id) == ours.head.action_horizon


def test_a_policy_that_remembers_no_pictures_is_refused(tmp_path):
    asked = PicturesConfig(configs=("demo",), image=112, work=tmp_path)
    with pytest.raises(ValueError, match="^demo: this policy remembers no pictures"):
        bench_pictures(asked)


def test_a_policy_that_finds_no_events_is_told_apart_from_one_that_waits(bundles):
    _, policy, _ = bundles[REMEMBERS]
    inputs = {
        name: replace(i, memory=replace(i.memory, threshold=1.0)) if i.memory else i
        for name, i in policy.graph.inputs.items()
    }
    graph, policy.graph = policy.graph, replace(policy.graph, inputs=inputs)
    try:
        with pytest.raises(ExportError, match=f"0 of 2 keyframes after {MOST_TICKS} ticks: lower"):
            Script(policy).settle()
    finally:
        policy.graph = graph


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"configs": ("mine",)}, "unknown configuration 'mine'; there are"),
        ({"configs": (), "limits": ("mine",)}, "unknown configuration 'mine'; there are"),
        ({"configs": ("eventvla-tiny",), "rounds": 2}, "rounds at least 3, got 224, 2"),
        ({"configs": ("eventvla-tiny",), "image": 0}, "image must be positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        bench_pictures(PicturesConfig(**fields))
