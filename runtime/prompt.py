"""Instruction -> token ids, and what the language engine must know about their places.

A prompt is a sequence of segments: text of a known number of tokens, or an image of known grid.
The prefix ends with the anchor image; the suffix holds the frame and the instruction. Both are
padded to the engine's fixed number of tokens, S; the prefix is the suffix's past, P = S.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ObservationError

Segment = int | tuple[int, int]
"""A number of text tokens, or the (rows, columns) of an image's merged tokens."""

MASKED = -30000.0
"""Added to the score of a forbidden pair: finite in float16 too, and exp of it is 0."""

WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    chr(code) for code in range(0x2000, 0x200B)
)
"""What is taken away around an instruction: Unicode's White_Space."""

_HIDDEN = (
    (0x00, 0x1F),  # controls, and so on
    (0x7F, 0x9F),
    (0xAD, 0xAD),  # soft hyphen
    (0x61C, 0x61C),  # directions
    (0x180E, 0x180E),
    (0x200B, 0x200B),  # zero-width space; U+200C and U+200D join letters and emoji: allowed
    (0x200E, 0x200F),  # directions
    (0x2028, 0x202E),  # lines, paragraphs, directions
    (0x2060, 0x206F),  # invisible operators, directions
    (0xD800, 0xDFFF),  # surrogates
    (0xFDD0, 0xFDEF),  # no characters
    (0xFEFF, 0xFEFF),  # byte order mark
    (0xFFF0, 0xFFFB),  # annotations
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE00FF),  # tags; allowed as the tail of a flag
    (0xE01F0, 0xE0FFF),
    *((plane + 0xFFFE, plane + 0xFFFF) for plane in range(0, 0x110000, 0x10000)),
)
"""Characters that cannot be seen, by number: what a Python knows of Unicode differs from the next
one's, and a robot must take what its exporter took. Letters and emoji yet to come are allowed."""
_FLAG_TAIL = re.compile("(?<=\U0001f3f4)[\U000e0020-\U000e007e]+\U000e007f")
"""Which country a black flag is of: England, Scotland, Wales."""
_HIDDEN_CHARACTER = re.compile(
    "[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in _HIDDEN) + "]"
)

MAX_INSTRUCTION = 2000
"""Characters; far beyond any exported prompt, it keeps the tokenizer from chewing on a novel."""


def check_instruction(
    instruction: str, special_tokens: Sequence[str], *, what: str = "instruction"
) -> None:
    """Refuse text that would be read as something else than an instruction.

    White space around it is no part of it.

    Raises:
        ObservationError: empty, too long, with control characters or with a special token.
    """
    if not isinstance(instruction, str):
        raise ObservationError(f"{what} must be text, got {type(instruction).__name__}")
    text = instruction.strip(WHITE_SPACE)
    if not text:
        raise ObservationError(f"{what} is empty; say what the robot should do")
    if len(text) > MAX_INSTRUCTION:
        raise ObservationError(f"{what} has {len(text)} characters, the limit is {MAX_INSTRUCTION}")
    flags = {at for flag in _FLAG_TAIL.finditer(text) for at in range(*flag.span())}
    for found in _HIDDEN_CHARACTER.finditer(text):
        if found.start() not in flags:
            raise ObservationError(
                f"{what} holds the control character {ascii(found.group())} at "
                f"{found.start()}; send one plain line"
            )
    for token in (*special_tokens, "<image>"):
        if token in text:
            raise ObservationError(
                f"{what} holds {token!r}, which the model reads as structure; remove it"
            )


def encode_tail(
    tokenizer: Any,
    template: str,
    end_ids: Sequence[int],
    instruction: str,
    *,
    lowercase: bool = False,
    what: str = "instruction",
) -> tuple[int, ...]:
    """Token ids of everything behind the frame image.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        template: the text behind the image, with `{instruction}`.
        end_ids: ids appended as they are.
        instruction: what the operator says; white space around it is left out.
        lowercase: whether the policy was told everything in small letters.
        what: its name, for messages.

    Raises:
        ObservationError: see `check_instruction`.
    """
    special = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    check_instruction(instruction, special, what=what)
    said = instruction.strip(WHITE_SPACE)
    text = template.replace("{instruction}", said.lower() if lowercase else said)
    return (*tokenizer.encode(text, add_special_tokens=False).ids, *end_ids)


def last_places(ids: Sequence[int], wanted: int | None, count: int) -> list[int]:
    """Where the last `count` ids of a kind stand, in order; of any kind if none is `wanted`.

    Raises:
        ValueError: there are fewer.
    """
    places = [place for place, known in enumerate(ids) if wanted in (None, known)]
    if len(places) < count:
        kind = "" if wanted is None else f" of id {wanted}"
        raise ValueError(f"{len(places)} tokens{kind} among {len(ids)}, {count} are wanted")
    return places[len(places) - count :]


