"""A camera's process is kept going: started again, killed where it hangs, never twice at a time."""

import pytest

from runtime.robots.cameras.camera import (
    FIRST_WAIT_S,
    HANGS_S,
    LOADS_S,
    LONGEST_WAIT_S,
    OPENS_S,
    OVER,
    UNUSABLE,
    Keeper,
)
from runtime.robots.cameras.process import LOST
from runtime.robots.cameras.process import OVER as PROCESS_OVER
from runtime.robots.cameras.process import UNUSABLE as PROCESS_UNUSABLE

STEP_S = 1 / 16
"""Between two looks; sums of it are exact."""


class World:
    """Processes that do what a test says, on a clock of its own."""

    def __init__(self):
        self.now, self.alive_at, self.num_frames = 0.0, 0.0, 0
        self.started_at, self.killed_at = [], []
        self.code, self.dies_when_killed, self.may_start = None, True, True
        self.keeper = Keeper(self.launch, lambda: self.alive_at, lambda: self.num_frames)

    def launch(self):
        assert self.code is not None or not self.started_at, "two at a time"
        if not self.may_start:
            raise OSError("no memory")
        self.started_at.append(self.now)
        self.code = None
        return self

    def poll(self):
        return self.code

    def kill(self):
        self.killed_at.append(self.now)
        if self.dies_when_killed:
            self.code = -9

    def run(self, seconds, *, beats=False, shows=False):
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            if self.code is None and self.started_at:
                self.alive_at = self.now if beats else self.alive_at
                self.num_frames += shows
            self.keeper.look(self.now)


def test_a_process_that_ended_after_frames_is_started_again_at_once():
    world = World()
    world.run(5, beats=True, shows=True)
    for code in (-9, LOST, -11):
        world.code = code
        died_at = world.now
        world.run(3, beats=True, shows=True)
        assert world.started_at[-1] - died_at <= 2 * STEP_S
    assert len(world.started_at) == 4 and world.keeper.num_hung == 0


def test_one_that_never_shows_anything_is_tried_less_and_less_often():
    world = World()
    for _ in range(400):
        world.run(STEP_S)
        world.code = LOST
    waits = [b - a for a, b in zip(world.started_at, world.started_at[1:], strict=False)]
    assert waits[0] <= FIRST_WAIT_S + 2 * STEP_S
    assert waits == sorted(waits)
    assert LONGEST_WAIT_S <= waits[-1] <= LONGEST_WAIT_S + 2 * STEP_S
    # Once there was a frame, it is quick again.
    world.run(4, beats=True, shows=True)
    world.code = LOST
    died_at = world.now
    world.run(1)
    assert world.started_at[-1] - died_at <= 2 * STEP_S


@pytest.mark.parametrize(
    ("doing", "patience_s"),
    [({}, LOADS_S), ({"beats": True}, OPENS_S), ({"beats": True, "shows": True}, HANGS_S)],
    ids=["loads", "opens", "streams"],
)
def test_one_that_hangs_is_killed_and_replaced(doing, patience_s):
    world = World()
    world.run(STEP_S)
    world.run(1, **doing)
    since = world.now if doing else world.started_at[0]
    world.run(patience_s + 1)
    assert len(world.killed_at) == 1
    assert patience_s <= world.killed_at[0] - since <= patience_s + 2 * STEP_S
    assert len(world.started_at) == 2 and world.keeper.num_hung == 1


def test_one_that_beats_is_left_alone():
    world = World()
    world.run(STEP_S)
    world.run(100, beats=True)
    assert (world.killed_at, len(world.started_at)) == ([], 1)


def test_no_second_one_is_started_while_the_first_does_not_die():
    """A process in the kernel's hands cannot be killed; `launch` refuses two at a time."""
    world = World()
    world.dies_when_killed = False
    world.run(2, beats=True, shows=True)
    world.run(60)
    assert (len(world.started_at), len(world.killed_at)) == (1, 1)
    world.code = -9
    world.run(1)
    assert len(world.started_at) == 2


@pytest.mark.parametrize("code", [OVER, UNUSABLE])
def test_what_is_over_or_of_no_use_is_not_started_again(code):
    world = World()
    world.run(1, beats=True, shows=True)
    world.code = code
    world.run(60)
    assert len(world.started_at) == 1 and world.keeper.is_final


def test_a_process_that_cannot_be_started_is_tried_again():
    world = World()
    world.may_start = False
    world.run(10)
    world.may_start = True
    world.run(LONGEST_WAIT_S + 1)
    assert len(world.started_at) == 1 and not world.keeper.is_final


def test_both_sides_mean_the_same_by_exit_codes():
    assert (OVER, UNUSABLE) == (PROCESS_OVER, PROCESS_UNUSABLE)
    assert len({OVER, UNUSABLE, LOST}) == 3 and 1 not in (OVER, UNUSABLE)
