"""Trains the demo policy by behaviour cloning, in three stages, and writes a checkpoint folder.

    python -m models.demo.collect && python -m models.demo.train --out build/demo-trained

The policy's own diffusion loss alone does not train this structure from scratch at this size: after
the fusion's LayerNorm the pooled vector hardly varies between samples. Goal heads that exist in
training only, on batch-normalised means of the trunks' tokens, remove that common mode. Stages:

1. `see`: vision tower and decoder, on the goal heads.
2. `all`: everything, on the diffusion loss and the goal heads.
3. `head`: trunks frozen, pooled vectors computed once, fusion and head alone, half of each batch
   near the goal. Cheap steps where the precision is decided.

Weights are averaged exponentially. A state file after every minute makes a run resumable.

Axes: B = sample, N = patches, T = action of the chunk, A = action dimension.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models.anchorvla4d import AnchorVLA4D, PromptParts, rotary
from models.checkpoint import image_fields, normalizations, random_tensors
from models.config import PolicyConfig, demo
from models.demo.collect import COLOURS, DEMO_TASKS
from models.demo.record import ROBOT
from models.head import ddim_coefficients
from runtime import prompt
from runtime.image import ImageConfig, PatchMaker

HERE = Path(__file__).parent
IMAGE = ImageConfig(min_pixels=1, max_pixels=512 * 512)
GRID = (8, 8)
NEAR_M = 0.10
"""Frames closer to the goal than this are drawn twice as often in the last stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long and how fast."""

    data: Path = Path("build/demo-data")
    """Folder written by `models.demo.collect`."""

    out: Path = Path("build/demo-trained")
    """Checkpoint folder to write; holds the resumable state while training."""

    tasks: tuple[str, ...] = DEMO_TASKS
    """Files of the data folder to learn from."""

    see_steps: int = 4000
    """Steps of the first stage."""

    all_steps: int = 1500
    """Steps of the second."""

    head_steps: int = 3000
    """Steps of the third."""

    batch: int = 32
    """Frames per step of the first two stages; pairs share their anchor's vision pass."""

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

    def __post_init__(self) -> None:
        if self.batch % 2:
            raise ValueError(f"batch must be even, got {self.batch}")
        if min(self.see_steps, self.all_steps, self.head_steps) < 1:
            raise ValueError("every stage needs at least one step")


@dataclass(frozen=True, slots=True)
class Data:
    """All tasks in memory, images as uint8."""

    anchors: Tensor
    """[E, H, W, 3]."""
    images: Tensor
    """[F, H, W, 3]."""
    episode: NDArray[np.int64]
    """Roll-out of each frame."""
    first: NDArray[np.int64]
    """First frame of each roll-out, and one past the last of all."""
    task: NDArray[np.int64]
    """Task of each roll-out."""
    states: Tensor
    """[F, S] in policy units."""
    chunks: Tensor
    """[F, T, A] in policy units."""
    goals: Tensor
    """[E, 3], standardised."""
    markers: Tensor
    """[E, 3 * colours], standardised like the goals; NaN where there is none."""
    near: NDArray[np.int64]
    """Frames whose hand is near the goal."""
    instructions: tuple[str, ...]
    statistics: dict[str, Any]


class GoalHeads(nn.Module):
    """Regress the goal from the trunks' tokens, in training only."""

    def __init__(self, width: int, spatial: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, 3)
        self.mean = self._normed(width)
        self.markers = self._normed(width, 3 * len(COLOURS))
        self.anchor = self._normed(spatial)
        self.frame = self._normed(spatial)
        self.condition = nn.Linear(width, 3)

    @staticmethod
    def _normed(width: int, out: int = 3) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, out))


