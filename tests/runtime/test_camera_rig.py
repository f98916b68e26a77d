"""Cameras as a robot uses them: fresh pictures that belong together, or an error that says why."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import CameraError, CameraWarning
from runtime.robots.cameras import Cameras, OpenCV, RealSense, rig
from runtime.robots.cameras.rig import newest_together
from runtime.robots.cameras.ring import RingReader, RingWriter, shared_memory

SIZE = (8, 6)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, 60), min_size=0, max_size=6, unique=True), min_size=1, max_size=4
    ),
    st.integers(0, 30),
)
def test_the_newest_pictures_that_belong_together_are_found(times, most):
    """The oracle tries all of them; whole numbers, so that sums are exact."""
    stamps = {
        f"camera {n}": [(float(at), at) for at in sorted(own, reverse=True)]
        for n, own in enumerate(times)
    }
    fitting = [
        one for one in itertools.product(*(sorted(own) for own in times))
        if max(one) - min(one) <= most
    ]  # fmt: skip
    found = newest_together(stamps, float(most))
    if not fitting:
        assert found is None
    else:
        # The newest of every camera among all that fit is one that fits.
        best = tuple(max(one[n] for one in fitting) for n in range(len(times)))
        assert best in fitting and tuple(found.values()) == best


class Shown:
    """A camera in this process: `rig` is given it for `Camera`."""

    made: "list[Shown]" = []

    def __init__(self, source, command):
        self.source, self._descriptor = source, shared_memory(source.layout)
        self.ring = RingReader(self._descriptor, source.layout)
        self.writer = RingWriter(self._descriptor, source.layout)
        self.problem, self.warning, self.is_final, self.num_closed = "is unplugged", "", False, 0
        self.number = 0
        Shown.made.append(self)

    def show(self, at):
        self.number += 1
        layout = self.source.layout
        rgb = np.full((layout.height, layout.width, 3), self.number, np.uint8)
        depth = np.full(rgb.shape[:2], self.number / 8, np.float32) if layout.has_depth else None
        self.writer.write(rgb, depth, number=self.number, captured_at=at, hardware_s=None)

    def close(self):
        self.num_closed += 1


class Time:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    Shown.made = []
    monkeypatch.setattr(rig, "Camera", Shown)
    return Time()


def two(clock, **options):
    """One with depth, at 10 Hz: half a period is 50 ms."""
    sources = {
        "frame": RealSense(serial="1", size=SIZE, rate_hz=10, depth="far"),
        "wrist": RealSense(serial="2", size=SIZE, rate_hz=5),
    }
    return Cameras(sources, clock=clock, **options)


def test_an_observation_has_pictures_depth_stamps_and_frame_ids(clock):
    cameras = two(clock)
    frame, wrist = Shown.made
    for at in (99.8, 99.9, 100.0):
        frame.show(at)
    wrist.show(99.86)
    seen = cameras.observe()
    assert seen.at == {"frame": 99.9, "far": 99.9, "wrist": 99.86}
    assert seen.frame_ids == {"frame": 2, "far": 2, "wrist": 1}
    assert (seen.values["frame"] == 2).all() and (seen.values["wrist"] == 1).all()
    assert (seen.values["far"] == 0.25).all()
    for name, sensor in cameras.inputs.items():
        assert seen.values[name].shape == sensor.shape and seen.values[name].dtype == sensor.dtype
    assert cameras.inputs["far"].kind == "depth" and cameras.inputs["far"].unit == "m"


def test_the_same_pictures_are_the_same_observation_and_new_ones_are_not(clock):
    cameras = two(clock)
    frame, wrist = Shown.made
    frame.show(99.9)
    wrist.show(99.9)
    seen = cameras.observe()
    assert cameras.observe() is seen
    frame.show(99.95)
    newer = cameras.observe()
    assert newer.frame_ids == {"frame": 2, "far": 2, "wrist": 1}
    assert (seen.values["frame"] == 1).all()  # it stays as it was


def test_pictures_further_apart_than_half_a_period_are_no_observation(clock):
    cameras = two(clock)
    frame, wrist = Shown.made
    frame.show(99.90)
    wrist.show(99.96)
    with pytest.raises(CameraError, match=r"within 50\.0 ms of each other.*60\.0 ms apart"):
        cameras.observe()
    assert cameras.num_apart == 1
    frame.show(99.97)
    assert cameras.observe().at["frame"] == 99.97


def test_a_stale_picture_is_not_shown_and_the_camera_is_named(clock):
    cameras = two(clock)
    frame, wrist = Shown.made
    with pytest.raises(CameraError, match="camera 'frame' shows nothing yet: is unplugged"):
        cameras.observe()
    frame.show(100.0)
    wrist.show(100.0)
    clock.now = 100.19
    cameras.observe()
    frame.show(100.2)
    clock.now = 100.21
    with pytest.raises(CameraError, match="'wrist' shows nothing new for 0.2 s: is unplugged"):
        cameras.observe()


def test_pictures_of_which_fresh_ones_do_not_belong_together_are_not_shown_either(clock):
    cameras = two(clock)
    frame, wrist = Shown.made
    for camera, times in {frame: (99.80, 99.99), wrist: (99.80, 99.91)}.items():
        for at in times:
            camera.show(at)
    clock.now = 100.005
    with pytest.raises(CameraError, match="that belong together are 0.2. s old"):
        cameras.observe()


def test_a_guarded_robot_may_see_older_ones(clock):
    cameras = two(clock, stale_s=0.5)
    for camera in Shown.made:
        camera.show(100.0)
    clock.now = 100.49
    cameras.observe()
    clock.now = 100.51
    with pytest.raises(CameraError, match="nothing new for 0.5 s"):
        cameras.observe()


def test_what_is_over_is_not_waited_for(clock):
    cameras = two(clock)
    Shown.made[1].is_final = True
    with pytest.raises(CameraError, match="shows nothing yet"):
        cameras.wait()
    assert clock.now == 100.0


def test_waiting_has_an_end_and_says_what_is_not_as_it_should_be_once(clock, monkeypatch):
    cameras = two(clock)
    monkeypatch.setattr(rig.time, "sleep", lambda s: setattr(clock, "now", clock.now + s))
    with pytest.raises(CameraError, match="shows nothing yet"):
        cameras.wait(2.0)
    assert clock.now == pytest.approx(102.0, abs=0.01)
    for camera in Shown.made:
        camera.show(clock.now)
    Shown.made[0].warning = "it is on USB 2.1"
    with pytest.warns(CameraWarning, match="USB 2.1"):
        cameras.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cameras.wait()


def test_closed_cameras_show_nothing(clock):
    with two(clock) as cameras:
        for camera in Shown.made:
            camera.show(100.0)
    cameras.close()
    assert all(camera.num_closed for camera in Shown.made)
    with pytest.raises(CameraError, match="are closed"):
        cameras.observe()


def test_cameras_that_were_made_are_closed_if_another_one_cannot_be(clock, monkeypatch):
    def make(source, command):
        if Shown.made:
            raise CameraError("no memory without a name")
        return Shown(source, command)

    monkeypatch.setattr(rig, "Camera", make)
    with pytest.raises(CameraError, match="no memory"):
        two(clock)
    assert [camera.num_closed for camera in Shown.made] == [1]


@pytest.mark.parametrize(
    ("sources", "options", "words"),
    [
        ({}, {}, "at least one, got none"),
        ({"a": OpenCV(device="/dev/x", size=SIZE)}, {"stale_s": 0.0}, "stale_s must be positive"),
        (
            {"a": RealSense(serial="1"), "b": RealSense(serial="1", rate_hz=15)},
            {},
            "'a' and 'b' are both RealSense 1",
        ),
        (
            {"a": RealSense(serial="1", depth="d"), "d": RealSense(serial="2")},
            {},
            "the input 'd' is shown twice",
        ),
        ({"a": RealSense(serial="1", depth="a")}, {}, "the input 'a' is shown twice"),
    ],
)
def test_cameras_that_cannot_be_are_refused(clock, sources, options, words):
    with pytest.raises(ValueError, match=words):
        Cameras(sources, clock=clock, **options)
    assert Shown.made == []


@pytest.mark.parametrize("wrong", [{"size": (0, 8)}, {"rate_hz": 0}, {"rate_hz": 2000}])
def test_a_source_without_pixels_or_pace_is_refused(wrong):
    with pytest.raises(ValueError, match=r"RealSense 1: .* at least 1 x 1 and a rate"):
        RealSense(serial="1", **wrong)
