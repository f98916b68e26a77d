"""What decides about the actions is in a bundle's hash, so no verdict outlives a change of it."""

import json
from dataclasses import replace

import pytest

from export.gates import success_verdict
from runtime.bundle import GOLDEN, FileEntry
from runtime.graph import Graph
from tests.runtime.stand_ins.tiny_bundle import tiny_bundle

UNITS = {"action": {"modes": ["min_max"], "units": ["m"]}, "robots": {"arm": {"action": {}}}}
PROMPT = {"tail": "do {instruction} now", "end_ids": [7], "max_tail": 9}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    bundle = tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")
    return replace(bundle.manifest, normalization=UNITS, prompt=PROMPT, image={"patch_size": 14})


def graph_without_a_stage(graph):
    return Graph(
        inputs=graph.inputs, tensors=graph.tensors, stages=graph.stages[:-1], outputs=("c",)
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {"normalization": UNITS | {"action": {"modes": ["min_max"], "units": ["rad"]}}},
        lambda m: {"normalization": UNITS | {"action": {"modes": ["q99"], "units": ["m"]}}},
        lambda m: {"normalization": UNITS | {"robots": {"arm": {"action": {"min": [0]}}}}},
        lambda m: {"prompt": PROMPT | {"tail": "{instruction}"}},
        lambda m: {"prompt": PROMPT | {"end_ids": [8]}},
        lambda m: {"image": {"patch_size": 16}},
        lambda m: {"grid": (1, 2)},
        lambda m: {"graph": graph_without_a_stage(m.graph)},
    ],
)
def test_a_change_of_units_prompt_image_or_graph_is_another_policy(manifest, change):
    assert replace(manifest, **change(manifest)).content_sha256 != manifest.content_sha256


def test_every_file_but_the_golden_data_is_in_the_hash(manifest):
    for name in manifest.files:
        files = manifest.files | {name: FileEntry(sha256="0" * 64, bytes=1)}
        changed = replace(manifest, files=files).content_sha256 != manifest.content_sha256
        assert changed == (name != GOLDEN), name


def test_what_was_measured_is_not_in_the_hash(manifest):
    told = replace(manifest, gates={"success": "pass (x)"}, tolerance={"b": 1.0}, action_error=0.1)
    assert told.content_sha256 == manifest.content_sha256


def test_a_success_verdict_does_not_outlive_a_change_of_units(manifest, tmp_path):
    figures = {"difference": 0.0, "low": -0.01, "high": 0.01, "episodes": 600}
    path = tmp_path / "verdicts.json"
    path.write_text(json.dumps({"verdicts": {manifest.content_sha256: figures}}))
    assert success_verdict(path, manifest.content_sha256) == figures
    units = UNITS | {"action": {"modes": ["min_max"], "units": ["rad"]}}
    assert success_verdict(path, replace(manifest, normalization=units).content_sha256) is None


def test_gates_that_could_not_be_judged_are_told_apart(manifest):
    gates = {"a": "pass (1)", "b": "not measured (no episode)", "c": "fail (2)"}
    told = replace(manifest, gates=gates)
    assert told.unmeasured == {"b": "not measured (no episode)"}
    assert told.failed_gates == {"c": "fail (2)"}
