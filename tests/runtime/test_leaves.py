"""Leaves are read at their own rate in time that is left over, and no action waits for one."""

import math
from contextlib import closing

import numpy as np
import pytest

import runtime
from runtime.control.chunks import ChunkExecutor
from runtime.control.clock import VirtualClock
from runtime.control.delay import Delay
from runtime.control.leaves import LeafRate, Leaves, parse_leaves
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.recorder import Recorder
from runtime.control.replay import replay
from runtime.control.thinker import InlineThinker, Observed, ThreadThinker
from runtime.declarations import Output
from runtime.errors import EngineError
from runtime.recordings.journal import Journal
from tests.families import INPUTS, golden_of, toy_graph, write_bundle
from tests.runtime.stand_ins.pondering import PlacedRobot, PonderingPolicy
from tests.runtime.test_seen_later import LookingBack, robot

RATE_HZ = 20.0
PERIOD_S = 1 / RATE_HZ


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)


class LeafyPolicy(PonderingPolicy):
    """Its leaves tell when they were read, and of which place; each takes its time on the clock."""

    outputs = dict.fromkeys(("actions", "quick", "slow"), Output())

    def __init__(self, clock, **costs):
        super().__init__()
        self.clock, self.costs, self.place = clock, costs, math.nan
        self.read = []
        """Name and time."""

    def start(self, **given):
        self.place = math.nan
        return super().start(**given)

    def act(self, observation, *, at):
        self.place = float(observation["state"][0])
        return super().act(observation, at=at)

    def ask(self, leaf):
        assert not math.isnan(self.place), "a leaf of nothing that was seen"
        self.read.append((leaf, self.clock()))
        cost = self.costs.get(leaf, 0.0)
        self.clock.sleep(cost(len(self.read)) if callable(cost) else cost)
        return np.array([self.place], np.float32)


def drive(policy, clock, *, leaves, num_steps=100, threaded=False, chunks="sync", **options):
    thinker = ThreadThinker(policy, clock) if threaded else InlineThinker(policy, clock)
    config = LoopConfig(
        rate_hz=RATE_HZ, execute=4, max_steps=num_steps, chunks=chunks, leaves=leaves
    )
    return run_episode(
        policy, PlacedRobot(num_steps + 10), config, clock=clock, thinker=thinker,
        delay=Delay(median_s=0.01, largest_s=0.01, num_thoughts=10, step_s=None), **options,
    )  # fmt: skip


def test_rates_hold_over_ten_thousand_ticks():
    """Of every leaf that fits, each due time once: no drift, nothing skipped."""
    leaves = Leaves(
        {
            "a": LeafRate(rate_hz=2.0),
            "b": LeafRate(rate_hz=7.0),
            "c": LeafRate(rate_hz=0.3),
            "d": LeafRate(rate_hz=RATE_HZ),
        }
    )
    for name in leaves.names:
        leaves.measured(name, 0.01)
    leaves.begin(0.0)
    dues = {name: [] for name in leaves.names}
    num_ticks = 10_000
    for tick in range(num_ticks):
        now, until = tick * PERIOD_S, (tick + 1) * PERIOD_S
        while (name := leaves.next(now, until)) is not None:
            dues[name].append(leaves.ran(name, 0.01))
            now += 0.01
    end = (num_ticks - 1) * PERIOD_S
    for name, rate in (("a", 2.0), ("b", 7.0), ("c", 0.3), ("d", RATE_HZ)):
        wanted = np.arange(math.floor(end * rate + 1e-6) + 1) / rate
        assert dues[name] == pytest.approx(wanted, abs=1e-6), name
        assert leaves.counts[name].num_run == len(wanted)
        assert leaves.counts[name].num_skipped == 0


def test_rates_hold_over_ten_thousand_steps_of_a_loop():
    clock = VirtualClock()
    policy = LeafyPolicy(clock)
    rates = {"quick": LeafRate(rate_hz=5.0), "slow": LeafRate(rate_hz=0.7)}
    trace = drive(policy, clock, leaves=rates, num_steps=10_000)
    for name, rate in rates.items():
        of = trace.leaves[name]
        assert of.count.num_run == math.floor(9_999 * PERIOD_S * rate.rate_hz + 1e-6) + 1
        assert of.count.num_skipped == of.count.num_failed == 0
    assert all(step.late_s == 0 for step in trace.steps)


