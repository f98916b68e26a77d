"""What an AnchorVLA4D policy is made of, as data.

`AnchorVLA4DConfig` holds one frozen dataclass per network and is what `config.json` in a checkpoint
folder spells out; `presets` has those that have a name.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.declared import ACTIONS, DENOISED, SPREAD
from models.networks.config import LanguageConfig, ScaleDPConfig, SpatialConfig, VisionConfig
from models.networks.readout_config import ReadoutConfig, check_readouts
from models.policy_config import NormalizationConfig, check_policy

MODEL_TYPE = "anchorvla4d"
MOST_ANCHORS = 16
"""More are damage: a tick would be spent on pictures of the past."""
SIMILARITY = "{}_similarity"
"""A leaf for each anchor: how like it the frame is."""
_TAKEN = ("instruction", "state", "noise", "leftover", ACTIONS, DENOISED, SPREAD)
"""Names of inputs and outputs beside those of pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig:
    """The text around the images. `{anchor}`, `{frame}` and `{instruction}` are replaced; all
    anchors stand where `{anchor}` does, one behind the other."""

    template: str = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "giving initial state {anchor}, and current state {frame}\n{instruction}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    image_start: str = "<|vision_start|>"
    image_end: str = "<|vision_end|>"
    placeholder_token_id: int = 151679
    """Token that stands where the actions would be spoken."""
    end: str = "<|im_end|>"

    def __post_init__(self) -> None:
        for name in ("{anchor}", "{frame}", "{instruction}"):
            if self.template.count(name) != 1:
                raise ValueError(f"prompt.template must hold {name} once, got {self.template!r}")
        places = [self.template.index(n) for n in ("{anchor}", "{frame}", "{instruction}")]
        if places != sorted(places):
            raise ValueError(
                "prompt.template must hold {anchor}, {frame}, {instruction} in this order: "
                "what comes before the frame is what the anchor cache can keep"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorVLA4DConfig:
    """A whole AnchorVLA4D policy."""

    vision: VisionConfig
    language: LanguageConfig
    spatial: SpatialConfig
    head: ScaleDPConfig
    normalization: NormalizationConfig
    prompt: PromptConfig = PromptConfig()
    anchors: int = 1
    """Pictures that the prompt shows before the frame, each a latch of its own."""
    readouts: tuple[ReadoutConfig, ...] = ()
    """What may be asked for beside the actions; nothing by default."""
    model_type: str = MODEL_TYPE
    license: str = "unstated"
    """Licence of the weights; shown by every tool that touches them."""
    description: str = ""
    """What these weights are, in one line; shown beside the licence."""

    def __post_init__(self) -> None:
        check_policy(self, MODEL_TYPE, dimensions="head.{kind}_dim={width}")
        if not 1 <= self.anchors <= MOST_ANCHORS:
            raise ValueError(f"anchors must be from 1 to {MOST_ANCHORS}, got {self.anchors}")
        similarities = map(SIMILARITY.format, self.anchor_names)
        check_readouts(self.readouts, {*self.views, *similarities, *_TAKEN})

    @property
    def anchor_names(self) -> tuple[str, ...]:
        """Inputs that show them, in the order of the prompt: `anchor`, `anchor_2` and so on."""
        return ("anchor", *(f"anchor_{number}" for number in range(2, self.anchors + 1)))

    @property
    def views(self) -> tuple[str, ...]:
        """All pictures, in the order of the prompt."""
        return (*self.anchor_names, "frame")

    @property
    def chunk(self) -> tuple[int, int]:
        return self.head.prediction_horizon, self.head.action_dim

    @property
    def state_dim(self) -> int:
        return self.head.state_dim

    @property
    def other_networks(self) -> dict[str, str]:
        views = f", {self.anchors} anchors and the frame" if self.anchors > 1 else ""
        found = {
            "spatial": f"{self.spatial.depth} layers of width {self.spatial.dim}{views}",
            "head": f"{self.head.depth} layers of width {self.head.n_emb}",
        }
        readouts = [f"{r.name} ({' '.join(r.elements)}) in {r.unit}" for r in self.readouts]
        return found | ({"readouts": ", ".join(readouts)} if readouts else {})

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return self.prompt.image_start, self.prompt.image_end, self.prompt.end

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.prompt.placeholder_token_id,)
