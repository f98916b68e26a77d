"""The watch by itself: each figure at its edge, and each kind of picture. Times are multiples of
1/64 s around a figure where that can be, so that no sum is rounded."""

import dataclasses

import msgspec
import numpy as np
import pytest

from runtime.control.watch import Watch
from runtime.robots.description import Description
from runtime.robots.robot import Observation, Sensor

AXIS = {"name": "a", "control": "delta", "unit": "rad", "velocity": 1, "acceleration": 1}
INPUTS = {
    "front": Sensor("image", (16, 16, 3), "uint8"),
    "wrist": Sensor("image", (16, 16, 3), "uint8"),
    "depth": Sensor("depth", (16, 16), "float32"),
    "film": Sensor("video", (2, 16, 16, 3), "uint8"),
    "state": Sensor("vector", (3,), "float32"),
}
FALLING = np.linspace(250, 30, 16)[:, None, None] + np.zeros((16, 16, 3))
RISING = FALLING[::-1]


def watch(*cameras, at_s=100.0, inputs=INPUTS, **changes):
    """One that has seen what everything looks like, at 100 s."""
    raw = {
        "robot": "one", "stamps": "monotonic", "state": "state", "axes": [AXIS],
        "cameras": {name: {"rate_hz": 32} for name in cameras},
    } | changes  # fmt: skip
    made = Watch(msgspec.convert(raw, Description), inputs)
    made.begin(seen(0, at_s), at_s)
    return made


def seen(number, at_s, **changes):
    """The n-th observation: pictures with noise of their own."""
    random = np.random.default_rng(number)
    noise = random.integers(0, 5, (16, 16, 3))
    values = {
        "front": (FALLING + noise).astype(np.uint8),
        "wrist": (RISING + noise).astype(np.uint8),
        "depth": (1 + random.random((16, 16))).astype(np.float32),
        "film": random.integers(30, 250, (2, 16, 16, 3)).astype(np.uint8),
        "state": np.array([0.0, 0.5, 1.0], np.float32),
    }
    values |= {name: value for name, value in changes.items() if name in values}
    at = dict.fromkeys(values, at_s) | changes.get("at", {})
    return Observation(values, at, dict.fromkeys(("front", "wrist", "depth", "film"), number))


@pytest.mark.parametrize(
    ("name", "oldest_s", "word"), [("front", 0.2, "image"), ("state", 0.1, "state")]
)
def test_what_is_too_old_for_a_thought_by_a_millisecond(name, oldest_s, word):
    one = watch("front")
    one.look(seen(1, 100.0), 100.0)
    for after_s, is_stale in ((oldest_s - 1e-3, False), (oldest_s + 1e-3, True)):
        at = dict.fromkeys(INPUTS, 100.0 + after_s) | {name: 100.0}
        one.look(seen(2, 100.0 + after_s, at=at), 100.0 + after_s)
        assert one.too_old(100.0 + after_s) == ({f"stale {word}"} if is_stale else set())


@pytest.mark.parametrize(("ahead_s", "problems"), [(0.01, set()), (0.011, {"stale state"})])
def test_a_stamp_of_the_future_is_of_another_clock(ahead_s, problems):
    """Around zero, where 0.01 is the figure to the bit."""
    one = watch(at_s=0.0)
    one.look(seen(1, 0.0, at={"state": ahead_s}), 0.0)
    assert one.too_old(0.0) == problems


def test_a_camera_without_new_pictures_is_lost_after_three_periods_and_stops_after_half_a_second():
    one = watch("front")
    assert one.faults(100 + 3 / 32) == (set(), False)
    one.look(seen(0, 100.1), 100.1)  # the same frame id: not a new one
    assert one.faults(100.1)[0] == {"camera lost"}
    one.look(seen(0, 100.49), 100.49)
    assert one.faults(100.49) == ({"camera lost"}, False)
    assert one.faults(100.5) == ({"camera lost"}, True)
    one.look(seen(1, 100.5), 100.5)
    assert one.faults(100.5) == (set(), False)


def test_a_state_that_is_old_is_lost_after_a_tenth_of_a_second_and_stops_after_half_a_second():
    one = watch()
    for now, lost, stops in ((100.0625, False, False), (100.125, True, False), (100.5, True, True)):
        one.look(seen(1, now, at={"state": 99.875}), now)
        assert one.faults(now) == ({"state lost"} if lost else set(), stops)
    one.look(seen(2, 100.5), 100.5)
    assert one.faults(100.5) == (set(), False)


def test_where_stamps_are_simulated_nothing_is_too_old():
    one = watch(stamps="simulated", state=None)
    assert one.faults(1000.0) == (set(), False) and one.too_old(1000.0) == set()


