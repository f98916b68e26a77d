"""Which pictures of an episode a policy keeps: those at its own events. Without clock or thread.

With each chunk comes how likely every step of it is an event. The best likely step is waited for,
and what the main camera sees then is kept: the policy is shown the last few of such keyframes.

In a control step: where the event `is_due`, `keep` the picture, and ask for a new plan where that
`replans`; and where a chunk came, `consider` its probabilities. A memory never changes, each of
these makes a new one: whoever fails in between goes on with the old one.

The algorithm is that of "Event-Driven Visual Evidence Memory for Long-Horizon
Vision-Language-Action Policies" (arXiv 2606.20092), as its model server and its evaluation client
(RoboTwin-Mem) carry it out together:

- Candidates are the steps from `least_offset` of the chunk on that are at least `threshold` likely.
  From the likeliest down, each takes those at most `nms_window` steps away with it.
- From the likeliest down, the first candidate is taken that is more than `cooldown` steps from the
  last event that came due, and more than that from the event that is waited for, or likelier than
  it; of equals, the later. (The authors take what differs by 1e-8 for equal: from 1/8 on, no two
  float32 do.)
- It replaces the event that is waited for, near or far: only one is waited for.
- The server takes an event for over as soon as it is asked at or behind its step. The client, whose
  own threshold and window nothing reads, keeps the picture at that step, and before it asks: the
  two agree whenever no step is left out. Where one is, the client would wait for ever; here the
  picture of the next step is kept.
- The first three keyframes ask for a new plan at once; a later one lets the chunk play out.

The authors carry chunks out to their ends (but for the first), so that an event is over when the
next is chosen. Where a loop plans more often, a less likely event far away replaces a near one.

T = step of the chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..declarations import Input, Memory
from ..errors import EngineError


@dataclass(frozen=True, kw_only=True, slots=True)
class EventSettings:
    """Which steps are events, and how many pictures of them are kept."""

    threshold: float = 0.55
    """Least probability of an event."""
    least_offset: int = 1
    """Of the chunk's steps, the first that may be one: what is seen now is over."""
    nms_window: int = 20
    """Steps of a chunk on either side of an event that are no other."""
    cooldown: int = 20
    """The same from chunk to chunk."""
    most_keyframes: int = 4
    """Of more, the oldest are forgotten."""
    num_replans: int = 3
    """So many keyframes of an episode ask for a new plan as soon as they are kept."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"events.threshold must be in (0, 1], got {self.threshold}")
        least = {"least_offset": 1, "most_keyframes": 1}
        for name in ("least_offset", "nms_window", "cooldown", "most_keyframes", "num_replans"):
            value, at_least = getattr(self, name), least.get(name, 0)
            if value < at_least:
                raise ValueError(f"events.{name} must be at least {at_least}, got {value}")


@dataclass(frozen=True, slots=True)
class Event:
    """A step whose picture is to be kept."""

    step: int
    """Of control."""
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Keyframe:
    """What was seen at an event."""

    step: int
    """Of control."""
    picture: NDArray[np.uint8]
    """[H, W, 3] RGB; read-only."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KeyframeMemory:
    """Of an episode; another one begins with a new memory."""

    settings: EventSettings
    pending: Event | None = None
    """What is waited for."""
    last_step: int | None = None
    """Of the last event that came due."""
    keyframes: tuple[Keyframe, ...] = ()
    """The oldest first."""
    num_kept: int = 0
    """Since the episode began, forgotten ones included."""

    def is_due(self, step: int) -> bool:
        """Whether the picture of this control step is to be kept."""
        return self.pending is not None and step >= self.pending.step

    def keep(self, step: int, picture: NDArray[np.uint8]) -> KeyframeMemory:
        """The event that was waited for is over, and this is its picture.

        Args:
            step: of control; later than the event's where that was left out.
            picture: [H, W, 3] RGB of the main camera; copied if somebody may write into it.

        Raises:
            ValueError: none is due.
        """
        if self.pending is None or not self.is_due(step):
            raise ValueError(f"no event is due at step {step}, waiting for {self.pending}")
        kept = picture
        if picture.flags.writeable:
            kept = picture.copy()
            kept.setflags(write=False)
        keyframes = (*self.keyframes, Keyframe(step, kept))
        return dataclasses.replace(
            self,
            pending=None,
            last_step=self.pending.step,
            keyframes=keyframes[-self.settings.most_keyframes :],
            num_kept=self.num_kept + 1,
        )

    @property
    def replans(self) -> bool:
        """Whether the keyframe that was just kept asks for a new plan at once."""
        return self.num_kept <= self.settings.num_replans

    def consider(self, probabilities_T: NDArray[np.floating], step: int) -> KeyframeMemory:
        """Wait for an event of this chunk, if it has one; `pending` is what is waited for then.

        Args:
            probabilities_T: of an event at each step of the chunk, [T].
            step: control step of the chunk's observation.

        Raises:
            EngineError: these are no probabilities.
            ValueError: an event is due that nothing was kept of.
        """
        values_T = np.asarray(probabilities_T, np.float64)
        if values_T.ndim != 1 or not ((values_T >= 0) & (values_T <= 1)).all():
            raise EngineError(
                f"probabilities of events must be [T] from 0 to 1, got {list(values_T.shape)} "
                f"from {values_T.min(initial=1)} to {values_T.max(initial=0)}; none was used: "
                "export the bundle again"
            )
        if self.is_due(step):
            raise ValueError(f"step {step}: {self.pending} is due, keep its picture first")
        for event in candidates(values_T, step, self.settings):
            if self._takes(event):
                return dataclasses.replace(self, pending=event)
        return self

    def _takes(self, event: Event) -> bool:
        cooldown, waiting = self.settings.cooldown, self.pending
        if self.last_step is not None and abs(event.step - self.last_step) <= cooldown:
            return False
        if waiting is None or abs(event.step - waiting.step) > cooldown:
            return True
        return (event.probability, event.step) >= (waiting.probability, waiting.step)