@pytest.mark.parametrize("chunks", ["sync", "async"])
def test_what_does_not_fit_into_a_period_is_skipped_and_makes_no_step_late(chunks):
    clock = VirtualClock()
    policy = LeafyPolicy(clock, quick=0.01, slow=0.06)
    rates = {"quick": LeafRate(rate_hz=5.0), "slow": LeafRate(rate_hz=2.0)}
    trace = drive(policy, clock, leaves=rates, chunks=chunks)
    assert all(step.late_s == 0 for step in trace.steps) and trace.num_dropped == 0
    slow, quick = trace.leaves["slow"].count, trace.leaves["quick"].count
    assert slow.num_run == 0 and slow.longest_s == 0
    # Due every half second of five; none ends within a period of 0.05 s, and of each the loop
    # learns before its half second is over that it will not end in time.
    assert slow.num_skipped == 10
    assert quick.num_run == 25 and quick.longest_s == pytest.approx(0.01)


def test_a_leaf_that_fits_between_two_thoughts_is_read_there_by_a_thread():
    """It takes more than a period, and less than the four from one question to the next."""
    until = []

    class Noting(ThreadThinker):
        def spare(self, until_s):
            until.append((self._clock(), until_s))
            super().spare(until_s)

    clock = VirtualClock()
    policy = LeafyPolicy(clock)
    config = LoopConfig(
        rate_hz=RATE_HZ, execute=4, max_steps=9, leaves={"quick": LeafRate(rate_hz=1.0)}
    )
    run_episode(policy, PlacedRobot(), config, clock=clock, thinker=Noting(policy, clock))
    steps = [(round(at / PERIOD_S), round((end - at) / PERIOD_S)) for at, end in until]
    start = steps[0][0]
    assert [(at - start, num) for at, num in steps] == [
        (0, 4), (1, 3), (2, 2), (3, 1), (4, 4), (5, 3), (6, 2), (7, 1), (8, 4)
    ]  # fmt: skip


def spared(monkeypatch, kind):
    """Seconds that the policy was left after each step."""
    until = []
    monkeypatch.setattr(kind, "spare", lambda self, end: until.append(end - self._clock()))
    return until


class LeafyLookingBack(LeafyPolicy):
    """Wants to be shown every step."""

    inputs = LookingBack.inputs

    def see(self, observation):
        return False


@pytest.mark.parametrize("kind", [InlineThinker, ThreadThinker])
def test_a_policy_that_is_shown_every_step_is_left_no_more_than_one(monkeypatch, kind):
    until, clock = spared(monkeypatch, kind), VirtualClock()
    threaded = kind is ThreadThinker
    leaves = {"quick": LeafRate(rate_hz=1.0)}
    drive(LeafyLookingBack(clock), clock, leaves=leaves, num_steps=9, threaded=threaded)
    assert until == pytest.approx([PERIOD_S] * 9)


def test_time_is_left_at_steps_at_which_the_robot_waits_too(monkeypatch):
    until, clock = spared(monkeypatch, InlineThinker), VirtualClock()
    policy = LeafyPolicy(clock)
    config = LoopConfig(
        rate_hz=RATE_HZ, execute=3, max_steps=9, chunks="async",
        leaves={"quick": LeafRate(rate_hz=1.0)},
    )  # fmt: skip
    trace = run_episode(
        policy, PlacedRobot(), config, clock=clock,
        thinker=InlineThinker(policy, clock, delay_s=2 * PERIOD_S),
        delay=Delay(median_s=0.1, largest_s=0.1, num_thoughts=10, step_s=None),
    )  # fmt: skip
    assert trace.num_waited == 2 and len(until) == 9


