"""Every recipe at the published widths: it compiles for Orin's relative, and it is small."""

from pathlib import Path

import numpy as np
import pytest

from export.build import build, engine_bytes
from export.config import DEMO_OPTIONS, BuildConfig
from export.engines.compile_check import is_available
from export.evidence.bench import Size, make_up_episode
from models.anchorvla4d.presets import full, shallow
from models.checkpoint import load_checkpoint, write_random_checkpoint
from models.demo import CHECKPOINT
from models.init import statistics_of
from runtime import read_bundle
from runtime.image import ImageConfig
from runtime.plans.build import build as compile_plans

RECIPES = ("orin-bf16", "orin-fp16-safe", "orin-w8a8", "orin-w4a16", "orin-mixed", "cpu-int8")
LARGEST_SHARE = {"orin-w8a8": 0.30, "orin-w4a16": 0.22}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The published widths, a layer or two of each network; the last vision block sees all."""
    folder = tmp_path_factory.mktemp("full-width")
    config = shallow(full(), vision=1, language=1, spatial=2, head=1)
    write_random_checkpoint(
        folder,
        config,
        tokenizer=CHECKPOINT / "tokenizer.json",
        image=ImageConfig(min_pixels=1, max_pixels=512 * 512),
        statistics=statistics_of(config),
        seed=0,
    )
    make_up_episode(load_checkpoint(folder), Size(252, 112, 1), folder / "episodes")
    return folder


def compile_all(bundle: Path) -> None:
    """By what `anchorvla build` does on a board, for Orin's nearest relative; and it resumes."""
    lines: list[str] = []
    rows, again = (
        compile_plans(bundle, backend="tensorrt_rtx", capability="SM86", say=lines.append)
        for _ in range(2)
    )
    assert len(rows) == 6
    assert all(row.was_compiled and row.record.plan_bytes > 0 for row in rows)
    assert not any(row.was_compiled for row in again)
    assert "[6/6] denoise: kept" in lines


@pytest.mark.full
@pytest.mark.skipif(not is_available(), reason="TensorRT for RTX has wheels for x86-64 Linux only")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_engine_of_the_demo_compiles(recipe, tmp_path):
    bundle = tmp_path / "bundle"
    config = {**DEMO_OPTIONS, "recipe": recipe, "checkpoint": CHECKPOINT, "out": bundle}
    build(BuildConfig(**config, yardsticks=False, compile_check=False))
    compile_all(bundle)


@pytest.mark.skipif(not is_available(), reason="TensorRT for RTX has wheels for x86-64 Linux only")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_engine_compiles_and_is_as_small_as_promised(checkpoint, recipe, tmp_path):
    bundle = build(
        BuildConfig(
            recipe=recipe,
            checkpoint=checkpoint,
            out=tmp_path / "bundle",
            image_size=(252, 252),
            tokens=112,
            calibration=checkpoint / "episodes",
            stride=1,
            max_observations=2,
            verdicts=tmp_path / "none.json",
            yardsticks=False,
            compile_check=False,
        )
    )
    compile_all(bundle)
    manifest = read_bundle(bundle).manifest
    assert manifest.gates["precision_audit"].kind == "pass"
    parameters = sum(e.parameters for e in manifest.engines.values())
    share = engine_bytes(manifest) / (4 * parameters)
    assert share <= LARGEST_SHARE.get(recipe, 0.55), f"{share:.1%} of float32"
    print(f"{recipe}: {share:.1%} of float32, actions moved by {manifest.action_error:.2g}")
    assert np.isfinite(manifest.action_error)
