"""Trains the demo policy by behaviour cloning, in three stages, and writes a checkpoint folder.

    python -m models.demo collect && python -m models.demo train --out build/demo-trained

The policy's own diffusion loss alone does not train this structure from scratch at this size: after
the fusion's LayerNorm the pooled vector hardly varies between samples. Goal heads that exist in
training only, on batch-normalised means of the trunks' tokens, remove that common mode. Stages:

1. `see`: vision tower and decoder, on the goal heads.
2. `all`: everything, on the diffusion loss and the goal heads.
3. `head`: trunks frozen, pooled vectors computed once, fusion and head alone, half of each batch
   near the goal. Cheap steps where the precision is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from models.anchorvla4d.presets import demo
from models.demo import CHECKPOINT
from models.demo.config import ReadoutConfig, TrainConfig
from models.demo.data import IMAGE, Batch, load_data, make_batch
from models.demo.learner import Learner
from models.demo.readout import readout
from models.demo.training import Lesson, Stage, Trainer, check_out

NEAR_M = 0.10
"""Frames closer to the goal than this are drawn twice as often in the last stage."""


class Touch(Lesson):
    """Where the instruction's goal was in the anchor, and how to get there."""

    file = "train.py"
    words = {"scene": "goals of the scene", "goal_mean": "goal", "epsilon": "diffusion"}
    held_out_words = {"held_out_m": "decoder", "held_out_condition_m": "condition"}
    image = IMAGE
    tokenizer = CHECKPOINT / "tokenizer.json"

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.policy = config, demo()
        self.device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.data = load_data(config.data, config.tasks, demo())
        self.learner = Learner(
            demo(), self.data, seed=config.seed, draws=config.draws, device=self.device
        )
        self.model, self.heads = self.learner.model, self.learner.goal_heads
        self.statistics = self.data.statistics
        self.note = f"tasks: {', '.join(config.tasks)}"
        self.begin(config.seed)

    def stages(self) -> Sequence[Stage]:
        c, learner = self.config, self.learner
        whole, head = (self.model, self.heads), (learner.model.action_head, self.heads)

        def see() -> dict[str, Tensor]:
            return learner.see(self._draw(1))

        def everything() -> dict[str, Tensor]:
            return learner.all(self._draw(2))

        return (
            Stage("see", c.see_steps, c.rate, lambda _: see, decays=False, modules=whole),
            Stage("all", c.all_steps, c.rate, lambda _: everything, modules=whole),
            Stage("head", c.head_steps, c.rate / 2, self._head, modules=head),
        )

    def _head(self, is_new: bool) -> Callable[[], dict[str, Tensor]]:
        """Freeze the averaged trunks and compute the pooled vector of every frame, once."""
        if is_new:
            self.model.load_state_dict(self.average.state_dict())
        data = self.data
        pooled = self._pooled(np.arange(len(data.episode)))
        frames = np.flatnonzero(np.isin(data.episode, data.episodes(held_out=False)))
        near = frames[data.distance_m[frames] < NEAR_M]
        goals = data.goals[np.arange(len(data.task)), data.task].to(self.device)
        half = self.config.head_batch // 2

        def loss() -> dict[str, Tensor]:
            pools = (frames, near if len(near) else frames)
            index = np.concatenate([self.random.choice(pool, half) for pool in pools])
            goal = goals[data.episode[index]]
            return self.learner.act(pooled[index], index, goal, weight=0.3)

        return loss

    @torch.no_grad()
    def _pooled(self, index: NDArray[np.int64]) -> Tensor:
        parts = np.array_split(index, 1 + len(index) // 64)
        return torch.cat([self.learner.pooled(self._batch(p, every_task=False)) for p in parts])

    def held_out(self, stage: str) -> dict[str, float]:
        """Goal errors on roll-outs that are never trained on."""
        episodes = self.data.episodes(held_out=True)
        episodes = episodes[:: max(1, len(episodes) // 64)]
        see = stage == "see"
        batch = self._batch(self.data.first[episodes], every_task=see)
        return self.learner.error_m(batch, with_condition=not see)

    def _draw(self, frames: int) -> Batch:
        """Random frames of random roll-outs; a single frame is asked everything."""
        pool = self.data.episodes(held_out=False)
        episodes = self.random.choice(pool, self.config.scenes).repeat(frames)
        first, stop = self.data.first[episodes], self.data.first[episodes + 1]
        index = first + (self.random.random(len(episodes)) * (stop - first)).astype(int)
        return self._batch(index, every_task=frames == 1)

    def _batch(self, index: NDArray[np.int64], *, every_task: bool) -> Batch:
        return make_batch(
            self.data, index, every_task=every_task,
            without_anchor=self.config.without_anchor, device=self.device,
        )  # fmt: skip


def train(config: TrainConfig) -> None:
    """Do what `TrainConfig` says.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
    """
    check_out(config.out)
    Trainer(Touch(config), config.out).run(Console())
    if not config.without_anchor:  # it has no idea where a marker was
        readout(ReadoutConfig(data=config.data, out=config.out, tasks=config.tasks))
