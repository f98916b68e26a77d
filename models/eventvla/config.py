"""What an EventVLA policy is made of, as data. Names are those of its authors where they have one.
Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from models.chat import INSTRUCTION, USER, PromptConfig, check_views
from models.networks.config import AnyLanguageConfig, AnyVisionConfig, MLPResNetConfig
from models.policy_config import NormalizationConfig, check_policy
from runtime.functions.keyframes import EventSettings

MODEL_TYPE = "eventvla"


@dataclass(frozen=True, kw_only=True, slots=True)
class EventVLAConfig:
    """A whole EventVLA policy. Its defaults are those of the authors' RoboTwin-Mem runs, which
    stand on Qwen3-VL-4B."""

    vision: AnyVisionConfig
    language: AnyLanguageConfig
    head: MLPResNetConfig
    normalization: NormalizationConfig
    views: tuple[str, ...] = ("head", "left_wrist", "right_wrist")
    """Cameras, in the order in which the prompt shows their pictures of one step."""
    main_view: str = "head"
    """The one whose pictures are kept: the first that is no wrist."""
    delays: tuple[int, ...] = (30, 15)
    """Control steps from pictures of the past to now, the oldest first. Before those the prompt
    shows the episode's first step, which stands for what was before it too."""
    predicts_keyframes: bool = True
    """Whether the keyframe head speaks; if not it is not there, nothing is kept, and every
    probability is 0. Of a run that is what `use_keyframe_predict_head` says, and where that is
    `auto`, what the checkpoint's buffer `_keyframe_annotations_observed` holds."""
    events: EventSettings = EventSettings()
    """Which pictures are kept."""
    prompt: PromptConfig = PromptConfig(before=USER)
    """Qwen3-VL's chat has no system turn where none is given."""
    observation_label: str = "Temporal observation images:"
    """In front of the first picture. Empty, as the next one, on Qwen2.5-VL, and where a run's
    `use_image_role_text` is off."""
    keyframe_label: str = "Past keyframe images:"
    """In front of the first keyframe, if there is one."""
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
        if self.main_view not in self.views:
            raise ValueError(f"main_view must be one of {self.views}, got {self.main_view!r}")
        falling = sorted(set(self.delays), reverse=True)
        if list(self.delays) != falling or min(self.delays, default=1) < 1:
            raise ValueError(f"delays must fall and be at least 1, got {self.delays}")

    @property
    def chunk(self) -> tuple[int, int]:
        return self.head.action_horizon, self.head.action_dim

    @property
    def state_dim(self) -> int:
        return 0

    @property
    def num_observed(self) -> int:
        """Pictures of a prompt without its keyframes: of the first step, each delay and now."""
        return len(self.views) * (len(self.delays) + 2)

    @property
    def most_keyframes(self) -> int:
        """That a prompt may show."""
        return self.events.most_keyframes if self.predicts_keyframes else 0

    @property
    def text(self) -> str:
        """Around the instruction, what asks for the actions included."""
        tokens = self.action_token * self.head.action_horizon
        return self.prompt.text.replace(INSTRUCTION, f"{INSTRUCTION}{self.asked}{tokens}<action>.")

    @property
    def asked(self) -> str:
        """What asks for the actions, up to their tokens."""
        return (
            f" Please predict the next {self.head.action_horizon} robot actions and estimate which "
            "future observation positions inside this chunk are key events: <action>"
        )

    @property
    def other_networks(self) -> dict[str, str]:
        context = self.language.hidden_size
        width = self.head.hidden_size(context)
        networks = {"head": f"{self.head.num_blocks} layers of width {width}"}
        if self.predicts_keyframes:
            networks["keyframe head"] = f"1 layer of width {context}"
        return networks

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return self.prompt.image_start, self.prompt.image_end

    @property
    def special_ids(self) -> tuple[int, ...]:
        return ()
