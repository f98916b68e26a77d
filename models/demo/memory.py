"""Trains the demo policy that has something to remember, and writes a checkpoint folder.

    python -m models.demo blinks && python -m models.demo remember --out build/blink-trained

Behaviour cloning in three stages, as `models.demo.train` does it and for the same reasons:

1. `see`: vision tower and decoder, on goal heads that exist in training only: where the hand is,
   where it has to be, and where the marker stands that blinked.
2. `all`: everything, on the actions, on what is an event, and on the goal heads.
3. `heads`: trunks frozen, rows of the action tokens computed once, both heads alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from models.demo import BLINK_CHECKPOINT
from models.demo.config import RememberConfig
from models.demo.data import IMAGE
from models.demo.memory_data import STATISTICS, Batch, load_memories, make_batch
from models.demo.memory_learner import MemoryLearner
from models.demo.training import Lesson, Stage, Trainer, check_out
from models.eventvla.presets import blink

COUNTS = (1, 1, 2)
"""Questions about a scene without a keyframe, while the hand waits, and once it may go."""
HEAD_COUNTS = (6, 4, 12)
"""The same of every scene, for the heads alone."""


class Remember(Lesson):
    """Which marker blinked, and how to get there."""

    file = "memory.py"
    words = {"actions": "actions", "events": "events", "blinked": "marker that blinked"}
    held_out_words = {"held_out_m": "where the hand has to be"}
    image = IMAGE
    statistics = STATISTICS
    tokenizer = BLINK_CHECKPOINT / "tokenizer.json"

    def __init__(self, config: RememberConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.policy = config, blink()
        self.device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.data = load_memories(config.data, config.task, self.policy)
        self.learner = MemoryLearner(
            self.policy, self.data, self.tokenizer, seed=config.seed, device=self.device
        )
        self.model, self.heads = self.learner.model, self.learner.goal_heads
        self.note = f"{len(self.data.firsts)} episodes of {config.task}"
        self.begin(config.seed)

    def stages(self) -> Sequence[Stage]:
        c, learner = self.config, self.learner
        whole = (self.model, self.heads)
        heads = (learner.model.action_head, learner.model.keyframe_head)

        def see() -> dict[str, Tensor]:
            return learner.see(self._draw())

        def everything() -> dict[str, Tensor]:
            return learner.all(self._draw())

        return (
            Stage("see", c.see_steps, c.rate, lambda _: see, decays=False, modules=whole),
            Stage("all", c.all_steps, c.rate, lambda _: everything, modules=whole),
            Stage("heads", c.head_steps, c.rate / 2, self._heads, modules=heads),
        )

    def held_out(self, stage: str) -> dict[str, float]:
        """Of episodes that are never trained on, always the same questions."""
        random = np.random.default_rng(0)
        return self.learner.errors(self._batch(self._held_out, random, (2, 1, 2)))

    @property
    def _held_out(self) -> NDArray[np.int64]:
        return self.data.episodes(held_out=True)[:64]

    def _heads(self, is_new: bool) -> Callable[[], dict[str, Tensor]]:
        """Freeze the averaged trunks and compute the rows of many questions, once."""
        if is_new:
            self.model.load_state_dict(self.average.state_dict())
        # Of a generator of its own: a run that goes on computes the same rows.
        random = np.random.default_rng(self.config.seed)
        rows, index = list[Tensor](), list[NDArray[np.int64]]()
        episodes = self.data.episodes(held_out=False)
        with torch.no_grad():
            for some in np.array_split(episodes, 1 + len(episodes) // 8):
                batch = self._batch(some, random, HEAD_COUNTS)
                rows += [seen.rows for seen in self.learner.seen(batch)]
                index += [questions.index for questions in batch.questions]
        known_QTD, asked = torch.cat(rows), np.concatenate(index)

        def loss() -> dict[str, Tensor]:
            some = self.random.integers(len(asked), size=self.config.head_batch)
            return self.learner.act(known_QTD[some], asked[some])

        return loss

    def _draw(self) -> Batch:
        episodes = self.data.episodes(held_out=False)
        some = self.random.choice(episodes, self.config.scenes)
        return self._batch(some, self.random, COUNTS)

    def _batch(
        self,
        episodes: NDArray[np.int64],
        random: np.random.Generator,
        counts: tuple[int, int, int],
    ) -> Batch:
        return make_batch(self.data, episodes, random, counts=counts, device=self.device)


def remember(config: RememberConfig) -> None:
    """Do what `RememberConfig` says.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
    """
    check_out(config.out)
    Trainer(Remember(config), config.out).run(Console())
