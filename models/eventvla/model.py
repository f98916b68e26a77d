"""EventVLA: Qwen3-VL reads pictures of the first step, of the past and of now, the keyframes, the
instruction and a token for each action; of each of these tokens' rows one head makes an action and
another the probability that what is seen at its step is an event.

`forward` is the float32 reference: one plain pass with no cache, no split and no trick. There is no
noise, no state and nothing to sample. Which pictures become keyframes is decided outside, see
`runtime.functions.keyframes`.

Axes: T = action in the chunk, A = action dimension, D = width of the decoder, N = patches of a
picture, L = token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.eventvla.config import EventVLAConfig
from models.eventvla.pictures import KEYFRAMES, observed_names, slot_names
from models.eventvla.prompt import shown
from models.networks.mlp_resnet import MLPHead
from models.networks.vision_language import VisionLanguage, patches_of
from models.prompt_parts import PromptParts
from runtime.image import ImageConfig
from runtime.prompt import last_places


class Predicted(NamedTuple):
    """Of one observation."""

    actions_TA: Tensor
    """[T, A] in policy units."""
    probabilities_T: Tensor
    """[T] of an event, from 0 to 1; zeros from a policy whose keyframe head does not speak."""


class EventVLA(nn.Module):
    def __init__(self, config: EventVLAConfig) -> None:
        super().__init__()
        self.config = config
        width = config.language.hidden_size
        self.vlm = VisionLanguage(config.vision, config.language)
        self.action_head = MLPHead(config.head, width)
        if config.predicts_keyframes:
            self.keyframe_head = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
            )

    def forward(
        self,
        patches: Sequence[Tensor],
        grid: tuple[int, int],
        parts: PromptParts,
        tail_ids: tuple[int, ...],
    ) -> Predicted:
        """One observation -> one action chunk, and where in it events are likely.

        Args:
            patches: [N, patch_dim] of each picture in the order of the prompt, the keyframes that
                there are at the end; normalised, in merge-block order.
            grid: rows and columns of patches of each picture.
            parts: fixed tokens of the prompt with all its keyframes, see `prompt.prompt`.
            tail_ids: tokens behind the last picture.

        Raises:
            ValueError: pictures are missing, or there are too many keyframes.
        """
        c = self.config
        num_keyframes = len(patches) - c.num_observed
        if not 0 <= num_keyframes <= c.most_keyframes:
            raise ValueError(
                f"{len(patches)} pictures: the prompt shows {c.num_observed}, and behind them up "
                f"to {c.most_keyframes} keyframes"
            )
        hidden_LD = self.vlm.hidden(patches, grid, shown(parts, len(patches)), tail_ids)
        assert parts.action_id is not None
        places = last_places(tail_ids, parts.action_id, c.head.action_horizon)
        rows_TD = hidden_LD[len(hidden_LD) - len(tail_ids) :][torch.tensor(places)]
        return Predicted(self.action_head(rows_TD), self.probabilities(rows_TD))

    def probabilities(self, rows_TD: Tensor) -> Tensor:
        """Of an event at each step, [T], from the rows of the action tokens."""
        if not self.config.predicts_keyframes:
            return torch.zeros_like(rows_TD[:, 0])
        return torch.sigmoid(self.keyframe_head(rows_TD)[:, 0])


@torch.no_grad()
def actions(
    model: EventVLA,
    parts: PromptParts,
    image: ImageConfig,
    tail_ids: tuple[int, ...],
    observed: Mapping[str, NDArray[Any]],
) -> NDArray[np.float32]:
    """The chunk; see `models.family.Family.actions`.

    Args:
        observed: every picture by its name, uint8 [H, W, 3] RGB, and `keyframes`, how many of the
            slots show one.
    """
    c = model.config
    count = int(observed[KEYFRAMES][0]) if KEYFRAMES in observed else 0
    names = (*observed_names(c), *slot_names(c)[:count])
    pictures = [observed[name] for name in names]
    made: NDArray[np.float32] = predict(model, parts, image, tail_ids, pictures).actions_TA.numpy()
    return made


@torch.no_grad()
def predict(
    model: EventVLA,
    parts: PromptParts,
    image: ImageConfig,
    tail_ids: tuple[int, ...],
    pictures: Sequence[NDArray[np.uint8]],
) -> Predicted:
    """`EventVLA.forward` from pictures, each uint8 [H, W, 3] RGB, in the order of the prompt."""
    patches, grid = patches_of(pictures, image)
    made: Predicted = model(patches, grid, parts, tail_ids)
    return made
