"""What a UP-VLA policy is made of, as data. Names are those of its authors where they have one.
Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from models.chat import check_views
from models.fields import check_divides, check_numbers
from models.networks.phi_config import PhiConfig
from models.networks.vq_config import VQConfig
from models.policy_config import NormalizationConfig, check_policy

MODEL_TYPE = "upvla"
ADDED = (
    "[PAD]", "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>",
    "<|v2v|>", "<|lvg|>",
)  # fmt: skip
"""What Show-o adds to a tokenizer, in this order; codes of pictures follow, and a mask's id."""
TEXT_SLOTS = 64
"""Tokens of a text, at most, where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig:
    """Ids of what stands around text and codes. The defaults are Show-o's, behind the 50295 tokens
    of Phi-1.5."""

    task: int = 50300
    """`<|t2i|>`, in front of all."""
    bos: int = 50256
    eos: int = 50256
    pad: int = 50295
    """Stands before the text in training; no policy here is shown one."""
    image_start: int = 50296
    image_end: int = 50297
    action: int = 50304
    """`<|lvg|>`, once for each action."""
    first_code: int = 50305
    max_text: int = 577
    """Tokens up to the pictures, padding included: where the pictures' positions begin."""
    text_slots: int = TEXT_SLOTS
    """Of them, those that an instruction may take here, with what stands around it."""

    def __post_init__(self) -> None:
        check_numbers(self, "prompt")
        if not 4 <= self.text_slots <= self.max_text:
            raise ValueError(
                f"prompt.text_slots must be from 4 to max_text={self.max_text}, got "
                f"{self.text_slots}"
            )

    @property
    def before(self) -> tuple[int, ...]:
        """In front of the instruction."""
        return self.task, self.bos


def prompt_behind(num_tokens: int, *, bos: int, max_text: int, num_rows: int) -> PromptConfig:
    """The prompt where Show-o's ids follow those of a tokenizer.

    Args:
        num_tokens: of the tokenizer.
        bos: in front of a text, and behind it.
        max_text: see `PromptConfig`.
        num_rows: of pictures and actions, which a text may not outnumber.
    """
    ids = {token: num_tokens + place for place, token in enumerate(ADDED)}
    return PromptConfig(
        task=ids["<|t2i|>"],
        bos=bos,
        eos=bos,
        pad=ids["[PAD]"],
        image_start=ids["<|soi|>"],
        image_end=ids["<|eoi|>"],
        action=ids["<|lvg|>"],
        first_code=num_tokens + len(ADDED),
        max_text=max_text,
        text_slots=min(TEXT_SLOTS, max_text, num_rows),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MAPConfig:
    """Head that pools a row for each action, and reads all actions off the result."""

    action_dim: int
    action_horizon: int
    """Actions in a chunk."""
    num_heads: int = 8
    """Twice the `n_heads` that the authors give, as their block doubles it."""

    def __post_init__(self) -> None:
        check_numbers(self, "head")


@dataclass(frozen=True, kw_only=True, slots=True)
class UPVLAConfig:
    """A whole UP-VLA policy."""

    vision: VQConfig
    language: PhiConfig
    head: MAPConfig
    normalization: NormalizationConfig
    views: tuple[str, ...] = ("frame",)
    """Cameras, in the order in which the prompt shows their pictures."""
    prompt: PromptConfig = PromptConfig()
    model_type: str = MODEL_TYPE
    license: str = "unstated"
    """Licence of the weights; shown by every tool that touches them."""
    description: str = ""
    """What these weights are, in one line; shown beside the licence."""

    def __post_init__(self) -> None:
        check_policy(self, MODEL_TYPE)
        check_views(self.views)
        width, prompt = self.language.hidden_size, self.prompt
        check_divides(self.head.num_heads, width, "head.num_heads", "language.hidden_size")
        if prompt.first_code + self.vision.codebook_size > self.language.vocab_size:
            raise ValueError(
                f"{self.vision.codebook_size} codes from prompt.first_code={prompt.first_code} on "
                f"do not fit language.vocab_size={self.language.vocab_size}"
            )
        if prompt.text_slots > self.num_rows:
            raise ValueError(
                f"prompt.text_slots={prompt.text_slots} must be at most the {self.num_rows} rows "
                "of pictures and actions"
            )

    @property
    def chunk(self) -> tuple[int, int]:
        return self.head.action_horizon, self.head.action_dim

    @property
    def state_dim(self) -> int:
        return 0

    @property
    def num_codes(self) -> int:
        """Of all views."""
        return len(self.views) * self.vision.num_patches

    @property
    def num_picture_rows(self) -> int:
        """Codes of all views, with what opens and closes them: rows that see all others."""
        return self.num_codes + 2

    @property
    def num_rows(self) -> int:
        """Of the decoder, those behind the text."""
        return self.num_picture_rows + self.head.action_horizon

    @property
    def other_networks(self) -> dict[str, str]:
        width = self.language.hidden_size
        picture = f"{sum(self.vision.decoder_num_res_blocks)} blocks, a picture of codes"
        return {
            "head": f"attention of {self.head.num_heads} heads, width {width}",
            "code head": f"{self.vision.codebook_size:,} codes of what comes",
            "decoder": picture,
        }

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return ()

    @property
    def special_ids(self) -> tuple[int, ...]:
        p = self.prompt
        return p.task, p.bos, p.eos, p.image_start, p.image_end, p.action
