"""Every verdict is about held-out observations, all of them, and its limit is where it is said."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from device_tests.success.motion import FIGURES
from export import judge
from export.gates import MOTION_BOUND, MOTION_FIGURES, GateFailed, Gates
from export.held_out import LEAST_JUDGED
from export.judge import (
    allowed_in_chain,
    allowed_parity,
    judge_closed_loop,
    judge_coverage,
    judge_end_to_end,
    judge_rounding,
    judge_split,
    judge_stages,
    worst_stages,
)
from export.measure import Modules, rounding, stage_errors
from export.subject import prepare
from models.checkpoint import load_checkpoint
from models.declared import DENOISED
from models.demo import CHECKPOINT
from quant.recipes import RECIPES, Rule
from runtime.backends.parity import relative_error
from runtime.bundle import StageFigures
from tests.export.conftest import cut_config

SLIGHTLY = 1e-3
"""What a limit is missed or kept by, relative."""


@pytest.fixture(scope="module")
def subject(cut_checkpoint, tmp_path_factory):
    """The cut policy in int8 inputs and weights, calibrated as the demo is."""
    return prepared(cut_checkpoint, tmp_path_factory.mktemp("judge"), max_observations=None)


def prepared(checkpoint, folder, recipe="orin-w8a8-static", **changes):
    config = cut_config(checkpoint, folder / "bundle", recipe, **changes)
    return prepare(config, RECIPES[recipe](), load_checkpoint(checkpoint))


def verdict_of(judged, subject, *arguments, name):
    gates = Gates(force=True)
    judged(subject, gates, *arguments)
    return str(gates.verdicts[name])


def module_errors(subject):
    """Of the actions, per observation; a bundle's have rounding in them too."""
    quantized = Modules(subject.checkpoint, subject.parts)
    return [
        relative_error(quantized.actions(seen.inputs), seen.tensors[DENOISED])
        for seen in subject.judged
    ]


def with_judged(subject, index, **changes):
    judged = list(subject.judged)
    judged[index] = replace(judged[index], **changes)
    return replace(subject, judged=tuple(judged))


@pytest.fixture(scope="module")
def one_frame(tmp_path_factory):
    """The shipped policy calibrated on one frame: its error elsewhere is four times as large."""
    return prepared(CHECKPOINT, tmp_path_factory.mktemp("one"), max_observations=1)


def test_what_was_calibrated_on_one_frame_fails_every_gate_that_is_about_calibration(one_frame):
    assert len(one_frame.evidence.calibration) == 1
    told = verdict_of(judge_coverage, one_frame, name="calibration")
    assert told.startswith("fail (") and told.endswith("8 held-out observations)")
    assert verdict_of(judge_stages, one_frame, name="stage_error").startswith("fail")
    told = verdict_of(judge_end_to_end, one_frame, module_errors(one_frame), 0.0, name="end_to_end")
    assert told.startswith("fail (")


def test_nothing_is_called_measured_where_no_episode_is_held_out(one_frame):
    evidence = replace(one_frame.evidence, unproven="none is held out", held_out_by="")
    alone = replace(one_frame, evidence=evidence, judged=one_frame.judged[:1])
    small = 1e-9
    told = verdict_of(judge_end_to_end, alone, [small], 0.0, name="end_to_end")
    assert told.startswith("not measured (none is held out; 1.0e-09 of ")
    assert told.endswith(", 1 observation)")
    assert verdict_of(judge_end_to_end, alone, [1e9], 0.0, name="end_to_end").startswith("fail")
    lenient = replace(alone, recipe=replace(alone.recipe, stage_error=1e9))
    told = verdict_of(judge_stages, lenient, name="stage_error")
    assert told.startswith("not measured (none is held out; each at most 1e+09 times what")
    unseen = with_judged(alone, 0, reached=dict.fromkeys(alone.judged[0].reached, small))
    told = verdict_of(judge_coverage, unseen, name="calibration")
    assert told.startswith("not measured (none is held out; 0.00 of 1.5 times")


