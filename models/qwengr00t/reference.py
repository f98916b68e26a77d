"""The whole policy composed from public libraries: the oracle, and the benchmark's baseline.

Qwen2.5-VL and its image processor come from `transformers`; attention, feed-forward layers and the
embedding of time from `diffusers`, which starVLA makes its head of. None of our modules runs here
and nothing is cached. The weights are those of a given `QwenGR00T`, shared and not copied.

Axes: N = patches of one view, L = token, T = step in the chunk, A = action dimension. The libraries
want a batch axis; it is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models.networks.config import FlowDiTConfig
from models.networks.heard import Heard, Listener, Sized, placed_qwen
from models.networks.parts import LayersPerPart
from models.networks.transformers_chat import chat_inputs
from models.networks.transformers_qwen import image_pad_id, qwen, share_weights
from models.qwengr00t.model import QwenGR00T
from runtime.image import ImageConfig


class Inputs(NamedTuple):
    """What `Composition.forward` takes, in order; see `transformers_chat.ChatInputs`."""

    pixel_values: Tensor
    image_grid_thw: Tensor
    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    noise: Tensor
    """[T, A] float32 standard normal."""
    state: Tensor | None
    """[S] in policy units."""


class Composition(nn.Module):
    def __init__(self, model: QwenGR00T, tokenizer: Tokenizer, image: ImageConfig) -> None:
        """Share the weights of `model`. The tokenizer must know `<|image_pad|>`."""
        super().__init__()
        config = model.config
        self.config, self.tokenizer, self.image = config, tokenizer, image
        self.image_pad_id = image_pad_id(tokenizer)
        self.qwen = qwen(config.vision, config.language, self.image_pad_id)
        with torch.device("meta"):
            self.head = Head(config.head, config.language.hidden_size)
        self.published = share_weights(self, model, composed_name)

    def forward(
        self,
        pixel_values: Tensor,
        image_grid_thw: Tensor,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        noise: Tensor,
        state: Tensor | None,
    ) -> Tensor:
        """One observation, see `Inputs` -> [T, A] float32 in policy units."""
        context_1LD = self.qwen(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask.long(),
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            use_cache=False,
        ).last_hidden_state
        state_1S = None if state is None else state[None]
        x_1TA, steps = noise[None], self.config.head.num_inference_timesteps
        for k in range(steps):
            t = int(k / float(steps) * self.config.head.num_timestep_buckets)
            x_1TA = x_1TA + 1.0 / steps * self.head(x_1TA, t, context_1LD, attention_mask, state_1S)
        return x_1TA[0]

    def prepare(
        self,
        *,
        instruction: str,
        noise: NDArray[np.float32],
        state: NDArray[np.float32] | None = None,
        padding: int = 0,
        **views: NDArray[np.uint8],
    ) -> Inputs:
        """Everything that happens before the networks.

        Args:
            instruction: one line of text, taken as it is.
            noise: [T, A] standard normal.
            state: [S] in policy units.
            padding: tokens of it in front, as a longer prompt in the same batch would leave.
            views: uint8 [H, W, 3] RGB, by the names of the configuration.
        """
        pictures = [views[name] for name in self.config.views]
        text = self.config.prompt.text.replace("{instruction}", instruction)
        chat = chat_inputs(
            self.qwen, self.image, self.tokenizer, self.config.prompt, pictures, text, padding
        )
        given = None if state is None else torch.from_numpy(state).float()
        return Inputs(*chat, torch.from_numpy(noise).float(), given)

    def listen(self) -> dict[str, list[Tensor]]:
        """Hooks that keep what the modules of a tick put out."""
        heard: dict[str, list[Tensor]] = {}
        listener = Listener(heard)
        listener.keep_qwen(self.qwen)
        if self.config.takes_state:
            listener.keep("state", self.head.state)
        for index, block in enumerate(self.head.blocks):
            if self.config.head.is_cross(index):
                for which in ("to_k", "to_v"):
                    listener.keep(which, block.get_submodule(f"attn1.{which}"))
        listener.keep_input("x", self.head, lambda given: given[0][0])
        listener.keep("velocity", self.head)
        return heard

    def placed(
        self,
        kept: Heard,
        grid: tuple[int, int],
        layers: LayersPerPart,
        fixed: Mapping[str, int],
    ) -> dict[str, Tensor]:
        """What was kept, under the names of our graph and in its layout, without padded rows."""
        c = self.config
        sized = Sized(c.vision, c.language, c.views, grid, layers, fixed)
        found = placed_qwen(kept, sized)
        # The library projects them anew in every step, and they are the same.
        pairs = [kept[which][: c.head.num_cross] for which in ("to_k", "to_v")]
        keys_values = torch.stack([torch.cat(layer) for layer in pairs], dim=2).movedim(0, 1)
        prefix = fixed["prefix"]
        found["prefix_keys_values"] = keys_values[:prefix]
        found["suffix_keys_values"] = keys_values[prefix:]
        if c.takes_state:
            found["state_row"] = kept["state"][0]
        found |= {f"x_{k}": x for k, x in enumerate(kept["x"])}
        return found | {f"predicted_{k}": v[0] for k, v in enumerate(kept["velocity"])}


class Head(nn.Module):
    """GR00T N1.5's head as starVLA has it, without a mask of its own."""

    def __init__(self, config: FlowDiTConfig, context_dim: int) -> None:
        super().__init__()
        self.config, width, hidden = config, config.width, config.hidden_size
        self.sinusoids = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=1)
        self.time = TimestepEmbedding(256, width)
        self.blocks = nn.ModuleList(
            HeadBlock(config, context_dim if config.is_cross(index) else None)
            for index in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.last = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.output_dim)
        self.encode = nn.ModuleList(
            [
                nn.Linear(config.action_dim, width),
                nn.Linear(2 * width, width),
                nn.Linear(width, width),
            ]
        )
        self.decode = nn.Sequential(
            nn.Linear(config.output_dim, hidden), nn.ReLU(), nn.Linear(hidden, config.action_dim)
        )
        if config.state_dim:
            self.state = nn.Sequential(
                nn.Linear(config.state_dim, hidden), nn.ReLU(), nn.Linear(hidden, width)
            )
        self.future = nn.Embedding(config.num_future_tokens, width)
        if config.add_pos_embed:
            self.positions = nn.Embedding(config.max_seq_len, width)

    def forward(
        self, x_1TA: Tensor, t: int, context_1LD: Tensor, mask_1L: Tensor, state_1S: Tensor | None
    ) -> Tensor:
        """The velocity at time `t`, [1, T, A]."""
        half, horizon = self.config.width // 2, x_1TA.shape[1]
        exponent = -torch.arange(half, dtype=torch.float) * (math.log(10000.0) / half)
        angles = t * exponent.exp()
        time = torch.cat([angles.sin(), angles.cos()]).expand(1, horizon, -1)
        first, second, third = self.encode
        rows = third(functional.silu(second(torch.cat([first(x_1TA), time], dim=-1))))
        if self.config.add_pos_embed:
            rows = rows + self.positions(torch.arange(horizon))
        rows = torch.cat([self.future.weight[None], rows], dim=1)
        if state_1S is not None:
            rows = torch.cat([self.state(state_1S)[:, None], rows], dim=1)
        temb = self.time(self.sinusoids(torch.tensor([t])))
        for index, block in enumerate(self.blocks):
            given = (context_1LD, mask_1L) if self.config.is_cross(index) else (None, None)
            rows = block(rows, temb, *given)
        shift, scale = self.last(functional.silu(temb)).chunk(2, dim=1)
        out = self.out(self.norm(rows) * (1 + scale[:, None]) + shift[:, None])
        return self.decode(out)[:, -horizon:]


