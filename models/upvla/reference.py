"""The whole policy composed from public libraries: the oracle, and the benchmark's baseline.

Phi comes from `transformers`, with the authors' mask; the picture tokenizer and the head are
`torch.nn` alone, told from their descriptions. None of our modules runs here and nothing is cached:
the text is filled up from the left as the authors do it. One thing is the runtime's: nothing but
Pillow's resize and a crop of the middle, which torchvision would do. The weights are those of a
given `UPVLA`, shared and not copied.

A code is signs of numbers, and one that lies within float32 rounding of zero may fall to the other
side. So `codes` and what comes behind it can be held against ours apart.

Axes: N = codes of one view, L = token, T = action in the chunk, A = action dimension, D = width.
The libraries want a batch axis; it is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.phi.configuration_phi import PhiConfig
from transformers.models.phi.modeling_phi import PhiModel, PhiRotaryEmbedding

from models.networks import phi_config
from models.networks.heard import Heard, Listener, stacked
from models.networks.parts import LayersPerPart, cut
from models.networks.transformers_qwen import share_weights
from models.networks.vq_config import VQConfig
from models.upvla.config import UPVLAConfig
from models.upvla.model import UPVLA
from runtime.graph import part_name
from runtime.image import ImageConfig, PatchMaker


class Inputs(NamedTuple):
    """What `Composition.forward` takes, in order."""

    pixel_values: Tensor
    """[views, 3, H, W] of -1 to 1."""
    input_ids: Tensor
    """[1, L] up to the pictures, padded from the left."""


class Composition(nn.Module):
    def __init__(self, model: UPVLA, tokenizer: Tokenizer, image: ImageConfig) -> None:
        """Share the weights of `model`."""
        super().__init__()
        c = model.config
        self.config, self.tokenizer, self.image = c, tokenizer, image
        self.phi = _phi(c.language)
        width = c.language.hidden_size
        with torch.device("meta"):
            self.encoder, self.decoder = _encoder(c.vision), _decoder(c.vision)
            self.head = Head(c, width)
            self.code_head = nn.Linear(width, c.vision.codebook_size)
        self.published = share_weights(self, model, partial(composed_name, steps=namer(c)))

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """One observation, see `Inputs` -> [T, A] float32 in policy units."""
        made: Tensor = self.head(self.hidden(self.codes(pixel_values), input_ids)[0])
        return made

    def codes(self, pixel_values: Tensor) -> Tensor:
        """[views, N] of the pictures' codes."""
        z = self.encoder(pixel_values).flatten(2)
        weights = 2 ** torch.arange(z.shape[1] - 1, -1, -1)
        return (weights[:, None] * (z > 0)).sum(1)

    def hidden(self, codes: Tensor, input_ids: Tensor) -> Tensor:
        """[1, L, D] of all rows, padded ones too."""
        p, count = self.config.prompt, self.config.head.action_horizon
        others = [[p.image_start], (codes + p.first_code).flatten().tolist(), [p.image_end]]
        sequence = [*input_ids[0].tolist(), *sum(others, []), *[p.action] * count]
        ids = torch.tensor([sequence])
        out = self.phi(input_ids=ids, attention_mask=self._mask(ids), use_cache=True)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _mask(self, ids: Tensor) -> Tensor:
        """[1, 1, L, L], added to the scores: 0 where a row may look."""
        p, length = self.config.prompt, ids.shape[1]
        pads = int((ids == p.pad).sum())
        first, last = (int((ids[0] == one).nonzero()) for one in (p.image_start, p.image_end))
        seen = torch.ones(length, length).tril().bool()
        seen[first : last + 1] = True
        seen[pads:, :pads] = False
        return torch.zeros(1, 1, length, length).masked_fill(~seen, torch.finfo().min)

    def foreseen(self, hidden: Tensor) -> Tensor:
        """[views, N] of the codes to come."""
        c = self.config
        start = c.prompt.max_text + 1
        logits = self.code_head(hidden[0, start : start + c.num_codes])
        return logits.argmax(-1).reshape(len(c.views), -1)

    def picture(self, codes: Tensor) -> Tensor:
        """[N] -> [H, W, 3] of 0 to 255."""
        c = self.config.vision
        places = torch.arange(c.z_channels - 1, -1, -1)[:, None, None]
        bits = (codes.reshape(1, *c.grid).long() // 2**places) % 2
        pixels = self.decoder(bits[None] * 2.0 - 1)[0].permute(1, 2, 0)
        return torch.clamp((pixels + 1) / 2, 0, 1) * 255

    def prepare(self, *, instruction: str, **views: NDArray[np.uint8]) -> Inputs:
        """Everything that happens before the networks.

        Args:
            instruction: one line of text.
            views: uint8 [H, W, 3] RGB, by the names of the configuration.
        """
        c, p = self.config, self.config.prompt
        fit = PatchMaker(self.image, c.vision.grid).fitted
        pixels = [torch.from_numpy(fit(views[name]).copy()).permute(2, 0, 1) for name in c.views]
        text = self.tokenizer.encode(instruction, add_special_tokens=False).ids
        ids = [p.task, p.bos, *text, p.eos]
        padded = [p.pad] * (p.max_text - len(ids)) + ids
        return Inputs((torch.stack(pixels) / 255 - 0.5) / 0.5, torch.tensor([padded]))

    def listen(self) -> dict[str, list[Tensor]]:
        """Hooks that keep what the modules of a tick put out."""
        heard: dict[str, list[Tensor]] = {}
        listener = Listener(heard)
        listener.keep_input("ids", self, lambda given: given[1])
        listener.keep("z", self.encoder)
        for layer in self.phi.layers[1:]:
            listener.keep_input("language", layer, lambda given: given[0])
        listener.keep("hidden", self.phi, lambda out: out.last_hidden_state)
        listener.keep("kv", self.phi, lambda out: stacked(out.past_key_values))
        listener.keep("actions", self.head)
        return heard

    def placed(
        self,
        kept: Heard,
        grid: tuple[int, int],
        layers: LayersPerPart,
        fixed: Mapping[str, int],
    ) -> dict[str, Tensor]:
        """What was kept, under the names of our graph and in its layout, without padded rows."""
        c, p = self.config, self.config.prompt
        pads = int((kept["ids"][0] == p.pad).sum())
        z = kept["z"][0]
        weights = 2 ** torch.arange(z.shape[1] - 1, -1, -1)
        codes = (weights[:, None] * (z.flatten(2) > 0)).sum(1)
        table = self.phi.embed_tokens.weight
        found = {
            f"{view}_tokens": table[p.first_code + shown]
            for view, shown in zip(c.views, codes, strict=True)
        }
        parts = cut(c.language.num_hidden_layers, layers.get("language"))
        calls = {"prefix": slice(pads, p.max_text), "suffix": slice(p.max_text, None)}
        for call, rows in calls.items():
            found[f"{call}_hidden"] = kept["hidden"][0][0, rows]
            for i, part in enumerate(parts):
                name = part_name(f"{call}_kv", i, len(parts))
                kv = kept["kv"][0][rows, part.start : part.stop]
                found[name] = kv[: p.text_slots]
                if part is not parts[-1]:
                    x_SD = kept["language"][part.stop - 1][0, rows]
                    found[part_name(f"{call}_x", i, len(parts))] = x_SD
        found["future_codes"] = self.foreseen(kept["hidden"][0])
        for view, to_come in zip(c.views, found["future_codes"], strict=True):
            found[f"future_{view}"] = self.picture(to_come)
        actions = kept["actions"][0]
        return found | {"made_actions": actions, "predicted_0": actions.reshape(1, -1)}


class Head(nn.Module):
    """Attention pooling, told from its description."""

    def __init__(self, c: UPVLAConfig, width: int) -> None:
        super().__init__()
        self.chunk, self.num_heads = c.chunk, c.head.num_heads
        self.latent = nn.Parameter(torch.zeros(1, width))
        self.first = nn.Linear(width, width)
        self.asks = nn.Linear(width, width, bias=False)
        self.answers = nn.Linear(width, 2 * width, bias=False)
        self.mixes = nn.Linear(width, width)
        self.gains = nn.ParameterList([torch.ones(width), torch.ones(width)])
        self.widens = nn.Linear(width, 8 * width)
        self.narrows = nn.Linear(4 * width, width)
        self.last = nn.Linear(width, c.chunk[0] * c.chunk[1])

    def forward(self, hidden_LD: Tensor) -> Tensor:
        """[L, D] of all rows -> [T, A]."""
        rows = self.first(hidden_LD[-self.chunk[0] :])
        keys, values = self.answers(rows).tensor_split(2, dim=-1)
        heads = [
            x.reshape(len(x), self.num_heads, -1).transpose(0, 1)
            for x in (self.asks(self.latent), keys, values)
        ]
        mixed = functional.scaled_dot_product_attention(*heads).transpose(0, 1)
        x = _scaled(self.latent + self.mixes(mixed.flatten(1)), self.gains[0])
        out, gate = self.widens(x).tensor_split(2, dim=-1)
        x = _scaled(x + self.narrows(out * nn.SiLU()(gate)), self.gains[1])
        made: Tensor = self.last(x).reshape(self.chunk)
        return made


def _scaled(x: Tensor, gain: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    return x / norm.clamp(min=1e-8) * gain


class Residual(nn.Module):
    """x + what a branch makes of it; a convolution of 1x1 where the channels differ."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_activated(width), nn.Conv2d(width, out, 3, 1, "same"),
            *_activated(out), nn.Conv2d(out, out, 3, 1, "same"),
        )  # fmt: skip
        self.trunk = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.trunk(x) + self.branch(x)
        return made


class Looking(nn.Module):
    """x + attention of all places to all others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).mT[:, None] for layer in self.layers[:3])
        mixed = functional.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(x.shape)
        made: Tensor = x + self.layers[3](mixed)
        return made


