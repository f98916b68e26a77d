"""What each network is made of, as data. Field names are those of its own public configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from models.fields import check_divides, check_numbers
from models.networks.phi_config import PhiConfig
from models.networks.prismatic_config import PrismaticVisionConfig
from models.networks.siglip_config import SiglipVisionConfig
from models.networks.vq_config import VQConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """Qwen2.5-VL vision tower and merger."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    """Width of the merged tokens: the language model's."""
    fullatt_block_indexes: tuple[int, ...]
    """Blocks that attend over the whole image; the others attend inside windows."""
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    """Side of an attention window in pixels."""
    image_mean: ClassVar[tuple[float, float, float]] = (0.48145466, 0.4578275, 0.40821073)
    """Of the pictures that it was trained with, as of `image_std`."""
    image_std: ClassVar[tuple[float, float, float]] = (0.26862954, 0.26130258, 0.27577711)
    num_deepstack: ClassVar[int] = 0
    """Levels of features that it gives beside its tokens."""

    def __post_init__(self) -> None:
        _check_rotary_heads(self)
        token = self.patch_size * self.spatial_merge_size
        if token < 1 or self.window_size < token or self.window_size % token:
            raise ValueError(
                f"vision.window_size={self.window_size} must be a positive multiple of a merged "
                f"token's side, {token} pixels"
            )
        if not all(0 <= i < self.depth for i in self.fullatt_block_indexes):
            raise ValueError(
                f"vision.fullatt_block_indexes must lie in [0, {self.depth}), "
                f"got {self.fullatt_block_indexes}"
            )
        check_numbers(self, "vision")

    @property
    def words(self) -> str:
        """Its size, to be read."""
        return f"{self.depth} layers of width {self.hidden_size}"

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, kw_only=True, slots=True)
class Qwen3VisionConfig:
    """Qwen3-VL vision tower, its merger, and the mergers of its deep-stack levels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    """Width of the merged tokens: the language model's."""
    num_position_embeddings: int
    """Of a square grid, which is interpolated to that of an image."""
    deepstack_visual_indexes: tuple[int, ...]
    """Blocks behind which features are merged too, in order: those of the k-th are added to the
    image's hidden states behind the k-th layer of the language model."""
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2

    image_mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    """Of the pictures that it was trained with, as of `image_std`."""
    image_std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        _check_rotary_heads(self)
        check_numbers(self, "vision")
        if self.side**2 != self.num_position_embeddings:
            raise ValueError(
                "vision.num_position_embeddings must be the square of a whole number, got "
                f"{self.num_position_embeddings}"
            )
        indexes = self.deepstack_visual_indexes
        if not all(0 <= i < self.depth for i in indexes):
            raise ValueError(
                f"vision.deepstack_visual_indexes must lie in [0, {self.depth}), got {indexes}"
            )
        if list(indexes) != sorted(set(indexes)):
            raise ValueError(f"vision.deepstack_visual_indexes must rise, got {indexes}")

    @property
    def words(self) -> str:
        """Its size, to be read."""
        return f"{self.depth} layers of width {self.hidden_size}"

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def side(self) -> int:
        """Position embeddings along each side of their grid."""
        return math.isqrt(self.num_position_embeddings)

    @property
    def num_deepstack(self) -> int:
        """Levels of features that it gives beside its tokens."""
        return len(self.deepstack_visual_indexes)


AnyVisionConfig = VisionConfig | Qwen3VisionConfig
"""A tower of Qwen's, whose language model tells 2-D places apart."""


