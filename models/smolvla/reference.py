"""The whole policy composed from public libraries: the oracle, and the benchmark's baseline.

SigLIP, the pixel shuffle and Llama's layers come from `transformers`, resizing and attention from
torch. None of our modules runs here and nothing is kept. The weights are those of a given
`SmolVLA`, shared and not copied. As LeRobot has it, a text may be padded on its right; what is
padded is hidden, and places are counted without it.

Axes: N = rows that the language model is given, padding and the state's row included, T = action
in the chunk, A = width of padded actions, L = layer, K = key/value heads, d = head width. The
libraries want a batch axis; it is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)
from transformers.models.smolvlm import SmolVLMConfig
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.modeling_smolvlm import (
    SmolVLMConnector,
    SmolVLMVisionTransformer,
)

from models.networks.heard import Heard, Listener
from models.networks.parts import LayersPerPart, cut
from models.networks.transformers_qwen import share_weights
from models.smolvla.config import SmolVLAConfig
from models.smolvla.model import SmolVLA
from runtime.graph import part_name
from runtime.image import ImageConfig


class Inputs(NamedTuple):
    """What `Composition.forward` takes, in order."""

    pixel_values: Tensor
    """[views, 3, H, W], from -1 to 1."""
    input_ids: Tensor
    """[1, text], padded on the right."""
    attention_mask: Tensor
    """[1, text] bool: what is no padding."""
    noise: Tensor
    """[T, A] standard normal."""
    state: Tensor
    """Of the robot's numbers, in policy units."""


