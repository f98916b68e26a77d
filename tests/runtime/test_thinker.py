"""Whoever thinks takes messages in order, answers to one question each, and hides no error."""

import threading

import pytest

from runtime.control.clock import VirtualClock
from runtime.control.delay import Delay
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.thinker import InlineThinker, Observed, Started, Thought, ThreadThinker
from runtime.errors import EngineError, EpisodeError
from tests.runtime.stand_ins.pondering import PlacedRobot, PonderingPolicy

KINDS = ["inline", "thread"]
LONG_S = 30.0
"""For what comes at once unless something is broken."""


@pytest.fixture
def make(request):
    """Thinkers, closed in the end."""
    made = []

    def make(kind, policy, **options):
        clock = VirtualClock()
        kinds = {"inline": InlineThinker, "thread": ThreadThinker}
        made.append(kinds[kind](policy, clock, **options))
        made[-1].clock = clock
        return made[-1]

    yield make
    for thinker in made:
        thinker.close()


def begun(thinker, **given):
    thinker.start(seed=3, anchor_policy=None, **given)
    (event,) = thinker.wait()
    assert isinstance(event, Started)
    return thinker


def ask(thinker, number, place=0.0):
    thinker.ask(Observed(number, {"frame": None, "state": [place]}, 0.0, 0.0))


def hear(thinker, num):
    """So many events, waited for."""
    events = []
    while len(events) < num:
        events += thinker.wait()
    return events


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_carries_the_number_of_its_question(make, kind):
    thinker = begun(make(kind, PonderingPolicy()))
    ask(thinker, 5, 1.0)
    ask(thinker, 6, 2.0)
    thoughts = hear(thinker, 2)
    assert [thought.observed.number for thought in thoughts] == [5, 6]
    assert [thought.answer.actions[0, 0] for thought in thoughts] == [1.0, 2.0]
    assert thinker.poll() == []


