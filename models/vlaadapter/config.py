"""What a VLA-Adapter policy is made of, as data. Names are those of its authors where they have
one. Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from models.chat import check_views
from models.fields import check_divides
from models.networks.config import BridgeConfig, LanguageConfig
from models.networks.prismatic_config import PrismaticVisionConfig
from models.policy_config import NormalizationConfig, check_policy
from models.prismatic_chat import PromptConfig

MODEL_TYPE = "vlaadapter"


@dataclass(frozen=True, kw_only=True, slots=True)
class VLAAdapterConfig:
    """A whole VLA-Adapter policy, in its Pro version."""

    vision: PrismaticVisionConfig
    language: LanguageConfig
    head: BridgeConfig
    normalization: NormalizationConfig
    views: tuple[str, ...] = ("frame", "wrist")
    """Cameras, in the order in which the prompt shows their pictures."""
    prompt: PromptConfig = PromptConfig()
    """The learned queries stand behind its end."""
    model_type: str = MODEL_TYPE
    license: str = "unstated"
    """Licence of the weights; shown by every tool that touches them."""
    description: str = ""
    """What these weights are, in one line; shown beside the licence."""

    def __post_init__(self) -> None:
        check_policy(self, MODEL_TYPE)
        check_views(self.views)
        width = self.language.hidden_size
        check_divides(self.head.num_heads, width, "head.num_heads", "language.hidden_size")
        if width // self.head.num_heads % 2:
            raise ValueError(
                "the head turns pairs of numbers, so language.hidden_size / head.num_heads must "
                f"be even, got {width}/{self.head.num_heads}"
            )

    @property
    def chunk(self) -> tuple[int, int]:
        return self.head.action_horizon, self.head.action_dim

    @property
    def state_dim(self) -> int:
        return self.head.state_dim

    @property
    def task_rows(self) -> int:
        """Rows of the decoder that the head takes for the task: the first token and all patches
        but the last, as the authors' slices have it."""
        return len(self.views) * self.vision.num_patches

    @property
    def other_networks(self) -> dict[str, str]:
        c = self.vision
        projected = f"{c.embed_dim} to {4 * c.embed_dim} to {c.out_hidden_size} numbers a patch"
        blocks = f"{self.language.num_hidden_layers} blocks of width {self.language.hidden_size}"
        return {"projector": projected, "head": blocks}

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return (self.prompt.before,)

    @property
    def special_ids(self) -> tuple[int, ...]:
        return ()
