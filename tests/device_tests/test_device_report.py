"""What a device test leaves behind, and the command from end to end."""

import json
from dataclasses import replace

import pytest

from device_tests.__main__ import main
from device_tests.budgets import BUDGETS
from device_tests.comparison import Reference, read_reference
from device_tests.ledger import Row
from device_tests.measure.conditions import Conditions
from device_tests.measure.growth import Growth
from device_tests.measure.latency import WARM, Latency, kinds
from device_tests.measure.pacing import Pacing
from device_tests.measure.soak import Soak, SoakSample
from device_tests.page.report import write_json, write_page, write_results
from device_tests.provenance import Provenance
from device_tests.result import Measured, TimedRun
from runtime.backends.parity import Parity
from runtime.board.machine import Clocks, PowerMode, read_machine
from runtime.declarations import Input
from tests.graphs import vectors
from tests.pages import Page, broken_promises

KINDS = kinds(
    {
        "frame": Input(kind="image", source="robot", shape=(1, 1, 3), dtype="uint8", pace="tick"),
        "anchor": Input(
            kind="image", source="latch", of="frame", shape=(1, 1, 3), dtype="uint8", pace="event"
        ),
        **vectors("goal", pace="episode"),
    }
)
ROWS = (
    Row(name="warm tick, p99", verdict="fail", measured="93.1 ms", allowed="at most 20 ms"),
    Row(name="resident memory", verdict="pass", measured="138 MB", allowed="at most 1500 MB"),
    Row(name="temperature", verdict="not measured", note="no <sensor> here"),
)


def look(**changes):
    found = {
        "clocks_mhz": {"cpu": 1510.0, "gpu": 1020.0},
        "temperatures_c": {"tj-thermal": 61.5},
        "power_w": {"VDD_IN": 14.25},
        "cooling": {},
        "over_current": {"oc1": 0},
        "resident_mb": 138.0,
        "unix_s": 0.0,
    }
    return Conditions(**(found | changes))


def latency(kind):
    base = 10.0 + 2.0 * KINDS.index(kind)
    ticks = tuple(base + 0.1 * (i % 7) for i in range(40))
    stages = {name: tuple(0.25 * ms for ms in ticks) for name in ("suffix", "denoise_0")}
    return Latency(ticks_ms=ticks, stages_ms=stages | {"denoise_1": stages["denoise_0"]})


@pytest.fixture
def measured(tmp_path):
    machine = replace(
        read_machine(tmp_path, run=lambda arguments: ""),
        board="NVIDIA Jetson Orin Nano Developer Kit Super",
        l4t="36.4.3",
        jetpack="6.2",
        power_mode=PowerMode(name="25W", number=1),
    )
    provenance = Provenance(
        board="orin-nano-8gb",
        machine=machine,
        processor="Cortex-A78AE",
        clocks=Clocks(cpus=(), gpu=None, emc=None),
        versions={"numpy": "2.2.6", "tensorrt": "10.3.0"},
        backend="tensorrt",
        way_to_wait="spin",
        commit="1234abc",
        date="2026-11-21 12:00",
        bundle_sha256="ab" * 32,
        recipe="orin-mixed",
        weights="trained <here>",
        num_weights=5_000_000,
    )
    late = tuple(0.1 * (i % 3) for i in range(60))
    act = tuple(40.0 if i == 30 else 12.0 for i in range(60))
    samples = tuple(
        SoakSample(time_s=float(i), median_ms=12.0 + 0.01 * i, conditions=look()) for i in range(9)
    )
    run = TimedRun(
        latency={kind: latency(kind) for kind in KINDS},
        noise_ms=0.02,
        pacing={"undisturbed": Pacing(rate_hz=30.0, late_ms=late, act_ms=act, num_dropped=1)},
        growth=Growth(points=tuple((float(i), 138.0) for i in range(50)), num_ticks=50),
        soak=Soak(seconds=9.0, num_ticks=700, samples=samples, energy_j=126.0, throttled_share=0.0),
        looks=(look(),),
    )
    return Measured(
        provenance=provenance,
        before=look(),
        after=look(),
        cold_start_s=1.25,
        resident_mb=138.0,
        taken_mb=700.0,
        parity=(Parity("frame_tokens", 1e-3, 1e-2), Parity("actions", 2e-2, 1e-2)),
        run=run,
        baseline=None,
    )


