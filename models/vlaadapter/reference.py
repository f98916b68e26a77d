"""The whole policy composed from public libraries: the oracle, and the benchmark's baseline.

DINOv2, SigLIP and Qwen2 come from `transformers`; projector and head are `torch.nn` alone. None of
our modules runs here and nothing is cached. One thing is the runtime's: how a picture is brought to
size, for it is TensorFlow's way, to the bit, and no other library has it. The weights are those of
a given `VLAAdapter`, shared and not copied. What the authors feed and never read is fed here too:
the last query, and the stop token behind it.

Axes: N = patches of one view, L = token, T = action in the chunk, A = action dimension, D = width.
The libraries want a batch axis; it is 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen2 import Qwen2Config, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from models.networks.config import BridgeConfig, LanguageConfig
from models.networks.heard import Heard, Listener, stacked
from models.networks.parts import LayersPerPart, cut
from models.networks.transformers_prismatic import (
    DINO,
    SIGLIP,
    composed_tower_name,
    dinov2,
    siglip,
)
from models.networks.transformers_qwen import share_weights
from models.vlaadapter.model import VLAAdapter
from runtime.graph import part_name
from runtime.image import ImageConfig, PatchMaker

STOP = 2
"""Id behind the queries."""


class Inputs(NamedTuple):
    """What `Composition.forward` takes, in order."""

    pixel_values: Tensor
    """[views, 6, H, W]: each picture as the first tower wants it, and as the second does."""
    input_ids: Tensor
    """[1, L] of the prompt alone."""
    state: Tensor
    """[S] in policy units."""


class Composition(nn.Module):
    def __init__(self, model: VLAAdapter, tokenizer: Tokenizer, image: ImageConfig) -> None:
        """Share the weights of `model`."""
        super().__init__()
        c = model.config
        self.config, self.tokenizer, self.image = c, tokenizer, image
        self.first = dinov2(c.vision.featurizer, c.vision)
        self.second = siglip(c.vision.fused_featurizer, c.vision)
        self.language = _qwen2(c.language)
        width, seen = c.language.hidden_size, c.vision.embed_dim
        with torch.device("meta"):
            self.projector = nn.ModuleDict(
                {
                    "fc1": nn.Linear(seen, 4 * seen),
                    "fc2": nn.Linear(4 * seen, c.vision.out_hidden_size),
                    "fc3": nn.Linear(c.vision.out_hidden_size, c.vision.out_hidden_size),
                }
            )
            self.queries = nn.Embedding(c.head.num_queries, width)
            self.proprio = nn.ModuleDict(
                {"fc1": nn.Linear(c.head.state_dim, width), "fc2": nn.Linear(width, width)}
            )
            self.head = Head(c.head, c.language.num_hidden_layers, width)
        self.published = share_weights(self, model, composed_name)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, state: Tensor) -> Tensor:
        """One observation, see `Inputs` -> [T, A] float32 in policy units."""
        first, second = pixel_values.chunk(2, dim=1)
        prefix = self.first.config.num_register_tokens + 1
        towers = (
            self.first(first).last_hidden_state[:, prefix:],
            self.second(second).last_hidden_state,
        )
        x = torch.cat(towers, dim=-1).flatten(0, 1)[None]
        fc1, fc2, fc3 = (self.projector[name] for name in ("fc1", "fc2", "fc3"))
        patches_1ND = fc3(functional.gelu(fc2(functional.gelu(fc1(x)))))
        table = self.language.embed_tokens
        text_1LD, stop = table(input_ids), table(torch.tensor([[STOP]]))
        rows = [text_1LD[:, :1], patches_1ND, text_1LD[:, 1:], self.queries.weight[None], stop]
        out = self.language(
            inputs_embeds=torch.cat(rows, dim=1), use_cache=False, output_hidden_states=True
        )
        num_patches, num_prompt = patches_1ND.shape[1], input_ids.shape[1] - 1
        start, count = num_patches + num_prompt, self.config.head.num_queries
        task = [states[:, :num_patches] for states in out.hidden_states[1:]]
        queries = [states[:, start : start + count] for states in out.hidden_states[1:]]
        proprio = self.proprio["fc2"](functional.gelu(self.proprio["fc1"](state[None, None])))
        made: Tensor = self.head(task, queries, proprio)[0]
        return made

    def prepare(
        self, *, instruction: str, state: NDArray[np.float32], **views: NDArray[np.uint8]
    ) -> Inputs:
        """Everything that happens before the networks.

        Args:
            instruction: one line of text; what is asked is put in small letters.
            state: [S] in policy units.
            views: uint8 [H, W, 3] RGB, by the names of the configuration.
        """
        c = self.config
        side = c.vision.image_size // c.vision.patch_size
        fit = PatchMaker(self.image, (side, side)).fitted
        text = c.prompt.before + c.prompt.text.replace("{instruction}", instruction.lower())
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        shown = []
        for name in c.views:
            pixels = torch.from_numpy(fit(views[name]).copy()).permute(2, 0, 1) / 255
            for tower in (c.vision.featurizer, c.vision.fused_featurizer):
                mean, std = (
                    torch.tensor(v)[:, None, None] for v in (tower.image_mean, tower.image_std)
                )
                shown.append((pixels - mean) / std)
        pixel_values = torch.stack(shown).unflatten(0, (len(c.views), 2)).flatten(1, 2)
        return Inputs(pixel_values, torch.tensor([ids]), torch.from_numpy(state).float())

    def listen(self) -> dict[str, list[Tensor]]:
        """Hooks that keep what the modules of a tick put out."""
        heard: dict[str, list[Tensor]] = {}
        listener = Listener(heard)
        first: Any = self.first
        for name, blocks in (
            ("featurizer", first.encoder.layer),
            ("fused_featurizer", self.second.encoder.layers),
        ):
            for block in blocks:
                listener.keep(name, block)
        listener.keep("tokens", self.projector["fc3"])
        for layer in self.language.layers[1:]:
            listener.keep_input("language", layer, lambda given: given[0])
        listener.keep("hidden", self.language, lambda out: out.last_hidden_state)
        self.language.register_forward_pre_hook(
            lambda _m, args, named: (args, named | {"use_cache": True}), with_kwargs=True
        )
        listener.keep("kv", self.language, lambda out: stacked(out.past_key_values))
        listener.keep_input("task", self.head, lambda given: torch.cat(given[0]))
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
        c = self.config
        found: dict[str, Tensor] = {}
        towers = {"featurizer": c.vision.featurizer, "fused_featurizer": c.vision.fused_featurizer}
        for number, view in enumerate(c.views):
            count = c.vision.num_patches
            found[f"{view}_tokens"] = kept["tokens"][0][0, number * count : (number + 1) * count]
            for name, tower in towers.items():
                parts = cut(tower.num_blocks, layers.get(name))
                blocks = kept[name]
                found[f"{view}_{name}"] = blocks[-1][number, tower.num_prefix_tokens :]
                for i, part in enumerate(parts[:-1]):
                    x_ND = blocks[part.stop - 1][number]
                    found[part_name(f"{view}_{name}_x", i, len(parts))] = x_ND
        found |= {f"{view}_task_kv": kv for view, kv in self._task(kept, fixed).items()}
        actions = kept["actions"][0][0]
        found |= self._decoder(kept, layers, fixed)
        return found | {"made_actions": actions, "predicted_0": actions}

    def _task(self, kept: Heard, fixed: Mapping[str, int]) -> dict[str, Tensor]:
        """Keys and values of each view's rows, [layers, 2, H, M, d]."""
        made = []
        blocks: Iterable[Any] = self.head.blocks
        for block, rows in zip(blocks, kept["task"][0], strict=True):
            keys = block.turned(block.make("k_task", rows[None])) * torch.tanh(block.gate)
            made.append(torch.cat([keys, block.make("v_task", rows[None])]))
        counts = list(fixed.values())[: len(self.config.views)]
        counts[-1] -= 1  # the last patch is in no row of the task
        parts = torch.stack(made).split(counts, dim=-2)
        return dict(zip(self.config.views, parts, strict=True))

    def _decoder(
        self, kept: Heard, layers: LayersPerPart, fixed: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """Keys, values and states of the calls; the last query and the stop are in none."""
        parts = cut(self.config.language.num_hidden_layers, layers.get("language"))
        states = torch.stack([*kept["language"], kept["hidden"][0]])[:, 0, :-2]
        kv = kept["kv"][0][:-2]
        starts = [0, *itertools.accumulate(list(fixed.values())[:-1])]
        found: dict[str, Tensor] = {}
        for call, start, stop in zip(fixed, starts, [*starts[1:], None], strict=True):
            rows = slice(start, stop)
            found[f"{call}_states"] = states[:, rows]
            for i, part in enumerate(parts):
                name = part_name(f"{call}_kv", i, len(parts))
                found[name] = kv[rows, part.start : part.stop]
                if len(parts) > 1:
                    found[part_name(f"{call}_states", i, len(parts))] = states[
                        part.start : part.stop, rows
                    ]
                if part is not parts[-1]:
                    found[part_name(f"{call}_x", i, len(parts))] = states[part.stop - 1, rows]
        return found


class Head(nn.Module):
    """VLA-Adapter's Pro head, told from its description: a matrix turns pairs of neighbours."""

    def __init__(self, c: BridgeConfig, num_blocks: int, width: int) -> None:
        super().__init__()
        self.config = c
        self.norms = nn.ModuleList([nn.LayerNorm(c.action_dim * width), nn.LayerNorm(width)])
        self.first = nn.Linear(c.action_dim * width, width)
        self.blocks = nn.ModuleList(HeadBlock(c, width) for _ in range(num_blocks))
        self.last = nn.Linear(width, c.action_dim)

    def forward(self, task: list[Tensor], queries: list[Tensor], proprio: Tensor) -> Tensor:
        """Of each layer [1, M, D] and [1, Q, D], and [1, 1, D] -> [1, T, A]."""
        c = self.config
        zeros = torch.zeros(1, c.action_horizon, self.first.in_features, dtype=proprio.dtype)
        x = functional.relu(self.first(self.norms[0](zeros)))
        for block, task_rows, query_rows in zip(self.blocks, task, queries, strict=True):
            x = block(x, torch.cat([query_rows, proprio], dim=1), task_rows)
        return self.last(self.norms[1](x))


class HeadBlock(nn.Module):
    def __init__(self, c: BridgeConfig, width: int) -> None:
        super().__init__()
        self.heads, self.theta = c.num_heads, c.rope_theta
        self.layers = nn.ModuleDict(
            {
                name: nn.Linear(width, width)
                for name in (
                    "q_proj", "k_self", "v_self", "k_adapter", "v_adapter", "k_task", "v_task",
                    "o_proj", "ffn",
                )
            }
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, adapter: Tensor, task: Tensor) -> Tensor:
        sources = {"self": x, "adapter": adapter, "task": task}
        keys = {name: self.turned(self.make(f"k_{name}", s)) for name, s in sources.items()}
        keys["task"] = keys["task"] * torch.tanh(self.gate)
        values = [self.make(f"v_{name}", source) for name, source in sources.items()]
        out = functional.scaled_dot_product_attention(
            self.turned(self.make("q_proj", x)),
            torch.cat(list(keys.values()), dim=2),
            torch.cat(values, dim=2),
        )
        out = self.layers["o_proj"](out.transpose(1, 2).flatten(2))
        return functional.relu(self.layers["ffn"](self.norm(out + x)))

    def make(self, name: str, rows: Tensor) -> Tensor:
        """[1, N, D] -> [1, H, N, d]."""
        made = self.layers[name](rows)
        return made.view(*made.shape[:2], self.heads, -1).transpose(1, 2)

    def turned(self, x: Tensor) -> Tensor:
        """[1, H, N, d]: entry 2j takes minus its neighbour, and 2j + 1 plus its own, each by the
        sine of the angle that a rotary table of two halves has at its place."""
        width = x.shape[-1]
        half = torch.arange(width, dtype=torch.float32) % (width // 2)
        angles = torch.arange(x.shape[2])[:, None] / self.theta ** (2 * half / width)
        crossed = torch.zeros(width, width, dtype=x.dtype)
        even = torch.arange(0, width, 2)
        crossed[even + 1, even], crossed[even, even + 1] = -1, 1
        return x * angles.cos().to(x.dtype) + (x @ crossed) * angles.sin().to(x.dtype)


def _qwen2(lm: LanguageConfig) -> Qwen2Model:
    settings = Qwen2Config(
        vocab_size=lm.vocab_size,
        hidden_size=lm.hidden_size,
        intermediate_size=lm.intermediate_size,
        num_hidden_layers=lm.num_hidden_layers,
        num_attention_heads=lm.num_attention_heads,
        num_key_value_heads=lm.num_key_value_heads,
        rms_norm_eps=lm.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": lm.rope_theta},
    )
    with torch.device("meta"):
        model = Qwen2Model(settings)
    # The rotary frequencies are no weights: no state_dict would bring them off the meta device.
    model.rotary_emb = Qwen2RotaryEmbedding(settings)
    return model


_HEAD: Mapping[str, str] = {
    "layer_norm1": "norms.0", "layer_norm2": "norms.1", "fc1": "first", "fc2": "last",
}  # fmt: skip


def composed_name(name: str) -> str:
    """What the tensor of our policy called `name` is called in a `Composition`."""
    for begin, other, pieces in (
        ("vision_backbone.featurizer.", "first.", DINO),
        ("vision_backbone.fused_featurizer.", "second.", SIGLIP),
        ("language_model.model.", "language.", {}),
        ("action_queries.", "queries.", {}),
        ("proprio_projector.", "proprio.", {}),
    ):
        if name.startswith(begin):
            return other + composed_tower_name(name.removeprefix(begin), pieces)
    if name.startswith("projector."):
        return name
    _, _, place, *rest = name.split(".")
    if place != "mlp_resnet_blocks":
        return f"head.{_HEAD[place]}.{rest[0]}"
    number, layer, *which = rest
    if layer == "gating_factor":
        return f"head.blocks.{number}.gate"
    if layer == "ffn":
        inside = {"0": "norm", "1": "layers.ffn"}[which[0]]
        return f"head.blocks.{number}.{inside}.{which[1]}"
    return f"head.blocks.{number}.layers.{layer}.{which[0]}"
