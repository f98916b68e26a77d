"""A `Robot` on the live Meta-World simulator: a Sawyer arm, one table, one free camera.

Camera, markers, goals and some tasks are ours: never compare success rates with published
Meta-World numbers.

Inputs: `frame`, and `state` [4]: hand x, y, z in metres, gripper opening in [0, 1].
Action [4] in [-1, 1]: hand velocity x, y, z (1 moves the target by 1 cm per step), gripper effort
(1 closes, -1 opens). A = action dimension.
Stamps are simulated seconds since `reset`: the world stands still between two actions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RobotError
from .blink import REACHED_M, Blink, BlinkEpisode
from .description import Description, read_description
from .metaworld_view import View
from .rendering import choose_backend
from .robot import Limits, Observation, Sensor, Truth

_MARKER_SPACING_M = 0.09
"""Between the markers of a scene: more than that."""
_TOUCHED = ("green", "red", "blue")
"""In the order in which places are drawn for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One Meta-World task as we pose it."""

    env_name: str
    """Meta-World's name."""
    instruction: str
    marker: str | None
    """Colour of the sphere that shows where to go, if there is one."""
    others: tuple[str, ...] = ()
    """Colours of spheres elsewhere: only the instruction tells which one is meant."""
    hide_marker_after_first_frame: bool
    """Whether the policy has to remember where the marker was."""
    max_steps: int
    """The episode ends after this many actions."""
    blink: Blink | None = None
    """A task of its own in the scene of `env_name`, if any: see `blink`."""


TASKS: dict[str, Task] = {
    "reach": Task(
        env_name="reach-v3",
        instruction="move the hand to the green marker",
        marker="green",
        hide_marker_after_first_frame=True,
        max_steps=120,
    ),
    **{
        f"touch-{colour}": Task(
            env_name="reach-v3",
            instruction=f"touch the {colour} marker",
            marker=colour,
            others=tuple(other for other in _TOUCHED if other != colour),
            hide_marker_after_first_frame=True,
            max_steps=120,
        )
        for colour in _TOUCHED
    },
    "button-press-topdown": Task(
        env_name="button-press-topdown-v3",
        instruction="press the button from above",
        marker=None,
        hide_marker_after_first_frame=False,
        max_steps=150,
    ),
    "drawer-open": Task(
        env_name="drawer-open-v3",
        instruction="open the drawer",
        marker=None,
        hide_marker_after_first_frame=False,
        max_steps=200,
    ),
    "push": Task(
        env_name="push-v3",
        instruction="push the puck to the green marker",
        marker="green",
        hide_marker_after_first_frame=False,
        max_steps=150,
    ),
    "touch-what-blinked": Task(
        env_name="reach-v3",
        instruction="touch the yellow marker, then the one that blinked",
        marker=None,
        hide_marker_after_first_frame=False,
        max_steps=200,
        blink=Blink(),
    ),
}


LIMITS = Limits(
    -np.ones(4, np.float32),
    np.ones(4, np.float32),
    ("fraction",) * 4,
    ("x", "y", "z", "gripper"),
)

COMMANDS = ("velocity", "velocity", "velocity", "switch")
"""What each dimension of an action commands: the hand moves by x, y, z at every step, and no motion
follows the gripper's effort in proportion."""


