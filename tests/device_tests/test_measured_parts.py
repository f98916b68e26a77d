"""The parts of a measured run on planted data: nothing here waits or depends on real time."""

import gc
import json
import subprocess
from dataclasses import replace
from mmap import mmap

import numpy as np
import pytest

import runtime
from device_tests.comparison import Reference, compare, noise_ms, read_reference
from device_tests.config import MeasureConfig, read_config
from device_tests.measure import pressure
from device_tests.measure.conditions import Conditions, read_conditions, read_resident_mb, throttled
from device_tests.measure.growth import MAX_POINTS, Thinned, measure_growth, median_slope
from device_tests.measure.latency import Spread, no_collection
from device_tests.measure.pacing import Pacing, pace
from device_tests.measure.pressure import cpu_pressure, memory_pressure
from device_tests.measure.scene import Scene
from device_tests.measure.soak import soak


class FakeClock:
    def __init__(self, oversleep_s=0.0):
        self.now, self.oversleep_s = 0.0, oversleep_s

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds + self.oversleep_s


def conditions(**changes):
    empty = {f: {} for f in ("clocks_mhz", "temperatures_c", "power_w", "cooling", "over_current")}
    return Conditions(**({"resident_mb": 100.0, "unix_s": 0.0} | empty | changes))


def test_quantiles_are_numpys_and_the_worst_tick_is_among_them():
    milliseconds = list(np.random.default_rng(0).gamma(2.0, 5.0, 333))
    spread = Spread.of(milliseconds)
    expected = np.percentile(milliseconds, [50, 95, 99])
    assert np.allclose([spread.p50_ms, spread.p95_ms, spread.p99_ms], expected)
    assert (spread.max_ms, spread.n) == (max(milliseconds), 333)
    with pytest.raises(ValueError, match="a spread needs at least one duration, got none"):
        Spread.of([])


def test_the_noise_of_equal_ticks_is_nothing_and_that_of_a_pattern_is_seen():
    assert noise_ms([10.0] * 64) == 0
    assert noise_ms([10.0, 12.0] * 32) == 2  # seen by blocks of one tick only
    assert noise_ms([10.0] * 32 + [13.0] * 32) == 3  # a drift: the first half against the second
    with pytest.raises(ValueError, match="noise needs at least 20 ticks, got 3"):
        noise_ms([1.0, 2.0, 3.0])


REFERENCE = Reference(
    board="thor",
    power_mode="MAXN (0)",
    way_to_wait="block",
    num_weights=7,
    median_ms=20.0,
    noise_ms=0.5,
    throttled=False,
    commit="abc",
    date="2026-01-01",
)


@pytest.mark.parametrize(
    ("median_ms", "noise", "direction"),
    [
        (20.4, 0.1, "no difference beyond the noise"),
        (19.6, 0.1, "no difference beyond the noise"),
        (20.6, 0.1, "slower"),
        (19.4, 0.1, "faster"),
        (20.6, 0.8, "no difference beyond the noise"),
    ],
)
def test_only_what_exceeds_the_larger_noise_is_a_difference(median_ms, noise, direction):
    now = replace(REFERENCE, median_ms=median_ms, noise_ms=noise)
    assert compare(now, REFERENCE, between_runs_share=0.0).direction == direction


def test_what_runs_differ_by_anyway_is_no_difference():
    now = replace(REFERENCE, median_ms=20.9)
    change = compare(now, REFERENCE, between_runs_share=0.05)
    assert change.noise_ms == pytest.approx(1.0)
    assert change.direction == "no difference beyond the noise"
    assert compare(now, REFERENCE, between_runs_share=0.04).direction == "slower"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("board", "x86-cpu", "the last accepted result has board thor, this run x86-cpu"),
        ("power_mode", "15W (1)", r"has power mode MAXN \(0\), this run 15W \(1\)"),
        ("way_to_wait", "spin", "has way to wait block, this run spin"),
        ("num_weights", 8, "has num weights 7, this run 8"),
        ("throttled", True, "this run throttled: its times are those of a hot board"),
    ],
)
def test_what_cannot_be_compared_is_not(field, value, words):
    with pytest.raises(ValueError, match=words):
        compare(replace(REFERENCE, **{field: value}), REFERENCE, between_runs_share=0.0)
    with pytest.raises(ValueError, match="the last accepted result throttled"):
        compare(REFERENCE, replace(REFERENCE, throttled=True), between_runs_share=0.0)