def _activated(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(32, width, eps=1e-6), nn.SiLU()


def _middle(width: int) -> list[nn.Module]:
    return [Residual(width, width), Looking(width), Residual(width, width)]


def _encoder(c: VQConfig) -> nn.Sequential:
    """[views, 3, H, W] -> [views, z, rows, columns]."""
    steps: list[nn.Module] = [nn.Conv2d(3, c.ch, 3, 1, 1)]
    width = c.ch
    for number, count in enumerate(c.num_res_blocks):
        for _ in range(count):
            steps.append(Residual(width, c.ch * c.ch_mult[number]))
            width = c.ch * c.ch_mult[number]
        if number + 1 < len(c.num_res_blocks):
            steps += [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, 2)]
    steps += [*_middle(width), *_activated(width), nn.Conv2d(width, c.z_channels, 3, 1, 1)]
    return nn.Sequential(*steps, nn.Conv2d(c.z_channels, c.z_channels, 1))


def _decoder(c: VQConfig) -> nn.Sequential:
    """[1, z, rows, columns] of -1 and 1 -> [1, 3, H, W]."""
    width = c.ch * c.decoder_ch_mult[-1]
    steps: list[nn.Module] = [nn.Conv2d(c.z_channels, c.z_channels, 1)]
    steps += [nn.Conv2d(c.z_channels, width, 3, 1, 1), *_middle(width)]
    levels = list(zip(c.decoder_ch_mult, c.decoder_num_res_blocks, strict=True))
    for number, (mult, count) in enumerate(reversed(levels)):
        if number:
            steps += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, 1, 1)]
        for _ in range(count):
            steps.append(Residual(width, c.ch * mult))
            width = c.ch * mult
    return nn.Sequential(*steps, *_activated(width), nn.Conv2d(width, 3, 3, 1, 1))


