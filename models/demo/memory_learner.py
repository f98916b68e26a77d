"""What a batch of questions costs a policy with keyframes: rows of its action tokens, and losses.

The policy's own modules on batches, as `models.eventvla.model` runs them one by one; what stands up
to the first picture is run once for all questions about a scene. The goal heads exist in training
only.

Axes: S = scene, Q = question, N = patches, L = tokens of the prompt, D = width, T = action of the
chunk, A = action dimension.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models.demo.data import GRID
from models.demo.memory_data import Batch, Memories, Questions
from models.demo.training import goal_head
from models.eventvla.config import EventVLAConfig
from models.eventvla.model import EventVLA
from models.eventvla.prompt import prompt as prompt_parts
from models.networks.vision_language import rotary
from models.random_weights import random_tensors
from runtime import prompt

IMAGE = (GRID[0] // 2, GRID[1] // 2)
NUM_IMAGE = IMAGE[0] * IMAGE[1]


class GoalHeads(nn.Module):
    """Regress places from the decoder's tokens, in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hand = goal_head(width)
        self.blinked = goal_head(width)
        self.target = goal_head(width)
        self.last = nn.Linear(width, 3)


class Seen(NamedTuple):
    """Of the questions of one phase."""

    hidden: Tensor
    """[Q, L, D] behind the first picture."""
    rows: Tensor
    """[Q, T, D] of the action tokens."""


