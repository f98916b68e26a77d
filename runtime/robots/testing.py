"""Does a robot keep the promises of `Robot`? A kit for whoever connects one.

    from runtime.robots.testing import check_robot
    check_robot(lambda: MyRobot())

Goes in: a function that makes a robot. Comes out: nothing, or an error with a line per promise that
is broken. The robot moves, as far as its limits too: give an arm room, or a controller that is
switched to simulation. The trade-off: what a promise costs, a robot made anew, is paid by each.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RobotError
from .robot import Limits, Observation, Robot, Sensor

NUM_SENDS = 5
"""Actions in a row of which observations are compared."""
MOST_SENDS = 1000
"""A robot that is not done after these is not asked about the end of an episode."""
LOOK_AGAIN_S = 0.2
"""A robot that shows the same for so long is one of a world that stands still."""

Promise = Callable[[Robot], Iterator[str]]
"""Yields what is wrong with a robot that was just made, in words; nothing if it keeps it."""


class NonConforming(RobotError):
    """A robot breaks promises of `Robot`; a line for each says which and how."""


def check_robot(make_robot: Callable[[], Robot]) -> None:
    """Check every promise of `Robot`, each on a robot of its own, closed at the end.

    Args:
        make_robot: a robot that waits for its first `reset`. It is called about 15 times, and there
            is never more than one robot at a time.

    Raises:
        NonConforming: one line per promise that is broken.
    """
    broken = [
        line for words, keeps in PROMISES.items() if (line := _broken(make_robot, words, keeps))
    ]
    if broken:
        raise NonConforming("\n".join(broken))


def _broken(make_robot: Callable[[], Robot], words: str, promise: Promise) -> str:
    """The line about a promise; empty if it is kept."""
    robot, found = make_robot(), list[str]()
    try:
        found.extend(promise(robot))
    except Exception as error:  # whatever the robot raises where it should not
        found.append(f"{type(error).__name__}: {error}")
    finally:
        with contextlib.suppress(Exception):  # a promise of its own: see `_closes`
            robot.close()
    return f"{words}: {found[0]}".replace("\n", " ") if found else ""


def _declares(robot: Robot) -> Iterator[str]:
    if not robot.instruction or not isinstance(robot.instruction, str):
        yield f"instruction is {robot.instruction!r}, expected a text"
    sensors = robot.inputs
    if not sensors or not all(isinstance(sensor, Sensor) for sensor in sensors.values()):
        yield f"inputs is {sensors!r}, expected a Sensor for each name"
    if not isinstance(robot.limits, Limits):
        yield f"limits is {robot.limits!r}, expected Limits"


def _waits_for_reset(robot: Robot) -> Iterator[str]:
    for name, call in _calls(robot).items():
        yield from _refuses(call, RobotError, f"{name} before the first reset")


def _shows_its_inputs(robot: Robot) -> Iterator[str]:
    for seen in (robot.reset(), robot.observe(), *_observations(robot)):
        yield from _unlike(seen, robot.inputs)


def _shows_the_same_or_newer(robot: Robot) -> Iterator[str]:
    robot.reset()
    differs = _rule(robot)
    for seen in _observations(robot):
        again = robot.observe()
        if changed := differs(seen, again):
            yield f"{changed} differs between two calls of observe"


def _leaves_observations_alone(robot: Robot) -> Iterator[str]:
    shown = [robot.reset()]
    copies = [_copied(shown[0])]
    for seen in _observations(robot):
        shown.append(seen)
        copies.append(_copied(seen))
    for seen, copy in zip(shown, copies, strict=True):
        if changed := _changed(copy, seen):
            yield f"{changed} of an observation was written into after it was returned"


def _stamps_forwards(robot: Robot) -> Iterator[str]:
    before = robot.reset()
    for seen in _observations(robot):
        for name, at in seen.at.items():
            if not math.isfinite(at):
                yield f"{name} is stamped {at} s, expected a finite time"
            elif at < before.at.get(name, at):
                yield f"{name} is stamped {at} s after {before.at[name]} s"
        before = seen


def _numbers_its_pictures(robot: Robot) -> Iterator[str]:
    known: dict[tuple[str, int], NDArray[Any]] = {}
    for seen in (robot.reset(), *_observations(robot)):
        for name, sensor in robot.inputs.items():
            if sensor.kind == "vector":
                continue
            if name not in seen.frame_ids:
                yield f"{name} has no frame id"
                return
            number = seen.frame_ids[name]
            if not np.array_equal(
                known.setdefault((name, number), seen.values[name]), seen.values[name]
            ):
                yield f"two pictures of {name} have the frame id {number}"


def _refuses_what_is_no_action(robot: Robot) -> Iterator[str]:
    robot.reset()
    differs, before = _rule(robot), robot.observe()
    good_A, number = _action(robot), robot.limits.num_actions
    bad: dict[str, NDArray[Any]] = {
        f"float32 [{number + 1}]": np.zeros(number + 1, np.float32),
        f"float32 [1, {number}]": good_A[None],
        f"float64 [{number}]": good_A.astype(np.float64),
    }
    for value in (np.nan, np.inf):
        holed_A = good_A.copy()
        holed_A[-1] = value
        bad[f"an action with {value}"] = holed_A
    for words, action in bad.items():
        yield from _refuses(partial(robot.send, action), ValueError, f"send of {words}")
        if changed := differs(before, robot.observe()):
            yield f"{changed} changed though send refused {words}"


def _sends_within_its_limits(robot: Robot) -> Iterator[str]:
    robot.reset()
    limits = robot.limits
    for beyond_A in (limits.high + 1, limits.low - 1):
        if robot.done:
            return
        action_A = np.where(np.isfinite(beyond_A), beyond_A, _action(robot)).astype(np.float32)
        sent_A = robot.send(action_A)
        if not isinstance(sent_A, np.ndarray) or sent_A.shape != action_A.shape:
            yield f"send returned {sent_A!r}, expected what was sent, {list(action_A.shape)}"
        elif sent_A.dtype != np.float32 or not np.isfinite(sent_A).all():
            yield f"send returned {sent_A.dtype} {sent_A.tolist()}, expected finite float32"
        elif (sent_A < limits.low).any() or (sent_A > limits.high).any():
            yield f"{action_A.tolist()} was sent as {sent_A.tolist()}"


def _leaves_actions_to_the_caller(robot: Robot) -> Iterator[str]:
    robot.reset()
    differs, action_A = _rule(robot), _action(robot)
    copy_A, alive = action_A.copy(), weakref.ref(action_A)
    sent_A = robot.send(action_A)
    if np.shares_memory(sent_A, action_A):
        yield "what send returns is the caller's own array, expected a copy"
        return
    if not np.array_equal(action_A, copy_A):
        yield "send changed the caller's array"
    seen = robot.observe()
    if sent_A.flags.writeable:
        sent_A.fill(0)
    del action_A
    if alive() is not None:
        gc.collect()
    if alive() is not None:
        yield "the robot keeps the caller's array, expected a copy"
    if changed := differs(seen, robot.observe()):
        yield f"whoever writes into what send returned changes {changed}"


def _holds(robot: Robot) -> Iterator[str]:
    robot.reset()
    differs, before, done = _rule(robot), robot.observe(), robot.done
    for _ in range(2):
        robot.hold()
        if changed := differs(before, robot.observe()):
            yield f"{changed} changed before the next send"
    if robot.done != done:
        yield "hold ended the episode"
    robot.send(_action(robot))
    robot.hold()


def _holds_after_the_end(robot: Robot) -> Iterator[str]:
    if _run_to_the_end(robot):
        robot.hold()
        robot.hold()
        if not robot.done:
            yield "the episode went on"


def _refuses_actions_after_the_end(robot: Robot) -> Iterator[str]:
    if _run_to_the_end(robot):
        robot.observe()
        yield from _refuses(lambda: robot.send(_action(robot)), RobotError, "send once done")


def _begins_again(robot: Robot) -> Iterator[str]:
    for words in ("after the first reset", "after two resets in a row"):
        yield from _unlike(robot.reset(), robot.inputs)
        if robot.done:
            yield f"done is true {words}"
            return
    if _run_to_the_end(robot):
        robot.reset()
        if robot.done:
            yield "done is still true when an episode was run and reset"
            return
    robot.send(_action(robot))


def _tells_how_it_stands(robot: Robot) -> Iterator[str]:
    robot.reset()
    for _ in (None, *_observations(robot)):
        if not isinstance(robot.done, bool | np.bool_):
            yield f"done is {robot.done!r}, expected True or False"
        if not (robot.success is None or isinstance(robot.success, bool | np.bool_)):
            yield f"success is {robot.success!r}, expected True, False or None"


def _closes(robot: Robot) -> Iterator[str]:
    robot.reset()
    robot.close()
    robot.close()
    for name, call in _calls(robot).items():
        yield from _refuses(call, RobotError, f"{name} after close")


PROMISES: Mapping[str, Promise] = {
    "a robot declares instruction, inputs and limits": _declares,
    "nothing is done before the first reset": _waits_for_reset,
    "an observation is what inputs declare": _shows_its_inputs,
    "observe is the same, bit for bit, until the next send, or newer": _shows_the_same_or_newer,
    "an observation stays as it is": _leaves_observations_alone,
    "stamps never go backwards": _stamps_forwards,
    "one frame id is one picture": _numbers_its_pictures,
    "send refuses what is no action, and nothing moves": _refuses_what_is_no_action,
    "what is sent is within the limits": _sends_within_its_limits,
    "send leaves the caller's array alone and returns a copy": _leaves_actions_to_the_caller,
    "hold keeps still, twice too": _holds,
    "hold is allowed after the end": _holds_after_the_end,
    "nothing is sent after the end": _refuses_actions_after_the_end,
    "reset starts a fresh episode, twice in a row too": _begins_again,
    "done and success are true, false or unknown": _tells_how_it_stands,
    "close ends it, twice too": _closes,
}
"""In words, as the error says it."""


def _calls(robot: Robot) -> dict[str, Callable[[], object]]:
    """What needs an episode."""
    return {
        "observe": robot.observe,
        "send": lambda: robot.send(_action(robot)),
        "hold": robot.hold,
    }


def _refuses(call: Callable[[], object], kind: type[Exception], words: str) -> Iterator[str]:
    try:
        call()
    except kind:
        return
    except Exception as error:  # of another kind
        yield f"{words} raised {type(error).__name__} ({error}), expected {kind.__name__}"
        return
    yield f"{words} was done, expected {kind.__name__}"


def _action(robot: Robot) -> NDArray[np.float32]:
    """The one nearest to zero."""
    return robot.limits.clip(np.zeros(robot.limits.num_actions, np.float32))


def _observations(robot: Robot) -> Iterator[Observation]:
    """The present one, and one after each of a few actions."""
    yield robot.observe()
    for _ in range(NUM_SENDS):
        if robot.done:
            return
        robot.send(_action(robot))
        yield robot.observe()


def _run_to_the_end(robot: Robot) -> bool:
    """An episode from its reset; whether it came to an end."""
    robot.reset()
    for _ in range(MOST_SENDS):
        if robot.done:
            return True
        robot.send(_action(robot))
    return robot.done


def _copied(seen: Observation) -> Observation:
    return Observation(
        {name: value.copy() for name, value in seen.values.items()},
        dict(seen.at),
        dict(seen.frame_ids),
    )


def _changed(before: Observation, after: Observation) -> str:
    """Name of a part that differs, to the bit; empty if none does."""
    if before.values.keys() != after.values.keys():
        return "the set of names"
    for name, value in before.values.items():
        if value.tobytes() != after.values[name].tobytes():
            return name
    if before.at != after.at:
        return "a stamp"
    return "" if before.frame_ids == after.frame_ids else "a frame id"


Differs = Callable[[Observation, Observation], str]
"""Name of a part that differs and should not; empty if none does."""


def _rule(robot: Robot) -> Differs:
    """Where nothing was sent: in a world that stands still nothing changes, in one that goes on
    what has a newer stamp."""
    seen = robot.observe()
    time.sleep(LOOK_AGAIN_S)
    return _untold if _changed(seen, robot.observe()) else _changed


def _untold(before: Observation, after: Observation) -> str:
    """Name of a part that differs though its stamp is not newer; empty if none does."""
    is_newer = {name for name, at in after.at.items() if at > before.at.get(name, at)}
    kept = [name for name in after.values if name not in is_newer]
    if before.values.keys() != after.values.keys():
        return "the set of names"
    return _changed(_part(before, kept), _part(after, kept)) if kept else ""


def _part(seen: Observation, names: Sequence[str]) -> Observation:
    frame_ids = {name: number for name, number in seen.frame_ids.items() if name in names}
    return Observation(
        {name: seen.values[name] for name in names}, {n: seen.at[n] for n in names}, frame_ids
    )


def _unlike(seen: Observation, inputs: Mapping[str, Sensor]) -> Iterator[str]:
    """How an observation differs from what was declared."""
    if seen.values.keys() != inputs.keys():
        yield f"it shows {sorted(seen.values)}, inputs declares {sorted(inputs)}"
        return
    for name, sensor in inputs.items():
        value = seen.values[name]
        if value.dtype != np.dtype(sensor.dtype) or value.shape != sensor.shape:
            yield (
                f"{name} is {value.dtype} {list(value.shape)}, inputs declares "
                f"{sensor.dtype} {list(sensor.shape)}"
            )
        elif value.dtype.kind == "f" and sensor.kind == "vector" and not np.isfinite(value).all():
            yield f"{name} is {value.tolist()}, expected finite numbers"
