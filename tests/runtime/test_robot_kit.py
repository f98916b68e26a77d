"""The kit that checks a robot: ours keep every promise, and each promise catches who breaks it."""

import numpy as np
import pytest

import runtime
from device_tests.measure.scene import Scene, SceneRobot
from models.demo import EPISODES
from runtime.errors import RobotError
from runtime.recordings.recording import Recording, Stream, load_recording
from runtime.robots import testing
from runtime.robots.metaworld import MetaWorldRobot
from runtime.robots.replay import ReplayedRobot
from runtime.robots.robot import Limits, Observation, Sensor, check_action
from runtime.robots.testing import PROMISES, NonConforming, check_robot

LIMITS = Limits(np.array([-1, -np.inf]), np.array([1, np.inf]), ("m", "m"), ("x", "y"))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """For the worlds of this file, which stand still or go on at every look."""
    monkeypatch.setattr(testing, "LOOK_AGAIN_S", 0.0)


class Cart:
    """Keeps every promise: moves in a plane, sees where it is, and is done after four actions."""

    instruction = "go"
    inputs = {
        "frame": Sensor("image", (2, 2, 3), "uint8"),
        "state": Sensor("vector", (2,), "float32"),
    }
    limits = LIMITS
    success: bool | None = None

    def __init__(self):
        self.place, self.num_steps, self.running = np.zeros(2, np.float32), 0, False

    def reset(self):
        self.place, self.num_steps, self.running = np.zeros(2, np.float32), 0, True
        return self.observe()

    def observe(self):
        self.require_reset()
        values = {"frame": self.picture(), "state": self.place.copy()}
        return Observation(values, dict.fromkeys(values, self.now()), {"frame": self.num_steps})

    def send(self, action_A):
        self.require_reset()
        if self.done:
            raise RobotError("done: call reset()")
        check_action(action_A, 2)
        return self.move(action_A)

    def move(self, action_A):
        sent_A = np.clip(action_A, self.limits.low, self.limits.high)
        self.place = self.place + sent_A + np.float32(0.5)
        self.num_steps += 1
        return sent_A

    def hold(self):
        self.require_reset()

    @property
    def done(self):
        return self.num_steps >= 4

    def close(self):
        self.running = False

    def picture(self):
        return np.full((2, 2, 3), self.num_steps, np.uint8)

    def now(self):
        return float(self.num_steps)

    def require_reset(self):
        if not self.running:
            raise RobotError("call reset() first")


def replayed():
    return ReplayedRobot(load_recording(EPISODES / "touch-red-1.npz"))


def replayed_with_one_picture_twice():
    values = np.zeros((3, 4, 4, 3), np.uint8)
    camera = Stream(values=values, at_s=np.array([0.0, 0, 1]), frame_ids=np.array([3, 3, 4]))
    recording = Recording(
        instruction="a", task="", seed=0, rate_hz=1.0, streams={"top": camera}, success=False
    )
    return ReplayedRobot(recording, num_actions=2)


class GoesOn(Cart):
    """A live one: at every look it is later, with a new picture."""

    looks = 0

    def observe(self):
        self.looks += 1
        seen = super().observe()
        values = {**seen.values, "frame": np.full((2, 2, 3), self.looks % 256, np.uint8)}
        return Observation(values, dict.fromkeys(values, float(self.looks)), {"frame": self.looks})


@pytest.mark.parametrize("make", [Cart, GoesOn, replayed, replayed_with_one_picture_twice])
def test_a_robot_that_keeps_every_promise_passes(make):
    check_robot(make)


def test_the_simulated_robot_passes_whose_anchor_shows_more_than_the_rest(simulator):
    check_robot(lambda: MetaWorldRobot(task="reach", seed=0, image_size=32, max_steps=8))


def test_the_robot_of_the_device_tests_which_never_ends_passes(policy):
    scene = Scene(policy)
    check_robot(lambda: SceneRobot(scene, policy.chunk_shape[1]))


class Silent(Cart):
    instruction = ""


class WithoutInputs(Cart):
    inputs = {"frame": (2, 2, 3)}


class Eager(Cart):
    """Moves whether an episode runs or not."""

    def require_reset(self):
        pass


class AnotherShape(Cart):
    def picture(self):
        return np.full((4, 4, 3), self.num_steps, np.uint8)


class Nameless(Cart):
    """Shows more than it declares."""

    def observe(self):
        seen = super().observe()
        return Observation({**seen.values, "x": np.zeros(1)}, {**seen.at, "x": 0.0}, seen.frame_ids)


