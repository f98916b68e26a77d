"""What happened in an episode of a control loop.

A = action dimension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..episode import Stats
from ..robots.robot import Observation
from .delay import Chunks, Delay
from .film import Film
from .foresight import Foreseen
from .leaves import SMALL, LeafCount, Reading


@dataclass(frozen=True, slots=True)
class Step:
    """One control step."""

    late_s: float
    """How late it started."""
    act_s: float | None
    """Seconds of `Episode.act`; None where it is not the first action of a new chunk."""
    stages_s: Mapping[str, float]
    """Seconds of the stages that ran."""
    action: NDArray[np.float32]
    """[A] as the policy answered it; as it was sent, where there was none."""
    sent: NDArray[np.float32]
    """[A] after the guard, and the robot's own clipping."""
    age_s: float
    """When it was sent, seconds since somebody looked for the observation that it answers to."""
    interventions: tuple[str, ...] = ()
    """What the guard had to say, by kind."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A leaf contradicts the robot."""

    kind: str
    """`grasp missed`: a closed gripper holds nothing, so whoever drives may try again.
    `perception`: joints are seen elsewhere than they are felt."""
    leaf: str
    step: int
    """Control step of the observation that it was read from."""
    looked_at: float
    """When somebody looked for that, in seconds of the loop's clock."""
    words: str
    """For people."""
    is_stop: bool = False
    """Whether the guard stops the robot for it."""


@dataclass(slots=True)
class Leaf:
    """A leaf in an episode."""

    count: LeafCount
    last: Reading | None = None
    """The last one that was read."""
    history: list[Reading] = field(default_factory=list)
    """All of a leaf of at most `SMALL` numbers, in order."""
    against: str = ""
    """What it is held against, or why it is not, for people; empty if it declares no meaning."""
    foreseen: Foreseen | None = None
    """Of a leaf that is a picture to come."""

    @property
    def words(self) -> str:
        """For people."""
        parts = [self.count.words, self.against, self.foreseen.words if self.foreseen else ""]
        return "; ".join(filter(None, parts))

    def add(self, reading: Reading) -> None:
        self.last = reading
        if reading.value.size <= SMALL:
            self.history.append(reading)

    @property
    def errors(self) -> list[float]:
        """Distances from what a simulator knew, in the leaf's units; empty where none did."""
        return [error for reading in self.history if (error := reading.error) is not None]


@dataclass(slots=True)
class Trace:
    """What happened in an episode."""

    instruction: str
    period_s: float
    first: Observation
    """Of `Robot.reset`; what it shows may be hidden from the steps."""
    steps: list[Step] = field(default_factory=list)
    films: dict[str, Film] = field(default_factory=dict)
    """Per camera: what was seen at thoughts and at the end."""
    num_dropped: int = 0
    """Control steps that a late one swallowed."""
    num_clipped: int = 0
    """Actions that were sent otherwise than the policy answered them."""
    chunks: Chunks = "sync"
    """How they were used, and what the thoughts took that it was chosen by, if it was."""
    delay: Delay | None = None
    num_waited: int = 0
    """Control steps before the first action: the robot stood still."""
    num_held: int = 0
    """Later ones in which the robot was told to hold, and nothing was sent."""
    num_overtaken: int = 0
    """Actions that were too old to be sent when their chunk came, or their step was dropped."""
    num_stale: int = 0
    """Answers to a question that nobody waited for any more."""
    interventions: Mapping[str, int] = field(default_factory=dict)
    """What the guard had to say, by kind."""
    leaves: dict[str, Leaf] = field(default_factory=dict)
    """What was read between thoughts, by name."""
    notices: list[Notice] = field(default_factory=list)
    """What leaves contradict, in order."""
    success: bool | None = None
    stats: Stats | None = None

    @property
    def words(self) -> list[str]:
        """What the guard said, what became of leaves, and what stores spared, in lines."""
        stores = {} if self.stats is None else self.stats.stores
        return [
            *(f"guard: {kind}, {count} times" for kind, count in self.interventions.items()),
            *(f"leaf {name}: {leaf.words}" for name, leaf in self.leaves.items()),
            *(f"{kind}, {count} times" for kind, count in self.noticed.items()),
            *(
                f"store {store}: {of.hits} results copied, {of.misses} computed, {of.entries} of "
                f"{of.most_entries} held in {(of.num_bytes + of.value_bytes) / 1e6:.1f} MB"
                for store, of in stores.items()
            ),
        ]

    @property
    def noticed(self) -> Counter[str]:
        """Notices by kind."""
        return Counter(notice.kind for notice in self.notices)

    @property
    def num_misses(self) -> int:
        """Control steps at which the robot was owed an action and got none."""
        return self.num_dropped + self.num_held
