"""What `make gate` and `make planted` stand on: kept episodes, faults in files, their tables."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import runtime
from device_tests.success.episodes import EpisodeResult, SuccessConfig
from device_tests.success.motion import FIGURES, Motion
from export.config import PLANTED, VERDICTS, GateConfig, PlantedConfig
from export.errors import ExportError
from export.evidence import gate as gate_module
from export.evidence import kept_episodes, planted
from export.evidence.kept_episodes import evaluate_kept
from export.evidence.planted import FAULTS, Fault, plant
from export.evidence.results import render_motion, render_recipes
from export.gates import MOTION_BOUND, closed_loop_verdict
from models.demo.config import DEMO_TASKS
from quant.recipes import RECIPES

MOTION = Motion(mean_jerk=5.0, p99_jerk=40.0, high_share=0.01, seam_step=0.1, within_step=0.04)


def episodes_that(jerk, num, *, success=True):
    """Of every task, as an evaluation of one bundle has them."""
    random = np.random.default_rng(0)
    return [
        EpisodeResult(
            task=task, seed=10_000 + i, success=success, other_success=None, num_steps=60,
            num_thoughts=12, num_clipped_actions=0, digest="0", num_overtaken=0,
            num_held=0, seconds=6.0,
            motion=replace(MOTION, mean_jerk=jerk * float(np.exp(0.1 * random.normal()))),
        )
        for i in range(num)
        for task in DEMO_TASKS
    ]  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """Bundles that were evaluated, by a stand-in without a simulator."""
    evaluated = []

    def evaluate(config, **_):
        (bundle,) = config.bundles
        evaluated.append(bundle.name)
        results = {bundle: episodes_that(JERK.get(bundle.name, 5.0), config.episodes)}
        return kept_episodes.Evaluation(config=config, results=results, strips=[])

    monkeypatch.setattr(kept_episodes, "evaluate", evaluate)
    return evaluated


JERK = {"fault0": 5.1, "fault1": 6.0, "cut-cpu-int8": 5.1}


def config_of(*bundles, episodes=20):
    return SuccessConfig(bundles=bundles, tasks=DEMO_TASKS, episodes=episodes, jobs=1)


def test_kept_episodes_are_those_that_were_run_motion_included(calls, demo_bundle, tmp_path):
    config = config_of(demo_bundle)
    first, again = (evaluate_kept(tmp_path, config) for _ in range(2))
    assert calls == ["bundle"]
    assert again.results == first.results
    assert again.results[demo_bundle][0].motion == first.results[demo_bundle][0].motion
    assert isinstance(again.results[demo_bundle][0].motion, Motion)


def test_an_episode_that_told_no_motion_is_kept_as_such(calls, demo_bundle, tmp_path, monkeypatch):
    short = replace(episodes_that(5.0, 1)[0], motion=None)
    evaluation = kept_episodes.Evaluation(
        config=config_of(demo_bundle), results={demo_bundle: [short]}, strips=[]
    )
    monkeypatch.setattr(kept_episodes, "evaluate", lambda config, **_: evaluation)
    for _ in range(2):
        kept = evaluate_kept(tmp_path, config_of(demo_bundle)).results[demo_bundle]
        assert kept == [short]


def test_episodes_that_were_kept_by_another_definition_are_run_again(
    calls, demo_bundle, tmp_path, monkeypatch
):
    evaluate_kept(tmp_path, config_of(demo_bundle))
    monkeypatch.setattr(kept_episodes, "DEFINITIONS", "another")
    evaluate_kept(tmp_path, config_of(demo_bundle))
    assert len(calls) == 2


@pytest.fixture
def worked(exported, demo_bundle, monkeypatch):
    """Bundles are at hand: the cut policy's."""
    at_hand = {"float32": demo_bundle, "cpu-int8": exported("cpu-int8")}
    for module in (gate_module, planted):
        monkeypatch.setattr(
            module,
            "build_demo",
            lambda work, *row: at_hand[row[0] if row[1:] in ((), (1,)) else row],
        )
    return at_hand


