"""What a flow-matching expert beside a decoder is made of, and its sampler, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.fields import check_divides, check_numbers
from models.networks.config import AnyLanguageConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowExpertConfig:
    """A narrower decoder of as many layers: layer i attends to layer i's keys and values."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    """Of queries, keys and values, whatever the expert's width."""
    action_dim: int
    action_horizon: int
    """Actions in a chunk."""
    num_inference_timesteps: int = 10
    num_timestep_buckets: int = 1000
    rms_norm_eps: float = 1e-6
    qkv_bias: ClassVar[bool] = True
    qk_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_divides(
            self.num_key_value_heads,
            self.num_attention_heads,
            "head.num_key_value_heads",
            "head.num_attention_heads",
        )
        if self.hidden_size % 2:
            raise ValueError(f"head.hidden_size must be even, got {self.hidden_size}")
        if not 1 <= self.num_inference_timesteps <= self.num_timestep_buckets:
            raise ValueError(
                f"head.num_inference_timesteps must be from 1 to {self.num_timestep_buckets}, got "
                f"{self.num_inference_timesteps}"
            )
        check_numbers(self, "head")

    def check_reads(self, language: AnyLanguageConfig) -> None:
        """
        Raises:
            ValueError: keys and values of this decoder do not fit.
        """
        for name in ("num_hidden_layers", "num_key_value_heads", "head_dim"):
            own, read = getattr(self, name), getattr(language, name)
            if own != read:
                raise ValueError(
                    f"head.{name} must be that of the decoder whose keys and values the head "
                    f"reads, language.{name}={read}; got {own}"
                )
