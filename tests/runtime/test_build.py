"""Building: one process per engine, resumable, alone, never half, and every failure has words.

With a stand-in for TensorRT, that nobody needs a GPU for; and with TensorRT for RTX where there is
one, that really compiles.
"""

import argparse
import errno
import hashlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from runtime.errors import BundleError, EngineError
from runtime.plans.audit import audit_layers
from runtime.plans.build import MB, available_memory, build, workspace_for
from runtime.plans.command import add_arguments, main_build, table
from runtime.plans.compiler import MAX_WARNINGS, CompileSpec, compile_apart, error_logger
from runtime.plans.diagnosis import OutOfMemory
from runtime.plans.folder import check_disk
from runtime.plans.record import plan_path, read_plan
from tests.runtime.stand_ins.tiny_bundle import INT8_PRODUCT, KEY, TENSORRT, tiny_bundle

ROOT = Path(__file__).parents[2]
CHECKED = {"first": {"first": 1e-3}, "second": {"second": 1e-3, "second_again": 1e-3}}
BUILD_ELSEWHERE = """
import json, sys
from runtime.plans.build import build
from runtime.plans.key import PlanKey
key = PlanKey(**json.loads(sys.argv[2]))
build(sys.argv[1], key=key, check_engine=lambda path, plan: {"first": 0.0})
"""
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX has wheels for x86-64 Linux only",
)


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path / "bundle")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """`TENSORRT` instead of TensorRT; a call sets its behaviour, `compiles` is what it did."""
    log = tmp_path / "log"

    def behave(**behaviour):
        monkeypatch.setenv("STAND_IN", json.dumps({"log": str(log), **behaviour}))

    def compiles():
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    monkeypatch.setenv("PYTHONPATH", str(TENSORRT))
    behave()
    behave.compiles = compiles
    return behave


def check_engine(path, plan):
    """What the robot's check would say of a good plan."""
    assert Path(path).is_absolute() and plan
    return CHECKED[Path(path).stem]


def run_build(bundle, **options):
    options = {"key": KEY, "check_engine": check_engine, "say": lambda line: None} | options
    return build(bundle.path, **options)


def main(bundle, *arguments, **options):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main_build(parser.parse_args([str(bundle.path), *arguments]), **options)


def files(bundle):
    folder = bundle.path / "plans"
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def finished(*names):
    """Files of a build that left nothing half."""
    plans = [f"{KEY.folder_name}/{n}.{kind}" for n in names for kind in ("json", "plan")]
    return sorted(["build.lock", *plans, f"{KEY.folder_name}/timing.cache"])


def test_every_engine_is_compiled_in_a_process_of_its_own(bundle, stand_in):
    run_build(bundle)
    compiles = stand_in.compiles()
    assert [c["engine"] for c in compiles] == ["first", "second"]
    assert len({os.getpid(), *(c["pid"] for c in compiles)}) == 3
    assert files(bundle) == finished("first", "second")
    assert bytes(read_plan(bundle, "first", KEY)).startswith(b"stand-in plan")


def test_what_measures_a_plan_sees_its_file_and_no_copy(bundle, stand_in):
    """A record's hash is of the same bytes, and nothing stays mapped."""
    seen = {}

    def check(path, plan):
        maps = Path("/proc/self/maps").read_text()
        seen[Path(path).stem] = bytes(plan), f"{Path(path).stem}.new" in maps
        return check_engine(path, plan)

    def inspect(plan):
        assert bytes(plan) in {data for data, _ in seen.values()}
        return json.dumps({"Layers": []}), 0

    rows = run_build(bundle, check_engine=check, inspect_engine=inspect)
    for row in rows:
        data = plan_path(bundle, row.engine, KEY).read_bytes()
        assert seen[row.engine] == (data, True)
        assert row.record.plan_sha256 == hashlib.sha256(data).hexdigest()
        assert row.record.plan_bytes == len(data)
    assert str(bundle.path) not in Path("/proc/self/maps").read_text()


def test_the_compiler_is_told_what_export_decided(bundle, stand_in):
    """Float32 stays float32, layers can be inspected, and everything runs on one stream."""
    run_build(bundle, workspace_bytes=64 * MB)
    told = stand_in.compiles()[0]
    assert told["workspace"] == 64 * MB
    assert told["tf32"] is False
    assert told["profiling_verbosity"] == "DETAILED"
    assert told["max_aux_streams"] == 0


