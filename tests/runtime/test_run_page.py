"""The page of a run: what ran, and predicted against recorded, number for number."""

import base64
import dataclasses
import io
from importlib import metadata

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from models.demo import EPISODES
from runtime.board.machine import PowerMode, read_machine
from runtime.bundle import FileEntry
from runtime.control.film import Film
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.trace import Step, Trace
from runtime.pages.benchmark import measure
from runtime.pages.imitation import Run, action_charts, dimension_errors, error_table
from runtime.pages.report import draw_page, processor_name
from runtime.recordings.recording import load_recording
from runtime.robots.replay import ReplayedRobot
from runtime.robots.robot import Observation
from tests.pages import Page, broken_promises

CONFIG = LoopConfig(rate_hz=1000.0, execute=5, max_steps=12)
BAD = "<script>alert('1')</script>"


@pytest.fixture(scope="module")
def run(policy):
    recording = load_recording(EPISODES / "touch-red-1.npz")
    policy.forget()  # its golden observation is of this episode, whose anchor it would know
    trace = run_episode(policy, ReplayedRobot(recording), CONFIG)
    return Run(name="touch-red-1", trace=trace, recorded_NA=recording.actions)


@pytest.fixture(scope="module")
def timings(policy):
    return measure(policy, 1)


@pytest.fixture(scope="module")
def page(policy, run, timings):
    return Page(draw_page(policy, [run], timings, CONFIG, "A run"))


def made_up(predicted_NA, recorded_NA):
    """A run of these actions."""
    first = Observation({"frame": np.zeros((2, 2, 3), np.uint8)}, {"frame": 0.0}, {"frame": 0})
    actions_NA = np.asarray(predicted_NA, np.float32)
    steps = [
        Step(0.0, 0.01 if i % 2 == 0 else None, {}, action_A, action_A, 0.0)
        for i, action_A in enumerate(actions_NA)
    ]
    recorded = None if recorded_NA is None else np.asarray(recorded_NA, np.float32)
    return Run(name="made up", trace=Trace("do", 0.1, first, steps), recorded_NA=recorded)


def test_the_page_keeps_what_every_page_promises(page):
    assert broken_promises(page) == []


def test_every_dimension_is_drawn_as_it_was_predicted_and_recorded(page, run):
    for d in range(run.predicted_NA.shape[1]):
        drawn = page.charts()[f"action {d}, fraction: predicted and recorded, by step"]
        both = (run.predicted_NA[:, d], run.recorded_NA[:, d])
        # Coordinates of points and of ticks are rounded to a tenth: off by a tenth at most, of the
        # 104 that the axis is high and the 354 that it is long. Whole ticks make it no more than
        # twice as long as the data, or as the least span.
        high = 2 * max(float(np.ptp(np.concatenate(both))), 0.5)
        for line, given in zip(drawn, both, strict=True):
            steps, values = np.asarray(line).T
            assert values == pytest.approx(given, abs=0.1 * high / 104)
            assert steps == pytest.approx(np.arange(len(given)), abs=0.1 * 80 / 354)


def test_errors_are_those_of_the_steps_that_have_both(page, run):
    rows = page.sections["Predicted against recorded"][1:]
    error = np.abs(run.predicted_NA.astype(float) - run.recorded_NA[:12])
    assert len(rows) == 4
    for d, row in enumerate(rows):
        assert row[:2] == [str(d), "fraction"]
        assert float(row[2]) == pytest.approx(error[:, d].mean(), rel=5e-3)
        assert float(row[3]) == pytest.approx(error[:, d].max(), rel=5e-3)
    assert f"Over 12 of {len(run.recorded_NA)} recorded steps: the run was cut short" in page.text


def test_what_the_guard_changed_is_counted_by_kind(page, policy, run, timings):
    assert "Nothing, in 12 steps." in page.text
    held = dataclasses.replace(run.trace, interventions={"jerk": 3, "not finite": 1200})
    nothing_sent = dataclasses.replace(held, steps=[], num_held=12)
    runs = [dataclasses.replace(run, trace=trace) for trace in (held, nothing_sent)]
    counted = Page(draw_page(policy, runs, timings, CONFIG, "A run"))
    rows = counted.sections["What the guard changed"][1:]
    assert [row[:2] for row in rows] == [["not finite", "2,400"], ["jerk", "6"]]


