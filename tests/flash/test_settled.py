"""Looking on while a board settles: how long nobody may answer. On a clock that the test turns."""

import time

import pytest

from device_tests.errors import RemoteError
from export.release import flash
from export.release.board import StepFailed
from export.release.flash import settled

TRIAL = {"trial": {"release": "2-b"}, "within_s": 600.0}
CONFIRMED = {"trial": None, "current": "2-b", "status": {"ticks": 4}, "events": []}
RETURNED = CONFIRMED | {
    "current": "1-a",
    "events": [{"what": "returned", "release": "2-b", "why": "not healthy within 60 s"}],
}


@pytest.fixture
def clock(monkeypatch):
    """One that only sleeping and asking moves."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


class Told:
    """A board that gives these answers in turn, each after some seconds; None is no answer."""

    address = "robot@nowhere"

    def __init__(self, clock, answers):
        self.clock, self.answers = clock, iter(answers)

    def ask(self, verb, token):
        assert (verb, token) == ("status", "mine")
        answer, seconds = next(self.answers)
        self.clock[0] += seconds
        if answer is None:
            raise RemoteError("no route to host")
        return answer


@pytest.mark.parametrize("poll_s", [0.2, 10.0])
def test_a_board_that_is_not_heard_of_is_given_up_after_three_minutes(clock, poll_s):
    """However long it takes to find that nobody answers."""
    board = Told(clock, [(TRIAL, 100.0)] * 3 + [(None, poll_s)] * 1000)
    with pytest.raises(RemoteError, match="no route"):
        settled(board, "2-b", "mine")
    unheard = clock[0] - 1000.0 - 3 * 100.0 - 2 * flash.POLL_S
    assert 180.0 < unheard <= 180.0 + poll_s + 2 * flash.POLL_S


def test_a_board_that_answers_again_is_asked_on(clock):
    """Gone for nearly three minutes, twice, with one answer between: it boots."""
    gone = [(None, 9.0)] * 17
    board = Told(clock, [*gone, (TRIAL, 0.0), *gone, (CONFIRMED, 0.0)])
    assert settled(board, "2-b", "mine") == "confirmed after 4 good ticks"
    assert clock[0] > 1000.0 + 2 * 170.0


def test_a_trial_that_never_ends_is_not_waited_for_beyond_its_time(clock):
    board = Told(clock, [(TRIAL, 5.0)] * 1000)
    with pytest.raises(StepFailed, match="2-b is on trial for longer than 600 s; look there with"):
        settled(board, "2-b", "mine")
    assert 720.0 < clock[0] - 1000.0 < 735.0


def test_why_a_board_returned_is_told(clock):
    board = Told(clock, [(TRIAL, 0.1), (RETURNED, 0.1)])
    with pytest.raises(StepFailed, match="not confirmed: not healthy within 60 s; the board"):
        settled(board, "2-b", "mine")
