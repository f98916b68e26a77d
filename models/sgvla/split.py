"""SG-VLA cut into engines, and the graph that joins them.

Pictures and instruction are read as `models.prismatic_graph` says. The expert attends to keys and
values where the decoder's calls left them, so nothing is copied for it, and a new noise redoes the
loop alone. Tokens are decoded as `models.decoded_tokens` says, and then nothing is drawn. Five
leaves are computed when they are asked for: each reads what the decoder put out where pictures
stand, and nothing that acts reads any of them.
"""

from __future__ import annotations

from models.declared import (
    camera,
    chunks,
    depth,
    grasp,
    instruction,
    joint_positions,
    noise_shape,
    one_chunk,
    sampled,
)
from models.decoded_tokens import decode_tokens, prompt_ports
from models.networks.engines import COEFFICIENT_ROW
from models.networks.flow_dit import coefficients_of
from models.networks.flow_expert import FlowExpert
from models.networks.flow_expert_config import FlowExpertConfig
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.token_head_config import TokenHeadConfig
from models.networks.vision_language import rotary_settings
from models.prismatic_chat import SUFFIX, call_of, call_tokens
from models.prismatic_graph import read_prismatic
from models.prompt_parts import PromptParts
from models.sgvla.config import SGVLAConfig
from models.sgvla.engines import engines_of, leaf_pictures
from models.sgvla.model import SGVLA
from models.split import TOKENS, GraphBuilder, ResizeOn, Split, check_places, check_slots
from runtime.declarations import Input, Output
from runtime.graph import part_name
from runtime.image import ImageConfig, grid_of

STEPS = "steps"
"""The table of what depends on the step of the sampler."""


def split(
    model: SGVLA,
    parts: PromptParts,
    image: ImageConfig,
    image_size: tuple[int, int],
    slots: int,
    layers: LayersPerPart = WHOLE,
    *,
    resize_on: ResizeOn = "host",
    samples: int = 1,
) -> Split:
    """See `models.family.Family.split`. Depth maps become patches on the host, whatever pictures
    do."""
    c = model.config
    _check_samples(c, samples)
    width, height = image_size
    grid = grid_of(height, width, image)
    check_places(grid, c.vision, "the towers have places for")
    fixed = fixed_tokens(c, parts, grid)
    check_slots(fixed, parts, grid, slots)
    engines = engines_of(model, slots, layers, samples)
    build = GraphBuilder.of(engines, image, image_size, resize_on)

    def patches(name: str) -> str:
        if name in c.views:
            return build.cut(name)
        return build.cut_depth(name, c.depth.stated)

    past = read_prismatic(build, c.vision, c.language, c.pictures, parts, slots, patches)
    prompt = _prompt(build, past, fixed, slots)
    tables = {TOKENS: model.decoder.embed_tokens.weight}
    if isinstance(c.head, TokenHeadConfig):
        decode_tokens(build, c.head, c.language, prompt, SUFFIX, list(fixed.values()))
        build.answer("made_actions", c.normalization, leftover=False)
    else:
        assert isinstance(model.action_head, FlowExpert)
        tables[STEPS] = model.action_head.step_tables()
        _sample(build, c, c.head, prompt, sum(fixed.values()), samples)
    leaves = declare_leaves(c)
    for name in leaves:
        read = [call_of(picture) for picture in leaf_pictures(c, name)]
        hidden = {f"hidden_{number}": f"{call}_hidden" for number, call in enumerate(read)}
        build.engine(name, name, hidden, {name: name})
    return build.split(
        inputs=declare_inputs(c, parts, (height, width, 3), slots, samples),
        outputs=chunks(c.normalization, samples, leaves),
        tables=tables,
        slots=slots,
        fixed=fixed,
    )


def fixed_tokens(config: SGVLAConfig, parts: PromptParts, grid: tuple[int, int]) -> dict[str, int]:
    """Of each picture's call; the text has the last one to itself."""
    return call_tokens(config.pictures, config.vision.num_patches)


