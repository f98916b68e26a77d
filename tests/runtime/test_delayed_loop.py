"""The loop with answers that take their time: in virtual time, by latencies that a test injects."""

import gc

import numpy as np
import pytest

from runtime.anchor import Every, First
from runtime.control.clock import VirtualClock
from runtime.control.delay import Delay, choose_chunks, measure_delay
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.thinker import InlineThinker
from runtime.errors import EngineError
from tests.runtime.stand_ins.pondering import HORIZON, PlacedRobot, PonderingPolicy


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch):
    """Test processes have a large heap, and the loop's collection before it starts takes a second;
    `test_loop.py` tests that there is one."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def took(seconds, step_s=None):
    return Delay(median_s=seconds, largest_s=seconds, num_thoughts=10, step_s=step_s)


def drive(delays_s, *, policy=None, robot=None, tell=None, clock=None, **config):
    """An episode at 10 Hz whose thoughts take so long, the last of them again and again."""
    clock = clock or VirtualClock()
    policy, robot = policy or PonderingPolicy(), robot or PlacedRobot()
    thinker, act = InlineThinker(policy, clock), policy.act
    latencies = list(delays_s)

    def think(observation, *, at):
        thinker.delay_s = latencies.pop(0) if len(latencies) > 1 else latencies[0]
        return act(observation, at=at)

    policy.act = think
    trace = run_episode(
        policy,
        robot,
        LoopConfig(**{"chunks": "async", "execute": 3, "max_steps": 20} | config),
        clock=clock,
        thinker=thinker,
        delay=took(0.1) if config.get("chunks") != "sync" else None,
        on_step=(lambda step: tell(thinker, step)) if tell else lambda step: None,
    )
    return trace, robot


def sent(trace):
    """Of every action: where the robot was when it was asked for, and which of the chunk it is."""
    return [tuple(int(value) for value in step.action[:2]) for step in trace.steps]


def test_the_next_chunk_is_thought_out_while_this_one_is_carried_out():
    trace, _ = drive([0.2], max_steps=14)
    assert sent(trace) == [
        *[(0, 0), (0, 1), (0, 2)],
        *[(1, 2), (1, 3), (1, 4), (4, 2), (4, 3), (4, 4), (7, 2), (7, 3), (7, 4)],
    ]
    assert (trace.num_waited, trace.num_held, trace.num_misses) == (2, 0, 0)
    assert trace.num_overtaken == 6
    assert [i for i, step in enumerate(trace.steps) if step.act_s is not None] == [0, 3, 6, 9]


def test_every_action_is_the_one_for_the_place_where_the_robot_is():
    """Whatever the latencies are, as long as chunks last for them: index = place - observed."""
    chance = np.random.default_rng(0)
    trace, _ = drive(chance.uniform(0.02, 0.4, 40), max_steps=200)
    assert [place + index for place, index in sent(trace)] == list(range(len(trace.steps)))
    assert trace.num_held == 0 and trace.num_overtaken > 10


def test_ages_are_of_what_was_seen_until_it_is_sent():
    trace, _ = drive([0.2], max_steps=10)
    ages = [round(step.age_s, 9) for step in trace.steps]
    assert ages == [0.2, 0.3, 0.4, 0.2, 0.3, 0.4, 0.2, 0.3]


def test_where_a_thought_takes_too_long_the_robot_holds_and_goes_on_where_it_was():
    trace, robot = drive([0.1, 0.65, 0.1], max_steps=16)
    # The first chunk is of step 0 and carried out from step 1: its last action is too old.
    assert sent(trace)[:9] == [*((0, index) for index in range(HORIZON - 1)), (2, 5), (7, 1)]
    assert trace.num_held == trace.num_misses == 2
    assert robot.calls == ["hold", *["send"] * 7, "hold", *["send"] * 6, "hold"]


def test_a_chunk_that_is_older_than_its_horizon_is_not_carried_out():
    trace, robot = drive([0.85, 0.1], max_steps=16)
    assert trace.num_waited == 10, "9 for the answer that is dropped, and 1 for the next"
    assert sent(trace)[0] == (0, 0)
    assert trace.num_overtaken >= HORIZON
    assert robot.calls[:2] == ["hold", "send"]


def test_a_robot_whose_thinker_never_answers_is_given_up_at_the_limit():
    trace, robot = drive([1000.0], max_steps=12)
    assert (len(trace.steps), trace.num_waited) == (0, 12)
    assert robot.calls == ["hold"]


def test_steps_that_a_late_one_swallowed_age_a_chunk():
    clock = VirtualClock()

    def oversleep(thinker, step):
        if not step.action[:2].any():
            clock.now += 0.25

    trace, _ = drive([0.0], execute=5, tell=oversleep, clock=clock, max_steps=4)
    assert trace.num_dropped == 1
    assert sent(trace)[:2] == [(0, 0), (0, 2)]
    assert trace.num_misses == 1


def test_sync_waits_for_every_answer_and_drops_no_action():
    trace, robot = drive([0.25], chunks="sync", max_steps=7)
    assert sent(trace) == [(0, 0), (0, 1), (0, 2), (3, 0), (3, 1), (3, 2), (6, 0)]
    assert (trace.num_overtaken, trace.num_held, trace.chunks) == (0, 0, "sync")
    assert trace.num_dropped == 3, "one for each thought"
    assert robot.calls == ["send"] * 7 + ["hold"]
    ages = [round(step.age_s, 9) for step in trace.steps]
    assert ages[:3] == [0.25, 0.25, 0.3], "the tick of 0.2 s comes late, that of 0.3 s does not"


def test_an_instruction_counts_from_the_next_question_and_a_reset_forgets_the_chunk():
    def tell(thinker, step):
        if step.action.tolist() == [1, 3, 0]:  # place 4 was asked about in this tick
            thinker.say("further")
        if step.action.tolist() == [7, 2, 1]:
            thinker.reset()

    policy = PonderingPolicy()
    trace, _ = drive([0.2], policy=policy, tell=tell, max_steps=16)
    told = [tuple(int(v) for v in step.action) for step in trace.steps]
    assert told[5:10] == [(1, 4, 0), (4, 2, 0), (4, 3, 0), (4, 4, 0), (7, 2, 1)]
    assert told[10] == (10, 0, 0), "nothing of the old chunk, and the new one from its first action"
    assert trace.num_held == 2
    assert [call[0] for call in policy.calls].count("start") == 2


def test_an_answer_to_a_question_from_before_a_reset_is_never_carried_out():
    def tell(thinker, step):
        if step.action.tolist() == [0, 1, 0]:  # place 1 was asked about in this tick
            thinker.reset()

    trace, _ = drive([0.2], tell=tell, max_steps=14)
    assert sent(trace)[:4] == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert trace.num_stale == 1


def test_what_a_thought_raises_reaches_the_caller_as_it_was_and_the_robot_holds():
    policy, robot, planted = PonderingPolicy(), PlacedRobot(), EngineError("planted")
    act, count = policy.act, iter(range(100))

    def fail(observation, *, at):
        if next(count) == 2:
            raise planted
        return act(observation, at=at)

    policy.act = fail
    with pytest.raises(EngineError) as caught:
        drive([0.1], policy=policy, robot=robot)
    assert caught.value is planted
    assert robot.calls[-1] == "hold"


# What is measured, and what it allows.


def measured(delays_s, **options):
    policy, clock = PonderingPolicy(step_s=0.1), VirtualClock()
    thinker, act, latencies = InlineThinker(policy, clock), policy.act, list(delays_s)

    def think(observation, *, at):
        thinker.delay_s = latencies.pop(0)
        return act(observation, at=at)

    policy.act = think
    thinker.start(seed=0, anchor_policy=None)
    thinker.wait()
    observed = {"frame": np.zeros((1, 1, 3), np.uint8), "state": np.ones(1, np.float32)}
    return measure_delay(thinker, policy.inputs, observed, clock=clock, **options), policy


def test_the_first_thought_is_no_measurement():
    delay, policy = measured([9.0, 0.2, 0.1, 0.3, *[0.2] * 7])
    assert (delay.median_s, delay.largest_s) == (pytest.approx(0.2), pytest.approx(0.3))
    assert (delay.num_thoughts, delay.step_s) == (10, 0.1)
    places = [place for name, place in policy.calls[1:]]
    assert all(a != b for a, b in zip(places, places[1:], strict=False)), "a new observation each"


def test_a_slow_policy_is_measured_by_fewer_thoughts():
    assert measured([2.0] * 11)[0].num_thoughts == 3


def test_where_the_anchor_is_replaced_every_measured_thought_replaces_it():
    _, policy = measured([0.1] * 11, reanchors=True)
    assert [call[0] for call in policy.calls[1:]] == ["latch", "act"] * 11


@pytest.mark.parametrize(
    ("anchor_policy", "latches"),
    [(None, 0), (First(), 0), (Every(5), 11)],
    ids=["none", "1st", "5"],
)
def test_the_loop_measures_the_kind_of_thought_that_its_anchor_policy_makes(anchor_policy, latches):
    policy, clock = PonderingPolicy(), VirtualClock()
    trace = run_episode(
        policy,
        PlacedRobot(),
        LoopConfig(chunks="async", execute=3, max_steps=10),
        anchor_policy=anchor_policy,
        clock=clock,
        thinker=InlineThinker(policy, clock, 0.25),
    )
    assert trace.delay.largest_s == pytest.approx(0.25)
    assert trace.delay.steps(10.0) == 3
    names = [call[0] for call in policy.calls]
    assert names.count("latch") == latches
    assert names.count("start") == 2, "measured in an episode of its own"
    assert sent(trace)[0] == (0, 0)


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, 1), (0.1, 1), (0.3, 3), (0.301, 4)])
def test_a_delay_is_counted_in_steps_that_have_begun(seconds, steps):
    assert took(seconds).steps(10.0) == steps


@pytest.mark.parametrize(
    ("wanted", "seconds", "chosen"),
    [
        ("sync", 9.0, "sync"),
        ("async", 0.01, "async"),
        ("auto", 0.05, "sync"),
        ("auto", 0.051, "async"),
        ("auto", 0.4, "async"),
        ("auto", 0.41, "sync"),
    ],
)
def test_the_delay_says_how_chunks_are_used(wanted, seconds, chosen):
    """A chunk of 8 at 10 Hz carries a delay of 4 steps, since the next answer is as late."""
    options = {"horizon": 8, "execute": 4, "rate_hz": 10.0}
    assert choose_chunks(wanted, took(seconds), **options, takes_leftover=False) == chosen
    likewise = "rtc" if (wanted, chosen) == ("auto", "async") else chosen
    assert choose_chunks(wanted, took(seconds), **options, takes_leftover=True) == likewise


def test_real_time_chunking_needs_a_policy_that_takes_leftover_and_chunks_that_last():
    options = {"horizon": 8, "execute": 4, "rate_hz": 10.0}
    assert choose_chunks("rtc", took(0.4), **options, takes_leftover=True) == "rtc"
    with pytest.raises(ValueError, match=r"chunks=rtc cannot be: this policy has no input .*async"):
        choose_chunks("rtc", took(0.4), **options, takes_leftover=False)
    with pytest.raises(ValueError, match=r"^chunks=rtc cannot be: a thought takes 410 ms here"):
        choose_chunks("rtc", took(0.41), **options, takes_leftover=True)
    slow = took(0.1, step_s=0.2)
    with pytest.raises(ValueError, match=r"^chunks=rtc takes every action for its moment, but"):
        choose_chunks("rtc", slow, **options, takes_leftover=True)


def test_with_real_time_chunking_a_thought_is_told_what_is_carried_out_meanwhile():
    policy = PonderingPolicy(takes_leftover=True)
    trace, _ = drive([0.2], policy=policy, chunks="rtc", max_steps=14)
    # As with async, an answer begins two steps behind its question; what lies between is as the
    # chunk before had it, and so the robot never turns from what it has begun.
    assert trace.chunks == "rtc"
    assert sent(trace) == [
        *[(0, 0), (0, 1), (0, 2)],
        *[(1, 2), (1, 3), (1, 4), (4, 2), (4, 3), (4, 4), (7, 2), (7, 3), (7, 4)],
    ]
    first, second, third = policy.leftovers[:3]
    assert not first.any(), "nothing was left"
    # Asked at step 3: of a chunk of step 0 that is valid for 8, 5 are left, from its action 1 on.
    assert second[:, 1:3].tolist() == [*([0, k] for k in range(1, 6)), *[[0, 0]] * 3]
    assert second[0, 0] == 1 and (second[1:, 0] < 1).all(), "a step was said to be the delay"
    assert third[:2, 0].tolist() == [1, 1] and third[2, 0] < 1, "and two were seen"
    assert third[:2, 1:3].tolist() == [[1, 3], [1, 4]]


def test_without_it_a_thought_is_told_nothing_of_what_is_left():
    policy = PonderingPolicy(takes_leftover=True)
    drive([0.2], policy=policy, max_steps=14)
    assert policy.leftovers == []


@pytest.mark.parametrize(
    ("horizon", "execute", "delay", "message"),
    [
        (
            16,
            8,
            took(2.4),
            "chunks=async cannot be: a thought takes 2400 ms here (largest of 10 after warm-up), "
            "24 control steps at 10 Hz, so with execute=8 a chunk has to last 48 steps, and this "
            "policy's lasts 16: set rate_hz to 3.33 or less, or use chunks=sync, which stops for "
            "every thought",
        ),
        (16, 14, took(0.3), "last 17 steps, and this policy's lasts 16: set execute to 13 or less"),
        (16, 16, took(2.4), "lasts 16: set execute to less, or use chunks=sync"),
        (
            16,
            8,
            took(0.1, 0.2),
            "this checkpoint's actions are 0.2 s apart and the loop sends one every 0.1 s: set "
            "rate_hz to 5, or use chunks=sync",
        ),
    ],
    ids=["rate", "execute", "less", "checkpoint"],
)
def test_what_chunks_cannot_carry_is_refused_with_the_figures(horizon, execute, delay, message):
    options = {"horizon": horizon, "execute": execute, "rate_hz": 10.0, "takes_leftover": True}
    with pytest.raises(ValueError) as caught:
        choose_chunks("async", delay, **options)
    assert message in str(caught.value)
    assert choose_chunks("auto", delay, **options) == "sync"


def test_the_remedy_of_a_refusal_is_one():
    def choose(seconds, execute, rate_hz):
        options = {"horizon": 16, "execute": execute, "rate_hz": rate_hz, "takes_leftover": False}
        return choose_chunks("async", took(seconds), **options)

    with pytest.raises(ValueError, match=r"set rate_hz to 3\.33 or less"):
        choose(2.4, 8, 10.0)
    assert choose(2.4, 8, 3.33) == "async"
    assert choose(0.3, 13, 10.0) == "async"


def test_a_refused_way_moves_nothing():
    policy, clock, robot = PonderingPolicy(), VirtualClock(), PlacedRobot()
    thinker = InlineThinker(policy, clock, 2.4)
    with pytest.raises(ValueError, match="24 control steps at 10 Hz"):
        run_episode(policy, robot, LoopConfig(chunks="async"), clock=clock, thinker=thinker)
    assert robot.calls == ["hold"]


def test_an_unknown_way_is_refused():
    with pytest.raises(
        ValueError, match="chunks must be one of sync, async, rtc, auto, got 'both'"
    ):
        LoopConfig(chunks="both")
