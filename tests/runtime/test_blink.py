"""The task whose marker blinks once: what pictures tell and when, what succeeds and what fails."""

from collections import Counter
from contextlib import closing

import numpy as np
import pytest
from scipy import ndimage

from runtime.robots.blink import REACHED_M, Blink, BlinkEpisode
from runtime.robots.metaworld import TASKS, MetaWorldRobot

TASK = "touch-what-blinked"
BLINK = TASKS[TASK].blink
FAR_M = np.array([0.0, 0.5, 0.4])
"""Away from every marker."""


def make_robot(**options):
    return closing(MetaWorldRobot(**({"task": TASK, "seed": 0} | options)))


def draw(seed=0):
    return BlinkEpisode(BLINK, np.random.default_rng(seed))


def pixels(image):
    """Masks of what is green, yellow and white."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return {
        "green": (green > 100) & (green > 2 * red) & (green > 2 * blue),
        "yellow": (red > 150) & (green > 0.6 * red) & (blue < 0.3 * red),
        "white": (red > 225) & (green > 225) & (blue > 225),
    }


def colours(image):
    return {name: int(mask.sum()) for name, mask in pixels(image).items()}


def drive(robot, marker=None, *, until=lambda blink: False):
    while not robot.done and not until(robot.blink):
        robot.send(robot.blink.expert_action(robot.hand_m, marker))


def film(marker, steps=75):
    """Pictures, states and actions of one episode in which `marker` blinks, and its blink."""
    with make_robot(seed=3) as robot:
        robot.reset()
        robot.blink.marker = marker
        seen = []
        for _ in range(steps):
            action_A = robot.expert_action()
            state = robot.observe().values["state"]
            seen.append((robot.observe().values["frame"], state, action_A))
            waiting = robot.blink.is_waiting
            robot.send(action_A)
            if not waiting:
                break
        return seen, robot.blink


@pytest.fixture(scope="module")
def films(simulator):
    return [film(marker) for marker in range(3)]


def test_every_picture_outside_the_blink_is_the_same_whatever_blinks(films):
    (first, blink), *others = films
    assert len(first) > blink.end + BLINK.wait_steps
    for seen, own in others:
        assert (own.begin, len(seen)) == (blink.begin, len(first))
        for step, (ours, theirs) in enumerate(zip(first, seen, strict=True)):
            is_lit = blink.begin <= step < blink.end
            assert np.array_equal(ours[0], theirs[0]) == (not is_lit), step
            assert np.array_equal(ours[1], theirs[1])
            # The last one is the first without the yellow marker.
            assert np.array_equal(ours[2], theirs[2]) == (step < len(first) - 1), step


def test_the_blink_shows_in_its_window_only_and_the_yellow_marker_until_the_decision(films):
    for seen, blink in films:
        lit = [step for step, row in enumerate(seen) if colours(row[0])["green"]]
        assert lit == list(range(blink.begin, blink.begin + 6))
        assert all(colours(seen[step][0])["green"] >= 30 for step in lit)
        *before, decision = (colours(row[0])["yellow"] for row in seen)
        assert min(before) >= 10
        assert decision == 0


@pytest.mark.usefixtures("simulator")
def test_where_the_picture_is_green_is_the_marker_that_blinks():
    features, places, scenes, markers = [], [], [], []
    with make_robot() as robot:
        for _ in range(60):
            robot.reset()
            drive(robot, until=lambda blink: blink.is_lit)
            v, u = np.nonzero(pixels(robot.observe().values["frame"])["green"])
            features.append([1, u.mean(), v.mean(), np.sqrt(len(u))])
            places.append(robot.goal_m)
            scenes.append(robot.blink.markers_m)
            markers.append(robot.blink.marker)
    weights, *_ = np.linalg.lstsq(np.array(features[:40]), np.array(places[:40]), rcond=None)
    found_m = np.array(features[40:]) @ weights
    for found, scene, marker in zip(found_m, scenes[40:], markers[40:], strict=True):
        assert np.linalg.norm(scene - found, axis=1).argmin() == marker
    # The goal itself too: nearer than what counts as reached.
    assert np.linalg.norm(found_m - np.array(places[40:]), axis=1).max() < REACHED_M


@pytest.mark.usefixtures("simulator")
def test_the_first_frame_shows_every_marker_apart_from_the_others_and_no_green():
    with make_robot() as robot:
        for _ in range(25):
            first = robot.reset().values["frame"]
            is_marker = (first != robot.look(hide_markers=True)).any(axis=2)
            labels, _ = ndimage.label(is_marker, np.ones((3, 3)))
            sizes = np.bincount(labels.ravel())[1:]
            assert len(sizes) == 4 and sizes.min() >= 20
            seen = {name: mask & is_marker for name, mask in pixels(first).items()}
            assert seen["yellow"].any() and seen["white"].any() and not seen["green"].any()


def test_moment_and_marker_vary_and_are_drawn_from_the_whole_range():
    drawn = [draw(seed) for seed in range(400)]
    assert {episode.begin for episode in drawn} == set(range(8, 21))
    counts = Counter(episode.marker for episode in drawn)
    # 400 throws of a die with three faces: 133 +- 9.4, within four standard deviations.
    assert sorted(counts) == [0, 1, 2] and all(95 < n < 172 for n in counts.values())


def test_the_marker_is_drawn_last_so_that_nothing_depends_on_it():
    random = np.random.default_rng(7)
    BlinkEpisode(BLINK, random)
    after = random.integers(1 << 30)
    one = np.random.default_rng(7)
    episode = BlinkEpisode(Blink(num_markers=3), one)
    assert one.integers(1 << 30) == after
    assert np.array_equal(draw(7).markers_m, episode.markers_m)
    assert draw(7).begin == episode.begin and draw(7).marker == episode.marker


def test_no_marker_is_near_another_or_near_the_way_to_it():
    for seed in range(100):
        episode = draw(seed)
        for i, goal in enumerate(episode.markers_m):
            others = np.delete(episode.markers_m, i, axis=0)
            assert np.linalg.norm(others - goal, axis=1).min() >= 0.12
            way = episode.waiting_m + np.linspace(0, 1, 200)[:, None] * (goal - episode.waiting_m)
            gaps = np.linalg.norm(way[:, None] - others, axis=2)
            assert gaps.min() >= 0.09 - 1e-9


def wait(episode):
    """Be at the yellow marker until it goes out; the number of steps."""
    steps = 0
    while episode.is_waiting:
        episode.advance(episode.waiting_m)
        steps += 1
    return steps


@pytest.mark.parametrize("seed", range(4))
def test_the_decision_is_more_than_thirty_steps_after_the_blink_however_fast_the_hand(seed):
    episode = draw(seed)
    decision = wait(episode)
    assert decision == episode.begin + 6 + 40
    for delay in (0, 15, 30):
        # Of every frame looked at while actions of the chunk at the decision are carried out.
        for look in range(decision - 5, decision + 40):
            assert not episode.begin <= look - delay < episode.end


def test_only_steps_at_the_yellow_marker_after_the_blink_count():
    episode = draw()
    for _ in range(episode.end):
        episode.advance(episode.waiting_m)
    for number in range(2 * BLINK.wait_steps):
        assert episode.is_waiting
        at = (FAR_M, episode.waiting_m + [REACHED_M + 1e-6, 0, 0])[number % 2]
        episode.advance(at)
    for _ in range(BLINK.wait_steps):
        assert episode.is_waiting
        episode.advance(episode.waiting_m + [0, 0, REACHED_M - 1e-6])
        episode.advance(FAR_M)
    assert not episode.is_waiting


@pytest.mark.parametrize("marker", range(3))
def test_after_the_wait_the_marker_that_blinked_succeeds_and_the_others_fail(marker):
    episode = draw()
    wait(episode)
    assert episode.success is None
    episode.advance(episode.markers_m[marker] + [REACHED_M - 1e-6, 0, 0])
    assert episode.success is (marker == episode.marker)
    for place_m in (*episode.markers_m, FAR_M):  # what comes later changes nothing
        episode.advance(place_m)
        assert episode.success is (marker == episode.marker)


def test_a_near_miss_decides_nothing():
    episode = draw()
    wait(episode)
    episode.advance(episode.goal_m + [0, 0, REACHED_M + 1e-6])
    assert episode.success is None


@pytest.mark.parametrize("is_right", [True, False])
def test_touching_any_white_marker_before_the_yellow_one_went_out_fails(is_right):
    episode = draw()
    for _ in range(episode.end):
        episode.advance(FAR_M)
    episode.advance(episode.markers_m[(episode.marker + (not is_right)) % 3])
    assert episode.success is False
    wait(episode)
    episode.advance(episode.goal_m)
    assert episode.success is False


def test_the_target_is_the_yellow_marker_and_then_the_goal():
    episode = draw()
    assert np.array_equal(episode.target_m, episode.waiting_m)
    wait(episode)
    assert np.array_equal(episode.target_m, episode.markers_m[episode.marker])


def test_the_expert_goes_straight_and_stands_still_where_it_has_to_be():
    episode = draw()
    way_m = episode.waiting_m - FAR_M
    action_A = episode.expert_action(FAR_M)
    assert action_A.shape == (4,) and action_A.dtype == np.float32
    assert np.abs(action_A).max() <= 1
    assert np.allclose(np.cross(action_A[:3], way_m), 0, atol=1e-6) and action_A[:3] @ way_m > 0
    assert np.array_equal(episode.expert_action(episode.waiting_m), np.zeros(4))


@pytest.mark.usefixtures("simulator")
def test_a_touch_of_a_wrong_marker_ends_the_episode_without_success():
    with make_robot() as robot, make_robot(end_on_success=False) as going_on:
        robot.reset()
        wrong = (robot.blink.marker + 1) % 3
        drive(robot, wrong, until=lambda blink: blink.success is not None)
        assert robot.done and robot.success is False and robot.blink.success is False
        going_on.reset()
        drive(going_on, wrong, until=lambda blink: blink.success is not None)
        assert not going_on.done
        for _ in range(40):  # on to the right one: too late
            going_on.send(going_on.expert_action())
        assert going_on.success is False


@pytest.mark.usefixtures("simulator")
def test_a_touch_of_the_right_marker_is_success_and_no_other_tasks():
    with make_robot(seed=1) as robot:
        robot.reset()
        assert np.allclose(robot.goal_m, robot.blink.markers_m[robot.blink.marker])
        drive(robot)
        assert robot.success is True and robot.done
        assert np.linalg.norm(robot.hand_m - robot.goal_m) <= REACHED_M
        assert robot.achieved(TASK) is True
        assert robot.achieved("touch-red") is None


@pytest.mark.usefixtures("simulator")
def test_a_seed_fixes_scene_moment_and_marker_of_every_episode():
    def told(robot):
        robot.reset()
        own = robot.blink
        return own.begin, own.marker, own.markers_m.tolist(), own.waiting_m.tolist()

    with make_robot(seed=11) as first, make_robot(seed=12) as second:
        ours = [told(first) for _ in range(3)]
        assert told(second) not in ours
        second.reseed(11)
        assert [told(second) for _ in range(3)] == ours
        assert len({str(one) for one in ours}) == 3


@pytest.mark.usefixtures("simulator")
def test_a_task_without_a_blink_has_none():
    with make_robot(task="touch-red") as robot:
        robot.reset()
        assert robot.blink is None
