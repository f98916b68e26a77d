"""What a SigLIP tower with a pixel shuffle behind it is made of, as data. Names are the published
ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.fields import check_divides, check_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class SiglipVisionConfig:
    """SigLIP, and a layer that makes one token of a square of patches, as SmolVLM has them."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    """Width of the tokens: the language model's."""
    image_size: int = 512
    """Side of the square that a picture is brought to."""
    patch_size: int = 16
    scale_factor: int = 4
    """Patches along the side of a token's square."""
    prepared: ClassVar[Mapping[str, Any]] = {"letterbox": "top_left"}
    """How pictures are brought to size, as fields of `runtime.image.ImageConfig`.
    Source: LeRobot 0.6.1, policies/common/vla_utils.py, `resize_with_pad`."""
    temporal_patch_size: ClassVar[int] = 1
    spatial_merge_size: ClassVar[int] = 1
    """Patches come in raster order."""
    num_deepstack: ClassVar[int] = 0
    image_mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    image_std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        check_numbers(self, "vision")
        check_divides(self.num_heads, self.hidden_size, "vision.num_heads", "vision.hidden_size")
        check_divides(self.patch_size, self.image_size, "vision.patch_size", "vision.image_size")
        check_divides(
            self.scale_factor, self.side, "vision.scale_factor", "the patches along a side"
        )

    @property
    def words(self) -> str:
        """Its size, to be read."""
        return f"{self.depth} layers of width {self.hidden_size}"

    @property
    def side(self) -> int:
        """Patches along a side of a picture."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Of a picture."""
        return self.side**2

    @property
    def num_tokens(self) -> int:
        """Of a picture."""
        return (self.side // self.scale_factor) ** 2

    @property
    def shuffled_dim(self) -> int:
        """Numbers of all patches of a token."""
        return self.hidden_size * self.scale_factor**2

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels x height x width."""
        return 3 * self.patch_size**2
