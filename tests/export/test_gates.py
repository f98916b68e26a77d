"""A gate that fails stops an export, says what was measured, and cannot be talked over quietly."""

import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs
from rich.console import Console

import runtime
from export.build import build
from export.errors import ExportError
from export.gates import Gates, closed_loop_verdict, words_of
from export.page.failure import FINER, advise
from models.demo import EPISODES
from quant.apply import quantize_folded
from quant.recipes import RECIPES, Recipe, Rule
from runtime.__main__ import main as anchorvla
from runtime.bundle import Verdict
from runtime.errors import BundleError
from runtime.recordings.recording import evenly, load_recording, save_recording
from tests.export.conftest import cut_config
from tests.pages import Page, broken_promises

WRONG = "vlm.visual.blocks.0.mlp.down_proj"
VERDICT = {"difference": -0.01, "low": -0.03, "high": 0.01, "episodes": 600}


def first_cell(section):
    """Of the table, below its head."""
    return re.search(r"<td[^>]*>([^<]*)", section)[1]


def judged(gates, name="parity", *, passed):
    gates.judge(name, passed, f"{name} 1 of 2", "engine vision is off by 3, allowed 2")


def test_a_verdict_that_passes_holds_its_figures():
    gates = Gates(force=False)
    judged(gates, passed=True)
    assert gates.verdicts == {"parity": Verdict(kind="pass", figures="parity 1 of 2")}


def test_a_gate_that_fails_stops_with_its_name_and_message():
    gates = Gates(force=False)
    with pytest.raises(ExportError) as error:
        judged(gates, passed=False)
    assert str(error.value) == "gate parity: engine vision is off by 3, allowed 2"
    assert gates.verdicts == {"parity": Verdict(kind="fail", figures="parity 1 of 2")}


def test_a_later_verdict_takes_the_place_of_one_that_passed():
    """What was shown first and then could not be shown is not shown."""
    gates = Gates(force=False)
    judged(gates, passed=True)
    gates.judge("parity", True, "parity 2 of 2", "")
    assert gates.verdicts == {"parity": Verdict(kind="pass", figures="parity 2 of 2")}
    gates.judge("parity", True, "parity 2 of 2", "", unproven="no held-out data")
    words = "no held-out data; parity 2 of 2"
    assert gates.verdicts == {"parity": Verdict(kind="not measured", figures=words)}


def test_what_failed_once_stays_failed():
    gates = Gates(force=True)
    for passed in (True, False, True):
        judged(gates, passed=passed)
    judged(gates, "audit", passed=True)
    assert gates.verdicts["parity"].kind == "fail"
    assert gates.verdicts["audit"].kind == "pass"


def test_figures_that_prove_nothing_pass_no_gate_and_fail_it_all_the_same():
    gates = Gates(force=True)
    told = []
    for passed in (True, False, True):
        gates.judge("parity", passed, "1 of 2", "off by 3", unproven="one frame")
        told.append(str(gates.verdicts["parity"]))
    assert told == ["not measured (one frame; 1 of 2)", "fail (1 of 2)", "fail (1 of 2)"]


@pytest.mark.parametrize(("recipe", "finer"), FINER.items())
@pytest.mark.parametrize("gate", ["stage_error", "end_to_end", "success", "motion"])
def test_a_recipe_that_is_too_coarse_names_the_one_to_try_next(recipe, finer, gate):
    (words,) = advise(recipe, gate)
    assert words.startswith(f"Try {finer} next")
    assert ("python -m quant sensitivity" in words) == (recipe == "orin-mixed")


def test_every_recipe_for_an_orin_or_a_cpu_leads_to_one_that_quantizes_nothing():
    assert FINER.keys() | {"float32", "thor-fp8"} == RECIPES.keys()
    for recipe in FINER:
        while recipe in FINER:
            recipe = FINER[recipe]
        assert recipe == "float32"


def test_no_recipe_is_named_for_a_fault_that_is_not_its_own():
    for gate in ("engine_parity", "precision_audit", "rounding", "graph_parity"):
        assert advise("orin-mixed", gate) == [
            "No recipe helps: the exported files do not compute what their modules do."
        ]
    assert advise("orin-mixed", "calibration") == [], "the gate's own message says it"


def test_a_file_that_is_not_there_knows_no_verdict(tmp_path):
    assert closed_loop_verdict(tmp_path / "none.json", "0" * 64) is None


def test_a_verdict_is_found_by_the_bundles_hash(tmp_path):
    file = tmp_path / "verdicts.json"
    file.write_text(json.dumps({"verdicts": {"abc": VERDICT}}))
    assert closed_loop_verdict(file, "abc") == VERDICT
    assert closed_loop_verdict(file, "abd") is None
    assert words_of(VERDICT) == "-1.0 points [-3.0, +1.0] of success in 600 paired episodes"