def test_the_json_holds_what_every_published_number_needs(measured):
    found = json.loads(write_json(measured, ROWS))
    assert found["verdict"] == "fail"
    p = found["provenance"]
    assert (p["board"], p["power_mode"]) == ("orin-nano-8gb", "25W (1)")
    assert p["way_to_wait"] == found["reference"]["way_to_wait"] == "spin"
    assert (p["commit"], p["date"]) == ("1234abc", "2026-11-21 12:00")
    assert p["versions"] == {"numpy": "2.2.6", "tensorrt": "10.3.0"}
    for when in ("before", "after"):
        assert found[when]["clocks_mhz"]["gpu"] == 1020
        assert found[when]["temperatures_c"] == {"tj-thermal": 61.5}
    warm = found["latency"][WARM]
    assert {"p50_ms", "p95_ms", "p99_ms", "max_ms", "n", "stages", "ticks_ms"} == warm.keys()
    assert warm["n"] == len(warm["ticks_ms"]) == 40
    assert found["pacing"]["undisturbed"]["num_missed"] == 1
    assert found["soak"]["joules_per_chunk"] == 0.18
    assert found["rows"][2]["note"] == "no <sensor> here"
    assert found["budget"]["demo"]["rate_hz"] == BUDGETS["orin-nano-8gb"].demo.rate_hz


def test_a_json_is_the_baseline_of_a_later_run(measured, tmp_path):
    write_results(tmp_path / "new", measured, ROWS)
    reference = read_reference(tmp_path / "new" / "device.json")
    assert isinstance(reference, Reference) and reference.power_mode == "25W (1)"
    assert replace(measured, baseline=reference).change().direction.startswith("no difference")


def test_what_is_not_a_number_is_null_and_the_json_stays_valid(measured):
    text = write_json(replace(measured, resident_mb=float("nan"), run=None), ROWS)
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["resident_mb"] is None and found["latency"] == {} and found["reference"] is None


def test_the_page_shows_every_promise_with_its_verdict(measured):
    page = write_page(measured, ROWS)
    for words in (
        "Device test on orin-nano-8gb",
        "1 of 2",
        "Broken: warm tick, p99 (93.1 ms).",
        "at most 20 ms",
        "no &lt;sensor&gt; here",
        "trained &lt;here&gt;",
        "power mode 25W (1)",
        "61 ticks due at 30 Hz, 1 late with their action, 1 dropped",
        "0.180 J per action chunk",
        "throttled: in 0 % of the samples",
        "what is allowed is a target",
        "gpu 1020",
        *KINDS,
    ):
        assert words in page
    assert page.count('class="badge fail"') == 2  # the row, and the parity of the actions
    assert "throttled (" not in page


def test_every_drawing_of_the_page_holds_points(measured):
    page = Page(write_page(measured, ROWS))
    assert page.tags.count("svg") == 8  # ECDF, stages, one loop, memory, four of the soak
    assert len(page.charts()) == 8
    assert [name for name, drawn in page.charts().items() if not drawn] == [
        "Median milliseconds of every stage, by kind of tick"  # bars
    ]
    assert "nan" not in page.source.lower().replace("nano", "")


def test_the_page_keeps_what_every_page_promises(measured):
    assert broken_promises(Page(write_page(measured, ROWS))) == []


def test_a_board_with_more_sensors_than_colours_is_drawn(measured):
    # An Orin has eleven thermal zones.
    zones = {f"zone{i}-thermal": 40.0 + i for i in range(11)}
    soak = measured.run.soak
    samples = tuple(replace(s, conditions=look(temperatures_c=zones)) for s in soak.samples)
    hot = replace(measured, run=replace(measured.run, soak=replace(soak, samples=samples)))
    page = Page(write_page(hot, ROWS))
    assert zones.keys() < set(page.texts)
    assert len(page.charts()["degrees C over the soak"]) == 11


