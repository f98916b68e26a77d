"""The ring of pictures: whole pictures or none, whatever the writer does."""

import gc
import os
import random
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from runtime.robots.cameras import ring
from runtime.robots.cameras.ring import COUNTS, Layout, RingReader, RingWriter, shared_memory
from tests.runtime.stand_ins.marked_pictures import made_at

ROOT = Path(__file__).parents[2]
SMALL = Layout(6, 8, has_depth=True, num_slots=4)


@pytest.fixture
def shared():
    """A writer and a reader of small pictures with depth."""
    descriptor = shared_memory(SMALL)
    yield RingWriter(descriptor, SMALL), RingReader(descriptor, SMALL)
    os.close(descriptor)


def shown(number):
    random_one = np.random.default_rng(number)
    rgb = random_one.integers(0, 256, (SMALL.height, SMALL.width, 3), np.uint8)
    return rgb, random_one.random((SMALL.height, SMALL.width), np.float32)


def write(writer, number):
    rgb, depth = shown(number)
    at = 100.0 + number
    return writer.write(rgb, depth, number=number, captured_at=at, hardware_s=at / 2)


def is_of(frame, number):
    rgb, depth = shown(number)
    same = np.array_equal(frame.picture, rgb) and np.array_equal(frame.depth, depth)
    at = 100.0 + number
    return same and (frame.number, frame.captured_at, frame.hardware_s) == (number, at, at / 2)


def test_a_reader_gets_what_was_written_to_the_bit(shared):
    writer, reader = shared
    assert reader.latest() is None and reader.newest == 0 and reader.stamps() == []
    for number in range(10, 31):
        sequence = write(writer, number)
        frame = reader.latest()
        assert frame.sequence == sequence == number - 9
        assert is_of(frame, number)
    assert reader.num_retries == 0


def test_a_frame_stays_as_it_is_and_the_callers_array_is_not_kept(shared):
    writer, reader = shared
    rgb, depth = shown(1)
    kept = rgb.copy()
    alive = weakref.ref(rgb)
    writer.write(rgb, depth, number=1, captured_at=1.0, hardware_s=None)
    frame = reader.latest()
    rgb[:] = 0
    del rgb
    gc.collect()
    for number in range(2, 12):
        write(writer, number)
    assert alive() is None
    assert np.array_equal(frame.picture, kept) and frame.hardware_s is None
    assert frame.picture.flags.owndata and frame.depth.flags.owndata


def test_pictures_that_were_written_over_are_gone_and_the_rest_is_listed(shared):
    writer, reader = shared
    for number in range(1, 8):
        write(writer, number)
    assert reader.stamps() == [(107.0, 7), (106.0, 6), (105.0, 5)]
    assert [reader.read(sequence) is not None for sequence in range(2, 9)] == [
        False, False, True, True, True, True, False,
    ]  # fmt: skip


def test_a_writer_that_dies_within_a_picture_leaves_the_one_before(shared):
    writer, reader = shared
    for number in range(1, 4):
        write(writer, number)
    # The copy of the depth fails when the picture is written already.
    with pytest.raises(ValueError, match="broadcast"):
        writer.write(shown(4)[0], np.zeros((1, 99), np.float32), number=4, captured_at=0.0,
                     hardware_s=None)  # fmt: skip
    assert is_of(reader.latest(), 3)
    assert [sequence for _, sequence in reader.stamps()] == [3, 2, 1]
    assert reader.read(4) is None


def test_another_writer_goes_on_where_one_died():
    descriptor = shared_memory(SMALL)
    writer, reader = RingWriter(descriptor, SMALL), RingReader(descriptor, SMALL)
    write(writer, 1)
    writer.count("stamps back", 3)
    writer.note("identity", "a camera")
    again = RingWriter(descriptor, SMALL)
    assert write(again, 7) == 2
    assert is_of(reader.latest(), 7) and is_of(reader.read(1), 1)
    assert reader.counts == {name: 3 * (name == "stamps back") for name in COUNTS}
    assert reader.noted("identity") == "a camera" and reader.noted("words") == ""
    os.close(descriptor)