@pytest.mark.parametrize(("jerk", "code"), [(5.1, 0), (5.6, 1)])
def test_the_gate_judges_motion_and_keeps_both_verdicts(
    worked, calls, tmp_path, monkeypatch, capsys, jerk, code
):
    monkeypatch.setitem(JERK, "cut-cpu-int8", jerk)
    verdicts = tmp_path / "v.json"
    config = GateConfig(
        recipes=("cpu-int8",), samples=1, episodes=20, work=tmp_path, verdicts=verdicts
    )
    assert gate_module.gate(config) == code
    told = capsys.readouterr()
    assert told.out.splitlines()[-1].startswith(
        f"{'FAIL' if code else 'pass'} cpu-int8: +0.0 points ["
    )
    assert f"mean jerk {jerk / 5:.2f} [" in told.out
    assert ("1 of 1 bundles cost success or motion" in told.err) == bool(code)
    content = runtime.read_bundle(worked["cpu-int8"]).manifest.content_sha256
    verdict = closed_loop_verdict(verdicts, content)
    assert verdict["successes"] == verdict["float32_successes"] == verdict["episodes"] == 80
    assert verdict["motion"]["pairs"] == 80
    assert verdict["motion"]["figures"]["mean_jerk"]["ratio"] == pytest.approx(jerk / 5)
    assert calls == ["bundle", "cut-cpu-int8"]


@pytest.mark.parametrize(("jerk", "code"), [(5.1, 0), (5.6, 1)])
def test_the_policy_of_several_samples_is_judged_as_one_more_row(
    worked, calls, tmp_path, monkeypatch, capsys, jerk, code
):
    monkeypatch.setitem(JERK, "cut-cpu-int8", jerk)
    worked["float32", 8] = worked.pop("cpu-int8")
    verdicts = tmp_path / "v.json"
    config = GateConfig(recipes=(), episodes=20, work=tmp_path, verdicts=verdicts)
    assert gate_module.gate(config) == code
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith(f"{'FAIL' if code else 'pass'} float32 with 8 samples: +0.0 points [")
    (verdict,) = json.loads(verdicts.read_text())["verdicts"].values()
    assert (verdict["recipe"], verdict["samples"]) == ("float32", 8)
    assert gate_module.gate(replace(config, samples=1)) == 0
    with pytest.raises(ValueError, match="samples must be positive, got 0"):
        replace(config, samples=0)


def test_a_demo_bundle_of_several_samples_is_built_beside_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(gate_module, "build", lambda config: (config.out, config.samples))
    assert gate_module.build_demo(tmp_path, "float32") == (tmp_path / "float32", 1)
    assert gate_module.build_demo(tmp_path, "float32", 8) == (tmp_path / "float32-samples8", 8)


def test_a_verdict_of_a_recipe_that_is_no_more_goes(worked, calls, tmp_path):
    verdicts = tmp_path / "v.json"
    old = {"recipe": "orin-w3", "float32_successes": 1}
    kept = {"recipe": "orin-w8a8", "float32_successes": 1}
    verdicts.write_text(json.dumps({"verdicts": {"a": old, "b": kept}}))
    gate_module.gate(
        GateConfig(recipes=("cpu-int8",), samples=1, episodes=20, work=tmp_path, verdicts=verdicts)
    )
    found = json.loads(verdicts.read_text())["verdicts"]
    assert [v["recipe"] for v in found.values()] == ["orin-w8a8", "cpu-int8"]


def test_the_gate_asks_all_recipes_that_change_anything_and_run_here():
    assert set(GateConfig().recipes) == RECIPES.keys() - {"float32", "thor-fp8"}


def scales_of(bundle, name):
    """Of inputs that become int8, by engine file."""
    graph = onnx.load(bundle / runtime.read_bundle(bundle).manifest.engines[name].file).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return {
        node.input[1]: constants[node.input[1]]
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }, {name: value for name, value in constants.items() if not name.endswith("activation_scale")}


@pytest.mark.parametrize("engines", [(), ("denoise",)])
def test_a_planted_fault_multiplies_the_scales_of_inputs_and_nothing_else(
    exported, tmp_path, engines
):
    healthy = exported("cpu-int8")
    fault = Fault(words="x", recipe="cpu-int8", factor=4.0, engines=engines)
    faulty = plant(healthy, tmp_path / "faulty", fault)
    for name in runtime.read_bundle(healthy).manifest.engines:
        (before, rest), (after, rest_after) = scales_of(healthy, name), scales_of(faulty, name)
        factor = 4.0 if name in (engines or (name,)) else 1.0
        assert before.keys() == after.keys()
        assert all(after[scale] == factor * before[scale] for scale in before)
        assert rest.keys() == rest_after.keys()
        assert all(np.array_equal(rest[key], rest_after[key]) for key in rest)
    assert scales_of(faulty, "denoise")[0], "there was something to multiply"


