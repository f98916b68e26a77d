"""What a picture tokenizer is made of, as data. Field names are those of MAGVIT-v2's authors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.fields import check_divides, check_numbers

GROUPS = 32
"""Of channels, that are normalised together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VQConfig:
    """MAGVIT-v2 of Show-o: convolutions that make a code of each patch of a picture, and others
    that make a picture of codes. A code is what signs of `z_channels` numbers say."""

    out_hidden_size: int
    """Width of a code's embedding: the language model's."""
    ch: int = 128
    """Channels of the first level; the others have so many times `ch_mult`."""
    ch_mult: tuple[int, ...] = (1, 2, 2, 4, 4)
    num_res_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    """Of each level."""
    decoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_num_res_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    z_channels: int = 13
    image_size: int = 512
    """Side of the square that is cut from a picture."""
    prepared: ClassVar[Mapping[str, Any]] = {"do_center_crop": True}
    """How a picture is brought to size, as fields of `runtime.image.ImageConfig`."""
    temporal_patch_size: ClassVar[int] = 1
    spatial_merge_size: ClassVar[int] = 1
    num_deepstack: ClassVar[int] = 0
    image_mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    """Pixels are -1 to 1, see `image_std`."""
    image_std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        check_numbers(self, "vision")
        lengths = {
            name: len(getattr(self, name))
            for name in ("ch_mult", "num_res_blocks", "decoder_ch_mult", "decoder_num_res_blocks")
        }
        if len(set(lengths.values())) > 1 or not min(lengths.values()):
            raise ValueError(f"vision: a number for each level is wanted, got {lengths}")
        for name in lengths:
            if not all(getattr(self, name)):
                raise ValueError(f"vision.{name} must be above zero, got {getattr(self, name)}")
        check_divides(GROUPS, self.ch, "the groups of a norm", "vision.ch")
        if self.z_channels > 16:
            raise ValueError(f"vision.z_channels must be at most 16, got {self.z_channels}")
        check_divides(
            self.patch_size, self.image_size, "the side of a code's patch", "vision.image_size"
        )

    @property
    def num_levels(self) -> int:
        """Each but the last halves the picture."""
        return len(self.ch_mult)

    @property
    def patch_size(self) -> int:
        """Pixels along a side for which one code stands."""
        return int(2 ** (self.num_levels - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def num_patches(self) -> int:
        """Codes of a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels x height x width."""
        return int(3 * self.patch_size**2)

    @property
    def codebook_size(self) -> int:
        """Codes that there are."""
        return int(2**self.z_channels)

    @property
    def words(self) -> str:
        """Its size, to be read."""
        widths = ", ".join(str(self.ch * mult) for mult in self.ch_mult)
        return f"{sum(self.num_res_blocks)} blocks of {widths} channels, {self.z_channels} bits"
