"""Which action of which chunk is due at a control step: without a clock, a thread or a robot.

A chunk answers to an observation: its action k is meant for k control steps later. So a chunk that
comes late begins behind the actions whose moments are over. They are dropped and counted, and the
old chunk plays until then. Two steps do not age a chunk. While the robot holds, the plan stands
still with it: what follows is the action that the robot waited for, not one further on, which
would be a leap. And where the loop waits for the answer, no control step passes.

A chunk is valid for its horizon of T steps, held ones too, and no longer. Where none is valid,
nothing is due: the caller holds.

A question carries what real-time chunking wants (K. Black, M. Galliker and S. Levine, "Real-Time
Execution of Action Chunking Flow Policies", 2025): what will be carried out in the meantime, and
how much of it is certain.

T = action in the chunk, A = action dimension, R = action that is left, D = action that is certain.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError

NUM_DELAYS = 10
"""The certain part is as long as the longest of so many delays, as in the paper's experiments."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a thought has to answer to."""

    number: int
    """Answers carry it. No two questions have the same."""
    step: int
    """Control step of its observation."""
    ahead_RA: NDArray[np.float32]
    """[R, A] what is due from that step on if no answer comes; read-only."""
    num_committed: int
    """Of these, how many will be carried out before the answer can come."""

    @property
    def committed_DA(self) -> NDArray[np.float32]:
        """[D, A] the prefix that the answer cannot change any more."""
        return self.ahead_RA[: self.num_committed]

    def leftover(self, horizon: int) -> NDArray[np.float32]:
        """What a policy inpaints its answer on: float32 [T, 1 + A], weights and actions.

        1 where an action is committed; from there on it falls, by the paper's equation 5, until
        nothing is left of the old chunk.
        """
        num_left, num_committed = len(self.ahead_RA), self.num_committed
        leftover = np.zeros((horizon, 1 + self.ahead_RA.shape[1]), np.float32)
        leftover[:num_left, 1:] = self.ahead_RA
        index_R = np.arange(num_left)
        falling_R = (num_left - index_R) / (num_left - num_committed + 1)
        soft_R = falling_R * np.expm1(falling_R) / np.expm1(1)
        leftover[:num_left, 0] = np.where(index_R < num_committed, 1, soft_R)
        return leftover


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    actions_TA: NDArray[np.float32]
    step: int
    """Control step of its observation."""
    moved: int
    """Control steps until then at which the robot did not hold."""