class Broken(Cart):
    """Its encoder answers with NaN after a while."""

    def observe(self):
        if self.num_steps > 2:
            self.place = np.full(2, np.nan, np.float32)
        return super().observe()


class Live(Cart):
    """Shows a new picture at every look."""

    looks = 0

    def picture(self):
        self.looks += 1
        return np.full((2, 2, 3), self.looks, np.uint8)

    def observe(self):
        seen = super().observe()
        return Observation(seen.values, seen.at, {"frame": self.looks})


class LiveInPart(GoesOn):
    """Shows a newer picture beside a state that changes without a newer stamp."""

    def observe(self):
        seen = super().observe()
        state = np.full(2, self.looks, np.float32)
        return Observation(
            {**seen.values, "state": state}, {**seen.at, "state": 0.0}, seen.frame_ids
        )


class Restless(Cart):
    """Numbers every look, though the picture is the same."""

    looks = 0

    def observe(self):
        self.looks += 1
        seen = super().observe()
        return Observation(seen.values, seen.at, {"frame": self.looks})


class OneBuffer(Cart):
    """Its camera writes every picture into the same array."""

    def __init__(self):
        super().__init__()
        self.buffer = np.zeros((2, 2, 3), np.uint8)

    def picture(self):
        self.buffer[:] = self.num_steps
        return self.buffer


class BackInTime(Cart):
    def now(self):
        return float(self.num_steps if self.num_steps < 3 else 1)


class Timeless(Cart):
    def now(self):
        return float("nan") if self.num_steps == 2 else 0.0


class OneNumber(Cart):
    """Never counts its pictures."""

    def observe(self):
        seen = super().observe()
        return Observation(seen.values, seen.at, {"frame": 0})


class NoNumber(Cart):
    def observe(self):
        seen = super().observe()
        return Observation(seen.values, seen.at)


class Unchecked(Cart):
    """Takes any action; the arithmetic of numpy does the rest."""

    def send(self, action_A):
        self.require_reset()
        if self.done:
            raise RobotError("done: call reset()")
        return self.move(action_A)


class Asserting(Cart):
    """Refuses with an error of another kind."""

    def send(self, action_A):
        assert action_A.dtype == np.float32 and action_A.shape == (2,)
        return super().send(action_A)


class MovesFirst(Cart):
    """Looks at the action when the arm has moved already."""

    def send(self, action_A):
        self.require_reset()
        if not self.done:
            self.num_steps += 1
        return super().send(action_A)


class Unlimited(Cart):
    def move(self, action_A):
        super().move(action_A)
        return action_A.copy()


class BelowOnly(Cart):
    """Forgets its upper limit."""

    def move(self, action_A):
        super().move(action_A)
        return np.maximum(action_A, self.limits.low)


class Mute(Cart):
    def move(self, action_A):
        super().move(action_A)


class Passing(Cart):
    """Returns the array it was given."""

    def move(self, action_A):
        super().move(action_A)
        return action_A


class InPlace(Cart):
    """Works in the caller's array."""

    def move(self, action_A):
        action_A += 1
        return super().move(action_A)


class Keeping(Cart):
    """Keeps the caller's array."""

    def move(self, action_A):
        self.last = action_A
        return super().move(action_A)


class KeepingWhatItReturned(Cart):
    def move(self, action_A):
        self.place = super().move(action_A) + np.float32(1)
        return self.place


class HoldsOnce(Cart):
    held = False

    def hold(self):
        if self.held:
            raise RobotError("holding already")
        self.held = True


class HoldsByMoving(Cart):
    def hold(self):
        self.move(np.zeros(2, np.float32))


class EndsByHolding(Cart):
    def hold(self):
        super().hold()
        self.num_steps = 4

    def picture(self):
        return np.zeros((2, 2, 3), np.uint8)

    def now(self):
        return 0.0

    def observe(self):
        seen = super().observe()
        return Observation(seen.values, seen.at, {"frame": 0})


class HoldsUntilDone(Cart):
    def hold(self):
        super().hold()
        if self.done:
            raise RobotError("the episode is over")


class Endless(Cart):
    """Goes on once done."""

    def send(self, action_A):
        self.require_reset()
        check_action(action_A, 2)
        return self.move(action_A)


class OneEpisode(Cart):
    def reset(self):
        steps = self.num_steps
        super().reset()
        self.num_steps = steps
        return self.observe()


