"""The twin of a bundle runs where the bundle does not, and does what the bundle would do."""

import os
import re
import shutil

import numpy as np
import pytest

import runtime
from device_tests.__main__ import main as device_tests
from export.twin import TwinConfig, make_twin
from models.checkpoint import load_checkpoint, reference
from models.demo import EPISODES
from runtime.__main__ import main as anchorvla
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.bundle import read_bundle
from runtime.errors import BundleError, EngineError
from runtime.inputs import draw_noise
from runtime.recordings.recording import load_recording
from tests.oracles import relative_error
from tests.runtime.boards.tree import pc


@pytest.fixture(scope="module")
def bundle(exported):
    return exported("orin-bf16")


@pytest.fixture(scope="module")
def twin(bundle, tmp_path_factory):
    return make_twin(TwinConfig(bundle=bundle, out=tmp_path_factory.mktemp("twin") / "a" / "twin"))


def words(bundle):
    return (
        f"{bundle} (recipe {read_bundle(bundle).manifest.recipe.name}): this bundle computes in "
        "bfloat16, which a CPU cannot; make its float32 twin: python -m export twin --bundle "
        f"{bundle} --out {bundle}-twin; or run it on its board's GPU: --backend tensorrt"
    )


@pytest.mark.parametrize("recipe", ["orin-bf16", "orin-w8a8"])
def test_a_bundle_that_computes_in_bfloat16_is_refused_on_a_cpu_with_the_way_out(
    exported, recipe, capsys, tmp_path
):
    """Before ONNX Runtime says so in its own words, which differ from operator to operator."""
    bundle = exported(recipe)
    with pytest.raises(EngineError) as refused:
        runtime.load(bundle)
    assert str(refused.value) == words(bundle)
    for verb in (["check"], ["run", "--episodes", str(EPISODES)], ["bench"]):
        assert anchorvla([verb[0], str(bundle), *verb[1:]]) == 5
        assert capsys.readouterr().err == f"error: {words(bundle)}\n"
    results = tmp_path / "results"
    assert device_tests([str(bundle), "--board=x86-cpu", f"--results={results}"]) == 5
    assert words(bundle) in "".join(capsys.readouterr())
    finding = pc(tmp_path).findings(bundle)["recipe"]
    assert finding.severity == "error"
    assert "export twin" in finding.remedy


@pytest.mark.parametrize("recipe", ["orin-bf16", "orin-w8a8"])
def test_an_engine_of_its_own_says_so_too(exported, recipe):
    """Nobody asked the manifest, or it does not say."""
    engine = exported(recipe) / "engines" / "denoise.onnx"
    with pytest.raises(EngineError, match=r"denoise\.onnx: .* in bfloat16, which a CPU cannot; .*"):
        OnnxRuntimeBackend().engine(engine)


def test_the_doctor_lets_a_cpu_run_what_it_can(twin, tmp_path):
    assert pc(tmp_path).findings(twin)["recipe"].severity == "ok"
    runtime.load(twin).close()


def test_the_twin_acts_within_twice_the_error_that_the_bundle_states(twin, cut_checkpoint):
    """That error is a root mean square over eight held-out observations. Over nine others, those of
    errors of independent numbers differ by less than a factor of two from it."""
    policy, checkpoint = runtime.load(twin), load_checkpoint(cut_checkpoint)
    errors = []
    for path in sorted(EPISODES.glob("touch-*.npz")):
        seen = load_recording(path)
        images, states = (seen.streams[name].values for name in ("frame", "state"))
        start = {"anchor": images[0], "instruction": seen.instruction}
        episode = policy.start(**start, seed=7)
        for tick, frame in enumerate((0, 8, 16)):
            chunk = episode.act({"frame": images[frame], "state": states[frame]}).actions
            want = reference(
                checkpoint,
                frame=images[frame],
                state=states[frame],
                noise=draw_noise(7, tick, policy.chunk_shape),
                **start,
            )
            errors.append(relative_error(chunk, want))
    verdict = policy.bundle.manifest.gates["end_to_end"]
    assert verdict.kind == "pass"
    stated = float(re.match(r"(\S+) of ", verdict.figures)[1])
    assert 0 < np.sqrt(np.mean(np.square(errors))) <= 2 * stated


def test_the_twin_computes_what_the_exporter_measured(twin, capsys):
    assert all(verdict.passed for verdict in runtime.load(twin).check())
    assert anchorvla(["check", str(twin)]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_the_twin_states_whose_twin_it_is(bundle, twin):
    own, original = (runtime.read_bundle(folder).manifest for folder in (twin, bundle))
    assert (original.twin_of, own.twin_of) == ("", original.content_sha256)
    assert own.description == original.description
    assert (own.recipe, own.gates) == (original.recipe, original.gates)
    assert own.content_sha256 != original.content_sha256
    same = [name for name in original.files if not name.startswith("engines/")]
    assert {name: own.files[name] for name in same} == {n: original.files[n] for n in same}


def test_an_old_twin_is_replaced(bundle, twin, tmp_path):
    out = tmp_path / "twin"
    for name in twin.rglob("*.onnx"):
        (out / name.relative_to(twin)).parent.mkdir(parents=True, exist_ok=True)
        (out / name.relative_to(twin)).touch()
    shutil.copyfile(twin / "manifest.json", out / "manifest.json")
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