@pytest.mark.parametrize(
    "text",
    [None, "", "{", "[1]", '{"reference": null}', '{"reference": {"board": "thor"}}'],
)
def test_a_baseline_that_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"old.json: no result of a device test .*--baseline"):
        read_reference(path)


def test_a_baseline_is_read_back(tmp_path):
    path = tmp_path / "device.json"
    fields = {name: getattr(REFERENCE, name) for name in Reference.__dataclass_fields__}
    path.write_text(json.dumps({"reference": fields, "rows": []}))
    assert read_reference(path) == REFERENCE


def test_the_slope_is_that_of_the_line_in_spite_of_a_step():
    line = [(float(x), 3.0 + 0.25 * x + (1000.0 if x > 95 else 0.0)) for x in range(100)]
    assert median_slope(line) == pytest.approx(0.25)
    assert median_slope([(float(x), 7.0 if x < 20 else 9.0) for x in range(100)]) == 0
    with pytest.raises(ValueError, match="a slope needs at least two points, got 1"):
        median_slope([(0.0, 1.0)])


def grow(bytes_per_tick, num_ticks=800):
    """The real memory of this process, while every tick keeps so many bytes."""
    clock, kept = FakeClock(), []

    def tick():
        clock.now += 1.0
        if bytes_per_tick:
            kept.append(mmap(-1, bytes_per_tick))  # past any allocator that has some left
            kept[-1].write(b"x" * bytes_per_tick)

    return measure_growth(tick, clock, read_resident_mb, seconds=num_ticks)


def test_a_planted_leak_is_seen_and_its_size_is_right():
    leaking, steady = grow(25 * 4096), grow(0)
    assert leaking.num_ticks == steady.num_ticks == 800
    assert leaking.mb_per_10k_ticks == pytest.approx(1024, rel=0.1)
    assert abs(steady.mb_per_10k_ticks) < 10
    assert leaking.peak_mb - leaking.points[0][1] == pytest.approx(82, rel=0.15)


def test_a_record_stays_bounded_and_keeps_both_ends():
    record, asked = Thinned(), 0

    def read():
        nonlocal asked
        asked += 1
        return float(asked)

    for x in range(100_000):
        record.add(float(x), read)
    assert MAX_POINTS / 2 <= len(record.points) < MAX_POINTS
    assert record.points[0] == (0.0, 1.0) and record.points[-1][0] > 99_000
    assert asked < 10 * MAX_POINTS
    assert len(set(np.diff([x for x, _ in record.points]))) == 1


def test_the_collector_rests_while_ticks_are_timed():
    with no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def paced(policy, clock, act_s):
    """The loop at 10 Hz on ticks of planted length, the first of which does not count."""
    seconds = iter([0.0, *act_s, *[0.0] * 100])
    real = policy.interpreter.run

    def run(leaf):
        real(leaf)
        clock.now += next(seconds)

    policy.interpreter.run = run
    try:
        return pace(policy, Scene(policy), clock, rate_hz=10.0, seconds=1.0)
    finally:
        del policy.interpreter.run


def test_deadlines_that_are_met_are_not_missed(policy):
    pacing = paced(policy, FakeClock(), [0.05] * 10)
    assert pacing.act_ms == pytest.approx((50.0,) * 10)
    assert (pacing.num_missed, pacing.num_dropped, pacing.missed_share) == (0, 0, 0.0)
    assert pacing.jitter.max_ms == pytest.approx(0, abs=1e-6)