def test_an_error_is_worked_out_by_hand():
    a = made_up([[1.0, 0.0], [2.0, 0.0], [9.0, 9.0]], [[0.5, 0.0], [4.0, 1.0]])
    b = made_up([[0.0, 0.0]], [[0.0, -4.0], [7.0, 7.0]])
    first, second = dimension_errors([a, b])
    # |1 - 0.5|, |2 - 4|, |0 - 0|; of 0.5, 4, 0 the median is 0.5: errors of 0, 3.5, 0.5.
    assert (first.mean, first.largest) == pytest.approx((2.5 / 3, 2.0))
    assert (first.low, first.high, first.constant) == pytest.approx((0.0, 4.0, 4.0 / 3))
    # |0 - 0|, |0 - 1|, |0 + 4|
    assert (second.mean, second.largest) == pytest.approx((5.0 / 3, 4.0))


def test_a_whole_recording_is_said_to_be_whole():
    (_, words) = error_table([made_up([[1.0]] * 3, [[0.0]] * 3)], ["rad"])
    assert "Over all 3 recorded steps." in words


@pytest.mark.parametrize("recorded", [None, np.empty((0, 1))])
def test_nothing_recorded_is_no_table(recorded):
    run = made_up([[1.0]] * 3, recorded)
    assert error_table([run], ["m"]) == [] and run.num_compared == 0


def test_what_nobody_recorded_is_drawn_alone():
    page = Page(action_charts(made_up([[0.5]] * 4, None), ["m/step"], [1.0]))
    (name,) = page.charts()
    assert name == "action 0, m/step: predicted, by step" and len(page.charts()[name]) == 1


def test_twelve_joints_are_twelve_charts_with_their_own_units():
    units = ["rad"] * 6 + ["m"] * 6
    run = made_up(np.arange(36.0).reshape(3, 12), np.zeros((3, 12)))
    page = Page(action_charts(run, units, [1.0] * len(units)))
    assert list(page.charts()) == [
        f"action {d}, {unit}: predicted and recorded, by step" for d, unit in enumerate(units)
    ]


def test_dimensions_are_called_what_the_recording_calls_them():
    run = made_up([[1.0, 2.0]] * 3, np.zeros((3, 2)))
    named = dataclasses.replace(run, names=("shoulder_pan", BAD))
    page = Page(action_charts(named, ["rad", "m"], [1.0, 1.0]))
    assert list(page.charts()) == [
        "shoulder_pan, rad: predicted and recorded, by step",
        f"{BAD}, m: predicted and recorded, by step",
    ]
    other = dataclasses.replace(run, names=("shoulder_pan", "grip"))
    for runs, names in (([named], ["shoulder_pan", BAD]), ([named, other], ["shoulder_pan", "1"]),
                        ([named, run], ["0", "1"])):  # fmt: skip
        (table, _) = error_table(runs, ["rad", "m"])
        assert [row[0] for row in Page(table).sections[""][1:]] == names


def test_a_new_chunk_is_marked_where_the_policy_thought():
    page = Page(action_charts(made_up([[0.0], [1.0], [2.0], [3.0]], None), ["m"], [1.0]))
    lines = [a for tag, a in page.attributes if tag == "line"]
    marks = [a["x1"] for a in lines if a["x1"] == a["x2"]]
    (points,) = (a["points"].split() for tag, a in page.attributes if tag == "polyline")
    assert marks == [points[0].split(",")[0], points[2].split(",")[0]]


def test_a_dimension_that_hardly_moves_looks_like_it():
    page = Page(action_charts(made_up([[0.0], [0.01]], None), ["m"], [1.0]))
    (points,) = (a["points"].split() for tag, a in page.attributes if tag == "polyline")
    first, last = (float(point.split(",")[1]) for point in points)
    # The axis spans half of what is 1 to the policy at least, and is 104 high.
    assert 0 < first - last <= 0.01 / 0.5 * 104 + 0.1


def test_every_episode_has_its_own_errors_beside_those_of_all(policy, run, timings):
    other = dataclasses.replace(run, name="other", recorded_NA=run.predicted_NA + np.float32(0.5))
    page = Page(draw_page(policy, [run, other], timings, CONFIG, "t"))
    own = [row[2] for row in page.sections["Episodes"] if row[0] == "0"]
    (joint,) = [row[2] for row in page.sections["Predicted against recorded"] if row[0] == "0"]
    assert own[1] == "0.5"
    assert float(joint) == pytest.approx((float(own[0]) + 0.5) / 2, rel=1e-2)
    assert page.text.count("Over all 12 recorded steps.") == 1
    assert "Over 24 of 67 recorded steps" in page.text