@pytest.mark.parametrize("kind", KINDS)
def test_messages_take_effect_in_the_order_in_which_they_were_sent(make, kind):
    policy = PonderingPolicy()
    thinker = begun(make(kind, policy), first="frame", task="go")
    ask(thinker, 1)
    thinker.say("further")
    thinker.latch("first")
    ask(thinker, 2)
    thinker.reset()
    ask(thinker, 3)
    events = hear(thinker, 4)
    assert [type(event) for event in events] == [Thought, Thought, Started, Thought]
    told = [event.answer.actions[0, 2] for event in events if isinstance(event, Thought)]
    assert told == [0.0, 1.0, 0.0]
    assert policy.calls == [
        ("start", 3, ["first", "task"]),
        ("act", 0.0),
        ("latch", "first"),
        ("act", 0.0),
        ("start", 3, ["task"]),
        ("act", 0.0),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_out_as_it_was_and_thinking_goes_on(make, kind):
    policy, planted = PonderingPolicy(), EngineError("planted")
    thinker = begun(make(kind, policy))
    act, policy.act = policy.act, lambda *a, **b: (_ for _ in ()).throw(planted)
    with pytest.raises(EngineError) as caught:
        ask(thinker, 1)
        thinker.wait()
    assert caught.value is planted
    policy.act = act
    ask(thinker, 2)
    assert [thought.observed.number for thought in hear(thinker, 1)] == [2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_is_refused_is_an_error_too(make, kind):
    thinker = begun(make(kind, PonderingPolicy()))
    with pytest.raises(ValueError, match="nothing was said"):
        thinker.say("")
        ask(thinker, 1)
        thinker.wait()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("message", "words"),
    [
        (lambda thinker: thinker.reset(), "nothing to reset: start an episode first"),
        (lambda thinker: thinker.latch("first"), "no episode runs: start one first"),
    ],
)
def test_before_the_first_episode_there_is_nothing_to_tell(make, kind, message, words):
    thinker = make(kind, PonderingPolicy())
    message(thinker)
    with pytest.raises(EpisodeError, match=words):
        thinker.wait()


def test_nothing_is_waited_for_that_nobody_asked(make):
    with pytest.raises(EpisodeError, match="nothing was asked"):
        begun(make("inline", PonderingPolicy())).wait()


def test_a_reset_starts_with_an_anchor_policy_as_it_was_at_first(make):
    class Counting:
        seen = 0

    policy, seen = PonderingPolicy(), []
    start = policy.start

    def begin(*, anchor_policy, **given):
        seen.append(anchor_policy.seen)
        anchor_policy.seen += 1
        return start(**given)

    policy.start = begin
    thinker = make("inline", policy)
    thinker.start(seed=0, anchor_policy=Counting())
    thinker.reset()
    thinker.reset()
    assert len(thinker.poll()) == 3
    assert seen == [0, 0, 0]


def test_an_answer_comes_out_so_long_after_its_question_and_no_earlier(make):
    thinker = begun(make("inline", PonderingPolicy(), delay_s=0.25))
    ask(thinker, 1)
    thinker.clock.now = 0.2499
    assert thinker.poll() == []
    thinker.clock.now = 0.25
    assert len(thinker.poll()) == 1
    ask(thinker, 2)
    assert len(thinker.wait()) == 1
    assert thinker.clock.now == pytest.approx(0.5)


@pytest.mark.parametrize("delay_s", [-0.1, float("nan"), 3600])
def test_a_delay_that_cannot_be_is_refused(delay_s):
    with pytest.raises(ValueError, match=r"delay_s must be in \[0, 3600\)"):
        InlineThinker(PonderingPolicy(), VirtualClock(), delay_s)


class Gated(PonderingPolicy):
    """Thinks until the gate is opened, and says in which thread."""

    def __init__(self):
        super().__init__()
        self.thinks, self.gate, self.threads = threading.Event(), threading.Event(), []

    def start(self, **given):
        self.threads.append(threading.current_thread())
        return super().start(**given)

    def act(self, observation, *, at):
        self.threads.append(threading.current_thread())
        self.thinks.set()
        assert self.gate.wait(LONG_S)
        return super().act(observation, at=at)


def test_nobody_waits_for_a_thread_that_thinks(make):
    policy = Gated()
    thinker = begun(make("thread", policy))
    ask(thinker, 1)
    assert policy.thinks.wait(LONG_S)
    assert thinker.poll() == []
    policy.gate.set()
    assert [thought.observed.number for thought in hear(thinker, 1)] == [1]
    assert len(set(policy.threads)) == 1, "one thread owns the episode"
    assert threading.current_thread() not in policy.threads


def test_a_thread_ends_when_it_is_closed_and_leaves_unanswered_what_it_had_not_begun():
    policy = Gated()
    thinker = begun(ThreadThinker(policy, VirtualClock()))
    ask(thinker, 1)
    ask(thinker, 2)
    assert policy.thinks.wait(LONG_S)
    closing = threading.Thread(target=thinker.close)
    closing.start()
    while not thinker._is_closed:
        pass
    policy.gate.set()
    closing.join(LONG_S)
    assert not closing.is_alive()
    assert not policy.threads[0].is_alive()
    assert [call for call in policy.calls if call[0] == "act"] == [("act", 0.0)]


def test_a_thought_that_never_ends_is_an_error_of_the_end():
    policy = Gated()
    thinker = begun(ThreadThinker(policy, VirtualClock(), patience_s=0.01))
    ask(thinker, 1)
    assert policy.thinks.wait(LONG_S)
    with pytest.raises(EngineError, match=r"a thought goes on 0\.01 s after the episode ended"):
        thinker.close()
    policy.gate.set()
    policy.threads[0].join(LONG_S)


def test_an_error_that_nobody_heard_of_comes_with_the_end():
    policy = PonderingPolicy()
    thinker = begun(ThreadThinker(policy, VirtualClock()))
    thinker.say("")
    ask(thinker, 1)
    while len(policy.calls) < 2:
        pass
    with pytest.raises(ValueError, match="nothing was said"):
        thinker.close()


def test_the_loop_ticks_on_while_its_thread_thinks_and_ends_with_it():
    policy, robot, clock, ticks = Gated(), PlacedRobot(), VirtualClock(), []
    thinker, real = ThreadThinker(policy, clock), clock.sleep

    def sleep(seconds):
        real(seconds)
        ticks.append(seconds)
        if len(ticks) == 5:
            policy.gate.set()
            while thinker._events.empty():
                pass

    clock.sleep = sleep
    delay = Delay(median_s=0.1, largest_s=0.1, num_thoughts=1)
    config = LoopConfig(chunks="async", execute=2, max_steps=8)
    trace = run_episode(policy, robot, config, clock=clock, thinker=thinker, delay=delay)
    assert trace.num_waited == 5
    assert [step.action[:2].tolist() for step in trace.steps[:2]] == [[0, 0], [0, 1]]
    assert robot.calls[:2] == ["hold", "send"] and robot.calls[-1] == "hold"
    assert not policy.threads[0].is_alive()
