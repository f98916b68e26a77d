"""The page of an export shows every verdict and figure, explains what is missing, runs nothing."""

import json

import msgspec
import pytest
from msgspec.structs import replace

from export.errors import ExportError
from export.page.report import GATES, write_report
from quant.recipes import MIXED
from quant.search.yardsticks import NF4, Yardstick
from runtime.bundle import (
    EngineEntry,
    FileEntry,
    Manifest,
    Quantization,
    RecipeEntry,
    StageFigures,
    Verdict,
)
from runtime.declarations import Tensor
from runtime.graph import Graph, Stage
from tests.graphs import leaves, vectors
from tests.pages import Page, broken_promises

STAGES = ("anchor_vision", "prefix", "denoise_0", "denoise_1")


def passed(figures):
    return Verdict(kind="pass", figures=figures)


def failed(figures):
    return Verdict(kind="fail", figures=figures)


def unmeasured(figures):
    return Verdict(kind="not measured", figures=figures)


PASSED = dict.fromkeys(GATES, passed("1.0e-02 of 5.0e-02"))
SUCCESS = passed("+1.0 points [-2.0, +4.0] of success in 400 paired episodes")


def figures(**given):
    """Of a stage: what is not given is nothing, or was not measured."""
    return StageFigures(
        **{"noise_floor": 0.0, "error": 0.0, "allowed": 0.0, "where": "one", **given}
    )


FIGURES = figures(
    parity=1e-7, error=2e-2, noise_floor=4e-3, allowed=1e-1, rounding=1e-3, rounding_allowed=1e-2
)
RECIPE = RecipeEntry(
    name="orin-w8a8",
    target="orin",
    purpose="time",
    base="bfloat16",
    tolerance=5e-3,
    rules=(("vlm.*", "w8a8", "smooth"), ("*", "w8", "plain")),
)
CPU = RecipeEntry(name="float32", target="cpu", base="float32", tolerance=1e-4, rules=())
FLOAT16 = replace(RECIPE, base="float16", tolerance=1e-4)


def make_manifest(**changes):
    """A w8a8 export of two engines: 1000 and 500 parameters, 6000 bytes in float32."""
    stages = dict.fromkeys(STAGES, FIGURES)
    for name, final in (("denoise_0", 3e-3), ("denoise_1", 7e-5)):
        stages[name] = replace(FIGURES, final=final)
    fields = {
        "policy": "anchorvla4d",
        "recipe": RECIPE,
        "license": "Apache-2.0",
        "description": "made up",
        "source_sha256": "ab" * 32,
        "twin_of": "",
        "dependencies": {},
        "statistics": {},
        "tables": {},
        "graph": Graph(
            inputs=vectors("frame"),
            tensors={"actions": Tensor(shape=(1,))},
            stages=(Stage(name="act", function="act", outputs={"y": "actions"}),),
            outputs=leaves("actions"),
        ),
        "engines": {
            "vision": engine("vision", 1000),
            "denoise": engine("denoise", 500, compiled="SM86 in 0.3 s, 6.1 MB"),
        },
        "files": {
            "engines/vision.onnx": FileEntry(sha256="1" * 64, bytes=200),
            "engines/vision.weights": FileEntry(sha256="2" * 64, bytes=1000),
            "engines/denoise.onnx": FileEntry(sha256="3" * 64, bytes=300),
            "embedding.bin": FileEntry(sha256="4" * 64, bytes=2_000_000),
        },
        "padded_share": {},
        "tolerance": {"actions": 5e-2},
        "action_error": 1.8e-2,
        "gates": PASSED | {"success": SUCCESS},
        "quantization": Quantization(
            layers={"w8 plain": 60, "w8a8 smooth": 35},
            precisions={"vision": {"w8a8 in bfloat16": 11, "bfloat16": 1}},
            islands={},
            stages=stages,
        ),
        "tool_versions": {"torch": "2.13.0"},
    }
    return Manifest(**{**fields, **changes})


def engine(name, parameters, compiled="not checked"):
    return EngineEntry(
        file=f"engines/{name}.onnx", inputs={}, outputs={}, parameters=parameters, parity=2e-3,
        compiled=compiled,
    )  # fmt: skip


