"""An export replaces a bundle and nothing else: every other folder is refused as it is."""

import json
import os
import shutil

import pytest

from export.build import build
from export.config import BuildConfig
from export.destination import exclusive, foreign
from export.twin import TwinConfig, make_twin
from models.demo import CHECKPOINT
from runtime.errors import OutputError


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def bundle(demo_bundle, tmp_path):
    """A bundle of one's own, with plans that a board added."""
    out = tmp_path / "bundle"
    shutil.copytree(demo_bundle, out)
    plans = out / "plans" / "sm87-trt10.3"
    plans.mkdir(parents=True)
    for name in ("vision.plan", "vision.json", "timing.cache"):
        (plans / name).write_text("a plan")
    (out / "plans" / "build.lock").write_text("12")
    return out


def test_a_bundle_may_be_replaced_plans_and_all(bundle):
    assert foreign(bundle) is None
    with exclusive(bundle):
        pass


def test_a_damaged_bundle_may_be_replaced(bundle):
    (bundle / "embedding.bin").write_bytes(b"cut short")
    (bundle / "golden.npz").unlink()
    assert foreign(bundle) is None


def edit_manifest(change):
    def damage(folder):
        path = folder / "manifest.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    return damage


SOMEBODYS = {
    "a file that the manifest does not list": (
        lambda folder: (folder / "notes.txt").write_text("mine"),
        "notes.txt is not in its manifest.json",
    ),
    "one among the engines": (
        lambda folder: (folder / "engines" / "mine.onnx").write_text("mine"),
        "engines/mine.onnx is not in its manifest.json",
    ),
    "one among the plans": (
        lambda folder: (folder / "plans" / "notes.txt").write_text("mine"),
        "plans/notes.txt is not in its manifest.json",
    ),
    "a link": (lambda folder: (folder / "golden").symlink_to("golden.npz"), "golden is a link"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
    "a manifest that is no JSON": (
        lambda folder: (folder / "manifest.json").write_text("mine"),
        "its manifest.json is not JSON",
    ),
    "another program's manifest": (
        lambda folder: (folder / "manifest.json").write_text('{"name": "app", "files": {}}'),
        "its manifest.json is not a bundle's",
    ),
    "a list for a manifest": (
        lambda folder: (folder / "manifest.json").write_text("[]"),
        "its manifest.json is not a bundle's",
    ),
    "files that are no table": (
        edit_manifest(lambda raw: raw.update(files="all")),
        "its manifest.json is not a bundle's",
    ),
    "a file taken from the list": (
        edit_manifest(lambda raw: raw["files"].pop("tokenizer.json")),
        "tokenizer.json is not in its manifest.json",
    ),
}


@pytest.mark.parametrize("what", SOMEBODYS)
def test_a_folder_with_something_of_somebody_is_refused_before_the_work(bundle, what):
    put, words = SOMEBODYS[what]
    put(bundle)
    before = tree(bundle.parent)
    for write in (
        lambda: build(BuildConfig(recipe="float32", checkpoint=bundle / "gone", out=bundle)),
        lambda: make_twin(TwinConfig(bundle=bundle / "gone", out=bundle)),
    ):
        with pytest.raises(OutputError, match=f"not ours to replace: {words}.*Nothing was removed"):
            write()
    assert tree(bundle.parent) == before
    assert os.listdir(bundle.parent) == ["bundle"]


def test_a_checkpoint_is_not_replaced_by_its_own_bundle(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    before = tree(tmp_path)
    config = BuildConfig(
        recipe="float32", checkpoint=tmp_path / "checkpoint", out=tmp_path / "checkpoint"
    )
    with pytest.raises(OutputError, match=r"it has no manifest.json, so it is no bundle"):
        build(config)
    assert tree(tmp_path) == before
