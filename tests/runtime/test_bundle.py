"""A bundle is read whole and true, or refused before any engine sees a byte of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.bundle import read_bundle
from runtime.onnxruntime_engine import OnnxRuntimeBackend

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
        (_set("schema", value=2), "schema 2, this runtime reads 1; export the bundle again"),
        (_delete("schema"), "no 'schema' in it"),
        (_delete("graph"), "not a manifest of schema 1"),
        (_set("surprise", value=1), "not a manifest of schema 1"),
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
        (_set("embedding", "file", value="none.bin"), "lists no 'none.bin'"),
    ],
)
def test_a_manifest_that_is_not_true_is_refused(bundle, change, message):
    edit(bundle, change)
    with pytest.raises(runtime.BundleError, match=message):
        read_bundle(bundle)


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


def test_an_embedding_of_another_size_is_refused(bundle):
    edit(bundle, _set("embedding", "shape", value=[3, 3]))
    with pytest.raises(runtime.BundleError, match=r"size does not fit float32 \[3, 3\]"):
        runtime.load(bundle)


def test_statistics_that_do_not_fit_are_refused_at_load(bundle):
    edit(bundle, _set("normalization", "state", "modes", value=["q98"] * 4))
    with pytest.raises(runtime.BundleError, match="unknown mode 'q98'"):
        runtime.load(bundle)


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
