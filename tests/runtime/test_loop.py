"""The loop keeps an absolute schedule and carries out chunks in order."""

import gc
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import models.demo
from runtime.control.clock import VirtualClock, ticks
from runtime.control.film import Film
from runtime.control.loop import LoopConfig, run_episode
from runtime.episode import Answer
from runtime.errors import EngineError, RobotError
from runtime.recordings.recording import Recording, evenly, load_recording
from runtime.robots.replay import ReplayedRobot
from runtime.robots.robot import Limits
from tests.graphs import anchored

EPISODE = Path(models.demo.__file__).parent / "episodes" / "touch-red-1.npz"


def test_a_slow_step_drops_ticks_and_keeps_the_schedule():
    clock = VirtualClock()
    steps = ticks(0.1, clock)
    assert next(steps) == (0.0, 0)
    clock.now += 0.25  # the tick due at 0.1 is dropped, the one due at 0.2 comes late
    late, dropped = next(steps)
    assert (round(late, 9), dropped) == (0.05, 1)
    clock.now += 0.01
    assert next(steps) == (0.0, 0)
    assert round(clock.now, 9) == 0.3


def test_a_schedule_does_not_drift():
    clock = VirtualClock()
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
    trace = run_episode(policy, robot, LoopConfig(execute=4), clock=VirtualClock())
    thinks = [i for i, step in enumerate(trace.steps) if step.act_s is not None]
    assert thinks == list(range(0, len(trace.steps), 4))
    assert trace.num_dropped == 0
    assert trace.success is None


def test_actions_reach_the_robot_in_the_order_of_the_chunk(policy):
    recording = load_recording(EPISODE)
    robot = ReplayedRobot(recording)
    run_episode(policy, robot, LoopConfig(execute=3), seed=5, clock=VirtualClock())
    image, state = (recording.streams[name].values[0] for name in ("frame", "state"))
    episode = policy.start(anchor=image, instruction=recording.instruction, seed=5)
    chunk = episode.act({"frame": image, "state": state}).actions
    assert np.array_equal(np.stack(robot.applied[:3]), chunk[:3])


def test_more_actions_than_a_chunk_holds_are_refused(policy):
    robot = ReplayedRobot(load_recording(EPISODE))
    with pytest.raises(ValueError, match="execute=11, but a chunk of this policy has 10 actions"):
        run_episode(policy, robot, LoopConfig(execute=11), clock=VirtualClock())


def test_the_loop_stops_at_its_limit(policy):
    robot = ReplayedRobot(load_recording(EPISODE))
    trace = run_episode(policy, robot, LoopConfig(max_steps=7), clock=VirtualClock())
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
        run_episode(policy, robot, LoopConfig(), clock=VirtualClock(), on_step=on_step)
    finally:
        gc.callbacks.remove(watch)
    assert counts[0] > 0, "the watch does not work: a collection runs before the loop"
    assert counts[-1] == counts[0]
    assert gc.isenabled()


def test_a_sleep_that_ends_late_counts_as_late():
    clock = VirtualClock()
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


def test_a_film_of_every_fourth_step_is_short_too():
    film = Film(capacity=5)
    for step in range(0, 700, 4):
        film.add(step, np.zeros((1, 1, 3), np.uint8))
        assert len(film.pictures) <= 6
    assert len({*np.diff(list(film.pictures)).tolist()[:-1]}) == 1


def test_a_trace_keeps_few_pictures_whatever_the_episodes_length(policy):
    robot = ReplayedRobot(load_recording(EPISODE))
    trace = run_episode(policy, robot, LoopConfig(execute=1), clock=VirtualClock())
    (film,) = trace.films.values()
    assert len(trace.steps) > 2 * film.capacity
    assert len(film.pictures) <= film.capacity + 1
    assert max(film.pictures) == len(trace.steps), "after the last action"
    shown = load_recording(EPISODE).streams["frame"].values
    assert all(
        np.array_equal(picture, shown[min(step, len(shown) - 1)])
        for step, picture in film.pictures.items()
    )


