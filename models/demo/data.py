"""The collected roll-outs in memory, and batches of them.

Every roll-out knows the goal of each task that its scene could pose: a scene with three markers
answers three instructions. Trunks can therefore be asked about all of them for one look at the
pictures, which is what teaches a colour's word.

Axes: E = roll-out, F = frame, K = task, Q = question (a frame and an instruction), N = patches,
T = action of the chunk, A = action dimension, S = state dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.checkpoint import normalizations
from models.demo.collect import COLOURS
from runtime.image import ImageConfig, PatchMaker
from runtime.robots.metaworld import TASKS

IMAGE = ImageConfig(min_pixels=1, max_pixels=512 * 512)
GRID = (8, 8)
ROBOT = "metaworld_sawyer"
HELD_OUT = 20
"""One roll-out of so many is never trained on."""


@dataclass(frozen=True, slots=True)
class Data:
    """All tasks together, images as uint8."""

    anchors: Tensor
    """[E, H, W, 3]."""
    images: Tensor
    """[F, H, W, 3]."""
    states: Tensor
    """[F, S] in policy units."""
    chunks: Tensor
    """[F, T, A] in policy units."""
    goals: Tensor
    """[E, K, 3] standardised; NaN where the scene does not pose the task."""
    goal_mean_m: NDArray[np.float32]
    """[3], what 0 means in `goals`."""
    goal_spread_m: NDArray[np.float32]
    """[3], what 1 means in `goals`."""
    episode: NDArray[np.int64]
    """Roll-out of each frame."""
    first: NDArray[np.int64]
    """First frame of each roll-out, and one past the last of all."""
    task: NDArray[np.int64]
    """Task of each roll-out."""
    distance_m: NDArray[np.float32]
    """Hand to goal in each frame."""
    instructions: tuple[str, ...]
    """Of each task."""
    statistics: dict[str, Any]
    """Contents of `dataset_statistics.json`."""

    def standardised(self, goals_m: NDArray[np.float32]) -> Tensor:
        """[..., 3] metres as `goals` has them."""
        return torch.from_numpy((goals_m - self.goal_mean_m) / self.goal_spread_m)

    def metres(self, goals: Tensor) -> Tensor:
        """The other way."""
        return goals * torch.from_numpy(self.goal_spread_m) + torch.from_numpy(self.goal_mean_m)

    def episodes(self, *, held_out: bool) -> NDArray[np.int64]:
        """Roll-outs to train on, or those to judge by."""
        numbers = np.arange(len(self.task))
        return numbers[(numbers % HELD_OUT == 0) == held_out]


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures once each, and the questions asked about them."""

    anchors: Tensor
    """[., N, patch_dim]."""
    frames: Tensor
    """[., N, patch_dim]."""
    anchor_of: NDArray[np.int64]
    """Row of `anchors` for each question."""
    frame_of: NDArray[np.int64]
    """Row of `frames` for each question."""
    index: NDArray[np.int64]
    """Frame in the data of each question."""
    task: NDArray[np.int64]
    """Instruction of each question."""
    goal: Tensor
    """[Q, 3] of each question's task."""
    goals: Tensor
    """[Q, 3 K]: everywhere that anything in the scene could ask for, NaN where nothing does."""