def declare_inputs(
    config: SGVLAConfig,
    parts: PromptParts,
    shape: tuple[int, int, int],
    max_tail: int,
    samples: int = 1,
) -> dict[str, Input]:
    """What the policy sees, is told and starts from. Depth is as large as colour."""
    _check_samples(config, samples)
    draws = not isinstance(config.head, TokenHeadConfig)
    return {
        **{view: camera(shape) for view in config.views},
        **{view: depth(shape[:2]) for view in config.depth_views},
        "instruction": instruction(parts, max_tail),
        **(sampled(config, samples) if draws else {}),
    }


def declare_leaves(config: SGVLAConfig) -> dict[str, Output]:
    """What may be asked for beside the actions, and is never computed otherwise."""
    c = config.leaves
    quaternion = tuple(f"q{part}" for part in c.quaternion)
    return {
        "position": Output(axes=("axis",), units=("m",) * c.position_dim),
        "grasp": grasp(),
        "object_pose": Output(axes=("pose",), units=("m",) * 3 + quaternion),
        "joints": joint_positions(c.joint_names or ("",) * c.num_joints),
        "segmentation": Output(axes=("row", "column")),
    }


def _check_samples(c: SGVLAConfig, samples: int) -> None:
    """
    Raises:
        ValueError: several chunks of a policy that draws nothing.
    """
    if isinstance(c.head, TokenHeadConfig):
        one_chunk(samples)


def _prompt(build: GraphBuilder, past: str, fixed: dict[str, int], slots: int) -> dict[str, str]:
    """What the head reads of the prompt: keys and values of all calls, and which are padding.

    Args:
        past: keys and values of the calls before the last one.
    """
    build.tensor("padding", (len(fixed) * slots,))
    counts = {"counts": list(fixed.values())}
    build.call("padding", {"ids": "instruction"}, {"mask": "padding"}, counts)
    num_parts = len(build.parts("language"))
    return {"mask": "padding"} | {
        port: part_name(tensor, i, num_parts)
        for ports, tensor in zip(prompt_ports(num_parts), (past, f"{SUFFIX}_kv"), strict=True)
        for i, port in enumerate(ports)
    }


def _sample(
    build: GraphBuilder,
    c: SGVLAConfig,
    head: FlowExpertConfig,
    prompt: dict[str, str],
    length: int,
    samples: int,
) -> None:
    """From noise to actions, along what is left of the last chunk.

    Args:
        prompt: see `_prompt`.
        length: of it without the text.
    """
    text = {"ids": "instruction"}
    angles = {port: f"action_{port}" for port in ("cos", "sin")}
    for tensor in angles.values():
        build.tensor(tensor, (head.action_horizon, head.head_dim))
    places = {"segments": [length], "start": 0, "behind": head.action_horizon}
    places |= rotary_settings(c.language)
    build.call("rotary", text, angles, places, name="action_rotary")
    count = head.num_inference_timesteps
    build.tensor("steps", (count, head.hidden_size))
    rows = {"table": STEPS, "ids": list(range(count))}
    build.call("embed", {}, {"embeddings": "steps"}, rows)
    build.tensor("coefficients", (count, COEFFICIENT_ROW))
    values = coefficients_of(head).tolist()
    build.call("constant", {}, {"value": "coefficients"}, {"values": values})
    build.noise(c.normalization, noise_shape(c, samples))
    for k in range(count):
        build.rows(f"step_{k}", "steps", k, 1)
        build.slice(f"coefficients_{k}", "coefficients", k)
        given = {"x": f"x_{k}", "mask": prompt["mask"], **angles}
        given |= {"step": f"step_{k}", "coefficients": f"coefficients_{k}"}
        given |= {"leftover": "leftover_actions", "weights": "leftover_weights", **prompt}
        build.engine("euler", f"euler_{k}", given, {"x_next": f"x_{k + 1}"})
    build.answer(f"x_{count}", c.normalization)