def test_a_second_build_compiles_nothing(bundle, stand_in):
    run_build(bundle)
    rows = run_build(bundle)
    assert len(stand_in.compiles()) == 2
    assert [row.was_compiled for row in rows] == [False, False]
    assert [row.verdict.kind for row in rows] == ["pass", "pass"]


@pytest.mark.parametrize("suffix", [".plan", ".json"])
def test_what_is_missing_or_damaged_is_compiled_again_and_no_more(bundle, stand_in, suffix):
    run_build(bundle)
    path = plan_path(bundle, "second", KEY).with_suffix(suffix)
    path.unlink()
    run_build(bundle)
    path.write_bytes(path.read_bytes()[:-2])
    run_build(bundle)
    assert [c["engine"] for c in stand_in.compiles()] == ["first", "second", "second", "second"]
    assert read_plan(bundle, "second", KEY)


def test_what_compiling_took_is_its_own_process_and_not_this_one(bundle, stand_in):
    held = bytearray(os.urandom(1 << 20)) * 128
    for row in run_build(bundle):
        assert 4e6 < row.record.peak_bytes < len(held)
        stored = json.loads(plan_path(bundle, row.engine, KEY).with_suffix(".json").read_text())
        assert stored["peak_bytes"] == row.record.peak_bytes


def test_measured_times_are_kept_for_the_next_compile(bundle, stand_in):
    run_build(bundle)
    assert [c["timing_cache"] for c in stand_in.compiles()] == [0, 5]
    cache = plan_path(bundle, "first", KEY).with_name("timing.cache")
    cache.write_bytes(b"alien")
    plan_path(bundle, "second", KEY).unlink()
    said = []
    run_build(bundle, say=said.append)
    assert said[-1] == f"[2/2] second: {cache.resolve()} is another version's; begun anew"
    assert stand_in.compiles()[-1]["timing_cache"] == 0
    assert cache.read_bytes() == b"time "


