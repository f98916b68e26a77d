"""What a simulator knows stands beside what a leaf says, of the moment that it was read from."""

import numpy as np
import pytest

from runtime.control.clock import VirtualClock
from runtime.control.delay import Delay
from runtime.control.leaves import LeafRate, Reading
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.thinker import InlineThinker
from runtime.declarations import Output
from runtime.robots.robot import Truth
from tests.runtime.stand_ins.pondering import PlacedRobot
from tests.runtime.test_leaves import RATE_HZ, LeafyPolicy, drive, nothing_to_collect

__all__ = ["nothing_to_collect"]


class KnowingRobot(PlacedRobot):
    """A simulator that knows its place, tenfold: in mm, if the policy says cm."""

    units = ("cm",)

    def truths(self):
        place = np.array([float(self.observe().values["state"][0]) + 0.5], np.float32)
        return {"quick": Truth(place, self.units), "slow": Truth(place, ("rad",))}


class MeasuringPolicy(LeafyPolicy):
    outputs = {**LeafyPolicy.outputs, "quick": Output(units=("cm",))}


@pytest.mark.parametrize("chunks", ["sync", "async"])
def test_a_reading_stands_beside_what_held_when_its_observation_was_taken(chunks):
    """The world goes on while the policy thinks: half a place is all that they differ by."""
    clock = VirtualClock()
    policy = MeasuringPolicy(clock, quick=0.01)
    thinker = InlineThinker(policy, clock, delay_s=0.0 if chunks == "sync" else 0.08)
    config = LoopConfig(
        rate_hz=RATE_HZ, execute=4, max_steps=60, chunks=chunks,
        leaves={"quick": LeafRate(rate_hz=4.0)},
    )  # fmt: skip
    trace = run_episode(
        policy, KnowingRobot(100), config, clock=clock, thinker=thinker,
        delay=Delay(median_s=0.08, largest_s=0.08, num_thoughts=10, step_s=None),
    )  # fmt: skip
    history = trace.leaves["quick"].history
    assert len(history) > 8 and len({float(r.value[0]) for r in history}) > 5
    assert trace.leaves["quick"].errors == [0.5] * len(history)


def test_without_a_simulator_nobody_knows_better():
    clock = VirtualClock()
    policy = MeasuringPolicy(clock)
    trace = drive(policy, clock, leaves={"quick": LeafRate(rate_hz=4.0)})
    readings = trace.leaves["quick"].history
    assert readings and all(r.truth is None and r.error is None for r in readings)


def test_a_leaf_and_the_simulator_have_to_speak_of_the_same_unit():
    clock = VirtualClock()
    config = LoopConfig(rate_hz=RATE_HZ, leaves={"slow": LeafRate(rate_hz=1.0)})
    robot = KnowingRobot()
    words = r"leaf 'slow' is in no unit, and what the robot knows by that name in rad: convert"
    with pytest.raises(ValueError, match=words):
        run_episode(MeasuringPolicy(clock), robot, config, clock=clock)
    assert "send" not in robot.calls


def test_an_error_is_the_distance_of_all_numbers():
    def reading(truth):
        value = np.array([1.0, 2.0, 3.0], np.float32)
        return Reading("goal", value, 0, 0.0, 0.0, 0.0, 0.0, truth)

    assert reading(None).error is None
    assert reading(np.array([1.0, 5.0, 7.0], np.float32)).error == pytest.approx(5.0)
