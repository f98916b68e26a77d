"""Trains the demo policy by behaviour cloning, in three stages, and writes a checkpoint folder.

    python -m models.demo collect && python -m models.demo train --out build/demo-trained

The policy's own diffusion loss alone does not train this structure from scratch at this size: after
the fusion's LayerNorm the pooled vector hardly varies between samples. Goal heads that exist in
training only, on batch-normalised means of the trunks' tokens, remove that common mode. Stages:

1. `see`: vision tower and decoder, on the goal heads.
2. `all`: everything, on the diffusion loss and the goal heads.
3. `head`: trunks frozen, pooled vectors computed once, fusion and head alone, half of each batch
   near the goal. Cheap steps where the precision is decided.

Weights are averaged exponentially. A state file makes a run resumable: cut off and resumed, it ends
in the same bits.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from models.anchorvla4d.presets import demo
from models.demo import CHECKPOINT
from models.demo.config import TrainConfig
from models.demo.data import IMAGE, Batch, load_data, make_batch
from models.demo.learner import Learner
from models.families import read_config, to_json
from models.processor import image_fields
from runtime.cli.progress import Progress
from runtime.pages import svg
from runtime.storage.files import PARTIAL, replacing, write_file
from runtime.storage.folders import check_folder

STATE = "state.pt"
FILES = (
    "config.json", "preprocessor_config.json", "dataset_statistics.json", "tokenizer.json",
    "curve.json", "loss.svg", "held-out.svg", "model.safetensors", STATE,
)  # fmt: skip
DESCRIPTION = "trained by models/demo/train.py"
STAGES = ("see", "all", "head")
REPORT_STEPS = 100
NEAR_M = 0.10
"""Frames closer to the goal than this are drawn twice as often in the last stage."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of the training."""

    name: str
    steps: int
    peak: float
    """Learning rate after the warm-up."""
    prepare: Callable[[], Callable[[], dict[str, Tensor]]]
    """Makes the function that computes a step's losses."""

    def rate_at(self, step: int) -> float:
        """50 steps of warm-up; constant in the first stage, a cosine to 2 % in the others."""
        decay = 1.0 if self.name == "see" else 0.02 + 0.49 * (1 + np.cos(np.pi * step / self.steps))
        return float(self.peak * min(1.0, (step + 1) / 50) * decay)


class Trainer:
    """One run: the policy, its average, the goal heads and the data."""

    def __init__(self, config: TrainConfig) -> None:
        """
        Raises:
            OutputError: the folder holds something else, or cannot be written.
        """
        check_folder(config.out, foreign)
        torch.manual_seed(config.seed)
        self.config = config
        self.device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.data = load_data(config.data, config.tasks, demo())
        self.learner = Learner(
            demo(), self.data, seed=config.seed, draws=config.draws, device=self.device
        )
        self.average = copy.deepcopy(self.learner.model)
        self.stage, self.step, self.seconds = 0, 0, 0.0
        self.optimizer = self._new_optimizer()
        self.random = np.random.default_rng(config.seed)
        self.curve: list[dict[str, Any]] = []

    def run(self, console: Console) -> None:
        """Train from where the state file left off to the end, and write the checkpoint."""
        c, learner = self.config, self.learner
        stages = [
            Stage(STAGES[0], c.see_steps, c.rate, lambda: lambda: learner.see(self._draw(1))),
            Stage(STAGES[1], c.all_steps, c.rate, lambda: lambda: learner.all(self._draw(2))),
            Stage(STAGES[2], c.head_steps, c.rate / 2, self._head),
        ]
        self._resume(console)
        for number, stage in enumerate(stages):
            if number >= self.stage:
                self._train(stage, console)
                self.stage, self.step = number + 1, 0
                self.optimizer = self._new_optimizer()
                self._save()
        write_checkpoint(self)

    def _train(self, stage: Stage, console: Console) -> None:
        loss = stage.prepare()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        started = saved = time.monotonic()
        first, shown = self.step, dict[str, float]()
        lines = Progress()
        lines.step(stage.name)
        while self.step < stage.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = stage.rate_at(self.step)
            losses = loss()
            self.optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            lines.count(self.step, stage.steps)
            self._update_average()
            for name, value in losses.items():
                shown[name] = 0.98 * shown.get(name, value.item()) + 0.02 * value.item()
            if self.step % REPORT_STEPS and self.step != stage.steps:
                continue
            now = time.monotonic()
            left = (now - started) / (self.step - first) * (stage.steps - self.step)
            point = {"stage": stage.name, "step": self.step, **shown, **self._held_out()}
            self.curve.append(point)
            lines.close()
            words = ", ".join(f"{k} {v:.4f}" for k, v in point.items() if isinstance(v, float))
            console.print(
                f"{stage.name} {self.step}/{stage.steps}: {words}; {left:.0f} s left in it",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
            self.seconds += now - saved
            saved = now
            self._save()

    def _head(self) -> Callable[[], dict[str, Tensor]]:
        """Freeze the averaged trunks and compute the pooled vector of every frame, once."""
        if self.step == 0:
            self.learner.model.load_state_dict(self.average.state_dict())
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

    def _held_out(self) -> dict[str, float]:
        """Goal errors on roll-outs that are never trained on."""
        episodes = self.data.episodes(held_out=True)
        episodes = episodes[:: max(1, len(episodes) // 64)]
        see = self.stage == 0
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

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """AdamW; from the last stage on, of the head alone."""
        model = self.learner.model
        modules = [model if self.stage < 2 else model.action_head, self.learner.goal_heads]
        parameters = [p for module in modules for p in module.parameters()]
        return torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ]
        )

    def _update_average(self) -> None:
        weight = 1 - min(0.995, self.step / (self.step + 20))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.learner.model.parameters(), strict=True)
            for average, ours in pairs:
                average.lerp_(ours, weight)

    def _state_path(self) -> Path:
        return self.config.out / STATE

    def _save(self) -> None:
        state = {
            "model": self.learner.model.state_dict(),
            "average": self.average.state_dict(),
            "goal_heads": self.learner.goal_heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": json.dumps(self.random.bit_generator.state),
            "torch_random": torch.get_rng_state(),
            "stage": self.stage,
            "step": self.step,
            "curve": self.curve,
            "seconds": self.seconds,
        }
        with replacing(self._state_path()) as partial, partial.open("wb") as file:
            torch.save(state, file)

    def _resume(self, console: Console) -> None:
        if not self._state_path().exists():
            return
        state = torch.load(self._state_path(), weights_only=True, map_location=self.device)
        self.stage, self.step, self.curve = state["stage"], state["step"], state["curve"]
        self.seconds = state["seconds"]
        self.learner.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.learner.goal_heads.load_state_dict(state["goal_heads"])
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.bit_generator.state = json.loads(state["random"])
        torch.set_rng_state(state["torch_random"].cpu())
        console.print(f"resumed at stage {self.stage}, step {self.step}")


