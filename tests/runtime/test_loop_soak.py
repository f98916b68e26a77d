"""The half hour of `make soak-loop` in small, with a hand that is no simulator."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest

from runtime.control.clock import VirtualClock
from runtime.control.delay import Delay
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.thinker import InlineThinker
from runtime.episode import Answer
from runtime.robots import metaworld
from runtime.robots.description import read_description
from runtime.robots.metaworld import LIMITS
from runtime.robots.robot import Observation, Sensor
from tests.graphs import anchored
from tests.loop_soak import Recorded, Soak, soak

SHIPPED = Path(metaworld.__file__).with_name("metaworld.json")
RAW = json.loads(SHIPPED.read_text())
BEGIN = np.array([0.1, 0.6, 0.2, 1.0], np.float32)


class Hand:
    """Goes where it is told; `obeys` is what it makes of an action."""

    instruction, limits, success = "go", LIMITS, True
    description = read_description(SHIPPED)
    inputs = {
        "frame": Sensor("image", (1, 1, 3), "uint8"),
        "state": Sensor("vector", (4,), "float32"),
    }

    def __init__(self, obeys=lambda action_A, step: action_A, on_look=lambda: None, steps=30):
        self.obeys, self.on_look, self.steps, self.num_looks = obeys, on_look, steps, 0

    def reset(self):
        self.state, self.step = BEGIN.copy(), 0
        return self.observe()

    def observe(self):
        self.on_look()
        self.num_looks += 1
        values = {"frame": np.full((1, 1, 3), self.step, np.uint8), "state": self.state.copy()}
        return Observation(values, dict.fromkeys(values, float(self.step)), {"frame": self.step})

    def send(self, action_A):
        sent_A = self.obeys(action_A.copy(), self.step)
        self.state[:3] += sent_A[:3] * 0.01
        self.step += 1
        return sent_A

    def hold(self):
        pass

    @property
    def done(self):
        return self.step >= self.steps


class Policy:
    """Steps of 2 mm along x."""

    chunk_shape, stats = (10, 4), None
    inputs = anchored("first", "task", side=1, state_dim=4)

    def start(self, **given):
        return self

    def act(self, observation, *, at):
        return Answer(np.tile(np.float32([0.2, 0, 0, 1]), (10, 1)), {}, 0.05, at)


def soaked(hand, seconds=4.0):
    result, clock = Soak(20.0), VirtualClock()
    config = LoopConfig(rate_hz=20.0, execute=5)
    soak(Policy(), {"go": hand}, result, RAW, seconds=seconds, config=config, clock=clock)
    return result, "\n".join(result.words())


def test_a_loop_that_keeps_everything_passes_and_is_looked_at_in_every_step():
    hand = Hand()
    result, words = soaked(hand)
    assert not result.has_failed
    assert result.counts["episodes"] == 3 and result.counts["sent"] == 90
    assert hand.num_looks >= 90
    assert "90 commands, 0 violations" in words and "misses: 0 of 90" in words
    assert "success: 3 of 3" in words and "collections inside episodes: 0" in words


@pytest.mark.parametrize(
    ("value", "kind"), [(1.2, "velocity"), (90.0, "jerk"), (np.nan, "not finite")]
)
def test_a_command_that_breaks_a_limit_on_the_wire_is_counted(value, kind):
    def obeys(action_A, step):
        action_A[1] = value if step == 12 else action_A[1]
        return action_A

    result, words = soaked(Hand(obeys), seconds=1.0)
    assert result.violations[kind] > 0 and result.has_failed
    assert f"{kind} {result.violations[kind]}" in words


def test_steps_for_which_the_policy_gave_nothing_are_misses_though_the_guard_sent_something():
    class Slow(InlineThinker):
        """Its second thought ends when the first chunk is long over."""

        def ask(self, observed):
            self.delay_s = 1.0 if observed.number == 2 else 0.1
            super().ask(observed)

    result, clock = Soak(20.0), VirtualClock()
    policy, hand = Policy(), Recorded(Hand())
    delay = Delay(median_s=0.1, largest_s=0.1, num_thoughts=1)
    trace = run_episode(
        policy, hand, LoopConfig(rate_hz=20.0, execute=5, chunks="async"), clock=clock,
        thinker=Slow(policy, clock), delay=delay,
    )  # fmt: skip
    result.add(trace, hand.violations(RAW))
    # The first chunk ends with step 9. The answer of step 25 is too old, the next one comes at 27.
    assert trace.num_waited == 2 and trace.num_held == 0
    num = result.interventions["no action"] - trace.num_waited
    assert num == 17 and f"misses: {num} of {len(trace.steps)} " in "\n".join(result.words())


def test_the_workspace_is_counted_from_where_the_hand_began():
    """Its x may go from -0.6 to 0.6 m, and it begins at 0.1."""
    drift = {"x": 0.0}

    def obeys(action_A, step):
        drift["x"] = min(drift["x"] + 0.06, 1.0)  # speeds up gently: no other limit is met
        action_A[0] = drift["x"]
        return action_A

    result, _ = soaked(Hand(obeys, steps=80), seconds=1.0)
    reached = BEGIN[0] + 0.01 * (sum(0.06 * n for n in range(1, 17)) + 64 * 1.0)
    assert reached > 0.6 and set(result.violations) == {"position"}


def test_a_collection_inside_an_episode_fails():
    result, words = soaked(Hand(on_look=lambda: gc.collect(0)), seconds=1.0)
    assert result.num_collections > 0 and result.has_failed
    assert "collections inside episodes: 0" not in words