def load_data(folder: Path, tasks: tuple[str, ...], policy: AnchorVLA4DConfig) -> Data:
    """Read every task's file and put states, actions and goals into policy units.

    Raises:
        ValueError: a file is missing, or there are too few roll-outs.
    """
    files = [folder / f"{task}.npz" for task in tasks]
    if missing := [str(f) for f in files if not f.is_file()]:
        raise ValueError(f"no data: {missing}; run: python -m models.demo.collect")
    loaded = [dict(np.load(file, allow_pickle=False)) for file in files]
    starts = np.cumsum([0, *(len(raw["anchors"]) for raw in loaded)])
    if starts[-1] <= HELD_OUT:
        raise ValueError(
            f"{starts[-1]} roll-outs are too few: one of {HELD_OUT} is held out, and two are "
            f"needed to judge by; collect at least {HELD_OUT + 1}"
        )
    joined = {
        name: np.concatenate([raw[name] for raw in loaded])
        for name in ("anchors", "images", "states", "chunks", "goals_m")
    }
    episode = np.concatenate([r["episode"] + at for r, at in zip(loaded, starts[:-1], strict=True)])
    own_goals = joined["goals_m"]
    goals = np.concatenate([_goals(raw, k, tasks) for k, raw in enumerate(loaded)])
    mean_m, spread_m = own_goals.mean(axis=0), own_goals.std(axis=0) + np.float32(1e-3)
    statistics = {ROBOT: _statistics(joined["states"], joined["chunks"])}
    state, action = normalizations(policy, statistics[ROBOT], ROBOT)
    return Data(
        anchors=torch.from_numpy(joined["anchors"]),
        images=torch.from_numpy(joined["images"]),
        states=torch.from_numpy(state.to_policy(joined["states"])),
        chunks=torch.from_numpy(action.to_policy(joined["chunks"])),
        goals=torch.from_numpy((goals - mean_m) / spread_m),
        goal_mean_m=mean_m,
        goal_spread_m=spread_m,
        episode=episode,
        first=np.searchsorted(episode, np.arange(starts[-1] + 1)),
        task=np.repeat(np.arange(len(tasks)), np.diff(starts)),
        distance_m=np.linalg.norm(joined["states"][:, :3] - own_goals[episode], axis=1),
        instructions=tuple(str(raw["instruction"]) for raw in loaded),
        statistics=statistics,
    )


def make_batch(
    data: Data,
    index: NDArray[np.int64],
    *,
    every_task: bool,
    without_anchor: bool,
    device: str,
) -> Batch:
    """Frames with their anchors, as the runtime would feed them.

    Args:
        data: where from.
        index: [B] frames; neighbours of one roll-out share their anchor.
        every_task: ask each frame everything that its scene poses, not only its own task.
        without_anchor: put the frame in place of the anchor.
        device: where the batch goes.
    """
    frames = patches(data.images[index]).to(device)
    episode = data.episode[index]
    shared, anchor_of = np.unique(episode, return_inverse=True)
    if without_anchor:
        anchors, anchor_of = frames, np.arange(len(index))
    else:
        anchors = patches(data.anchors[shared]).to(device)
    if every_task:
        frame_of, task = np.nonzero(~data.goals[episode].isnan().any(dim=2).numpy())
    else:
        frame_of, task = np.arange(len(index)), data.task[episode]
    asked = episode[frame_of]
    return Batch(
        anchors=anchors,
        frames=frames,
        anchor_of=anchor_of[frame_of],
        frame_of=frame_of,
        index=index[frame_of],
        task=task,
        goal=data.goals[asked, task].to(device),
        goals=data.goals[asked].flatten(1).to(device),
    )


def patches(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, N, patch_dim], one by one as the runtime does it."""
    make = PatchMaker(IMAGE, GRID)
    out = np.empty((len(images), GRID[0] * GRID[1], IMAGE.patch_dim), np.float32)
    for image, row in zip(images.numpy(), out, strict=True):
        make(image, row)
    return torch.from_numpy(out)


def _goals(raw: dict[str, Any], own: int, tasks: tuple[str, ...]) -> NDArray[np.float32]:
    """[E, K, 3] metres: the goal of the roll-outs' own task, and of those of its other markers."""
    goals = np.full((len(raw["anchors"]), len(tasks), 3), np.nan, np.float32)
    for number, name in enumerate(tasks):
        marker = TASKS[name].marker
        if number == own:
            goals[:, number] = raw["goals_m"]
        elif marker in COLOURS and TASKS[name].env_name == TASKS[tasks[own]].env_name:
            goals[:, number] = raw["markers_m"][:, COLOURS.index(marker)]
    return goals


def _statistics(states: NDArray[Any], chunks: NDArray[Any]) -> dict[str, dict[str, list[float]]]:
    return {
        kind: {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        for kind, values in (
            ("state", states.astype(np.float64)),
            ("action", chunks.reshape(-1, chunks.shape[-1]).astype(np.float64)),
        )
    }
