"""What policies that are told by one turn of Qwen's chat have in common as a graph.

What stands before the first picture is always the same: its call of the decoder, `prefix`, runs
once. A new frame of any camera redoes the other call, `suffix`: the pictures before the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.chat import segments
from models.networks.config import AnyLanguageConfig
from models.prompt_parts import PromptParts
from models.split import TOKENS, GraphBuilder


def read_chat(
    build: GraphBuilder,
    language: AnyLanguageConfig,
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
    """Embeddings of both calls, and what is added behind layers: nothing to the rows of texts."""
    merged = grid[0] * grid[1] // 4
    for call in ("prefix", "suffix"):
        for rows in ("embeddings", *build.deepstack):
            build.tensor(f"{call}_{rows}", (slots, width))
    build.embed("prefix_embeddings", parts.before[0])
    for port in build.deepstack:
        build.call("constant", {}, {"value": f"prefix_{port}"}, {"values": []})

    def text(name: str, at: int, count: int | None = None) -> None:
        build.rows(name, "suffix_embeddings", at, count)
        for port in build.deepstack:
            build.rows(f"{name}_{port}", f"suffix_{port}", at, count)
            build.call("constant", {}, {"value": f"{name}_{port}"}, {"values": []})

    at = 0
    for number, view in enumerate(views):
        if number:
            between, ids = f"{view}_before", parts.image_end + parts.before[number]
            text(between, at, len(ids))
            build.embed(between, ids)
            at += len(ids)
        build.rows(f"{view}_tokens", "suffix_embeddings", at, merged)
        for port in build.deepstack:
            build.rows(f"{view}_{port}", f"suffix_{port}", at, merged)
        at += merged
    text("suffix_tail", at)
    build.call("embed", {"ids": "instruction"}, {"embeddings": "suffix_tail"}, {"table": TOKENS})