def write_checkpoint(trainer: Trainer) -> None:
    """The averaged weights as float16, with everything a checkpoint folder needs."""
    c = trainer.config
    config = dataclasses.replace(
        demo(),
        description=f"{DESCRIPTION}, seed {c.seed}, "
        f"{trainer.seconds / 60:.0f} minutes, tasks: {', '.join(c.tasks)}",
    )
    folder = c.out
    write_file(folder / "config.json", to_json(config))
    write_file(folder / "preprocessor_config.json", json.dumps(image_fields(IMAGE), indent=2))
    write_file(folder / "dataset_statistics.json", json.dumps(trainer.data.statistics, indent=2))
    write_file(folder / "tokenizer.json", (CHECKPOINT / "tokenizer.json").read_bytes())
    write_file(folder / "curve.json", json.dumps(trainer.curve) + "\n")
    draw_curve(trainer.curve, folder)
    half = {name: value.half().cpu() for name, value in trainer.average.state_dict().items()}
    with replacing(folder / "model.safetensors") as partial:
        save_file(half, partial)
        partial.chmod(0o644)  # the library writes for the owner only


def foreign(folder: Path) -> str | None:
    """What keeps a folder from being one that a training wrote."""
    try:
        described = str(read_config(folder / "config.json").description)
    except (FileNotFoundError, ValueError):
        described = ""
    if not described.startswith(DESCRIPTION) and not (folder / STATE).is_file():
        return "neither a state nor a policy of this training is in it"
    return next((f"{p.name} is not of it" for p in folder.iterdir() if not is_own(p)), None)


def is_own(path: Path) -> bool:
    """Is it a file that a training writes, or left half when it was killed?"""
    return path.is_file() and (path.name in FILES or PARTIAL.fullmatch(path.name) is not None)


def draw_curve(curve: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """`loss.svg` and `held-out.svg`: what was minimised, and how far off unseen goals were."""
    ends = {stage: max(p["step"] for p in curve if p["stage"] == stage) for stage in STAGES}
    starts = dict(zip(STAGES, itertools.accumulate([0, *ends.values()]), strict=False))

    def series(scale: float, names: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
        return {
            words: [(starts[p["stage"]] + p["step"], scale * p[k]) for p in curve if k in p]
            for k, words in names.items()
        }

    loss = {"scene": "goals of the scene", "goal_mean": "goal", "epsilon": "diffusion"}
    held_out = {"held_out_m": "decoder", "held_out_condition_m": "condition"}
    write_file(
        folder / "loss.svg",
        svg.standalone(
            svg.lines(
                series(1, loss),
                title="Losses over the steps of training",
                x_title="steps",
                y_title="loss",
                from_zero=True,
            )
        ),
    )
    write_file(
        folder / "held-out.svg",
        svg.standalone(
            svg.lines(
                series(100, held_out), title="Error of unseen goals over the steps of training",
                x_title="steps", y_title="cm, rms", from_zero=True,
            )
        )
    )  # fmt: skip


def train(config: TrainConfig) -> None:
    """Do what `TrainConfig` says."""
    Trainer(config).run(Console())