def test_stamps_may_stand_still_but_not_go_back():
    one = watch()
    assert one.look(seen(1, 100.0), 100.0) == set()
    assert one.look(seen(2, 99.99), 100.0) == {"stamps go backwards"}
    assert one.look(seen(3, 99.99), 100.0) == set()
    assert one.look(seen(4, 99.99, at={"state": np.nan}), 100.0) == {"stamps go backwards"}


BLACK = np.full((16, 16, 3), 24, np.uint8)
DIM = BLACK + np.eye(16, dtype=np.uint8)[:, :, None]
"""One pixel in 16 is above the threshold."""
FILM = seen(0, 0.0).values["film"]


@pytest.mark.parametrize(
    ("camera", "picture", "problems"),
    [
        ("front", BLACK, {"black image"}),
        ("front", DIM, set()),
        ("front", seen(0, 0.0).values["front"], {"frozen image"}),
        ("depth", np.zeros((16, 16), np.float32), {"black image"}),
        ("depth", np.full((16, 16), 1e-3, np.float32), set()),
        ("film", np.stack([FILM[0], BLACK]), {"black image"}),
        ("film", np.stack([BLACK, FILM[0]]), set()),
        ("film", np.stack([BLACK, FILM[1]]), {"frozen image"}),
    ],
)
def test_a_new_frame_is_judged_by_its_newest_picture(camera, picture, problems):
    one = watch(camera)
    assert one.look(seen(1, 100.0, **{camera: picture}), 100.0) == problems
    # What was said of a frame holds until the next one.
    assert one.look(seen(1, 100.0, **{camera: picture}), 100.0) == problems
    assert one.look(seen(2, 100.0), 100.0) == set()


def test_a_camera_that_may_repeat_itself_is_not_frozen():
    one = watch(cameras={"front": {"rate_hz": 32, "may_repeat": True}})
    assert one.look(seen(1, 100.0, front=seen(0, 0.0).values["front"]), 100.0) == set()


def test_each_camera_that_shows_the_other_ones_scene_is_swapped():
    front, wrist = (seen(9, 0.0).values[name] for name in ("front", "wrist"))
    one = watch("front", "wrist")
    assert one.look(seen(1, 100.1, front=wrist, wrist=front), 100.1) == {"swapped cameras"}
    assert one.faults(100.1)[0] == {"camera lost"}
    # One of them alone is enough: both are unclear then.
    one = watch("front", "wrist")
    assert one.look(seen(1, 100.1, wrist=front), 100.1) == {"swapped cameras"}
    # A scene between the two is nobody's.
    between = np.full((16, 16, 3), 140, np.uint8) + np.arange(16, dtype=np.uint8)[:, None]
    one = watch("front", "wrist")
    assert one.look(seen(1, 100.1, front=between, wrist=between), 100.1) == set()


def test_both_of_a_swap_are_unclear_until_each_shows_its_own_again_and_no_third_one_is():
    front = seen(9, 0.0).values["front"]
    one = watch("front", "wrist", "depth")
    assert one.look(seen(1, 100.1, wrist=front), 100.1) == {"swapped cameras"}
    for new, problems in (({"wrist"}, {"swapped cameras"}), ({"wrist", "front"}, set())):
        again = seen(2 + len(new), 100.1)
        numbers = {n: 1 for n in again.frame_ids if n not in new}
        again = dataclasses.replace(again, frame_ids={**again.frame_ids, **numbers})
        assert one.look(again, 100.1) == problems


def test_a_robot_may_write_its_pictures_into_the_same_memory():
    one, picture = watch("front"), seen(1, 0.0).values["front"].copy()
    for number in (1, 2, 3):
        picture[:] = seen(number, 0.0).values["front"]
        assert one.look(seen(number, 100.1, front=picture), 100.1) == set()
    one.look(seen(4, 100.1, front=picture), 100.1)
    assert one.look(seen(5, 100.1, front=picture), 100.1) == {"frozen image"}


def test_depth_with_holes_is_not_black():
    holes = np.full((16, 16), np.nan, np.float32)
    one = watch("depth")
    assert one.look(seen(1, 100.1, depth=holes), 100.1) == {"black image"}
    holes[3, 5] = 0.25
    assert one.look(seen(2, 100.1, depth=holes), 100.1) == set()


