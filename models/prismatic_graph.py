"""How a Prismatic policy reads its pictures and the instruction, as stages of a graph.

Each picture is read in a call of the decoder of its own, so a new one redoes its towers, its call
and those behind it; a new instruction redoes the last call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.networks.config import LanguageConfig
from models.networks.prismatic_config import TOWERS, PrismaticVisionConfig
from models.prismatic_chat import SUFFIX, call_of, call_rows
from models.prompt_parts import PromptParts
from models.split import TOKENS, GraphBuilder


def read_prismatic(
    build: GraphBuilder,
    vision: PrismaticVisionConfig,
    language: LanguageConfig,
    pictures: Sequence[str],
    parts: PromptParts,
    slots: int,
    cut: Callable[[str], str],
) -> str:
    """What every call makes: `{call}_kv`, and its hidden states.

    Args:
        pictures: in the order of the prompt.
        slots: tokens of a call.
        cut: adds what makes patches of a picture, and names them.

    Returns:
        Name of the past of the last call: keys and values of all calls before it.
    """
    shape = (slots, language.hidden_size)
    for number, picture in enumerate(pictures):
        call, first = call_of(picture), parts.before[0] if number == 0 else ()
        build.tensor(f"{call}_embeddings", shape)
        if first:
            build.rows(f"{call}_first", f"{call}_embeddings", 0, len(first))
            build.embed(f"{call}_first", first)
        build.rows(f"{picture}_tokens", f"{call}_embeddings", len(first), vision.num_patches)
        if len(first) + vision.num_patches < slots:
            build.rows(f"{call}_rest", f"{call}_embeddings", len(first) + vision.num_patches)
            build.embed(f"{call}_rest", ())
    build.tensor(f"{SUFFIX}_embeddings", shape)
    build.call(
        "embed", {"ids": "instruction"}, {"embeddings": f"{SUFFIX}_embeddings"}, {"table": TOKENS}
    )
    rows = call_rows(pictures, vision.num_patches)
    calls = {call_of(picture): [n] for picture, n in zip(pictures, rows, strict=True)}
    pasts = build.calls({**calls, SUFFIX: []}, language, "instruction")
    for picture in pictures:
        patches = cut(picture)
        for name in TOWERS:
            seen = {"features": f"{picture}_{name}"}
            build.chain(name, f"{picture}_{name}", {"patches": patches}, seen)
        seen = {name: f"{picture}_{name}" for name in TOWERS}
        build.engine("projector", f"{picture}_projector", seen, {"tokens": f"{picture}_tokens"})
    for call, past in zip([*calls, SUFFIX], pasts, strict=True):
        build.language(call, past)
    return pasts[-1]
