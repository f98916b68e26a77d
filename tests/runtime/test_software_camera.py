"""RealSense cameras by the SDK's own software device: faults, recovery, recording and replay."""

import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import CameraError
from runtime.robots.cameras import RealSense, RealSenseFile, realsense
from runtime.robots.cameras.process import LOST, UNUSABLE, run
from runtime.robots.cameras.ring import RingReader, RingWriter, shared_memory
from tests.camera_cycles import MOST_S, cycles
from tests.runtime.stand_ins.marked_pictures import made_at, picture
from tests.runtime.stand_ins.software_camera import (
    HEIGHT,
    RATE_HZ,
    SERIAL,
    SIZE,
    WIDTH,
    send,
    software_device,
)

rs = pytest.importorskip(
    "pyrealsense2", reason="pyrealsense2 or libusb is missing", exc_type=ImportError
)
CAMERA = RealSense(serial=SERIAL, size=SIZE)


class Device:
    """A software device, with frames sent by hand."""

    def __init__(self, monkeypatch, **options):
        self.device, self.sensor, self.profiles = software_device(rs, **options)
        self.number = 0
        monkeypatch.setattr(realsense, "connected", lambda _: (rs.context(), [self.device]))

    def show(self, *, depth=None):
        self.number += 1
        stamp = {"number": self.number, "stamp_ms": 1e3 + 33 * self.number}
        if depth is not None:
            far = np.full((HEIGHT, WIDTH), depth, np.uint16)
            send(rs, self.sensor, self.profiles["depth"], far, units=0.001, **stamp)
        send(rs, self.sensor, self.profiles["color"], picture(time.monotonic(), SIZE), **stamp)


def next_frame(opened):
    """What comes, after at most 2 s of nothing."""
    return next((raw for raw, _ in zip(opened.frames, range(20), strict=False) if raw), None)


def test_a_frame_has_its_pixels_number_and_stamp(monkeypatch):
    device = Device(monkeypatch)
    opened = CAMERA.open()
    assert (opened.identity, opened.warning) == (SERIAL, "")
    for number in range(1, 4):
        device.show()
        raw = next_frame(opened)
        made_at(raw.picture)
        assert (raw.number, raw.depth) == (number, None)
        assert raw.stamp_s == pytest.approx(1 + 0.033 * number, abs=1e-9)
    assert next(opened.frames) is None  # no frame is no end


def test_depth_comes_in_metres_with_its_picture(monkeypatch):
    device = Device(monkeypatch, depth=True)
    opened = RealSense(serial=SERIAL, size=SIZE, depth="far").open()
    device.show(depth=1500)
    raw = next_frame(opened)
    made_at(raw.picture)
    assert raw.depth.dtype == np.float32 and raw.depth.shape == (HEIGHT, WIDTH)
    # 1500 x 0.001 in float32, of a unit that is float32 too: two roundings of 2^-24.
    assert np.allclose(raw.depth, 1.5, rtol=2.0**-23, atol=0)


def test_another_camera_is_not_taken_and_those_that_are_there_are_named(monkeypatch):
    Device(monkeypatch, serial="9")
    with pytest.raises(CameraError, match=r"RealSense software-1: not connected; connected: 9;"):
        CAMERA.open()


def test_usb_2_is_said_and_is_the_first_guess_where_a_mode_is_missing(monkeypatch):
    device = Device(monkeypatch, usb="2.1")
    opened = CAMERA.open()
    assert opened.warning == (
        "RealSense software-1: it is on USB 2.1: use a USB 3 socket and cable"
    )
    device.show()
    assert next_frame(opened) is not None  # it works all the same
    opened.frames.close()
    with pytest.raises(CameraError, match=r"in 1280 x 720 at 30 Hz \(.*\); it is on USB 2.1"):
        RealSense(serial=SERIAL, size=(1280, 720)).open()


def test_a_mode_that_the_camera_does_not_have_is_an_error(monkeypatch):
    Device(monkeypatch)
    with pytest.raises(CameraError, match=r"30 Hz with depth \(.*\); choose a mode that rs-enum"):
        RealSense(serial=SERIAL, size=SIZE, depth="far").open()


def test_a_camera_that_the_sdk_says_was_unplugged_is_an_error(monkeypatch):
    class Pluggable(rs.software_device):
        plugged = True

        def is_connected(self):
            return self.plugged

    device = Device(monkeypatch, make=Pluggable)
    opened = CAMERA.open()
    assert next(opened.frames) is None
    device.device.plugged = False
    with pytest.raises(CameraError, match="RealSense software-1: was unplugged; plug it in again"):
        next(opened.frames)


def run_process(monkeypatch, source, **changed):
    """The main function of a camera's process, in this one; its code, ring and last words."""
    for name, value in changed.items():
        monkeypatch.setattr(f"runtime.robots.cameras.process.{name}", value)
    descriptor = shared_memory(source.layout)
    code = run(source, RingWriter(descriptor, source.layout))
    ring = RingReader(descriptor, source.layout)
    os.close(descriptor)
    return code, ring, ring.noted("words")


