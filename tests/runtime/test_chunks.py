"""The executor says which action of which chunk is due, and what its age has overtaken."""

import math
import random

import numpy as np
import pytest

from runtime.control.chunks import ChunkExecutor, Question
from runtime.errors import EngineError

T = 6


def chunk(step, horizon=T):
    """Actions that say for which step they were observed and which of the chunk they are."""
    return np.array([[step, index] for index in range(horizon)], np.float32)


def say(action_A):
    return None if action_A is None else tuple(int(value) for value in action_A)


def made(execute=T, horizon=T):
    return ChunkExecutor((horizon, 2), execute=execute)


def answered(executor, step):
    """Ask at a step and answer at once."""
    assert executor.answer(executor.ask(step).number, chunk(step))


def test_answered_at_once_chunks_are_carried_out_from_their_first_action():
    executor, due = made(execute=4), []
    for step in range(10):
        if executor.wants(step):
            answered(executor, step)
        due.append(say(executor.action(step)))
    assert due == [(step // 4 * 4, step % 4) for step in range(10)]
    assert executor.num_overtaken == 0


def test_a_late_chunk_begins_with_the_action_for_this_moment_and_counts_what_it_overtook():
    executor = made(execute=2)
    answered(executor, 0)
    due = [say(executor.action(step)) for step in (0, 1)]
    assert executor.wants(2)
    question = executor.ask(2)
    due += [say(executor.action(step)) for step in (2, 3, 4)]
    assert not executor.wants(4), "one question at a time"
    assert executor.answer(question.number, chunk(2))
    due.append(say(executor.action(5)))
    assert due == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (2, 3)]
    assert executor.num_overtaken == 3


def test_a_robot_that_has_not_moved_yet_skips_no_action_however_long_the_first_answer_took():
    executor = made()
    question = executor.ask(0)
    assert [executor.action(step) for step in range(4)] == [None] * 4
    assert executor.answer(question.number, chunk(0))
    assert [say(executor.action(step)) for step in (4, 5)] == [(0, 0), (0, 1)]
    assert executor.num_overtaken == 0


def test_a_robot_that_held_goes_on_with_the_action_it_waited_for():
    executor = made(horizon=T)
    answered(executor, 0)
    executor.action(0)
    question = executor.ask(4)  # the ticks of steps 1 to 3 were dropped
    due = [say(executor.action(step)) for step in (4, 5, 6, 7)]
    assert due == [(0, 4), (0, 5), None, None]
    assert executor.answer(question.number, chunk(4))
    assert say(executor.action(8)) == (4, 2), "two were carried out since it looked, two held"


@pytest.mark.parametrize(("execute", "delay"), [(3, 3), (5, 1), (2, 2), (1, 3), (4, 2)])
def test_after_its_first_wait_a_robot_never_stops_where_chunks_last_for_the_delay(execute, delay):
    """T = 6 is the larger of execute and delay, and the delay again, or more."""
    executor, question, due_at, due = made(execute), None, 0, []
    for step in range(40):
        if question is not None and step == due_at:
            executor.answer(question.number, chunk(question.step))
        if executor.wants(step):
            question, due_at = executor.ask(step), step + delay
        due.append(say(executor.action(step)))
    assert [action is None for action in due] == [step < delay for step in range(40)]


def test_actions_of_dropped_steps_are_overtaken():
    executor = made()
    answered(executor, 0)
    assert [say(executor.action(step)) for step in (0, 3)] == [(0, 0), (0, 3)]
    assert executor.num_overtaken == 2


def test_a_chunk_is_valid_for_its_horizon_and_no_longer_even_where_the_robot_held():
    executor = made()
    question = executor.ask(0)
    for step in range(T - 1):
        assert executor.action(step) is None
    assert executor.answer(question.number, chunk(0))
    assert say(executor.action(T - 1)) == (0, 0)
    assert executor.wants(T), "what is left of it is too old"
    assert executor.action(T) is None
    assert executor.num_overtaken == T - 1


def test_a_chunk_that_is_too_old_when_it_comes_is_dropped_whole():
    executor = made()
    question = executor.ask(0)
    executor.action(0)
    assert executor.answer(question.number, chunk(0))
    assert executor.action(T) is None
    assert executor.num_overtaken == T
    answered(executor, T + 1)
    assert say(executor.action(T + 1)) == (T + 1, 0)


def test_an_exhausted_chunk_gives_nothing_and_never_its_last_action_again():
    executor = made()
    answered(executor, 0)
    due = [say(executor.action(step)) for step in range(T + 2)]
    assert due == [(0, index) for index in range(T)] + [None, None]
    assert executor.num_overtaken == 0
    assert executor.wants(T + 2)


def test_only_the_last_question_has_an_answer():
    executor = made()
    old, new = executor.ask(0), executor.ask(0)
    assert not executor.answer(old.number, chunk(77))
    assert executor.is_waiting and executor.action(0) is None
    assert executor.answer(new.number, chunk(0))
    assert not executor.answer(new.number, chunk(78)), "answered already"
    assert say(executor.action(1)) == (0, 0)
    assert executor.num_stale == 2


def test_a_reset_forgets_the_chunk_and_the_question():
    executor = made(execute=1)
    answered(executor, 0)
    executor.action(0)
    question = executor.ask(1)
    executor.reset()
    assert executor.action(1) is None
    assert not executor.answer(question.number, chunk(1))
    assert executor.wants(2) and executor.num_stale == 1
    again = executor.ask(2)
    assert again.number not in (question.number, 1)


def test_a_question_carries_what_will_be_carried_out_until_its_answer():
    executor = made(execute=2)
    executor.expect(3)
    first = executor.ask(0)
    assert first.ahead_RA.shape == first.committed_DA.shape == (0, 2)
    executor.answer(first.number, chunk(0))
    due = [say(executor.action(step)) for step in (0, 1)]
    question = executor.ask(2)
    assert question.step == 2
    assert question.ahead_RA.tolist() == [[0, 2], [0, 3], [0, 4], [0, 5]]
    due += [say(executor.action(step)) for step in (2, 3, 4)]
    assert [tuple(row) for row in question.committed_DA.astype(int).tolist()] == due[2:]
    with pytest.raises(ValueError, match="read-only"):
        question.ahead_RA[0, 0] = 1.0


@pytest.mark.parametrize(("left", "committed"), [(4, 3), (4, 0), (4, 4), (1, 1), (0, 0)])
def test_a_leftover_weighs_what_is_committed_whole_and_the_rest_less_and_less(left, committed):
    """By the paper's equation 5, in its own letters: H is the horizon, s is carried out already."""
    ahead_RA = np.arange(2.0 * left, dtype=np.float32).reshape(left, 2) + 5
    leftover = Question(1, 0, ahead_RA, committed).leftover(T)
    d, H, s = committed, T, T - left
    weights = []
    for i in range(H):
        c = (H - s - i) / (H - s - d + 1)
        soft = c * (math.exp(c) - 1) / (math.e - 1) if i < H - s else 0.0
        weights.append(1.0 if i < d else soft)
    assert leftover.dtype == np.float32 and leftover.shape == (T, 3)
    assert leftover[:, 0] == pytest.approx(weights, abs=1e-7)
    assert leftover[:left, 1:].tobytes() == ahead_RA.tobytes() and not leftover[left:].any()
    assert (np.diff(leftover[:, 0]) <= 0).all() and (leftover[committed:, 0] < 1).all()


def test_no_more_is_committed_than_is_left():
    executor = made()
    executor.expect(4)
    answered(executor, 0)
    for step in range(4):
        executor.action(step)
    assert executor.ask(4).committed_DA.tolist() == [[0, 4], [0, 5]]


def test_a_chunk_that_was_held_up_commits_only_what_stays_valid():
    executor = made()
    question = executor.ask(0)
    for step in range(3):
        executor.action(step)
    executor.answer(question.number, chunk(0))
    executor.expect(T)
    executor.action(3)
    assert executor.ask(4).committed_DA.tolist() == [[0, 1], [0, 2]], "steps 4 and 5"


def after(executor, step, delays):
    """The next question and its step, behind some whose answers took so many steps each."""
    for delay in delays:
        question = executor.ask(step)
        for _ in range(delay):
            executor.action(step)
            step += 1
        executor.answer(question.number, chunk(question.step, 20))
        executor.action(step)
        step += 1
    return executor.ask(step), step


def test_as_much_is_committed_as_the_slowest_of_the_last_ten_answers_took():
    executor = made(horizon=20)
    executor.expect(7)
    question, step = after(executor, 0, [0, 4])
    assert question.num_committed == 7
    question, step = after(executor, step, [2] * 8)
    assert question.num_committed == 4, "what was expected is forgotten"
    question, step = after(executor, step, [2])
    assert question.num_committed == 4
    question, step = after(executor, step, [2])
    assert question.num_committed == 2


def test_the_wait_before_the_first_action_is_no_delay():
    executor = made(horizon=20)
    question = executor.ask(0)
    for step in range(9):
        executor.action(step)
    executor.answer(question.number, chunk(0, 20))
    executor.action(9)
    assert executor.ask(10).num_committed == 0


def test_more_actions_than_a_chunk_holds_are_refused():
    with pytest.raises(ValueError, match="execute=7, but a chunk of this policy has 6 actions"):
        made(execute=7)


def test_steps_go_forward():
    executor = made()
    executor.action(3)
    with pytest.raises(ValueError, match="control steps go forward, got 3 after 3"):
        executor.action(3)


@pytest.mark.parametrize("shape", [(T - 1, 2), (T, 3), (T,), (T, 2, 1)])
def test_a_chunk_of_another_shape_is_refused_and_nothing_of_it_used(shape):
    executor = made()
    question = executor.ask(0)
    with pytest.raises(EngineError, match=r"answered with actions .*, and declares \[6, 2\]"):
        executor.answer(question.number, np.zeros(shape, np.float32))
    assert executor.action(0) is None


def test_any_schedule_agrees_with_one_that_remembers_every_step():
    """The oracle keeps no sums: it looks up, for every action, what happened since the chunk was
    observed, and adds up in the end what every chunk never gave."""
    chance = random.Random(0)
    for _ in range(400):
        horizon, execute = 8, chance.randint(1, 8)
        executor = made(execute, horizon)
        held: dict[int, bool] = {}  # by step; a dropped one is as the one before it
        playing, asked_at, question, due_at, step = None, None, None, 0, 0
        given, expected = list[tuple[int, int]](), list[tuple[int, int]]()
        overtaken, upcoming = 0, 0
        for _ in range(60):
            if question is not None and step >= due_at:
                assert executor.answer(question.number, chunk(asked_at, horizon))
                playing, question, upcoming = asked_at, None, 0
            if executor.wants(step):
                question, asked_at = executor.ask(step), step
                due_at = step + chance.choice([0, 1, 2, 3, 9])
            action = say(executor.action(step))
            want = None
            if playing is not None and step - playing < horizon:
                index = sum(not held[s] for s in range(playing, step))
                want, overtaken, upcoming = (
                    (playing, index),
                    overtaken + index - upcoming,
                    index + 1,
                )
            elif playing is not None:
                overtaken, playing = overtaken + horizon - upcoming, None
            given.append(action)
            expected.append(want)
            missed = chance.choice([0, 0, 0, 0, 1, 3])
            held |= dict.fromkeys(range(step, step + 1 + missed), want is None)
            step += 1 + missed
        assert given == expected
        assert executor.num_overtaken == overtaken
        assert executor.num_stale == 0


def test_a_question_whose_answer_cannot_be_used_is_given_up_and_the_chunk_goes_on():
    executor = ChunkExecutor((6, 1), execute=2)
    chunk_TA = np.arange(6, dtype=np.float32)[:, None]
    assert executor.answer(executor.ask(0).number, chunk_TA)
    assert [float(executor.action(step)[0]) for step in (0, 1)] == [0.0, 1.0]
    number = executor.ask(2).number
    executor.refuse(number - 1)
    assert executor.asked(number) and executor.is_waiting, "another question is not given up"
    executor.refuse(number)
    assert not executor.asked(number) and not executor.is_waiting
    assert not executor.answer(number, chunk_TA) and executor.num_stale == 1
    assert [float(executor.action(step)[0]) for step in (2, 3)] == [2.0, 3.0]
    assert executor.wants(4)


def test_who_is_in_a_hurry_waits_for_the_answer_and_asks_once():
    executor = ChunkExecutor((6, 1), execute=5)
    number = executor.ask(0).number
    executor.hurry()
    assert not executor.wants(1), "one question at a time"
    executor.answer(number, np.zeros((6, 1), np.float32))
    executor.action(1)
    assert executor.wants(2)
    executor.answer(executor.ask(2).number, np.zeros((6, 1), np.float32))
    assert not executor.wants(3)
