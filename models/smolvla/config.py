"""What a SmolVLA policy is made of, as data. Names are LeRobot's where it has one. Light to import:
no torch."""

from __future__ import annotations

from dataclasses import dataclass

from models.chat import INSTRUCTION, check_views
from models.fields import MAX_NUMBER
from models.networks.config import LlamaConfig
from models.networks.expert_config import ActionExpertConfig
from models.networks.siglip_config import SiglipVisionConfig
from models.policy_config import NormalizationConfig, check_policy

MODEL_TYPE = "smolvla"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig:
    """Text behind the pictures."""

    text: str = f"{INSTRUCTION}\n"
    """`{instruction}` is replaced."""
    max_length: int = 48
    """Tokens of a text. LeRobot cuts a longer one off; here it is refused."""

    def __post_init__(self) -> None:
        if self.text.count(INSTRUCTION) != 1:
            raise ValueError(f"prompt.text must hold {INSTRUCTION} once, got {self.text!r}")
        if not 1 <= self.max_length <= MAX_NUMBER:
            raise ValueError(
                f"prompt.max_length must be from 1 to {MAX_NUMBER}, got {self.max_length}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SmolVLAConfig:
    """A whole SmolVLA policy. `language.rope_theta` is what is computed with: LeRobot's code says
    10000 whatever the language model's own configuration says."""

    vision: SiglipVisionConfig
    language: LlamaConfig
    head: ActionExpertConfig
    normalization: NormalizationConfig
    views: tuple[str, ...] = ("frame", "wrist")
    """Cameras, in the order in which the language model is given their pictures."""
    prompt: PromptConfig = PromptConfig()
    model_type: str = MODEL_TYPE
    license: str = "unstated"
    """Licence of the weights; shown by every tool that touches them."""
    description: str = ""
    """What these weights are, in one line; shown beside the licence."""

    def __post_init__(self) -> None:
        check_policy(self, MODEL_TYPE)
        check_views(self.views)
        if self.language.num_hidden_layers < 2:
            raise ValueError(
                "language.num_hidden_layers must be at least 2: of the last one only keys and "
                f"values are used; got {self.language.num_hidden_layers}"
            )
        if not any(map(self.head.is_cross, range(self.language.num_hidden_layers))):
            raise ValueError(
                "head.self_attn_every_n_layers must leave a layer that attends to the language "
                f"model alone, got {self.head.self_attn_every_n_layers}"
            )

    @property
    def chunk(self) -> tuple[int, int]:
        return self.head.action_horizon, self.head.action_dim

    @property
    def state_dim(self) -> int:
        return self.head.state_dim

    @property
    def num_image_tokens(self) -> int:
        """Of all views."""
        return len(self.views) * self.vision.num_tokens

    @property
    def other_networks(self) -> dict[str, str]:
        layers = self.language.num_hidden_layers
        return {"head": f"{layers} layers of width {self.head.hidden_size}"}

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return ()

    @property
    def special_ids(self) -> tuple[int, ...]:
        return ()
