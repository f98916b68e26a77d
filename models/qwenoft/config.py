"""What a QwenOFT policy is made of, as data. Names are those of starVLA where it has one."""

from __future__ import annotations

from dataclasses import dataclass

from models.chat import INSTRUCTION, PromptConfig, check_views
from models.networks.config import AnyLanguageConfig, AnyVisionConfig, MLPResNetConfig
from models.policy_config import NormalizationConfig, check_policy

MODEL_TYPE = "qwenoft"


@dataclass(frozen=True, kw_only=True, slots=True)
class QwenOFTConfig:
    """A whole QwenOFT policy."""

    vision: AnyVisionConfig
    language: AnyLanguageConfig
    head: MLPResNetConfig
    normalization: NormalizationConfig
    views: tuple[str, ...] = ("frame",)
    """Cameras, in the order in which the prompt shows their pictures."""
    prompt: PromptConfig = PromptConfig()
    action_token: str = "\N{LEFT-POINTING MAGNIFYING GLASS}"
    """Stands for each action; the rows of the last ones are read."""
    model_type: str = MODEL_TYPE
    license: str = "unstated"
    """Licence of the weights; shown by every tool that touches them."""
    description: str = ""
    """What these weights are, in one line; shown beside the licence."""

    def __post_init__(self) -> None:
        check_policy(self, MODEL_TYPE)
        check_views(self.views)

    @property
    def chunk(self) -> tuple[int, int]:
        return self.head.action_horizon, self.head.action_dim

    @property
    def state_dim(self) -> int:
        return 0

    @property
    def text(self) -> str:
        """Around the instruction, what asks for the actions included."""
        horizon = self.head.action_horizon
        asked = f" Please predict the next {horizon} robot actions: <action>"
        tokens = self.action_token * horizon
        return self.prompt.text.replace(INSTRUCTION, f"{INSTRUCTION}{asked}{tokens}<action>.")

    @property
    def other_networks(self) -> dict[str, str]:
        width = self.head.hidden_size(self.language.hidden_size)
        return {"head": f"{self.head.num_blocks} layers of width {width}"}

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return self.prompt.image_start, self.prompt.image_end

    @property
    def special_ids(self) -> tuple[int, ...]:
        return ()