def test_a_verdict_does_not_outlive_a_change_of_units(demo_bundle, tmp_path):
    manifest = runtime.read_bundle(demo_bundle).manifest
    graph = manifest.graph
    (target,) = (s for s in graph.stages if s.function == "unnormalize")
    hashes = []
    for unit in ("m", "mm"):
        params = {**target.params, "units": [unit for _ in target.params["units"]]}
        stages = [structs.replace(s, params=params) if s is target else s for s in graph.stages]
        changed = structs.replace(manifest, graph=structs.replace(graph, stages=tuple(stages)))
        hashes.append(changed.content_sha256)
    metres, millimetres = hashes
    file = tmp_path / "verdicts.json"
    file.write_text(json.dumps({"verdicts": {metres: VERDICT}}))
    assert closed_loop_verdict(file, metres) == VERDICT
    assert closed_loop_verdict(file, millimetres) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "{}", '{"verdicts": []}', '{"verdicts": {"abc": {}}}',
     '{"verdicts": {"abc": 7}}', json.dumps({"verdicts": {"abc": VERDICT | {"motion": {}}}}),
     json.dumps({"verdicts": {"abc": VERDICT | {"motion": [600]}}})],
)  # fmt: skip
def test_a_damaged_file_of_verdicts_is_refused(text, tmp_path):
    (tmp_path / "verdicts.json").write_text(text)
    with pytest.raises(ExportError, match=r"verdicts\.json: not a file of verdicts .* make gate"):
        closed_loop_verdict(tmp_path / "verdicts.json", "abc")


def test_a_recipes_layer_that_does_not_exist_is_named(cut_checkpoint, tmp_path, monkeypatch):
    rules = (Rule("vlm.misspelt.*", "w8"), Rule("*", "float32"))
    recipe = Recipe(name="trial", rules=rules, target="cpu", purpose="time", chain_tolerance=1e-4)
    monkeypatch.setitem(RECIPES, "trial", lambda: recipe)
    message = r"recipe trial: \['vlm\.misspelt\.\*'\] decide about no layer: a misspelt name"
    with pytest.raises(ValueError, match=message):
        build(cut_config(cut_checkpoint, tmp_path / "bundle", "trial"))
    assert not list(tmp_path.iterdir())


