"""A bundle is read whole and true, or refused before any engine sees a byte of it."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

import runtime
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.bundle import (
    FileEntry,
    Manifest,
    Observations,
    Quantization,
    RecipeEntry,
    StageFigures,
    Verdict,
    read_bundle,
)
from runtime.declarations import Output, Tensor
from runtime.storage.listed import sha256_of
from tests.graphs import leaves
from tests.runtime.stand_ins.tiny_bundle import tiny_bundle

QUICK, FULL = 400, 10_000


@pytest.fixture
def bundle(demo_bundle, tmp_path):
    """A copy that a test may damage; large files are hard links until they are rewritten."""
    return _copy(demo_bundle, tmp_path / "bundle")


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, copy_function=lambda a, b: Path(b).hardlink_to(a))
    return target


def edit(bundle: Path, change) -> None:
    path = bundle / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.unlink()
    path.write_text(json.dumps(raw))


def rewrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def test_what_was_written_is_what_is_read(demo_bundle):
    manifest = read_bundle(demo_bundle).manifest
    assert json.loads(manifest.to_json()) == json.loads((demo_bundle / "manifest.json").read_text())


def test_no_folder_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(runtime.BundleError, match="no such folder; make one with: python -m expor"):
        read_bundle(tmp_path / "none")


def test_a_folder_without_manifest_is_no_bundle(tmp_path):
    with pytest.raises(runtime.BundleError, match=r"no manifest.json in it"):
        read_bundle(tmp_path)


def _set(*keys, value):
    def change(raw):
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return change


def _delete(*keys):
    def change(raw):
        for key in keys[:-1]:
            raw = raw[key]
        del raw[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("schema", value=1), "schema 1, this runtime reads 2; export the bundle again"),
        (_delete("schema"), "no 'schema' in it"),
        (_delete("graph"), "not a manifest of schema 2"),
        (_set("surprise", value=1), "not a manifest of schema 2"),
        (_set("dependencies", "prefix_kv", value=[]), r"dependencies of \['prefix_kv'\]"),
        (_set("graph", "stages", 0, "function", value="rm"), "host function 'rm', which this run"),
        (_delete("engines", "vision"), "needs unknown engine 'vision'"),
        (
            _set("engines", "vision", "inputs", "patches", "shape", value=[1, 2]),
            "to port 'patches'",
        ),
        (_set("files", "../evil", value={"sha256": "0", "bytes": 1}), "which leaves the folder"),
        (_set("files", "/etc/passwd", value={"sha256": "0", "bytes": 1}), "leaves the folder"),
        (_set("files", "a/./b", value={"sha256": "0", "bytes": 1}), "leaves the folder"),
        (_set("files", "gone.bin", value={"sha256": "0", "bytes": 1}), "gone.bin: missing; copy"),
        (_set("files", "golden.npz", "bytes", value=3), "the manifest says 3; copy the bundle"),
        (_set("files", "golden.npz", "sha256", value="0" * 64), "SHA-256 differs"),
        (_set("tables", "tokens", "file", value="none.bin"), "lists no 'none.bin'"),
        (
            _delete("statistics", "metaworld_sawyer", "state"),
            "needs statistics 'state', of every embodiment; they are missing of metaworld_sawyer",
        ),
        (_set("statistics", value={}), "missing of all, for there is none"),
    ],
)
def test_a_manifest_that_is_not_true_is_refused(bundle, change, message):
    edit(bundle, change)
    with pytest.raises(runtime.BundleError, match=message):
        read_bundle(bundle)


def test_engines_that_were_left_for_later_are_handed_out_verified_or_not_at_all(bundle):
    weights = bundle / "engines" / "vision.weights"
    rewrite(weights, weights.read_bytes()[::-1])
    opened = read_bundle(bundle, engines=False)
    files = opened.manifest.files
    engines = {name for name in files if name.startswith("engines/")}
    assert opened.verified.keys() == files.keys() - engines
    assert opened.bytes_verified == sum(files[n].bytes for n in files if n not in engines)
    opened.file("engines/vision.onnx")
    for hand_out in (
        lambda: opened.engine("vision"),
        lambda: opened.file(weights.relative_to(bundle).as_posix()),
    ):
        with pytest.raises(runtime.BundleError, match=r"vision\.weights: SHA-256 differs"):
            hand_out()
    assert opened.engine("language") == bundle / "engines" / "language.onnx"
    assert {"engines/language.onnx", "engines/language.weights"} <= opened.verified.keys()
    weights.unlink()
    with pytest.raises(runtime.BundleError, match=r"vision\.weights: cannot be read .No such file"):
        opened.engine("vision")


def test_what_was_verified_by_another_manifest_is_read_again(bundle):
    opened = read_bundle(bundle)
    files = dict(opened.manifest.files)
    files["golden.npz"] = replace(files["golden.npz"], sha256="0" * 64)
    manifest = replace(opened.manifest, files=files)
    with pytest.raises(runtime.BundleError, match=r"golden\.npz: SHA-256 differs"):
        dataclasses.replace(opened, manifest=manifest).file("golden.npz")


def test_text_that_is_no_json_is_refused(bundle):
    rewrite(bundle / "manifest.json", b"{")
    with pytest.raises(runtime.BundleError, match="not JSON"):
        read_bundle(bundle)


def test_deeply_nested_json_is_refused(bundle):
    rewrite(bundle / "manifest.json", b"[" * 200_000)
    with pytest.raises(runtime.BundleError, match="not JSON"):
        read_bundle(bundle)


def test_an_oversized_manifest_is_not_even_parsed(bundle):
    rewrite(bundle / "manifest.json", b" " * (17 << 20))
    with pytest.raises(runtime.BundleError, match="the limit is"):
        read_bundle(bundle)


def test_a_file_nobody_listed_is_refused(bundle):
    (bundle / "engines" / "extra.onnx").write_bytes(b"")
    with pytest.raises(runtime.BundleError, match=r"extra.onnx: not in the manifest; remove it"):
        read_bundle(bundle)


def test_plans_that_a_device_added_are_no_part_of_the_release(bundle):
    (bundle / "plans").mkdir()
    (bundle / "plans" / "vision.plan").write_bytes(b"x")
    read_bundle(bundle)


def test_a_link_is_refused_even_if_it_leads_to_the_right_bytes(bundle, tmp_path):
    golden = bundle / "golden.npz"
    golden.rename(tmp_path / "elsewhere.npz")
    golden.symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(runtime.BundleError, match="a link; a bundle holds plain files only"):
        read_bundle(bundle)


def test_a_linked_folder_is_refused(bundle, tmp_path):
    (bundle / "engines").rename(tmp_path / "engines")
    (bundle / "engines").symlink_to(tmp_path / "engines")
    with pytest.raises(runtime.BundleError, match="a link"):
        read_bundle(bundle)


def test_an_embedding_in_bfloat16_gives_the_actions_of_its_numbers_in_float32(
    bundle, tmp_path, image
):
    """A table whose numbers bfloat16 holds, kept as halves of float32, upper ones first."""
    table = np.fromfile(bundle / "embedding.bin", np.float32).view(np.uint32) >> 16
    packed = _copy(bundle, tmp_path / "packed")
    chunks = []
    for folder, dtype, data in (
        (bundle, "float32", (table << 16).tobytes()),
        (packed, "bfloat16", table.astype(np.uint16).tobytes()),
    ):
        rewrite(folder / "embedding.bin", data)
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        edit(folder, _set("files", "embedding.bin", value=entry))
        edit(folder, _set("tables", "tokens", "dtype", value=dtype))
        with runtime.load(folder) as policy:
            episode = policy.start(anchor=image(0), instruction="open the drawer")
            chunks.append(
                episode.act({"frame": image(1), "state": np.zeros(4, np.float32)}).actions
            )
    assert np.array_equal(*chunks)


def test_an_embedding_of_another_size_is_refused(bundle):
    edit(bundle, _set("tables", "tokens", "shape", value=[3, 128]))
    with pytest.raises(runtime.BundleError, match=r"has not the size of float32 \[3, 128\]"):
        read_bundle(bundle)


def test_a_tokenizer_with_more_ids_than_its_table_has_rows_is_refused_at_load(bundle):
    table = read_bundle(bundle).manifest.tables["tokens"]
    rows = table.shape[0] // 2
    data = (bundle / "embedding.bin").read_bytes()[: rows * table.shape[1] * 4]
    rewrite(bundle / "embedding.bin", data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(bundle, _set("files", "embedding.bin", value=entry))
    edit(bundle, _set("tables", "tokens", "shape", value=[rows, table.shape[1]]))
    with pytest.raises(runtime.BundleError, match=r"has the id \d+, which table 'tokens' \["):
        runtime.load(bundle)


def test_statistics_that_do_not_fit_are_refused_at_load(bundle):
    edit(bundle, _constant("policy_state", "modes", ["q98"] * 4))
    with pytest.raises(runtime.BundleError, match="unknown mode 'q98'"):
        runtime.load(bundle)


def _constant(stage, name, value):
    """Another constant of a host function."""

    def change(raw):
        (found,) = [s for s in raw["graph"]["stages"] if s["name"] == stage]
        found["params"][name] = value

    return change


def _mutate(demo_bundle, tmp_path, monkeypatch, count):
    """Damage `count` copies, one way each; an engine must never be loaded from one."""
    loads = []
    monkeypatch.setattr(OnnxRuntimeBackend, "engine", lambda self, path: loads.append(path))
    random = np.random.default_rng(0)
    names = sorted(json.loads((demo_bundle / "manifest.json").read_text())["files"])
    work = _copy(demo_bundle, tmp_path / "mutant")
    for _ in range(count):
        path = work / str(random.choice(names))
        data = path.read_bytes()
        kind = random.choice(["flip", "truncate", "grow", "rename", "remove", "link"])
        if kind == "flip":
            at, bit = int(random.integers(len(data))), 1 << int(random.integers(8))
            rewrite(path, data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        elif kind == "truncate":
            rewrite(path, data[: int(random.integers(len(data)))])
        elif kind == "grow":
            rewrite(path, data + b"\0")
        elif kind == "rename":
            path.rename(path.with_name("renamed"))
        else:
            path.unlink()
            if kind == "link":
                path.symlink_to(demo_bundle / path.relative_to(work))
        with pytest.raises(runtime.BundleError):
            runtime.load(work)
        path.with_name("renamed").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        path.hardlink_to(demo_bundle / path.relative_to(work))
    assert not loads
    read_bundle(work)  # the mutations, not the copying, were what was refused


def test_damaged_bundles_are_refused_before_any_engine_is_loaded(
    demo_bundle, tmp_path, monkeypatch
):
    _mutate(demo_bundle, tmp_path, monkeypatch, QUICK)


@pytest.mark.full
def test_ten_thousand_damaged_bundles_are_refused(demo_bundle, tmp_path, monkeypatch):
    _mutate(demo_bundle, tmp_path, monkeypatch, FULL)


def test_mutated_manifests_are_refused_with_our_own_error(demo_bundle, tmp_path):
    """Bytes of the manifest itself: either our error, or a manifest that still means the same."""
    work = _copy(demo_bundle, tmp_path / "mutant")
    path, random = work / "manifest.json", np.random.default_rng(1)
    data = path.read_bytes()
    refused = 0
    for _ in range(QUICK):
        at = int(random.integers(len(data)))
        rewrite(path, data[:at] + bytes([int(random.integers(32, 127))]) + data[at + 1 :])
        try:
            read_bundle(work)
        except runtime.BundleError:
            refused += 1
    assert refused > QUICK // 2


PARTS = {
    "graph": lambda m: {"graph": replace(m.graph, outputs=leaves("a", "d"))},
    "a constant": lambda m: {"graph": _graph_with(m.graph, params={"ids": [1]})},
    "a unit": lambda m: {"graph": replace(m.graph, outputs={"d": Output(units=("m",) * 64)})},
    "statistics": lambda m: {"statistics": {"arm": {"state": {"min": [0]}}}},
    "tables": lambda m: {"tables": {"words": replace(m.tables["words"], dtype="bfloat16")}},
    "prompt": lambda m: {"graph": _with_prompt(m.graph, template="In: {instruction}")},
    "end of the prompt": lambda m: {"graph": _with_prompt(m.graph, end_ids=(1,))},
    **{
        name: lambda m, name=name: {"files": {**m.files, name: FileEntry(sha256="0", bytes=1)}}
        for name in ("engines/first.onnx", "embedding.bin", "tokenizer.json", "engines/new.bin")
    },
}
REPORTED = {
    "files": lambda m: {**m.files, "golden.npz": FileEntry(sha256="0", bytes=1)},
    "gates": lambda m: {"parity": Verdict(kind="pass", figures="")},
    "action_error": lambda m: 0.5,
    "description": lambda m: "another",
    "tool_versions": lambda m: {"torch": "0"},
    "quantization": lambda m: replace(m.quantization, layers={"w8a8": 1}),
    "twin_of": lambda m: "another",
}


def _with_prompt(graph, **changes):
    text = graph.inputs["instruction"]
    prompt = replace(text.prompt, **changes)
    return replace(graph, inputs={"instruction": replace(text, prompt=prompt)})


def _graph_with(graph, **changes):
    return replace(graph, stages=(replace(graph.stages[0], **changes), *graph.stages[1:]))


def test_the_content_hash_changes_with_all_that_decides_about_the_actions_and_with_no_more(
    tmp_path,
):
    manifest = tiny_bundle(tmp_path).manifest
    hashes = {"as it is": manifest.content_sha256}
    for name, change in PARTS.items():
        hashes[name] = replace(manifest, **change(manifest)).content_sha256
    assert len(set(hashes.values())) == len(hashes)
    for name, change in REPORTED.items():
        same = replace(manifest, **{name: change(manifest)})
        assert same.content_sha256 == hashes["as it is"], name
    shuffled = replace(manifest, files=dict(reversed([*manifest.files.items()])))
    assert shuffled.content_sha256 == hashes["as it is"]


def test_gates_that_could_not_be_judged_are_told_from_those_that_failed(tmp_path):
    gates = {
        "a": Verdict(kind="pass", figures="1, no fail"),
        "b": Verdict(kind="not measured", figures="no episode"),
        "c": Verdict(kind="fail", figures="2"),
    }
    manifest = replace(tiny_bundle(tmp_path).manifest, gates=gates)
    assert manifest.unmeasured == {"b": gates["b"]}
    assert manifest.failed_gates == {"c": gates["c"]}
    assert list(map(str, gates.values())) == [
        "pass (1, no fail)", "not measured (no episode)", "fail (2)"
    ]  # fmt: skip


def test_a_manifest_of_every_field_comes_back_as_it_was(tmp_path):
    """Written, read and compared as objects: what writing forgets, reading cannot restore."""
    path = tmp_path / "manifest.json"
    old = tiny_bundle(tmp_path).manifest
    tensors = {**old.graph.tensors, "part": Tensor(shape=(64,), part_of=("d", 64))}
    outputs = {"d": Output(axes=("a", "b"), units=("m",) * 64, step_s=0.5, statistics="x", every=3)}
    graph = replace(old.graph, tensors=tensors, outputs=outputs)
    engines = {
        **old.engines,
        "first": replace(
            old.engines["first"], parameters=7, parity=0.25, compiled="yes", unfused_scratch_bytes=9
        ),
    }
    seen = Observations(
        calibrated_on=5, held_out="by episode", judged_by=("a", "b"), least=2, golden="b",
        unproven="few",
    )  # fmt: skip
    new = Manifest(
        policy="policy",
        recipe=RecipeEntry(
            name="r", target="orin", base="bfloat16", tolerance=0.5, rules=(("*", "w8a8", "gptq"),)
        ),
        license="license",
        description="description",
        source_sha256="source",
        twin_of="twin",
        graph=graph,
        dependencies=graph.listed_dependencies,
        statistics={"arm": {"state": {"min": [0.5], "mask": [True]}}},
        tables=old.tables,
        engines=engines,
        files=old.files,
        padded_share={"prefix": 0.25},
        tolerance=dict.fromkeys("bcd", 0.125),
        action_error=0.125,
        gates={"a": Verdict(kind="fail", figures="2 of 1")},
        quantization=Quantization(
            layers={"w8a8": 1},
            precisions={"first": {"int8": 1}},
            islands={"first": {"t": 2.0}},
            stages={
                "first": StageFigures(
                    noise_floor=1.0, error=2.0, allowed=3.0, where="a", final=4.0, parity=5.0,
                    parity_allowed=6.0, rounding=7.0, rounding_allowed=8.0,
                )
            },
            observations=seen,
        ),
        tool_versions={"torch": "2"},
    )  # fmt: skip
    path.write_bytes(new.to_json())
    read = read_bundle(tmp_path).manifest
    for field in msgspec.structs.fields(new):
        assert getattr(read, field.name) == getattr(new, field.name), field.name
    assert json.loads(path.read_text())["dependencies"]["part"] == ["instruction"]


def _tiny(tmp_path, change):
    """A bundle of a few hundred bytes whose manifest was edited."""
    edit(tiny_bundle(tmp_path / "tiny").path, change)
    return tmp_path / "tiny"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("graph", "stages", 1, "inputs", value={"z": "a"}), r"binds \['z'\], .* has \['x'\]"),
        (_set("graph", "stages", 1, "outputs", value={"z": "b"}), r"binds \['z'\], .* \['y'\]"),
        (_set("engines", "first", "outputs", "y", "dtype", value="float16"), "is float16 "),
        (_set("engines", "first", "outputs", "y", "shape", value=[16, 63]), "float32 .16, 63."),
        (_set("engines", "first", "file", value="engines/none.onnx"), "lists no 'engines/none.onn"),
        (_delete("files", "tokenizer.json"), "lists no 'tokenizer.json'"),
        (_set("files", "engines", value={"sha256": "0", "bytes": 1}), "engines: missing"),
        (_set("files", "a\\b", value={"sha256": "0", "bytes": 1}), "which leaves the folder"),
        (_set("files", "a/../b", value={"sha256": "0", "bytes": 1}), "which leaves the folder"),
        (_set("tables", "words", "shape", value=[4, 32]), "rows of 'words' are 32 wide, not 64"),
        (_delete("tables", "words"), r"needs table 'words', there are \[\]"),
        (_set("tables", "words", "shape", value=[1]), "schema 2: Expected `array` of length 2"),
        (_set("tables", "words", "shape", value=["2", 64]), "Expected `int`, got `str`"),
        (_set("tables", "words", "shape", value=[2, 1]), "has not the size of float32 .2, 1."),
        (_set("gates", value={"a": "pass"}), "Expected `object`, got `str` - at `.*gates"),
        (_set("gates", value={"a": {"kind": "passed", "figures": ""}}), "Invalid enum value"),
        (_set("graph", "inputs", "instruction", "pace", value="often"), "Invalid enum value"),
        (_set("dependencies", "b", value=["noise"]), r"dependencies of \['b'\] are not"),
        (_set("dependencies", "more", value=[]), r"dependencies of \['more'\] are not"),
        (_delete("dependencies", "c"), r"dependencies of \['c'\] are not"),
    ],
)
def test_a_small_manifest_that_is_not_true_is_refused(tmp_path, change, message):
    with pytest.raises(runtime.BundleError, match=message):
        read_bundle(_tiny(tmp_path, change))


@pytest.mark.parametrize("name", ["tokenizer.json", "golden.npz", "embedding.bin"])
def test_a_bundle_without_one_of_its_parts_is_refused(tmp_path, name):
    folder = _tiny(tmp_path, _delete("files", name))
    (folder / name).unlink()
    with pytest.raises(runtime.BundleError, match=f"lists no '{name}'"):
        read_bundle(folder)


def test_a_manifest_may_be_as_large_as_the_limit_and_no_larger(tmp_path):
    folder = tiny_bundle(tmp_path).path
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text + " " * ((16 << 20) - len(text)))
    read_bundle(folder)
    path.write_text(text + " " * ((16 << 20) - len(text) + 1))
    with pytest.raises(runtime.BundleError, match="16777217 bytes, the limit is 16777216"):
        read_bundle(folder)


def test_a_linked_manifest_is_none(tmp_path):
    folder = tiny_bundle(tmp_path / "tiny").path
    (folder / "manifest.json").rename(tmp_path / "elsewhere")
    (folder / "manifest.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(runtime.BundleError, match="no manifest.json in it"):
        read_bundle(folder)


def test_a_file_is_found_by_its_name_in_the_manifest_only(tmp_path):
    bundle = tiny_bundle(tmp_path)
    assert bundle.file("engines/first.onnx") == tmp_path / "engines" / "first.onnx"
    with pytest.raises(runtime.BundleError, match=r"lists no 'manifest.json'"):
        bundle.file("manifest.json")


def test_a_hash_is_over_the_whole_file(tmp_path):
    data = bytes(range(256)) * 5000  # more than one piece
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()