class OneReset(Cart):
    def reset(self):
        if self.running and not self.done:
            raise RobotError("reset twice")
        return super().reset()


class Undecided(Cart):
    success = "perhaps"  # type: ignore[assignment]


class ClosesOnce(Cart):
    def close(self):
        if not self.running and self.num_steps == 0:
            raise RobotError("closed already")
        super().close()
        self.num_steps = 0


class NeverClosed(Cart):
    def close(self):
        pass


BROKEN = {
    Silent: ("declares instruction", "instruction is '', expected a text"),
    WithoutInputs: ("declares instruction", "expected a Sensor for each name"),
    Eager: ("before the first reset", "observe before the first reset was done, expected RobotErr"),
    AnotherShape: ("is what inputs declare", r"frame is uint8 \[4, 4, 3\], .* uint8 \[2, 2, 3\]"),
    Nameless: ("is what inputs declare", r"it shows \['frame', 'state', 'x'\], inputs declares"),
    Broken: ("is what inputs declare", r"state is \[nan, nan\], expected finite numbers"),
    Live: ("until the next send, or newer", "frame differs between two calls of observe"),
    LiveInPart: ("until the next send, or newer", "state differs between two calls of observe"),
    Restless: ("until the next send, or newer", "a frame id differs between two calls"),
    OneBuffer: ("an observation stays", "frame of an observation was written into after it was"),
    BackInTime: ("stamps never go backwards", "frame is stamped 1.0 s after 2.0 s"),
    Timeless: ("stamps never go backwards", "frame is stamped nan s, expected a finite time"),
    OneNumber: ("one frame id is one picture", "two pictures of frame have the frame id 0"),
    NoNumber: ("one frame id is one picture", "frame has no frame id"),
    Unchecked: ("send refuses", r"send of float32 \[1, 2\] was done|send of float32 \[3\] raised"),
    Asserting: ("send refuses", r"of float32 \[3\] raised AssertionError .*expected ValueError"),
    MovesFirst: ("send refuses", r"frame changed though send refused float32 \[3\]"),
    Unlimited: ("within the limits", r"\[2.0, 0.0\] was sent as \[2.0, 0.0\]"),
    BelowOnly: ("within the limits", r"\[2.0, 0.0\] was sent as \[2.0, 0.0\]"),
    Mute: ("within the limits", r"send returned None, expected what was sent, \[2\]"),
    Passing: ("leaves the caller's array alone", "is the caller's own array, expected a copy"),
    InPlace: ("leaves the caller's array alone", "send changed the caller's array"),
    Keeping: ("leaves the caller's array alone", "keeps the caller's array, expected a copy"),
    KeepingWhatItReturned: ("leaves the caller's array alone", "what send returned changes state"),
    HoldsOnce: ("hold keeps still", "RobotError: holding already"),
    HoldsByMoving: ("hold keeps still", "frame changed before the next send"),
    EndsByHolding: ("hold keeps still", "hold ended the episode"),
    HoldsUntilDone: ("hold is allowed after the end", "RobotError: the episode is over"),
    Endless: ("nothing is sent after the end", "send once done was done, expected RobotError"),
    OneEpisode: ("reset starts a fresh", "done is still true when an episode was run and reset"),
    OneReset: ("reset starts a fresh", "RobotError: reset twice"),
    Undecided: ("done and success", "success is 'perhaps', expected True, False or None"),
    ClosesOnce: ("close ends it", "RobotError: closed already"),
    NeverClosed: ("close ends it", "observe after close was done, expected RobotError"),
}


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_a_broken_promise_is_named_with_what_was_seen(make):
    promise, message = BROKEN[make]
    with pytest.raises(NonConforming, match=rf"(?m)^.*{promise}.*: .*({message})"):
        check_robot(make)


def test_every_promise_has_somebody_who_breaks_it():
    for promise in PROMISES:
        assert any(words in promise for words, _ in BROKEN.values()), promise


def test_each_broken_promise_has_one_line_and_every_robot_is_closed():
    made = []

    class Bad(Cart):
        instruction, success = "", "perhaps"  # type: ignore[assignment]

        def __init__(self):
            super().__init__()
            assert not any(robot.running for robot in made)
            made.append(self)

    with pytest.raises(runtime.RobotError) as told:
        check_robot(Bad)
    lines = str(told.value).split("\n")
    assert [line.partition(": ")[0] for line in lines] == [
        "a robot declares instruction, inputs and limits",
        "done and success are true, false or unknown",
    ]
    assert len(made) == len(PROMISES) and not made[-1].running
