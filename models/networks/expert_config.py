"""What an action expert beside a language model is made of, as data. Names are LeRobot's."""

from __future__ import annotations

from dataclasses import dataclass

from models.fields import check_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionExpertConfig:
    """A flow-matching expert with as many layers as the language model, and its sampler. Heads are
    the language model's too."""

    hidden_size: int
    intermediate_size: int
    action_dim: int
    """Of the robot. What the networks pass is padded with zeros to `max_action_dim`."""
    action_horizon: int
    """Actions in a chunk."""
    state_dim: int
    """Of the robot, padded to `max_state_dim`."""
    max_action_dim: int = 32
    max_state_dim: int = 32
    self_attn_every_n_layers: int = 2
    """Every so manieth layer, from the first on, has the actions attend to each other too; the
    others attend to the language model's keys and values alone."""
    num_inference_timesteps: int = 10
    min_period: float = 4e-3
    """Of the sinusoids that tell the time, in units of the whole way from noise to actions."""
    max_period: float = 4.0

    def __post_init__(self) -> None:
        check_numbers(self, "head")
        for kind in ("action", "state"):
            width, most = getattr(self, f"{kind}_dim"), getattr(self, f"max_{kind}_dim")
            if width > most:
                raise ValueError(
                    f"head.{kind}_dim={width} must be at most head.max_{kind}_dim={most}"
                )
        if self.hidden_size % 2:
            raise ValueError(f"head.hidden_size must be even, got {self.hidden_size}")

    def is_cross(self, index: int) -> bool:
        """Whether the layer of this number attends to the language model alone."""
        return bool(index % self.self_attn_every_n_layers)