def test_a_late_action_and_the_ticks_it_swallows_are_missed_deadlines(policy):
    pacing = paced(policy, FakeClock(), [0.05, 0.35, 0.02])
    # Due at 200 ms, ready at 550: the ticks at 300 and 400 are dropped, that at 500 starts late.
    assert pacing.num_dropped == 2
    assert pacing.num_missed == 1
    assert max(pacing.late_ms) == pytest.approx(50.0)
    assert pacing.missed_share == pytest.approx(3 / 12)


def test_a_sleep_that_ends_late_is_jitter(policy):
    pacing = paced(policy, FakeClock(oversleep_s=0.003), [0.05] * 10)
    assert pacing.jitter.p50_ms == pytest.approx(3.0)


def test_an_action_after_the_next_tick_was_due_is_missed_though_it_was_quick():
    pacing = Pacing(rate_hz=100.0, late_ms=(0.0, 6.0), act_ms=(9.0, 5.0), num_dropped=0)
    assert pacing.num_missed == 1


def test_nothing_that_the_policy_sees_repeats(policy):
    scene = Scene(policy)
    images = [scene.observe()["frame"].tobytes() for _ in range(20)]
    assert len(set(images)) == 20
    states = [scene.observe()["state"].tobytes() for _ in range(2)]
    assert len(set(states)) == 2
    anchors = [scene.given()["anchor"].tobytes() for _ in range(2)]
    anchors += [scene.change("anchor").tobytes() for _ in range(2)]
    assert len(set(anchors)) == 4
    first = scene.given()["instruction"]
    other = scene.change("instruction")
    assert other != first and scene.given()["instruction"] == other
    assert scene.change("instruction") == first


def test_a_bundle_that_takes_one_instruction_only_cannot_be_timed_on_another(policy, monkeypatch):
    def refuse(name, text):
        raise runtime.ObservationError("too long")

    monkeypatch.setattr(policy, "take", refuse)
    with pytest.raises(
        runtime.BundleError, match=r"no variation of the golden instruction .*--tok"
    ):
        Scene(policy)


def write_tree(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_sensors_are_read_from_a_captured_tree(tmp_path):
    ina, cpu = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon2", "sys/devices/system/cpu"
    write_tree(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "51250\n",
            "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
            "sys/class/thermal/cooling_device0/cur_state": "3\n",
            f"{ina}/in1_label": "VDD_IN\n",
            f"{ina}/in1_input": "5000\n",
            f"{ina}/curr1_input": "1200\n",
            f"{ina}/in2_label": "VDD_CPU_GPU_CV\n",
            f"{ina}/in2_input": "5000\n",
            f"{ina}/curr2_input": "400\n",
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "1000000\n",
            f"{cpu}/cpu1/cpufreq/scaling_cur_freq": "1500000\n",
            "proc/self/status": "Name:\tx\nVmRSS:\t   1000 kB\n",
        },
    )
    seen = read_conditions(tmp_path)
    assert seen.temperatures_c == {"cpu-thermal": 51.25}
    assert seen.cooling == {"cpufreq-cpu0": 3}
    assert seen.clocks_mhz == {"cpu": 1250.0}
    assert seen.total_w == pytest.approx(6.0)  # VDD_IN feeds the other rail
    assert seen.resident_mb == 1.024


def test_without_sensors_nothing_is_made_up(tmp_path):
    seen = read_conditions(tmp_path)
    assert not (seen.clocks_mhz or seen.temperatures_c or seen.power_w or seen.cooling)
    assert seen.total_w is None and np.isnan(seen.resident_mb)


def test_a_board_without_a_sum_adds_up_the_rails_that_no_other_one_feeds():
    rails = {"VDD_GPU_SOC": 10.0, "VDD_CPU_CV": 4.0, "VIN_SYS_5V0": 5.0, "VDDQ_VDD2_1V8AO": 1.0}
    assert conditions(power_w=rails).total_w == 19.0


def test_throttling_is_a_cooling_device_at_any_look_or_an_event_since_the_first():
    calm = conditions(over_current={"oc1": 4})
    assert throttled([calm, calm]) == ()
    assert throttled([calm, conditions(cooling={"gpu": 2}), calm]) == ("gpu in state 2",)
    later = conditions(over_current={"oc1": 6})
    assert throttled([calm, later]) == ("2 over-current events of oc1",)