class Trainer:
    """One run: the policy, its average, the goal heads and the data."""

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.policy_config = demo()
        self.data = load_data(config, self.policy_config)
        self.model = new_policy(self.policy_config, config.seed)
        self.average = copy.deepcopy(self.model)
        c = self.policy_config
        self.goal_heads = GoalHeads(c.language.hidden_size, c.spatial.dim)
        self.random = np.random.default_rng(config.seed)
        self.tail_ids = self._encode(self.data.instructions)
        self.coefficients = ddim_coefficients(c.head).flip(0)  # by timestep, 0 first
        self.stage, self.step = 0, 0
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0

    def run(self, console: Console) -> None:
        """Train from where the state file left off to the end, and write the checkpoint."""
        stages: list[tuple[str, int, Callable[[], Callable[[], dict[str, Tensor]]]]] = [
            ("see", self.config.see_steps, lambda: self._see),
            ("all", self.config.all_steps, lambda: self._all),
            ("head", self.config.head_steps, self._head),
        ]
        self._resume(console)
        for index, (name, steps, prepare) in enumerate(stages):
            if index < self.stage:
                continue
            loss = prepare()
            self._train(name, steps, loss, console)
            self.stage, self.step = index + 1, 0
            self._save()
        write_checkpoint(self)

    def _train(
        self, name: str, steps: int, loss: Callable[[], dict[str, Tensor]], console: Console
    ) -> None:
        modules = [self.model.action_head] if name == "head" else [self.model]
        parameters = [p for m in (*modules, self.goal_heads) for p in m.parameters()]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.01},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ]
        )
        peak = self.config.rate / (2 if name == "head" else 1)
        saved = started = time.monotonic()
        shown: dict[str, float] = {}
        first = self.step
        while self.step < steps:
            progress = self.step / steps
            decay = 1.0 if name == "see" else 0.02 + 0.49 * (1 + np.cos(np.pi * progress))
            warm = min(1.0, (self.step + 1) / 50)
            for group in optimizer.param_groups:
                group["lr"] = peak * warm * decay
            losses = loss()
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            self.step += 1
            self._update_average()
            for key, value in losses.items():
                now_value = value.item()
                shown[key] = 0.98 * shown.get(key, now_value) + 0.02 * now_value
            if self.step % 50 == 0 or self.step == steps:
                now = time.monotonic()
                left = (now - started) / (self.step - first) * (steps - self.step)
                words = ", ".join(f"{key} {value:.4f}" for key, value in shown.items())
                console.print(
                    f"{name} {self.step}/{steps}  {words}  {now - started:.0f} s, "
                    f"{left:.0f} s left in this stage",
                    highlight=False,
                )
                self.curve.append({"stage": name, "step": self.step, **shown})
                if now - saved > 60:
                    self._save()
                    saved = now
        self.seconds += time.monotonic() - started

    def _see(self) -> dict[str, Tensor]:
        batch = self._batch(self.config.batch)
        hidden = self._language(batch)
        return self._goal_losses(hidden, batch, weight=1.0)

    def _all(self) -> dict[str, Tensor]:
        batch = self._batch(self.config.batch)
        hidden = self._language(batch)
        tokens = self.model.info_sharing.trunk(
            self.model.info_sharing.project(batch["anchor"]),
            self.model.info_sharing.project(batch["frame"]),
        )
        num_patches = GRID[0] * GRID[1]
        losses = self._goal_losses(hidden, batch, weight=0.5)
        heads = {
            "goal_anchor_view": self.goal_heads.anchor,
            "goal_frame_view": self.goal_heads.frame,
        }
        for view, (name, head) in enumerate(heads.items()):
            mean = tokens[:, view * num_patches : (view + 1) * num_patches].mean(dim=1)
            losses[name] = 0.5 * functional.mse_loss(head(mean), batch["goal"])
        pooled = self._pool(self.model.info_sharing.final_projection(tokens), hidden)
        return losses | self._action_losses(pooled, batch, weight=1.0)

    def _head(self) -> Callable[[], dict[str, Tensor]]:
        """Freeze the averaged trunks and compute the pooled vector of every frame, once."""
        self.model.load_state_dict(self.average.state_dict())
        self.model.requires_grad_(False)
        self.model.action_head.requires_grad_(True)
        pooled = []
        frames = np.arange(len(self.data.episode))
        by_task = self.data.task[self.data.episode]
        order = np.argsort(by_task, kind="stable")
        with torch.no_grad():
            for task in range(len(self.data.instructions)):
                for part in np.array_split(frames[by_task == task], 1 + len(frames) // 64):
                    if not len(part):
                        continue
                    batch = self._gather(part)
                    tokens = self.model.info_sharing(batch["anchor"], batch["frame"])
                    pooled.append(self._pool(tokens, self._language(batch)))
        cached = torch.cat(pooled)[torch.from_numpy(np.argsort(order))]
        half = self.config.head_batch // 2

        def loss() -> dict[str, Tensor]:
            near = self.data.near if len(self.data.near) else frames
            index = np.concatenate(
                [self.random.choice(frames, half), self.random.choice(near, half)]
            )
            batch = self._targets(index)
            return self._action_losses(cached[index], batch, weight=0.3)

        return loss

    def _language(self, batch: dict[str, Any]) -> Tensor:
        """Hidden states of the prompt, [B, L, D]. All samples of a batch have one task."""
        model, table = self.model.vlm, self.model.vlm.model.embed_tokens
        parts, tail = self.parts, self.tail_ids[batch["task"]]
        count = len(batch["frame"])

        def text(ids: tuple[int, ...]) -> Tensor:
            return table(torch.tensor(ids)).expand(count, -1, -1)

        anchor = model.visual(batch["anchor"][:: batch["share"]], GRID)
        embeddings = torch.cat(
            [
                text(parts.head),
                anchor.repeat_interleave(batch["share"], dim=0),
                text(parts.anchor_end + parts.middle),
                model.visual(batch["frame"], GRID),
                text(tail),
            ],
            dim=1,
        )
        image = (GRID[0] // 2, GRID[1] // 2)
        between = len(parts.anchor_end) + len(parts.middle)
        segments: list[prompt.Segment] = [len(parts.head), image, between, image, len(tail)]
        cos, sin = rotary(self.policy_config.language, segments)
        length = embeddings.shape[1]
        mask = torch.from_numpy(prompt.attention_mask(0, 0, length, length))
        past = self.model.empty_past(0).expand(count, -1, -1, -1, -1, -1)
        hidden: Tensor = model.model(embeddings, past, mask, cos, sin)[1]
        return hidden

    def _goal_losses(
        self, hidden: Tensor, batch: dict[str, Any], *, weight: float
    ) -> dict[str, Tensor]:
        """Of the decoder: the goal behind the instruction, every marker in the anchor's tokens."""
        heads, goal = self.goal_heads, batch["goal"]
        start, stop = len(self.parts.head), len(self.parts.head) + GRID[0] * GRID[1] // 4
        seen = heads.markers(hidden[:, start:stop].mean(dim=1))
        known = ~batch["markers"].isnan()
        error = (seen - batch["markers"].nan_to_num()) * known
        return {
            "goal_last": weight * functional.mse_loss(heads.last(hidden[:, -1]), goal),
            "goal_mean": weight * functional.mse_loss(heads.mean(hidden.mean(dim=1)), goal),
            "markers": weight * error.square().sum() / known.sum().clamp(min=1),
        }

    def _action_losses(
        self, pooled: Tensor, batch: dict[str, Any], *, weight: float
    ) -> dict[str, Tensor]:
        head = self.model.action_head
        condition = head.condition(pooled, batch["state"])
        draws = self.config.draws
        chunks = batch["chunk"].repeat(draws, 1, 1)
        t = torch.randint(self.policy_config.head.num_train_timesteps, (len(chunks),))
        noise = torch.randn_like(chunks)
        sqrt_1m_a, sqrt_a = self.coefficients[t, :2, None, None].unbind(1)
        noisy = sqrt_a * chunks + sqrt_1m_a * noise
        predicted = head.epsilon(noisy, t, condition.repeat(draws, 1))
        goal = self.goal_heads.condition(condition)
        return {
            "epsilon": functional.mse_loss(predicted, noise),
            "goal_condition": weight * functional.mse_loss(goal, batch["goal"]),
        }

    def _pool(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        fused = torch.cat([tokens, hidden], dim=1).transpose(1, 2)
        bins = self.policy_config.head.adaptive_pool_dim
        return functional.adaptive_avg_pool1d(fused, bins).transpose(1, 2)

    def _batch(self, size: int) -> dict[str, Any]:
        """Two frames each of random roll-outs of one random task."""
        task = int(self.random.integers(len(self.data.instructions)))
        episodes = np.flatnonzero(self.data.task == task)
        chosen = self.random.choice(episodes, size // 2).repeat(2)
        first, stop = self.data.first[chosen], self.data.first[chosen + 1]
        index = first + (self.random.random(size) * (stop - first)).astype(int)
        return {**self._gather(index), "share": 1 if self.config.without_anchor else 2}

    def _gather(self, index: NDArray[np.int64]) -> dict[str, Any]:
        episodes = self.data.episode[index]
        frame = self._patches(self.data.images[index])
        anchor = frame if self.config.without_anchor else self._patches(self.data.anchors[episodes])
        task = int(self.data.task[episodes[0]])
        return {
            **self._targets(index), "anchor": anchor, "frame": frame, "task": task, "share": 1
        }  # fmt: skip

    def _targets(self, index: NDArray[np.int64]) -> dict[str, Any]:
        state = self.data.states[index]
        return {
            "state": state + 0.02 * torch.randn_like(state),
            "chunk": self.data.chunks[index],
            "goal": self.data.goals[self.data.episode[index]],
            "markers": self.data.markers[self.data.episode[index]],
        }

    def _patches(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, N, patch_dim], as `PatchMaker` does one by one."""
        make = PatchMaker(IMAGE, GRID)
        out = np.empty((len(images), GRID[0] * GRID[1], IMAGE.patch_dim), np.float32)
        for image, patches in zip(images.numpy(), out, strict=True):
            make(image, patches)
        return torch.from_numpy(out)

    def _encode(self, instructions: tuple[str, ...]) -> list[tuple[int, ...]]:
        tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        self.parts = PromptParts.of(self.policy_config.prompt, tokenizer)
        return [
            prompt.encode_tail(tokenizer, self.parts.tail, self.parts.end_ids, text)
            for text in instructions
        ]

    def _update_average(self) -> None:
        weight = 1 - min(0.995, self.step / (self.step + 20))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
            for average, ours in pairs:
                average.lerp_(ours, weight)

    def _state_path(self) -> Path:
        return self.config.out / "state.pt"

    def _save(self) -> None:
        self.config.out.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "goal_heads": self.goal_heads.state_dict(),
            "stage": self.stage,
            "step": self.step,
            "curve": self.curve,
            "seconds": self.seconds,
        }
        temporary = self._state_path().with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self._state_path())

    def _resume(self, console: Console) -> None:
        if not self._state_path().exists():
            return
        state = torch.load(self._state_path(), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.goal_heads.load_state_dict(state["goal_heads"])
        self.stage, self.step, self.curve = state["stage"], state["step"], state["curve"]
        self.seconds = state["seconds"]
        console.print(f"resumed at stage {self.stage}, step {self.step}")


def load_data(config: TrainConfig, policy: PolicyConfig) -> Data:
    """Read every task's file and put states, actions and goals into policy units.

    Raises:
        ValueError: a file is missing.
    """
    files = [config.data / f"{task}.npz" for task in config.tasks]
    if missing := [str(f) for f in files if not f.is_file()]:
        raise ValueError(f"no data: {missing}; run: python -m models.demo.collect")
    loaded = [dict(np.load(file, allow_pickle=False)) for file in files]
    episode, task, offset = [], [], 0
    for number, raw in enumerate(loaded):
        episode.append(raw["episode"] + offset)
        task.append(np.full(len(raw["anchors"]), number))
        offset += len(raw["anchors"])
    joined = {k: np.concatenate([r[k] for r in loaded]) for k in ("states", "chunks", "goals_m")}
    statistics = {ROBOT: _statistics(joined["states"], joined["chunks"])}
    state, action = normalizations(policy, statistics[ROBOT], ROBOT)
    episodes = np.concatenate(episode)
    goals = joined["goals_m"]
    distance = np.linalg.norm(joined["states"][:, :3] - goals[episodes], axis=1)
    mean, spread = goals.mean(axis=0), goals.std(axis=0) + 1e-3
    standard = (goals - mean) / spread
    markers = (np.concatenate([r["markers_m"] for r in loaded]) - mean) / spread
    return Data(
        anchors=torch.from_numpy(np.concatenate([r["anchors"] for r in loaded])),
        images=torch.from_numpy(np.concatenate([r["images"] for r in loaded])),
        episode=episodes,
        first=np.searchsorted(episodes, np.arange(offset + 1)),
        task=np.concatenate(task),
        states=torch.from_numpy(state.to_policy(joined["states"])),
        chunks=torch.from_numpy(action.to_policy(joined["chunks"])),
        goals=torch.from_numpy(standard.astype(np.float32)),
        markers=torch.from_numpy(markers.reshape(len(goals), -1).astype(np.float32)),
        near=np.flatnonzero(distance < NEAR_M),
        instructions=tuple(str(r["instruction"]) for r in loaded),
        statistics=statistics,
    )


def new_policy(config: PolicyConfig, seed: int) -> AnchorVLA4D:
    """Seeded weights to start from.

    The state's way into the condition starts wide, because four numbers beside a thousand pooled
    ones would otherwise be learned last.
    """
    with torch.device("meta"):
        model = AnchorVLA4D(config)
    model.load_state_dict(dict(random_tensors(model, seed)), assign=True)
    head = model.action_head
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "adaLN_modulation" in name or name.endswith("final_layer.linear.weight"):
                parameter.mul_(0.0 if "adaLN" in name else 0.1)
        head.state_linear.weight.copy_(5 * torch.eye(config.head.state_dim))
        first = head.combine.get_submodule("0")
        assert isinstance(first, nn.Linear)
        first.weight[:, -config.head.state_embed_dim :].normal_(0, 0.2)
    return model


def write_checkpoint(trainer: Trainer) -> None:
    """The averaged weights as float16, with everything a checkpoint folder needs."""
    c = trainer.config
    config = dataclasses.replace(
        trainer.policy_config,
        description=f"trained by models/demo/train.py, seed {c.seed}, "
        f"{trainer.seconds / 60:.0f} minutes, tasks: {', '.join(c.tasks)}",
    )
    folder = c.out
    (folder / "config.json").write_text(config.to_json())
    (folder / "preprocessor_config.json").write_text(json.dumps(image_fields(IMAGE), indent=2))
    (folder / "dataset_statistics.json").write_text(json.dumps(trainer.data.statistics, indent=2))
    (folder / "tokenizer.json").write_bytes((HERE / "tokenizer.json").read_bytes())
    (folder / "curve.json").write_text(json.dumps(trainer.curve) + "\n")
    half = {name: value.half() for name, value in trainer.average.state_dict().items()}
    save_file(half, folder / "model.safetensors")


def _statistics(states: NDArray[Any], chunks: NDArray[Any]) -> dict[str, dict[str, list[float]]]:
    return {
        kind: {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        for kind, values in (
            ("state", states.astype(np.float64)),
            ("action", chunks.reshape(-1, chunks.shape[-1]).astype(np.float64)),
        )
    }


def main(config: TrainConfig) -> None:
    Trainer(config).run(Console())


if __name__ == "__main__":
    main(tyro.cli(TrainConfig))
