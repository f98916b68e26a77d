"""What actions are decoded as that are tokens of a decoder, as data."""

from __future__ import annotations

from dataclasses import dataclass

from models.fields import check_numbers
from models.networks.config import AnyLanguageConfig

ROW = 64
"""Numbers to which a token's scores are a multiple: 256 bytes, the alignment a device wants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenHeadConfig:
    """Each number of a chunk is a token, decoded behind the prompt and the tokens before it."""

    action_dim: int
    action_horizon: int = 1
    """Actions in a chunk. Their numbers are decoded one behind the other, an action at a time."""
    num_bins: int = 256
    """Tokens that stand for numbers, and edges of bins from -1 to 1: there is one bin fewer."""
    end_id: int | None = None
    """Open: their ids are the last ones before this one, in falling order of their numbers. By
    default those of the last rows of the decoder's table, which is padded with more of them than
    Qwen2.5 uses."""

    def __post_init__(self) -> None:
        check_numbers(self, "head")
        if self.num_bins % ROW:
            raise ValueError(
                f"head.num_bins must be a multiple of {ROW}, so that the scores of each token lie "
                f"where a device wants them, got {self.num_bins}"
            )
        if self.num_tokens < 2:
            raise ValueError("head.action_dim x head.action_horizon must be at least 2, got 1")

    @property
    def num_tokens(self) -> int:
        """Of a chunk."""
        return self.action_dim * self.action_horizon

    def ids(self, language: AnyLanguageConfig) -> range:
        """Of the tokens that stand for numbers."""
        end = language.vocab_size if self.end_id is None else self.end_id
        return range(end - self.num_bins, end)

    def check_reads(self, language: AnyLanguageConfig) -> None:
        """
        Raises:
            ValueError: the decoder's table has no such rows.
        """
        ids = self.ids(language)
        if not 0 <= ids.start < ids.stop <= language.vocab_size:
            raise ValueError(
                f"the last {self.num_bins} ids before head.end_id={ids.stop} must be rows of a "
                f"table of language.vocab_size={language.vocab_size}"
            )