def soaked(looks, seconds, tick_s=0.25, **options):
    clock, looks = FakeClock(), iter(looks)

    def tick():
        clock.now += tick_s

    return soak(tick, clock, lambda: next(looks), seconds=seconds, **options)


def test_a_soak_looks_once_a_second_and_adds_up_the_energy():
    looks = [conditions(power_w={"VDD_IN": w}) for w in (10.0, 20.0, 20.0, 30.0)]
    result = soaked(looks, 3.0)
    assert [sample.time_s for sample in result.samples] == [1.0, 2.0, 3.0]
    assert result.num_ticks == 12
    assert result.energy_j == 15.0 + 20.0 + 25.0  # trapezoids
    assert result.joules_per_chunk == 5.0
    assert (result.throttled_share, result.slowdown) == (0.0, 1.0)


def test_energy_with_a_gap_in_it_is_not_told():
    looks = [conditions(power_w={"VDD_IN": 10.0}), conditions(), conditions()]
    assert soaked(looks, 2.0).joules_per_chunk is None


def test_a_soak_tells_in_which_share_of_it_the_board_throttled():
    hot, event = conditions(cooling={"gpu": 1}), conditions(over_current={"oc2": 1})
    assert soaked([conditions(), conditions(), hot, hot, event], 4.0).throttled_share == 0.75


def test_a_long_soak_keeps_a_bounded_number_of_samples_and_all_of_the_energy():
    looks = (conditions(power_w={"VIN": 2.0}) for _ in range(2000))
    result = soaked(looks, 1000.0, tick_s=1.0, max_samples=64)
    assert 16 <= len(result.samples) < 64
    assert result.samples[-1].time_s > 900
    assert result.energy_j == 2000.0


def test_a_board_that_slows_down_is_seen():
    clock, length = FakeClock(), iter([0.5] * 8 + [1.0] * 4)

    def tick():
        clock.now += next(length)

    result = soak(tick, clock, conditions, seconds=8.0)
    assert result.slowdown == 2.0


def pids(monkeypatch):
    started = []
    real = subprocess.Popen

    def start(*arguments, **options):
        started.append(real(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(pressure.subprocess, "Popen", start)
    return started


def test_busy_processes_live_as_long_as_the_block(monkeypatch):
    started = pids(monkeypatch)
    with cpu_pressure(2):
        assert [process.poll() for process in started] == [None, None]
    assert [process.poll() for process in started] == [-9, -9]


def test_memory_pressure_holds_what_it_was_asked_for(monkeypatch):
    started = pids(monkeypatch)
    with memory_pressure(50_000_000):
        with open(f"/proc/{started[0].pid}/status") as status:
            (line,) = [line for line in status if line.startswith("VmRSS:")]
        assert int(line.split()[1]) * 1024 > 50_000_000
    assert started[0].poll() == -9


def test_memory_that_is_not_there_is_an_error():
    with (
        pytest.raises(MemoryError, match="died before it was ready.*--memory-share"),
        memory_pressure(1 << 60),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "cuda"}, "backend must be one of onnxruntime, tensorrt, .*, got 'cuda'"),
        ({"seconds": 0.0}, r"seconds must be in \(0, 3600\], got 0.0"),
        ({"memory_share": 0.95}, r"memory_share must be in \(0, 0.9\), got 0.95"),
        ({"soak_s": -1.0}, "soak_s must not be negative, got -1.0"),
        ({"idle_s": float("nan")}, "idle_s must not be negative, got nan"),
        ({"bundle": None}, "no bundle was named: run python -m device_tests BUNDLE"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        read_config({"bundle": tmp_path} | options)


def test_options_that_are_left_out_have_the_defaults_of_the_config(tmp_path):
    given = {"bundle": tmp_path, "seconds": None, "soak_s": 3.0, "debug": True}
    assert read_config(given) == MeasureConfig(bundle=tmp_path, soak_s=3.0)
