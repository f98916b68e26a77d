"""QwenGR00T cut into engines, and the graph that joins them.

A new frame redoes the decoder's call (`models.chat_graph`) and all behind it. Keys and values of
the language tokens are made once a tick, a new state redoes its row and the loop, and a new noise
the loop alone. What depends on the step of the sampler is a table.
"""

from __future__ import annotations

from models.chat import fixed_tokens
from models.chat_graph import read_chat
from models.declared import camera, chunks, instruction, noise_shape, sampled, state
from models.networks.engines import COEFFICIENT_ROW
from models.networks.flow_dit import coefficients_of
from models.networks.parts import WHOLE, LayersPerPart
from models.prompt_parts import PromptParts
from models.qwengr00t.config import QwenGR00TConfig
from models.qwengr00t.engines import engines_of
from models.qwengr00t.model import QwenGR00T
from models.split import TOKENS, GraphBuilder, ResizeOn, Split, check_slots
from runtime.declarations import Input, Tensor
from runtime.image import ImageConfig, grid_of

STEPS = "steps"
"""The table of what depends on the step of the sampler."""


def split(
    model: QwenGR00T,
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
    fixed = fixed_tokens(c, parts, grid)
    check_slots(fixed, parts, grid, slots)
    engines = engines_of(model, grid, slots, layers, samples)
    build = GraphBuilder.of(engines, image, image_size, resize_on)
    read_chat(build, c.language, c.views, parts, grid, slots)
    _cross(build, c, fixed, slots)
    _sampling(build, c, samples)
    return build.split(
        inputs=declare_inputs(
            c, parts, (height, width, 3), slots - list(fixed.values())[-1], samples
        ),
        outputs=chunks(c.normalization, samples),
        tables={
            TOKENS: model.vlm.model.embed_tokens.weight,
            STEPS: model.action_head.step_tables().flatten(0, 1),
        },
        slots=slots,
        fixed=fixed,
    )


def declare_inputs(
    config: QwenGR00TConfig,
    parts: PromptParts,
    shape: tuple[int, int, int],
    max_tail: int,
    samples: int = 1,
) -> dict[str, Input]:
    """What the policy sees, is told and starts from."""
    return {
        **{view: camera(shape) for view in config.views},
        "instruction": instruction(parts, max_tail),
        **({"state": state(config)} if config.takes_state else {}),
        **sampled(config, samples),
    }


def _cross(build: GraphBuilder, c: QwenGR00TConfig, fixed: dict[str, int], slots: int) -> None:
    """Keys and values of both calls, one behind the other, and which of them are padding."""
    one = build.engines["cross_kv"].outputs["keys_values"]
    build.tensor("keys_values", (2 * slots, *one.shape[1:]))
    for number, call in enumerate(fixed):
        build.tensors[f"{call}_keys_values"] = Tensor(
            shape=one.shape, part_of=("keys_values", number * one.size)
        )
        build.engine(
            "cross_kv",
            f"{call}_cross",
            {"hidden": f"{call}_hidden"},
            {"keys_values": f"{call}_keys_values"},
        )
    build.tensor("padding", (2 * slots,))
    build.call(
        "padding", {"ids": "instruction"}, {"mask": "padding"}, {"counts": list(fixed.values())}
    )


def _sampling(build: GraphBuilder, c: QwenGR00TConfig, samples: int) -> None:
    """From noise to actions, along what is left of the last chunk."""
    head = c.head
    state_row = {}
    if c.takes_state:
        build.policy_state(c.normalization)
        build.engine("state", "state_row", {"state": "policy_state"}, {"row": "state_row"})
        state_row = {"state_row": "state_row"}
    count = head.num_inference_timesteps
    build.tensor("steps", (count * head.step_rows, head.width))
    build.call(
        "embed", {}, {"embeddings": "steps"},
        {"table": STEPS, "ids": list(range(count * head.step_rows))},
    )  # fmt: skip
    coefficients = coefficients_of(head)
    build.tensor("coefficients", (count, COEFFICIENT_ROW))
    build.call("constant", {}, {"value": "coefficients"}, {"values": coefficients.tolist()})
    build.noise(c.normalization, noise_shape(c, samples))
    for k in range(count):
        build.rows(f"step_{k}", "steps", k * head.step_rows, head.step_rows)
        build.slice(f"coefficients_{k}", "coefficients", k)
        build.engine(
            "euler",
            f"euler_{k}",
            {
                "x": f"x_{k}",
                "keys_values": "keys_values",
                "mask": "padding",
                "step": f"step_{k}",
                "coefficients": f"coefficients_{k}",
                "leftover": "leftover_actions",
                "weights": "leftover_weights",
                **state_row,
            },
            {"x_next": f"x_{k + 1}"},
        )
    build.answer(f"x_{count}", c.normalization)
