"""What a QwenGR00T policy is made of, as data. Names are those of starVLA where it has one."""

from __future__ import annotations

from dataclasses import dataclass

from models.chat import PromptConfig, check_views
from models.networks.config import AnyLanguageConfig, AnyVisionConfig, FlowDiTConfig
from models.policy_config import NormalizationConfig, check_policy

MODEL_TYPE = "qwengr00t"


@dataclass(frozen=True, kw_only=True, slots=True)
class QwenGR00TConfig:
    """A whole QwenGR00T policy."""

    vision: AnyVisionConfig
    language: AnyLanguageConfig
    head: FlowDiTConfig
    normalization: NormalizationConfig
    views: tuple[str, ...] = ("frame",)
    """Cameras, in the order in which the prompt shows their pictures."""
    takes_state: bool = False
    """Whether the policy is given one: a head may have an encoder that was never used."""
    prompt: PromptConfig = PromptConfig()
    model_type: str = MODEL_TYPE
    license: str = "unstated"
    """Licence of the weights; shown by every tool that touches them."""
    description: str = ""
    """What these weights are, in one line; shown beside the licence."""

    def __post_init__(self) -> None:
        check_policy(self, MODEL_TYPE)
        check_views(self.views)
        if self.takes_state and self.head.state_dim is None:
            raise ValueError("takes_state: the head has no encoder of states (head.state_dim)")

    @property
    def chunk(self) -> tuple[int, int]:
        return self.head.action_horizon, self.head.action_dim

    @property
    def state_dim(self) -> int:
        return (self.head.state_dim or 0) if self.takes_state else 0

    @property
    def other_networks(self) -> dict[str, str]:
        return {"head": f"{self.head.num_layers} layers of width {self.head.width}"}

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return self.prompt.image_start, self.prompt.image_end

    @property
    def special_ids(self) -> tuple[int, ...]:
        return ()
