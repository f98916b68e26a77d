"""The whole policy composed from public libraries: the oracle, and the benchmark's baseline.

All that reads is `models.prismatic_reference`'s; the head is `torch.nn` alone, and nothing is
cached. The weights are those of a given `VLAAdapter`, shared and not copied. What the authors feed
and never read is fed here too: the last query, and the stop token behind it.

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

from models.networks.config import BridgeConfig
from models.networks.heard import Heard, Listener, stacked
from models.networks.parts import LayersPerPart, cut
from models.networks.transformers_qwen import share_weights
from models.prismatic_reference import PrismaticComposition, composed_trunk_name
from models.vlaadapter.model import VLAAdapter
from runtime.graph import part_name
from runtime.image import ImageConfig

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


class Composition(PrismaticComposition):
    def __init__(self, model: VLAAdapter, tokenizer: Tokenizer, image: ImageConfig) -> None:
        """Share the weights of `model`."""
        c = model.config
        super().__init__(c, tokenizer, image)
        self.config, width = c, c.language.hidden_size
        with torch.device("meta"):
            self.queries = nn.Embedding(c.head.num_queries, width)
            self.proprio = nn.ModuleDict(
                {"fc1": nn.Linear(c.head.state_dim, width), "fc2": nn.Linear(width, width)}
            )
            self.head = Head(c.head, c.language.num_hidden_layers, width)
        self.published = share_weights(self, model, composed_name)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, state: Tensor) -> Tensor:
        """One observation, see `Inputs` -> [T, A] float32 in policy units."""
        patches_1ND = self.patches(pixel_values)
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
        pixel_values = self.pixel_values(self.colour(views[name]) for name in self.config.views)
        return Inputs(pixel_values, self.input_ids(instruction), torch.from_numpy(state).float())

    def listen(self) -> dict[str, list[Tensor]]:
        """Hooks that keep what the modules of a tick put out."""
        heard: dict[str, list[Tensor]] = {}
        listener = Listener(heard)
        self.hear(listener)
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
        found = self.placed_pictures(kept, self.config.views, layers)
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


_HEAD: Mapping[str, str] = {
    "layer_norm1": "norms.0", "layer_norm2": "norms.1", "fc1": "first", "fc2": "last",
}  # fmt: skip


def composed_name(name: str) -> str:
    """What the tensor of our policy called `name` is called in a `Composition`."""
    if trunk := composed_trunk_name(name):
        return trunk
    for begin, other in (("action_queries.", "queries."), ("proprio_projector.", "proprio.")):
        if name.startswith(begin):
            return other + name.removeprefix(begin)
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
