"""What policies that are told by one turn of Qwen's chat have in common as a graph.

A call of the decoder reads pieces of the prompt: texts that never change, pictures, and in the last
one the instruction behind them. Each piece is a place in the call's embeddings. Where the vision
tower reaches into layers of the decoder, what it adds there lies in tensors of the same places:
nothing is added to the rows of texts.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.chat import segments
from models.networks.config import AnyLanguageConfig
from models.prompt_parts import PromptParts
from models.split import TOKENS, GraphBuilder
from runtime.prompt import Segment

Piece = tuple[int, ...] | str
"""Ids of a text, or the name of a picture."""


def read_chat(
    build: GraphBuilder,
    language: AnyLanguageConfig,
    views: Sequence[str],
    parts: PromptParts,
    grid: tuple[int, int],
    slots: int,
) -> None:
    """Pictures and instruction -> `prefix_hidden` and `suffix_hidden`, [S, D] each.

    What stands before the first picture is always the same: its call, `prefix`, runs once. A new
    frame of any camera redoes the other call, `suffix`: the pictures before the text.
    """
    merged, width = grid[0] * grid[1] // 4, language.hidden_size
    pieces: list[Piece] = [views[0]]
    for view, before in zip(views[1:], parts.before[1:], strict=True):
        pieces += [parts.image_end + before, view]
    lay(build, "prefix", [parts.before[0]], (slots, width), merged)
    lay(build, "suffix", pieces, (slots, width), merged, tail="instruction")
    num_prefix, suffix = segments(parts, grid)
    calls: dict[str, list[Segment]] = {"prefix": [num_prefix], "suffix": suffix}
    pasts = build.calls(calls, language, "instruction")
    for view in views:
        build.image(view)
    for call, past in zip(calls, pasts, strict=True):
        build.language(call, past)


def lay(
    build: GraphBuilder,
    call: str,
    pieces: Sequence[Piece],
    shape: tuple[int, int],
    merged: int,
    *,
    tail: str = "",
) -> None:
    """The embeddings of a call, piece behind piece, and what is added behind layers.

    Args:
        shape: S and D.
        merged: tokens of a picture.
        tail: the text input behind the pieces, if there is one.
    """
    for rows in ("embeddings", *build.deepstack):
        build.tensor(f"{call}_{rows}", shape)

    def text(name: str, at: int, count: int | None) -> None:
        build.rows(name, f"{call}_embeddings", at, count)
        for port in build.deepstack:
            build.rows(f"{name}_{port}", f"{call}_{port}", at, count)
            build.call("constant", {}, {"value": f"{name}_{port}"}, {"values": []})

    at = 0
    for number, piece in enumerate(pieces):
        if isinstance(piece, str):
            build.rows(f"{piece}_tokens", f"{call}_embeddings", at, merged)
            for port in build.deepstack:
                build.rows(f"{piece}_{port}", f"{call}_{port}", at, merged)
            at += merged
            continue
        count = None if not tail and number == len(pieces) - 1 else len(piece)
        text(f"{call}_text_{number}", at, count)
        build.embed(f"{call}_text_{number}", piece)
        at += len(piece)
    if tail:
        text(f"{call}_tail", at, None)
        build.call("embed", {"ids": tail}, {"embeddings": f"{call}_tail"}, {"table": TOKENS})
    elif isinstance(pieces[-1], str):
        text(f"{call}_rest", at, None)
        build.embed(f"{call}_rest", ())