def test_one_layers_wrong_scale_is_refused(cut_checkpoint, tmp_path, monkeypatch):
    def wrong(folded, recipe, work):
        model = quantize_folded(folded, recipe)
        model.get_submodule(WRONG).scales.mul_(1.5)
        return model

    monkeypatch.setattr("export.subject.quantize_folded", wrong)
    message = (
        r"^gate stage_error: recipe orin-w8a8 moves stage '\w+_vision' by [\d.e+-]+, allowed "
        r"[\d.e+-]+: 25 times what bfloat16 does to it \(\S+-2000\d, frame \d+\); a scale is "
        r"wrong, or the recipe asks too much of this policy\. Try orin-bf16 next\. No bundle was "
        r"written; where it errs: .*bundle-failed\.html$"
    )
    piped = io.StringIO()
    with pytest.raises(ExportError, match=message):
        build(cut_config(cut_checkpoint, tmp_path / "bundle", "orin-w8a8"), Console(file=piped))
    assert re.findall(r"^ *[0-9.]+ s  (.*)$", piped.getvalue(), re.MULTILINE) == [
        "load checkpoint", "read the episodes", "run in float32", "calibrate on 4 observations",
        "fold", "run in float32 on 8 observations", "round the weights", "judge the stages",
        "find out where it errs",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["bundle-failed.html"]
    page = (tmp_path / "bundle-failed.html").read_text()
    assert broken_promises(Page(page)) == []
    observations, engines, stages, layers = page.split("<h2>")[2:]
    assert "Try orin-bf16 next" in page
    assert len(re.findall(r"\S+-2000\d, frame \d+", observations)) == 8
    assert first_cell(engines) == "vision"
    assert "anchor_vision" in stages
    assert first_cell(layers) == WRONG


@pytest.fixture(scope="module")
def darkness(tmp_path_factory):
    """Episodes of another robot in the dark, told something else."""
    folder = tmp_path_factory.mktemp("darkness")
    seen = load_recording(EPISODES / "touch-red-1.npz")
    seen = replace(
        seen,
        instruction="sing",
        streams={
            "frame": evenly(np.zeros_like(seen.streams["frame"].values[:12]), 10.0),
            "state": evenly(seen.streams["state"].values[:12], 10.0),
        },
        actions=seen.actions[:12],
    )
    save_recording(seen, folder / "dark.npz")
    return folder


def test_calibration_on_something_else_is_refused(cut_checkpoint, darkness, tmp_path):
    message = (
        r"^gate calibration: \S+-2000\d, frame \d+ reaches [\d.]+ times the range that 2 "
        r"observations showed vlm\.\S+ in calibration, allowed 1\.5: calibrate on more of the "
        r"robot's own episodes and instructions \(--calibration, now .*darkness\d+\)\. No bundle"
    )
    with pytest.raises(ExportError, match=message):
        build(
            cut_config(
                cut_checkpoint, tmp_path / "bundle", "orin-w8a8-static", calibration=darkness
            )
        )
    assert [path.name for path in tmp_path.iterdir()] == ["bundle-failed.html"]


@pytest.fixture(scope="module")
def forced(cut_checkpoint, darkness, tmp_path_factory):
    """A bundle that was exported against its gates."""
    out = tmp_path_factory.mktemp("forced") / "bundle"
    return build(cut_config(cut_checkpoint, out, "cpu-int8", calibration=darkness, force=True))


def test_a_forced_bundle_says_which_gates_failed(forced):
    gates = runtime.read_bundle(forced).manifest.gates
    assert gates["calibration"].kind == "fail"
    assert gates["calibration"].figures.endswith("by 8 held-out observations")
    assert gates["precision_audit"].kind == "pass"


def test_the_runtime_refuses_a_forced_bundle_until_told_otherwise(forced):
    message = (
        r"bundle: its export was forced although gates failed \(calibration: fail \(.*\); "
        r"export it again without --force, or say --accept-failed-gates to run it as it is"
    )
    with pytest.raises(BundleError, match=message):
        runtime.load(forced)
    policy = runtime.load(forced, accept_failed_gates=True)
    seen = load_recording(EPISODES / "touch-red-1.npz")
    images, states = (seen.streams[name].values for name in ("frame", "state"))
    episode = policy.start(anchor=images[0], instruction=seen.instruction)
    assert np.isfinite(episode.act({"frame": images[1], "state": states[1]}).actions).all()


def test_the_command_line_runs_a_forced_bundle_only_when_told(forced, capsys):
    assert anchorvla(["check", str(forced)]) != 0
    assert "although gates failed" in capsys.readouterr().err
    assert anchorvla(["check", str(forced), "--accept-failed-gates"]) == 0


def test_a_gate_that_fails_writes_nothing_and_keeps_the_old_bundle(
    cut_checkpoint, darkness, demo_bundle, tmp_path
):
    old = runtime.read_bundle(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    with pytest.raises(ExportError, match="gate calibration"):
        build(cut_config(cut_checkpoint, old.path, "orin-w8a8-static", calibration=darkness))
    assert runtime.read_bundle(old.path) == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle-failed.html"]


def write_verdict(path, bundle, **changes):
    content = runtime.read_bundle(bundle).manifest.content_sha256
    path.write_text(json.dumps({"verdicts": {content: {**VERDICT, **changes}}}))
    return path


def test_without_a_verdict_success_and_motion_are_not_measured(exported):
    gates = runtime.read_bundle(exported("orin-bf16")).manifest.gates
    assert str(gates["success"]).startswith("not measured (make gate")
    assert str(gates["motion"]).startswith("not measured (make gate")


def test_a_recipe_that_costs_success_is_refused(exported, cut_checkpoint, tmp_path):
    verdicts = write_verdict(tmp_path / "v.json", exported("orin-bf16"), low=-0.0501)
    message = (
        r"^gate success: recipe orin-bf16 costs success: -1\.0 points \[-5\.0, \+1\.0\] of success "
        r"in 600 paired episodes, allowed -5\. Try float32 next\. No bundle was written; where"
    )
    with pytest.raises(ExportError, match=message):
        build(cut_config(cut_checkpoint, tmp_path / "bundle", "orin-bf16", verdicts=verdicts))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle-failed.html", "v.json"]


def test_the_same_export_has_the_same_hash_and_with_it_its_verdict(
    exported, cut_checkpoint, tmp_path
):
    first = exported("orin-bf16")
    verdicts = write_verdict(tmp_path / "v.json", first, low=-0.0499)
    out = tmp_path / "bundle"
    second = build(cut_config(cut_checkpoint, out, "orin-bf16", verdicts=verdicts))
    manifests = [runtime.read_bundle(bundle).manifest for bundle in (first, second)]
    assert manifests[0].content_sha256 == manifests[1].content_sha256
    assert manifests[0].files == manifests[1].files
    assert str(manifests[1].gates["success"]) == (
        "pass (-1.0 points [-5.0, +1.0] of success in 600 paired episodes)"
    )
    runtime.read_bundle(second)


def test_another_recipe_has_another_hash(exported):
    hashes = [
        runtime.read_bundle(exported(recipe)).manifest.content_sha256
        for recipe in ("orin-bf16", "orin-w8a8")
    ]
    assert hashes[0] != hashes[1]
