"""What the verbs of `python -m models.demo` are asked for. Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.demo import CHECKPOINT
from models.networks.readout_config import ReadoutConfig as Readout
from runtime.robots.metaworld import TASKS

DEMO_TASKS = ("touch-red", "touch-green", "touch-blue", "button-press-topdown")
SEEDS_PER_TASK = 1000
NUM_TRAINING_SEEDS = 10_000
"""Seeds from there on are for evaluation."""
GOAL = Readout(name="goal", elements=("x", "y", "z"), unit="cm", reads="end")
"""The leaf that says where the marker or button is that the instruction names, in the frame of the
state's hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    """How much to collect.

    example: python -m models.demo collect --tasks touch-red --out build/demo-data
    """

    out: Path = Path("build/demo-data")
    """Folder for one .npz per task."""

    tasks: tuple[str, ...] = DEMO_TASKS
    """Keys of `runtime.robots.metaworld.TASKS`."""

    rollouts: int = 1500
    """Per task."""

    frames: int = 4
    """Rendered per roll-out besides the anchor; one of them shows step 0 without markers."""

    noise: float = 0.5
    """Standard deviation of the disturbance of the hand, in two of three roll-outs."""

    seed: int = 0
    """Of the first task; each task has a seed of its own, so that no two tasks have one layout.
    Seeds below 10000 are for training; evaluation uses higher ones."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tasks) - TASKS.keys()):
            raise ValueError(f"unknown tasks {unknown}; there are {sorted(TASKS)}")
        if blinking := [task for task in self.tasks if TASKS[task].blink]:
            raise ValueError(
                f"{', '.join(blinking)}: a few frames of a roll-out miss the blink; "
                "record whole episodes: python -m models.demo blinks"
            )
        if self.rollouts < 1 or not 1 <= self.frames <= 50:
            raise ValueError(
                f"rollouts must be positive and frames in [1, 50], got {self.rollouts}, "
                f"{self.frames}"
            )
        if not 0 <= self.seed < SEEDS_PER_TASK:
            raise ValueError(f"seed must be in [0, {SEEDS_PER_TASK}), got {self.seed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordConfig:
    """Where the episodes go and how they look.

    example: python -m models.demo record --out build/episodes
    """

    out: Path
    """Folder for the .npz files; made if it does not exist."""

    image_size: int = 112
    """Side of the square frames in pixels."""

    seed: int = 1
    """Of the first task's episode; the next tasks count on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlinksConfig:
    """How many episodes of the task with a blink.

    example: python -m models.demo blinks --episodes 300 --out build/blinks
    """

    out: Path = Path("build/blinks")
    """Folder for one .npz per episode; made if it does not exist."""

    task: str = "touch-what-blinked"
    """Key of `runtime.robots.metaworld.TASKS`."""

    episodes: int = 1000
    """Of the seeds from `seed` on; those in which the expert fails are left out."""

    noise: float = 0.5
    """Standard deviation of the disturbance of the hand, in two of three episodes."""

    image_size: int = 112
    """Side of the square frames in pixels."""

    seed: int = 0
    """Of the first episode; evaluation uses those from 10000 on."""

    jobs: int = 2
    """Processes."""

    def __post_init__(self) -> None:
        if self.task not in TASKS or TASKS[self.task].blink is None:
            known = ", ".join(name for name, task in TASKS.items() if task.blink)
            raise ValueError(f"task must be one with a blink ({known}), got {self.task!r}")
        if min(self.episodes, self.jobs) < 1 or self.noise < 0:
            raise ValueError(
                f"episodes and jobs must be positive and noise not negative, got {self.episodes}, "
                f"{self.jobs}, {self.noise}"
            )
        if not 0 <= self.seed <= NUM_TRAINING_SEEDS - self.episodes:
            raise ValueError(
                f"seeds {self.seed} to {self.seed + self.episodes - 1} are not all in "
                f"[0, {NUM_TRAINING_SEEDS}); choose another seed or fewer episodes"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long and how fast.

    example: python -m models.demo train --seed 1 --out build/demo-seed1
    """

    data: Path = Path("build/demo-data")
    """Folder written by `models.demo.collect`."""

    out: Path = Path("build/demo-trained")
    """Checkpoint folder to write; holds the resumable state while training."""

    tasks: tuple[str, ...] = DEMO_TASKS
    """Files of the data folder to learn from."""

    see_steps: int = 2500
    """Steps of the first stage."""

    all_steps: int = 1500
    """Steps of the second."""

    head_steps: int = 2500
    """Steps of the third."""

    scenes: int = 16
    """Roll-outs per step of the first two stages: a frame of each, then two."""

    head_batch: int = 128
    """Pooled vectors per step of the third."""

    draws: int = 4
    """Noise draws per condition."""

    rate: float = 1e-3
    """Peak learning rate; half of it in the last stage."""

    seed: int = 0
    """Of weights and batches."""

    without_anchor: bool = False
    """Train the baseline that sees the current frame in place of the anchor."""

    device: str | None = None
    """Where to train: on a GPU where there is one, if left out."""

    def __post_init__(self) -> None:
        _check_training(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutConfig:
    """A leaf for a trained demo policy: where what the instruction names is.

    example: python -m models.demo readout --out build/demo-trained
    """

    data: Path = Path("build/demo-data")
    """Folder written by `models.demo.collect`."""

    out: Path = Path("build/demo-trained")
    """Checkpoint folder that gets it; `model.safetensors` stays as it is."""

    tasks: tuple[str, ...] = DEMO_TASKS
    """Files of the data folder to learn from."""

    frames: int = 6000
    """To learn from, spread evenly."""

    ridge: float = 0.01
    """Weight of the penalty, where every feature has a variance of 1."""

    episodes: int = 25
    """Of each task to judge by, of the seeds from 10000 on."""

    def __post_init__(self) -> None:
        if min(self.frames, self.episodes) < 1 or not 0 < self.ridge < 1:
            raise ValueError(
                f"frames and episodes must be positive and ridge in (0, 1), got {self.frames}, "
                f"{self.episodes}, {self.ridge}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RememberConfig:
    """How long and how fast, of the policy with a memory.

    example: python -m models.demo remember --seed 1 --out build/blink-seed1
    """

    data: Path = Path("build/blinks")
    """Folder written by `models.demo.blinks`."""

    out: Path = Path("build/blink-trained")
    """Checkpoint folder to write; holds the resumable state while training."""

    task: str = "touch-what-blinked"
    """Whose episodes to learn from."""

    see_steps: int = 900
    """Steps of the first stage."""

    all_steps: int = 1500
    """Steps of the second."""

    head_steps: int = 3000
    """Steps of the third."""

    scenes: int = 16
    """Episodes per step of the first two stages."""

    head_batch: int = 256
    """Questions per step of the third."""

    rate: float = 1e-3
    """Peak learning rate; half of it in the last stage."""

    seed: int = 0
    """Of weights and batches."""

    device: str | None = None
    """Where to train: on a GPU where there is one, if left out."""

    def __post_init__(self) -> None:
        _check_training(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """Train a demo policy's vocabulary again; it comes out the same.

    example: python -m models.demo tokenizer --out build/tokenizer.json
    """

    policy: Literal["demo", "blink"] = "demo"
    """Whose prompt it has the words of."""

    out: Path = CHECKPOINT / "tokenizer.json"
    """File to write."""


def _check_training(config: TrainConfig | RememberConfig) -> None:
    if config.scenes < 2:
        raise ValueError(f"a batch needs at least two scenes, got {config.scenes}")
    if min(config.see_steps, config.all_steps, config.head_steps) < 1:
        raise ValueError("every stage needs at least one step")
