"""SmolVLA cut into engines, and the graph that joins them.

A new picture of a camera redoes its tower and the call that reads pictures and text, since these
see each other; a new instruction that call. Keys and values are kept behind it, in the layers' own
form and as the expert's other layers have them. A new state redoes its row alone, behind what is
kept, and the sampler's loop; a new noise the loop. What depends on the step of the sampler is a
table.
"""

from __future__ import annotations

from models.declared import camera, chunks, instruction, sampled, state
from models.networks.engines import COEFFICIENT_ROW
from models.networks.expert import coefficients_of
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.vision_language import rotary_settings
from models.prompt_parts import PromptParts
from models.smolvla.config import SmolVLAConfig
from models.smolvla.engines import engines_of
from models.smolvla.model import SmolVLA
from models.split import TOKENS, GraphBuilder, ResizeOn, Split, check_places, check_slots
from runtime.declarations import Input
from runtime.image import ImageConfig, grid_of

PREFIX = "prefix"
"""The call that reads pictures and text."""
STEPS = "steps"
"""The table of what depends on the step of the sampler."""


def split(
    model: SmolVLA,
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
    width, height = image_size
    grid = grid_of(height, width, image)
    check_places(grid, c.vision, "the tower has places for")
    fixed = fixed_tokens(c, parts, grid)
    check_slots(fixed, parts, grid, slots)
    engines = engines_of(model, slots, layers, samples)
    build = GraphBuilder.of(engines, image, image_size, resize_on)
    _read(build, c, slots)
    _feel(build, c)
    _sampling(build, c)
    max_tail = slots - c.num_image_tokens
    return build.split(
        inputs=declare_inputs(c, parts, (height, width, 3), max_tail, samples),
        outputs=chunks(c.normalization, samples),
        tables={TOKENS: model.vlm.model.token_table(), STEPS: model.action_head.step_table()},
        slots=slots,
        fixed=fixed,
    )


def fixed_tokens(
    config: SmolVLAConfig, parts: PromptParts, grid: tuple[int, int]
) -> dict[str, int]:
    """Tokens of the views; the text is behind them."""
    return {PREFIX: config.num_image_tokens}


def declare_inputs(
    config: SmolVLAConfig,
    parts: PromptParts,
    shape: tuple[int, int, int],
    max_tail: int,
    samples: int = 1,
) -> dict[str, Input]:
    """What the policy sees, is told, feels and starts from."""
    return {
        **{view: camera(shape) for view in config.views},
        "instruction": instruction(parts, min(max_tail, config.prompt.max_length)),
        "state": state(config),
        **sampled(config, samples, noise_width=config.head.max_action_dim),
    }


def _read(build: GraphBuilder, c: SmolVLAConfig, slots: int) -> None:
    """Pictures and instruction -> keys and values of both, `prefix_kv` and `prefix_cross`."""
    embeddings, count = f"{PREFIX}_embeddings", c.num_image_tokens
    build.tensor(embeddings, (slots, c.language.hidden_size))
    for number, view in enumerate(c.views):
        tokens = c.vision.num_tokens
        build.rows(f"{view}_tokens", embeddings, number * tokens, tokens)
    build.rows("text_embeddings", embeddings, count)
    build.call(
        "embed", {"ids": "instruction"}, {"embeddings": "text_embeddings"}, {"table": TOKENS}
    )
    _places(build, c, PREFIX, rows=slots)
    build.tensor(f"{PREFIX}_mask", (slots,))
    build.call("padding", {"ids": "instruction"}, {"mask": f"{PREFIX}_mask"}, {"counts": [count]})
    for view in c.views:
        build.image(view)
    build.stack(f"{PREFIX}_kv", "kv")
    build.language(PREFIX, past="")
    build.engine(
        "cross_kv",
        f"{PREFIX}_cross",
        {"kv": f"{PREFIX}_kv"},
        {"keys_values": f"{PREFIX}_cross"},
    )


def _places(
    build: GraphBuilder, c: SmolVLAConfig, name: str, rows: int, *, behind: int = 0, start: int = 0
) -> None:
    """Rotary angles of pictures and text, or of rows `behind` them, the first `start` rows on."""
    tables = {port: f"{name}_{port}" for port in ("cos", "sin")}
    for table in tables.values():
        build.tensor(table, (rows, c.language.head_dim))
    settings = {
        "segments": [c.num_image_tokens],
        "start": start,
        **rotary_settings(c.language),
    } | ({"behind": behind} if behind else {})
    build.call("rotary", {"ids": "instruction"}, tables, settings, name=f"{name}_rotary")


def _feel(build: GraphBuilder, c: SmolVLAConfig) -> None:
    """The state -> its keys and values, `state_row`."""
    build.policy_state(c.normalization)
    build.corner("padded_state", (c.head.max_state_dim,), "policy_state")
    _places(build, c, "state", rows=1, behind=1)
    given = {"state": "padded_state", "past": f"{PREFIX}_kv", "mask": f"{PREFIX}_mask"}
    given |= {port: f"state_{port}" for port in ("cos", "sin")}
    build.engine("state", "state_row", given, {"row": "state_row"})


def _sampling(build: GraphBuilder, c: SmolVLAConfig) -> None:
    """From noise to actions, along what is left of the last chunk."""
    head = c.head
    count, (horizon, width) = head.num_inference_timesteps, c.chunk
    _places(build, c, "actions_behind", rows=horizon, behind=horizon, start=1)
    build.tensor("steps", (count, head.hidden_size))
    build.call("embed", {}, {"embeddings": "steps"}, {"table": STEPS, "ids": list(range(count))})
    build.tensor("coefficients", (count, COEFFICIENT_ROW))
    values = coefficients_of(head).tolist()
    build.call("constant", {}, {"value": "coefficients"}, {"values": values})
    x = build.engines["euler"].inputs["x"].shape
    build.noise(c.normalization, x)
    build.corner("padded_leftover", x[-2:], "leftover_actions")
    for k in range(count):
        build.rows(f"step_{k}", "steps", k, 1)
        build.slice(f"coefficients_{k}", "coefficients", k)
        given = {
            "x": f"x_{k}",
            "past": f"{PREFIX}_kv",
            "cross": f"{PREFIX}_cross",
            "state_row": "state_row",
            "mask": f"{PREFIX}_mask",
            "cos": "actions_behind_cos",
            "sin": "actions_behind_sin",
            "step": f"step_{k}",
            "coefficients": f"coefficients_{k}",
            "leftover": "padded_leftover",
            "weights": "leftover_weights",
        }
        build.engine("euler", f"euler_{k}", given, {"x_next": f"x_{k + 1}"})
    build.corner("made_actions", (*x[:-1], width), f"x_{count}")
    build.answer("made_actions", c.normalization)
