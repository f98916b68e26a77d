"""Fits a leaf on the trained demo policy: where the marker or button is that the instruction names.

    python -m models.demo readout --out build/demo-trained

A ridge regression on the hidden state of the prompt's last token; nothing of the policy is trained,
so its actions stay the same bits. In: a folder that `train` wrote, and the data that it learned
from. Out, in that folder: the layer, the configuration that names it, and `readout.json`, how far
off it is in episodes of unseen seeds.

Axes: Q = question (a frame and an instruction), D = width of the language model, 3 = x, y, z.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.anchorvla4d.checkpoint import READOUTS
from models.anchorvla4d.config import AnchorVLA4DConfig
from models.demo.collect import rollout
from models.demo.config import GOAL, NUM_TRAINING_SEEDS, ReadoutConfig
from models.demo.data import Batch, Data, load_data, make_batch, patches
from models.demo.learner import Learner
from models.demo.training import DESCRIPTION
from models.families import read_config, to_json
from runtime.cli.progress import Progress
from runtime.errors import OutputError
from runtime.robots.metaworld import MetaWorldRobot
from runtime.storage.files import Kind, check_output, replacing, write_file

MEASURED = "readout.json"
LAYER = Kind("the demo's leaf", (f"{GOAL.name}.weight".encode(), f"{GOAL.name}.bias".encode()))
FIGURES = Kind("figures of the demo's leaf", (b'"mean_cm"', b'"questions"'))
FRAMES = 4
"""That an episode is judged by, the first one among them."""
NOISE = 0.5
"""Standard deviation of the disturbance of the hand in two of three episodes, as in the data."""
_BATCH = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """Questions and their answers."""

    features: Tensor
    """[Q, D] hidden state of the prompt's last token."""
    goal_cm: Tensor
    """[Q, 3]."""
    task: Tensor
    """[Q] its number."""


def readout(config: ReadoutConfig) -> None:
    """Do what `ReadoutConfig` says.

    Raises:
        OutputError: the folder holds no policy of `train`, or cannot be written.
        RobotError: the simulator cannot run here.
    """
    policy, lines = _open(config.out), Progress()
    data = load_data(config.data, config.tasks, policy)
    learner = Learner(policy, data, seed=0, draws=1, device="cpu")
    learner.model.load_state_dict(load_file(config.out / "model.safetensors"))
    learner.model.eval()
    lines.step(f"{GOAL.name}: hidden states of {config.frames} frames")
    learned = _learned(learner, config.frames)
    weight_3D, bias_3 = fit(learned, config.ridge)
    tasks: dict[str, dict[str, Any]] = {}
    for number, task in enumerate(config.tasks):
        lines.step(f"{GOAL.name}: {config.episodes} episodes of {task}")
        unseen = _unseen(learner, number, task, config.episodes)
        off_cm = (unseen.features @ weight_3D.T + bias_3 - unseen.goal_cm).norm(dim=1)
        mean_cm = learned.goal_cm[learned.task == number].mean(dim=0)
        tasks[task] = _figures(off_cm, (mean_cm - unseen.goal_cm).norm(dim=1)) | {
            "mean_cm": [round(value, 3) for value in mean_cm.tolist()]
        }
    measured = {
        "tasks": tasks,
        "questions": len(learned.goal_cm),
        "episodes": config.episodes,
        "seed0": NUM_TRAINING_SEEDS,
    }
    _write(config.out, policy, weight_3D, bias_3, measured)
    for task, row in tasks.items():
        print(
            f"{task}: {row['median_cm']:.1f} cm off in the median, {row['p95_cm']:.1f} p95; who "
            f"always says the task's mean {row['constant_median_cm']:.1f}"
        )


def fit(asked: Asked, ridge: float) -> tuple[Tensor, Tensor]:
    """Ridge regression on standardised features, in float64: weight [3, D] and bias [3], float32.

    Args:
        ridge: weight of the squared coefficients, per question.
    """
    x, y = asked.features.double(), asked.goal_cm.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    spread = x.std(dim=0).clamp(min=1e-6)
    z = (x - x_mean) / spread
    gram = z.T @ z + ridge * len(z) * torch.eye(z.shape[1], dtype=torch.float64)
    weight_3D = (torch.linalg.solve(gram, z.T @ (y - y_mean)) / spread[:, None]).T
    return weight_3D.float(), (y_mean - weight_3D @ x_mean).float()


