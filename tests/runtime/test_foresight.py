"""Pictures that are expected are held against those that come, at their step, and few are kept."""

import msgspec
import numpy as np
import pytest

from runtime.control.clock import VirtualClock
from runtime.control.leaves import LeafRate
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.thinker import InlineThinker
from runtime.declarations import Output
from tests.runtime.stand_ins.telling import (
    ARM,
    OUTPUTS,
    PERIOD_S,
    RATE_HZ,
    Arm,
    TellingPolicy,
    drive,
    shade,
)


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.mark.parametrize("execute", [1, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_comes_as_expected_is_no_distance_away_and_all_of_the_way(execute, dtype):
    """The picture that came is the one of 8 steps later, whenever the policy looks."""
    policy = TellingPolicy(future=shade(lambda step: 2 * (step + 8), dtype))
    robot = Arm(100, shades=lambda step: 2 * step, raw=ARM)
    trace = drive(policy, robot, num_steps=50, execute=execute)
    foreseen = trace.leaves["future"].foreseen
    asked = range(0, 49, execute)  # a reading is heard of in the next step, if there is one
    assert foreseen.num_came == len(asked)
    pairs = list(foreseen.pairs.things.values())
    for pair in pairs:
        came = min(pair.asked_step + 8, 50)
        assert (pair.due_step, pair.step) == (pair.asked_step + 8, came)
        assert (pair.expected == 2 * pair.due_step).all() and (pair.came == 2 * came).all()
        away = 2 * (pair.due_step - came)
        assert pair.distance == pytest.approx(away / 255)
        assert pair.progress == pytest.approx(1 - away / 16)
        assert pair.came.shape == pair.expected.shape == (6, 8, 3)
    assert {pair.asked_step for pair in pairs} <= {*asked} and len(pairs) <= 9
    for look in foreseen.looks:
        due = min(asked_step for asked_step in asked if asked_step + 8 >= look.step) + 8
        if look.step < 50:
            assert look.progress == pytest.approx(1 - (due - look.step) / 8)
    steps = [look.step for look in foreseen.looks]
    assert steps == sorted(steps)
    assert foreseen.words.startswith(f"{len(asked)} pictures came, the last 0.0")


@pytest.mark.parametrize(
    ("shades", "expected", "progress"),
    [
        (lambda step: 100, 200, 0.0),
        (lambda step: 100 + 5 * step, 140, 1.0),
        (lambda step: 100 + 10 * step, 140, 0.0),
        (lambda step: 100 - step, 110, 0.2 - 1.0),
        (lambda step: 200 - 10 * step, 210, -1.0),
        (lambda step: 100 + step, 100, None),
        (lambda step: 100 + step, 100.9, None),
        (lambda step: 100 + step, 102, -2.0 + 1.0),
    ],
)
def test_progress_is_the_share_of_the_way_that_is_done(shades, expected, progress):
    policy = TellingPolicy(future=shade(lambda step: expected))
    trace = drive(policy, Arm(12, shades=shades, raw=ARM), num_steps=9, execute=8)
    pair = trace.leaves["future"].foreseen.pairs.things[0]
    assert (pair.asked_step, pair.step) == (0, 8)
    assert pair.distance == pytest.approx(abs(shades(8) - round(expected)) / 255)
    if progress is None:
        assert pair.progress is None
    elif expected == 102:
        assert pair.progress == pytest.approx(-1.0), "100 to 108, and 102 was expected: 6 / 2 away"
    else:
        assert pair.progress == pytest.approx(progress)


def test_no_progress_is_none_either_way():
    policy = TellingPolicy(future=shade(200))
    robot = Arm(12, shades=lambda step: 50, raw=ARM)
    robot.recording.streams["frame"].values.setflags(write=True)
    robot.recording.streams["frame"].values[8, 0, 0] = 40
    trace = drive(policy, robot, num_steps=9, execute=8)
    foreseen = trace.leaves["future"].foreseen
    assert foreseen.looks[0].progress < 0
    assert foreseen.words.endswith("progress 0.00")


def test_at_the_end_what_was_not_due_is_compared_with_the_last_picture():
    policy = TellingPolicy(future=shade(200))
    trace = drive(policy, Arm(100, raw=ARM), num_steps=10)
    assert [(p.asked_step, p.step) for p in trace.leaves["future"].foreseen.pairs.things.values()
            ] == [(0, 8), (4, 10), (8, 10)]  # fmt: skip


def test_a_step_that_was_dropped_leaves_the_next_picture():
    clock = VirtualClock()

    class Slow(Arm):
        def send(self, action_A):
            if len(self.applied) == 6:  # at step 7: one was waited for the answer
                clock.sleep(3.5 * PERIOD_S)
            return super().send(action_A)

    policy = TellingPolicy(future=shade(200))
    config = LoopConfig(
        rate_hz=RATE_HZ, execute=6, max_steps=30, chunks="async",
        leaves={"future": LeafRate(rate_hz=RATE_HZ)},
    )  # fmt: skip
    thinker = InlineThinker(policy, clock, delay_s=0.001)
    trace = run_episode(policy, Slow(60, raw=ARM), config, clock=clock, thinker=thinker)
    pair = trace.leaves["future"].foreseen.pairs.things[0]
    assert trace.num_dropped == 2 and pair.due_step == 8 and pair.step > 8


def test_a_robot_is_looked_at_more_only_where_a_picture_is_due():
    def looks(**leaves):
        robot = Arm(100, raw=ARM)
        drive(TellingPolicy(**leaves), robot, num_steps=40)
        return robot.num_looks

    plain = looks(plain=lambda step: [0.0])
    assert looks(future=shade(0)) == plain, "8 steps later the policy looks anyway"


def test_a_wide_camera_is_compared_where_the_picture_was_cut_from():
    """Of 12 x 16 pixels the middle 12 x 12, of which the left and the right half differ."""
    middle = Output(means=msgspec.structs.replace(OUTPUTS["future"].means, is_middle=True))
    image = np.zeros((12, 16, 3), np.uint8)
    image[:, :2], image[:, 2:8], image[:, 8:14], image[:, 14:] = 255, 40, 80, 255
    expected = np.concatenate([np.full((6, 3, 3), 40), np.full((6, 3, 3), 80)], 1)
    for outputs, distance in ((middle, 0.0), (OUTPUTS["future"], 0.16)):
        robot = Arm(20, raw=ARM)
        frames = robot.recording.streams["frame"].values
        frames.setflags(write=True)
        frames[:] = image
        policy = TellingPolicy(future=lambda step: expected.astype(np.float32))
        policy.outputs = {**OUTPUTS, "future": outputs}
        trace = drive(policy, robot, num_steps=10)
        pair = trace.leaves["future"].foreseen.pairs.last
        assert pair.distance == pytest.approx(distance, abs=0.02)
        assert pair.progress is None if distance == 0 else pair.progress == 0.0


def test_a_large_picture_is_compared_and_kept_small():
    policy = TellingPolicy(future=shade(90, np.uint8, (400, 600, 3)))
    trace = drive(policy, num_steps=12)
    pair = trace.leaves["future"].foreseen.pairs.last
    assert pair.expected.shape == pair.came.shape == (160, 240, 3)
    assert pair.distance == pytest.approx((90 - 12) / 255)


def test_noise_counts_for_little():
    """Of a picture of 640 x 480 a compared pixel is the mean of 100: noise of 20 becomes 2."""
    random = np.random.default_rng(0)

    def noisy(step):
        return np.clip(random.normal(100, 20, (480, 640, 3)), 0, 255)

    trace = drive(TellingPolicy(future=noisy), Arm(12, shades=lambda s: 100, raw=ARM), num_steps=9)
    assert trace.leaves["future"].foreseen.pairs.last.distance < 2.0 / 255
