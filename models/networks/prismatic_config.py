"""What the vision of Prismatic models is made of, as data. Field names are timm's and theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.fields import MAX_NUMBER, check_divides, check_numbers

TOWERS = ("featurizer", "fused_featurizer")
"""Both, by their published names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """A vision transformer of timm's, of which all blocks but the last are run."""

    depth: int
    """Of the published model, the last block included."""
    hidden_size: int
    intermediate_size: int
    num_heads: int
    image_mean: tuple[float, float, float]
    """Of the pictures that it was trained with, as of `image_std`."""
    image_std: tuple[float, float, float]
    class_token: bool = False
    """Whether there is one in front of the patches; without a place of its own."""
    reg_tokens: int = 0
    """Behind it."""
    layer_scale: bool = False
    """Whether what a block adds is scaled channel by channel."""

    @property
    def num_blocks(self) -> int:
        """That are run."""
        return self.depth - 1

    @property
    def num_prefix_tokens(self) -> int:
        """In front of the patches."""
        return self.class_token + self.reg_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class PrismaticVisionConfig:
    """Two towers that see the same patches, and the projector of what both say of each."""

    featurizer: ViTConfig
    fused_featurizer: ViTConfig
    out_hidden_size: int
    """Width of the projected tokens: the language model's."""
    image_size: int = 224
    """Side of the square that a picture is brought to."""
    patch_size: int = 14
    prepared: ClassVar[Mapping[str, Any]] = {
        "resample": "lanczos3",
        "jpeg_quality": 95,
        "crop_area": 0.9,
    }
    """How the OpenVLA family's pictures are brought to size, as fields of
    `runtime.image.ImageConfig`: as its evaluation does it, to be like the training's, where
    pictures came as JPEG and were cropped.
    Source: VLA-Adapter at snapshot 838a36d, experiments/robot/openvla_utils.py."""
    temporal_patch_size: ClassVar[int] = 1
    spatial_merge_size: ClassVar[int] = 1
    num_deepstack: ClassVar[int] = 0

    def __post_init__(self) -> None:
        for where, tower in (
            ("vision.featurizer", self.featurizer),
            ("vision.fused_featurizer", self.fused_featurizer),
        ):
            check_divides(
                tower.num_heads, tower.hidden_size, f"{where}.num_heads", f"{where}.hidden_size"
            )
            if tower.depth < 2 or tower.reg_tokens < 0:
                raise ValueError(
                    f"{where} must have two blocks at least, of which the last is not run, and no "
                    f"fewer than 0 reg_tokens; got {tower.depth} and {tower.reg_tokens}"
                )
            check_numbers(dataclasses.replace(tower, reg_tokens=tower.reg_tokens or 1), where)
        for name, number in (
            ("out_hidden_size", self.out_hidden_size),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
        ):
            if not 1 <= number <= MAX_NUMBER:
                raise ValueError(f"vision.{name} must be from 1 to {MAX_NUMBER}, got {number}")
        check_divides(self.patch_size, self.image_size, "vision.patch_size", "vision.image_size")

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """That the host normalizes with; the other tower's follows from it in its engine."""
        return self.fused_featurizer.image_mean

    @property
    def image_std(self) -> tuple[float, float, float]:
        return self.fused_featurizer.image_std

    @property
    def words(self) -> str:
        """Its size, to be read."""
        towers = (self.featurizer, self.fused_featurizer)
        return " beside ".join(f"{t.num_blocks} layers of width {t.hidden_size}" for t in towers)

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels x height x width."""
        return 3 * self.patch_size**2

    @property
    def num_patches(self) -> int:
        """Of a picture."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def embed_dim(self) -> int:
        """What both towers say of a patch."""
        return self.featurizer.hidden_size + self.fused_featurizer.hidden_size
