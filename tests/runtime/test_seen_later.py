"""The loop shows every step to a policy that looks back, also where it is not asked."""

import contextlib

import numpy as np
import pytest
from msgspec.structs import replace

import runtime
from runtime.control.clock import VirtualClock
from runtime.control.delay import Delay
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.recorder import Recorder
from runtime.control.replay import replay
from runtime.control.server.contract import Contract
from runtime.control.thinker import InlineThinker, ThreadThinker
from runtime.declarations import Input, seen_later
from runtime.errors import BundleError
from runtime.recordings.journal import Journal
from runtime.recordings.recording import Recording, evenly
from runtime.robots.replay import ReplayedRobot
from tests.families import CAMERA, CHUNK, INPUTS, SIDE, golden_of, toy_graph, write_bundle
from tests.runtime.stand_ins.pondering import PlacedRobot, PonderingPolicy

AGO = replace(CAMERA, source="delay", of="camera", steps=2)


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)


class LookingBack(PonderingPolicy):
    """Sees places later; at the `remembered` ones it wants to be asked again."""

    inputs = {
        **PonderingPolicy.inputs,
        "before": Input(
            kind="vector", source="delay", of="state", steps=2, shape=(1,), dtype="float32",
            pace="tick", unit="m",
        ),
    }  # fmt: skip

    def __init__(self, remembered=()):
        super().__init__()
        self.remembered = remembered

    def see(self, observation):
        assert set(observation) == {"state"}
        place = float(observation["state"][0])
        self.calls.append(("see", place))
        return place in self.remembered

    @property
    def seen(self):
        return [(kind, int(of[0])) for kind, *of in self.calls if kind in ("see", "act")]


def drive(policy, *, delay_s=0.0, clock=None, threaded=False, **config):
    """At 10 Hz; a robot that stands at place k has carried out k actions."""
    clock = clock or VirtualClock()
    thinker = ThreadThinker(policy, clock) if threaded else InlineThinker(policy, clock, delay_s)
    return run_episode(
        policy,
        PlacedRobot(),
        LoopConfig(**{"execute": 4, "max_steps": 9} | config),
        clock=clock,
        thinker=thinker,
        delay=Delay(median_s=0.1, largest_s=0.1, num_thoughts=10, step_s=None),
    )


@pytest.mark.parametrize("threaded", [False, True])
def test_a_step_is_asked_about_or_shown(threaded):
    policy = LookingBack()
    drive(policy, threaded=threaded, chunks="sync")
    asked = {0, 4, 8}
    assert policy.seen == [("act" if step in asked else "see", step) for step in range(9)]


def test_a_policy_that_does_not_look_back_is_only_asked():
    policy = PonderingPolicy()
    drive(policy, chunks="sync")
    assert [call for call in policy.calls if call[0] != "start"] == [
        ("act", 0.0), ("act", 4.0), ("act", 8.0)
    ]  # fmt: skip


def test_a_policy_that_remembers_what_it_saw_is_asked_at_the_next_step():
    policy = LookingBack(remembered=(2,))
    drive(policy, chunks="sync", max_steps=8)
    asked = {0, 3, 7}
    assert policy.seen == [("act" if step in asked else "see", step) for step in range(8)]


def test_it_is_asked_again_while_it_is_recorded_too(tmp_path):
    policy = LookingBack(remembered=(2,))
    with Recorder(tmp_path / "a.zip") as recorder:
        pace = LoopConfig(chunks="sync", execute=4, max_steps=8)
        run_episode(policy, PlacedRobot(), pace, clock=VirtualClock(), recorder=recorder)
    assert [place for kind, place in policy.seen if kind == "act"] == [0, 3, 7]


def test_what_other_messages_return_is_no_wish():
    class Talkative(LookingBack):
        def latch(self, name):
            return True

    clock, policy = VirtualClock(), Talkative()
    thinker = InlineThinker(policy, clock)
    thinker.start(seed=0, anchor_policy=None)
    thinker.latch("first")
    assert [type(event).__name__ for event in thinker.poll()] == ["Started"]


