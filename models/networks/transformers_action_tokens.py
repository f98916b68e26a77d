"""What compositions from public libraries share that read actions off the rows of action tokens.

The Qwen and its image processor come from `transformers`; the head is `torch.nn` alone.

Axes: L = token, T = action in the chunk, D = width of the decoder. The libraries want a batch axis;
it is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models.networks.heard import Listener
from models.networks.transformers_qwen import image_pad_id, qwen, share_weights
from runtime.image import ImageConfig


class ActionTokenComposition(nn.Module):
    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        image: ImageConfig,
        named: Callable[[str, int], str],
        **others: nn.Module,
    ) -> None:
        """Share the weights of `model`. The tokenizer must know `<|image_pad|>`.

        Args:
            named: what a tensor of `model` is called here, of its name and the head's blocks.
            others: heads beside that of the actions, without weights.
        """
        super().__init__()
        config = model.config
        self.config, self.tokenizer, self.image = config, tokenizer, image
        self.image_pad_id = image_pad_id(tokenizer)
        self.action_id = tokenizer.encode(config.action_token, add_special_tokens=False).ids[0]
        self.qwen = qwen(config.vision, config.language, self.image_pad_id)
        with torch.device("meta"):
            self.head = Head(
                config.language.hidden_size, config.head.num_blocks, config.head.action_dim
            )
        for name, module in others.items():
            self.add_module(name, module)
        self.published = share_weights(self, model, lambda n: named(n, config.head.num_blocks))

    def rows(
        self,
        pixel_values: Tensor,
        image_grid_thw: Tensor,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
    ) -> Tensor:
        """One observation, see `ChatInputs` -> those of the action tokens, [T, D]."""
        hidden_1LD = self.qwen(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask.long(),
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            use_cache=False,
        ).last_hidden_state
        is_action = input_ids[0] == self.action_id
        rows_TD: Tensor = hidden_1LD[0, is_action][-self.config.head.action_horizon :]
        return rows_TD

    def forward(self, *observed: Tensor) -> Tensor:
        """One observation, see `ChatInputs` -> [T, A] float32 in policy units."""
        return self.head(self.rows(*observed))

    def listen(self) -> dict[str, list[Tensor]]:
        """Hooks that keep what the modules of a tick put out."""
        heard: dict[str, list[Tensor]] = {}
        listener = Listener(heard)
        listener.keep_qwen(self.qwen)
        listener.keep("actions", self.head)
        return heard


class Head(nn.Module):
    """OpenVLA-OFT's regression head; each block norms, multiplies, cuts off and adds."""

    def __init__(self, context: int, num_blocks: int, action_dim: int) -> None:
        super().__init__()
        width = 2 * context
        self.norms = nn.ModuleList(
            nn.LayerNorm(size) for size in (context, *[width] * (num_blocks + 1))
        )
        self.layers = nn.ModuleList(
            nn.Linear(size, width) for size in (context, *[width] * num_blocks)
        )
        self.last = nn.Linear(width, action_dim)

    def forward(self, rows_TC: Tensor) -> Tensor:
        first, *others = self.layers
        x = functional.relu(first(self.norms[0](rows_TC)))
        for norm, layer in zip(self.norms[1:-1], others, strict=True):
            x = x + functional.relu(layer(norm(x)))
        return self.last(self.norms[-1](x))


def composed_name(name: str, num_blocks: int) -> str:
    """What the tensor of our policy called `name` is called in a `Composition`."""
    for begin, other in (("vlm.visual.", "qwen.visual."), ("vlm.model.", "qwen.language_model.")):
        if name.startswith(begin):
            return other + name.removeprefix(begin)
    _, _, place, *rest = name.split(".")
    if place == "mlp_resnet_blocks":
        number, _, layer, which = rest
        kind = {"0": "norms", "1": "layers"}[layer]
        return f"head.{kind}.{int(number) + 1}.{which}"
    last = f"norms.{num_blocks + 1}"
    named = {"layer_norm1": "norms.0", "layer_norm2": last, "fc1": "layers.0", "fc2": "last"}
    return f"head.{named[place]}.{rest[0]}"