def _phi(lm: phi_config.PhiConfig) -> Any:
    settings = PhiConfig(
        vocab_size=lm.vocab_size,
        hidden_size=lm.hidden_size,
        intermediate_size=lm.intermediate_size,
        num_hidden_layers=lm.num_hidden_layers,
        num_attention_heads=lm.num_attention_heads,
        layer_norm_eps=lm.layer_norm_eps,
        qk_layernorm=True,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": lm.rope_theta,
            "partial_rotary_factor": lm.partial_rotary_factor,
        },
    )
    with torch.device("meta"):
        model = PhiModel(settings)
    # The rotary frequencies are no weights: no state_dict would bring them off the meta device.
    model.rotary_emb = PhiRotaryEmbedding(settings)
    return model


_HEAD = {
    "token_learner.latents": "latent",
    "token_learner.projection": "first",
    "token_learner.attn_norm.g": "gains.0",
    "token_learner.attn.q": "asks",
    "token_learner.attn.kv": "answers",
    "token_learner.attn.proj": "mixes",
    "token_learner.mlp_norm.g": "gains.1",
    "token_learner.mlp.0.project": "widens",
    "token_learner.mlp.1": "narrows",
    "to_logits.0": "last",
}
_BLOCK = {
    "norm1": "branch.0", "conv1": "branch.2", "norm2": "branch.3", "conv2": "branch.5",
    "nin_shortcut": "trunk", "norm": "norm", "q": "layers.0", "k": "layers.1", "v": "layers.2",
    "proj_out": "layers.3",
}  # fmt: skip


def _steps(c: VQConfig, which: str) -> list[str]:
    """What the checkpoint calls each step of a direction; empty where it has no weights."""
    middle = ["mid.block_1", "mid.attn_1", "mid.block_2", "norm_out", "", "conv_out"]
    found: list[str] = []
    if which == "encoder":
        for number, count in enumerate(c.num_res_blocks):
            found += [f"down.{number}.block.{index}" for index in range(count)]
            found += ["", f"down.{number}.downsample.conv"]
        return ["conv_in", *found[:-2], *middle, "quant_conv"]
    for number, count in reversed(list(enumerate(c.decoder_num_res_blocks))):
        found += [f"up.{number}.block.{index}" for index in range(count)]
        found += ["", f"up.{number}.upsample.conv"]
    return ["post_quant_conv", "conv_in", *middle[:3], *found[:-2], *middle[3:]]


def namer(c: UPVLAConfig) -> dict[str, str]:
    """How names of a step of the picture tokenizer begin -> how they do in a `Composition`."""
    return {
        f"vq_model.{which}.{name}.": f"{which}.{index}."
        for which in ("encoder", "decoder")
        for index, name in enumerate(_steps(c.vision, which))
        if name
    }


def composed_name(name: str, steps: Mapping[str, str]) -> str:
    """What the tensor of our policy called `name` is called in a `Composition`."""
    layer, _, kind = name.rpartition(".")
    if name.startswith("showo.lm_head."):
        return f"code_head.{kind}"
    if name.startswith("showo.model."):
        return name.replace("showo.model.", "phi.", 1)
    for published, own in _HEAD.items():
        if published in (name, layer):
            return f"head.{own}" if published == name else f"head.{own}.{kind}"
    start = next(begin for begin in steps if name.startswith(begin))
    *inside, kind = name.removeprefix(start).split(".")
    return ".".join([steps[start].rstrip("."), *(_BLOCK[part] for part in inside), kind])