def _check_rotary_heads(c: AnyVisionConfig) -> None:
    check_divides(c.num_heads, c.hidden_size, "vision.num_heads", "vision.hidden_size")
    if c.hidden_size // c.num_heads % 4:
        raise ValueError(
            "vision head width must be a multiple of 4 for 2-D rotary positions, got "
            f"{c.hidden_size}/{c.num_heads}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _DecoderConfig:
    """What both generations of the decoder are made of."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    """Rotary frequencies given to time, height and width; their sum is half the head width."""
    rms_norm_eps: float = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig(_DecoderConfig):
    """Qwen2.5 decoder without its LM head."""

    qkv_bias: ClassVar[bool] = True
    qk_norm: ClassVar[bool] = False
    mrope_interleaved: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_divides(
            self.num_attention_heads,
            self.hidden_size,
            "language.num_attention_heads",
            "language.hidden_size",
        )
        _check_decoder(self)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaConfig(LanguageConfig):
    """Llama decoder without its LM head."""

    qkv_bias: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Qwen3LanguageConfig(_DecoderConfig):
    """Qwen3 decoder without its LM head, as Qwen3-VL has it."""

    head_dim: int
    """Of queries, keys and values, whatever the model's width."""
    qkv_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = True
    """Whether each head's queries and keys are normalised before they are rotated."""
    mrope_interleaved: ClassVar[bool] = True
    """Whether time, height and width take turns at the frequencies, and not one after another."""

    def __post_init__(self) -> None:
        _check_decoder(self)
        half, (_, height, width) = self.head_dim // 2, self.mrope_section
        if 3 * max(height, width) > half:
            raise ValueError(
                "language.mrope_section takes turns, so height and width have at most a third of "
                f"half the head width {half}, got {self.mrope_section}"
            )


AnyLanguageConfig = LanguageConfig | Qwen3LanguageConfig


def _check_decoder(c: AnyLanguageConfig) -> None:
    check_divides(
        c.num_key_value_heads,
        c.num_attention_heads,
        "language.num_key_value_heads",
        "language.num_attention_heads",
    )
    if len(c.mrope_section) != 3 or 2 * sum(c.mrope_section) != c.head_dim:
        raise ValueError(
            f"language.mrope_section must hold three numbers that add up to half the head "
            f"width {c.head_dim // 2}, got {c.mrope_section}"
        )
    if c.rms_norm_eps >= 1:
        raise ValueError(f"language.rms_norm_eps must be below 1, got {c.rms_norm_eps}")
    check_numbers(c, "language")


AnyEyes = AnyVisionConfig | PrismaticVisionConfig | SiglipVisionConfig | VQConfig
"""Whatever a policy sees with."""
AnyDecoderConfig = AnyLanguageConfig | PhiConfig
"""Whatever it reads with."""
BACKBONES: Mapping[type, type[AnyDecoderConfig]] = {
    VisionConfig: LanguageConfig,
    Qwen3VisionConfig: Qwen3LanguageConfig,
    PrismaticVisionConfig: LanguageConfig,
    SiglipVisionConfig: LlamaConfig,
    VQConfig: PhiConfig,
}
"""The language model that reads what a vision tower makes."""


def check_backbone(vision: AnyEyes, language: AnyDecoderConfig) -> None:
    """
    Raises:
        ValueError: the two do not belong together.
    """
    wanted = BACKBONES[type(vision)]
    if type(language) is not wanted:
        raise ValueError(
            f"vision is a {type(vision).__name__}, which goes with a {wanted.__name__}, got a "
            f"{type(language).__name__}: language.head_dim must "
            f"{'' if wanted is Qwen3LanguageConfig else 'not '}be given"
        )
    if vision.out_hidden_size != language.hidden_size:
        raise ValueError(
            f"vision.out_hidden_size={vision.out_hidden_size} must equal "
            f"language.hidden_size={language.hidden_size}"
        )
    if isinstance(vision, AnyVisionConfig) and vision.spatial_merge_size != 2:
        raise ValueError(
            f"vision.spatial_merge_size={vision.spatial_merge_size}: prompts count a token for 2 x "
            "2 patches, as all published models do"
        )
    if vision.num_deepstack > language.num_hidden_layers:
        raise ValueError(
            f"vision.deepstack_visual_indexes has {vision.num_deepstack} levels for "
            f"language.num_hidden_layers={language.num_hidden_layers}; each takes a layer"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialConfig:
    """Alternating-attention trunk over both views (UniCeption)."""

    depth: int
    dim: int
    num_heads: int
    indices: tuple[int, ...]
    """Blocks whose output is tapped, in order."""
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        check_divides(self.num_heads, self.dim, "spatial.num_heads", "spatial.dim")
        if not all(0 <= i < self.depth for i in self.indices):
            raise ValueError(f"spatial.indices must lie in [0, {self.depth}), got {self.indices}")
        if list(self.indices) != sorted(set(self.indices)):
            raise ValueError(f"spatial.indices must rise, got {self.indices}")
        check_numbers(self, "spatial")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleDPConfig:
    """ScaleDP diffusion head and its DDIM sampler."""

    depth: int
    n_emb: int
    num_heads: int
    action_dim: int
    prediction_horizon: int
    """Actions in a chunk."""
    state_dim: int
    state_embed_dim: int
    combine_dim: int = 1024
    """Width of the condition MLP."""
    adaptive_pool_dim: int = 8
    """Bins that all tokens are averaged into."""
    mlp_ratio: float = 4.0
    num_train_timesteps: int = 10
    num_inference_timesteps: int = 10

    def __post_init__(self) -> None:
        check_divides(self.num_heads, self.n_emb, "head.num_heads", "head.n_emb")
        if (
            self.num_inference_timesteps < 1
            or self.num_train_timesteps % self.num_inference_timesteps
        ):
            raise ValueError(
                f"head.num_inference_timesteps={self.num_inference_timesteps} must divide "
                f"num_train_timesteps={self.num_train_timesteps}"
            )
        check_numbers(self, "head")


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowDiTConfig:
    """Flow-matching head with cross-attention, and its sampler."""

    num_layers: int
    num_heads: int
    head_dim: int
    action_dim: int
    action_horizon: int
    """Actions in a chunk."""
    state_dim: int | None = None
    """None where the head has no encoder for one."""
    interleave_self_attention: bool = True
    """Odd blocks attend to the rows themselves; if not, all attend to the language model."""
    hidden_size: int = 1024
    """Of the small MLPs around the blocks."""
    output_dim: int = 1024
    num_future_tokens: int = 32
    add_pos_embed: bool = True
    max_seq_len: int = 1024
    num_inference_timesteps: int = 4
    num_timestep_buckets: int = 1000

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"the head's width must be even, got {self.num_heads}x{self.head_dim}")
        if self.add_pos_embed and self.action_horizon > self.max_seq_len:
            raise ValueError(
                f"head.action_horizon={self.action_horizon} must be at most "
                f"max_seq_len={self.max_seq_len}"
            )
        if not 1 <= self.num_inference_timesteps <= self.num_timestep_buckets:
            raise ValueError(
                f"head.num_inference_timesteps must be from 1 to {self.num_timestep_buckets}, got "
                f"{self.num_inference_timesteps}"
            )
        check_numbers(self, "head")

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    def is_cross(self, index: int) -> bool:
        """Whether the block of this number attends to the language model."""
        return not (self.interleave_self_attention and index % 2)

    @property
    def num_cross(self) -> int:
        """Blocks that do."""
        return sum(map(self.is_cross, range(self.num_layers)))

    @property
    def step_rows(self) -> int:
        """Rows that a step of the sampler alone decides about: two for each block's norm and for
        the last norm, and one for the actions' embedding."""
        return 2 * (self.num_layers + 1) + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class BridgeConfig:
    """Regression head whose blocks each read a layer of the decoder: as many as there are layers,
    and as wide."""

    action_dim: int
    action_horizon: int
    """Actions in a chunk."""
    state_dim: int
    num_queries: int = 64
    """Learned tokens behind the prompt."""
    num_heads: int = 8
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        check_numbers(self, "head")


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPResNetConfig:
    """Regression head of residual blocks."""

    action_dim: int
    action_horizon: int
    """Actions in a chunk."""
    num_blocks: int = 2
    widening: int = 2
    """Width of the blocks, in widths of the decoder."""

    def __post_init__(self) -> None:
        check_numbers(self, "head")

    def hidden_size(self, context_dim: int) -> int:
        """Width of the blocks behind a decoder of this width."""
        return self.widening * context_dim
