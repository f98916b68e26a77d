"""Cameras in processes of their own, played from recordings: no SDK and no device is needed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from runtime.errors import CameraError
from runtime.recordings.recording import (
    FRAME,
    Recording,
    Stream,
    evenly,
    load_recording,
    save_recording,
)
from runtime.robots.cameras import (
    Cameras,
    OpenCV,
    RealSense,
    RecordedEpisode,
    VideoFile,
    opencv,
    process,
    recorded,
)
from runtime.robots.cameras.process import LOST, OVER, UNUSABLE, run
from runtime.robots.cameras.ring import Layout, RingReader, RingWriter, shared_memory
from runtime.robots.cameras.sources import Opened, Raw, decode, encode

ROOT = Path(__file__).parents[2]
EPISODE = ROOT / "models" / "demo" / "episodes" / "touch-red-1.npz"
SIZE = (32, 24)
PATIENCE_S = 90.0


@pytest.fixture
def episode(tmp_path):
    """Pictures at 20 Hz, each of another colour, for longer than a test is patient."""
    number = int(20 * (PATIENCE_S + 30))
    colours = np.random.default_rng(0).integers(0, 256, (number, 1, 1, 3), np.uint8)
    pictures = np.ascontiguousarray(np.broadcast_to(colours, (number, SIZE[1], SIZE[0], 3)))
    recording = Recording(
        instruction="go", task="go", seed=0, rate_hz=20, streams={FRAME: evenly(pictures, 20)}
    )
    save_recording(recording, tmp_path / "episode.npz")
    return tmp_path / "episode.npz", pictures


def in_this_process(source):
    """Exit code, ring and last words of a camera's process."""
    descriptor = shared_memory(source.layout)
    code = run(source, RingWriter(descriptor, source.layout))
    ring = RingReader(descriptor, source.layout)
    os.close(descriptor)
    return code, ring, ring.noted("words")