class HeadBlock(nn.Module):
    def __init__(self, config: FlowDiTConfig, context_dim: int | None) -> None:
        super().__init__()
        width = config.width
        self.linear = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, eps=1e-5, elementwise_affine=False)
        self.attn1 = Attention(
            query_dim=width,
            heads=config.num_heads,
            dim_head=config.head_dim,
            bias=True,
            cross_attention_dim=context_dim,
        )
        self.ff = FeedForward(width, activation_fn="gelu-approximate")

    def forward(
        self, x: Tensor, temb: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        scale, shift = self.linear(functional.silu(temb)).chunk(2, dim=1)
        normed = self.norm(x) * (1 + scale[:, None]) + shift[:, None]
        x = x + self.attn1(normed, encoder_hidden_states=context, attention_mask=mask)
        return x + self.ff(self.norm(x))


PARTS = {
    "vlm.visual.": "qwen.visual.",
    "vlm.model.": "qwen.language_model.",
    "action_head.model.timestep_encoder.timestep_embedder.": "head.time.",
    "action_head.model.transformer_blocks.": "head.blocks.",
    "action_head.model.proj_out_1.": "head.last.",
    "action_head.model.proj_out_2.": "head.out.",
    "action_head.action_encoder.layer1.": "head.encode.0.",
    "action_head.action_encoder.layer2.": "head.encode.1.",
    "action_head.action_encoder.layer3.": "head.encode.2.",
    "action_head.action_decoder.layer1.": "head.decode.0.",
    "action_head.action_decoder.layer2.": "head.decode.2.",
    "action_head.state_encoder.layer1.": "head.state.0.",
    "action_head.state_encoder.layer2.": "head.state.2.",
    "action_head.future_tokens.": "head.future.",
    "action_head.position_embedding.": "head.positions.",
}
"""How a published name begins, and how it begins here."""


def composed_name(name: str) -> str:
    """What the tensor of our policy called `name` is called in a `Composition`."""
    begin = next(part for part in PARTS if name.startswith(part))
    return (PARTS[begin] + name.removeprefix(begin)).replace("norm1.linear.", "linear.")
