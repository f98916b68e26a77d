"""When does a latch take a new value: when does the current frame become the new anchor?

An anchor policy is asked once per tick, before anything is computed, and answers yes or no. The
published variants: first frame, every k steps, kinematic keyframe, semantic keyframe.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import ObservationError
from .graph import Graph


@dataclass(frozen=True, slots=True)
class Tick:
    """What an anchor policy may look at."""

    step: int
    """Ticks since the episode started; the first is 0."""
    since_anchor: int
    """Ticks since the anchor was latched."""
    observation: Mapping[str, NDArray[Any]]
    """What the robot gave in this tick, by input; read-only."""
    similarity: Callable[[], float]
    """How like the anchor this tick's value is, from -1 to 1: the cosine of their vision features.
    Costs the frame's vision pass, which the tick then does not pay again.

    Raises:
        ObservationError: the policy has no output that tells.
    """


class AnchorPolicy(Protocol):
    """May keep state of its own: it is copied before every tick, and the copy takes its place if
    the tick fails. What it needs of a policy it may say in `needs_similarity` (bool) and
    `needs_vector` (an input's name), and is then refused at the start where that is missing."""

    def wants(self, tick: Tick) -> bool:
        """Whether the current frame should become the anchor. Called once per tick, in order."""


WORDS = (
    "when the frame becomes the anchor: first (the default), manual, every(K), kinematic, "
    "semantic; of a policy with several anchors NAME=POLICY, once for each"
)
"""What `--anchor` takes."""
AnchorPolicies = AnchorPolicy | Mapping[str, AnchorPolicy] | None
"""Of the only latch, or of each latch by name; a latch that nobody named keeps its first value."""


class Stateless:
    """Keeps nothing between ticks, and so is its own copy."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Stateless:
        return self


@dataclass(frozen=True, slots=True)
class First(Stateless):
    """The first frame of the episode, for good."""

    def wants(self, tick: Tick) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Manual(Stateless):
    """Only what `Episode.latch` and `give` ask for. Same answer as `First`; the name says why."""

    def wants(self, tick: Tick) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Every(Stateless):
    """A new anchor every `k` ticks."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"every(k) needs k >= 1, got {self.k}")

    def wants(self, tick: Tick) -> bool:
        return tick.since_anchor >= self.k


@dataclass(slots=True)
class Kinematic:
    """Gripper events and turning points of the arm.

    A keyframe is a change of the last state by more than `gripper_change` within one tick, or a
    step of the first six states shorter than `slow_step` that the next step reverses. The
    published rule looks one frame ahead; on a robot the turn is seen one tick later, and that
    tick's frame becomes the anchor.
    """

    gripper_change: float = 0.1
    slow_step: float = 0.2
    needs_vector: str = "state"
    """The input that is looked at."""
    _previous: NDArray[np.float32] | None = field(default=None, init=False)
    _step: NDArray[np.float32] | None = field(default=None, init=False)

    def wants(self, tick: Tick) -> bool:
        state = tick.observation[self.needs_vector]
        previous, last_step = self._previous, self._step
        if tick.step == 0:
            previous = last_step = None
        self._previous = state.copy()
        if previous is None:
            self._step = None
            return False
        step = self._step = (state - previous)[:6]
        if abs(float(state[-1] - previous[-1])) > self.gripper_change:
            return True
        if last_step is None:
            return False
        return bool(np.linalg.norm(last_step) < self.slow_step and last_step @ step < 0)


@dataclass(frozen=True, slots=True)
class Semantic(Stateless):
    """The scene no longer looks like the anchor: feature cosine below `threshold`."""

    threshold: float = 0.2
    needs_similarity: ClassVar[bool] = True

    def wants(self, tick: Tick) -> bool:
        return tick.since_anchor > 0 and tick.similarity() < self.threshold


def parse(text: str) -> AnchorPolicy:
    """An anchor policy from its name: first, manual, every(K), kinematic, semantic.

    Raises:
        ValueError: for any other text.
    """
    if text.startswith("every(") and text.endswith(")") and text[6:-1].isdigit():
        return Every(int(text[6:-1]))
    named: dict[str, Callable[[], AnchorPolicy]] = {
        "first": First,
        "manual": Manual,
        "kinematic": Kinematic,
        "semantic": Semantic,
    }
    if text not in named:
        raise ValueError(f"unknown anchor policy {text!r}; know {[*named, 'every(K)']}")
    return named[text]()


def parse_all(texts: Sequence[str]) -> AnchorPolicies:
    """What `--anchor` says: the policy of the only latch, or `NAME=POLICY` of several.

    Raises:
        ValueError: one is no anchor policy, or it is not plain which latch is meant.
    """
    if not texts:
        return None
    named = [text.partition("=") for text in texts]
    if len(texts) == 1 and not named[0][1]:
        return parse(texts[0])
    names = [name for name, _, _ in named]
    if len(set(names)) < len(names) or not all(name and equals for name, equals, _ in named):
        raise ValueError(
            f"--anchor {' --anchor '.join(texts)}: name the latch of each, once: "
            "--anchor NAME=POLICY"
        )
    return {name: parse(policy) for name, _, policy in named}


def keeps_first(chosen: AnchorPolicies) -> bool:
    """Whether no latch takes another value unless somebody says so."""
    policies = chosen.values() if isinstance(chosen, Mapping) else [chosen]
    return all(isinstance(policy, (First, Manual, type(None))) for policy in policies)


def check_anchor_policy(anchor_policy: AnchorPolicy, latch: str, graph: Graph) -> None:
    """Refuse what cannot be asked, or cannot be copied: a failed tick puts back a copy.

    Args:
        anchor_policy: of the latch.
        latch: name of the input that it decides about.
        graph: of the policy, which must have what it needs.

    Raises:
        ObservationError: says what it is or lacks.
    """
    if isinstance(anchor_policy, type) or not callable(getattr(anchor_policy, "wants", None)):
        raise ObservationError(
            f"anchor_policy must have a method wants(tick), got {anchor_policy!r}; "
            "see runtime.anchor"
        )
    try:
        copy.deepcopy(anchor_policy)
    except Exception as error:  # whatever its parts raise
        raise ObservationError(
            f"anchor_policy {anchor_policy!r} cannot be copied ({error}), which undoing a failed "
            "tick needs: keep files, locks and threads out of it"
        ) from None
    if getattr(anchor_policy, "needs_similarity", False) and not graph.inputs[latch].similarity:
        raise ObservationError(
            f"anchor_policy {anchor_policy!r} asks how like {latch!r} the present is, which no "
            "output of this policy tells; choose another one"
        )
    vector = getattr(anchor_policy, "needs_vector", "")
    vectors = [n for n, i in graph.inputs.items() if (i.kind, i.source) == ("vector", "robot")]
    if vector and vector not in vectors:
        raise ObservationError(
            f"anchor_policy {anchor_policy!r} looks at the vector {vector!r}, the robot gives "
            f"{vectors or 'none'}; choose another one"
        )