def test_of_a_large_picture_whole_rows_are_looked_at_and_means_take_some_columns():
    """480 by 640: every 30th row, and of these every tenth pixel for the means."""
    wide = {n: Sensor("image", (480, 640, 3), "uint8") for n in ("front", "wrist")}
    raw = {"robot": "one", "stamps": "monotonic", "axes": [AXIS],
           "cameras": {name: {"rate_hz": 32} for name in wide}}  # fmt: skip
    light, dark = np.full((2, 480, 640, 3), [[[[200]]], [[[40]]]], np.uint8)

    def look(front):
        one = Watch(msgspec.convert(raw, Description), wide)
        at = dict.fromkeys(wide, 1.0)
        one.begin(Observation({"front": light, "wrist": dark}, at, {"front": 0, "wrist": 0}), 1.0)
        shown = {"front": front, "wrist": dark}
        return one.look(Observation(shown, at, {"front": 1, "wrist": 0}), 1.0)

    for row, column, problems in ((450, 639, set()), (451, 639, {"frozen image"})):
        changed = light.copy()
        changed[row, column] = 190
        assert look(changed) == problems
    changed = light.copy()
    changed[::30, ::10] = 40  # all that the means are of is as the other one's
    assert look(changed) == {"swapped cameras"}
    changed = light.copy()
    changed[::30, ::20] = 40
    assert look(changed) == set()
    changed = light.copy()
    changed[::30, 1::10], changed[1::30] = 40, 40
    assert look(changed) == set()


def test_what_another_kind_of_camera_shows_is_not_compared():
    one = watch("front", "depth")
    assert one.look(seen(1, 100.1, depth=FALLING[..., 0].astype(np.float32)), 100.1) == set()


def test_cells_of_uneven_size_count_by_their_mean():
    """17 rows and 9 columns: the last cell of each has one more. The front camera shows what the
    other one did, but in 12 of 64 cells: 0.19 of the way back, the edge is 0.2. By pixels it would
    be 43 of 153, 0.28 of the way."""
    tall = {n: Sensor("image", (17, 9, 3), "uint8") for n in ("front", "wrist")}
    raw = {"robot": "one", "stamps": "monotonic", "axes": [AXIS],
           "cameras": {name: {"rate_hz": 32} for name in tall}}  # fmt: skip
    one = Watch(msgspec.convert(raw, Description), tall)
    light, dark = np.full((2, 17, 9, 3), [[[[200]]], [[[40]]]], np.uint8)

    def show(number, front, wrist):
        shown = {"front": front, "wrist": wrist}
        return Observation(shown, dict.fromkeys(shown, 1.0), dict.fromkeys(shown, number))

    one.begin(show(0, light, dark), 1.0)
    mixed = dark.copy()
    mixed[14:], mixed[:8, 7:] = 200, 200
    assert one.look(show(1, mixed, dark + np.uint8(1)), 1.0) == {"swapped cameras"}


def test_positions_are_felt_in_the_units_of_the_axes():
    axes = [
        {**AXIS, "name": "a", "measured": {"index": 2, "scale": 0.5, "offset": -0.25}},
        {**AXIS, "name": "b"},
        {**AXIS, "name": "c", "measured": {"index": 1}},
    ]
    one = watch(axes=axes)
    assert one.felt(seen(1, 100.0)) == {0: 0.25, 2: 0.5}
    assert one.felt(seen(1, 100.0, state=np.array([0, np.inf, 0], np.float32))) is None
    # Only what is measured has to be a number.
    assert one.felt(seen(1, 100.0, state=np.array([np.nan, 0, 0], np.float32))) is not None
    assert one.look(seen(2, 100.0, state=np.full(3, np.nan, np.float32)), 100.0) == {
        "state is no number"
    }


def test_an_axis_that_does_not_follow_strays_after_half_a_second():
    axes = [{**AXIS, "measured": {"index": 0}, "max_error": 0.25}, {**AXIS, "name": "b"}]
    one = watch(axes=axes)
    assert one.follows({0: 0.25}, np.zeros(2), 100.25)
    assert one.follows({0: -0.25}, np.zeros(2), 100.25)
    assert not one.follows({0: 0.2501}, np.zeros(2), 100.5)
    assert not one.strayed(100.74) and one.strayed(100.75)
    assert one.follows({0: 5.0}, np.array([5.0, 0.0]), 101.0) and not one.strayed(101.25)


def test_one_axis_that_does_not_follow_is_enough():
    axis = AXIS | {"max_error": 0.25}
    axes = [axis | {"name": n, "measured": {"index": i}} for i, n in enumerate("ab")]
    one = watch(axes=axes)
    assert one.follows({0: 0.1, 1: 0.1}, np.zeros(2), 100.25)
    assert not one.follows({0: 0.1, 1: 0.3}, np.zeros(2), 100.5)
    assert not one.follows({0: 0.3, 1: 0.1}, np.zeros(2), 100.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cameras": {"state": {"rate_hz": 3}}}, "watches the camera 'state', the robot shows dep"),
        ({"state": "front"}, "number -1 of the input 'front', and the robot shows image"),
        ({"state": "arm"}, "of the input 'arm', and the robot shows nothing"),
        (
            {"axes": [{**AXIS, "measured": {"index": 3}}]},
            r"counts to number 3 of the input 'state', and the robot shows vector \[3\]",
        ),
    ],
)
def test_a_description_of_another_robot_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        watch(**changes)