def test_the_page_says_what_ran_and_where(policy, run, timings, page, monkeypatch):
    def head():
        return Page(draw_page(policy, [run], timings, CONFIG, "A run")).texts[2]

    assert f", on onnxruntime {metadata.version('onnxruntime')}, " in page.texts[2]
    monkeypatch.setattr(policy.backend, "name", "numpy")
    assert f", on numpy {np.__version__}, " in head()
    monkeypatch.setattr(policy.backend, "name", "tensorrt-on-the-moon")
    assert ", on tensorrt-on-the-moon, " in head() and "onnxruntime" not in head()
    board = dataclasses.replace(
        read_machine(), board="NVIDIA Jetson X", power_mode=PowerMode(name="25W", number=1)
    )
    monkeypatch.setattr("runtime.pages.report.read_machine", lambda: board)
    assert f", NVIDIA Jetson X, {processor_name()}, power mode 25W, 2" in head()


def test_what_the_anchor_saves_is_the_difference_of_the_medians(policy, run, page, timings):
    saved = timings["cold"].tick.p50 - timings["warm"].tick.p50
    # 12 steps, 5 actions a thought: three, of which the first is cold.
    assert f"{saved:.1f} ms saved a tick, {2 * saved / 1e3:.2f} s in this run." in page.text


def test_an_engine_is_not_given_the_files_of_one_whose_name_begins_alike(
    policy, run, timings, monkeypatch
):
    manifest = policy.bundle.manifest
    stem = manifest.engines["vision"].file.removesuffix(".onnx")
    size = sum(f.bytes for name, f in manifest.files.items() if name.startswith(f"{stem}."))
    files = {**manifest.files, f"{stem}_large.onnx": FileEntry(sha256="0" * 64, bytes=7)}
    other = structs.replace(manifest, files=files)
    monkeypatch.setattr(policy, "bundle", dataclasses.replace(policy.bundle, manifest=other))
    page = Page(draw_page(policy, [run], timings, CONFIG, "t"))
    assert page.rows("Engines")["vision"][2] == f"{size:,}"


def test_an_instruction_and_a_file_name_stay_text(policy, run, timings):
    trace = dataclasses.replace(run.trace, instruction=BAD)
    bad = Run(name=BAD, trace=trace, recorded_NA=run.recorded_NA)
    page = Page(draw_page(policy, [bad], timings, CONFIG, BAD))
    assert broken_promises(page) == [] and "script" not in page.tags
    assert page.text.count(BAD) == 4  # two titles, the instruction, the file


def test_the_strip_begins_with_the_anchor_and_ends_with_the_last_picture(page, run):
    shown = [attributes for tag, attributes in page.attributes if tag == "img"]
    pictures = run.trace.films["frame"].pictures
    wanted = (run.trace.first.values["frame"], pictures[0], pictures[len(run.trace.steps)])
    assert len(shown) == 5 and shown[0]["alt"] == "anchor"
    for drawn, image in zip((shown[0], shown[1], shown[-1]), wanted, strict=True):
        png = base64.b64decode(drawn["src"].removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), image)


def test_pictures_are_small_however_large_the_camera_is(policy, run, timings):
    huge = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), np.uint8)
    film = Film()
    for step in range(len(run.trace.steps)):
        film.add(step, huge)
    first = Observation({"wrist": huge}, {"wrist": 0.0}, {"wrist": 0})
    trace = dataclasses.replace(run.trace, films={"wrist": film}, first=first)
    page = Page(draw_page(policy, [Run(name="x", trace=trace)], timings, CONFIG, "t"))
    # Noise does not compress: 240 x 135 pixels of 3 bytes, in base64.
    assert max(len(a["src"]) for tag, a in page.attributes if tag == "img") < 240 * 135 * 3 * 1.5


def test_every_camera_has_its_own_strip(policy, run, timings):
    first, films = run.trace.first, run.trace.films
    both = Observation(
        {**first.values, "wrist": first.values["frame"]}, {**first.at, "wrist": 0.0},
        {"frame": 0, "wrist": 0},
    )  # fmt: skip
    trace = dataclasses.replace(run.trace, first=both, films={**films, "wrist": films["frame"]})
    page = Page(draw_page(policy, [Run(name="x", trace=trace)], timings, CONFIG, "t"))
    shown = [attributes["alt"] for tag, attributes in page.attributes if tag == "img"]
    assert len(shown) == 10 and shown[:5] == shown[5:]
