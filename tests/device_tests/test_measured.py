"""A whole measured run, on engines that compute the real thing and take planted times."""

import inspect
from dataclasses import replace

import pytest

import runtime
from device_tests import test_device
from device_tests.__main__ import main
from device_tests.config import MeasureConfig
from device_tests.ledger import Ledger
from device_tests.measure.conditions import Conditions
from device_tests.measure.latency import MIN_ROUNDS, WARM, WARM_PER_ROUND
from device_tests.measured import BUSY_CORES, BUSY_MEMORY, CALM, default_backend, measure_all
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.board.machine import PowerMode, read_machine
from tests.families import golden_of, toy_graph, write_bundle
from tests.runtime.test_declarations import FAMILIES

KINDS = (
    *("warm", "first of an episode", "new anchor", "new instruction"),
    *("everything", "after a pause"),
)
STAGE_S = 0.0005
"""What every engine stage takes unless a test says otherwise."""
SMALL = {"seconds": 0.2, "num_idle": 3, "idle_s": 100.0, "memory_share": 0.001}


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class PlantedBackend(OnnxRuntimeBackend):
    """Engines whose stages take planted seconds of a fake clock, and may write nonsense."""

    def __init__(self, clock, seconds, spoiled):
        super().__init__(num_threads=1)
        self.clock, self.seconds, self.spoiled = clock, seconds, spoiled

    def launcher(self, graph, runs, memory):
        real = super().launcher(graph, runs, memory)
        outputs = {stage.name: stage.outputs.values() for stage in graph.stages}

        def launch(stages, wanted):
            real(stages, wanted)
            took = {name: self.seconds.get(name, STAGE_S) for name in stages}
            self.clock.now += sum(took.values())
            for name in outputs.get(self.spoiled, ()) if self.spoiled in stages else ():
                memory.host(name)[:] *= 1.01
            return took

        return launch


def look(**changes):
    fields = ("clocks_mhz", "temperatures_c", "power_w", "cooling", "over_current")
    found = {name: {} for name in fields} | {"resident_mb": 100.0, "unix_s": 0.0}
    return Conditions(**(found | changes))


@pytest.fixture(scope="module")
def x86(tmp_path_factory):
    nowhere = read_machine(tmp_path_factory.mktemp("root"), run=lambda arguments: "")
    return replace(nowhere, board="x86_64", memory_bytes=8 << 30)


@pytest.fixture(scope="module")
def measure(demo_bundle, x86):
    """A run on planted stage times, memory and sensors."""

    def run(*, seconds=None, spoiled=None, read_mb=lambda: 150.0, parts=None, **options):
        clock = FakeClock()
        on_part = (lambda part: None) if parts is None else parts.append
        return measure_all(
            MeasureConfig(**({"bundle": demo_bundle} | SMALL | options)),
            backend=lambda bundle: PlantedBackend(clock, seconds or {}, spoiled),
            machine=x86,
            clock=clock,
            look=look,
            read_mb=read_mb,
            on_part=on_part,
        )

    return run


@pytest.fixture(scope="module")
def parts():
    """What was announced by the run of `plain`."""
    return []


@pytest.fixture(scope="module")
def plain(measure, parts):
    """A run in which nothing is wrong, with a soak."""
    return measure(soak_s=1.2, commit="1234abc", parts=parts)


def judge(measured):
    """Every test of `device_tests/test_device.py` on a result: the book, and what broke."""
    book, broken = Ledger(mark="throttled" if measured.throttled else ""), []
    known = {"measured": measured, "ledger": book, "budget": measured.budget, "run": measured.run}
    for name, function in inspect.getmembers(test_device, inspect.isfunction):
        if not name.startswith("test_"):
            continue
        wanted = inspect.signature(function).parameters
        kinds = [CALM, BUSY_CORES, BUSY_MEMORY] if "kind" in wanted else [None]
        for kind in kinds:
            arguments = {n: kind if n == "kind" else known[n] for n in wanted}
            if arguments.get("run", measured) is None:
                continue
            try:
                function(**arguments)
            except AssertionError as error:
                broken.append(str(error))
            except pytest.skip.Exception:
                pass
    return book.rows, broken


def row(rows, start):
    (found,) = [r for r in rows if r.name.startswith(start)]
    return found


def test_every_kind_of_tick_is_timed_and_runs_the_stages_that_its_name_says(plain):
    latency = plain.run.latency
    assert tuple(latency) == KINDS
    assert latency[WARM].spread.n == WARM_PER_ROUND * latency["everything"].spread.n
    assert latency["everything"].spread.n >= MIN_ROUNDS
    stages = {kind: set(latency[kind].stages) for kind in KINDS}
    assert not stages[WARM] & {"anchor_vision", "prefix", "suffix_tail"}
    assert stages["new anchor"] - stages[WARM] >= {"anchor_vision", "anchor_project", "prefix"}
    assert "suffix_tail" in stages["new instruction"]
    assert "anchor_vision" not in stages["new instruction"]
    assert stages["new anchor"] <= stages["first of an episode"] <= stages["everything"]
    assert stages["after a pause"] == stages[WARM]


