"""Trains the demo policy by behaviour cloning, in three stages, and writes a checkpoint folder.

    python -m models.demo.collect && python -m models.demo.train --out build/demo-trained

The policy's own diffusion loss alone does not train this structure from scratch at this size: after
the fusion's LayerNorm the pooled vector hardly varies between samples. Goal heads that exist in
training only, on batch-normalised means of the trunks' tokens, remove that common mode. Stages:

1. `see`: vision tower and decoder, on the goal heads.
2. `all`: everything, on the diffusion loss and the goal heads.
3. `head`: trunks frozen, pooled vectors computed once, fusion and head alone, half of each batch
   near the goal. Cheap steps where the precision is decided.

Weights are averaged exponentially. A state file makes a run resumable: cut off
and resumed, it ends in the same bits.

Axes: B = sample, N = patches, T = action of the chunk, A = action dimension.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
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
from models.checkpoint import image_fields, random_tensors
from models.config import PolicyConfig, demo
from models.demo import CHECKPOINT
from models.demo.collect import DEMO_TASKS
from models.demo.data import GRID, IMAGE, Batch, load_data, make_batch
from models.head import ddim_coefficients
from runtime import prompt
from runtime.svg import lines

STAGES = ("see", "all", "head")
REPORT_STEPS = 100
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

    see_steps: int = 2500
    """Steps of the first stage."""

    all_steps: int = 1200
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

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""

    def __post_init__(self) -> None:
        if self.scenes < 2:
            raise ValueError(f"a batch needs at least two scenes, got {self.scenes}")
        if min(self.see_steps, self.all_steps, self.head_steps) < 1:
            raise ValueError("every stage needs at least one step")


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


class GoalHeads(nn.Module):
    """Regress goals from the trunks' tokens, in training only."""

    def __init__(self, width: int, spatial: int, condition: int, tasks: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, 3)
        self.mean = self._normed(width, 3)
        self.scene = self._normed(width, 3 * tasks)
        self.anchor = self._normed(spatial, 3)
        self.frame = self._normed(spatial, 3)
        self.condition = nn.Linear(condition, 3)

    @staticmethod
    def _normed(width: int, out: int) -> nn.Sequential:
        norm = nn.BatchNorm1d(width, affine=False, track_running_stats=False)
        return nn.Sequential(norm, nn.Linear(width, out))