@pytest.mark.parametrize("at", [0, 1], ids=["before the copy", "after the copy"])
def test_a_picture_that_is_written_over_while_it_is_copied_is_thrown_away(shared, monkeypatch, at):
    writer, reader = shared
    write(writer, 1)
    fences = iter(range(99))
    real = ring._fence

    def overtaken():
        real()
        if next(fences) == at:
            monkeypatch.setattr(ring, "_fence", real)
            for number in range(2, 6):
                write(writer, number)

    monkeypatch.setattr(ring, "_fence", overtaken)
    assert reader.read(1) is None
    assert reader.num_retries == 1
    monkeypatch.setattr(ring, "_fence", real)
    assert is_of(reader.latest(), 5)


def test_a_reader_that_is_always_overtaken_gives_up(shared, monkeypatch):
    writer, reader = shared
    write(writer, 1)
    real = ring._fence

    def overtaken():
        monkeypatch.setattr(ring, "_fence", real)
        for number in range(2, 6):
            write(writer, number)
        monkeypatch.setattr(ring, "_fence", overtaken)

    monkeypatch.setattr(ring, "_fence", overtaken)
    assert reader.latest() is None
    assert 1 < reader.num_retries < 100


def test_readers_cannot_write(shared):
    _, reader = shared
    with pytest.raises(ValueError, match="read-only"):
        reader._newest[0] = 1


@pytest.mark.parametrize(("height", "width", "slots"), [(0, 8, 4), (6, 0, 4), (6, 8, 1)])
def test_a_ring_without_pixels_or_slots_is_refused(height, width, slots):
    with pytest.raises(ValueError, match="at least 1 x 1 and two slots, got"):
        Layout(height, width, num_slots=slots)


STORM = Layout(48, 64, num_slots=3)
WRITER = """
import sys, time
from runtime.robots.cameras.ring import Layout, RingWriter
from tests.runtime.stand_ins.marked_pictures import picture
ring = RingWriter(int(sys.argv[1]), Layout(48, 64, num_slots=3))
shown = [picture(time.monotonic() + n, (64, 48)) for n in range(9)]
while True:
    for n, rgb in enumerate(shown):
        ring.write(rgb, None, number=n, captured_at=0.0, hardware_s=None)
"""


def storm(num_kills, *, seed):
    """Writers that never pause, each killed at a random moment, and a reader that never does.

    Returns:
        How many pictures were read, each whole, and how many copies were thrown away.
    """
    random_one, descriptor = random.Random(seed), shared_memory(STORM)
    reader, num_read = RingReader(descriptor, STORM), 0
    try:
        for _ in range(num_kills):
            before = reader.newest
            process = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(descriptor)], cwd=ROOT, pass_fds=(descriptor,)
            )
            until = time.monotonic() + 120
            while reader.newest == before and time.monotonic() < until:
                time.sleep(0.001)
            until = time.monotonic() + random_one.uniform(0.0, 0.05)
            while time.monotonic() < until:
                num_read += _read_whole(reader)
            process.kill()
            assert process.wait() == -9
            assert reader.newest > before
            for _ in range(5):  # what the dead one left
                assert _read_whole(reader)
    finally:
        os.close(descriptor)
    return num_read, reader.num_retries


def _read_whole(reader):
    frame = reader.latest()
    if frame is not None:
        made_at(frame.picture)  # raises if it is torn
    return frame is not None


def test_no_picture_is_torn_under_writers_that_are_killed_at_random():
    num_read, _ = storm(3, seed=0)
    assert num_read > 0


@pytest.mark.full
def test_no_picture_is_torn_under_fifty_writers_that_are_killed():
    num_read, num_retries = storm(50, seed=1)
    assert num_read > 1000 and num_retries > 0
