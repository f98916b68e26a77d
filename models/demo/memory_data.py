"""Recorded episodes of the task with a blink in memory, and batches of questions about them.

A question is what a policy is asked at one step: the first frame, the current one, and, from the
blink on, the keyframe. Which lit frame was kept is drawn anew each time.

Axes: E = episode, F = frame, B = lit frames of an episode, S = scene of a batch, Q = question,
T = action of the chunk, A = action dimension, N = patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.checkpoint import normalizations
from models.demo.blinks import BLINKED, EVENT, EXPERT, MARKERS, TARGET
from models.demo.data import HELD_OUT, ROBOT, patches
from models.policy_config import PolicyConfig
from runtime.recordings.recording import FRAME, STATE, Recording, load_recording

BEFORE, WAITING, DECIDED = range(3)
"""Frames that are asked about without a keyframe, with one and the yellow marker, and without."""
NUM_WAITING = 14
"""Frames of an episode that are read while the hand waits: they are much alike."""
STATISTICS = {ROBOT: {"action": {"min": [-1.0] * 4, "max": [1.0] * 4}, "state": {}}}
"""What the robot takes: an action's range is known, not measured."""


@dataclass(frozen=True, slots=True)
class Memories:
    """All episodes, pictures as uint8."""

    firsts: Tensor
    """[E, H, W, 3]."""
    lit: Tensor
    """[E, B, H, W, 3]."""
    frames: Tensor
    """[F, H, W, 3]."""
    chunks: Tensor
    """[F, T, A] in policy units."""
    is_lit: Tensor
    """[F]."""
    hands: Tensor
    """[F, 3] standardised, as all places, each kind by itself."""
    targets: Tensor
    """[F, 3] where the hand has to be."""
    blinked: Tensor
    """[E, 3] where the marker stands that blinks."""
    target_spread_m: NDArray[np.float32]
    """[3], what 1 means in `targets`."""
    index: NDArray[np.int64]
    """[E, 3, 2]: first frame of each episode and phase, and one past its last."""
    instruction: str

    def episodes(self, *, held_out: bool) -> NDArray[np.int64]:
        """Those to train on, or those to judge by."""
        numbers = np.arange(len(self.firsts))
        return numbers[(numbers % HELD_OUT == 0) == held_out]


@dataclass(frozen=True, slots=True)
class Questions:
    """Of one phase about scenes; with the same number about each."""

    scene: NDArray[np.int64]
    """[Q] number of the scene in the batch."""
    index: NDArray[np.int64]
    """[Q] frame in the data."""
    pictures: Tensor
    """[Q, N, patch_dim] of now."""


class Batch(NamedTuple):
    """Pictures once each, and the questions asked about them."""

    episodes: NDArray[np.int64]
    """[S]."""
    firsts: Tensor
    """[S, N, patch_dim]."""
    keyframes: Tensor
    """[S, N, patch_dim]."""
    questions: tuple[Questions, Questions]
    """Without a keyframe, and with one."""


def load_memories(folder: Path, task: str, policy: PolicyConfig) -> Memories:
    """Read every episode, and put actions into policy units.

    Raises:
        ValueError: there are too few.
    """
    files = sorted(folder.glob(f"{task}-*.npz"), key=lambda path: int(path.stem.split("-")[-1]))
    if len(files) <= HELD_OUT:
        raise ValueError(
            f"{folder}: {len(files)} episodes are too few: one of {HELD_OUT} is held out, and two "
            "are needed to judge by; run: python -m models.demo blinks"
        )
    horizon, _ = policy.chunk
    read = [_Episode.of(load_recording(file), horizon) for file in files]
    columns = {name: [getattr(e, name) for e in read] for name in _Episode._fields}
    action = normalizations(policy, STATISTICS[ROBOT], ROBOT)[1]
    targets = np.concatenate(columns["targets"])
    counts = np.array(columns["counts"])
    ends = counts.cumsum().reshape(counts.shape)
    return Memories(
        firsts=torch.from_numpy(np.stack(columns["first"])),
        lit=torch.from_numpy(np.stack(columns["lit"])),
        frames=torch.from_numpy(np.concatenate(columns["frames"])),
        chunks=torch.from_numpy(action.to_policy(np.concatenate(columns["chunks"]))),
        is_lit=torch.from_numpy(np.concatenate(columns["is_lit"])),
        hands=_standardised(np.concatenate(columns["hands"])),
        targets=_standardised(targets),
        blinked=_standardised(np.stack(columns["blinked"])),
        target_spread_m=_spread(targets),
        index=np.stack([ends - counts, ends], axis=2),
        instruction=load_recording(files[0]).instruction,
    )