def _open(folder: Path) -> AnchorVLA4DConfig:
    """The policy in a folder, without the leaf that it may have already."""
    check_output(folder / READOUTS, LAYER)
    check_output(folder / MEASURED, FIGURES)
    try:
        config = read_config(folder / "config.json")
    except (FileNotFoundError, ValueError):
        config = None
    if not isinstance(config, AnchorVLA4DConfig) or not config.description.startswith(DESCRIPTION):
        raise OutputError(
            f"{folder}: no policy of models.demo train in it; run: python -m models.demo train "
            f"--out {folder}"
        )
    return dataclasses.replace(config, readouts=())


def _learned(learner: Learner, frames: int) -> Asked:
    """Frames of the training data that no error of the training is measured on."""
    data = learner.data
    pool = np.flatnonzero(np.isin(data.episode, data.episodes(held_out=False)))
    pool = pool[np.linspace(0, len(pool) - 1, min(frames, len(pool))).astype(int)]
    batches = (
        make_batch(data, index, every_task=False, without_anchor=False, device="cpu")
        for index in np.array_split(pool, 1 + len(pool) // _BATCH)
    )
    return _asked(learner, batches)


def _unseen(learner: Learner, number: int, task: str, episodes: int) -> Asked:
    """Of the scripted expert's episodes, whether it succeeds or not.

    Args:
        number: of the task, among those that the learner knows.
    """
    random = np.random.default_rng(NUM_TRAINING_SEEDS)
    robot = MetaWorldRobot(task=task, seed=NUM_TRAINING_SEEDS, end_on_success=False)

    def batches() -> Iterator[Batch]:
        for episode in range(episodes):
            robot.reseed(NUM_TRAINING_SEEDS + episode)
            noise = NOISE if episode % 3 else 0.0
            seen = rollout(robot, random, frames=FRAMES, noise=noise)
            yield _batch(learner.data, seen, number)

    with closing(robot):
        return _asked(learner, batches())


def _batch(data: Data, seen: dict[str, Any], task: int) -> Batch:
    """The frames of a roll-out, asked about its own task."""
    count = len(seen["images"])
    goal = data.standardised(seen["goal_m"]).expand(count, -1)
    nothing = np.zeros(count, np.int64)
    return Batch(
        anchors=patches(torch.from_numpy(seen["anchor"][None].copy())),
        frames=patches(torch.from_numpy(seen["images"])),
        anchor_of=nothing,
        frame_of=np.arange(count),
        index=nothing,
        task=nothing + task,
        goal=goal,
        goals=goal,
    )


def _asked(learner: Learner, batches: Iterator[Batch]) -> Asked:
    asked = [
        Asked(
            learner.last(batch),
            100 * learner.data.metres(batch.goal),
            torch.from_numpy(batch.task),
        )
        for batch in batches
    ]
    parts = zip(*((a.features, a.goal_cm, a.task) for a in asked), strict=True)
    return Asked(*map(torch.cat, parts))


def _figures(off_cm: Tensor, constant_cm: Tensor) -> dict[str, float]:
    """Distances of the leaf, and of always saying the mean that the task has in the data."""
    rows = {"": off_cm, "constant_": constant_cm}
    return {"questions": len(off_cm)} | {
        f"{whose}{name}_cm": round(float(values.quantile(share)), 3)
        for whose, values in rows.items()
        for name, share in (("median", 0.5), ("p95", 0.95))
    }


def _write(
    folder: Path,
    policy: AnchorVLA4DConfig,
    weight_3D: Tensor,
    bias_3: Tensor,
    measured: dict[str, Any],
) -> None:
    layer = {f"{GOAL.name}.weight": weight_3D.contiguous(), f"{GOAL.name}.bias": bias_3}
    with replacing(folder / READOUTS, LAYER) as partial:
        save_file(layer, partial)
        partial.chmod(0o644)  # the library writes for the owner only
    write_file(folder / "config.json", to_json(dataclasses.replace(policy, readouts=(GOAL,))))
    write_file(folder / MEASURED, json.dumps(measured, indent=1) + "\n", FIGURES)
