"""Every recipe at the published widths: it compiles for Orin's relative, and it is small."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from export.build import build, engine_bytes
from export.config import DEMO_OPTIONS, BuildConfig
from export.engines.compile_check import is_available
from export.evidence.bench import Size, make_up_episode
from models.anchorvla4d.config import AnchorVLA4DConfig
from models.anchorvla4d.presets import full, shallow
from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT
from models.families import CONFIGS
from runtime import read_bundle
from runtime.plans.build import build as compile_plans
from tests.export.conftest import write_random

RECIPES = (
    "orin-bf16",
    "orin-fp16-safe",
    "orin-w8a8",
    "orin-w8a8-static",
    "orin-w8-weight-only-unproved",
    "orin-w4a16",
    "orin-mixed",
    "cpu-int8",
)
QUICK = ("orin-fp16-safe", "orin-w8a8")
"""Int8 and both half-precision bases; the others take as long and are marked `full`."""
LARGEST_SHARE = {"orin-w8a8": 0.32, "orin-w8a8-static": 0.32, "orin-w4a16": 0.26}
"""Of float32's bytes. With one layer of each network the condition, which stays in the base format,
is a tenth of all weights."""


def write_checkpoint(folder: Path, base: AnchorVLA4DConfig | None = None, **layers: int) -> Path:
    """The published widths with few layers and random weights; the last vision block sees all."""
    config = shallow(base or full(), **layers)
    write_random(folder, config)
    make_up_episode(load_checkpoint(folder), Size(252, 112, 1), folder / "episodes")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A layer or two of each network."""
    folder = tmp_path_factory.mktemp("full-width")
    return write_checkpoint(folder, vision=1, language=1, spatial=2, head=1)


@pytest.fixture(scope="module")
def checkpoint_in_parts(tmp_path_factory) -> Path:
    """So many layers that no trunk weighs as little as one layer of the language model."""
    folder = tmp_path_factory.mktemp("full-width-parts")
    return write_checkpoint(folder, vision=2, language=2, spatial=16, head=1)


def export(checkpoint: Path, recipe: str, out: Path, **options: object) -> Path:
    fields = {
        "recipe": recipe,
        "checkpoint": checkpoint,
        "out": out,
        "image_size": (252, 252),
        "tokens": 112,
        "calibration": checkpoint / "episodes",
        "stride": 1,
        "max_observations": 2,
        "verdicts": out.with_name("none.json"),
        "yardsticks": False,
        "compile_check": False,
    }
    return build(BuildConfig(**{**fields, **options}))


def compile_all(bundle: Path) -> None:
    """By what `anchorvla build` does on a board, for Orin's nearest relative; and it resumes."""
    lines: list[str] = []
    rows, again = (
        compile_plans(bundle, backend="tensorrt_rtx", capability="SM86", say=lines.append)
        for _ in range(2)
    )
    number = len(read_bundle(bundle).manifest.engines)
    assert len(rows) == number
    assert all(row.was_compiled and row.record.plan_bytes > 0 for row in rows)
    assert not any(row.was_compiled for row in again)
    assert [line for line in lines if line.endswith(": kept")][-1].startswith(
        f"[{number}/{number}]"
    )


@pytest.mark.full
@pytest.mark.skipif(not is_available(), reason="TensorRT for RTX has wheels for x86-64 Linux only")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_engine_of_the_demo_compiles(recipe, tmp_path):
    bundle = tmp_path / "bundle"
    config = {**DEMO_OPTIONS, "recipe": recipe, "checkpoint": CHECKPOINT, "out": bundle}
    build(BuildConfig(**config, yardsticks=False, compile_check=False))
    compile_all(bundle)


@pytest.mark.skipif(not is_available(), reason="TensorRT for RTX has wheels for x86-64 Linux only")
@pytest.mark.parametrize(
    "recipe", [r if r in QUICK else pytest.param(r, marks=pytest.mark.full) for r in RECIPES]
)
def test_every_engine_compiles_and_is_as_small_as_promised(checkpoint, recipe, tmp_path):
    bundle = export(checkpoint, recipe, tmp_path / "bundle")
    assert len(read_bundle(bundle).manifest.engines) == 6
    compile_all(bundle)
    manifest = read_bundle(bundle).manifest
    assert manifest.gates["precision_audit"].kind == "pass"
    parameters = sum(e.parameters for e in manifest.engines.values())
    share = engine_bytes(manifest) / (4 * parameters)
    assert share <= LARGEST_SHARE.get(recipe, 0.55), f"{share:.1%} of float32"
    print(f"{recipe}: {share:.1%} of float32, actions moved by {manifest.action_error:.2g}")
    assert np.isfinite(manifest.action_error)


@pytest.mark.full
@pytest.mark.skipif(not is_available(), reason="TensorRT for RTX has wheels for x86-64 Linux only")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_part_compiles(checkpoint_in_parts, recipe, tmp_path):
    """One layer of the language model in an engine; the others cut so that none weighs more."""
    bundle = export(checkpoint_in_parts, recipe, tmp_path / "bundle", layers_per_part=1)
    manifest = read_bundle(bundle).manifest
    counts = Counter(manifest.graph.networks.values())
    assert counts["language"] == 2 and counts["vision"] == 2 and counts["spatial"] >= 2
    assert not manifest.failed_gates
    compile_all(bundle)


@pytest.mark.full
@pytest.mark.skipif(not is_available(), reason="TensorRT for RTX has wheels for x86-64 Linux only")
@pytest.mark.parametrize("name", [name for name in CONFIGS if name.endswith("-thin")])
def test_every_family_compiles_at_its_published_widths(name, tmp_path):
    folder, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    write_random(folder, CONFIGS[name]())
    make_up_episode(load_checkpoint(folder), Size(224, 112, 1), folder / "episodes")
    export(folder, "orin-w8a8", bundle, image_size=(224, 224), tokens=None)
    manifest = read_bundle(bundle).manifest
    assert not manifest.failed_gates
    assert manifest.gates["precision_audit"].kind == "pass"
    report = bundle.with_name(f"{bundle.name}-report.html").read_text()
    assert all(engine in report for engine in manifest.engines)
    compile_all(bundle)
