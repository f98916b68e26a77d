"""A training in stages that can be cut off: what the demo policies' recipes have in common.

A `Lesson` says what is learned of what; `Trainer` turns its stages into steps, averages the weights
exponentially, tells how far it is and writes a checkpoint folder. A state file makes a run
resumable: cut off and resumed, it ends in the same bits.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from models.families import read_config, to_json
from models.policy_config import PolicyConfig
from models.processor import image_fields
from runtime.cli.progress import Progress
from runtime.image import ImageConfig
from runtime.pages import svg
from runtime.storage.files import PARTIAL, replacing, write_file
from runtime.storage.folders import check_folder

STATE = "state.pt"
FILES = (
    "config.json", "preprocessor_config.json", "dataset_statistics.json", "tokenizer.json",
    "curve.json", "loss.svg", "held-out.svg", "model.safetensors", STATE,
    "readouts.safetensors", "readout.json",
)  # fmt: skip
DESCRIPTION = "trained by models/demo/"
REPORT_STEPS = 100


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a training."""

    name: str
    steps: int
    peak: float
    """Learning rate after the warm-up."""
    prepare: Callable[[bool], Callable[[], dict[str, Tensor]]]
    """Makes the function that computes a step's losses; told whether the stage begins, or goes on
    where it was cut off."""
    decays: bool = True
    """Whether the rate falls by a cosine to 2 % of its peak; it stays there otherwise."""
    modules: Sequence[nn.Module] = ()
    """Whose weights are trained."""

    def rate_at(self, step: int) -> float:
        """50 steps of warm-up, and what `decays` says."""
        decay = 0.02 + 0.49 * (1 + np.cos(np.pi * step / self.steps)) if self.decays else 1.0
        return float(self.peak * min(1.0, (step + 1) / 50) * decay)


def goal_head(width: int, out: int = 3) -> nn.Sequential:
    """Regresses places from averaged tokens, in training only: without what all samples share."""
    norm = nn.BatchNorm1d(width, affine=False, track_running_stats=False)
    return nn.Sequential(norm, nn.Linear(width, out))


class Lesson(ABC):
    """What is learned: a policy, heads that exist in training only, and the losses of each stage.

    `average` is kept by the trainer. Whatever is drawn is drawn from `random` or by torch.
    """

    file: ClassVar[str]
    """Where the recipe stands, for the record."""
    words: ClassVar[Mapping[str, str]]
    """Losses that the plot shows, and how."""
    held_out_words: ClassVar[Mapping[str, str]]
    """Likewise of what `held_out` measures, in metres."""
    image: ClassVar[ImageConfig]
    policy: PolicyConfig
    model: nn.Module
    heads: nn.Module
    statistics: Mapping[str, Any]
    """Contents of `dataset_statistics.json`."""
    tokenizer: Path
    note: str
    """What else the description says of the weights."""
    seed: int
    """Of weights and batches."""

    def begin(self, seed: int) -> None:
        """Average and generator, once model and heads are there."""
        self.seed = seed
        self.average = copy.deepcopy(self.model)
        self.random = np.random.default_rng(seed)

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """In order."""

    @abstractmethod
    def held_out(self, stage: str) -> dict[str, float]:
        """Errors on episodes that are never trained on."""