def until(is_so):
    end = time.monotonic() + PATIENCE_S
    while not (found := is_so()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def seen_by(cameras):
    """The observation, or None."""
    try:
        return cameras.observe()
    except CameraError:
        return None


def test_a_recorded_camera_is_shown_and_comes_back_when_its_process_is_killed(episode):
    path, pictures = episode
    sources = {"frame": RecordedEpisode(path=str(path), size=SIZE, rate_hz=20)}
    known = {picture.tobytes() for picture in pictures}
    with Cameras(sources) as cameras:
        cameras.wait(PATIENCE_S)
        first = cameras.observe()
        assert first.values["frame"].tobytes() in known
        camera = cameras.cameras["frame"]
        first_one = camera.process_id
        os.kill(first_one, signal.SIGKILL)
        until(lambda: camera.process_id not in (None, first_one))
        newest = camera.ring.newest
        seen = until(lambda: seen_by(cameras) if camera.ring.newest > newest else None)
        assert seen.frame_ids["frame"] > first.frame_ids["frame"]
        assert seen.at["frame"] > first.at["frame"]
        assert seen.values["frame"].tobytes() in known
        assert camera.counts["started again"] == 1
        second_one = camera.process_id
    until(lambda: not _lives(second_one))
    cameras.close()


PROGRAM = """
import sys, time
from runtime.robots.cameras import Cameras, RecordedEpisode
cameras = Cameras({"frame": RecordedEpisode(path=sys.argv[1], size=(32, 24), rate_hz=20)})
cameras.wait(90)
print(cameras.cameras["frame"].process_id, flush=True)
time.sleep(600)
"""


def test_a_camera_ends_with_the_program_that_was_killed(episode):
    """Its memory has no name, so the kernel frees it with the last process that has it."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(episode[0])], cwd=ROOT, stdout=subprocess.PIPE
    )
    with program:
        number = int(program.stdout.readline())
        assert _lives(number)
        program.kill()
    until(lambda: not _lives(number))


def _lives(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_episode_is_played_at_its_pace_and_is_over(tmp_path, monkeypatch):
    recording = load_recording(EPISODE)
    stream = recording.streams[FRAME]
    shown = {FRAME: evenly(stream.values[:6], 50)}
    short = Recording(instruction="go", task="go", seed=0, rate_hz=50, streams=shown)
    save_recording(short, tmp_path / "short.npz")
    height, width = stream.values.shape[1:3]
    source = RecordedEpisode(path=str(tmp_path), size=(width, height), rate_hz=50)
    waits: list[float] = []
    own = SimpleNamespace(monotonic=lambda: sum(waits), sleep=waits.append)
    monkeypatch.setattr(recorded, "time", own)
    code, ring, words = in_this_process(source)
    assert (code, words) == (OVER, f"{tmp_path} episode 0 frame: is over")
    assert waits == pytest.approx([0.02] * 5)
    for sequence in range(1, 7):
        frame = ring.read(sequence)
        assert np.array_equal(frame.picture, stream.values[sequence - 1])
        assert frame.number == sequence - 1
    assert [at for at, _ in ring.stamps()] == sorted((at for at, _ in ring.stamps()), reverse=True)


def test_a_gap_in_a_recording_is_played_too(tmp_path, monkeypatch):
    """A camera that is silent for so long is lost; what was recorded then is not."""
    monkeypatch.setattr(process, "SILENT_S", 0.01)
    monkeypatch.setattr(process, "FIRST_S", 0.01)
    pictures = np.zeros((3, SIZE[1], SIZE[0], 3), np.uint8)
    pictures[1:] += 9
    stream = Stream(
        values=pictures, at_s=np.array([0.0, 0.5, 0.51]), frame_ids=np.arange(3, dtype=np.int64)
    )
    recording = Recording(instruction="go", task="go", seed=0, rate_hz=500, streams={FRAME: stream})
    save_recording(recording, tmp_path / "gap.npz")
    source = RecordedEpisode(path=str(tmp_path / "gap.npz"), size=SIZE, rate_hz=500)
    code, ring, _ = in_this_process(source)
    assert (code, ring.newest) == (OVER, 3)


def test_a_film_is_played(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    levels = [20, 90, 160, 230]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=50)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        for level in levels:
            rgb = np.full((SIZE[1], SIZE[0], 3), level, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(video.encode())
    code, ring, words = in_this_process(VideoFile(path=str(path), size=SIZE, rate_hz=50))
    assert (code, words, ring.newest) == (OVER, f"{path}: is over", 4)
    # Grey through 8-bit YUV (16 to 235) and x264's default quality: a few levels.
    means = [float(ring.read(n).picture.mean()) for n in range(1, 5)]
    assert means == pytest.approx(levels, abs=6)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (RecordedEpisode(path="none.npz", size=SIZE), "none.npz: no such file"),
        (RecordedEpisode(path=str(EPISODE), size=SIZE), "uint8 [112, 112, 3], expected uint8 [24,"),
        (RecordedEpisode(path=str(EPISODE), size=SIZE, index=3), "has no episode 3"),
        (
            RecordedEpisode(path=str(EPISODE), size=SIZE, stream="wrist"),
            "no camera 'wrist', but frame;",
        ),
        (RecordedEpisode(path=str(EPISODE), size=SIZE, stream="state"), "no camera 'state'"),
        (VideoFile(path="none.mp4", size=SIZE), "none.mp4: cannot be played"),
        (VideoFile(path=str(EPISODE), size=SIZE), "touch-red-1.npz: cannot be played"),
    ],
)
def test_what_can_never_be_played_is_said_once(source, words):
    code, ring, said = in_this_process(source)
    assert (code, ring.newest) == (UNUSABLE, 0) and words in said


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("pyrealsense2", RealSense(serial="1"), "install requirements/robot-cameras.txt and the"),
        ("cv2", OpenCV(device="/dev/video0", size=SIZE), "install opencv-python-headless, or"),
        ("av", VideoFile(path="film.mp4", size=SIZE), "install av, or play an episode"),
    ],
)
def test_a_library_that_is_missing_is_named(monkeypatch, module, source, words):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, said = in_this_process(source)
    assert code == UNUSABLE and words in said


class Capture:
    """Stands in for OpenCV's capture: nothing of V4L2 is behind it."""

    def __init__(self, path, backend):
        self.path, self.asked, self.left = path, {}, 5

    def isOpened(self):
        return "busy" not in self.path

    def set(self, what, value):
        self.asked[what] = value

    def get(self, what):
        return {"rate": 15.0, "at": 1e3 + 40 * (5 - self.left)}[what]

    def read(self):
        self.left -= 1
        return self.left >= 0, np.full((SIZE[1], SIZE[0], 3), (1, 2, 3), np.uint8)


@pytest.fixture
def stand_in_for_opencv(monkeypatch):
    module = ModuleType("cv2")
    module.__dict__.update(
        VideoCapture=Capture, CAP_V4L2=200, CAP_PROP_FPS="rate", CAP_PROP_POS_MSEC="at",
        CAP_PROP_FRAME_WIDTH="width", CAP_PROP_FRAME_HEIGHT="height",
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cv2", module)


def test_a_v4l2_camera_is_rgb_and_lost_when_it_gives_no_more(stand_in_for_opencv, tmp_path):
    device = tmp_path / "video0"
    device.write_text("")
    code, ring, words = in_this_process(OpenCV(device=str(device), size=SIZE))
    assert (code, words) == (LOST, f"{device}: gives no frame; was it unplugged?")
    assert ring.newest == 5 and (ring.latest().picture == (3, 2, 1)).all()
    assert ring.latest().hardware_s == pytest.approx(1.2)
    assert ring.noted("warning") == f"{device}: runs at 15 Hz, not at 30 Hz"


@pytest.mark.parametrize(
    ("name", "words"), [("none", "not connected; plug it in"), ("busy", "cannot be opened")]
)
def test_a_v4l2_camera_that_cannot_be_opened_is_tried_again(
    stand_in_for_opencv, tmp_path, monkeypatch, name, words
):
    monkeypatch.setattr(process, "WAITS_S", 0.0)
    (tmp_path / "busy").write_text("")
    code, _, said = in_this_process(OpenCV(device=str(tmp_path / name), size=SIZE))
    assert code == LOST and words in said


def test_a_camera_that_comes_late_is_opened_by_the_process_that_waits_for_it(
    stand_in_for_opencv, tmp_path, monkeypatch
):
    device, waits = tmp_path / "video0", []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            device.write_text("")

    monkeypatch.setattr(process.time, "sleep", sleep)
    _, ring, words = in_this_process(OpenCV(device=str(device), size=SIZE))
    assert waits == [process.RETRIES_S] * 3 and ring.newest == 5
    assert "gives no frame" in words  # and not that it was missing before


def test_a_camera_that_was_swapped_is_not_shown(stand_in_for_opencv, tmp_path, monkeypatch):
    """As the kernel shows a camera: its name, and the serial number above its USB interface."""
    monkeypatch.setattr(opencv, "SYSTEM", tmp_path / "class")
    device, usb = tmp_path / "video0", tmp_path / "usb" / "1-2"
    (usb / "1-2:1.0").mkdir(parents=True)
    shown = tmp_path / "class" / "video0"
    shown.mkdir(parents=True)
    (shown / "device").symlink_to(usb / "1-2:1.0")
    device.write_text("")
    source = OpenCV(device=str(device), size=SIZE)
    descriptor = shared_memory(source.layout)
    ring, reader = RingWriter(descriptor, source.layout), RingReader(descriptor, source.layout)
    os.close(descriptor)
    for serial, newest, words in (
        ("7", 5, "gives no frame"),
        ("7", 10, "gives no frame"),
        ("8", 10, "is another camera than before (Webcam 8, not Webcam 7); plug the cameras in as"),
    ):
        (shown / "name").write_text("Webcam\n")
        (usb / "serial").write_text(f"{serial}\n")
        assert run(source, ring) == LOST
        assert reader.newest == newest and words in reader.noted("words")


def test_a_frame_without_the_depth_that_was_asked_for_is_counted_and_not_shown():
    class Flat(SimpleNamespace):
        layout, name, is_recorded, rate_hz = Layout(6, 8, has_depth=True), "a camera", False, 30

        def open(self):
            rgb, depth_m = np.zeros((6, 8, 3), np.uint8), np.ones((6, 8), np.float32)
            shown = (Raw(rgb, n, None, depth_m if n == 3 else None) for n in range(1, 6))
            return Opened("a camera", shown)

    code, ring, _ = in_this_process(Flat())
    assert (code, ring.newest, ring.latest().number) == (OVER, 1, 3)
    assert ring.counts["incomplete frames"] == 4 and ring.counts["dropped frames"] == 0


def test_an_error_that_nobody_thought_of_ends_the_process_with_its_name(monkeypatch, tmp_path):
    class Broken(SimpleNamespace):
        layout, name = VideoFile(path="x", size=SIZE).layout, "a camera"

        def open(self):
            raise ZeroDivisionError("by zero")

    code, _, words = in_this_process(Broken())
    assert (code, words) == (LOST, "a camera: ZeroDivisionError: by zero")


@pytest.mark.parametrize(
    "source",
    [
        RealSense(serial="1", depth="far", rate_hz=15),
        OpenCV(device="/dev/video0", size=SIZE),
        VideoFile(path='it\'s a "film".mp4', size=SIZE),
        RecordedEpisode(path="x", size=SIZE, index=2, camera="observation.images.top"),
    ],
)
def test_a_source_comes_to_its_process_as_it_is(source):
    assert decode(encode(source)) == source
