"""From a bundle to a tick on a GPU, by the commands that a user types. The GPU is simulated."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import runtime
from runtime.__main__ import main
from runtime.board.machine import PowerMode, read_machine
from runtime.bundle import read_bundle, read_golden
from runtime.plans.compiler import Compiled
from tests.simulation import install, make_plan


@pytest.fixture
def world(monkeypatch):
    """A simulated board whose compiler writes simulated plans."""
    world = install(monkeypatch)
    world.is_verified = True

    def compile_apart(spec, on_progress):
        plan = make_plan(Path(spec.onnx))
        Path(spec.plan).write_bytes(plan)
        return Compiled(seconds=1.0, num_bytes=len(plan), int8_products=(), timing_cache="new")

    monkeypatch.setattr("runtime.plans.build.compile_apart", compile_apart)
    return world


@pytest.fixture
def bundle(demo_bundle, tmp_path):
    """A copy, for plans are written into it."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def test_build_check_and_bench_work_one_after_the_other(world, bundle, capsys):
    assert main(["build", str(bundle)]) == 0
    table = capsys.readouterr().out
    stages = re.findall(r"(\w+) \d\.\de-\d\d of \d\.\de-\d\d", table)
    assert {"frame_vision", "prefix", "suffix", "spatial", "denoise_9"} <= set(stages)
    assert "layers: 0 of 0 int8 products run on int8" in table
    (folder,) = (path for path in (bundle / "plans").iterdir() if path.is_dir())
    assert folder.name == "simulated-orin-sm87-8sm-tensorrt-10.3.0"
    assert main(["check", str(bundle), "--backend", "tensorrt"]) == 0
    assert "ok   actions" in capsys.readouterr().out
    assert main(["bench", str(bundle), "--backend", "tensorrt", "--ticks", "2"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["warm"]["tick"]["n"], figures["way_to_wait"]) == (2, "block")
    assert figures["warm"]["tick"]["n"] == 2
    files = read_bundle(bundle).manifest.files
    rest = sum(e.bytes for name, e in files.items() if not name.startswith("engines/"))
    plans = sum(path.stat().st_size for path in folder.glob("*.plan"))
    assert figures["start_up"]["bytes_read"] == rest + plans
    assert main(["show", str(bundle), "--brief"]) == 0
    assert re.search(r"scratch [\d,]+ \+ [\d,]+ bytes", capsys.readouterr().out)
    assert not world.violations


def test_no_plan_stays_mapped_once_it_is_loaded(world, bundle):
    assert main(["build", str(bundle)]) == 0
    with runtime.load(bundle, backend="tensorrt") as policy:
        assert policy.backend.bytes_read > 0
        assert ".plan" not in Path("/proc/self/maps").read_text()


def test_without_a_build_the_command_to_build_is_named(world, bundle, capsys):
    assert main(["check", str(bundle), "--backend", "tensorrt"]) == 5
    assert re.search(r"no plan for engine .*run: anchorvla build", capsys.readouterr().err)
    assert world.num_deserialized == 0


def test_a_plan_of_another_power_mode_runs_with_a_warning(world, bundle, capsys, monkeypatch):
    """Built in MAXN, run in 15W; in a container, where nobody knows the mode, there is no word."""
    mode = [PowerMode(name="MAXN", number=0)]
    real = read_machine
    monkeypatch.setattr(
        "runtime.board.machine.read_machine", lambda: replace(real(), power_mode=mode[0])
    )
    assert main(["build", str(bundle)]) == 0
    for now, words in (
        (PowerMode(name="MAXN", number=0), ""),
        (None, ""),
        (
            PowerMode(name="15W", number=1),
            f"warning: {bundle}: its plans were tuned in power mode MAXN, this is 15W: they comp",
        ),
    ):
        mode[0] = now
        capsys.readouterr()
        assert main(["check", str(bundle), "--backend", "tensorrt"]) == 0
        error = capsys.readouterr().err
        assert error.startswith(words)
        assert ("power mode" in error) == bool(words)
    assert main(["build", str(bundle)]) == 0
    told = capsys.readouterr().out
    assert "kept plans were tuned in power mode MAXN, this is 15W: they run; for plans of" in told
    assert ": compile" not in told


def change_gpu(world):
    world.gpu = "another Orin"


def change_sms(world):
    world.num_sms = 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_gpu, "GPU simulated Orin, here another Orin"),
        (change_sms, "number of SMs 8, here 4"),
    ],
)
def test_a_plan_of_another_machine_is_refused_before_tensorrt_sees_it(
    world, bundle, capsys, change, words
):
    assert main(["build", str(bundle)]) == 0
    capsys.readouterr()
    before = world.num_deserialized
    change(world)
    assert main(["check", str(bundle), "--backend", "tensorrt"]) == 5
    error = capsys.readouterr().err
    assert words in error
    assert "Rebuild it here: anchorvla build" in error
    assert world.num_deserialized == before


def test_an_engine_that_computes_something_else_is_not_accepted(world, bundle, capsys, monkeypatch):
    real = read_golden

    def other(opened):
        golden = real(opened)
        return golden | {"stage/spatial_tokens": golden["stage/spatial_tokens"] * 1.5}

    monkeypatch.setattr("runtime.backends.registry.read_golden", other)
    assert main(["build", str(bundle)]) == 1
    streams = capsys.readouterr()
    assert "FAIL" in streams.out
    assert "the runtime refuses" in streams.err
