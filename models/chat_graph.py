"""What policies that are told by one turn of Qwen's chat have in common as a graph.

What stands before the first picture is always the same: its call of the decoder, `prefix`, runs
once. A new frame of any camera redoes the other call, `suffix`: the pictures before the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.chat import segments
from models.networks.config import LanguageConfig
from models.prompt_parts import PromptParts
from models.split import TOKENS, GraphBuilder


def read_chat(
    build: GraphBuilder,
    language: LanguageConfig,
    views: Sequence[str],
    parts: PromptParts,
    grid: tuple[int, int],
    slots: int,
) -> None:
    """Pictures and instruction -> `prefix_hidden` and `suffix_hidden`, [S, D] each."""
    _texts(build, language.hidden_size, views, parts, grid, slots)
    num_prefix, suffix = segments(parts, grid)
    build.places("prefix", [num_prefix], language)
    build.places(
        "suffix", suffix, language, start=num_prefix, num_past=num_prefix, ids="instruction"
    )
    build.no_past()
    for view in views:
        build.image(view)
    build.language("prefix", "empty_past")
    build.language("suffix", "prefix_kv")


def _texts(
    build: GraphBuilder,
    width: int,
    views: Sequence[str],
    parts: PromptParts,
    grid: tuple[int, int],
    slots: int,
) -> None:
    """Embeddings of both calls."""
    merged = grid[0] * grid[1] // 4
    build.tensor("prefix_embeddings", (slots, width))
    build.embed("prefix_embeddings", parts.before[0])
    build.tensor("suffix_embeddings", (slots, width))
    at = 0
    for number, view in enumerate(views):
        if number:
            between, text = f"{view}_before", parts.image_end + parts.before[number]
            build.rows(between, "suffix_embeddings", at, len(text))
            build.embed(between, text)
            at += len(text)
        build.rows(f"{view}_tokens", "suffix_embeddings", at, merged)
        at += merged
    build.rows("suffix_tail", "suffix_embeddings", at)
    build.call("embed", {"ids": "instruction"}, {"embeddings": "suffix_tail"}, {"table": TOKENS})