def test_a_bundle_with_a_fault_is_another_bundle_and_runs(exported, tmp_path):
    healthy = exported("cpu-int8")
    faulty = plant(healthy, tmp_path / "faulty", FAULTS[1])
    hashes = {runtime.read_bundle(b).manifest.content_sha256 for b in (healthy, faulty)}
    assert len(hashes) == 2
    errors = []
    for bundle in (healthy, faulty):
        with runtime.load(bundle) as policy:
            errors.append(policy.check()[-1].error)
    assert errors[1] > 1.5 * errors[0]


def test_a_bundle_without_static_scales_has_nowhere_to_plant(demo_bundle, tmp_path):
    with pytest.raises(ExportError, match="no input of any engine has a scale"):
        plant(demo_bundle, tmp_path / "faulty", FAULTS[1])
    assert not (tmp_path / "faulty").exists()


@pytest.mark.parametrize(("factor", "code"), [(1.2, 0), (1.02, 1)])
def test_a_fault_that_has_to_be_caught_and_is_not_is_an_error(
    worked, calls, tmp_path, monkeypatch, capsys, factor, code
):
    monkeypatch.setitem(JERK, "fault1", 5 * factor)
    faults = [f for f in FAULTS if f.recipe == "cpu-int8"][:2]
    monkeypatch.setattr(planted, "FAULTS", faults)
    assert [f.must_fail for f in faults] == [False, True]
    config = PlantedConfig(episodes=20, work=tmp_path, results=tmp_path)
    assert planted.planted(config) == code
    told = capsys.readouterr()
    assert ("missed 1 of 2" in told.err) == bool(code)
    found = json.loads((tmp_path / PLANTED).read_text())["faults"]
    assert [f["caught_by"] for f in found] == [[], [] if code else ["motion"]]
    assert found[1]["motion"]["figures"]["mean_jerk"]["ratio"] == pytest.approx(factor)


def verdict(jerk, **changes):
    figures = {
        name: {"first": 1.0, "this": jerk, "ratio": jerk, "low": jerk - 0.01, "high": jerk + 0.01}
        for name in FIGURES
    }
    return {
        "recipe": "cpu-int8", "difference": -0.018, "low": -0.031, "high": -0.007,
        "episodes": 600, "successes": 541, "float32_successes": 552, "action_error": 0.006,
        "engine_bytes": 4e6, "parameters": 4e6,
        "motion": {"pairs": 598, "left_out": 2, "figures": figures},
        "machine": {"date": "2026-11-28", "commit": "abc", "processor": "CPU"},
    } | changes  # fmt: skip


def test_the_table_of_motion_shows_recipes_and_faults(tmp_path):
    assert render_motion(tmp_path) == ""
    (tmp_path / VERDICTS.name).write_text(json.dumps({"verdicts": {"a": verdict(1.02)}}))
    text = render_motion(tmp_path)
    assert "Motion in closed loop, times float32's in the same 598 episodes (2 too short" in text
    assert f"allows an upper end of {MOTION_BOUND:g}" in text
    assert "planted" not in text
    good = " | ".join(["1.02 [1.01, 1.03]"] * 4)
    assert f"| `cpu-int8` | {good} | -1.8 [-3.1, -0.7] |" in text
    fault = {"words": "scales 4 times too large", "recipe": "cpu-int8"}
    faults = [{"fault": fault, "caught_by": ["motion"]} | verdict(1.25)]
    (tmp_path / PLANTED).write_text(json.dumps({"faults": faults}))
    text = render_motion(tmp_path)
    assert f"| `cpu-int8` | {good} |" in text
    bad = " | ".join(["1.25 [1.24, 1.26] **fails**"] * 4)
    assert f"| scales 4 times too large, `cpu-int8` | {bad} | -1.8 [-3.1, -0.7] |" in text


def test_verdicts_from_before_motion_are_shown_without_it(tmp_path):
    old = verdict(1.0)
    del old["motion"]
    (tmp_path / VERDICTS.name).write_text(json.dumps({"verdicts": {"a": old}}))
    assert render_motion(tmp_path) == ""
    assert "| `cpu-int8` | 4.0 MB, 25% |" in render_recipes(tmp_path)
