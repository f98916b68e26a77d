"""UP-VLA cut into engines, and the graph that joins them.

The instruction stands before the pictures and sees none of them, so its keys and values are kept:
`prefix` reads it, and `suffix` reads codes and actions behind it, whose rows see one another and so
are one call. Both put out keys and values of no more tokens than a text may have: nobody reads
those of the suffix. A new picture redoes its codes and the suffix; a new instruction both calls,
and no picture. Positions of the suffix are constants: an instruction ends where they begin. Codes
of the pictures to come, and these pictures, are leaves that are run when they are asked for.
"""

from __future__ import annotations

from models.declared import camera, chunks, future_image, instruction, one_chunk
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.vision_language import rotary_settings
from models.prompt_parts import PromptParts
from models.split import TOKENS, GraphBuilder, ResizeOn, Split, check_places, check_slots
from models.upvla.config import UPVLAConfig
from models.upvla.engines import engines_of
from models.upvla.model import UPVLA
from runtime.declarations import Input, Output
from runtime.image import ImageConfig, grid_of

PREFIX, SUFFIX = "prefix", "suffix"
FUTURE_CODES = "future_codes"
"""Of each view the codes of a picture to come."""


def future(view: str) -> str:
    """The leaf that is a picture to come."""
    return f"future_{view}"


def split(
    model: UPVLA,
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
    build = GraphBuilder.of(engines_of(model, slots, layers), image, image_size, resize_on)
    width, height = image_size
    grid = grid_of(height, width, image)
    check_places(grid, c.vision, "there are codes for")
    fixed = fixed_tokens(c, parts, grid)
    check_slots(fixed, parts, grid, slots)
    _read_text(build, c, parts, slots)
    _read_pictures(build, c, parts, slots)
    build.engine("act", "act", {"hidden": f"{SUFFIX}_hidden"}, {"actions": "made_actions"})
    build.answer("made_actions", c.normalization, leftover=False)
    leaves = _foresee(build, c)
    return build.split(
        inputs=declare_inputs(c, parts, (height, width, 3), slots),
        outputs=chunks(c.normalization, 1, leaves),
        tables={TOKENS: model.decoder.embed_tokens.weight},
        slots=slots,
        fixed=fixed,
    )


def fixed_tokens(config: UPVLAConfig, parts: PromptParts, grid: tuple[int, int]) -> dict[str, int]:
    """The instruction is behind those of the prefix, which is why that is the last one here."""
    return {SUFFIX: config.num_rows, PREFIX: len(parts.before[0])}


def declare_inputs(
    config: UPVLAConfig,
    parts: PromptParts,
    shape: tuple[int, int, int],
    max_tail: int,
    samples: int = 1,
) -> dict[str, Input]:
    """What the policy sees and is told: no more than the suffix has room for behind it."""
    one_chunk(samples)
    room = min(max_tail, config.prompt.text_slots - len(parts.before[0]))
    views = {view: camera(shape) for view in config.views}
    return {**views, "instruction": instruction(parts, room)}


def _read_text(build: GraphBuilder, c: UPVLAConfig, parts: PromptParts, slots: int) -> None:
    """The instruction -> its keys and values, `prefix_kv`."""
    before = parts.before[0]
    build.tensor(f"{PREFIX}_embeddings", (slots, c.language.hidden_size))
    build.rows(f"{PREFIX}_first", f"{PREFIX}_embeddings", 0, len(before))
    build.embed(f"{PREFIX}_first", before)
    build.rows(f"{PREFIX}_text", f"{PREFIX}_embeddings", len(before))
    said = {"ids": "instruction"}
    build.call("embed", said, {"embeddings": f"{PREFIX}_text"}, {"table": TOKENS})
    _place(build, c, PREFIX, len(before), c.prompt.max_text, said)
    build.call("mask", said, {"mask": f"{PREFIX}_mask"}, {"num_past": 0, "num_new": len(before)})
    build.no_past()
    build.language(PREFIX, "empty_past")


def _read_pictures(build: GraphBuilder, c: UPVLAConfig, parts: PromptParts, slots: int) -> None:
    """Pictures behind the instruction -> `suffix_hidden`."""
    p, count = c.prompt, c.vision.num_patches
    build.tensor(f"{SUFFIX}_embeddings", (slots, c.language.hidden_size))
    build.rows(f"{SUFFIX}_first", f"{SUFFIX}_embeddings", 0, 1)
    build.embed(f"{SUFFIX}_first", (p.image_start,))
    for number, view in enumerate(c.views):
        build.rows(f"{view}_tokens", f"{SUFFIX}_embeddings", 1 + number * count, count)
    build.rows(f"{SUFFIX}_rest", f"{SUFFIX}_embeddings", 1 + c.num_codes)
    build.embed(f"{SUFFIX}_rest", (p.image_end, *[p.action] * c.head.action_horizon))
    _place(build, c, SUFFIX, c.num_rows, p.max_text + c.num_rows, {})
    seen = {"num_past": len(parts.before[0]), "num_new": c.num_rows}
    seen |= {"num_open": c.num_picture_rows, "text_is_past": True}
    build.call("mask", {"ids": "instruction"}, {"mask": f"{SUFFIX}_mask"}, seen)
    for view in c.views:
        patches = build.cut(view)
        codes = {"tokens": f"{view}_tokens"}
        build.engine("vq_encoder", f"{view}_codes", {"patches": patches}, codes)
    build.language(SUFFIX, f"{PREFIX}_kv")


def _place(
    build: GraphBuilder, c: UPVLAConfig, call: str, count: int, stop: int, said: dict[str, str]
) -> None:
    """Rotary angles and mask of a call that ends at a position, whatever its length."""
    for port in ("cos", "sin", "mask"):
        build.tensor(f"{call}_{port}", build.parts("language")[0].inputs[port].shape)
    angles = {port: f"{call}_{port}" for port in ("cos", "sin")}
    places = {"segments": [count], "start": 0, "stop": stop, **rotary_settings(c.language)}
    build.call("rotary", said, angles, places, name=f"{call}_rotary")


def _foresee(build: GraphBuilder, c: UPVLAConfig) -> dict[str, Output]:
    """Codes and pictures to come, off the rows of those that are shown."""
    hidden = {"hidden": f"{SUFFIX}_hidden"}
    build.engine("code_head", FUTURE_CODES, hidden, {"codes": FUTURE_CODES})
    leaves = {FUTURE_CODES: Output(axes=("view", "code"))}
    for number, view in enumerate(c.views):
        build.slice(f"{view}_future_codes", FUTURE_CODES, number)
        given, made = {"codes": f"{view}_future_codes"}, {"picture": future(view)}
        build.engine("vq_decoder", future(view), given, made)
        leaves[future(view)] = future_image(view, c.head.action_horizon, is_middle=True)
    return leaves