def test_the_times_are_those_of_the_clock_and_a_pause_is_not_counted(plain):
    warm, idle = plain.run.latency[WARM], plain.run.latency["after a pause"]
    engines = len([n for n in warm.stages if n.startswith(("frame_v", "frame_pr", "suf", "den"))])
    assert engines >= 12
    assert warm.spread.p50_ms == pytest.approx(warm.spread.max_ms)
    assert idle.spread.max_ms == pytest.approx(warm.spread.p50_ms)
    assert 5 < warm.spread.p50_ms < 20
    assert plain.run.noise_ms == pytest.approx(0, abs=1e-6)


def test_the_loop_is_run_undisturbed_and_under_both_kinds_of_pressure(plain):
    assert tuple(plain.run.pacing) == (CALM, BUSY_CORES, BUSY_MEMORY)
    for pacing in plain.run.pacing.values():
        assert (pacing.rate_hz, len(pacing.act_ms)) == (10.0, 10)
        assert pacing.missed_share == 0


def test_a_good_run_keeps_every_promise_that_this_machine_can_judge(plain):
    rows, broken = judge(replace(plain, run=replace(plain.run, soak=None)))
    assert not broken
    judged = {r.name for r in rows if r.verdict == "pass"}
    assert len(judged) >= 10
    assert {r.name: r.note for r in rows if r.verdict == "not measured"} == {
        "memory taken from CPU and GPU": "only a Jetson has one memory for both; "
        "see resident memory",
        "temperature": "this machine has no sensor that the runtime can read",
        "throttling": "this machine has no sensor that the runtime can read",
        "soak: last quarter over the first, medians": "no soak was asked for with --soak-s",
        "warm median against the last accepted result": "no last accepted result was named with "
        "--baseline",
    }


def test_the_parts_are_announced_as_they_begin(plain, parts):
    assert parts == [
        "cold start",
        "parity with the golden data",
        "latency",
        "10 Hz, undisturbed",
        "10 Hz, a busy process per core",
        "10 Hz, memory in use",
        "memory",
        "thermal soak, 1.2 s",
    ]


def test_a_planted_slow_stage_breaks_the_budget_of_the_warm_tick(measure):
    slow = measure(seconds={"suffix": 0.148})
    rows, broken = judge(slow)
    message = "warm tick, p99: measured 155 ms, allowed at most 40 ms"
    assert message in broken
    assert row(rows, "warm tick, p99").verdict == "fail"
    missed = row(rows, "deadlines missed at 10 Hz, undisturbed")
    assert missed.verdict == "fail" and missed.allowed == "at most 2 %"
    assert slow.run.latency[WARM].stages["suffix"].p50_ms == pytest.approx(148)


def test_a_planted_slow_first_tick_breaks_its_own_promise_only(measure):
    rows, broken = judge(measure(seconds={"prefix": 0.03}))
    assert [words.split(":")[0] for words in broken] == [
        "first tick of an episode over a warm one, medians"
    ]
    assert row(rows, "warm tick, p99").verdict == "pass"


def test_without_parity_nothing_is_timed(measure, plain):
    wrong = measure(spoiled="condition")
    assert wrong.run is None and wrong.reference is None
    rows, broken = judge(wrong)
    assert any("parity of 21 stages, worst: modulations: measured" in words for words in broken)
    assert not [r for r in rows if "tick" in r.name or "deadline" in r.name]
    with pytest.raises(ValueError, match="nothing was timed"):
        replace(wrong, baseline=plain.reference).change()


def test_a_board_that_throttles_is_marked_and_breaks_the_promise(plain):
    looks = (*plain.run.looks, look(cooling={"gpu-throttle": 2}))
    hot = replace(plain, run=replace(plain.run, looks=looks))
    assert hot.throttled == ("gpu-throttle in state 2",)
    rows, broken = judge(hot)
    throttling = "throttling: measured gpu-throttle in state 2, allowed none (throttled)"
    assert broken == [throttling]
    assert {r.note for r in rows if r.verdict != "not measured"} == {"throttled"}
    assert hot.reference.throttled
    with pytest.raises(ValueError, match="this run throttled"):
        replace(hot, baseline=plain.reference).change()


def test_a_board_that_gets_too_hot_is_named_with_its_sensor(plain):
    warm = replace(plain, before=look(temperatures_c={"cpu": 40.0, "tj": 90.0}))
    assert warm.hottest_c == ("tj", 90.0)
    hot = replace(warm, after=look(temperatures_c={"cpu": 97.5, "tj": 90.0}))
    assert hot.hottest_c == ("cpu", 97.5)
    assert judge(warm)[1] == []
    assert judge(hot)[1] == [
        "temperature, hottest: cpu: measured 97.5 degrees C, allowed at most 95 degrees C"
    ]


