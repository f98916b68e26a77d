"""When each anchor policy asks for a new anchor."""

import numpy as np
import pytest

from runtime.anchor import Every, First, Kinematic, Manual, Semantic, Tick, parse


def ticks(states, similarity=lambda: 1.0):
    for step, state in enumerate(states):
        yield Tick(step, step, np.asarray(state, np.float32), similarity)


def answers(policy, states, **kwargs):
    return [policy.wants(tick) for tick in ticks(states, **kwargs)]


def path(*positions, gripper=None):
    """States of a one-dimensional path, gripper last."""
    grippers = gripper or [0.0] * len(positions)
    return [[p, 0, 0, 0, 0, 0, g] for p, g in zip(positions, grippers, strict=True)]


def test_first_and_manual_never_ask():
    states = path(0, 1, -1, 5)
    assert not any(answers(First(), states))
    assert not any(answers(Manual(), states))


def test_every_counts_from_the_last_anchor():
    policy = Every(3)
    wants = [policy.wants(Tick(s, s % 4, np.zeros(7, np.float32), float)) for s in range(8)]
    assert wants == [False, False, False, True] * 2


def test_kinematic_asks_when_the_gripper_moves():
    states = path(0, 0, 0, gripper=[0.0, 0.05, 0.3])
    assert answers(Kinematic(), states) == [False, False, True]


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


@pytest.mark.parametrize("name", ["first", "manual", "every(4)", "kinematic", "semantic"])
def test_every_policy_has_a_name(name):
    assert parse(name) is not None


@pytest.mark.parametrize("name", ["every", "every(0)", "every(x)", "last", ""])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"unknown anchor policy|needs k >= 1"):
        parse(name)