def change(manifest, **quantization):
    return replace(manifest, quantization=replace(manifest.quantization, **quantization))


@pytest.fixture
def show(tmp_path):
    def write(manifest, **more):
        path = tmp_path / "new" / "report.html"
        write_report(path, manifest, **more)
        return Page(path.read_text())

    return write


def test_the_heading_says_what_was_made_of_what(show):
    manifest = make_manifest()
    text = show(manifest).text
    for words in (
        "anchorvla4d, recipe orin-w8a8",
        "Target orin, made for time, base format bfloat16, 2 engines",
        f"Content {manifest.content_sha256[:16]},",
        "weights " + "ab" * 8 + ".",
        "Weights: made up. Licence: Apache-2.0.",
        "Made with torch 2.13.0.",
    ):
        assert words in text
    assert manifest.content_sha256[:17] not in text


def test_every_gate_has_a_verdict_with_its_figures(show):
    gates = PASSED | {
        "rounding": failed("2.0e-02 of 1.0e-02 (engine x)"),
        "success": unmeasured("make gate measures it"),
        "added later": passed("fine"),
    }
    rows = {row[1]: row for row in show(make_manifest(gates=gates)).sections["Verdicts"]}
    assert list(rows) == ["gate", *gates]
    assert rows["stage_error"] == [
        "pass", "stage_error", GATES["stage_error"], "1.0e-02 of 5.0e-02",
    ]  # fmt: skip
    assert (rows["rounding"][0], rows["rounding"][3]) == ("fail", "2.0e-02 of 1.0e-02 (engine x)")
    assert (rows["success"][0], rows["success"][3]) == ("not measured", "make gate measures it")
    assert rows["added later"] == ["pass", "added later", "", "fine"]


@pytest.mark.parametrize("kind", ["perhaps", "PASS", "", None])
def test_words_that_are_no_verdict_are_in_no_manifest(kind):
    raw = msgspec.to_builtins(make_manifest(gates={"rounding": {"kind": kind, "figures": ""}}))
    with pytest.raises(msgspec.ValidationError, match=r"\$\.gates"):
        msgspec.convert(raw, Manifest)


def test_a_forced_bundle_is_announced_loudly(show):
    page = show(make_manifest(gates=PASSED | {"stage_error": failed("0.2 of 0.1")}))
    assert {"class": "alarm", "role": "alert"} in [a for _, a in page.attributes]
    assert f"Forced: 1 of {len(GATES)} gates failed" in page.text
    assert "stage_error: fail (0.2 of 0.1)" in page.text
    assert "Forced" not in show(make_manifest()).text


def test_shares_are_bytes_of_the_files_over_four_bytes_a_parameter(show):
    page = show(make_manifest())
    rows = page.rows("Engines")
    # 200 + 1000 of 4 * 1000; 300 of 4 * 500; 1500 of 6000.
    assert rows["vision"][1:5] == ["1,000", "4,000", "1,200", "30.0%"]
    assert rows["denoise"][1:5] == ["500", "2,000", "300", "15.0%"]
    assert rows["all"][1:5] == ["1,500", "6,000", "1,500", "25.0%"]
    assert "adds 2.0 MB" in page.text


def test_an_engine_is_not_given_the_files_of_one_whose_name_begins_alike(show):
    manifest = make_manifest()
    files = manifest.files | {"engines/vision_large.weights": FileEntry(sha256="5" * 64, bytes=7)}
    page = show(replace(manifest, files=files))
    assert page.rows("Engines")["vision"][3] == "1,200"


def test_engines_show_their_audited_formats_and_what_the_compiler_said(show):
    rows = show(make_manifest()).rows("Engines")
    assert rows["vision"][6:] == ["2.0e-03", "11 w8a8 in bfloat16, 1 bfloat16", "not checked"]
    assert rows["denoise"][7:] == ["not audited", "SM86 in 0.3 s, 6.1 MB"]


def test_every_stage_shows_its_errors_against_what_is_allowed(show):
    rows = show(make_manifest()).rows("Stages")
    assert set(STAGES) < set(rows)
    # error / floor = 2e-2 / 4e-3
    assert rows["prefix"] == [
        "prefix", "1.0e-07", "", "2.0e-02", "4.0e-03", "5.0", "1.0e-01", "",
        "1.0e-03", "1.0e-02", "",
    ]  # fmt: skip
    assert {len(row) for name, row in rows.items() if name} == {11}