class CountingPolicy:
    """Answers with chunks of three actions that count up, and keeps what it was asked."""

    chunk_shape = (3, 2)
    stats = None
    inputs: ClassVar = anchored("first", "task", side=1, state_dim=1)

    def __init__(self, fails_at=1000):
        self.asked, self.fails_at, self.count = [], fails_at, 0

    def start(self, *, first, task, seed, anchor_policy):
        self.started = (first.copy(), task, seed, anchor_policy)
        return self

    def act(self, observation, *, at):
        if len(self.asked) == self.fails_at:
            raise EngineError("planted")
        self.asked.append((observation["frame"].copy(), observation["state"].copy(), at))
        self.count += 3
        rows = np.arange(self.count - 3, self.count, dtype=np.float32)
        return Answer(rows[:, None].repeat(2, axis=1), {}, None, at)


class NarrowRobot(ReplayedRobot):
    """Carries out no more than 4, and keeps what it was told."""

    def __init__(self, num_actions=2):
        images = np.arange(8 * 3, dtype=np.uint8).reshape(8, 1, 1, 3)
        streams = {"frame": evenly(images, 10.0), "state": evenly(np.ones((8, 1), np.float32), 1.0)}
        super().__init__(
            Recording(instruction="count", task="", seed=0, rate_hz=10.0, streams=streams),
            num_actions,
        )
        nameless = ("",) * num_actions
        self.limits = Limits(np.full(num_actions, -4), np.full(num_actions, 4), nameless, nameless)
        self.calls = []

    def reset(self):
        self.calls.append("reset")
        return super().reset()

    def send(self, action_A):
        self.calls.append("send")
        return super().send(action_A)

    def hold(self):
        super().hold()
        self.calls.append("hold")


def test_what_the_robot_clipped_is_noted_and_counted():
    config = LoopConfig(execute=2, max_steps=7)
    trace = run_episode(CountingPolicy(), NarrowRobot(), config, clock=VirtualClock())
    assert [float(step.action[0]) for step in trace.steps] == [0, 1, 3, 4, 6, 7, 9]
    assert [float(step.sent[1]) for step in trace.steps] == [0, 1, 3, 4, 4, 4, 4]
    assert trace.num_clipped == 3


def test_the_policy_sees_what_the_robot_shows_when_it_thinks():
    policy, robot = CountingPolicy(), NarrowRobot()
    trace = run_episode(policy, robot, LoopConfig(execute=3), seed=7, clock=VirtualClock())
    anchor, instruction, seed, anchor_policy = policy.started
    assert (instruction, seed, anchor_policy) == ("count", 7, None)
    assert np.array_equal(anchor, trace.first.values["frame"])
    shown = robot.recording.streams["frame"].values
    assert [image.tobytes() for image, *_ in policy.asked] == [
        shown[i].tobytes() for i in (0, 3, 6)
    ]
    assert [at for *_, at in policy.asked] == [0.0, 0.3, 0.6]


def test_the_robot_is_told_to_hold_at_the_end_and_when_something_fails():
    robot = NarrowRobot()
    run_episode(CountingPolicy(), robot, LoopConfig(execute=3, max_steps=2), clock=VirtualClock())
    assert robot.calls == ["reset", "send", "send", "hold"]
    robot.calls.clear()
    with pytest.raises(EngineError, match="planted"):
        run_episode(CountingPolicy(fails_at=1), robot, LoopConfig(execute=3), clock=VirtualClock())
    assert robot.calls == ["reset", "send", "send", "send", "hold"]


def test_a_robot_with_other_actions_is_refused_before_it_moves():
    robot = NarrowRobot(num_actions=5)
    with pytest.raises(RobotError, match="the robot takes 5 action dimensions, the policy answ"):
        run_episode(CountingPolicy(), robot, LoopConfig(execute=1), clock=VirtualClock())
    assert robot.calls == []


def test_virtual_time_passes_where_somebody_sleeps_and_nothing_is_late():
    clock = VirtualClock()
    trace = run_episode(CountingPolicy(), NarrowRobot(), LoopConfig(execute=1), clock=clock)
    assert clock.now == pytest.approx(0.8)
    assert trace.num_dropped == 0 and {step.late_s for step in trace.steps} == {0.0}
