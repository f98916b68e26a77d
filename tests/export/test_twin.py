"""The twin of a bundle runs where the bundle does not, and does what the bundle would do."""

import os
import shutil

import numpy as np
import pytest

import runtime
from export.twin import TwinConfig, make_twin
from models.checkpoint import load_checkpoint, reference
from models.demo import EPISODES
from runtime.__main__ import main as anchorvla
from runtime.check import check
from runtime.errors import BundleError, EngineError
from runtime.policy import draw_noise
from runtime.robot import load_recording
from tests.oracles import relative_error


@pytest.fixture(scope="module")
def bundle(exported):
    return exported("orin-bf16")


@pytest.fixture(scope="module")
def twin(bundle, tmp_path_factory):
    return make_twin(TwinConfig(bundle=bundle, out=tmp_path_factory.mktemp("twin") / "a" / "twin"))


def test_a_bfloat16_bundle_is_refused_on_a_cpu_with_the_way_out(bundle):
    with pytest.raises(EngineError, match="no bfloat16 on a CPU .python -m export twin makes a"):
        runtime.load(bundle)


def test_the_twin_acts_within_twice_the_error_that_the_bundle_states(twin, cut_checkpoint):
    """That error is of one golden observation. Over nine others, rounding errors of independent
    numbers differ by less than a factor of two from their root mean square."""
    policy, checkpoint = runtime.load(twin), load_checkpoint(cut_checkpoint)
    errors = []
    for path in sorted(EPISODES.glob("touch-*.npz")):
        seen = load_recording(path)
        start = {"anchor": seen.images[0], "instruction": seen.instruction}
        episode = policy.start(**start, seed=7)
        for tick, frame in enumerate((0, 8, 16)):
            chunk = episode.act(seen.images[frame], seen.states[frame])
            want = reference(
                checkpoint,
                frame=seen.images[frame],
                state=seen.states[frame],
                noise=draw_noise(7, tick, policy.chunk_shape),
                **start,
            )
            errors.append(relative_error(chunk, want))
    stated = policy.bundle.manifest.action_error
    assert 0 < np.sqrt(np.mean(np.square(errors))) <= 2 * stated


def test_the_twin_computes_what_the_exporter_measured(twin, capsys):
    assert all(verdict.passed for verdict in check(runtime.load(twin)))
    assert anchorvla(["check", str(twin)]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_the_twin_states_whose_twin_it_is(bundle, twin):
    own, original = (runtime.read_bundle(folder).manifest for folder in (twin, bundle))
    assert own.description.startswith(f"float32 twin of {original.content_sha256[:16]}; ")
    assert own.description.endswith(original.description)
    assert (own.recipe, own.gates) == (original.recipe, original.gates)
    assert own.content_sha256 != original.content_sha256
    same = [name for name in original.files if not name.startswith("engines/")]
    assert {name: own.files[name] for name in same} == {n: original.files[n] for n in same}


def test_an_old_twin_is_replaced(bundle, twin, tmp_path):
    out = tmp_path / "twin"
    out.mkdir()
    (out / "old").touch()
    make_twin(TwinConfig(bundle=bundle, out=out))
    assert runtime.read_bundle(out).manifest.files == runtime.read_bundle(twin).manifest.files
    assert [path.name for path in tmp_path.iterdir()] == ["twin"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: os.truncate(folder / "engines/vision.weights", 1000), "1000 bytes, the"),
        (lambda folder: (folder / "golden.npz").unlink(), "golden.npz: missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not JSON"),
        (shutil.rmtree, "no such folder"),
    ],
    ids=["weights cut short", "no golden data", "damaged manifest", "no bundle"],
)
def test_a_damaged_bundle_has_no_twin(damage, message, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    damage(copy)
    with pytest.raises(BundleError, match=message):
        make_twin(TwinConfig(bundle=copy, out=tmp_path / "twin"))
    assert {path.name for path in tmp_path.iterdir()} <= {"copy"}
