"""The Qwen2.5 tokenizer, built from the ranks that PyPI's `dashscope` wheel carries.

The wheel has the 151,643 byte-pair ranks in tiktoken's format. Merges follow from them: a token's
last merge joins the two parts that the merges of lower rank leave of its bytes. The package itself
is never imported.
"""

from __future__ import annotations

import base64
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

DASHSCOPE = "2.0.2"
"""Version whose file was checked; the wheel's code and dependencies are not needed."""

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Behind the special ones, and no special tokens in Qwen's own file."""


@cache
def qwen_ranks() -> dict[bytes, int]:
    """Bytes of every token -> rank, which is its id."""
    try:
        wheel = distribution("dashscope")
    except PackageNotFoundError:
        raise FileNotFoundError(
            f"the Qwen vocabulary is missing; run: pip install --no-deps dashscope=={DASHSCOPE}"
        ) from None
    lines = Path(str(wheel.locate_file("dashscope/resources/qwen.tiktoken"))).read_bytes()
    pairs = (line.split() for line in lines.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


@cache
def qwen_tokenizer() -> Tokenizer:
    """The tokenizer of Qwen2.5, with its special tokens at 151643 to 151664."""
    ranks = qwen_ranks()
    spell = _byte_spelling()

    def text(token: bytes) -> str:
        return "".join(spell[byte] for byte in token)

    merges = [
        tuple(text(part) for part in byte_pairs(token, ranks, below=rank))
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
        if len(token) > 1
    ]
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ADDED])
    return tokenizer


def byte_pairs(word: bytes, ranks: dict[bytes, int], *, below: int | None = None) -> list[bytes]:
    """Plain byte-pair encoding: join the neighbours of lowest rank until none is `below`."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        found = [
            (rank, i)
            for i in range(len(parts) - 1)
            if (rank := ranks.get(parts[i] + parts[i + 1])) is not None
            and (below is None or rank < below)
        ]
        if not found:
            break
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _byte_spelling() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable}
    return spelling | {byte: chr(256 + n) for n, byte in enumerate(others)}