def test_the_policy_is_judged_by_eight_observations_of_episodes_apart(subject):
    assert len(subject.judged) == LEAST_JUDGED == 8
    assert len({seen.where.split(",")[0] for seen in subject.judged}) == 4
    assert [seen.is_golden for seen in subject.judged] == [True] + 7 * [False]


@pytest.mark.parametrize("index", [0, 3, 7])
@pytest.mark.parametrize(("times", "passes"), [(1.5 - SLIGHTLY, True), (1.5 + SLIGHTLY, False)])
def test_every_observation_may_reach_half_as_much_again_as_calibration_saw(
    subject, index, times, passes
):
    layer = next(name for name, rule in subject.rules.items() if rule.method == "smooth")
    largest = subject.statistics[layer].max
    reached = dict.fromkeys(subject.judged[index].reached, 0.0) | {layer: times * largest}
    planted = with_judged(subject, index, reached=reached)
    gates = Gates(force=False)
    if passes:
        judge_coverage(planted, gates)
        assert str(gates.verdicts["calibration"]) == (
            "pass (1.50 of 1.5 times the range that 38 observations showed, reached by 8 held-out "
            "observations)"
        )
        return
    where = subject.judged[index].where
    message = f"^gate calibration: {where} reaches 1.50 times the range .* showed {layer} in calib"
    with pytest.raises(GateFailed, match=message):
        judge_coverage(planted, gates)


@pytest.mark.parametrize("rounded", [Rule("*", "float"), Rule("*", "w8a8", "tokens")])
def test_a_layer_whose_input_has_no_step_of_its_own_may_see_what_it_likes(subject, rounded):
    layer = next(name for name, rule in subject.rules.items() if rule.method == "smooth")
    subject = replace(subject, rules={**subject.rules, layer: rounded})
    reached = subject.judged[3].reached | {layer: 100 * subject.statistics[layer].max}
    planted = with_judged(subject, 3, reached=reached)
    assert verdict_of(judge_coverage, planted, name="calibration").startswith("pass")


def test_a_recipe_that_rounds_no_input_to_int8_cuts_nothing_off(subject):
    rules = {
        name: replace(rule, format="w8", method="plain") for name, rule in subject.rules.items()
    }
    told = verdict_of(judge_coverage, replace(subject, rules=rules), name="calibration")
    assert told == "pass (no layer's input is rounded to a step of calibration's)"


@pytest.fixture(scope="module")
def ratios(subject):
    """Per stage, error over what bfloat16 does, on every observation."""
    exact = {
        n for n, r in RECIPES["orin-bf16"]().decide(subject.rules).items() if r.format == "float32"
    }
    found = []
    for seen in subject.judged:
        with rounding(subject.checkpoint.model, "bfloat16", exact):
            floors = stage_errors(subject.exact, seen.tensors)
        errors = stage_errors(subject.parts, seen.tensors)
        assert floors.pop("goal_readout") == errors.pop("goal_readout") == 0, "it stays float32"
        found.append({stage: errors[stage] / floors[stage] for stage in errors})
    return found


def test_the_worst_stage_on_any_observation_decides(subject, ratios):
    worst = max(max(row.values()) for row in ratios)
    index = next(i for i, row in enumerate(ratios) if max(row.values()) == worst)
    stage = max(ratios[index], key=lambda name: ratios[index][name])
    for factor, kind in ((1 + SLIGHTLY, "pass"), (1 - SLIGHTLY, "fail")):
        recipe = replace(subject.recipe, stage_error=factor * worst)
        told = verdict_of(judge_stages, replace(subject, recipe=recipe), name="stage_error")
        assert told.startswith(kind)
    gates = Gates(force=False)
    with pytest.raises(GateFailed, match=f"'{stage}' by .* \\({subject.judged[index].where}\\); a"):
        judge_stages(replace(subject, recipe=recipe), gates)


def test_every_stage_shows_its_worst_observation(subject, ratios):
    found = worst_stages(subject)
    assert (readout := found.pop("goal_readout")).error == readout.allowed == 0
    for stage, figures in found.items():
        index = max(range(len(ratios)), key=lambda i: ratios[i][stage])
        assert figures.where == subject.judged[index].where
        share = figures.error / figures.allowed
        assert share == pytest.approx(ratios[index][stage] / subject.recipe.stage_error)


