"""An export is whole or absent, alone, and stopped by a gate that fails."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

import export.build
import export.subject
import runtime
from export import judge
from export.build import build
from export.config import BuildConfig, TwinConfig
from export.engines import engine as engines
from export.errors import ExportError
from export.release.config import KeysConfig, SignConfig
from export.release.signing import make_keys, sign
from export.twin import make_twin
from models.checkpoint import load_checkpoint, reference
from models.declared import DENOISED
from models.init import init
from models.verbs import Init
from quant.recipes import RECIPES
from runtime.errors import OutputError
from runtime.inputs import draw_noise
from runtime.recordings.recording import load_recording
from runtime.storage import trust
from tests.conftest import EPISODES

QUICK_KILLS, FULL_KILLS = 3, 20


@pytest.fixture(scope="module")
def checkpoint(demo_bundle) -> Path:
    return demo_bundle.parent / "checkpoint"


def config(checkpoint: Path, out: Path, **changes) -> BuildConfig:
    fields = {
        "recipe": "float32",
        "checkpoint": checkpoint,
        "out": out,
        "image_size": (112, 112),
        "tokens": 64,
        "compile_check": False,
    }
    return BuildConfig(**{**fields, **changes})


def test_the_runtime_equals_the_reference_on_recorded_observations(demo_bundle, checkpoint):
    policy, loaded = runtime.load(demo_bundle), load_checkpoint(checkpoint)
    worst = 0.0
    for path in sorted(EPISODES.glob("*.npz")):
        recording = load_recording(path)
        images, states = (recording.streams[name].values for name in ("frame", "state"))
        episode = policy.start(anchor=images[0], instruction=recording.instruction, seed=11)
        leftover = np.zeros((10, 5), np.float32)
        for tick, frame in enumerate((0, 7, 20)):
            observation = {"state": states[frame], "frame": images[frame], "leftover": leftover}
            chunk = episode.act(observation).actions
            weights = np.float32([1, 1, 0.7, 0.3, *[0] * 6])[:, None]
            leftover = np.concatenate([weights, chunk[::-1]], axis=1)
            want = reference(
                loaded,
                anchor=images[0],
                instruction=recording.instruction,
                noise=draw_noise(11, tick, policy.chunk_shape),
                **observation,
            )
            worst = max(worst, float(np.linalg.norm(chunk - want) / np.linalg.norm(want)))
    assert worst <= RECIPES["float32"]().tolerance


@pytest.mark.parametrize("size", [(252, 252), (196, 308), (512, 512)])
def test_other_cameras_export_and_equal_the_reference(checkpoint, tmp_path, size):
    """Grids 18x18, 22x14 and 36x36; the last two are no multiple of the attention window."""
    tokens = 384 if size[0] == 512 else 128
    out = build(config(checkpoint, tmp_path / "bundle", image_size=size, tokens=tokens))
    gates = runtime.read_bundle(out).manifest.gates
    assert gates["engine_parity"].kind == "pass"
    assert gates["end_to_end"].kind == "pass"


def test_graphs_stay_readable_for_jetpack_6(demo_bundle):
    for path in (demo_bundle / "engines").glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert {o.domain: o.version for o in model.opset_import} == {"": 18}
        assert model.ir_version == 10
        ops = {node.op_type for node in model.graph.node}
        assert not ops & {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}


def test_nothing_of_this_machine_is_in_the_bundle(demo_bundle):
    needle = str(Path(__file__).parents[2]).encode()
    for path in demo_bundle.rglob("*"):
        if path.is_file():
            assert needle not in path.read_bytes(), path


def test_the_manifest_tells_where_everything_comes_from(demo_bundle, checkpoint):
    manifest = runtime.read_bundle(demo_bundle).manifest
    assert manifest.source_sha256 == load_checkpoint(checkpoint).sha256
    assert manifest.license == "Apache-2.0"
    assert "seeded random weights" in manifest.description
    assert {"torch", "onnx", "onnxruntime"} <= manifest.tool_versions.keys()
    assert all(entry.parity <= 1e-4 for entry in manifest.engines.values())
    assert manifest.padded_share["prefix"] == pytest.approx(1 - 36 / 64, abs=1e-3)


def test_an_engine_that_differs_from_its_module_stops_the_export(checkpoint, tmp_path, monkeypatch):
    real = engines.save

    def damaged(model, path, **options):
        written = real(model, path, **options)
        weights = path.with_suffix(".weights")
        numbers = np.fromfile(weights, np.float32)
        numbers[: len(numbers) // 2] *= 1.01
        numbers.tofile(weights)
        return written

    monkeypatch.setattr(engines, "save", damaged)
    with pytest.raises(ExportError, match="engine vision: stage '.*' differs from its module by"):
        build(config(checkpoint, tmp_path / "bundle"))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle-failed.html"]


def test_a_prompt_that_does_not_fit_states_the_limit(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="36 prefix .* but --tokens is 24: give at least "):
        build(config(checkpoint, tmp_path / "bundle", tokens=24))


def test_a_full_disk_is_noticed_before_the_work(checkpoint, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match="0.0 GB free, bundle needs about"):
        build(config(checkpoint, tmp_path / "bundle"))


def test_an_export_goes_on_where_the_disk_was_full(checkpoint, tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "bundle"
    with monkeypatch.context() as patch:
        patch.setattr(engines, "save", full)
        with pytest.raises(ExportError, match="disk is full; free some .* goes on where it was"):
            build(config(checkpoint, out))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.work"]
    monkeypatch.setattr(export.subject, "reference_actions", None)  # that is known already
    build(config(checkpoint, out))
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle-report.html"}


def test_what_lies_on_the_disk_already_is_not_asked_for_again(checkpoint, tmp_path, monkeypatch):
    """Room for half of an export, after the other half."""
    out, room = tmp_path / "bundle", []
    monkeypatch.setattr(export.build, "check_disk", lambda out, size: room.append(size))
    with monkeypatch.context() as patch:
        patch.setattr(export.build, "judge_stages", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(config(checkpoint, out))
    kept = sum(p.stat().st_size for p in out.with_name("bundle.work").rglob("*") if p.is_file())
    build(config(checkpoint, out))
    assert kept > 0 and room == [room[0], room[0] - kept]


def interrupted(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "int1"}, r"unknown recipe 'int1'; there are \['cpu-int8', 'float32', "),
        ({"image_size": (0, 5)}, "image_size must be positive"),
        ({"tokens": 0}, "tokens must be positive"),
        ({"samples": 0}, "samples must be positive"),
        ({"softmax": "base"}, "recipe float32 computes in float32, and softmax with it"),
    ],
)
def test_a_config_that_cannot_be_is_refused(checkpoint, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(checkpoint, tmp_path / "bundle", **changes)


def test_an_old_bundle_is_replaced_only_by_a_whole_new_one(checkpoint, tmp_path, monkeypatch):
    piped = io.StringIO()
    out = build(config(checkpoint, tmp_path / "[red] bundle"), Console(file=piped, width=40))
    assert f"report: {out}-report.html" in piped.getvalue().splitlines(), "a line as it is"
    before = (out / "manifest.json").read_bytes()
    right = judge._run_bundle

    def wrong_actions(*arguments):
        tensors = right(*arguments)
        return tensors | {DENOISED: np.zeros_like(tensors[DENOISED])}

    monkeypatch.setattr(judge, "_run_bundle", wrong_actions)
    with pytest.raises(
        ExportError, match="'denoised_actions' .* differs from its modules' by 1.00e.00"
    ):
        build(config(checkpoint, out))
    assert (out / "manifest.json").read_bytes() == before
    monkeypatch.undo()
    build(config(checkpoint, out))
    assert {p.name for p in tmp_path.iterdir()} == {out.name, f"{out.name}-report.html"}
    assert (out / "manifest.json").read_bytes() == before, "an export is reproducible to the bit"


def _start(checkpoint: Path, out: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "export", "build", "float32", "--checkpoint", str(checkpoint)]
    command += ["--out", str(out), "--image-size", "112", "112", "--tokens", "64"]
    return subprocess.Popen(
        [*command, "--no-compile-check", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"HOME": str(out.with_name("home"))},
    )


def test_a_second_export_names_the_holder(checkpoint, tmp_path):
    out = tmp_path / "bundle"
    first = _start(checkpoint, out)
    try:
        lock = tmp_path / ".bundle.writing" / "lock"
        while not (lock.exists() and lock.read_text()):
            assert first.poll() is None
            time.sleep(0.02)
        holder = rf"another command is writing it \(process {first.pid}\)"
        with pytest.raises(OutputError, match=holder):
            build(config(checkpoint, out))
    finally:
        first.kill()
        first.wait()


def _kill_at_random_moments(checkpoint: Path, tmp_path: Path, count: int) -> None:
    out = tmp_path / "bundle"
    random = np.random.default_rng(0)
    for number in range(count):
        process = _start(checkpoint, out)
        try:
            process.wait(timeout=float(random.uniform(1.0, 16.0)))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT if number % 2 else signal.SIGKILL)
            process.communicate()
        if out.exists():
            runtime.read_bundle(out)
            shutil.rmtree(out)
        if process.returncode == 130:
            assert not (tmp_path / ".bundle.writing").exists()
    process = _start(checkpoint, out)
    print(process.communicate()[0])
    assert process.returncode == 0
    left = {p.name for p in tmp_path.iterdir()} - {"bundle-report.html"}
    assert left == {"bundle"}, "leftovers of killed exports, or a home folder"


def test_a_killed_export_leaves_nothing_or_a_whole_bundle(checkpoint, tmp_path):
    _kill_at_random_moments(checkpoint, tmp_path, QUICK_KILLS)


@pytest.mark.full
def test_twenty_killed_exports_leave_nothing_or_a_whole_bundle(checkpoint, tmp_path):
    _kill_at_random_moments(checkpoint, tmp_path, FULL_KILLS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "24"], "error: the prompt takes 36 prefix"),
        (["--image-size", "0", "1"], "image_size must be positive"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(checkpoint, tmp_path, arguments, message):
    process = _start(checkpoint, tmp_path / "bundle", *arguments)
    out, _ = process.communicate()
    assert process.returncode == 2
    assert message in out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: missing"),
        (lambda folder: os.truncate(folder / "model-00000.safetensors", 1000), "not a whole safet"),
    ],
)
def test_the_command_line_ends_a_bad_checkpoint_with_one_line(tmp_path, damage, message):
    folder = init(Init(config="demo", out=tmp_path / "checkpoint"))
    damage(folder)
    process = _start(folder, tmp_path / "bundle")
    out, _ = process.communicate()
    assert process.returncode == 1
    assert message in out
    assert "Traceback" not in out


def test_a_machine_that_trusts_a_key_exports_over_a_signed_bundle(
    checkpoint, tmp_path, monkeypatch
):
    """What it makes is not signed yet; and what was signed is a bundle as any other."""
    make_keys(KeysConfig(out=tmp_path / "keys"))
    monkeypatch.setenv("ANCHORVLA_TRUST", str(tmp_path / "trust"))
    trust.add(tmp_path / "keys" / "release.pub")
    bundle = build(config(checkpoint, tmp_path / "bundle"))
    with pytest.raises(runtime.BundleError, match="bundle: not signed, and this machine runs"):
        runtime.load(bundle)
    sign(SignConfig(bundle=bundle, key=tmp_path / "keys" / "release.key"))
    runtime.load(bundle).close()
    twin = make_twin(TwinConfig(bundle=bundle, out=tmp_path / "twin"))
    assert not (twin / "manifest.sig").exists()
    assert not (build(config(checkpoint, bundle)) / "manifest.sig").exists()