def test_a_soak_that_slows_down_breaks_its_promise(plain):
    soak = plain.run.soak
    assert soak.slowdown == pytest.approx(1)
    samples = [replace(s, median_ms=6.0 if i == 0 else 12.0) for i, s in enumerate(soak.samples)]
    slow = replace(plain.run, soak=replace(soak, samples=tuple(samples)))
    assert judge(replace(plain, run=slow))[1] == [
        "soak: last quarter over the first, medians: measured 2 times, allowed at most 1.5 times"
    ]


def test_a_planted_leak_breaks_its_promise_and_no_other(measure):
    held = [150.0]

    def leaking():
        held[0] += 0.01
        return held[0]

    _, broken = judge(measure(read_mb=leaking))
    assert broken == [
        "memory growth per 10,000 ticks, seen over 50: measured 100 MB, allowed at most 10 MB"
    ]


def test_a_policy_that_needs_too_much_memory_breaks_its_promise(plain):
    _, broken = judge(replace(plain, resident_mb=512.0))
    assert broken == ["resident memory: measured 512 MB, allowed at most 400 MB"]


@pytest.mark.parametrize(
    ("change", "verdict", "direction"),
    [
        (0.2, "fail", "slower"),
        (0.1, "pass", "no difference"),
        (-0.1, "pass", "no difference"),
        (-0.2, "pass", "faster"),
    ],
)
def test_a_run_slower_than_the_accepted_one_breaks_the_promise_beyond_the_noise(
    plain, change, verdict, direction
):
    accepted = replace(plain.reference, median_ms=plain.reference.median_ms / (1 + change))
    rows, _ = judge(replace(plain, baseline=accepted))
    compared = row(rows, f"warm median against the last accepted result ({direction}")
    assert compared.verdict == verdict


def test_on_a_jetson_its_memory_and_its_throttling_are_judged_and_its_mode_is_recorded(plain, x86):
    nano = replace(
        x86,
        board="NVIDIA Jetson Orin Nano Developer Kit Super",
        compatible=("nvidia,p3767-0005", "nvidia,tegra234"),
        power_mode=PowerMode(name="MAXN_SUPER", number=2),
    )
    assert [default_backend(machine) for machine in (nano, x86)] == ["tensorrt", "onnxruntime"]
    there = replace(plain.provenance, board="orin-nano-8gb", machine=nano)
    assert there.power_mode == "MAXN_SUPER (2)"
    rows, _ = judge(replace(plain, provenance=there))
    assert row(rows, "throttling").verdict == "pass"
    assert row(rows, "memory taken from CPU and GPU").allowed == "at most 1500 MB"


def test_a_result_says_where_it_comes_from(plain, demo_bundle):
    p = plain.provenance
    assert p.board == "x86-cpu" and p.power_mode == "not applicable"
    assert {"msgspec", "numpy", "onnxruntime", "tokenizers"} <= p.versions.keys()
    manifest = runtime.read_bundle(demo_bundle).manifest
    assert p.bundle_sha256 == manifest.content_sha256
    assert p.num_weights == sum(engine.parameters for engine in manifest.engines.values())
    assert p.commit == "1234abc" and p.date and p.processor
    assert plain.cold_start_s > 0 and plain.resident_mb == 150


def test_a_row_that_is_not_a_number_is_a_broken_promise():
    book = Ledger()
    with pytest.raises(AssertionError, match="x: measured nan ms, allowed at most 3 ms"):
        book.at_most("x", float("nan"), 3.0, "ms")
    assert book.rows[0].verdict == "fail"


def test_a_family_that_nobody_knows_is_measured_and_judged_like_any_other(measure, tmp_path):
    inputs = FAMILIES["everything"]
    bundle = write_bundle(tmp_path / "toy", toy_graph(inputs, every=2), golden_of(inputs))
    measured = measure(bundle=bundle)
    assert measured.run is not None
    assert {"new first", "new goal"} <= measured.run.latency.keys()
    rows, broken = judge(measured)
    assert not broken
    assert sum(row.verdict == "pass" for row in rows) >= 10


@pytest.mark.parametrize("code", [0, 1])
def test_where_tensorrt_runs_plans_are_built_before_anything_is_measured(
    demo_bundle, monkeypatch, code
):
    done = []
    monkeypatch.setattr(
        "device_tests.__main__.runtime_command", lambda words: done.append(words) or code
    )
    monkeypatch.setattr("device_tests.__main__._run_here", lambda options: done.append("run") or 0)
    assert main([str(demo_bundle), "--backend", "tensorrt"]) == code
    build = ["build", str(demo_bundle), "--backend", "tensorrt"]
    assert done == ([build] if code else [build, "run"])
    assert main([str(demo_bundle), "--backend", "onnxruntime"]) == 0
    assert done[-1] == "run" and done.count(build) == 1


def test_without_tensorrt_a_run_on_it_ends_with_what_is_missing(demo_bundle, capsys):
    assert main([str(demo_bundle), "--backend", "tensorrt"]) == 5
    assert "tensorrt cannot be imported" in capsys.readouterr().err