def candidates(
    probabilities_T: NDArray[np.float64], step: int, settings: EventSettings
) -> Iterator[Event]:
    """Likely steps of a chunk, the likeliest first and of equals the earliest, none near another.

    Args:
        step: of control, of the chunk's observation.
    """
    values = probabilities_T.tolist()
    offsets = range(settings.least_offset, len(values))
    chosen: list[int] = []
    for offset in sorted(offsets, key=lambda k: (-values[k], k)):
        if values[offset] < settings.threshold:
            return
        if all(abs(offset - other) > settings.nms_window for other in chosen):
            chosen.append(offset)
            yield Event(step + offset, values[offset])


@dataclass(frozen=True, slots=True, eq=False)
class Keyframes:
    """What the memories of a policy keep, by the name of the input that counts its pictures.

    A memory never changes, and so neither does this: whatever happens makes a new one.
    """

    inputs: Mapping[str, Input]
    """Of the policy."""
    memories: Mapping[str, KeyframeMemory]
    step: int = -1
    """Of control, the last that was seen."""

    @classmethod
    def of(cls, inputs: Mapping[str, Input]) -> Keyframes:
        """Empty, as an episode begins."""
        declared = {name: i.memory for name, i in inputs.items() if i.memory is not None}
        return cls(
            inputs,
            {
                name: KeyframeMemory(
                    settings=EventSettings(
                        threshold=memory.threshold,
                        least_offset=memory.least_offset,
                        nms_window=memory.nms_window,
                        cooldown=memory.cooldown,
                        most_keyframes=len(memory.slots),
                        num_replans=memory.num_replans,
                    )
                )
                for name, memory in declared.items()
            },
        )

    def stepped(self, values: Mapping[str, Any]) -> Keyframes:
        """A step of control: what is due is kept of what was seen."""
        step, memories = self.step + 1, dict(self.memories)
        for name, memory in memories.items():
            if memory.is_due(step):
                camera = self.inputs[self._memory(name).slots[0]].of
                memories[name] = memory.keep(step, values[camera])
        return dataclasses.replace(self, memories=memories, step=step)

    def replans(self) -> bool:
        """Whether a picture that the last step kept asks for a new plan at once."""
        return any(
            memory.keyframes and memory.keyframes[-1].step == self.step and memory.replans
            for memory in self.memories.values()
        )

    def considered(self, outputs: Mapping[str, NDArray[Any]]) -> Keyframes:
        """A chunk came, with how likely its steps are events."""
        memories = {
            name: memory.consider(outputs[self._memory(name).output], self.step)
            for name, memory in self.memories.items()
        }
        return dataclasses.replace(self, memories=memories)

    def shown(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Every input that shows what is kept, and how much that is; empty slots are zeros."""
        for name, memory in self.memories.items():
            slots = self._memory(name).slots
            nothing = np.zeros(self.inputs[slots[0]].shape, np.uint8)
            nothing.setflags(write=False)
            kept = [keyframe.picture for keyframe in memory.keyframes]
            yield name, np.array([len(kept)], np.float32)
            yield from zip(slots, [*kept, *[nothing] * (len(slots) - len(kept))], strict=True)

    def _memory(self, name: str) -> Memory:
        memory = self.inputs[name].memory
        assert memory is not None
        return memory