def test_a_camera_that_sends_nothing_more_is_lost(monkeypatch):
    device = Device(monkeypatch)

    def show():
        while device.number < 5:
            time.sleep(0.02)
            device.show()

    threading.Thread(target=show, daemon=True).start()
    code, ring, words = run_process(monkeypatch, CAMERA)
    assert code == LOST
    assert re.match(r"RealSense software-1: no good frame for \d\.\d s \(none comes\); is", words)
    assert 1 <= ring.counts["frames"] == ring.newest <= 5


def test_a_camera_without_depth_in_its_frames_shows_nothing(monkeypatch):
    device = Device(monkeypatch, depth=True)
    source = RealSense(serial=SERIAL, size=SIZE, depth="far")
    stop = threading.Event()

    def show():
        while not stop.wait(0.02):
            device.show()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    code, ring, words = run_process(monkeypatch, source, FIRST_S=0.5)
    stop.set()
    thread.join()
    assert (code, ring.newest) == (LOST, 0)
    assert "RealSense software-1: no good frame" in words


def test_what_the_sdk_recorded_is_played_with_its_numbers_and_stamps(monkeypatch, tmp_path):
    path = tmp_path / "camera.db3"
    shown = record(path)
    opened = RealSenseFile(path=str(path), size=SIZE).open()
    assert opened.identity == f"{path} of {SERIAL}"
    played = {raw.number: (raw.stamp_s, raw.picture.copy()) for raw in opened.frames if raw}
    # A pipeline keeps the newest set of frames, so a busy machine may let some of them pass.
    assert len(played) >= len(shown) / 2 and played.keys() <= shown.keys()
    for number, (stamp_s, rgb) in played.items():
        assert stamp_s == pytest.approx(shown[number][0], abs=1e-9)
        assert np.array_equal(rgb, shown[number][1])
    with pytest.raises(CameraError, match=r"camera.db3: cannot be played in 320 x 240 at 30 Hz"):
        RealSenseFile(path=str(path), size=(320, 240)).open()
    code, ring, words = run_process(monkeypatch, RealSenseFile(path=str(path), size=SIZE))
    assert (code, words) == (0, f"{path}: is over")
    assert ring.counts["frames"] + ring.counts["dropped frames"] >= len(shown) - 1
    made_at(ring.latest().picture)


def record(path: Path, num_frames: int = 15) -> dict[int, tuple[float, np.ndarray]]:
    """Frames through the SDK's recorder; stamp and picture by number."""
    device, sensor, profiles = software_device(rs)
    recorder = rs.recorder(str(path), device)
    pipeline, config, shown = rs.pipeline(rs.context()), rs.config(), {}
    pipeline.set_device(recorder)
    config.enable_stream(rs.stream.color, WIDTH, HEIGHT, rs.format.rgb8, RATE_HZ)
    pipeline.start(config)
    for number in range(1, num_frames + 1):
        shown[number] = number / RATE_HZ, picture(1000.0 + number, SIZE)
        stamp = {"number": number, "stamp_ms": 1e3 * number / RATE_HZ}
        send(rs, sensor, profiles["color"], shown[number][1], **stamp)
        time.sleep(1 / RATE_HZ)
    pipeline.stop()
    recorder.pause()  # and with the last reference the file is complete
    return shown


@pytest.mark.parametrize(
    ("text", "words"), [(None, "no such file"), ("no recording", "cannot be played in 64 x 48")]
)
def test_what_is_no_recording_is_said_once_and_for_all(tmp_path, monkeypatch, text, words):
    path = tmp_path / "camera.db3"
    if text is not None:
        path.write_text(text)
    code, _, said = run_process(monkeypatch, RealSenseFile(path=str(path), size=SIZE))
    assert code == UNUSABLE and said.startswith(f"{path}: {words}")


def test_it_recovers_from_every_fault_and_never_shows_what_is_torn_stale_or_old(tmp_path):
    taken, observer = cycles(["unplugged", "frozen", "back"], 1, tmp_path)
    assert taken.keys() == {"unplugged", "frozen", "back", "killed"}
    assert observer.camera.counts["started again"] >= 4 and observer.num_seen > 4
    counts = observer.camera.counts
    assert counts["repeated frame numbers"] > 0 and counts["stamps back"] > 0
    assert any("shows nothing new for" in words for words in observer.errors)


@pytest.mark.full
def test_a_hundred_unplugs_and_fifty_kills_are_recovered_from_in_time(tmp_path):
    taken, _ = cycles(["unplugged"] * 100, 50, tmp_path)
    assert [len(seconds) for seconds in taken.values()] == [100, 50]
    assert max(max(seconds) for seconds in taken.values()) <= MOST_S
