"""The shipped policy in int8: small, still itself, and refused where it is not."""

from dataclasses import replace

import numpy as np
import pytest

import runtime
from export import build as build_module
from export.build import BuildConfig, build
from export.errors import ExportError
from models.demo import CHECKPOINT, EPISODES
from quant.calibrate import Statistics, calibrate
from runtime.check import check
from runtime.robot import load_recording

EPISODE = EPISODES / "touch-red-1.npz"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return BuildConfig(
        recipe="cpu-int8", checkpoint=CHECKPOINT, out=tmp_path_factory.mktemp("int8") / "bundle",
        image_size=(112, 112), tokens=64, golden=EPISODE, compile_check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(config):
    return build(config)


@pytest.fixture
def policy(bundle):
    return runtime.load(bundle)


def test_the_weights_that_are_quantized_take_a_quarter(bundle):
    manifest = runtime.read_bundle(bundle).manifest
    size = sum(f.bytes for name, f in manifest.files.items() if name.startswith("engines/"))
    parameters = sum(engine.parameters for engine in manifest.engines.values())
    # A tenth of the demo's weights and its tables stay float32; graphs are half a megabyte.
    assert size < 0.45 * 4 * parameters


def test_the_bundle_says_what_its_precision_costs(policy):
    manifest = policy.bundle.manifest
    assert manifest.recipe == "cpu-int8"
    assert 0 < manifest.action_error < 0.1
    assert manifest.gates["end_to_end"].startswith("pass (")
    assert all(engine.parity <= 1e-4 for engine in manifest.engines.values())


def test_the_bundle_computes_here_what_its_exporter_measured(policy):
    verdicts = check(policy)
    assert len(verdicts) > 10
    assert not [v for v in verdicts if not v.passed]


def test_what_is_kept_has_the_bits_of_what_is_recomputed(policy):
    seen = load_recording(EPISODE)
    chunks = {}
    for cold in (False, True):
        episode = policy.start(anchor=seen.images[0], instruction=seen.instruction, seed=3)
        chunks[cold] = []
        for frame in (0, 5, 10):
            if cold:
                policy.forget()
            chunks[cold].append(episode.act(seen.images[frame], seen.states[frame]))
    assert np.array_equal(chunks[False], chunks[True])


def test_wrong_scales_are_refused(config, tmp_path, monkeypatch):
    def too_coarse(model, runs):
        seen = calibrate(model, runs)
        return {n: Statistics(100 * s.channel_max, s.num_rows) for n, s in seen.items()}

    monkeypatch.setattr(build_module, "calibrate", too_coarse)
    with pytest.raises(ExportError, match="cpu-int8 moves the actions by .*, allowed"):
        build(replace(config, out=tmp_path / "bundle"))
    assert not list(tmp_path.iterdir())


def test_a_calibration_without_episodes_is_refused(config, tmp_path):
    with pytest.raises(ExportError, match="no recorded episodes .* to calibrate cpu-int8 on"):
        build(replace(config, out=tmp_path / "bundle", calibration=tmp_path))
