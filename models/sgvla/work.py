"""What each engine of SG-VLA multiplies and holds; see `models.networks.work`."""

from __future__ import annotations

from functools import partial

from models.decoded_tokens import token_work
from models.networks.flow_expert_config import FlowExpertConfig
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.prismatic_work import prismatic_depths, prismatic_work, tower_work
from models.networks.token_head_config import TokenHeadConfig
from models.networks.work import (
    Layer,
    Tokens,
    Work,
    attention_flops,
    convolution,
    language_work,
    layers_of,
    parts_work,
    swiglu,
    transformer,
)
from models.sgvla.config import SGVLAConfig
from models.sgvla.model import POSE_DIM

HEAD = "action_head"
ENCODER = f"{HEAD}.action_encoder"
DECODER = "language_model.model"


def depths(config: SGVLAConfig) -> dict[str, int]:
    """Layers of each trunk that may be cut."""
    return prismatic_depths(config.vision) | {"language": config.language.num_hidden_layers}


def engines_work(
    config: SGVLAConfig,
    grid: tuple[int, int],
    tokens: Tokens,
    layers: LayersPerPart = WHOLE,
    samples: int = 1,
) -> dict[str, Work]:
    """Of every engine, under the names and in the order of `engines.engines_of`.

    Args:
        grid: rows and columns of patches, which are the towers' own.
        tokens: of a language call. The expert attends to all that are seen.
        samples: chunks that are sampled at once.
    """
    found = prismatic_work(config.vision, layers)
    decoder = partial(trunk_work, config, "language", grid=grid, tokens=tokens)
    found |= parts_work("language", config.language.num_hidden_layers, layers, decoder)
    if isinstance(config.head, TokenHeadConfig):
        found |= token_work(config.head, config.language, DECODER, tokens)
    else:
        found["euler"] = _euler(config.head, tokens, samples)
    return found | _leaves(config)


def trunk_work(
    config: SGVLAConfig, trunk: str, layers: range, grid: tuple[int, int], tokens: Tokens
) -> Work:
    """Some layers of a trunk in an engine of their own."""
    if trunk == "language":
        return language_work(DECODER, config.language, layers, tokens)
    return tower_work(trunk, config.vision, layers)


def folded_layers(config: SGVLAConfig) -> tuple[Layer, ...]:
    """Of the action encoder's second layer one half is a table, and the other a matrix of its
    own."""
    if isinstance(config.head, TokenHeadConfig):
        return ()
    width = config.head.hidden_size
    shapes = {f"{ENCODER}.layer2": (2 * width, width)}
    return layers_of(shapes, config.head.num_inference_timesteps)


def _euler(c: FlowExpertConfig, tokens: Tokens, samples: int) -> Work:
    width, rows = c.hidden_size, samples * c.action_horizon
    q_width, kv_width = (n * c.head_dim for n in (c.num_attention_heads, c.num_key_value_heads))
    layers = [
        *layers_of({f"{ENCODER}.layer1": (c.action_dim, width)}, rows),
        # Of the second, what the time's half makes of it is a table, with the bias.
        *layers_of({f"{ENCODER}.layer2": (width, width)}, rows, has_bias=False),
        *layers_of({f"{ENCODER}.layer3": (width, width)}, rows),
    ]
    for index in range(c.num_hidden_layers):
        layer = f"{HEAD}.layers.{index}"
        shapes = {f"{layer}.self_attn.q_proj": (width, q_width)}
        shapes |= {f"{layer}.self_attn.{which}_proj": (width, kv_width) for which in "kv"}
        layers += layers_of(shapes, rows)
        shapes = {f"{layer}.self_attn.o_proj": (q_width, width)}
        shapes |= swiglu(f"{layer}.mlp", width, c.intermediate_size)
        layers += layers_of(shapes, rows, has_bias=False)
    layers += layers_of({f"{HEAD}.action_out_proj": (width, c.action_dim)}, rows)
    keys = tokens.seen + c.action_horizon
    one = attention_flops(samples * c.num_attention_heads, c.action_horizon, keys, c.head_dim)
    return Work(
        layers=tuple(layers),
        attention_flops=one * c.num_hidden_layers,
        largest_scores=c.num_attention_heads * rows * keys,
        beside=(2 * c.num_hidden_layers + 1) * width,
        calls=c.num_inference_timesteps,
    )


def _leaves(config: SGVLAConfig) -> dict[str, Work]:
    """Each of a call, which a tick makes if it is asked for."""
    c, width = config.leaves, config.language.hidden_size
    outputs = {"position": c.position_dim, "grasp": 1, "object_pose": POSE_DIM}
    names = {"position": "position_head", "grasp": "grasp_head", "object_pose": "pose_head"}
    found = {}
    for leaf, count in outputs.items():
        shapes = {
            f"{names[leaf]}.fc1": (width, c.hidden_size),
            f"{names[leaf]}.fc2": (c.hidden_size, count),
        }
        found[leaf] = Work(layers=layers_of(shapes, 1), attention_flops=0, beside=0)
    return found | {"joints": _joints(config), "segmentation": _segmentation(config)}


def _joints(config: SGVLAConfig) -> Work:
    c, width = config.leaves, config.leaves.joint_hidden_size
    seen = len(config.pictures) * config.vision.num_patches
    rows = c.num_joints + seen
    layers = [*layers_of({"joint_head.project": (config.language.hidden_size, width)}, seen)]
    for index in range(c.joint_layers):
        shapes = transformer(f"joint_head.blocks.{index}", width, c.joint_intermediate_size)
        layers += layers_of(shapes, rows)
    layers += layers_of({"joint_head.out": (width, 1)}, c.num_joints)
    scores = attention_flops(c.joint_heads, rows, rows, width // c.joint_heads)
    return Work(
        layers=tuple(layers),
        attention_flops=scores * c.joint_layers,
        largest_scores=c.joint_heads * rows**2,
        beside=(c.num_joints + 4 * c.joint_layers + 2) * width,
    )


def _segmentation(config: SGVLAConfig) -> Work:
    """A transposed convolution makes 4 x 4 places of each, and has one bias for all of them."""
    widths, name = config.leaves.mask_widths, "segmentation_head"
    behind = (*widths[1:], 1)
    places = config.vision.num_patches // 4
    width = config.language.hidden_size
    layers = [convolution(f"{name}.halving", width, widths[0], places, size=3)]
    for number, (given, made) in enumerate(zip(widths, behind, strict=True)):
        shapes = {f"{name}.doublings.{number}": (given, 16 * made)}
        layers += layers_of(shapes, places * 4**number, has_bias=False)
    return Work(layers=tuple(layers), attention_flops=0, beside=sum(behind))
