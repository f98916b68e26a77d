"""QwenOFT cut into engines, and the graph that joins them.

A new frame redoes the decoder's call (`models.chat_graph`) and the head. Nothing is drawn, and what
is left of the last chunk cannot be mixed in: there is no sampler to steer.
"""

from __future__ import annotations

from models.action_tokens import act
from models.chat import fixed_tokens
from models.chat_graph import read_chat
from models.declared import camera, chunks, instruction, one_chunk
from models.networks.parts import WHOLE, LayersPerPart
from models.prompt_parts import PromptParts
from models.qwenoft.config import QwenOFTConfig
from models.qwenoft.engines import engines_of
from models.qwenoft.model import QwenOFT
from models.split import TOKENS, GraphBuilder, ResizeOn, Split, check_slots
from runtime.declarations import Input
from runtime.image import ImageConfig, grid_of


def split(
    model: QwenOFT,
    parts: PromptParts,
    image: ImageConfig,
    image_size: tuple[int, int],
    slots: int,
    layers: LayersPerPart = WHOLE,
    *,
    resize_on: ResizeOn = "host",
    samples: int = 1,
) -> Split:
    """See `models.family.Family.split`."""
    c = model.config
    one_chunk(samples)
    width, height = image_size
    grid = grid_of(height, width, image)
    fixed = fixed_tokens(c, parts, grid)
    check_slots(fixed, parts, grid, slots)
    engines = engines_of(model, grid, slots, layers)
    build = GraphBuilder.of(engines, image, image_size, resize_on)
    read_chat(build, c.language, c.views, parts, grid, slots)
    act(build, parts, fixed["suffix"])
    build.answer("made_actions", c.normalization, leftover=False)
    max_tail = slots - fixed["suffix"]
    return build.split(
        inputs=declare_inputs(c, parts, (height, width, 3), max_tail),
        outputs=chunks(c.normalization, samples=1),
        tables={TOKENS: model.vlm.model.embed_tokens.weight},
        slots=slots,
        fixed=fixed,
    )


def declare_inputs(
    config: QwenOFTConfig,
    parts: PromptParts,
    shape: tuple[int, int, int],
    max_tail: int,
    samples: int = 1,
) -> dict[str, Input]:
    """What the policy sees and is told."""
    one_chunk(samples)
    views = {view: camera(shape) for view in config.views}
    return {**views, "instruction": instruction(parts, max_tail)}
