"""What Prismatic policies have in common, composed from public libraries: part of their oracles.

DINOv2, SigLIP and Qwen2 come from `transformers`, the projector is `torch.nn` alone. None of our
modules runs here. One thing is the runtime's: how a colour picture is brought to size, for it is
TensorFlow's way, to the bit, and no other library has it.

Axes: N = patches of all pictures, P = picture, L = token, D = width. The libraries want a batch
axis; it is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen2 import Qwen2Config, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from models.networks.config import LanguageConfig
from models.networks.flow_expert_config import FlowExpertConfig
from models.networks.heard import Heard, Listener
from models.networks.parts import LayersPerPart, cut
from models.networks.prismatic_config import TOWERS, PrismaticVisionConfig
from models.networks.transformers_prismatic import (
    DINO,
    SIGLIP,
    composed_tower_name,
    dinov2,
    siglip,
)
from models.prismatic_chat import PromptConfig
from runtime.graph import part_name
from runtime.image import ImageConfig, PatchMaker


class PrismaticConfig(Protocol):
    """Of a policy."""

    @property
    def vision(self) -> PrismaticVisionConfig: ...
    @property
    def language(self) -> LanguageConfig: ...
    @property
    def prompt(self) -> PromptConfig: ...


class PrismaticComposition(nn.Module):
    """Without what acts, and without weights."""

    def __init__(self, config: PrismaticConfig, tokenizer: Tokenizer, image: ImageConfig) -> None:
        super().__init__()
        vision, seen = config.vision, config.vision.embed_dim
        self.vision, self.prompt = vision, config.prompt
        self.tokenizer, self.image = tokenizer, image
        self.first = dinov2(vision.featurizer, vision)
        self.second = siglip(vision.fused_featurizer, vision)
        self.language = qwen2(config.language, config.language, config.language.vocab_size)
        with torch.device("meta"):
            self.projector = nn.ModuleDict(
                {
                    "fc1": nn.Linear(seen, 4 * seen),
                    "fc2": nn.Linear(4 * seen, vision.out_hidden_size),
                    "fc3": nn.Linear(vision.out_hidden_size, vision.out_hidden_size),
                }
            )

    def patches(self, pixel_values: Tensor) -> Tensor:
        """[P, 6, H, W] -> [1, N, D] as the language model is given them."""
        first, second = pixel_values.chunk(2, dim=1)
        prefix = self.first.config.num_register_tokens + 1
        towers = (
            self.first(first).last_hidden_state[:, prefix:],
            self.second(second).last_hidden_state,
        )
        x = torch.cat(towers, dim=-1).flatten(0, 1)[None]
        fc1, fc2, fc3 = (self.projector[name] for name in ("fc1", "fc2", "fc3"))
        patches_1ND: Tensor = fc3(functional.gelu(fc2(functional.gelu(fc1(x)))))
        return patches_1ND

    def input_ids(self, instruction: str) -> Tensor:
        """[1, L] of the prompt alone; what is asked is put in small letters."""
        text = self.prompt.before + self.prompt.text.replace("{instruction}", instruction.lower())
        return torch.tensor([self.tokenizer.encode(text, add_special_tokens=False).ids])

    def colour(self, picture: NDArray[np.uint8]) -> Tensor:
        """uint8 [H, W, 3] RGB -> [3, H, W] from 0 to 1, of the size that the towers see."""
        side = self.vision.image_size // self.vision.patch_size
        fit = PatchMaker(self.image, (side, side)).fitted
        return torch.from_numpy(fit(picture).copy()).permute(2, 0, 1) / 255

    def pixel_values(self, pictures: Iterable[Tensor]) -> Tensor:
        """P of [3, H, W] -> [P, 6, H, W]: each as the first tower wants it, and as the second."""
        towers = (self.vision.featurizer, self.vision.fused_featurizer)
        normalized = [
            torch.cat(
                [
                    (pixels - torch.tensor(tower.image_mean)[:, None, None])
                    / torch.tensor(tower.image_std)[:, None, None]
                    for tower in towers
                ]
            )
            for pixels in pictures
        ]
        return torch.stack(normalized)

    def hear(self, listener: Listener) -> None:
        """Keeps what towers, projector and language model put out."""
        first: Any = self.first
        for name, blocks in zip(
            TOWERS, (first.encoder.layer, self.second.encoder.layers), strict=True
        ):
            for block in blocks:
                listener.keep(name, block)
        listener.keep("tokens", self.projector["fc3"])
        for layer in self.language.layers[1:]:
            listener.keep_input("language", layer, lambda given: given[0])
        listener.keep("hidden", self.language, lambda out: out.last_hidden_state)

    def placed_pictures(
        self, kept: Heard, pictures: Sequence[str], layers: LayersPerPart
    ) -> dict[str, Tensor]:
        """What was kept of towers and projector, by the names of our graph."""
        count, found = self.vision.num_patches, dict[str, Tensor]()
        for number, picture in enumerate(pictures):
            rows = slice(number * count, (number + 1) * count)
            found[f"{picture}_tokens"] = kept["tokens"][0][0, rows]
            for name in TOWERS:
                tower, blocks = getattr(self.vision, name), kept[name]
                parts = cut(tower.num_blocks, layers.get(name))
                found[f"{picture}_{name}"] = blocks[-1][number, tower.num_prefix_tokens :]
                for i, part in enumerate(parts[:-1]):
                    x_ND = blocks[part.stop - 1][number]
                    found[part_name(f"{picture}_{name}_x", i, len(parts))] = x_ND
        return found


def qwen2(
    c: LanguageConfig | FlowExpertConfig, language: LanguageConfig, vocab_size: int
) -> Qwen2Model:
    """A decoder without weights.

    Args:
        language: whose positions these are.
    """
    more: Any = {"head_dim": c.head_dim}  # which its annotations leave out
    settings = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads,
        rms_norm_eps=c.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
        **more,
    )
    with torch.device("meta"):
        model = Qwen2Model(settings)
    # The rotary frequencies are no weights: no state_dict would bring them off the meta device.
    model.rotary_emb = Qwen2RotaryEmbedding(settings)
    return model


def composed_trunk_name(name: str) -> str | None:
    """What the tensor of a policy called `name` is called in a `PrismaticComposition`, if it is of
    that."""
    for begin, other, pieces in (
        ("vision_backbone.featurizer.", "first.", DINO),
        ("vision_backbone.fused_featurizer.", "second.", SIGLIP),
        ("language_model.model.", "language.", {}),
        ("projector.", "projector.", {}),
    ):
        if name.startswith(begin):
            return other + composed_tower_name(name.removeprefix(begin), pieces)
    return None
