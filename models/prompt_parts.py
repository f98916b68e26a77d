"""The prompt of a policy as token ids: fixed texts around its images, and the text behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from runtime.prompt import encode_tail


@dataclass(frozen=True, slots=True)
class PromptParts:
    """What is always the same, and the text that an instruction goes into."""

    before: tuple[tuple[int, ...], ...]
    """In front of each image, in order, up to what opens it; what closes the image before is not
    in it."""
    image_end: tuple[int, ...]
    """What closes an image."""
    tail: str
    """Text behind the last image, what closes it included, with `{instruction}`."""
    end_ids: tuple[int, ...]
    """Ids behind the tail."""
    action_id: int | None = None
    """Of a policy that reads its actions off tokens: the id that each of them begins with."""
    lowercase: bool = False
    """Whether an instruction is put into the tail in small letters."""

    def tail_ids(self, tokenizer: Tokenizer, instruction: str) -> tuple[int, ...]:
        """Of the tail with an instruction in it.

        Raises:
            ObservationError: see `runtime.prompt.check_instruction`.
        """
        return encode_tail(
            tokenizer, self.tail, self.end_ids, instruction, lowercase=self.lowercase
        )

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        *,
        image: tuple[str, str],
        end_ids: Sequence[int],
        tokenizer: Tokenizer,
    ) -> PromptParts:
        """
        Args:
            texts: around the images, one more than there are images.
            image: what opens an image, and what closes it.
            end_ids: behind the last text.
        """
        start, end = image
        return cls(
            before=tuple(encoded(text + start, tokenizer) for text in texts[:-1]),
            image_end=encoded(end, tokenizer),
            tail=end + texts[-1],
            end_ids=tuple(end_ids),
        )


def encoded(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of a text, with nothing added around it."""
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)
