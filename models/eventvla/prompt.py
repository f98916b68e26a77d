"""EventVLA's prompt as token ids, with room for the keyframes that an episode may come to have."""

from __future__ import annotations

import dataclasses

from tokenizers import Tokenizer

from models.eventvla.config import EventVLAConfig
from models.prompt_parts import PromptParts, encoded


def prompt(config: EventVLAConfig, tokenizer: Tokenizer) -> PromptParts:
    """With as many keyframes as there may be; see `shown` for less.

    Pictures: of the first step, of each delay and of now, each of all views, then the keyframes,
    the oldest first. A text between two of them stands between special tokens, so its ids are
    those that it has in the whole prompt.
    """
    c = config
    observed = [c.prompt.before + c.observation_label, *[""] * (c.num_observed - 1)]
    keyframes = [c.keyframe_label, *[""] * (c.most_keyframes - 1)] if c.most_keyframes else []
    parts = PromptParts.of(
        [*observed, *keyframes, c.text + c.prompt.after],
        image=(c.prompt.image_start, c.prompt.image_end),
        end_ids=(),
        tokenizer=tokenizer,
    )
    return dataclasses.replace(parts, action_id=encoded(c.action_token, tokenizer)[0])


def shown(parts: PromptParts, num_pictures: int) -> PromptParts:
    """The prompt of so many pictures, the last keyframes left out: the tail is the same."""
    return dataclasses.replace(parts, before=parts.before[:num_pictures])