@pytest.mark.parametrize("index", [0, 6])
def test_actions_may_move_by_half_of_what_another_seed_moves_them_over_all_observations(
    subject, index
):
    exact = Modules(subject.checkpoint, subject.exact)
    spreads = [exact.noise_spread(seen.inputs) for seen in subject.judged]
    limit = float(np.sqrt(np.mean(np.square(spreads)))) / 2
    errors = np.zeros(len(spreads))
    errors[index] = np.sqrt(len(spreads)) * limit  # the root mean square is the limit
    told = verdict_of(judge_end_to_end, subject, errors * (1 - SLIGHTLY), 0.0, name="end_to_end")
    assert told.startswith(f"pass ({limit * (1 - SLIGHTLY):.1e} of {limit:.1e}, 8 held-out obs")
    message = (
        r"^gate end_to_end: recipe orin-w8a8-static moves the actions by [\d.e-]+, allowed "
        rf"{limit:.1e}: half of what another noise seed moves them$"
    )
    with pytest.raises(GateFailed, match=message):
        judge_end_to_end(subject, Gates(force=False), errors * (1 + SLIGHTLY), 0.0)


def test_the_bundle_is_run_on_every_observation(subject, monkeypatch):
    """Rounding is in no module, so a bundle that errs elsewhere than on the golden one is found."""
    given = []

    def run(_policy, inputs, names):
        if names != (DENOISED,):
            return subject.tensors
        (seen,) = (seen for seen in subject.judged if seen.inputs is inputs)
        return {DENOISED: seen.tensors[DENOISED] * 1.25}

    monkeypatch.setattr(judge, "_open_bundle", lambda *a: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(judge, "_run_bundle", run)
    monkeypatch.setattr(judge, "judge_end_to_end", lambda s, g, errors, t: given.extend(errors))
    allowed = dict.fromkeys(subject.tensors, 1.0)
    judge.judge_actions(subject, Gates(force=True), None, allowed)
    assert given == pytest.approx([0.25] * 8)


@pytest.fixture(scope="module")
def exact_subject(cut_checkpoint, tmp_path_factory):
    return prepared(cut_checkpoint, tmp_path_factory.mktemp("exact"), "float32")


@pytest.mark.parametrize(
    ("error", "kind"), [(9.9e-5, "pass"), (1.01e-4, "fail"), (math.nan, "fail")]
)
def test_a_graph_has_to_compute_what_the_whole_policy_does(exact_subject, error, kind):
    """The golden actions know nothing of stages: a wrong graph cannot move them as well."""
    golden = exact_subject.golden[DENOISED]
    moved = {**exact_subject.exact_tensors, DENOISED: golden * np.float32(1 + error)}
    told = verdict_of(judge_split, replace(exact_subject, exact_tensors=moved), name="split")
    assert told.startswith(f"{kind} (actions ") and told.endswith(" of 1e-04)")
    assert verdict_of(judge_split, exact_subject, name="split").startswith("pass")


@pytest.mark.parametrize(("error", "kind"), [(9.9e-4, "pass"), (1.01e-3, "fail")])
def test_a_folded_policy_computes_what_it_did(subject, error, kind):
    golden = subject.golden[DENOISED]
    moved = {**subject.exact_tensors, DENOISED: golden * np.float32(1 + error)}
    told = verdict_of(judge_split, replace(subject, exact_tensors=moved), name="folding")
    assert told.startswith(kind) and told.endswith(f"actions {error:.1e} of 1e-03)")


@pytest.mark.parametrize(("times", "kind"), [(1 - SLIGHTLY, "pass"), (1 + SLIGHTLY, "fail")])
def test_float32_actions_may_move_by_the_tolerance(exact_subject, times, kind):
    arguments = ([times * 1e-4], 1e-4)
    told = verdict_of(judge_end_to_end, exact_subject, *arguments, name="end_to_end")
    assert told == f"{kind} (1.0e-04 of 1.0e-04, 1 observation)"


@pytest.mark.parametrize("name", ["suffix_hidden", "x_3", DENOISED])
@pytest.mark.parametrize(("times", "kind"), [(1 - SLIGHTLY, "pass"), (1 + SLIGHTLY, "fail")])
def test_every_tensor_of_the_whole_bundle_is_held_to_its_own_limit(
    exact_subject, monkeypatch, name, times, kind
):
    allowed = allowed_in_chain(exact_subject, {})
    assert set(allowed.values()) == {exact_subject.recipe.chain_tolerance}
    limits = dict.fromkeys(allowed, 0.1) | {name: 0.01}
    # Another one is moved further, but stays further below a limit of its own.
    moves = {"prefix_hidden": 0.05, name: times * limits[name]}
    moved = {n: t * (1 + moves.get(n, 0.0)) for n, t in exact_subject.tensors.items()}
    monkeypatch.setattr(judge, "_open_bundle", lambda *a: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(judge, "_run_bundle", lambda *arguments: moved)
    told = verdict_of(judge.judge_actions, exact_subject, None, limits, name="graph_parity")
    assert told.startswith(f"{kind} (actions ")


def test_an_actions_error_is_measured_by_what_float32_does(exact_subject, monkeypatch):
    """A quarter more is an error of 0.25, not of 0.2; the golden one is told, all are judged."""
    given = []

    def run(policy, inputs, names):
        seen = [s for s in exact_subject.judged if s.inputs is inputs and names == (DENOISED,)]
        tensors, factor = (seen[0].tensors, 1.5) if seen else (exact_subject.tensors, 1.25)
        return {name: factor * tensors[name] for name in names}

    monkeypatch.setattr(judge, "_open_bundle", lambda *a: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(judge, "_run_bundle", run)
    monkeypatch.setattr(judge, "judge_end_to_end", lambda *arguments: given.extend(arguments[2:]))
    allowed = dict.fromkeys(allowed_in_chain(exact_subject, {}), 0.3)
    error = judge.judge_actions(exact_subject, Gates(force=False), None, allowed)
    assert error == pytest.approx(0.25, rel=1e-3)
    assert given == [pytest.approx([0.5] * len(exact_subject.judged)), 0.3]


@pytest.fixture(scope="module")
def floors(subject):
    """Per stage, what rounding its linear layers to bfloat16 does to the recipe's modules."""
    kept = {name for name, rule in subject.rules.items() if rule.format == "float32"}
    with rounding(subject.model, "bfloat16", kept):
        return stage_errors(subject.parts, subject.tensors)


@pytest.mark.parametrize("stage", ["frame_vision", "denoise_7"])
@pytest.mark.parametrize(("times", "kind"), [(1 - SLIGHTLY, "pass"), (1 + SLIGHTLY, "fail")])
def test_lowering_may_err_by_four_times_what_rounding_in_torch_does(
    subject, floors, monkeypatch, tmp_path, stage, times, kind
):
    allowed = {name: 4 * floor + subject.recipe.tolerance for name, floor in floors.items()}
    errors = dict.fromkeys(allowed, 0.0) | {stage: times * allowed[stage]}
    engine = next(s.engine for s in subject.parts.graph.stages if s.name == stage)
    mine = {s.name for s in subject.parts.graph.stages if s.engine == engine}
    monkeypatch.setattr(judge, "engine_errors", lambda *a: {n: errors[n] for n in mine})
    monkeypatch.setattr(judge, "with_parity", lambda exported, found: found)
    exported = {engine: SimpleNamespace(entry=SimpleNamespace(file="x"), island_layers=())}
    unjudged = StageFigures(noise_floor=0.0, error=0.0, allowed=0.0, where="")
    stages = dict.fromkeys(allowed, unjudged)
    arguments = (exported, stages, tmp_path)
    told = verdict_of(judge_rounding, subject, *arguments, name="rounding")
    assert told == f"{kind} (bfloat16, each at most 4 times rounding in torch)"
    assert stages[stage].rounding_allowed == pytest.approx(allowed[stage])


def test_a_float32_engine_may_err_by_four_times_what_another_order_of_sums_does(subject):
    with rounding(subject.model, "float32", set()):
        floors = stage_errors(subject.parts, subject.tensors)
    allowed = allowed_parity(subject)
    for stage, floor in floors.items():
        assert allowed[stage] == pytest.approx(subject.recipe.tolerance + 4 * floor)
    assert max(floors.values()) > 0


def test_tensors_of_a_chain_may_err_by_four_times_what_rounding_does_to_them(subject):
    kept = {name for name, rule in subject.rules.items() if rule.format == "float32"}
    with rounding(subject.model, "bfloat16", kept):
        moved = Modules(subject.checkpoint, subject.parts).tensors(subject.golden)
    allowed = allowed_in_chain(subject, {})
    for name in ("x_1", "suffix_hidden", DENOISED):
        error = relative_error(moved[name], subject.tensors[name])
        assert allowed[name] == pytest.approx(subject.recipe.chain_tolerance + 4 * error)


@pytest.mark.parametrize(
    ("low", "kind"), [(-0.05 + SLIGHTLY, "pass"), (-0.05, "fail"), (-0.05 - SLIGHTLY, "fail")]
)
def test_success_may_fall_by_the_recipes_margin(subject, monkeypatch, low, kind):
    gates = judged_closed_loop(subject, monkeypatch, SUCCESS | {"low": low})
    assert gates.verdicts["success"].kind == kind
    assert str(gates.verdicts["motion"]) == ("not measured (make gate measures the demo's recipes)")


@pytest.mark.parametrize("figure", MOTION_FIGURES)
@pytest.mark.parametrize(("times", "kind"), [(1.0, "pass"), (1 + SLIGHTLY, "fail")])
def test_every_figure_of_motion_may_rise_to_the_bound(subject, monkeypatch, figure, times, kind):
    motion = motion_of({figure: times * MOTION_BOUND})
    gates = judged_closed_loop(subject, monkeypatch, SUCCESS | {"motion": motion})
    assert gates.verdicts["success"].kind == "pass"
    assert gates.verdicts["motion"].kind == kind


def test_steps_within_chunks_are_told_and_not_judged(subject, monkeypatch):
    motion = motion_of({"within_step": 9.0})
    gates = judged_closed_loop(subject, monkeypatch, SUCCESS | {"motion": motion})
    assert gates.verdicts["motion"].kind == "pass"


def test_a_recipe_that_moves_the_robot_worse_is_told_by_how_much(subject, monkeypatch):
    motion = motion_of({"mean_jerk": 1.2345})
    with pytest.raises(GateFailed) as failure:
        judged_closed_loop(subject, monkeypatch, SUCCESS | {"motion": motion}, force=False)
    assert str(failure.value) == (
        "gate motion: recipe orin-w8a8-static moves the robot worse: mean jerk 1.00 [0.90, 1.23], "
        "p99 jerk 1.00 [0.90, 1.01], high frequencies 1.00 [0.90, 1.01], step at seams 1.00 [0.90, "
        "1.01] times float32's in 598 paired episodes, at most 1.07 each"
    )


def test_a_motion_that_no_ratio_describes_is_no_good_motion(subject, monkeypatch):
    motion = motion_of({"mean_jerk": math.inf})
    gates = judged_closed_loop(subject, monkeypatch, SUCCESS | {"motion": motion})
    assert gates.verdicts["motion"].kind == "fail"


SUCCESS = {"difference": -0.01, "low": -0.02, "high": 0.01, "episodes": 600}


def motion_of(high):
    """A verdict as `make gate` writes it, with these upper ends of intervals."""
    figures = {
        name: {"first": 2.0, "this": 2.0, "ratio": 1.0, "low": 0.9, "high": high.get(name, 1.01)}
        for name in FIGURES
    }
    return {"pairs": 598, "left_out": 2, "figures": figures}


def judged_closed_loop(subject, monkeypatch, verdict, *, force=True):
    monkeypatch.setattr(judge, "closed_loop_verdict", lambda path, content: verdict)
    gates = Gates(force=force)
    judge_closed_loop(subject, gates, SimpleNamespace(content_sha256="0"))
    return gates


def test_float32_is_asked_for_no_episode(exact_subject):
    gates = Gates(force=False)
    judge_closed_loop(exact_subject, gates, SimpleNamespace(content_sha256="0"))
    assert gates.verdicts == {}