def test_less_workspace_is_offered_when_memory_runs_out(bundle, stand_in):
    stand_in(fits_mb=300)
    said = []
    rows = run_build(bundle, workspace_bytes=1024 * MB, say=said.append)
    assert [c["workspace"] // MB for c in stand_in.compiles()] == [1024, 512, 256] * 2
    assert [row.record.workspace_bytes // MB for row in rows] == [256, 256]
    assert "[1/2] first: out of memory with 1024 MB of workspace" in said


def test_memory_that_never_suffices_is_an_error_that_says_what_to_do(bundle, stand_in):
    stand_in(fits_mb=10)
    with pytest.raises(EngineError) as error:
        run_build(bundle, free_bytes=lambda: 2048 * MB)
    message = str(error.value)
    assert "engine 'first': out of memory, at layer model.layers.0.mlp.up_proj/MatMul: " in message
    assert "Could not find any implementation for node" in message
    assert "2048 MB were free; asked for 1535, 767, 383, 191 MB of workspace" in message
    last = stand_in.compiles()[-1]["workspace"]
    assert f"Requested amount of GPU memory ({last} bytes) could not be allocated" in message
    assert f"a block of {last / 1e6:.1f} MB. Reboot and do this before anything else" in message
    assert "the desktop (sudo systemctl isolate multi-user.target)" in message
    assert message.endswith(f"then go on with: anchorvla build {bundle.path}")
    assert len(stand_in.compiles()) == 4


def test_a_block_that_no_workspace_makes_smaller_is_not_asked_for_again(bundle, stand_in):
    """An 8 GB Nano, one large decoder: 272 MB in one piece, whatever the workspace."""
    stand_in(block_bytes=30_000)
    size = sum(p.stat().st_size for p in (bundle.path / "engines").glob("first.*"))
    with pytest.raises(EngineError) as error:
        run_build(bundle, workspace_bytes=1024 * MB)
    message = str(error.value)
    assert f"Requested amount of GPU memory ({size} bytes) could not be allocated" in message
    assert "asked for 1024, 512 MB of workspace in turn" in message
    assert "What failed is one block of 0.0 MB. Reboot" in message
    assert "export this engine in smaller parts, with fewer layers per part" in message
    assert [c["engine"] for c in stand_in.compiles()] == ["first", "first"]


def test_engines_whose_blocks_are_small_enough_compile(tmp_path, stand_in):
    stand_in(block_bytes=50_000)
    assert len(run_build(tiny_bundle(tmp_path / "bundle"))) == 2


def test_a_kernel_that_wants_more_workspace_is_not_offered_less(bundle, stand_in):
    words = "Could not find any implementation for node a due to insufficient workspace. See log"
    stand_in(refuses={"first": words})
    with pytest.raises(EngineError, match="wants more workspace than that: offer it .--workspace"):
        run_build(bundle, workspace_bytes=64 * MB)
    assert len(stand_in.compiles()) == 1


@pytest.mark.parametrize("largest", ["first", "second"])
def test_the_largest_engine_is_compiled_first_and_the_table_keeps_the_bundles_order(
    tmp_path, stand_in, largest
):
    bundle = tiny_bundle(tmp_path / "bundle", largest=largest)
    said = []
    rows = run_build(bundle, say=said.append)
    assert [c["engine"] for c in stand_in.compiles()][0] == largest
    assert said[0] == f"[1/2] {largest}: compile"
    assert [row.engine for row in rows] == ["first", "second"]
    assert [row.onnx_bytes > 30_000 for row in rows] == [largest == "first", largest == "second"]


def test_a_compiler_that_the_kernel_kills_was_out_of_memory(bundle, stand_in):
    stand_in(dies={"second": signal.SIGKILL})
    with pytest.raises(EngineError, match=r"out of memory, the compiler was killed \(signal 9\)"):
        run_build(bundle)
    assert len(stand_in.compiles()) == 1 + 4


def test_a_compiler_that_dies_does_not_take_us_along(bundle, stand_in):
    stand_in(dies={"second": signal.SIGSEGV})
    with pytest.raises(EngineError, match="'second' does not compile: the compiler died of signal"):
        run_build(bundle)
    assert files(bundle) == finished("first")


def test_a_compiler_that_aborts_for_want_of_memory_was_out_of_memory(bundle, stand_in):
    words = "terminate called after throwing an instance of 'std::bad_alloc'"
    stand_in(dies={"second": signal.SIGABRT}, mutters={"second": words})
    with pytest.raises(EngineError, match=rf"'second': out of memory, .* signal 6: {words}"):
        run_build(bundle)


def test_the_compilers_reason_is_passed_on_word_for_word(bundle, stand_in):
    stand_in(refuses={"second": "Error Code 9: no kernel for [FP8], really"})
    with pytest.raises(EngineError) as error:
        run_build(bundle)
    words = "engine 'second' does not compile: Error Code 9: no kernel for [FP8], really"
    assert str(error.value) == words
    assert files(bundle) == finished("first")


def compile_first(bundle):
    onnx = str(bundle.path / "engines" / "first.onnx")
    return compile_apart(CompileSpec(onnx=onnx, workspace_bytes=MB))


@pytest.mark.parametrize(
    ("words", "layer"),
    [
        ("implementation for node {ForeignNode[a.0/Mul...b.1/Add]}.)", "{ForeignNode[a.0/Mul...b"),
        ("implementation for node /m/Conv due to insufficient workspace. See", "/m/Conv: "),
        ("implementation for node a.1/MatMul. See the log", "a.1/MatMul: "),
    ],
)
def test_the_layer_that_found_no_implementation_is_named(bundle, stand_in, words, layer):
    stand_in(refuses={"first": f"Internal Error (Could not find any {words}"})
    with pytest.raises(EngineError) as error:
        compile_first(bundle)
    assert str(error.value).startswith(f"at layer {layer}")


NO_IMPLEMENTATION = "Error Code 10: Internal Error (Could not find any implementation for node a.)"
NVMAP = "NvMapMemAllocInternalTagged: 1075072515 error 12"


@pytest.mark.parametrize(
    ("words", "warnings", "block"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 5 bytes.)", [], 5),
        ("Error Code 1: Cuda Runtime (out of memory)", [], None),
        ("Requested amount of GPU memory (5 bytes) could not be allocated.", [], 5),
        ("Requested amount of memory (7 bytes) could not be allocated.", [], 7),
        ("std::bad_alloc", [], None),
        (NO_IMPLEMENTATION, ["Requested amount of GPU memory (272573440 bytes) could not be"
         " allocated. There may not be enough free memory"], 272573440),
        (NO_IMPLEMENTATION, ["Tactic Device request: 4229MB Available: 2658MB. Device memory is"
         " insufficient to use tactic."], None),
        (NO_IMPLEMENTATION, ["Skipping tactic 3 due to insuficient memory on requested size of"
         " 4364 detected for tactic 4."], None),
        (NO_IMPLEMENTATION, [NVMAP], None),
    ],
)  # fmt: skip
def test_out_of_memory_has_many_names(bundle, stand_in, words, warnings, block):
    stand_in(refuses={"first": words}, warns={"first": warnings})
    with pytest.raises(OutOfMemory) as error:
        compile_first(bundle)
    assert error.value.block_bytes == block
    assert not error.value.is_workspace
    assert all(line in str(error.value) for line in (words, *warnings))


@pytest.mark.parametrize(
    ("words", "warnings"),
    [
        (NO_IMPLEMENTATION, []),
        (NO_IMPLEMENTATION, ["Missing scale for tensor a, expect fall back"]),
        ("Error Code 9: Skipping tactic 0x0 due to exception [type.cpp:186: infer_type] Could not "
         "infer output types for operation: 291: dequantize ... No matching rules found for input "
         f"operand types\n{NO_IMPLEMENTATION}", []),
        (f"Error Code 9: no matching rules found for input operand types. {NO_IMPLEMENTATION}",
         ["Skipping tactic 3 due to insufficient memory on requested size of 4364"]),
        (f"Error Code 4: FP8 is not supported on SM 8.6. {NO_IMPLEMENTATION}",
         ["Requested amount of GPU memory (5 bytes) could not be allocated."]),
    ],
    ids=["no reason", "another warning", "issue 4832", "and a kernel too large", "not supported"],
)  # fmt: skip
def test_a_graph_without_a_kernel_is_not_tried_with_less_workspace(
    bundle, stand_in, words, warnings
):
    stand_in(refuses={"first": words}, warns={"first": warnings})
    with pytest.raises(EngineError, match=r"^engine 'first' does not compile: ") as error:
        run_build(bundle)
    assert len(stand_in.compiles()) == 1
    assert words in str(error.value)
    assert "out of memory" not in str(error.value)
    is_known = words != NO_IMPLEMENTATION
    assert ("has no kernel for that, whatever the memory" in str(error.value)) is is_known


def test_of_warnings_the_last_few_about_memory_are_kept(bundle, stand_in):
    about = [f"Requested amount of GPU memory ({n} bytes) could not be" for n in range(100)]
    mixed = [line for words in about for line in (words, "a warning about something else")]
    stand_in(refuses={"first": NO_IMPLEMENTATION}, warns={"first": mixed})
    with pytest.raises(OutOfMemory) as error:
        compile_first(bundle)
    told = str(error.value).splitlines()
    assert told == [f"at layer a: {about[-MAX_WARNINGS]}", *about[1 - MAX_WARNINGS :],
                    NO_IMPLEMENTATION]  # fmt: skip
    assert error.value.block_bytes == 99


def test_a_warning_that_no_list_holds_any_more_is_forgotten(stand_in, monkeypatch):
    """Whoever keeps the list may empty it between two engines."""
    monkeypatch.syspath_prepend(str(TENSORRT))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    trt, messages = importlib.import_module("tensorrt"), []
    logger = error_logger(trt, messages)
    for number in range(2 * MAX_WARNINGS):
        logger.log(trt.ILogger.Severity.WARNING, f"out of memory {number}")
        if number == MAX_WARNINGS - 1:
            messages.clear()
    monkeypatch.delitem(sys.modules, "tensorrt")
    first = MAX_WARNINGS
    assert messages == [f"out of memory {n}" for n in range(first, first + MAX_WARNINGS)]


def test_progress_is_reported_while_compiling(bundle, stand_in):
    steps = []
    spec = CompileSpec(onnx=str(bundle.path / "engines" / "first.onnx"), workspace_bytes=MB)
    compile_apart(spec, lambda *step: steps.append(step))
    assert steps == [("Building engine", 1, 2)]


def test_the_time_left_is_estimated_after_the_first_engine(bundle, stand_in):
    said = []
    run_build(bundle, say=said.append)
    assert said[0] == "[1/2] first: compile"
    assert said[1].startswith("[2/2] second: compile, about ") and said[1].endswith("min left")


@pytest.fixture
def waiting_build(bundle, stand_in, tmp_path):
    """A build in a process of its own whose second compile waits for ever; its pipe."""
    lock = bundle.path / "plans" / "build.lock"
    lock.parent.mkdir()
    lock.write_text("98765432109")  # of a build before
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stand_in(waits={"second": str(pipe)})
    command = [sys.executable, "-c", BUILD_ELSEWHERE, str(bundle.path), json.dumps(asdict(KEY))]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        with pipe.open() as reader:
            assert reader.readline() == "waiting\n"
            yield process, reader
        process.kill()


def test_a_second_build_at_the_same_time_is_refused_with_the_firsts_pid(
    waiting_build, bundle, stand_in
):
    process, _ = waiting_build
    stand_in()
    with pytest.raises(EngineError, match=rf"another build is under way \(process {process.pid}\)"):
        run_build(bundle)


def test_a_killed_build_leaves_no_half_plan_and_no_compiler(waiting_build, bundle, stand_in):
    process, reader = waiting_build
    process.kill()
    process.wait()
    assert reader.read() == ""  # the pipe ends when the compiler is gone
    assert files(bundle) == finished("first")
    stand_in()
    run_build(bundle)
    assert [c["engine"] for c in stand_in.compiles()] == ["first", "second", "second"]


def test_ctrl_c_stops_the_compiler_and_keeps_what_is_finished(waiting_build, bundle):
    process, reader = waiting_build
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert reader.read() == ""
    assert files(bundle) == finished("first")


def test_what_a_killed_build_left_is_cleared_away(bundle, stand_in):
    run_build(bundle)
    for name in ("second.new", "second.new.partial", "timing.cache.partial"):
        plan_path(bundle, "second", KEY).with_name(name).write_bytes(b"half")
    run_build(bundle)
    assert files(bundle) == finished("first", "second")


def test_a_damaged_bundle_is_refused_before_anything_is_compiled(bundle, stand_in):
    (bundle.path / "engines" / "second.weights").write_bytes(b"weights that nothing reaDs")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        run_build(bundle)
    assert stand_in.compiles() == []
    assert not (bundle.path / "plans").exists()


def test_a_changed_engine_is_compiled_again(bundle, stand_in, tmp_path):
    run_build(bundle)
    other = tiny_bundle(tmp_path / "other", seed=1)
    (bundle.path / "plans").rename(other.path / "plans")
    run_build(other)
    assert len(stand_in.compiles()) == 4


def test_what_the_check_measures_decides(bundle, stand_in, capsys):
    bad = {"second": 1e-3, "second_again": 0.5}
    rows = run_build(bundle, check_engine=lambda p, b: CHECKED["first"] | bad)
    assert rows[0].verdict.kind == "pass"
    assert str(rows[1].verdict) == (
        "fail (stage 'second_again' differs by 5.0e-01, allowed 7.0e-03)"
    )
    assert "second 1.0e-03 of 4.0e-03, second_again 5.0e-01 of 7.0e-03 FAIL" in table(rows)
    with pytest.raises(EngineError, match="fail .stage 'second_again'"):
        read_plan(bundle, "second", KEY)
    run_build(bundle)
    assert [c["engine"] for c in stand_in.compiles()] == ["first", "second", "second"]


def test_a_check_that_leaves_out_a_stage_fails(bundle, stand_in):
    rows = run_build(bundle, check_engine=lambda path, plan: {"first": 1e-3, "second": 1e-3})
    assert str(rows[1].verdict).startswith("fail (stage 'second_again' differs by inf")
    assert "second_again inf of 7.0e-03 FAIL" in table(rows)


def test_a_bundle_without_measurements_is_refused_before_the_work(bundle, stand_in):
    path = bundle.path / "manifest.json"
    raw = json.loads(path.read_text())
    raw["quantization"]["stages"] = {}
    path.write_text(json.dumps(raw))
    with pytest.raises(EngineError, match="no measured error of stage 'first'.*export the bundle"):
        run_build(bundle)
    assert stand_in.compiles() == []


def test_what_was_not_measured_is_measured_without_another_compile(bundle, stand_in):
    rows = run_build(bundle, check_engine=None)
    assert {str(row.verdict) for row in rows} == {"not measured (no GPU here)"}
    with pytest.raises(EngineError, match="not measured .no GPU here"):
        read_plan(bundle, "first", KEY)
    assert {str(row.verdict) for row in run_build(bundle)} == {"pass"}
    assert read_plan(bundle, "first", KEY)
    assert len(stand_in.compiles()) == 2


def test_the_exit_code_says_whether_the_plans_may_be_used(bundle, stand_in, monkeypatch, capsys):
    monkeypatch.setattr("runtime.plans.build.current_key", lambda module: KEY)
    assert main(bundle) == 1
    streams = capsys.readouterr()
    assert "the runtime refuses 2 of 2 plans: first, second" in streams.err
    assert "not measured (no GPU here)" in streams.out
    assert main(bundle, "--workspace-mb", "32", check_engine=check_engine) == 0
    assert "second 1.0e-03 of 4.0e-03" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workspace-mb", "0"], "--workspace-mb must be positive, got 0"),
        (
            ["--capability", "SM86"],
            "capability 'SM86' needs backend 'tensorrt_rtx', got 'tensorrt'",
        ),
        (
            ["--backend", "tensorrt_rtx", "--capability", "eight"],
            "capability must look like SM86, got 'eight'",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(bundle, arguments, words):
    with pytest.raises(ValueError, match=words):
        main(bundle, *arguments)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space, then go on with: anchorvla build"),
        (errno.EROFS, "cannot write plans there .* build as the user that owns the bundle"),
    ],
)
def test_a_disk_that_takes_no_plan_is_an_error_with_a_remedy(bundle, stand_in, code, words):
    def fail(path, plan):
        raise OSError(code, os.strerror(code))

    with pytest.raises(EngineError, match=words):
        run_build(bundle, check_engine=fail)
    assert files(bundle) == finished()