class MetaWorldRobot:
    """A `Robot` in simulation.

    The n-th episode after construction depends on `task`, `seed` and n alone, not on the actions
    of the episodes before it.
    """

    commands = COMMANDS

    def __init__(
        self,
        *,
        task: str,
        seed: int,
        image_size: int = 112,
        max_steps: int | None = None,
        hide_marker_after_first_frame: bool | None = None,
        end_on_success: bool = True,
    ) -> None:
        """Build the simulator; no episode is running until `reset`.

        Args:
            task: a key of `TASKS`.
            seed: of goals and object positions.
            image_size: side of the square frames in pixels.
            max_steps: actions per episode; the task's own number if None.
            hide_marker_after_first_frame: the task's own choice if None.
            end_on_success: whether `done` comes with success (or with the marker that must not be
                touched), or only after `max_steps`.

        Raises:
            ValueError: for an argument out of range.
            RobotError: if the simulator is not installed or cannot render here.
        """
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        if not 16 <= image_size <= 480:
            raise ValueError(f"image_size must be in [16, 480] pixels, got {image_size}")
        self.task = TASKS[task]
        self.max_steps = self.task.max_steps if max_steps is None else max_steps
        if not 0 < self.max_steps < 500:
            raise ValueError(
                f"max_steps must be in [1, 499], where Meta-World stops, got {self.max_steps}"
            )
        if hide_marker_after_first_frame is None:
            hide_marker_after_first_frame = self.task.hide_marker_after_first_frame
        self.instruction = self.task.instruction
        self.inputs = {
            "frame": Sensor("image", (image_size, image_size, 3), "uint8"),
            "state": Sensor("vector", (4,), "float32"),
        }
        self.limits = LIMITS
        self._hide_marker_after_first_frame = hide_marker_after_first_frame
        self._end_on_success = end_on_success
        self._num_steps = 0
        self._success = False
        self._started = False
        self._closed = False
        self._observation: Observation | None = None
        self._full_state: NDArray[np.float64] = np.zeros(0)

        choose_backend()
        self._env, self._expert = _make_environment(self.task.env_name, seed)
        self._view = View(self._env.model, image_size, self.task.marker)
        self._random = np.random.default_rng(seed)
        self._other_markers_m: dict[str, NDArray[np.float64]] = {}
        self._blink: BlinkEpisode | None = None

    def reseed(self, seed: int) -> None:
        """Go on as if built with `seed`: half a second faster than building. Call `reset` next."""
        self._env.seed(seed)
        self._random = np.random.default_rng(seed)
        self._started = False

    def reset(self) -> Observation:
        if self._closed:
            raise RobotError("reset() after close(): make a new MetaWorldRobot")
        self._env.reset()
        self._settle()
        self._full_state = self._env._get_obs()
        self._other_markers_m = self._place_others()
        blink = self.task.blink
        self._blink = None if blink is None else BlinkEpisode(blink, self._random)
        self._num_steps = 0
        self._success = False
        self._started = True
        self._touched: set[str] = set()
        anchor = self._observe(0, hide_markers=False)
        # Where markers are hidden after the anchor, the first look of the loop is without them.
        self._observation = None if self._hide_marker_after_first_frame else anchor
        return anchor

    def observe(self) -> Observation:
        self._require_reset("observe")
        if self._observation is None:
            # Rendered here and not in send(), because a loop that executes a chunk of actions
            # looks only now and then.
            hidden = self._hide_marker_after_first_frame
            self._observation = self._observe(self._num_steps + 1, hide_markers=hidden)
        return self._observation

    def send(self, action_A: NDArray[np.float32]) -> NDArray[np.float32]:
        self._require_reset("send")
        if self.done:
            raise RobotError(
                f"send() after the episode ended ({self._num_steps} steps): call reset()"
            )
        sent_A = self.limits.clip(action_A)
        self._full_state, _, _, _, info = self._env.step(sent_A)
        self._num_steps += 1
        self._observation = None
        hand = self.hand_m
        if self._blink is None:
            self._success = self._success or bool(info["success"] > 0)
        else:
            self._blink.advance(hand)
            self._success = self._blink.success is True
        for colour, place in self._other_markers_m.items():
            if np.linalg.norm(hand - place) <= REACHED_M:
                self._touched.add(colour)
        return sent_A

    def hold(self) -> None:
        """The simulated world stands still until the next `send`."""
        self._require_reset("hold")

    @property
    def description(self) -> Description:
        """What the guard keeps it to: wider than the demo's policy goes, closer than it could."""
        return read_description(Path(__file__).with_name("metaworld.json"))

    @property
    def done(self) -> bool:
        is_over = self._success or (self._blink is not None and self._blink.success is not None)
        return self._num_steps >= self.max_steps or (self._end_on_success and is_over)

    @property
    def success(self) -> bool | None:
        return self._success

    @property
    def goal_m(self) -> NDArray[np.float32]:
        """Where the task is achieved, x, y, z: for training losses and tests, not for a policy."""
        self._require_reset("goal_m")
        at = self._env._target_pos if self._blink is None else self._blink.goal_m
        return np.asarray(at, np.float32)

    def truths(self) -> dict[str, Truth]:
        """`goal`: where the task is achieved, x, y, z in cm. See `robot.Knowing`."""
        return {"goal": Truth(100 * self.goal_m, ("cm",) * 3)}

    @property
    def blink(self) -> BlinkEpisode | None:
        """The episode of a task with a blink: for training losses and tests, not for a policy."""
        self._require_reset("blink")
        return self._blink

    def achieved(self, task: str) -> bool | None:
        """Whether this episode achieved what another task asks for; None where nobody can tell."""
        self._require_reset("achieved")
        other = TASKS[task]
        if other == self.task:
            return self._success
        if other.env_name != self.task.env_name or other.marker not in self._other_markers_m:
            return None
        return other.marker in self._touched

    def expert_action(self) -> NDArray[np.float32]:
        """What a scripted expert, which knows the goal, does now: [4] in [-1, 1].

        Meta-World's own, except in a task that it does not know.
        """
        self._require_reset("expert_action")
        if self._blink is not None:
            return self._blink.expert_action(self.hand_m)
        with warnings.catch_warnings():
            # It warns that its action may leave [-1, 1]; it is clipped just below.
            warnings.simplefilter("ignore", UserWarning)
            action_A = self._expert.get_action(self._full_state)
        return np.asarray(np.clip(action_A, -1, 1), np.float32)

    def close(self) -> None:
        if not self._closed:
            self._view.close()
            self._env.close()
        self._closed = True
        self._started = False

    def look(self, *, hide_markers: bool) -> NDArray[np.uint8]:
        """What the camera sees now, markers shown or hidden: for training data, not for a loop."""
        self._require_reset("look")
        spheres = [*self._other_markers_m.items(), *(self._blink.spheres if self._blink else [])]
        return self._view.render(
            self._env.data,
            show_marker=not hide_markers,
            spheres=[] if hide_markers else spheres,
        )

    @property
    def hand_m(self) -> NDArray[np.float64]:
        """Where the fingertips are, x, y, z: what touches a marker, and 5 cm below the state's."""
        self._require_reset("hand_m")
        return np.array(self._env.tcp_center)

    @property
    def markers_m(self) -> dict[str, NDArray[np.float32]]:
        """Where the marker of each colour is, x, y, z: for training losses and tests. Those of a
        task with a blink are in `blink`."""
        others = {name: np.asarray(at, np.float32) for name, at in self._other_markers_m.items()}
        return {self.task.marker: self.goal_m, **others} if self.task.marker else others

    def _observe(self, frame_id: int, *, hide_markers: bool) -> Observation:
        state = np.asarray(self._full_state[:4], np.float32)
        at = self._num_steps * float(self._env.dt)
        return Observation(
            {"frame": self.look(hide_markers=hide_markers), "state": state},
            {"frame": at, "state": at},
            {"frame": frame_id},
        )

    def _place_others(self) -> dict[str, NDArray[np.float64]]:
        """Draw places for the other markers from the goals' space, apart from each other."""
        space = self._env.goal_space
        taken, places = [np.asarray(self._env._target_pos)], {}
        for colour in self.task.others:
            while True:
                place = self._random.uniform(space.low, space.high)
                if min(np.linalg.norm(place - at) for at in taken) >= _MARKER_SPACING_M:
                    break
            taken.append(place)
            places[colour] = place
        return places

    def _settle(self) -> None:
        # Meta-World moves the goal site and the furniture after its last mj_forward: without this
        # one, the first frame and the first state show where they were in the episode before.
        import mujoco

        mujoco.mj_forward(self._env.model, self._env.data)

    def _require_reset(self, method: str) -> None:
        if not self._started:
            raise RobotError(f"{method}() outside an episode: call reset() first")


def _make_environment(env_name: str, seed: int) -> tuple[Any, Any]:
    """Meta-World's environment, with a new goal in every episode, and its scripted expert."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    # Not through gymnasium.make: the wrapper holds 50 goals per seed and takes six times longer.
    env: Any = ALL_V3_ENVIRONMENTS[env_name]()
    env._set_task_called = True
    env._partially_observable = False  # the expert reads the goal
    # Observations are clipped to this space, cached while the goal was still hidden: all zeros.
    del env.sawyer_observation_space
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env.seed(seed)
    expert_class: Any = ENV_POLICY_MAP[env_name]
    return env, expert_class()
