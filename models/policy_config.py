"""What every policy's configuration says, whatever it is made of. Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from models.networks.config import (
    AnyDecoderConfig,
    AnyEyes,
    AnyLanguageConfig,
    AnyVisionConfig,
    check_backbone,
)
from runtime.normalization import MODES

Unit = Literal["m", "rad", "m/step", "rad/step", "fraction"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizationConfig:
    """How each dimension maps to robot units; the numbers are in `dataset_statistics.json`."""

    action: tuple[str, ...]
    """One mode per action dimension (see `runtime.normalization.MODES`)."""
    state: tuple[str, ...]
    """One mode per state dimension."""
    action_units: tuple[Unit, ...]
    state_units: tuple[Unit, ...]

    def __post_init__(self) -> None:
        for kind, modes, units in (
            ("action", self.action, self.action_units),
            ("state", self.state, self.state_units),
        ):
            if unknown := [m for m in modes if m not in MODES]:
                raise ValueError(f"normalization.{kind}: unknown modes {unknown}, know {MODES}")
            if len(modes) != len(units):
                raise ValueError(
                    f"normalization.{kind} has {len(modes)} modes but {len(units)} units"
                )


class PolicyConfig(Protocol):
    """A frozen dataclass of a family, one field for each of its networks."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def model_type(self) -> str:
        """The family's, as in `models.families.FAMILIES`."""

    @property
    def license(self) -> str:
        """Licence of the weights; shown by every tool that touches them."""

    @property
    def description(self) -> str:
        """What these weights are, in one line; shown beside the licence."""

    @property
    def vision(self) -> AnyEyes: ...
    @property
    def language(self) -> AnyDecoderConfig: ...
    @property
    def normalization(self) -> NormalizationConfig: ...
    @property
    def chunk(self) -> tuple[int, int]:
        """Actions in a chunk, and their dimensions: T, A."""

    @property
    def state_dim(self) -> int: ...

    @property
    def other_networks(self) -> dict[str, str]:
        """Beside vision and language, each in a few words."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """What the prompt writes, and a tokenizer has to know."""

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that the prompt holds whatever the tokenizer says."""


class QwenPolicyConfig(PolicyConfig, Protocol):
    """Of a policy that stands on a Qwen-VL."""

    @property
    def vision(self) -> AnyVisionConfig: ...
    @property
    def language(self) -> AnyLanguageConfig: ...


def check_policy(
    config: PolicyConfig, model_type: str, *, dimensions: str = "{width} dimensions"
) -> None:
    """What holds in every family.

    Args:
        model_type: of the family.
        dimensions: what `{kind}`, action or state, has `{width}` of, in words.

    Raises:
        ValueError: another family, or fields that do not fit together.
    """
    if config.model_type != model_type:
        raise ValueError(f"model_type must be {model_type!r}, got {config.model_type!r}")
    check_backbone(config.vision, config.language)
    n = config.normalization
    for kind, modes, width in (
        ("action", n.action, config.chunk[1]),
        ("state", n.state, config.state_dim),
    ):
        if len(modes) != width:
            raise ValueError(
                f"normalization.{kind} has {len(modes)} modes for "
                f"{dimensions.format(kind=kind, width=width)}; give one mode, and one of "
                f"{kind}_units, per dimension"
            )
