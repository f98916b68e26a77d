"""EventVLA cut into engines, and the graph that joins them.

Pictures are inputs: of the episode's first step (a latch), of some steps ago (delays), of now, and
those of the policy's own events (a memory). Whichever input shows a picture, the vision tower sees
it once in its life: its tokens are remembered by its content. The decoder's `prefix` ends with the
pictures of the first step, and is kept for an episode; `suffix` is all behind it, with room for as
many keyframes as there may be, of which those that are not there are masked.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.action_tokens import act
from models.chat_graph import Piece, lay
from models.declared import camera, chunks, instruction, one_chunk
from models.eventvla.config import EventVLAConfig
from models.eventvla.engines import engines_of
from models.eventvla.model import EventVLA
from models.eventvla.pictures import KEYFRAMES, PROBABILITIES, observed_names, slot_names
from models.networks.parts import WHOLE, LayersPerPart
from models.prompt_parts import PromptParts
from models.split import TOKENS, GraphBuilder, ResizeOn, Split, check_slots
from runtime.declarations import Input, Memory, Output, Store
from runtime.image import ImageConfig, grid_of
from runtime.prompt import Segment, mrope_positions, num_tokens


def split(
    model: EventVLA,
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
    _read(build, c, parts, grid, slots)
    rows = act(build, parts, fixed["suffix"])
    leaves = {}
    if c.predicts_keyframes:
        build.engine("events", "events", rows, {"probabilities": PROBABILITIES})
        leaves[PROBABILITIES] = Output(axes=("step",), every=1)
    build.answer("made_actions", c.normalization, leftover=False)
    return build.split(
        inputs=declare_inputs(c, parts, (height, width, 3), slots - fixed["suffix"]),
        outputs=chunks(c.normalization, 1, leaves),
        stores={"pictures": _store(build, c)},
        tables={TOKENS: model.vlm.model.embed_tokens.weight},
        slots=slots,
        fixed=fixed,
    )


def declare_inputs(
    config: EventVLAConfig,
    parts: PromptParts,
    shape: tuple[int, int, int],
    max_tail: int,
    samples: int = 1,
) -> dict[str, Input]:
    """What the policy sees, remembers and is told."""
    one_chunk(samples)
    views, events = config.views, config.events
    names = iter(observed_names(config))

    def picture(source: str, pace: str, **more: object) -> Input:
        return Input(kind="image", source=source, shape=shape, dtype="uint8", pace=pace, **more)  # type: ignore[arg-type]

    inputs = {next(names): picture("latch", "episode", of=view) for view in views}
    for steps in config.delays:
        inputs |= {next(names): picture("delay", "tick", of=view, steps=steps) for view in views}
    inputs |= {next(names): camera(shape) for _ in views}
    slots = slot_names(config)
    inputs |= {slot: picture("memory", "event", of=config.main_view) for slot in slots}
    if slots:
        memory = Memory(
            slots=slots,
            output=PROBABILITIES,
            threshold=events.threshold,
            least_offset=events.least_offset,
            nms_window=events.nms_window,
            cooldown=events.cooldown,
            num_replans=events.num_replans,
        )
        inputs[KEYFRAMES] = Input(
            kind="vector", source="memory", shape=(1,), dtype="float32", pace="event",
            memory=memory,
        )  # fmt: skip
    return inputs | {"instruction": instruction(parts, max_tail)}


def fixed_tokens(
    config: EventVLAConfig, parts: PromptParts, grid: tuple[int, int]
) -> dict[str, int]:
    """Tokens up to the first step's pictures, and from there to the tail, all keyframes shown."""
    prefix, suffix = (_tokens(call, grid) for call in _calls(config, parts))
    return {"prefix": num_tokens(prefix), "suffix": num_tokens(suffix)}


def _calls(c: EventVLAConfig, parts: PromptParts) -> tuple[list[Piece], list[Piece]]:
    """Pieces of the prefix, and of the suffix before the tail."""
    names = [*observed_names(c), *slot_names(c)]
    pieces: list[Piece] = []
    for number, (name, before) in enumerate(zip(names, parts.before, strict=True)):
        pieces += [(parts.image_end if number else ()) + before, name]
    cut = 2 * len(c.views)
    return pieces[:cut], pieces[cut:]


def _tokens(pieces: Sequence[Piece], grid: tuple[int, int]) -> list[Segment]:
    picture: Segment = (grid[0] // 2, grid[1] // 2)
    return [picture if isinstance(piece, str) else len(piece) for piece in pieces]


def _read(
    build: GraphBuilder,
    c: EventVLAConfig,
    parts: PromptParts,
    grid: tuple[int, int],
    slots: int,
) -> None:
    """All pictures and the instruction -> `suffix_hidden`."""
    merged, shape = grid[0] * grid[1] // 4, (slots, c.language.hidden_size)
    prefix, suffix = _calls(c, parts)
    lay(build, "prefix", prefix, shape, merged)
    lay(build, "suffix", suffix, shape, merged, tail="instruction")
    before, behind = (_tokens(call, grid) for call in (prefix, suffix))
    build.places("prefix", before, c.language)
    build.places(
        "suffix",
        behind,
        c.language,
        start=mrope_positions(before)[1],
        num_past=num_tokens(before),
        ids="instruction",
        optional=len(slot_names(c)),
        count=KEYFRAMES,
    )
    build.no_past()
    for name in (*observed_names(c), *slot_names(c)):
        build.image(name)
    build.language("prefix", "empty_past")
    build.language("suffix", "prefix_kv")


def _store(build: GraphBuilder, c: EventVLAConfig) -> Store:
    """Of as many pictures as may be shown again: those of every view since the longest delay, of
    the first step, and the keyframes."""
    names = (*observed_names(c), *slot_names(c))
    made = build.vision_ports()
    count = len(c.views) * (max(c.delays, default=0) + 2) + len(slot_names(c)) + 1
    entries = []
    for number in range(count):
        entry = tuple(f"remembered_{number}_{port}" for port in made)
        for port, name in zip(made, entry, strict=True):
            build.tensor(name, build.tensors[f"{names[0]}_{port}"].shape)
        entries.append(entry)
    members = tuple(tuple(f"{name}_{port}" for port in made) for name in names)
    return Store(entries=tuple(entries), members=members)