def test_a_step_that_began_late_leaves_less(monkeypatch):
    until, clock = spared(monkeypatch, InlineThinker), VirtualClock()

    class Slow(PlacedRobot):
        def send(self, action_A):
            if len(self.applied) == 3:
                clock.sleep(PERIOD_S + 0.02)
            return super().send(action_A)

    policy = LeafyPolicy(clock)
    config = LoopConfig(
        rate_hz=RATE_HZ, execute=4, max_steps=7, leaves={"quick": LeafRate(rate_hz=1.0)}
    )
    run_episode(policy, Slow(), config, clock=clock, thinker=InlineThinker(policy, clock))
    assert until == pytest.approx([*[PERIOD_S] * 3, -0.02, PERIOD_S - 0.02, *[PERIOD_S] * 2])


def test_while_an_answer_is_waited_for_it_may_come_at_any_step():
    executor = ChunkExecutor((8, 3), execute=4)
    executor.ask(0)
    assert executor.idle(0) == 1
    executor.answer(1, np.zeros((8, 3), np.float32))
    assert [executor.idle(step) for step in range(5)] == [4, 3, 2, 1, 1]
    executor.hurry()
    assert executor.idle(0) == 1


def test_what_a_leaf_takes_is_measured_on_pictures_that_change_and_not_the_first_time():
    clock = VirtualClock()
    policy = LeafyPolicy(clock, quick=lambda count: 1.0 if count == 1 else 0.01)
    trace = drive(policy, clock, leaves={"quick": LeafRate(rate_hz=2.0)}, num_steps=41)
    assert trace.leaves["quick"].count.num_run == 5
    measured = [call[1] for call in policy.calls[1:7] if call[0] == "act"]
    assert len(set(measured)) == len(measured) == 6


def test_all_leaves_that_are_due_are_read_in_the_same_time_if_it_is_enough():
    clock, heard = VirtualClock(), []
    policy = LeafyPolicy(clock, quick=0.01, slow=0.02)
    rates = {"slow": LeafRate(rate_hz=1.0), "quick": LeafRate(rate_hz=1.0)}
    trace = drive(policy, clock, leaves=rates, num_steps=21, on_leaf=heard.append)
    assert [reading.name for reading in heard[:2]] == ["quick", "slow"]
    waited = [reading.read_at - reading.due_at for reading in heard[:2]]
    assert waited == pytest.approx([0.01, 0.03])
    assert trace.leaves["slow"].count.longest_s == pytest.approx(0.02)


def test_the_longest_of_an_episode_is_kept():
    clock = VirtualClock()
    policy = LeafyPolicy(clock, quick=lambda count: 0.03 if count == 9 else 0.01)
    trace = drive(policy, clock, leaves={"quick": LeafRate(rate_hz=5.0)}, num_steps=60)
    assert trace.leaves["quick"].count.longest_s == pytest.approx(0.03)


def test_a_leaf_that_takes_longer_than_ever_makes_one_step_late_and_then_waits():
    clock = VirtualClock()
    policy = LeafyPolicy(clock, quick=lambda count: 0.01 if count < 30 else 0.07)
    trace = drive(policy, clock, leaves={"quick": LeafRate(rate_hz=RATE_HZ)}, num_steps=200)
    late = [index for index, step in enumerate(trace.steps) if step.late_s > 1e-9]
    assert len(late) == 1
    count = trace.leaves["quick"].count
    assert count.longest_s == pytest.approx(0.07)
    assert count.num_run < 30 and count.num_skipped > 150


def test_a_reading_is_of_the_last_observation_and_says_so():
    clock, heard = VirtualClock(), []
    policy = LeafyPolicy(clock, quick=0.02)
    trace = drive(
        policy, clock, leaves={"quick": LeafRate(rate_hz=2.5)}, num_steps=21, on_leaf=heard.append
    )
    began = heard[0].looked_at
    assert [reading.name for reading in heard] == ["quick"] * 3
    # Due every eight steps; the policy looks every four.
    assert [float(reading.value[0]) for reading in heard] == [0.0, 8.0, 16.0]
    for number, reading in enumerate(heard):
        assert reading.looked_at - began == pytest.approx(number * 8 * PERIOD_S)
        assert reading.due_at - heard[0].due_at == pytest.approx(number * 0.4)
        assert reading.took_s == pytest.approx(0.02)
        assert reading.read_at - reading.looked_at == pytest.approx(0.02)
    assert [reading.number for reading in heard] == [1, 3, 5]
    of = trace.leaves["quick"]
    assert of.last is heard[-1]
    assert of.history == heard and of.errors == []


