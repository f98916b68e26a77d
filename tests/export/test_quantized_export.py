"""The shipped policy in int8: small, still itself, and refused where it is not."""

from dataclasses import replace

import numpy as np
import pytest

import runtime
from export.build import build
from export.config import DEMO_OPTIONS, BuildConfig
from export.errors import ExportError
from models.demo import CHECKPOINT, EPISODES
from quant.calibrate import calibrate
from quant.recipes import cpu_int8
from runtime.recordings.recording import load_recording
from tests.export.conftest import cut_config

EPISODE = EPISODES / "touch-red-1.npz"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    return build(
        BuildConfig(
            recipe="cpu-int8",
            checkpoint=CHECKPOINT,
            out=folder / "bundle",
            verdicts=folder / "none.json",
            yardsticks=False,
            compile_check=False,
            **DEMO_OPTIONS,
        )
    )


@pytest.fixture
def policy(bundle):
    return runtime.load(bundle)


def test_the_weights_that_are_quantized_take_a_quarter(bundle):
    manifest = runtime.read_bundle(bundle).manifest
    size = sum(f.bytes for name, f in manifest.files.items() if name.startswith("engines/"))
    parameters = sum(engine.parameters for engine in manifest.engines.values())
    # A fifth of the demo's weights, half of that modulations, and its tables stay float32; graphs
    # are half a megabyte.
    assert size < 0.48 * 4 * parameters


def test_the_bundle_says_what_its_precision_costs(policy):
    manifest = policy.bundle.manifest
    assert manifest.recipe.name == "cpu-int8"
    assert 0 < manifest.action_error < 0.1
    measured = ("calibration", "engine_parity", "precision_audit", "stage_error", "graph_parity")
    for gate in (*measured, "end_to_end"):
        assert manifest.gates[gate].kind == "pass", gate
    assert manifest.gates["success"].kind == manifest.gates["motion"].kind == "not measured"
    assert all(engine.parity <= cpu_int8().tolerance for engine in manifest.engines.values())
    stages = manifest.quantization.stages.values()
    assert all(0 <= stage.parity <= stage.parity_allowed for stage in stages)
    allowed = max(stage.parity_allowed for stage in stages)
    assert str(manifest.gates["engine_parity"]) == f"pass (at most {allowed:.1e})"


def test_the_bundle_computes_here_what_its_exporter_measured(policy):
    verdicts = policy.check()
    assert len(verdicts) > 10
    assert not [v for v in verdicts if not v.passed]


def test_what_is_kept_has_the_bits_of_what_is_recomputed(policy):
    seen = load_recording(EPISODE)
    images, states = (seen.streams[name].values for name in ("frame", "state"))
    chunks = {}
    for cold in (False, True):
        episode = policy.start(anchor=images[0], instruction=seen.instruction, seed=3)
        chunks[cold] = []
        for frame in (0, 5, 10):
            if cold:
                policy.forget()
            chunks[cold].append(
                episode.act({"frame": images[frame], "state": states[frame]}).actions
            )
    assert np.array_equal(chunks[False], chunks[True])


def test_wrong_scales_are_refused(cut_checkpoint, tmp_path, monkeypatch):
    def too_coarse(*arguments, **more):
        seen = calibrate(*arguments, **more)
        return {n: replace(s, channel_max=100 * s.channel_max) for n, s in seen.items()}

    monkeypatch.setattr("export.subject.calibrate", too_coarse)
    message = "gate stage_error: recipe cpu-int8 moves stage .* allowed .*: 25 times what bfloat16"
    with pytest.raises(ExportError, match=message):
        build(cut_config(cut_checkpoint, tmp_path / "bundle", "cpu-int8"))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle-failed.html"]


def test_a_calibration_without_episodes_is_refused(tmp_path):
    message = r"--calibration of cpu-int8: .*neither episodes \(\*\.npz\) nor a LeRobot dataset"
    with pytest.raises(ExportError, match=message):
        build(cut_config(CHECKPOINT, tmp_path / "bundle", "cpu-int8", calibration=tmp_path))
    assert not list(tmp_path.iterdir())
