"""When each anchor policy asks for a new anchor."""

import copy

import numpy as np
import pytest

from runtime.anchor import (
    Every,
    First,
    Kinematic,
    Manual,
    Semantic,
    Tick,
    keeps_first,
    parse,
    parse_all,
)


def ticks(states, similarity=lambda: 1.0):
    for step, state in enumerate(states):
        yield Tick(step, step, {"state": np.asarray(state, np.float32)}, similarity)


def answers(policy, states, **kwargs):
    return [policy.wants(tick) for tick in ticks(states, **kwargs)]


def path(*positions, gripper=None):
    """States of a one-dimensional path, gripper last."""
    grippers = gripper or [0.0] * len(positions)
    return [[p, 0, 0, 0, 0, 0, g] for p, g in zip(positions, grippers, strict=True)]


def test_first_and_manual_never_ask():
    states = path(0, 1, -1, 5)
    assert answers(First(), states) == [False] * 4
    assert answers(Manual(), states) == [False] * 4


def test_every_counts_from_the_last_anchor():
    policy = Every(3)
    wants = [policy.wants(Tick(s, s % 4, {}, float)) for s in range(8)]
    assert wants == [False, False, False, True] * 2


def test_kinematic_asks_when_the_gripper_moves():
    states = path(0, 0, 0, gripper=[0.0, 0.05, 0.3])
    assert answers(Kinematic(), states) == [False, False, True]


def test_kinematic_looks_at_the_gripper_in_both_directions_and_beyond_its_bound_only():
    policy = Kinematic(gripper_change=0.25)
    states = path(0, 0, 0, 0, 0, gripper=[0.5, 0.25, 0.75, 0.5, 0.125])
    assert answers(policy, states) == [False, False, True, False, True]


def test_kinematic_measures_the_slow_step_over_six_states_and_not_the_gripper():
    def state(*first_six, gripper):
        return [*first_six, 0.0, gripper]  # eight states: the seventh is no part of the arm

    there = [state(0, 0, 0, 0, 0, 0, gripper=g) for g in (0.0, 0.05)]
    back = state(0, 0, 0, 0, 0, -0.1, gripper=0.1)
    turn = state(0, 0, 0, 0, 0, -0.05, gripper=0.05)
    assert answers(Kinematic(), [*there, back, turn]) == [False, False, False, True]
    far = [state(3, 0, 0, 0, 4, 0, gripper=0), state(0, 0, 0, 0, 0, 0, gripper=0)]
    near = [state(0, 0, 0, 0, 0, 0, gripper=0), *far]
    assert not any(answers(Kinematic(slow_step=5.0), near)), "a step of 5 is not below 5"
    assert answers(Kinematic(slow_step=5.1), near)[2]


def test_kinematic_needs_a_reversal_not_a_turn_by_a_right_angle():
    states = [[x, y, 0, 0, 0, 0, 0] for x, y in [(0, 0), (0.1, 0), (0.1, 0.1), (0.2, 0.2)]]
    assert not any(answers(Kinematic(), states))


def test_kinematic_keeps_no_array_of_the_caller():
    policy, state = Kinematic(), np.zeros(7, np.float32)
    policy.wants(Tick(0, 0, {"state": state}, float))
    state[6] = 1.0
    assert policy.wants(Tick(1, 1, {"state": state.copy()}, float))


def test_semantic_asks_below_its_threshold_only():
    assert answers(Semantic(0.5), path(0, 0), similarity=lambda: 0.5) == [False, False]
    assert Semantic() == Semantic(0.2)
    assert (Kinematic().gripper_change, Kinematic().slow_step) == (0.1, 0.2)


def test_semantic_pays_for_no_similarity_at_the_anchor_itself():
    def similarity():
        raise AssertionError("the frame is the anchor")

    assert answers(Semantic(), path(0), similarity=similarity) == [False]


def test_kinematic_asks_one_tick_after_a_slow_reversal():
    assert answers(Kinematic(), path(0, 0.1, 0.05, 0.0)) == [False, False, True, False]


def test_kinematic_ignores_a_fast_reversal():
    assert not any(answers(Kinematic(), path(0, 1, 0, 1)))


def test_kinematic_forgets_the_last_episode():
    policy = Kinematic()
    answers(policy, path(0, 0.1))
    assert answers(policy, path(9, 9.05))[0] is False


def test_semantic_asks_below_its_threshold_and_not_at_the_anchor_itself():
    assert answers(Semantic(0.2), path(0, 0), similarity=lambda: 0.1) == [False, True]
    assert answers(Semantic(0.2), path(0, 0), similarity=lambda: 0.3) == [False, False]


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("first", First()),
        ("manual", Manual()),
        ("every(4)", Every(4)),
        ("kinematic", Kinematic()),
        ("semantic", Semantic()),
    ],
)
def test_every_policy_has_a_name(name, policy):
    assert parse(name) == policy


@pytest.mark.parametrize("name", ["every", "every(0)", "every(x)", "last", ""])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"unknown anchor policy|needs k >= 1"):
        parse(name)


def test_words_of_the_command_line_are_of_the_only_latch_or_of_each_by_name():
    assert parse_all([]) is None
    assert parse_all(["every(3)"]) == Every(3)
    both = parse_all(["left=semantic", "right=every(2)"])
    assert both == {"left": Semantic(), "right": Every(2)}
    assert parse_all(["left=first"]) == {"left": First()}


@pytest.mark.parametrize(
    "words", [["first", "every(2)"], ["a=first", "every(2)"], ["a=first", "a=first"], ["=first"]]
)
def test_words_that_do_not_say_which_latch_is_meant_are_refused(words):
    with pytest.raises(ValueError, match="name the latch of each, once: --anchor NAME=POLICY"):
        parse_all(words)


@pytest.mark.parametrize("words", [["last"], ["a=last"], ["a=first", "b="]])
def test_words_that_name_no_policy_are_refused(words):
    with pytest.raises(ValueError, match="unknown anchor policy"):
        parse_all(words)


def test_latches_keep_their_first_value_unless_one_of_them_has_a_policy_that_does_not():
    assert keeps_first(None) and keeps_first(First()) and keeps_first({"a": Manual()})
    assert not keeps_first(Every(2)) and not keeps_first({"a": First(), "b": Every(2)})


@pytest.mark.parametrize("anchor_policy", [First(), Manual(), Every(3), Semantic(0.4)])
def test_a_policy_that_keeps_nothing_is_its_own_copy(anchor_policy):
    assert copy.deepcopy(anchor_policy) is anchor_policy


def test_a_policy_that_keeps_something_is_copied_with_it():
    kinematic = Kinematic()
    kinematic.wants(Tick(0, 0, {"state": np.zeros(7, np.float32)}, lambda: 1.0))
    other = copy.deepcopy(kinematic)
    other.wants(Tick(1, 1, {"state": np.ones(7, np.float32)}, lambda: 1.0))
    # Both see the same next state: a closing gripper only for the one that saw it open.
    closing = Tick(2, 2, {"state": np.ones(7, np.float32)}, lambda: 1.0)
    assert (kinematic.wants(closing), other.wants(closing)) == (True, False)