def test_calls_of_one_engine_are_one_bar(measured):
    page = write_page(measured, ROWS)
    assert ">denoise<" in page and "denoise_0" not in page


def test_a_throttled_result_says_so_at_the_top(measured):
    hot = replace(measured, after=look(cooling={"gpu": 1}, over_current={"oc1": 3}))
    page = write_page(hot, ROWS)
    banner = "The board throttled (gpu in state 1, 3 over-current events of oc1): all times are"
    assert page.index(banner) < page.index("Measured against allowed")
    assert json.loads(write_json(hot, ROWS))["throttled"] == list(hot.throttled)


def test_without_parity_the_page_shows_no_time(measured):
    page = write_page(replace(measured, run=None), ROWS)
    assert "Parity failed: this machine computes something else" in page
    assert "How long a tick takes" not in page and "<svg" not in page


def test_the_page_says_how_it_compares_with_the_accepted_result(measured):
    slower = replace(measured.reference, median_ms=8.0, commit="0000aaa")
    page = write_page(replace(measured, baseline=slower), ROWS)
    assert "commit 0000aaa: +2.300 ms, noise 0.240 ms: slower." in page


def test_a_machine_without_sensors_says_so_where_the_curves_would_be(measured):
    bare = look(clocks_mhz={}, temperatures_c={}, power_w={})
    soak = measured.run.soak
    samples = tuple(replace(sample, conditions=bare) for sample in soak.samples)
    run = replace(measured.run, soak=replace(soak, samples=samples, energy_j=None))
    p = measured.provenance
    elsewhere = replace(p, machine=replace(p.machine, l4t=None))
    page = write_page(replace(measured, run=run, provenance=elsewhere), ROWS)
    assert "throttled: not measured." in page
    assert "degrees C: not measured, no sensor for it here" in page
    assert "included: not measured" in page


def test_the_command_measures_judges_and_writes(demo_bundle, tmp_path, capfd):
    quick = ["--seconds=0.1", "--num-idle=1", "--idle-s=0", "--memory-share=0.001"]
    results = tmp_path / "results"
    code = main([str(demo_bundle), "--board=x86-cpu", f"--results={results}", *quick])
    out = capfd.readouterr().out
    found = json.loads((results / "device.json").read_text())
    assert code == (1 if found["verdict"] == "fail" else 0)
    assert len(found["rows"]) == 16
    assert "measured against allowed" in out and "measuring: latency" in out
    assert "not measured  throttling" in out
    for row in found["rows"]:
        assert row["name"] in out
    assert "Device test on x86-cpu" in (results / "device.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{none}"], 3, "none"),
        (["{bundle}", "--board=nano"], 2, "no budget for board 'nano'"),
        (["{bundle}", "--seconds=0"], 2, "seconds must be in (0, 3600], got 0.0"),
        (["{bundle}", "--backend=cuda"], 2, "backend must be one of onnxruntime"),
        (["{bundle}", "--baseline={none}"], 2, "no result of a device test"),
        (["{bundle}", "--there"], 2, "--there says that BUNDLE lies on another machine"),
        (["bundle", "--there", "--host=h"], 2, "--there needs the whole path on that host, got bu"),
        (["{bundle}", "--host=-oProxyCommand=x"], 2, "--host must be user@host or user@host:port"),
        (["{bundle}", "--host=h", "--ssh-option=x"], 2, "--ssh-option must be KEY=VALUE, got 'x'"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    demo_bundle, tmp_path, capsys, arguments, code, words
):
    places = {"none": tmp_path / "none", "bundle": demo_bundle}
    assert main([argument.format(**places) for argument in arguments]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_an_error_inside_pytest_keeps_its_exit_code(demo_bundle, tmp_path, capfd):
    results = f"--results={tmp_path}"
    assert main([str(demo_bundle), "--board=x86-cpu", "--embodiment=nobody", results]) == 3
    assert "nobody" in capfd.readouterr().out
