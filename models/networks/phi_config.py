"""What a Phi decoder is made of, as data. Field names are those of transformers' configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.fields import check_divides, check_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class PhiConfig:
    """Phi-1.5 decoder without its LM head, as Show-o has it: with a norm for each head's queries
    and keys, which Microsoft's own Phi-1.5 lacks."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    vocab_size: int
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.5
    """Share of each head that is rotated: its first numbers."""
    layer_norm_eps: float = 1e-5
    mrope_interleaved: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_divides(
            self.num_attention_heads,
            self.hidden_size,
            "language.num_attention_heads",
            "language.hidden_size",
        )
        check_numbers(self, "language")
        rotated = self.head_dim * self.partial_rotary_factor
        if self.partial_rotary_factor > 1 or rotated != int(rotated) or rotated % 2:
            raise ValueError(
                "language.partial_rotary_factor must leave pairs of numbers of a head of "
                f"{self.head_dim}, got {self.partial_rotary_factor}"
            )
        if self.layer_norm_eps >= 1:
            raise ValueError(f"language.layer_norm_eps must be below 1, got {self.layer_norm_eps}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_key_value_heads(self) -> int:
        """None are shared."""
        return self.num_attention_heads

    @property
    def mrope_section(self) -> tuple[int, int, int]:
        """As Qwen's decoders have it: all rotated frequencies turn with one place."""
        return int(self.head_dim * self.partial_rotary_factor) // 2, 0, 0