@pytest.mark.parametrize(
    ("error", "title", "colour"),
    [
        (2e-2, "20% of the limit", "far"),
        (5e-2, "50% of the limit", "near"),
        (1e-1, "100% of the limit", "near"),
        (2e-1, "200% of the limit", "over"),
        (float("inf"), "inf% of the limit", "over"),
        (0.0, "0% of the limit", "far"),
    ],
)
def test_the_colour_of_a_meter_says_how_near_the_limit_is(show, error, title, colour):
    stages = {"prefix": figures(parity=0.0, error=error, noise_floor=1e-2, allowed=1e-1)}
    assert (title, colour) in show(change(make_manifest(), stages=stages)).meters()


def test_a_meter_is_logarithmic(show):
    # A tenth of the limit is one of the two decades that a meter has: half of it.
    stages = {"prefix": figures(parity=5e-4, error=1e-9, noise_floor=1e-2, allowed=1e-1)}
    page = show(change(make_manifest(), stages=stages))
    widths = [a["style"] for tag, a in page.attributes if tag == "i"]
    assert widths[-2:] == ["width:50%", "width:0%"]


def test_parity_is_shown_beside_what_its_gate_allowed(show):
    stages = {"prefix": figures(parity=1e-2, parity_allowed=4e-2, noise_floor=1e-2)}
    assert ("25% of the limit", "far") in show(change(make_manifest(), stages=stages)).meters()


def test_what_is_not_quantized_or_lowered_has_no_columns_but_a_reason(show):
    stages = {"denoise_0": figures(parity=1e-7, noise_floor=2e-3, final=0.0)}
    gates = {"engine_parity": passed("at most 1e-04")}
    page = show(change(make_manifest(gates=gates, recipe=CPU), stages=stages))
    assert page.rows("Stages")["denoise_0"] == ["denoise_0", "1.0e-07", "", "2.0e-03"]
    for words in (
        "The recipe quantizes no layer",
        "The base format is float32: no engine was lowered",
        "None of the 1 denoise steps is quantized",
        "a recipe that changes no precision costs no episode",
        "None: the base format is float32",
    ):
        assert words in page.text


def test_denoise_steps_are_a_chart_that_names_the_worst(show):
    text = show(make_manifest()).text
    assert "The most sensitive is denoise_0: 3.0e-03" in text
    assert " 7.0e-05 " in text  # the other column's label


@pytest.mark.parametrize("finals", [(0.0, 1e-3), (float("inf"), 1e-3), (float("inf"), 0.0)])
def test_steps_without_an_error_or_with_an_infinite_one_are_drawn_too(show, finals):
    stages = {f"denoise_{n}": figures(final=final) for n, final in enumerate(finals)}
    page = show(change(make_manifest(), stages=stages))
    assert page.tags.count("rect") == 2
    assert f"The most sensitive is denoise_{finals.index(max(finals))}" in page.text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (
            SUCCESS,
            "keeps its success in this precision: +1.0 points [-2.0, +4.0] of success in 400",
        ),
        (
            failed("-9.0 points [-12.0, -6.0]"),
            "loses success in this precision: -9.0 points [-12.0",
        ),
        (unmeasured("make gate"), "was not measured: make gate"),
    ],
)
def test_success_in_closed_loop_has_its_interval_or_is_said_to_be_missing(show, verdict, words):
    assert words in show(make_manifest(gates={"success": verdict})).text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (passed("mean jerk 1.02"), "moves as smoothly in this precision: mean jerk 1.02"),
        (failed("mean jerk 1.31"), "moves worse in this precision: mean jerk 1.31"),
        (unmeasured("make gate"), "smoothly the robot moves in this precision was not measured: m"),
    ],
)
def test_motion_stands_beside_success(show, verdict, words):
    text = show(make_manifest(gates={"success": SUCCESS, "motion": verdict})).text
    assert words in text
    assert text.index("keeps its success in this precision") < text.index(words)