def num_tokens(segments: Sequence[Segment]) -> int:
    return sum(s if isinstance(s, int) else s[0] * s[1] for s in segments)


def mrope_positions(segments: Sequence[Segment], start: int = 0) -> tuple[NDArray[np.int64], int]:
    """Positions in time, height and width of every token, and the position that follows.

    Text counts on in all three. An image stands still in time and spreads its rows and columns
    from where it starts; text goes on behind its longer side (Qwen2.5-VL, `get_rope_index`).

    Returns:
        [3, tokens] int64 and the next position.
    """
    parts, at = [np.zeros((3, 0), np.int64)], start
    for segment in segments:
        if isinstance(segment, int):
            parts.append(np.broadcast_to(np.arange(at, at + segment), (3, segment)))
            at += segment
        else:
            rows, columns = np.indices(segment).reshape(2, -1)
            parts.append(np.stack([np.zeros_like(rows), rows, columns]) + at)
            at += max(segment)
    return np.concatenate(parts, axis=1), at


def mrope_tables(
    positions_3N: NDArray[np.int64],
    *,
    theta: float,
    sections: Sequence[int],
    interleaved: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine of the rotary angles, [N, d] float32 each; d = 2 * sum(sections).

    Frequency i turns with the time, height or width position, by the section it falls into. If
    sections are interleaved (Qwen3-VL), the three take turns until height and width have theirs,
    and time has what is left.
    """
    half = sum(sections)
    powers = np.arange(0, 2 * half, 2, dtype=np.float32) / np.float32(2 * half)
    frequencies = (1.0 / np.float32(theta) ** powers).astype(np.float32)
    angles = positions_3N.astype(np.float32)[_axes(sections, interleaved)].T * frequencies
    angles = np.concatenate([angles, angles], axis=1)
    return np.cos(angles), np.sin(angles)


def _axes(sections: Sequence[int], interleaved: bool) -> NDArray[np.int64]:
    """[half] of each frequency, whether time (0), height (1) or width (2) turns it."""
    if not interleaved:
        return np.repeat(np.arange(3), sections)
    axes = np.zeros(sum(sections), np.int64)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes


def attention_mask(
    num_past: int | Sequence[int], past_slots: int, num_new: int, slots: int, num_open: int = 0
) -> NDArray[np.float32]:
    """Causal mask [S, P + S] for `num_new` of S slots behind `num_past` of P cached ones.

    Padded rows attend to themselves, so that no row of the softmax is empty.

    Args:
        num_past: of several equal blocks of cached ones, those at the start of each.
        num_open: new ones at the start that see all new ones, those behind them too.
    """
    mask = np.full((slots, past_slots + slots), MASKED, np.float32)
    row = np.arange(slots)
    mask[row, past_slots + row] = 0.0
    mask[:num_new, _filled(num_past, past_slots)] = 0.0
    mask[:num_new, past_slots : past_slots + num_new][np.tril_indices(num_new)] = 0.0
    mask[:num_open, past_slots : past_slots + num_new] = 0.0
    return mask


def _filled(counts: int | Sequence[int], slots: int) -> NDArray[np.int64]:
    """Numbers of the slots that are taken, of one block or of several equal ones."""
    blocks = [counts] if isinstance(counts, int) else counts
    return np.concatenate([i * slots // len(blocks) + np.arange(n) for i, n in enumerate(blocks)])


def hide(mask: NDArray[np.float32], past_slots: int, gap: range) -> None:
    """Take tokens of a call out of its mask [S, P + S], in place: they are padding."""
    rows = slice(gap.start, gap.stop)
    columns = slice(past_slots + gap.start, past_slots + gap.stop)
    mask[rows], mask[:, columns] = MASKED, MASKED
    mask[np.arange(gap.start, gap.stop), past_slots + np.arange(gap.start, gap.stop)] = 0.0


def pooling_matrix(
    bins: int, num_spatial: int, num_prefix: int | Sequence[int], num_suffix: int, slots: int
) -> NDArray[np.float32]:
    """Averages that pool [spatial tokens, prefix, suffix] into bins, [bins, spatial + 2 S].

    The bins are those of adaptive average pooling over the true sequence: bin i covers tokens
    floor(i L / bins) to ceil((i + 1) L / bins). Padding columns are zero.

    Args:
        num_prefix: of a prefix in several calls the tokens of each; each has S columns.
    """
    calls = [*([num_prefix] if isinstance(num_prefix, int) else num_prefix), num_suffix]
    columns = num_spatial + len(calls) * slots
    tokens = num_spatial + _filled(calls, len(calls) * slots)
    column, length = np.concatenate([np.arange(num_spatial), tokens]), num_spatial + sum(calls)
    matrix = np.zeros((bins, columns), np.float32)
    for i in range(bins):
        start, stop = i * length // bins, -(-(i + 1) * length // bins)
        matrix[i, column[start:stop]] = 1.0 / (stop - start)
    return matrix