class ChunkExecutor:
    """Order of calls in a control step: `answer`, `ask` where it `wants`, `answer`, `action`.

    Raises:
        ValueError: `execute` is more than a chunk holds.
    """

    def __init__(self, chunk_shape: tuple[int, int], *, execute: int) -> None:
        """
        Args:
            chunk_shape: (T, A).
            execute: control steps from one observation to the next. Held ones count: a robot that
                had to wait would ask too late again otherwise, and stop for every chunk.
        """
        self.horizon, self.dimensions = chunk_shape
        if execute > self.horizon:
            raise ValueError(
                f"execute={execute}, but a chunk of this policy has {self.horizon} actions"
            )
        self.num_overtaken = 0
        """Actions that were dropped because their moments were over when they could be sent."""
        self.num_stale = 0
        """Answers to another question than the last one; none of their actions was used."""
        self._execute = execute
        self._delays = deque([0], NUM_DELAYS)
        self._number = 0
        self._question: tuple[Question, int] | None = None
        self._chunk: _Chunk | None = None
        self._next = 0  # index of the action that would be due if nothing were late
        self._is_new = False  # whether no action of the chunk was due yet
        self._asked = 0  # step of the last observation
        self._is_hurried = False
        self._held = 0
        self._last: tuple[int, bool] = (-1, False)  # step of the last action; whether it was none

    @property
    def is_waiting(self) -> bool:
        """Whether the last question has no answer yet."""
        return self._question is not None

    def expect(self, delay: int) -> None:
        """How many control steps answers will take, until some came."""
        self._delays = deque([delay], NUM_DELAYS)

    def wants(self, step: int) -> bool:
        """Whether an observation is due at this control step."""
        if self.is_waiting:
            return False
        is_used_up = not self._is_valid(step) or step - self._asked >= self._execute
        return is_used_up or self._is_hurried

    def idle(self, step: int) -> int:
        """Control steps from this one to the next at which an observation may be due, if nothing
        hurries it: at least one. While an answer is waited for it may come at any."""
        if self.is_waiting:
            return 1
        steps = range(1, self._execute + 1)
        return next((n for n in steps if self.wants(step + n)), self._execute)

    def hurry(self) -> None:
        """An observation is due at the next control step that can have one."""
        self._is_hurried = True

    def ask(self, step: int) -> Question:
        """The question about an observation of this control step; a former one is given up."""
        self._number += 1
        ahead_RA = self._ahead(step)
        question = Question(self._number, step, ahead_RA, min(max(self._delays), len(ahead_RA)))
        self._asked, self._is_hurried = step, False
        self._question = question, self._moved(step)
        return question

    def answer(self, number: int, actions_TA: NDArray[np.float32]) -> bool:
        """Take a chunk, float32 [T, A], kept as it is; it counts from the next `action` on.

        Args:
            number: of the question that it answers to.
            actions_TA: in robot units.

        Returns:
            False if that is not the question that waits; nothing of it is used then.

        Raises:
            EngineError: the chunk has another shape than the policy declared.
        """
        if self._question is None or not self.asked(number):
            self.num_stale += 1
            return False
        if actions_TA.shape != (self.horizon, self.dimensions):
            raise EngineError(
                f"the policy answered with actions {list(actions_TA.shape)}, and declares "
                f"[{self.horizon}, {self.dimensions}]; none was sent: export the bundle again"
            )
        question, moved = self._question
        self._question = None
        self._chunk = _Chunk(actions_TA, question.step, moved)
        self._next, self._is_new = 0, True
        return True

    def asked(self, number: int) -> bool:
        """Whether that is the question that waits."""
        return self._question is not None and self._question[0].number == number

    def refuse(self, number: int) -> None:
        """Give a question up whose answer cannot be used; the chunk that plays goes on."""
        if self.asked(number):
            self._question = None

    def action(self, step: int) -> NDArray[np.float32] | None:
        """What is due at this control step, [A]; None where nothing is: hold then.

        Args:
            step: later than that of the last call. Steps between were missed.

        Raises:
            ValueError: it is not.
        """
        last, _ = self._last
        if step <= last:
            raise ValueError(f"control steps go forward, got {step} after {last}")
        moved, chunk = self._moved(step), self._chunk
        is_due = self._is_valid(step)
        self._held, self._last = step - moved, (step, not is_due)
        if chunk is None or not is_due:
            self.num_overtaken += 0 if chunk is None else self.horizon - self._next
            self._chunk = None
            return None
        index = moved - chunk.moved
        if self._is_new:
            self._delays.append(index)
            self._is_new = False
        self.num_overtaken += index - self._next
        self._next = index + 1
        action_A: NDArray[np.float32] = chunk.actions_TA[index]
        return action_A

    def reset(self) -> None:
        """Forget the chunk, and the question too: its answer will be a stale one."""
        self._chunk = self._question = None

    def _moved(self, step: int) -> int:
        """Control steps before this one at which the robot did not hold."""
        last, is_held = self._last
        return step - self._held - (step - last if is_held else 0)

    def _is_valid(self, step: int) -> bool:
        """Whether the chunk has an action for this step: it can have been held, but not moved, for
        longer than it is old."""
        return self._chunk is not None and step - self._chunk.step < self.horizon

    def _ahead(self, step: int) -> NDArray[np.float32]:
        if self._chunk is None or not self._is_valid(step):
            return np.empty((0, self.dimensions), np.float32)
        index = self._moved(step) - self._chunk.moved
        left = self.horizon - step + self._chunk.step
        ahead_RA: NDArray[np.float32] = self._chunk.actions_TA[index : index + left].view()
        ahead_RA.setflags(write=False)
        return ahead_RA