def test_what_is_seen_meanwhile_comes_behind_the_thought_and_a_wish_waits_for_its_end():
    """A thought of two steps about step 0: the robot stands, and step 1 is shown all the same."""
    policy = LookingBack(remembered=(0, 3))
    drive(policy, chunks="async", delay_s=0.15, execute=5, max_steps=7)
    kinds = [kind for kind, _ in policy.seen]
    assert kinds[:4] == ["act", "see", "act", "see"], "a keyframe of step 1: asked again at step 2"
    assert kinds.count("act") == 3 and len(kinds) == 7


def test_steps_that_the_loop_dropped_are_shown_as_the_next_one():
    """Delays are of time: a picture of three steps ago is so old, whether all were there or not."""
    clock, policy = VirtualClock(), LookingBack()

    class Slow(PlacedRobot):
        def send(self, action_A):
            if len(self.applied) == 1:
                clock.now += 0.25  # a step is dropped, and the next is late
            return super().send(action_A)

    run_episode(
        policy, Slow(), LoopConfig(chunks="async", execute=7, max_steps=5), clock=clock,
        thinker=InlineThinker(policy, clock),
        delay=Delay(median_s=0.0, largest_s=0.0, num_thoughts=10, step_s=None),
    )  # fmt: skip
    assert policy.seen == [("act", 0), *(("see", place) for place in (0, 1, 2, 2))]


@pytest.fixture
def bundle(tmp_path):
    inputs = {**INPUTS, "ago": AGO}
    return write_bundle(tmp_path / "bundle", toy_graph(inputs), golden_of(inputs))


def robot():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, SIDE, SIDE, 3), np.uint8)
    joints = random.normal(size=(30, CHUNK[1])).astype(np.float32)
    streams = {"camera": evenly(images, 10.0), "joints": evenly(joints, 10.0)}
    recording = Recording(instruction="go", task="", seed=0, rate_hz=10.0, streams=streams)
    return ReplayedRobot(recording, CHUNK[1])


def test_actions_are_those_of_an_episode_that_was_shown_every_step(bundle):
    with runtime.load(bundle) as policy:
        shown, one = [], robot()
        first = one.reset()
        episode = policy.start(seed=3)
        for step in range(8):
            values = first.values if step == 0 else one.observe().values
            if step % 2:
                episode.see(values)
            else:
                shown.append(episode.act(values).actions)
            one.send(shown[-1][step % 2])
        other = robot()
        pace = LoopConfig(chunks="sync", execute=2, max_steps=8)
        run_episode(policy, other, pace, seed=3, clock=VirtualClock())
    assert np.array_equal(np.stack(other.applied), np.concatenate(shown))
    assert not np.array_equal(shown[1], shown[2])


def test_what_was_shown_is_recorded_and_shown_again(bundle, tmp_path):
    pace = LoopConfig(chunks="sync", execute=2, max_steps=7)
    with runtime.load(bundle) as policy:
        with Recorder(tmp_path / "a.zip") as recorder:
            run_episode(policy, robot(), pace, clock=VirtualClock(), recorder=recorder)
        with contextlib.closing(Journal(tmp_path / "a.zip")) as journal:
            done = replay(journal, policy)
            assert done.is_exact and done.told["see"] == 3
            told = [event for event in journal.events if event["kind"] != "told"]
            journal.events[:] = told
            assert not replay(journal, policy).is_exact, "nothing depended on what was shown"


def test_what_a_policy_sees_later_is_read_off_its_inputs():
    memory = replace(CAMERA, source="memory", of="wrist", pace="event")
    assert seen_later({**INPUTS, "wrist": CAMERA, "ago": AGO, "kept": memory}) == {
        "camera", "wrist"
    }  # fmt: skip
    assert seen_later(INPUTS) == frozenset()


def test_a_client_that_shows_only_what_it_asks_about_is_not_served():
    with pytest.raises(BundleError, match="this policy has to see camera in every step"):
        Contract(toy_graph({**INPUTS, "ago": AGO}))
    Contract(toy_graph(INPUTS))
