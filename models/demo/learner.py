"""What a batch costs the policy: its hidden states, batched, and the losses of each stage.

The policy's own modules on batches of questions, as `models.anchorvla4d.model` runs them one by
one; an anchor's prefix is run once for all questions about its scene. The goal heads exist in
training only.

Axes: Q = question, N = patches, L = tokens of the prompt, W = width, T = action of the chunk,
A = action dimension.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.prompt import prompt as prompt_parts
from models.demo import CHECKPOINT
from models.demo.data import GRID, Batch, Data
from models.demo.training import goal_head
from models.networks.scale_dp import ddim_coefficients
from models.networks.vision_language import rotary
from models.random_weights import random_tensors
from runtime import prompt


class GoalHeads(nn.Module):
    """Regress goals from the trunks' tokens, in training only."""

    def __init__(self, width: int, spatial: int, condition: int, tasks: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, 3)
        self.mean = goal_head(width)
        self.scene = goal_head(width, 3 * tasks)
        self.anchor = goal_head(spatial)
        self.frame = goal_head(spatial)
        self.condition = nn.Linear(condition, 3)


class Learner:
    """The policy with its goal heads."""

    def __init__(
        self, policy: AnchorVLA4DConfig, data: Data, *, seed: int, draws: int, device: str
    ) -> None:
        """
        Args:
            policy: what is trained.
            data: instructions, states and chunks.
            seed: of the weights.
            draws: noise draws per condition.
            device: where to train.

        Raises:
            ValueError: the instructions have different lengths in tokens.
        """
        self.policy, self.data, self.draws, self.device = policy, data, draws, device
        self.model = new_policy(policy, seed).to(device)
        self.goal_heads = GoalHeads(
            policy.language.hidden_size,
            policy.spatial.dim,
            policy.head.n_emb,
            len(data.instructions),
        ).to(device)
        self._prepare_prompt()
        self._coefficients = ddim_coefficients(policy.head).flip(0).to(device)  # by timestep

    def see(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of vision tower and decoder."""
        return self._goal_losses(self._language(batch), batch, weight=1.0)

    def all(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of everything; for batches that ask one question a frame."""
        hidden = self._language(batch)
        spatial = self._spatial(batch)
        losses = self._goal_losses(hidden, batch, weight=0.5)
        views = {"anchor_view": self.goal_heads.anchor, "frame_view": self.goal_heads.frame}
        for tokens, (name, head) in zip(spatial.chunk(2, dim=1), views.items(), strict=True):
            losses[name] = 0.5 * functional.mse_loss(head(tokens.mean(dim=1)), batch.goal)
        pooled = self._pool(spatial, hidden)
        return losses | self.act(pooled, batch.index, batch.goal, weight=1.0)

    def pooled(self, batch: Batch) -> Tensor:
        """What fusion and head start from, [Q, bins, W]; one question a frame."""
        return self._pool(self._spatial(batch), self._language(batch))

    @torch.no_grad()
    def last(self, batch: Batch) -> Tensor:
        """[Q, D], hidden state of the last token of each question's prompt."""
        return self._language(batch)[:, -1]

    def _language(self, batch: Batch) -> Tensor:
        """Hidden states of every question's prompt, [Q, L, D]; an anchor's prefix is run once."""
        model, vision = self.model.vlm.model, self.model.vlm.visual
        cos, sin = self._rotary

        def text(ids: tuple[int, ...], count: int) -> Tensor:
            table: Tensor = model.embed_tokens(torch.tensor(ids, device=cos.device))
            return table.expand(count, -1, -1)

        parts, device = self.parts, cos.device
        count = len(batch.anchors)
        head, middle = parts.before
        prefix = torch.cat(
            [
                text(parts.before[0], count),
                vision(batch.anchors, GRID),
                text(parts.image_end, count),
            ],
            dim=1,
        )
        length = prefix.shape[1]
        past = self.model.vlm.model.empty_past(0).to(device).expand(count, -1, -1, -1, -1, -1)
        mask = torch.from_numpy(prompt.attention_mask(0, 0, length, length)).to(device)
        kv, seen = model(prefix, past, mask, cos[:length], sin[:length])
        suffix = torch.cat(
            [
                text(middle, len(batch.task)),
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
        bins = self.policy.head.adaptive_pool_dim
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
        start = len(self.parts.before[0])
        return hidden[:, start : start + GRID[0] * GRID[1] // 4]

    def act(
        self, pooled: Tensor, index: NDArray[np.int64], goal: Tensor, *, weight: float
    ) -> dict[str, Tensor]:
        """Losses of fusion and head: the diffusion's noise, and the goal with `weight`."""
        head, device = self.model.action_head, pooled.device
        state = self.data.states[index].to(device)
        condition = head.condition(pooled, state + 0.02 * torch.randn_like(state))
        draws = self.draws
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
    def error_m(self, batch: Batch, *, with_condition: bool) -> dict[str, float]:
        """Root mean square error of a batch's goals, in decoder and condition."""
        hidden = self._language(batch)
        seen = {"held_out_m": self.goal_heads.mean(hidden.mean(dim=1))}
        if with_condition:
            pooled = self._pool(self._spatial(batch), hidden)
            state = self.data.states[batch.index].to(self.device)
            condition = self.model.action_head.condition(pooled, state)
            seen["held_out_condition_m"] = self.goal_heads.condition(condition)
        spread = torch.from_numpy(self.data.goal_spread_m).to(self.device)
        errors = {k: ((v - batch.goal) * spread).square().sum(dim=1) for k, v in seen.items()}
        return {name: float(square.mean().sqrt()) for name, square in errors.items()}

    def _prepare_prompt(self) -> None:
        """Tokens of the instructions, and the rotary tables of a whole prompt."""
        c, device = self.policy, self.device
        tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
        self.parts = parts = prompt_parts(c, tokenizer)
        tails = [parts.tail_ids(tokenizer, text) for text in self.data.instructions]
        if len({len(tail) for tail in tails}) > 1:
            lengths = dict(zip(self.data.instructions, map(len, tails), strict=True))
            raise ValueError(
                f"instructions share batches, so they must have equally many tokens: {lengths}; "
                "word them otherwise, or make the tokenizer know their words"
            )
        self._tail_ids = torch.tensor(tails, device=device)
        image = (GRID[0] // 2, GRID[1] // 2)
        between = len(parts.image_end) + len(parts.before[1])
        segments: list[prompt.Segment] = [
            len(parts.before[0]),
            image,
            between,
            image,
            len(tails[0]),
        ]
        cos, sin = rotary(c.language, segments)
        self._rotary = cos.to(device), sin.to(device)


def new_policy(config: AnchorVLA4DConfig, seed: int) -> AnchorVLA4D:
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