def test_a_disk_that_is_too_small_is_noticed_before(bundle, stand_in, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(EngineError, match=r"0\.0 GB free, the plans need about .* free some space"):
        run_build(bundle)
    assert stand_in.compiles() == []


def test_a_plan_that_cannot_be_written_is_the_compilers_error(bundle, stand_in, tmp_path):
    spec = CompileSpec(
        onnx=str(bundle.path / "engines" / "first.onnx"),
        plan=str(tmp_path / "none" / "x.plan"),
        workspace_bytes=MB,
    )
    with pytest.raises(EngineError, match="a plan needs a folder and a disk with room for it"):
        compile_apart(spec)


def test_plans_that_are_a_link_are_refused(bundle, stand_in, tmp_path):
    (bundle.path / "plans").symlink_to(tmp_path)
    with pytest.raises(EngineError, match="plans: a link; plans are plain files"):
        run_build(bundle)


def test_the_workspace_is_what_weights_and_others_leave():
    assert workspace_for(4096 * MB, 512 * MB) == (4096 - 3 * 512 - 512) * MB
    assert workspace_for(64_000 * MB, 512 * MB) == 8192 * MB
    assert workspace_for(100 * MB, 512 * MB) == 64 * MB


@pytest.mark.parametrize(("free", "is_enough"), [(120, True), (119, False)])
def test_plans_are_given_a_fifth_more_than_their_onnx_files_take(
    tmp_path, monkeypatch, free, is_enough
):
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("runtime.plans.folder.shutil.disk_usage", lambda path: usage)
    if is_enough:
        check_disk(tmp_path, 100)
    else:
        with pytest.raises(EngineError, match="GB free, the plans need about"):
            check_disk(tmp_path, 100)


def test_available_memory_is_read_from_the_kernel(tmp_path):
    meminfo = tmp_path / "proc" / "meminfo"
    meminfo.parent.mkdir()
    meminfo.write_text("MemTotal:  8000 kB\nMemFree:  10 kB\nMemAvailable:    4000 kB\n")
    assert available_memory(tmp_path) == 4000 * 1024
    meminfo.write_text("MemTotal:  8000 kB\n")
    with pytest.raises(
        EngineError, match="meminfo: no MemAvailable in it; name a workspace: --workspace-mb"
    ):
        available_memory(tmp_path)


def layer(name, types, nodes, key="Format/Datatype"):
    return {
        "Name": name,
        "LayerType": "gemm",
        "Inputs": [{"Name": "x", "Dimensions": [16, 64], key: words} for words in types],
        "Outputs": [{"Name": "y", "Dimensions": [16, 64], key: "Half"}],
        "TacticName": "a",
        "Metadata": "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


@pytest.mark.parametrize(
    ("key", "int8"),
    [
        ("Format/Datatype", "Int8"),
        ("Format/Datatype", "Row major linear INT8 format"),
        ("Datatype", "Int8"),
    ],
)
def test_products_that_left_int8_are_named(key, int8):
    up, down, gone = (f"layers.0.mlp.{n}/MatMul" for n in ("up_proj", "down_proj", "gone"))
    layers = [
        layer("__myl_Quant_myl0_0", ["Half"], ["layers.0.mlp.up_proj/QuantizeLinear"], key),
        layer("__myl_FcMul_myl0_1", [int8], [up, "layers.0.mlp.act/Mul"], key),
        layer("__myl_Mul_myl0_2", ["Float"], [up], key),
        layer("__myl_Fc_myl0_3", ["Half", "Float"], [down], key),
    ]
    # Separators of metadata stand unescaped in what TensorRT prints.
    text = json.dumps({"Layers": layers, "Bindings": ["x", "y"]}).replace("\\u001f", "\x1f")
    assert audit_layers(text, {up, down, gone}) == [
        f"{down}: computed by __myl_Fc_myl0_3, which reads ['Float', 'Half'], expected Int8",
        f"{gone}: in no layer of the engine",
    ]


def test_an_engine_that_tells_names_only_cannot_be_audited():
    with pytest.raises(ValueError, match="no more than names of layers"):
        audit_layers('{"Layers": ["conv", "relu"], "Bindings": []}', {"conv"})
    with pytest.raises(ValueError):
        audit_layers("not JSON", {"conv"})


@needs_rtx
def test_a_real_compiler_builds_for_a_gpu_that_is_not_there(bundle, capsys):
    arguments = ("--backend", "tensorrt_rtx", "--capability", "SM86", "--workspace-mb", "256")
    assert main(bundle, *arguments) == 0
    assert "[2/2] second: compile" in capsys.readouterr().out
    path = next((bundle.path / "plans").glob("none-sm86-0sm-tensorrt-rtx-*/first.json"))
    record = json.loads(path.read_text())
    assert record["int8_products"] == [INT8_PRODUCT]
    assert record["not_measured"] == "no GPU here"
    assert record["plan_bytes"] == path.with_suffix(".plan").stat().st_size
    path.with_suffix(".plan").unlink()
    assert main(bundle, *arguments) == 0
    out = capsys.readouterr().out
    assert "[1/2] first: compile" in out and "[2/2] second: kept" in out


@needs_rtx
def test_int8_layers_are_judged_by_what_the_engine_says(bundle):
    """The inspector needs a GPU; what it would print is in the shape TensorRT prints it."""
    said = {"Layers": [layer("gemm", ["Int8"], [INT8_PRODUCT], "Datatype")]}
    rows = build(
        bundle.path,
        backend="tensorrt_rtx",
        capability="SM86",
        workspace_bytes=256 * MB,
        check_engine=check_engine,
        inspect_engine=lambda plan: (json.dumps(said), 4096),
        say=lambda line: None,
    )
    assert rows[0].record.layers == "1 of 1 int8 products run on int8"
    assert rows[0].record.scratch_bytes == 4096
    assert rows[1].record.layers == "0 of 0 int8 products run on int8"
    assert "layers: 1 of 1 int8 products run on int8" in table(rows)


@needs_rtx
def test_a_capability_that_the_compiler_does_not_know_is_refused_with_those_it_knows(bundle):
    with pytest.raises(EngineError, match=r"cannot build for SM87; it knows \[.*'SM86'"):
        build(bundle.path, backend="tensorrt_rtx", capability="SM87", say=lambda line: None)
