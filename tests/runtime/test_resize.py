"""Resizing in strips on several threads, against Pillow's own resize of the whole image."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from runtime import resize
from runtime.resize import BICUBIC, Resizer, first_pass

UNIT = 28
# Height and width, rows and columns: down, up, each axis its own way, one axis alone, tiny, long.
SIZES = [
    ((256, 256), (252, 252)),
    ((480, 640), (420, 588)),
    ((480, 640), (196, 280)),
    ((480, 640), (476, 644)),
    ((113, 111), (112, 112)),
    ((111, 113), (112, 112)),
    ((100, 90), (112, 112)),
    ((112, 130), (112, 112)),
    ((130, 112), (112, 112)),
    ((3000, 17), (2996, 28)),
    ((17, 1500), (28, 1512)),
    ((1, 3), (28, 84)),
]


@pytest.fixture(autouse=True)
def ask_pillow_again():
    first_pass.cache_clear()
    yield
    first_pass.cache_clear()


def noise(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def by_pillow(image, rows, columns):
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((columns, rows), BICUBIC))


def assemble(resizer, image):
    """All parts in one image, and how often each square was given."""
    result = np.zeros((resizer.rows, resizer.columns, 3), np.uint8)
    given = np.zeros((resizer.rows // UNIT, resizer.columns // UNIT), int)
    squares = result.reshape(given.shape[0], UNIT, given.shape[1], UNIT, 3)

    def take(part, rows, columns):
        target = squares[rows, :, columns]
        target[:] = part.reshape(target.shape)
        given[rows, columns] += 1

    resizer(image, take)
    return result, given


@pytest.mark.parametrize("num_threads", [1, 2, 3, 4])
@pytest.mark.parametrize(("size", "target"), SIZES)
def test_parts_make_up_what_pillow_makes_of_the_whole(size, target, num_threads):
    image = noise(*size)
    got, given = assemble(Resizer(*target, UNIT, num_threads), image)
    assert (given == 1).all()
    assert np.array_equal(got, by_pillow(image, *target))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_an_image_of_the_size_is_given_as_it_is(num_threads):
    image = noise(56, 84)
    got, given = assemble(Resizer(56, 84, UNIT, num_threads), image)
    assert (given == 1).all()
    assert np.array_equal(got, image)


def in_order(order):
    """A Pillow that always resizes along the same axis first."""
    whole = Image.Image.resize

    def resize_ordered(self, size, *args):
        between = (size[0], self.height) if order == "horizontal" else (self.width, size[1])
        return whole(whole(self, between, *args), size, *args)

    return resize_ordered


@pytest.mark.parametrize("order", ["horizontal", "vertical"])
@pytest.mark.parametrize(("size", "target"), SIZES)
def test_the_axis_that_pillow_takes_first_is_followed(size, target, order, monkeypatch):
    monkeypatch.setattr(Image.Image, "resize", in_order(order))
    image = noise(*size)
    got, _ = assemble(Resizer(*target, UNIT, 3), image)
    assert np.array_equal(got, by_pillow(image, *target))
    if size[0] != target[0] and size[1] != target[1] and min(size) > 1:  # or both are the same
        assert first_pass(*size, *target) == order


def test_a_pillow_that_does_not_resize_axis_by_axis_is_given_the_whole_image(monkeypatch):
    original = Image.Image.resize

    def brightened(self, size, *args):  # in each call, so twice in two passes
        return original(self, size, *args).point(lambda level: level // 2 + 1)

    monkeypatch.setattr(Image.Image, "resize", brightened)
    image = noise(100, 90)
    got, given = assemble(Resizer(84, 84, UNIT, 3), image)
    assert first_pass(100, 90, 84, 84) is None
    assert (given == 1).all()
    assert np.array_equal(got, by_pillow(image, 84, 84))


LAYOUTS = {
    "read-only": lambda image: image,
    "flipped": lambda image: image[::-1, ::-1],
    "every second": lambda image: np.repeat(np.repeat(image, 2, 0), 2, 1)[::2, ::2],
    "transposed": lambda image: image.transpose(1, 0, 2).copy().transpose(1, 0, 2),
    "planes": lambda image: image.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    "BGR": lambda image: image[:, :, ::-1],
    "cut out": lambda image: np.pad(image, ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6],
}


@pytest.mark.parametrize("target", [(84, 112), (112, 84), (140, 56)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_however_an_image_lies_in_memory_it_is_read_and_left_alone(layout, target):
    image = LAYOUTS[layout](noise(100, 90))
    image.setflags(write=False)
    kept = image.copy()
    got, _ = assemble(Resizer(*target, UNIT, 3), image)
    assert np.array_equal(got, by_pillow(image, *target))
    assert np.array_equal(image, kept)


def test_several_cameras_are_resized_at_the_same_time():
    cameras = [((100, 90), (84, 112)), ((90, 100), (112, 84)), ((256, 256), (252, 252))] * 4
    images = [noise(*size) for size, _ in cameras]
    resizers = [Resizer(*target, UNIT, 2) for _, target in cameras]
    with ThreadPoolExecutor(len(cameras)) as threads:
        results = list(threads.map(assemble, resizers * 3, images * 3))
    for (got, given), image, resizer in zip(results, images * 3, resizers * 3, strict=True):
        assert (given == 1).all()
        assert np.array_equal(got, by_pillow(image, resizer.rows, resizer.columns))


@pytest.mark.parametrize(("num_cpus", "is_shared"), [(1, False), (2, True), (64, True)])
def test_only_a_process_with_several_cpus_shares_an_image(num_cpus, is_shared, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(num_cpus)))
    parts, where = [], set()

    def take(part, rows, columns):
        parts.append(part)
        where.add(threading.get_ident())

    Resizer(252, 252, UNIT)(noise(256, 256), take)
    assert len(parts) == min(num_cpus, resize.MAX_THREADS)
    assert (threading.get_ident() not in where) == is_shared


def test_what_fails_in_a_thread_is_raised_and_forgotten():
    resizer = Resizer(84, 84, UNIT, 3)

    def fail(part, rows, columns):
        raise MemoryError("no room for patches")

    with pytest.raises(MemoryError, match="no room for patches"):
        resizer(noise(100, 90), fail)
    got, _ = assemble(resizer, noise(100, 90))
    assert np.array_equal(got, by_pillow(noise(100, 90), 84, 84))


FORK = """
import os, signal, sys
import numpy as np
from runtime.resize import Resizer

image = np.random.default_rng(0).integers(0, 256, (100, 90, 3), np.uint8)

def resized():
    parts = set()
    Resizer(84, 84, 28, 2)(image, lambda part, y, x: parts.add((y.start, x.start, part.tobytes())))
    return parts

before = resized()
child = os.fork()
if child == 0:
    signal.alarm(20)  # a child without threads would wait for them for ever
    os._exit(0 if resized() == before else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert resized() == before
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