class Trainer:
    """One run."""

    def __init__(self, lesson: Lesson, out: Path) -> None:
        """
        Args:
            lesson: what is learned.
            out: checkpoint folder; holds the state meanwhile.
        """
        self.lesson, self.out = lesson, out
        self.stages = lesson.stages()
        self.stage, self.step, self.seconds = 0, 0, 0.0
        self.optimizer = self._new_optimizer()
        self.curve: list[dict[str, Any]] = []

    def run(self, console: Console) -> None:
        """Train from where the state file left off to the end, and write the checkpoint."""
        self._resume(console)
        for number, stage in enumerate(self.stages):
            if number >= self.stage:
                self._train(stage, console)
                self.stage, self.step = number + 1, 0
                self.optimizer = self._new_optimizer()
                self._save()
        write_checkpoint(self)

    def _train(self, stage: Stage, console: Console) -> None:
        loss = stage.prepare(self.step == 0)
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
            held_out = self.lesson.held_out(stage.name)
            point = {"stage": stage.name, "step": self.step, **shown, **held_out}
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

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """AdamW of what the stage trains."""
        modules = self.stages[min(self.stage, len(self.stages) - 1)].modules
        parameters = [p for module in modules for p in module.parameters()]
        return torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ]
        )

    def _update_average(self) -> None:
        weight = 1 - min(0.995, self.step / (self.step + 20))
        lesson = self.lesson
        with torch.no_grad():
            pairs = zip(lesson.average.parameters(), lesson.model.parameters(), strict=True)
            for average, ours in pairs:
                average.lerp_(ours, weight)

    def _state_path(self) -> Path:
        return self.out / STATE

    def _save(self) -> None:
        lesson = self.lesson
        state = {
            "model": lesson.model.state_dict(),
            "average": lesson.average.state_dict(),
            "goal_heads": lesson.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": json.dumps(lesson.random.bit_generator.state),
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
        lesson = self.lesson
        device = next(lesson.model.parameters()).device
        state = torch.load(self._state_path(), weights_only=True, map_location=device)
        self.stage, self.step, self.curve = state["stage"], state["step"], state["curve"]
        self.seconds = state["seconds"]
        lesson.model.load_state_dict(state["model"])
        lesson.average.load_state_dict(state["average"])
        lesson.heads.load_state_dict(state["goal_heads"])
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        lesson.random.bit_generator.state = json.loads(state["random"])
        torch.set_rng_state(state["torch_random"].cpu())
        console.print(f"resumed at stage {self.stage}, step {self.step}")


def check_out(folder: Path) -> None:
    """
    Raises:
        OutputError: the folder holds something else, or cannot be written.
    """
    check_folder(folder, foreign)


def write_checkpoint(trainer: Trainer) -> None:
    """The averaged weights as float16, with everything a checkpoint folder needs."""
    lesson, folder = trainer.lesson, trainer.out
    config = dataclasses.replace(
        lesson.policy,
        description=f"{DESCRIPTION}{lesson.file}, seed {lesson.seed}, "
        f"{trainer.seconds / 60:.0f} minutes, {lesson.note}",
    )
    write_file(folder / "config.json", to_json(config))
    write_file(
        folder / "preprocessor_config.json", json.dumps(image_fields(lesson.image), indent=2)
    )
    write_file(folder / "dataset_statistics.json", json.dumps(lesson.statistics, indent=2))
    write_file(folder / "tokenizer.json", lesson.tokenizer.read_bytes())
    write_file(folder / "curve.json", json.dumps(trainer.curve) + "\n")
    draw_curve(trainer.curve, lesson, folder)
    half = {name: value.half().cpu() for name, value in lesson.average.state_dict().items()}
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


def draw_curve(curve: Sequence[Mapping[str, Any]], lesson: Lesson, folder: Path) -> None:
    """`loss.svg` and `held-out.svg`: what was minimised, and how far off unseen goals were."""
    names = list(dict.fromkeys(point["stage"] for point in curve))
    ends = {name: max(p["step"] for p in curve if p["stage"] == name) for name in names}
    starts = dict(zip(names, itertools.accumulate([0, *ends.values()]), strict=False))

    def series(scale: float, words: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
        return {
            label: [(starts[p["stage"]] + p["step"], scale * p[k]) for p in curve if k in p]
            for k, label in words.items()
        }

    write_file(
        folder / "loss.svg",
        svg.standalone(
            svg.lines(
                series(1, lesson.words),
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
                series(100, lesson.held_out_words),
                title="Error of unseen goals over the steps of training",
                x_title="steps", y_title="cm, rms", from_zero=True,
            )
        )
    )  # fmt: skip
