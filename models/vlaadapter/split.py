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
from models.prompt_parts import PromptParts
from models.split import TOKENS, GraphBuilder, ResizeOn, Split, check_places, check_slots
from models.vlaadapter.config import VLAAdapterConfig
from models.vlaadapter.engines import TOWERS, call_rows, engines_of
from models.vlaadapter.model import VLAAdapter
from runtime.declarations import Input
from runtime.image import ImageConfig, grid_of

SUFFIX = "suffix"
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
    _read(build, c, parts, slots)
    _act(build, c, slots)
    return build.split(
        inputs=declare_inputs(c, parts, (height, width, 3), slots),
        outputs=chunks(c.normalization, samples=1),
        tables={TOKENS: model.token_table(), START: model.action_head.model.start()[None]},
        slots=slots,
        fixed=fixed,
    )


def call_of(view: str) -> str:
    """The call that reads a view."""
    return f"read_{view}"


def fixed_tokens(
    config: VLAAdapterConfig, parts: PromptParts, grid: tuple[int, int]
) -> dict[str, int]:
    """Of each view's call; the text has the last one to itself."""
    views = zip(config.views, call_rows(config), strict=True)
    return {call_of(view): count for view, count in views} | {SUFFIX: 0}


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


def _read(build: GraphBuilder, c: VLAAdapterConfig, parts: PromptParts, slots: int) -> None:
    """Pictures and instruction -> what every layer makes of them, `{call}_states`."""
    shape = (slots, c.language.hidden_size)
    for number, view in enumerate(c.views):
        call, first = call_of(view), parts.before[0] if number == 0 else ()
        build.tensor(f"{call}_embeddings", shape)
        if first:
            build.rows(f"{call}_first", f"{call}_embeddings", 0, len(first))
            build.embed(f"{call}_first", first)
        build.rows(f"{view}_tokens", f"{call}_embeddings", len(first), c.vision.num_patches)
        if len(first) + c.vision.num_patches < slots:
            build.rows(f"{call}_rest", f"{call}_embeddings", len(first) + c.vision.num_patches)
            build.embed(f"{call}_rest", ())
    build.tensor(f"{SUFFIX}_embeddings", shape)
    build.call(
        "embed", {"ids": "instruction"}, {"embeddings": f"{SUFFIX}_embeddings"}, {"table": TOKENS}
    )
    calls = {call_of(view): [n] for view, n in zip(c.views, call_rows(c), strict=True)}
    pasts = build.calls({**calls, SUFFIX: []}, c.language, "instruction")
    for view in c.views:
        patches = build.cut(view)
        for name in TOWERS:
            seen = {"features": f"{view}_{name}"}
            build.chain(name, f"{view}_{name}", {"patches": patches}, seen)
        seen = {name: f"{view}_{name}" for name in TOWERS}
        build.engine("projector", f"{view}_projector", seen, {"tokens": f"{view}_tokens"})
    for call, past in zip([*calls, SUFFIX], pasts, strict=True):
        build.language(call, past)


def _act(build: GraphBuilder, c: VLAAdapterConfig, slots: int) -> None:
    """What the layers made, and the state -> the chunk."""
    head_dim = c.language.hidden_size // c.head.num_heads
    task: dict[str, str] = {}
    start = 0
    for number, (view, count) in enumerate(zip(c.views, call_rows(c), strict=True)):
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
    rows = {"table": START, "ids": [0] * c.head.action_horizon}
    build.call("embed", {}, {"embeddings": "start"}, rows)
    build.tensor("places", (c.head.num_queries, slots))
    build.call("places", {"ids": "instruction"}, {"places": "places"}, {"num_new": 0})
    build.policy_state(c.normalization)
    given = {"x": "start", "places": "places", "states": f"{SUFFIX}_states"}
    given |= {"state": "policy_state", **task}
    build.engine("bridge", "bridge", given, {"actions": "made_actions"})
    build.answer("made_actions", c.normalization, leftover=False)