class MemoryLearner:
    """The policy with its goal heads."""

    def __init__(
        self, policy: EventVLAConfig, data: Memories, tokenizer: Path, *, seed: int, device: str
    ) -> None:
        """
        Args:
            policy: one view, no delays, one keyframe.
            data: places, chunks, instruction.
            tokenizer: file.
            seed: of the weights.
            device: where to train.
        """
        assert (policy.num_observed, policy.most_keyframes) == (2, 1)
        self.policy, self.data, self.device = policy, data, device
        self.model = new_policy(policy, seed).to(device)
        self.goal_heads = GoalHeads(policy.language.hidden_size).to(device)
        text = Tokenizer.from_file(str(tokenizer))
        self.parts = parts = prompt_parts(policy, text)
        tail = parts.tail_ids(text, data.instruction)
        assert parts.action_id is not None
        self._places = prompt.last_places(tail, parts.action_id, policy.chunk[0])
        self._tail = tail[: self._places[-1] + 1]  # nobody reads what stands behind the actions

    def see(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of vision tower and decoder."""
        return self._goals(batch, self.seen(batch), weight=1.0)

    def all(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of everything."""
        seen = self.seen(batch)
        rows = torch.cat([s.rows for s in seen])
        index = np.concatenate([questions.index for questions in batch.questions])
        return self._goals(batch, seen, weight=0.25) | self.act(rows, index)

    def act(self, rows_QTD: Tensor, index: NDArray[np.int64]) -> dict[str, Tensor]:
        """Losses of the heads: of the actions, and of what is an event."""
        chunks, is_lit = (v[index].to(self.device) for v in (self.data.chunks, self.data.is_lit))
        actions = self.model.action_head(rows_QTD)
        logits = self.model.keyframe_head(rows_QTD)[..., 0]
        # Whoever sees the blink knows that the next frame shows it too, and no more than that.
        events = torch.zeros_like(logits)
        events[:, 1] = is_lit
        return {
            "actions": functional.l1_loss(actions, chunks),
            "events": functional.binary_cross_entropy_with_logits(logits, events),
        }

    def seen(self, batch: Batch) -> tuple[Seen, Seen]:
        """Of the questions without a keyframe, and of those with one."""
        vision = self.model.vlm.visual
        first = vision(batch.firsts, GRID)
        prefix = self._lay([self.parts.before[0]], [first])
        length = prefix.shape[1]
        tables = [t.to(self.device) for t in rotary(self.policy.language, self._segments(2))]
        past = self.model.vlm.model.empty_past(0).to(self.device)
        past = past.expand(len(prefix), -1, -1, -1, -1, -1)
        mask = torch.from_numpy(prompt.attention_mask(0, 0, length, length)).to(self.device)
        kv, _ = self.model.vlm.model(prefix, past, mask, *(t[:length] for t in tables))
        kept = vision(batch.keyframes, GRID)
        without, with_one = batch.questions
        return self._ask(kv, length, without, None), self._ask(kv, length, with_one, kept)

    def _ask(self, kv: Tensor, length: int, asked: Questions, kept: Tensor | None) -> Seen:
        parts = self.parts
        pictures = [self.model.vlm.visual(asked.pictures, GRID)]
        if kept is not None:
            pictures.append(kept[asked.scene])
        texts = [parts.image_end + before for before in parts.before[1:]][: len(pictures)]
        suffix = self._lay([*texts, self._tail], pictures)
        more = suffix.shape[1]
        tables = rotary(self.policy.language, self._segments(1 + len(pictures)))
        cos, sin = (t[length:].to(self.device) for t in tables)
        mask = torch.from_numpy(prompt.attention_mask(length, length, more, more)).to(self.device)
        _, hidden = self.model.vlm.model(suffix, kv[asked.scene], mask, cos, sin)
        return Seen(hidden, hidden[:, [more - len(self._tail) + place for place in self._places]])

    def _segments(self, num_pictures: int) -> list[prompt.Segment]:
        segments: list[prompt.Segment] = [len(self.parts.before[0]), IMAGE]
        for before in self.parts.before[1:num_pictures]:
            segments += [len(self.parts.image_end) + len(before), IMAGE]
        return [*segments, len(self._tail)]

    def _lay(self, texts: list[tuple[int, ...]], pictures: list[Tensor]) -> Tensor:
        """Texts and pictures in turn, [., L, D]."""
        table, count = self.model.vlm.model.embed_tokens, len(pictures[0])
        rows = [table(torch.tensor(ids, device=self.device)).expand(count, -1, -1) for ids in texts]
        pieces = [rows[0]]
        for picture, row in zip(pictures, [*rows[1:], None], strict=False):
            pieces += [picture] if row is None else [picture, row]
        return torch.cat(pieces, dim=1)

    def _goals(self, batch: Batch, seen: tuple[Seen, Seen], *, weight: float) -> dict[str, Tensor]:
        """Of the decoder: where everything is, and where to go."""
        losses = {name: torch.zeros((), device=self.device) for name in ("hand", "target", "last")}
        heads, data, mse = self.goal_heads, self.data, functional.mse_loss
        num_asked = sum(len(questions.index) for questions in batch.questions)
        for asked, (hidden, _) in zip(batch.questions, seen, strict=True):
            share = weight * len(asked.index) / num_asked
            hands, targets = (v[asked.index].to(self.device) for v in (data.hands, data.targets))
            losses["hand"] += share * mse(heads.hand(self._picture(hidden, 0).mean(1)), hands)
            losses["target"] += share * mse(heads.target(hidden.mean(dim=1)), targets)
            losses["last"] += share * mse(heads.last(hidden[:, -1]), targets)
        with_one, (hidden, _) = batch.questions[1], seen[1]
        episodes = batch.episodes[with_one.scene]
        blinked = data.blinked[episodes].to(self.device)
        losses["blinked"] = weight * mse(heads.blinked(self._picture(hidden, 1).mean(1)), blinked)
        return losses

    def _picture(self, hidden: Tensor, number: int) -> Tensor:
        """Tokens of one of the pictures behind the first."""
        start = 0
        for before in self.parts.before[1 : 2 + number]:
            start += len(self.parts.image_end) + len(before)
        start += number * NUM_IMAGE
        return hidden[:, start : start + NUM_IMAGE]

    @torch.no_grad()
    def errors(self, batch: Batch) -> dict[str, float]:
        """Root mean square errors of targets in metres, mean error of actions, share of wrong
        events."""
        seen = self.seen(batch)
        with_one = batch.questions[1]
        spread = torch.from_numpy(self.data.target_spread_m).to(self.device)
        off = self.goal_heads.target(seen[1].hidden.mean(dim=1))
        off = (off - self.data.targets[with_one.index].to(self.device)) * spread
        rows = torch.cat([s.rows for s in seen])
        index = np.concatenate([questions.index for questions in batch.questions])
        likely = torch.sigmoid(self.model.keyframe_head(rows)[:, 1, 0])
        is_event = likely >= self.policy.events.threshold
        chunks = self.data.chunks[index].to(self.device)
        return {
            "held_out_m": float(off.square().sum(dim=1).mean().sqrt()),
            "held_out_actions": float((self.model.action_head(rows) - chunks).abs().mean()),
            "held_out_events": float((is_event != (self.data.is_lit[index] > 0)).float().mean()),
        }


def new_policy(config: EventVLAConfig, seed: int) -> EventVLA:
    """Seeded weights to start from, without biases."""
    with torch.device("meta"):
        model = EventVLA(config)
    model.load_state_dict(dict(random_tensors(model, seed)), assign=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model