def test_the_one_that_is_due_the_longest_goes_first_and_a_deadline_ends_the_waiting():
    rates = {"a": LeafRate(rate_hz=1.0, deadline_s=0.3), "b": LeafRate(rate_hz=2.0)}
    leaves = Leaves(rates)
    assert leaves.next(0.0, 10.0) is None, "what it takes is not known"
    leaves.measured("a", 0.1)
    leaves.measured("b", 0.1)
    leaves.begin(0.0)
    assert leaves.next(0.0, 10.0) == "a", "in the order given, where both are due"
    leaves.ran("a", 0.1)
    assert leaves.next(0.1, 10.0) == "b"
    assert leaves.next(0.1, 0.2) is None, "a tenth more than it took does not fit"
    leaves.ran("b", 0.1)
    assert leaves.next(0.2, 10.0) is None, "neither is due again"
    assert leaves.next(1.0, 1.05) is None
    assert leaves.next(1.2, 10.0) == "b", "a cannot be there by 1.3 any more"
    # Once each before it was known what they take, b at 0.5 and a just now.
    assert [leaves.counts[name].num_skipped for name in "ab"] == [2, 2]
    leaves.ran("b", 0.1)
    assert leaves.next(1.85, 10.0) == "b"
    leaves.ran("b", 0.1)
    assert leaves.next(2.0, 10.0) == "a", "it is due when it was to be"


def test_what_a_leaf_takes_is_forgotten_after_fifty_times():
    leaves = Leaves({"a": LeafRate(rate_hz=1.0)})
    leaves.measured("a", 0.9)
    leaves.begin(0.0)
    for turn in range(50):
        assert leaves.next(float(turn), turn + 0.5) is None
        leaves.ran("a", 0.1)
    assert leaves.next(50.0, 50.5) == "a"


def test_a_leaf_that_fails_stops_no_robot():
    clock = VirtualClock()
    policy = LeafyPolicy(clock)
    rows = []

    def ask(leaf):
        rows.append(leaf)
        if len(rows) > 6:
            raise EngineError("not finite")
        return np.zeros(1, np.float32)

    policy.ask = ask
    trace = drive(policy, clock, leaves={"quick": LeafRate(rate_hz=2.0)}, num_steps=100)
    assert len(trace.steps) == 100
    count = trace.leaves["quick"].count
    assert (count.num_run, count.num_failed, count.num_skipped) == (0, 10, 0)
    assert count.error == "EngineError: not finite"


@pytest.mark.parametrize("kind", [InlineThinker, ThreadThinker])
def test_behind_a_reset_nothing_is_read_before_something_was_seen(kind):
    clock = VirtualClock()
    policy = LeafyPolicy(clock)
    thinker = kind(policy, clock)
    thinker.leaves = Leaves({"quick": LeafRate(rate_hz=1.0)})
    thinker.leaves.measured("quick", 0.0)
    thinker.start(seed=0, anchor_policy=None)
    thinker.spare(10.0)
    thinker.ask(Observed(1, {"frame": None, "state": [3.0]}, None, 0.0))
    thinker.reset()
    thinker.spare(10.0)
    thinker.ask(Observed(2, {"frame": None, "state": [4.0]}, None, 0.0))
    thinker.spare(10.0)
    events = []
    while len(events) < 5:
        events += thinker.wait()
    thinker.close()
    assert [type(event).__name__ for event in events] == [
        "Started", "Thought", "Started", "Thought", "Reading"
    ]  # fmt: skip
    assert float(events[-1].value[0]) == 4.0 and events[-1].number == 2