def make_batch(
    data: Memories,
    episodes: NDArray[np.int64],
    random: np.random.Generator,
    *,
    counts: tuple[int, int, int],
    device: str,
) -> Batch:
    """Scenes, and questions about each.

    Args:
        data: where from.
        episodes: [S].
        random: of the frames.
        counts: questions about a scene of each phase.
    """

    def asked(*phases: int) -> Questions:
        scene, index = list[int](), list[int]()
        for number, episode in enumerate(episodes):
            for phase in phases:
                start, stop = data.index[episode, phase]
                index += random.integers(start, stop, counts[phase]).tolist()
                scene += [number] * counts[phase]
        rows = np.array(index)
        return Questions(np.array(scene), rows, patches(data.frames[rows]).to(device))

    kept = random.integers(data.lit.shape[1], size=len(episodes))
    return Batch(
        episodes=episodes,
        firsts=patches(data.firsts[episodes]).to(device),
        keyframes=patches(data.lit[episodes, kept]).to(device),
        questions=(asked(BEFORE), asked(WAITING, DECIDED)),
    )


def _standardised(places_m: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy((places_m - places_m.mean(axis=0)) / _spread(places_m))


def _spread(places_m: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(places_m.std(axis=0) + np.float32(1e-3))


class _Episode(NamedTuple):
    """What is read of one, frames sorted by phase."""

    first: NDArray[np.uint8]
    lit: NDArray[np.uint8]
    frames: NDArray[np.uint8]
    chunks: NDArray[np.float32]
    is_lit: NDArray[np.float32]
    hands: NDArray[np.float32]
    targets: NDArray[np.float32]
    blinked: NDArray[np.float32]
    counts: tuple[int, int, int]

    @classmethod
    def of(cls, recording: Recording, horizon: int) -> _Episode:
        values: dict[str, NDArray[Any]] = {n: s.values for n, s in recording.streams.items()}
        markers = values[MARKERS][0].reshape(-1, 3)
        blinked = markers[int(values[BLINKED][0, 0])]
        is_lit = values[EVENT][:, 0] > 0
        is_decided = (values[TARGET] == blinked).all(axis=1)
        steps = np.arange(len(is_lit))
        begin, end = np.flatnonzero(is_lit)[[0, -1]]
        waiting = steps[(steps > begin) & ~is_decided]
        few = np.linspace(0, len(waiting) - 1, NUM_WAITING).round().astype(int)
        phases = (steps[: end + 1], waiting[few], steps[is_decided])
        rows = np.concatenate(phases)
        return cls(
            first=values[FRAME][0],
            lit=values[FRAME][is_lit],
            frames=values[FRAME][rows],
            chunks=_chunks(values[EXPERT], is_decided, horizon)[rows],
            is_lit=is_lit[rows].astype(np.float32),
            hands=values[STATE][rows, :3],
            targets=values[TARGET][rows],
            blinked=blinked,
            counts=(len(phases[0]), len(phases[1]), len(phases[2])),
        )


def _chunks(
    expert: NDArray[np.float32], is_decided: NDArray[np.bool_], horizon: int
) -> NDArray[np.float32]:
    """[steps, T, A]: what the expert does from each step on. Behind the end it stands still, and so
    it does where the yellow marker goes out in mid-chunk: nobody can tell when it will."""
    steps = np.arange(len(expert))[:, None] + np.arange(horizon)
    rows = np.minimum(steps, len(expert) - 1)
    chunks = expert[rows]
    chunks[is_decided[rows] & ~is_decided[:, None]] = 0
    chunks[steps >= len(expert)] = 0
    return chunks