def test_islands_are_listed_from_the_largest_and_counted_where_they_are_many(show):
    found = {f"tensor_{n}": 40000.0 + n for n in range(32)}
    page = show(change(make_manifest(recipe=FLOAT16), islands={"language": found}))
    rows = page.sections["Float32 islands"][1:]
    # 40031 / 65504
    assert rows[0] == ["language", "tensor_31", "40,031", "61.1%"]
    assert len(rows) == 30
    assert "2 more are smaller and not shown" in page.text
    assert "no tensor came near" in show(make_manifest(recipe=FLOAT16)).text


def test_a_study_is_drawn_and_says_whose_weights_it_measured(show):
    page = show(make_manifest(), sensitivity=MIXED)
    study = json.loads(MIXED.read_text())
    assert set(study["sensitivity"]) <= set(page.texts)
    assert page.tags.count("svg") == 3
    assert any(text.startswith("chosen: ") for text in page.texts)
    sha256 = study["source"]["sha256"]
    assert f"Measured on other weights, {sha256[:16]}." in page.text
    own = show(make_manifest(source_sha256=sha256), sensitivity=MIXED)
    assert "other weights" not in own.text


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"budget": {"ms": 1}, "path": []}'])
def test_what_is_no_study_is_refused(show, tmp_path, content):
    path = tmp_path / "recipe.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ExportError, match=r"recipe\.json: not a sensitivity study .* writes one"):
        show(make_manifest(), sensitivity=path)


def test_yardsticks_stand_by_their_bytes(show):
    found = [Yardstick("w8", 0.005, 1.0234, 40), Yardstick(NF4, 0.07, 0.5625, 40)]
    page = show(make_manifest(), yardsticks=found)
    assert page.sections["Yardsticks"][1:] == [
        [NF4, "40", "0.562", "7.0e-02", ""],
        ["w8", "40", "1.023", "5.0e-03", ""],
    ]
    assert [colour for _, colour in page.meters()][-2:] == ["theirs", "ours"]


def test_what_a_bare_manifest_lacks_is_said(show):
    nothing = Quantization(layers={}, precisions={}, islands={})
    page = show(make_manifest(gates={}, quantization=nothing, tool_versions={}, engines={}))
    for words in (
        "no verdict of any gate",
        "no figures of stages",
        "no figures of denoise steps",
        "a recipe that changes no precision costs no episode",
        "make sensitivity measures",
        "Not measured. Where a recipe quantizes",
        "Linear layers: not counted.",
        "tools that the manifest does not name",
    ):
        assert words in page.text


def test_text_from_a_checkpoint_stays_text(show):
    bad = "<script>alert('1')</script>&\"<img src=x onerror=y>"
    manifest = make_manifest(
        policy=bad, license=bad, description=bad, gates={bad: failed(bad)},
        recipe=replace(FLOAT16, name=bad, target=bad, rules=((bad, bad, bad),)),
        engines={bad: engine("vision", 10, compiled=bad)}, tool_versions={bad: bad},
    )  # fmt: skip
    stages = {f"{bad}_{n}": figures(error=1.0, allowed=2.0, final=1.0) for n in "01"}
    page = show(
        change(
            manifest, stages=stages, layers={bad: 1}, precisions={bad: {bad: 1}},
            islands={bad: {bad: 6e4}},
        ),
        yardsticks=[Yardstick(bad, 1.0, 1.0, 1)],
    )  # fmt: skip
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count(bad) >= 16


def test_the_page_keeps_what_every_page_promises(show):
    page = show(
        make_manifest(gates=PASSED | {"stage_error": failed("x")}), sensitivity=MIXED,
        yardsticks=[Yardstick("w8", 0.1, 1.0, 1)],
    )  # fmt: skip
    assert broken_promises(page) == []
    assert "img" not in page.tags


def test_a_meter_has_words_for_those_who_cannot_see_it(show):
    meters = [a for _, a in show(make_manifest()).attributes if a.get("class") == "meter"]
    named = [a for a in meters if a.get("title")]
    assert named and all(a["aria-label"] == a["title"] and a["role"] == "img" for a in named)
    # The others repeat a figure that stands beside them.
    assert all(a.get("aria-hidden") == "true" for a in meters if a not in named)