class Composition(nn.Module):
    def __init__(self, model: SmolVLA, tokenizer: Tokenizer, image: ImageConfig) -> None:
        """Share the weights of `model`."""
        super().__init__()
        c = model.config
        self.config, self.tokenizer, self.image = c, tokenizer, image
        width, settings = c.language.hidden_size, _llama(c, c.language.hidden_size)
        kv_width = c.language.num_key_value_heads * c.language.head_dim
        vision = SmolVLMVisionConfig(
            hidden_size=c.vision.hidden_size,
            intermediate_size=c.vision.intermediate_size,
            num_hidden_layers=c.vision.depth,
            num_attention_heads=c.vision.num_heads,
            image_size=c.vision.image_size,
            patch_size=c.vision.patch_size,
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-6,
        )
        whole = SmolVLMConfig(
            vision_config=vision, text_config=settings, scale_factor=c.vision.scale_factor
        )
        with torch.device("meta"):
            self.vision = SmolVLMVisionTransformer(vision)
            self.connector = SmolVLMConnector(whole)
            self.text = LlamaModel(settings)
            self.text.norm = nn.Identity()  # type: ignore[assignment]
            self.last = nn.ModuleDict(
                {
                    "input_layernorm": LlamaRMSNorm(width, settings.rms_norm_eps),
                    "k_proj": nn.Linear(width, kv_width, bias=False),
                    "v_proj": nn.Linear(width, kv_width, bias=False),
                }
            )
            self.state_proj = nn.Linear(c.head.max_state_dim, width)
            self.expert = Expert(c)
        # The rotary frequencies are no weights: no state_dict would bring them off the meta device.
        self.text.rotary_emb = LlamaRotaryEmbedding(settings)
        self.expert.rotary = [LlamaRotaryEmbedding(settings)]
        self.kept = nn.Identity()
        """Given keys and values of all rows, [L, 2, K, N, d]."""
        self.crossed = nn.Identity()
        """Given those that the expert projects anew, layer by layer."""
        self.published = share_weights(self, model, partial(composed_name, c))

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        noise: Tensor,
        state: Tensor,
    ) -> Tensor:
        """One observation, see `Inputs` -> [T, the robot's numbers] float32 in policy units."""
        c, scale = self.config.head, math.sqrt(self.config.language.hidden_size)
        seen = self.connector(self.vision(pixel_values).last_hidden_state) * scale
        told = self.text.embed_tokens(input_ids) * scale
        state = functional.pad(state, (0, c.max_state_dim - c.state_dim))
        x_1ND = torch.cat(
            [seen.flatten(0, 1)[None], told, self.state_proj(state)[None, None]], dim=1
        )
        images = attention_mask.new_ones(1, seen.shape[0] * seen.shape[1])
        real_1N = torch.cat([images, attention_mask, attention_mask.new_ones(1, 1)], dim=1)
        is_state = torch.zeros_like(real_1N)
        is_state[:, -1] = True
        block = is_state.cumsum(1)  # a row sees those of its own block and of the blocks before it
        allowed = (block[:, None] <= block[:, :, None]) & real_1N[:, None] & real_1N[:, :, None]
        places = real_1N.cumsum(1) - 1
        kv = self._keys_values(x_1ND, allowed, places)
        past = self.kept(torch.stack([torch.cat(pair) for pair in kv]))
        given = self.expert.given(past)
        self.crossed(torch.stack(list(given.values())))
        x_1TA, steps = noise[None], c.num_inference_timesteps
        dt = -1.0 / steps
        for k in range(steps):
            time = torch.tensor([1.0 + k * dt], dtype=torch.float32)
            x_1TA = x_1TA + dt * self.expert(x_1TA, time, past, given, real_1N)
        return x_1TA[0, :, : c.action_dim]

    def _keys_values(
        self, x_1ND: Tensor, allowed_1NN: Tensor, places_1N: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, [1, K, N, d]."""
        hidden = torch.finfo(torch.float32).min
        mask = torch.zeros(allowed_1NN.shape).masked_fill(~allowed_1NN, hidden)[:, None]
        out = self.text(
            inputs_embeds=x_1ND, attention_mask=mask, position_ids=places_1N, use_cache=True
        )
        found = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        normed = self.last["input_layernorm"](out.last_hidden_state)
        k, v = (
            self.last[name](normed).unflatten(-1, (-1, self.config.language.head_dim))
            for name in ("k_proj", "v_proj")
        )
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        k, _ = apply_rotary_pos_emb(k, k, *self.text.rotary_emb(x_1ND, places_1N))
        return [*found, (k, v)]

    def prepare(
        self,
        *,
        instruction: str,
        state: NDArray[np.float32],
        noise: NDArray[np.float32],
        padding: int = 0,
        **views: NDArray[np.uint8],
    ) -> Inputs:
        """Everything that happens before the networks.

        Args:
            instruction: one line of text.
            state: of the robot's numbers, in policy units.
            noise: [T, A] standard normal.
            padding: tokens of it behind the text.
            views: uint8 [H, W, 3] RGB, by the names of the configuration.
        """
        text = self.config.prompt.text.replace("{instruction}", instruction)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        side = self.config.vision.image_size
        shown = [letterbox(views[name], side) * 2.0 - 1.0 for name in self.config.views]
        return Inputs(
            torch.cat(shown),
            torch.tensor([[*ids, *[0] * padding]]),
            torch.tensor([[True] * len(ids) + [False] * padding]),
            torch.from_numpy(noise).float(),
            torch.from_numpy(state).float(),
        )

    def listen(self) -> dict[str, list[Tensor]]:
        """Hooks that keep what the modules of a tick put out."""
        heard: dict[str, list[Tensor]] = {}
        listener = Listener(heard)
        for layer in self.vision.encoder.layers:
            listener.keep("vision", layer)
        listener.keep("tokens", self.connector)
        for layer in self.text.layers[1:]:
            listener.keep_input("language", layer, lambda given: given[0])
        listener.keep_input("language", self.last["input_layernorm"], lambda given: given[0])
        for name, module in (("kv", self.kept), ("crossed", self.crossed)):
            listener.keep(name, module)
        listener.keep_input("x", self.expert, lambda given: given[0][0])
        listener.keep("velocity", self.expert)
        return heard

    def placed(
        self,
        kept: Heard,
        grid: tuple[int, int],
        layers: LayersPerPart,
        fixed: Mapping[str, int],
    ) -> dict[str, Tensor]:
        """What was kept, under the names of our graph and in its layout, without padded rows."""
        c, (call,) = self.config, fixed
        found: dict[str, Tensor] = {}
        parts = cut(c.vision.depth, layers.get("vision"))
        for number, view in enumerate(c.views):
            scale = math.sqrt(c.language.hidden_size)
            found[f"{view}_tokens"] = kept["tokens"][0][number] * scale
            for i, part in enumerate(parts[:-1]):
                x = kept["vision"][part.stop - 1][number]
                found[part_name(f"{view}_vision_x", i, len(parts))] = x
        kv, crossed = kept["kv"][0], kept["crossed"][0]
        found[f"{call}_kv"], found[f"{call}_cross"] = kv[..., :-1, :], crossed[..., :-1, :]
        parts = cut(c.language.num_hidden_layers, layers.get("language"))
        for i, part in enumerate(parts):
            found[part_name(f"{call}_kv", i, len(parts))] = kv[part.start : part.stop, ..., :-1, :]
            if part is not parts[-1]:
                x = kept["language"][part.stop - 1][0, :-1]
                found[part_name(f"{call}_x", i, len(parts))] = x
        rows, made = kv[..., -1:, :].clone(), iter(crossed[..., -1:, :])
        for index in range(len(rows)):
            if c.head.is_cross(index):
                rows[index] = next(made)
        found["state_row"] = rows
        found |= {f"x_{k}": x for k, x in enumerate(kept["x"])}
        return found | {f"predicted_{k}": v[0] for k, v in enumerate(kept["velocity"])}


class Expert(nn.Module):
    """LeRobot's action expert, its `attention_mode` "cross_attn"."""

    rotary: Sequence[Any]
    """In a list: it has no weights."""

    def __init__(self, c: SmolVLAConfig) -> None:
        super().__init__()
        self.config, width = c.head, c.head.hidden_size
        settings = _llama(c, width, c.head.intermediate_size)
        kv_width = c.language.num_key_value_heads * c.language.head_dim
        self.layers = nn.ModuleList(
            ExpertLayer(settings, kv_width if c.head.is_cross(index) else width)
            for index in range(c.language.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(width, settings.rms_norm_eps)
        self.action_in_proj = nn.Linear(c.head.max_action_dim, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)
        self.action_out_proj = nn.Linear(width, c.head.max_action_dim)

    def _layers(self) -> Iterator[ExpertLayer]:
        return (layer for layer in self.layers if isinstance(layer, ExpertLayer))

    def given(self, past: Tensor) -> dict[int, Tensor]:
        """Of each layer that only attends to the language model, keys and values, [2, K, N, d]."""
        return {
            index: torch.stack([layer.made("k_proj", k), layer.made("v_proj", v)])
            for index, (layer, (k, v)) in enumerate(zip(self._layers(), past, strict=True))
            if self.config.is_cross(index)
        }

    def forward(
        self,
        x_1TA: Tensor,
        time: Tensor,
        past: Tensor,
        given: Mapping[int, Tensor],
        real_1N: Tensor,
    ) -> Tensor:
        """The velocity at a time, [1, T, A]."""
        c, horizon = self.config, x_1TA.shape[1]
        fraction = torch.linspace(0.0, 1.0, c.hidden_size // 2, dtype=torch.float64)
        period = c.min_period * (c.max_period / c.min_period) ** fraction
        angles = (1.0 / period * 2 * math.pi)[None] * time[:, None]
        sinusoids = torch.cat([angles.sin(), angles.cos()], dim=1).float()
        rows = torch.cat([self.action_in_proj(x_1TA), sinusoids.expand(1, horizon, -1)], dim=2)
        x = self.action_time_mlp_out(functional.silu(self.action_time_mlp_in(rows)))
        own = torch.ones(horizon, horizon, dtype=torch.bool).tril()
        others = real_1N.expand(horizon, -1)
        places = torch.arange(horizon)[None]
        for index, layer in enumerate(self._layers()):
            is_cross = c.is_cross(index)
            at = places if is_cross else real_1N.sum() + places
            cos, sin = self.rotary[0](x, at)
            if is_cross:
                x = layer(x, cos, sin, given[index], others, appends=False)
            else:
                x = layer(x, cos, sin, past[index], torch.cat([others, own], 1), appends=True)
        return self.action_out_proj(self.norm(x))


class ExpertLayer(nn.Module):
    def __init__(self, settings: Any, context: int) -> None:
        """
        Args:
            context: width of what keys and values are made of.
        """
        super().__init__()
        width, self.head_dim = settings.hidden_size, settings.head_dim
        q_width = settings.num_attention_heads * self.head_dim
        kv_width = settings.num_key_value_heads * self.head_dim
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, q_width, bias=False),
                "k_proj": nn.Linear(context, kv_width, bias=False),
                "v_proj": nn.Linear(context, kv_width, bias=False),
                "o_proj": nn.Linear(q_width, width, bias=False),
            }
        )
        self.mlp = LlamaMLP(settings)
        self.input_layernorm = LlamaRMSNorm(width, settings.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(width, settings.rms_norm_eps)

    def made(self, name: str, heads_KNd: Tensor) -> Tensor:
        """Heads side by side through a layer, and apart again."""
        rows = heads_KNd.transpose(0, 1).flatten(1)
        return self.self_attn[name](rows).unflatten(-1, (-1, self.head_dim)).transpose(0, 1)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, given: Tensor, mask: Tensor, *, appends: bool
    ) -> Tensor:
        """Rows [1, T, W] that attend to `given` [2, K, N, d], and to themselves behind it."""
        normed = self.input_layernorm(x)
        q = self._heads("q_proj", normed)
        k, v = (part[None] for part in given)
        if appends:
            own = self._heads("k_proj", normed)
            q, own = apply_rotary_pos_emb(q, own, cos, sin)
            k = torch.cat([k, own], dim=2)
            v = torch.cat([v, self._heads("v_proj", normed)], dim=2)
        else:
            q, _ = apply_rotary_pos_emb(q, q, cos, sin)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        x = x + self.self_attn["o_proj"](out.transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))

    def _heads(self, name: str, x: Tensor) -> Tensor:
        return self.self_attn[name](x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def letterbox(picture: NDArray[np.uint8], side: int) -> Tensor:
    """uint8 [H, W, 3] -> [1, 3, side, side] from 0 to 1, in the lower right corner of black."""
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    height, width = pixels.shape[2:]
    if (height, width) == (side, side):
        return pixels
    ratio = max(width / side, height / side)
    inner = int(height / ratio), int(width / ratio)
    inside = functional.interpolate(pixels, size=inner, mode="bilinear", align_corners=False)
    return functional.pad(inside, (side - inner[1], 0, side - inner[0], 0))


def _llama(c: SmolVLAConfig, width: int, hidden: int | None = None) -> LlamaConfig:
    """Of the language model without its last layer, or of the expert."""
    lm = c.language
    return LlamaConfig(
        vocab_size=lm.vocab_size,
        hidden_size=width,
        intermediate_size=hidden or lm.intermediate_size,
        num_hidden_layers=lm.num_hidden_layers - 1,
        num_attention_heads=lm.num_attention_heads,
        num_key_value_heads=lm.num_key_value_heads,
        head_dim=lm.head_dim,
        rms_norm_eps=lm.rms_norm_eps,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": lm.rope_theta},
    )


def composed_name(config: SmolVLAConfig, name: str) -> str:
    """What the tensor of our policy called `name` is called in a `Composition`."""
    last = f"vlm.model.layers.{config.language.num_hidden_layers - 1}."
    if name.startswith(last):
        return "last." + name.removeprefix(last).removeprefix("self_attn.")
    for begin, other in (
        ("vlm.visual.", "vision."),
        ("vlm.connector.", "connector."),
        ("vlm.model.", "text."),
        ("action_head.", "expert."),
    ):
        if name.startswith(begin):
            return other + name.removeprefix(begin)
    return name