@pytest.mark.parametrize("name", ["nose", "actions"])
def test_a_leaf_that_the_policy_has_not_is_refused_before_anything_moves(name):
    clock = VirtualClock()
    policy = LeafyPolicy(clock)
    with pytest.raises(ValueError, match=f"leaf '{name}' .*; it can be asked for quick, slow"):
        drive(policy, clock, leaves={name: LeafRate(rate_hz=1.0)})
    assert not policy.calls


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rate_hz": 0.0}, "rate_hz must be"),
        ({"rate_hz": math.nan}, "rate_hz must be"),
        ({"rate_hz": 2000.0}, "rate_hz must be"),
        ({"rate_hz": 1.0, "deadline_s": 0.0}, "deadline_s must be"),
        ({"rate_hz": 1.0, "deadline_s": math.inf}, "deadline_s must be"),
    ],
)
def test_a_rate_that_is_none_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        LeafRate(**fields)


@pytest.mark.parametrize("text", ["grasp", "=5", "grasp=", "a=1,2,3", "a=0", "a=1,x", "a=1,-1"])
def test_words_that_name_no_rate_are_refused(text):
    with pytest.raises(ValueError, match="say NAME=HERTZ or NAME=HERTZ,SECONDS"):
        parse_leaves([text])


def test_words_name_rates():
    assert parse_leaves(["grasp=5,0.1", "pose=0.5"]) == {
        "grasp": LeafRate(rate_hz=5.0, deadline_s=0.1), "pose": LeafRate(rate_hz=0.5)
    }  # fmt: skip
    with pytest.raises(ValueError, match="each leaf once"):
        parse_leaves(["a=1", "a=2"])


def test_a_record_of_the_last_ticks_has_the_last_leaves(tmp_path):
    clock = VirtualClock()
    policy = LeafyPolicy(clock)
    small, large = policy.ask, np.zeros((16, 16), np.float32)
    policy.ask = lambda leaf: large if leaf == "slow" else small(leaf)
    rates = {"quick": LeafRate(rate_hz=5.0), "slow": LeafRate(rate_hz=5.0)}
    guards = []

    def watch(trace, stop):
        guards.append(stop.__self__)

    trace = drive(policy, clock, leaves=rates, num_steps=60, watch=watch)
    leaves = guards[0].record.contents("", {})["leaves"]
    assert len(leaves) == 2 * 15
    assert [leaf["name"] for leaf in leaves[:2]] == ["quick", "slow"]
    assert leaves[2]["value"] == [4.0] and leaves[3]["value"] == "[16, 16] float32"
    assert leaves[2]["looked_at_s"] <= leaves[2]["read_at_s"]
    assert trace.leaves["slow"].history == [] and trace.leaves["slow"].last.value is large
    assert trace.words[-2:] == [
        "leaf quick: read 15 times, at most 0.0 ms, 0 skipped",
        "leaf slow: read 15 times, at most 0.0 ms, 0 skipped",
    ]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaves") / "toy"
    return write_bundle(folder, toy_graph(INPUTS), golden_of(INPUTS))


def test_actions_with_leaves_and_without_are_equal_to_the_bit(toy, tmp_path):
    """And what was recorded with leaves replays."""
    rows = {}
    for name, leaves in (("with", {"camera_mean": LeafRate(rate_hz=RATE_HZ)}), ("without", {})):
        with runtime.load(toy) as policy:
            clock = VirtualClock()
            config = LoopConfig(rate_hz=RATE_HZ, execute=1, max_steps=20, leaves=leaves)
            with Recorder(tmp_path / f"{name}.zip") as recorder:
                trace = run_episode(
                    policy, robot(), config, clock=clock, recorder=recorder,
                    thinker=InlineThinker(recorder.watch(policy), clock),
                )  # fmt: skip
            rows[name] = np.stack([step.action for step in trace.steps])
            if leaves:
                assert trace.leaves["camera_mean"].count.num_run == 20
                stages = trace.stats.num_runs
                assert stages["camera_mean"] >= 20
    assert np.array_equal(rows["with"], rows["without"])
    with runtime.load(toy) as policy, closing(Journal(tmp_path / "with.zip")) as journal:
        assert replay(journal, policy).is_exact
