"""VLA-Adapter cut into engines, and the graph that joins them.

The prompt shows the pictures before the text. Each view is read in a call of the decoder of its
own, so a new picture of a camera redoes its towers, its call and those behind it; a new instruction
redoes the last call and the head; and a new state the head's second half alone, for which keys and
values of the task's rows are kept. Nothing is drawn, and what is left of the last chunk cannot be
mixed in: there is no sampler to steer.
"""

from __future__ import annotations

from models.declared import camera, chunks, instruction, one_chunk, state
from models.networks.bridge import sections
from models.networks.parts import WHOLE, LayersPerPart
from models.prismatic_chat import SUFFIX, call_of, call_rows, call_tokens
from models.prismatic_graph import read_prismatic
from models.prompt_parts import PromptParts
from models.split import TOKENS, GraphBuilder, ResizeOn, Split, check_places, check_slots
from models.vlaadapter.config import VLAAdapterConfig
from models.vlaadapter.engines import engines_of
from models.vlaadapter.model import VLAAdapter
from runtime.declarations import Input
from runtime.image import ImageConfig, grid_of

START = "start"
"""Where the rows of all actions begin, a constant."""


def split(
    model: VLAAdapter,
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
    check_places(grid, c.vision, "the towers have places for")
    fixed = fixed_tokens(c, parts, grid)
    check_slots(fixed, parts, grid, slots)
    engines = engines_of(model, slots, layers)
    build = GraphBuilder.of(engines, image, image_size, resize_on)
    read_prismatic(build, c.vision, c.language, c.views, parts, slots, build.cut)
    _act(build, c, slots)
    return build.split(
        inputs=declare_inputs(c, parts, (height, width, 3), slots),
        outputs=chunks(c.normalization, samples=1),
        tables={TOKENS: model.token_table(), START: model.action_head.model.start()[None]},
        slots=slots,
        fixed=fixed,
    )


def fixed_tokens(
    config: VLAAdapterConfig, parts: PromptParts, grid: tuple[int, int]
) -> dict[str, int]:
    """Of each view's call; the text has the last one to itself."""
    return call_tokens(config.views, config.vision.num_patches)


def declare_inputs(
    config: VLAAdapterConfig,
    parts: PromptParts,
    shape: tuple[int, int, int],
    max_tail: int,
    samples: int = 1,
) -> dict[str, Input]:
    """What the policy sees, is told and feels."""
    one_chunk(samples)
    views = {view: camera(shape) for view in config.views}
    return {**views, "instruction": instruction(parts, max_tail), "state": state(config)}


def _act(build: GraphBuilder, c: VLAAdapterConfig, slots: int) -> None:
    """What the layers made, and the state -> the chunk."""
    head_dim = c.language.hidden_size // c.head.num_heads
    rows = call_rows(c.views, c.vision.num_patches)
    task: dict[str, str] = {}
    start = 0
    for number, (view, count) in enumerate(zip(c.views, rows, strict=True)):
        angles = {port: f"{view}_task_{port}" for port in ("cos", "sin")}
        for tensor in angles.values():
            build.tensor(tensor, (slots, head_dim))
        turned = {
            "segments": [count],
            "start": start,
            "theta": c.head.rope_theta,
            "sections": list(sections(head_dim)),
        }
        build.call("rotary", {}, angles, turned, name=f"{view}_task_rotary")
        states = {"states": f"{call_of(view)}_states"}
        build.engine("task", f"{view}_task", states | angles, {"kv": f"{view}_task_kv"})
        task[f"task_{number}"] = f"{view}_task_kv"
        start += count
    build.tensor("start", (c.head.action_horizon, c.language.hidden_size))
    start_rows = {"table": START, "ids": [0] * c.head.action_horizon}
    build.call("embed", {}, {"embeddings": "start"}, start_rows)
    build.tensor("places", (c.head.num_queries, slots))
    build.call("places", {"ids": "instruction"}, {"places": "places"}, {"num_new": 0})
    build.policy_state(c.normalization)
    given = {"x": "start", "places": "places", "states": f"{SUFFIX}_states"}
    given |= {"state": "policy_state", **task}
    build.engine("bridge", "bridge", given, {"actions": "made_actions"})
    build.answer("made_actions", c.normalization, leftover=False)
