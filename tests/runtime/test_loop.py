"""The loop keeps an absolute schedule and carries out chunks in order."""

import gc
from pathlib import Path

import numpy as np
import pytest

import models.demo
from runtime.control.loop import Film, LoopConfig, run_episode, ticks
from runtime.recordings.recording import load_recording
from runtime.robots.replay import ReplayedRobot

EPISODE = Path(models.demo.__file__).parent / "episodes" / "touch-red-1.npz"


class FakeClock:
    """Time that passes only when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_a_slow_step_drops_ticks_and_keeps_the_schedule():
    clock = FakeClock()
    steps = ticks(0.1, clock)
    assert next(steps) == (0.0, 0)
    clock.now += 0.25  # the tick due at 0.1 is dropped, the one due at 0.2 comes late
    late, dropped = next(steps)
    assert (round(late, 9), dropped) == (0.05, 1)
    clock.now += 0.01
    assert next(steps) == (0.0, 0)
    assert round(clock.now, 9) == 0.3


def test_a_schedule_does_not_drift():
    clock = FakeClock()
    for count, _ in enumerate(ticks(1 / 30, clock)):
        clock.now += 0.007
        if count == 3000:
            break
    assert abs(clock.now - 0.007 - 100.0) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate_hz": 0}, r"rate_hz must be in \(0, 1000\], got 0"),
        ({"rate_hz": 2000}, "got 2000"),
        ({"execute": 0}, "must be positive"),
        ({"max_steps": 0}, "must be positive"),
    ],
)
def test_a_pace_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LoopConfig(**arguments)


def test_the_policy_thinks_once_per_used_up_chunk(policy):
    robot = ReplayedRobot(load_recording(EPISODE))
    trace = run_episode(policy, robot, LoopConfig(execute=4), clock=FakeClock())
    thinks = [i for i, step in enumerate(trace.steps) if step.act_s is not None]
    assert thinks == list(range(0, len(trace.steps), 4))
    assert trace.num_dropped == 0
    assert trace.success is None


def test_actions_reach_the_robot_in_the_order_of_the_chunk(policy):
    recording = load_recording(EPISODE)
    robot = ReplayedRobot(recording)
    run_episode(policy, robot, LoopConfig(execute=3), seed=5, clock=FakeClock())
    episode = policy.start(anchor=recording.images[0], instruction=recording.instruction, seed=5)
    chunk = episode.act(recording.images[0], recording.states[0])
    assert np.array_equal(np.stack(robot.applied[:3]), chunk[:3])


def test_more_actions_than_a_chunk_holds_are_refused(policy):
    robot = ReplayedRobot(load_recording(EPISODE))
    with pytest.raises(ValueError, match="execute=11, but a chunk of this bundle has 10 actions"):
        run_episode(policy, robot, LoopConfig(execute=11), clock=FakeClock())


def test_the_loop_stops_at_its_limit(policy):
    robot = ReplayedRobot(load_recording(EPISODE))
    trace = run_episode(policy, robot, LoopConfig(max_steps=7), clock=FakeClock())
    assert len(trace.steps) == 7


def test_no_garbage_is_collected_inside_the_loop(policy):
    robot = ReplayedRobot(load_recording(EPISODE))
    phases: list[str] = []
    counts: list[int] = []

    def watch(phase, info):
        phases.append(phase)

    gc.callbacks.append(watch)
    try:
        on_step = lambda step: counts.append(len(phases))  # noqa: E731
        run_episode(policy, robot, LoopConfig(), clock=FakeClock(), on_step=on_step)
    finally:
        gc.callbacks.remove(watch)
    assert counts[0] > 0, "the watch does not work: a collection runs before the loop"
    assert counts[-1] == counts[0]
    assert gc.isenabled()


def test_a_sleep_that_ends_late_counts_as_late():
    clock = FakeClock()
    real = clock.sleep
    clock.sleep = lambda seconds: real(seconds + 0.003)
    lateness = ticks(0.1, clock)
    assert next(lateness)[0] == 0.0
    assert round(next(lateness)[0], 9) == 0.003


@pytest.mark.parametrize("num_steps", [1, 4, 5, 6, 31, 1000])
def test_a_film_is_short_evenly_spread_and_ends_with_the_last_picture(num_steps):
    film = Film(capacity=5)
    for step in range(num_steps):
        film.add(step, np.full((1, 1, 3), step % 251, np.uint8))
        assert len(film.pictures) <= 6
    steps = list(film.pictures)
    assert steps[0] == 0 and steps[-1] == num_steps - 1
    assert len(steps) >= min(num_steps, 3)
    gaps = np.diff(steps)
    assert len({*gaps[:-1].tolist()}) <= 1
    assert all((picture == step % 251).all() for step, picture in film.pictures.items())


def test_a_film_keeps_copies_and_an_empty_one_nothing():
    film, image = Film(), np.zeros((1, 1, 3), np.uint8)
    assert film.pictures == {}
    film.add(0, image)
    image[:] = 9
    assert not film.pictures[0].any()


def test_a_trace_keeps_few_pictures_whatever_the_episodes_length(policy):
    robot = ReplayedRobot(load_recording(EPISODE))
    trace = run_episode(policy, robot, LoopConfig(), clock=FakeClock())
    assert len(trace.steps) > 2 * trace.film.capacity
    assert len(trace.film.pictures) <= trace.film.capacity + 1
    assert max(trace.film.pictures) == len(trace.steps) - 1
    shown = load_recording(EPISODE).images
    assert all(np.array_equal(p, shown[step]) for step, p in trace.film.pictures.items())
