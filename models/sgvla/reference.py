"""The whole policy composed from public libraries: the oracle, and the benchmark's baseline.

What reads pictures and text is `models.prismatic_reference`'s. The expert is a second `Qwen2Model`
behind the cache of the first; depth and the auxiliary heads are `torch.nn` alone. The weights are
those of a given `SGVLA`, shared and not copied.

Axes: N = patches of one picture, P = picture, L = token, T = action in the chunk, A = action
dimension, D = width. The libraries want a batch axis; it is 1.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models.networks.flow_expert_config import FlowExpertConfig
from models.networks.heard import Heard, Listener, stacked
from models.networks.parts import LayersPerPart, cut
from models.networks.transformers_qwen import share_weights
from models.prismatic_reference import PrismaticComposition, composed_trunk_name, qwen2
from models.sgvla.config import LeavesConfig
from models.sgvla.model import SGVLA
from runtime.graph import part_name
from runtime.image import ImageConfig


class Inputs(NamedTuple):
    """What `Composition.forward` takes, in order."""

    pixel_values: Tensor
    """[P, 6, H, W]: each picture as the first tower wants it, and as the second does."""
    input_ids: Tensor
    """[1, L] of the prompt alone."""
    noise: Tensor
    """[T, A] float32 standard normal."""


class Composition(PrismaticComposition):
    def __init__(self, model: SGVLA, tokenizer: Tokenizer, image: ImageConfig) -> None:
        """Share the weights of `model`."""
        c = model.config
        super().__init__(c, tokenizer, image)
        self.config, width = c, c.language.hidden_size
        with torch.device("meta"):
            sizes = {"position": c.leaves.position_dim, "grasp": 1, "object_pose": 7}
            self.vectors = nn.ModuleDict(
                {
                    name: nn.Sequential(
                        nn.Linear(width, c.leaves.hidden_size),
                        nn.GELU(),
                        nn.Linear(c.leaves.hidden_size, size),
                    )
                    for name, size in sizes.items()
                }
            )
            self.joints = Joints(c.leaves, width)
            self.mask = _mask(c.leaves.mask_widths, width)
        self.add_head()
        self.published = share_weights(self, model, composed_name)

    def add_head(self) -> None:
        """What acts, without weights."""
        head = self._flow
        self.expert = _without_tokens(qwen2(head, self.config.language, 1))
        inside = head.hidden_size
        with torch.device("meta"):
            self.encode = nn.ModuleList(
                [
                    nn.Linear(head.action_dim, inside),
                    nn.Linear(2 * inside, inside),
                    nn.Linear(inside, inside),
                ]
            )
            self.decode = nn.Linear(inside, head.action_dim)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, noise: Tensor) -> Tensor:
        """One observation, see `Inputs` -> [T, A] float32 in policy units."""
        prompt = self.read(pixel_values, input_ids)
        count = self._flow.num_inference_timesteps
        x_TA = noise
        for k in range(count):
            bucket = int(k / float(count) * self._flow.num_timestep_buckets)
            x_TA = x_TA + self.velocity(x_TA, bucket, prompt.past_key_values) / count
        return x_TA

    def read(self, pixel_values: Tensor, input_ids: Tensor) -> Any:
        """Pictures and text: what the language model makes of them."""
        rows_1LD = self.rows(pixel_values, input_ids)
        return self.language(inputs_embeds=rows_1LD, use_cache=True)

    def rows(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """Pictures behind the first token, and the text, as the language model is given them."""
        text_1LD = self.language.embed_tokens(input_ids)
        rows = [text_1LD[:, :1], self.patches(pixel_values), text_1LD[:, 1:]]
        return torch.cat(rows, dim=1)

    def velocity(self, x_TA: Tensor, bucket: int, past: Any) -> Tensor:
        """Of the actions at a time, [T, A]."""
        half = self._flow.hidden_size // 2
        angles = bucket * torch.exp(-math.log(10000.0) * torch.arange(half) / half)
        time = torch.cat([angles.sin(), angles.cos()]).expand(len(x_TA), -1)
        first, second, third = self.encode
        rows = third(functional.silu(second(torch.cat([first(x_TA), time], dim=-1))))
        sees_all = torch.zeros(1, 1, len(x_TA), past.get_seq_length() + len(x_TA))
        out = self.expert(
            inputs_embeds=rows[None],
            attention_mask=sees_all,
            past_key_values=copy.deepcopy(past),
            use_cache=True,
        )
        made: Tensor = self.decode(out.last_hidden_state)[0]
        return made

    def leaves(self, pixel_values: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        """What the auxiliary heads say, by the names of our outputs."""
        return self._leaves(self.read(pixel_values, input_ids).last_hidden_state)

    def prepare(
        self, *, instruction: str, noise: NDArray[np.float32], **seen: NDArray[Any]
    ) -> Inputs:
        """Everything that happens before the networks.

        Args:
            instruction: one line of text; what is asked is put in small letters.
            noise: [T, A] standard normal.
            seen: by the names of the configuration: pictures uint8 [H, W, 3] RGB, and depth maps
                float32 [H, W] in metres.
        """
        pixel_values, input_ids = self.observed(instruction, seen)
        return Inputs(pixel_values, input_ids, torch.from_numpy(noise).float())

    def observed(self, instruction: str, seen: Mapping[str, NDArray[Any]]) -> tuple[Tensor, Tensor]:
        """Pictures and prompt of `Inputs`."""
        shown = (
            self.colour(seen[name])
            if name in self.config.views
            else self._nearness(torch.from_numpy(seen[name])).expand(3, -1, -1)
            for name in self.config.pictures
        )
        return self.pixel_values(shown), self.input_ids(instruction)

    def _nearness(self, depth_m: Tensor) -> Tensor:
        """A depth map as a picture from 0 to 1, of the size that the towers see."""
        c, side = self.config.depth, self.config.vision.image_size
        share = math.sqrt(self.image.crop_area or 1)
        sides = torch.diag(torch.tensor([share, share], dtype=torch.float64))
        middle = torch.cat([sides, torch.zeros(2, 1, dtype=torch.float64)], dim=1)
        grid = functional.affine_grid(middle[None], [1, 1, side, side], align_corners=False)
        at = depth_m.double()[None, None]
        shown = functional.grid_sample(at, grid, mode="nearest", align_corners=False)[0, 0]
        near = 1 - torch.tanh(shown / c.scale_m)
        lowest, highest = c.range_m or (0, math.inf)
        is_measured = (shown > 0) & (lowest <= shown) & (shown <= highest)
        return torch.where(is_measured, near, torch.tensor(c.missing).double()).float()

    def listen(self) -> dict[str, list[Tensor]]:
        """Hooks that keep what the modules of a tick put out."""
        heard: dict[str, list[Tensor]] = {}
        listener = Listener(heard)
        self.hear(listener)
        listener.keep("kv", self.language, lambda out: stacked(out.past_key_values))
        self.hear_head(listener)
        return heard

    def hear_head(self, listener: Listener) -> None:
        """What acts."""
        listener.keep_input("x", self.encode[0], lambda given: given[0])
        listener.keep("velocity", self.decode)

    def placed(
        self,
        kept: Heard,
        grid: tuple[int, int],
        layers: LayersPerPart,
        fixed: Mapping[str, int],
    ) -> dict[str, Tensor]:
        """What was kept, under the names of our graph and in its layout, without padded rows."""
        found = self.placed_pictures(kept, self.config.pictures, layers)
        found |= self._decoder(kept, layers, fixed) | self._leaves(kept["hidden"][0])
        return found | self.placed_head(kept)

    def placed_head(self, kept: Heard) -> dict[str, Tensor]:
        """Of what acts."""
        found = {f"x_{k}": x for k, x in enumerate(kept["x"])}
        return found | {f"predicted_{k}": v[0] for k, v in enumerate(kept["velocity"])}

    @property
    def _flow(self) -> FlowExpertConfig:
        assert isinstance(self.config.head, FlowExpertConfig)
        return self.config.head

    def _leaves(self, hidden_1LD: Tensor) -> dict[str, Tensor]:
        c, count = self.config, self.config.vision.num_patches
        rows_PND = hidden_1LD[0, 1 : 1 + len(c.pictures) * count].unflatten(0, (-1, count))
        rows = rows_PND.flatten(0, 1)
        found = {name: head(rows.mean(0)) for name, head in self.vectors.items()}
        found["grasp"] = torch.special.expit(found["grasp"])
        found["joints"] = self.joints(rows[None])[0]
        side = c.vision.image_size // c.vision.patch_size
        picture = rows_PND[c.pictures.index(c.leaves.mask_view)]
        map_1DHW = picture.T.unflatten(1, (side, side))[None]
        return found | {"segmentation": self.mask(map_1DHW)[0, 0]}

    def _decoder(
        self, kept: Heard, layers: LayersPerPart, fixed: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """Keys, values and states of the calls."""
        parts = cut(self.config.language.num_hidden_layers, layers.get("language"))
        starts = [0, *itertools.accumulate(list(fixed.values())[:-1])]
        found: dict[str, Tensor] = {}
        for call, start, stop in zip(fixed, starts, [*starts[1:], None], strict=True):
            rows = slice(start, stop)
            found[f"{call}_hidden"] = kept["hidden"][0][0, rows]
            for i, part in enumerate(parts):
                kv = kept["kv"][0][rows, part.start : part.stop]
                found[part_name(f"{call}_kv", i, len(parts))] = kv
                if part is not parts[-1]:
                    x_SD = kept["language"][part.stop - 1][0, rows]
                    found[part_name(f"{call}_x", i, len(parts))] = x_SD
        return found


class Joints(nn.Module):
    """A token for each joint in front of projected rows."""

    def __init__(self, c: LeavesConfig, width: int) -> None:
        super().__init__()
        inside = c.joint_hidden_size
        self.tokens = nn.Embedding(c.num_joints, inside)
        self.project = nn.Linear(width, inside)
        layer = nn.TransformerEncoderLayer(
            inside, c.joint_heads, c.joint_intermediate_size, dropout=0.0,
            activation="gelu", batch_first=True, norm_first=True,
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(
            layer, c.joint_layers, norm=nn.LayerNorm(inside), enable_nested_tensor=False
        )
        self.out = nn.Linear(inside, 1)

    def forward(self, rows_1ND: Tensor) -> Tensor:
        """[1, N, D] -> [1, joints]."""
        tokens = self.tokens.weight[None]
        x = self.encoder(torch.cat([tokens, self.project(rows_1ND)], dim=1))
        made: Tensor = self.out(x[:, : tokens.shape[1]])[..., 0]
        return made


def _mask(widths: tuple[int, ...], width: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(width, widths[0], 3, stride=2, padding=1)]
    for before, behind in zip(widths, (*widths[1:], 1), strict=True):
        layers += [nn.ReLU(), nn.ConvTranspose2d(before, behind, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)


def _without_tokens(model: Any) -> Any:
    """It is given rows."""
    model.embed_tokens = nn.Identity()
    return model


PARTS: Mapping[str, str] = {
    "action_head.layers.": "expert.layers.",
    "action_head.norm.": "expert.norm.",
    "action_head.action_encoder.layer1.": "encode.0.",
    "action_head.action_encoder.layer2.": "encode.1.",
    "action_head.action_encoder.layer3.": "encode.2.",
    "action_head.action_out_proj.": "decode.",
    "position_head.fc1.": "vectors.position.0.",
    "position_head.fc2.": "vectors.position.2.",
    "grasp_head.fc1.": "vectors.grasp.0.",
    "grasp_head.fc2.": "vectors.grasp.2.",
    "pose_head.fc1.": "vectors.object_pose.0.",
    "pose_head.fc2.": "vectors.object_pose.2.",
    "joint_head.mask_tokens.": "joints.tokens.",
    "joint_head.blocks.": "joints.encoder.layers.",
    "joint_head.norm.": "joints.encoder.norm.",
    "joint_head.": "joints.",
    "segmentation_head.halving.": "mask.0.",
}
"""How a name of ours begins, and how it begins here."""
JOINTS = {
    "attn.qkv.weight": "self_attn.in_proj_weight",
    "attn.qkv.bias": "self_attn.in_proj_bias",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "linear1",
    "mlp.fc2": "linear2",
}
"""Pieces of the names inside a block of the joints' transformer."""


def composed_name(name: str) -> str:
    """What the tensor of our policy called `name` is called in a `Composition`."""
    if trunk := composed_trunk_name(name):
        return trunk
    if name.startswith("segmentation_head.doublings."):
        _, _, number, which = name.split(".")
        return f"mask.{2 * int(number) + 2}.{which}"
    begin = next(part for part in PARTS if name.startswith(part))
    made = PARTS[begin] + name.removeprefix(begin)
    if begin == "joint_head.blocks.":
        for ours, theirs in JOINTS.items():
            made = made.replace(ours, theirs)
    return made