class Trainer:
    """One run: the policy, its average, the goal heads and the data."""

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.policy_config = c = demo()
        self.data = load_data(config.data, config.tasks, c)
        self.model = new_policy(c, config.seed).to(config.device)
        self.average = copy.deepcopy(self.model)
        self.goal_heads = GoalHeads(
            c.language.hidden_size, c.spatial.dim, c.head.n_emb, len(config.tasks)
        ).to(config.device)
        self.stage, self.step, self.seconds = 0, 0, 0.0
        self.optimizer = self._new_optimizer()
        self.random = np.random.default_rng(config.seed)
        self.curve: list[dict[str, Any]] = []
        self._prepare_prompt()
        self._coefficients = ddim_coefficients(c.head).flip(0).to(config.device)  # by timestep

    def run(self, console: Console) -> None:
        """Train from where the state file left off to the end, and write the checkpoint."""
        stages = [
            Stage(STAGES[0], self.config.see_steps, self.config.rate, lambda: self._see),
            Stage(STAGES[1], self.config.all_steps, self.config.rate, lambda: self._all),
            Stage(STAGES[2], self.config.head_steps, self.config.rate / 2, self._head),
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
        while self.step < stage.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = stage.rate_at(self.step)
            losses = loss()
            self.optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            self._update_average()
            for name, value in losses.items():
                shown[name] = 0.98 * shown.get(name, value.item()) + 0.02 * value.item()
            if self.step % REPORT_STEPS and self.step != stage.steps:
                continue
            now = time.monotonic()
            left = (now - started) / (self.step - first) * (stage.steps - self.step)
            point = {"stage": stage.name, "step": self.step, **shown, **self._held_out(stage)}
            self.curve.append(point)
            words = ", ".join(f"{k} {v:.4f}" for k, v in point.items() if isinstance(v, float))
            console.print(
                f"{stage.name} {self.step}/{stage.steps}: {words}; {left:.0f} s left in it",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
            self.seconds += now - saved
            saved = now
            self._save()

    def _see(self) -> dict[str, Tensor]:
        batch = self._draw(frames=1, every_task=True)
        return self._goal_losses(self._language(batch), batch, weight=1.0)

    def _all(self) -> dict[str, Tensor]:
        batch = self._draw(frames=2, every_task=False)
        hidden = self._language(batch)
        spatial = self._spatial(batch)
        losses = self._goal_losses(hidden, batch, weight=0.5)
        views = {"anchor_view": self.goal_heads.anchor, "frame_view": self.goal_heads.frame}
        for tokens, (name, head) in zip(spatial.chunk(2, dim=1), views.items(), strict=True):
            losses[name] = 0.5 * functional.mse_loss(head(tokens.mean(dim=1)), batch.goal)
        pooled = self._pool(spatial, hidden)
        return losses | self._action_losses(pooled, batch.index, batch.goal, weight=1.0)

    def _head(self) -> Callable[[], dict[str, Tensor]]:
        """Freeze the averaged trunks and compute the pooled vector of every frame, once."""
        if self.step == 0:
            self.model.load_state_dict(self.average.state_dict())
        data = self.data
        pooled = self._pooled(np.arange(len(data.episode)))
        frames = np.flatnonzero(np.isin(data.episode, data.episodes(held_out=False)))
        near = frames[data.distance_m[frames] < NEAR_M]
        goals = data.goals[np.arange(len(data.task)), data.task].to(self.config.device)
        half = self.config.head_batch // 2

        def loss() -> dict[str, Tensor]:
            pools = (frames, near if len(near) else frames)
            index = np.concatenate([self.random.choice(pool, half) for pool in pools])
            goal = goals[data.episode[index]]
            return self._action_losses(pooled[index], index, goal, weight=0.3)

        return loss

    @torch.no_grad()
    def _pooled(self, index: NDArray[np.int64]) -> Tensor:
        parts = []
        for part in np.array_split(index, 1 + len(index) // 64):
            batch = self._batch(part, every_task=False)
            parts.append(self._pool(self._spatial(batch), self._language(batch)))
        return torch.cat(parts)

    def _language(self, batch: Batch) -> Tensor:
        """Hidden states of every question's prompt, [Q, L, D]; an anchor's prefix is run once."""
        model, vision = self.model.vlm.model, self.model.vlm.visual
        cos, sin = self._rotary

        def text(ids: tuple[int, ...], count: int) -> Tensor:
            table: Tensor = model.embed_tokens(torch.tensor(ids, device=cos.device))
            return table.expand(count, -1, -1)

        parts, device = self.parts, cos.device
        count = len(batch.anchors)
        prefix = torch.cat(
            [text(parts.head, count), vision(batch.anchors, GRID), text(parts.anchor_end, count)],
            dim=1,
        )
        length = prefix.shape[1]
        past = self.model.empty_past(0).to(device).expand(count, -1, -1, -1, -1, -1)
        mask = torch.from_numpy(prompt.attention_mask(0, 0, length, length)).to(device)
        kv, seen = model(prefix, past, mask, cos[:length], sin[:length])
        suffix = torch.cat(
            [
                text(parts.middle, len(batch.task)),
                vision(batch.frames, GRID)[batch.frame_of],
                model.embed_tokens(self._tail_ids[batch.task]),
            ],
            dim=1,
        )
        more = suffix.shape[1]
        mask = torch.from_numpy(prompt.attention_mask(length, length, more, more)).to(device)
        _, hidden = model(suffix, kv[batch.anchor_of], mask, cos[length:], sin[length:])
        return torch.cat([seen[batch.anchor_of], hidden], dim=1)

    def _spatial(self, batch: Batch) -> Tensor:
        """Tokens of the trunk, [Q, 2 N, W]; only for batches that ask one question a frame."""
        encoder = self.model.info_sharing
        tokens: Tensor = encoder.trunk(
            encoder.project(batch.anchors)[batch.anchor_of], encoder.project(batch.frames)
        )
        return tokens

    def _pool(self, spatial: Tensor, hidden: Tensor) -> Tensor:
        tokens = self.model.info_sharing.final_projection(spatial)
        fused = torch.cat([tokens, hidden], dim=1).transpose(1, 2)
        bins = self.policy_config.head.adaptive_pool_dim
        return functional.adaptive_avg_pool1d(fused, bins).transpose(1, 2)

    def _goal_losses(self, hidden: Tensor, batch: Batch, *, weight: float) -> dict[str, Tensor]:
        """Of the decoder: the goal behind the instruction, every goal in the anchor's tokens."""
        heads = self.goal_heads
        scene = heads.scene(self._anchor_tokens(hidden).mean(dim=1))
        known = ~batch.goals.isnan()
        return {
            "goal_last": weight * functional.mse_loss(heads.last(hidden[:, -1]), batch.goal),
            "goal_mean": weight * functional.mse_loss(heads.mean(hidden.mean(dim=1)), batch.goal),
            "scene": weight * functional.mse_loss(scene[known], batch.goals[known]),
        }

    def _anchor_tokens(self, hidden: Tensor) -> Tensor:
        start = len(self.parts.head)
        return hidden[:, start : start + GRID[0] * GRID[1] // 4]

    def _action_losses(
        self, pooled: Tensor, index: NDArray[np.int64], goal: Tensor, *, weight: float
    ) -> dict[str, Tensor]:
        head, device = self.model.action_head, pooled.device
        state = self.data.states[index].to(device)
        condition = head.condition(pooled, state + 0.02 * torch.randn_like(state))
        draws = self.config.draws
        chunks = self.data.chunks[index].to(device).repeat(draws, 1, 1)
        t = torch.randint(len(self._coefficients), (len(chunks),), device=device)
        noise = torch.randn_like(chunks)
        sqrt_1m_a, sqrt_a = self._coefficients[t, :2, None, None].unbind(1)
        predicted = head.epsilon(sqrt_a * chunks + sqrt_1m_a * noise, t, condition.repeat(draws, 1))
        seen = self.goal_heads.condition(condition)
        return {
            "epsilon": functional.mse_loss(predicted, noise),
            "goal_condition": weight * functional.mse_loss(seen, goal),
        }

    @torch.no_grad()
    def _held_out(self, stage: Stage) -> dict[str, float]:
        """How far off the goals of roll-outs that are never trained on are, root mean square."""
        episodes = self.data.episodes(held_out=True)
        episodes = episodes[:: max(1, len(episodes) // 64)]
        batch = self._batch(self.data.first[episodes], every_task=stage.name == "see")
        hidden = self._language(batch)
        seen = {"held_out_m": self.goal_heads.mean(hidden.mean(dim=1))}
        if stage.name != "see":
            pooled = self._pool(self._spatial(batch), hidden)
            state = self.data.states[batch.index].to(pooled.device)
            condition = self.model.action_head.condition(pooled, state)
            seen["held_out_condition_m"] = self.goal_heads.condition(condition)
        spread = torch.from_numpy(self.data.goal_spread_m).to(batch.goal.device)
        errors = {k: ((v - batch.goal) * spread).square().sum(dim=1) for k, v in seen.items()}
        return {name: float(square.mean().sqrt()) for name, square in errors.items()}

    def _draw(self, *, frames: int, every_task: bool) -> Batch:
        """Random frames of random roll-outs."""
        pool = self.data.episodes(held_out=False)
        episodes = self.random.choice(pool, self.config.scenes).repeat(frames)
        first, stop = self.data.first[episodes], self.data.first[episodes + 1]
        index = first + (self.random.random(len(episodes)) * (stop - first)).astype(int)
        return self._batch(index, every_task=every_task)

    def _batch(self, index: NDArray[np.int64], *, every_task: bool) -> Batch:
        return make_batch(
            self.data, index, every_task=every_task,
            without_anchor=self.config.without_anchor, device=self.config.device,
        )  # fmt: skip

    def _prepare_prompt(self) -> None:
        """Tokens of the instructions, and the rotary tables of a whole prompt."""
        c, device = self.policy_config, self.config.device
        tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
        self.parts = parts = PromptParts.of(c.prompt, tokenizer)
        tails = [
            prompt.encode_tail(tokenizer, parts.tail, parts.end_ids, text)
            for text in self.data.instructions
        ]
        if len({len(tail) for tail in tails}) > 1:
            lengths = dict(zip(self.data.instructions, map(len, tails), strict=True))
            raise ValueError(
                f"instructions share batches, so they must have equally many tokens: {lengths}; "
                "word them otherwise, or make the tokenizer know their words"
            )
        self._tail_ids = torch.tensor(tails, device=device)
        image = (GRID[0] // 2, GRID[1] // 2)
        between = len(parts.anchor_end) + len(parts.middle)
        segments: list[prompt.Segment] = [len(parts.head), image, between, image, len(tails[0])]
        cos, sin = rotary(c.language, segments)
        self._rotary = cos.to(device), sin.to(device)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """AdamW; from the last stage on, of the head alone."""
        modules = [self.model if self.stage < 2 else self.model.action_head, self.goal_heads]
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
            "optimizer": self.optimizer.state_dict(),
            "random": json.dumps(self.random.bit_generator.state),
            "torch_random": torch.get_rng_state(),
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
        state = torch.load(self._state_path(), weights_only=True, map_location=self.config.device)
        self.stage, self.step, self.curve = state["stage"], state["step"], state["curve"]
        self.seconds = state["seconds"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.goal_heads.load_state_dict(state["goal_heads"])
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.bit_generator.state = json.loads(state["random"])
        torch.set_rng_state(state["torch_random"].cpu())
        console.print(f"resumed at stage {self.stage}, step {self.step}")


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
    (folder / "tokenizer.json").write_bytes((CHECKPOINT / "tokenizer.json").read_bytes())
    (folder / "curve.json").write_text(json.dumps(trainer.curve) + "\n")
    draw_curve(trainer.curve, folder)
    half = {name: value.half().cpu() for name, value in trainer.average.state_dict().items()}
    save_file(half, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # the library writes for the owner only


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
    (folder / "loss.svg").write_text(
        lines(series(1, loss), x_title="steps", y_title="loss", from_zero=True)
    )
    (folder / "held-out.svg").write_text(
        lines(series(100, held_out), x_title="steps", y_title="cm, rms", from_zero=True)
    )


def main(config: TrainConfig) -> None:
    Trainer(config).run(Console())


if __name__ == "__main__":
    main(tyro.cli(TrainConfig))
