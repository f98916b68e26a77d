"""The engines of SG-VLA: towers, projector and decoder are shared ones, those of its heads are
here.

The expert is one engine, called once a step; engines that decode tokens are those of
`models.decoded_tokens`. Each auxiliary head is an engine of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor as Array
from torch import nn
from torch.nn import functional

from models.declared import noise_shape
from models.decoded_tokens import prompt_ports, token_engines
from models.networks.engines import COEFFICIENT_ROW, EngineSpec, language_engines
from models.networks.flow_dit import euler_step
from models.networks.flow_expert import FlowExpert
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.prismatic_engines import prismatic_engines
from models.networks.token_head import TokenHead
from models.prismatic_chat import call_rows
from models.sgvla.config import SGVLAConfig
from models.sgvla.model import POSE_DIM, SGVLA
from runtime.declarations import Tensor


class EulerEngine(nn.Module):
    """One step of the sampler, its arithmetic and inpainting included.

    Of the action encoder's second layer it has the half that multiplies the action, as a matrix of
    its own: a compiler would slice the whole one in every step.
    """

    def __init__(self, head: FlowExpert, num_parts: int) -> None:
        """
        Args:
            num_parts: of the decoder.
        """
        super().__init__()
        self.head, self.num_parts = head, num_parts
        self.register_buffer("own", head.action_encoder.own.detach().contiguous())
        self.own: Array

    def forward(
        self,
        x: Array,
        mask: Array,
        cos: Array,
        sin: Array,
        step: Array,
        coefficients: Array,
        leftover: Array,
        weights: Array,
        *prompt: Array,
    ) -> Array:
        """
        Args:
            prompt: keys and values of the calls before the last one, of each part of the decoder;
                and then those of the last one.
        """
        encoder = self.head.action_encoder
        rows = functional.silu(functional.linear(encoder.layer1(x), self.own) + step)
        pairs = zip(prompt[: self.num_parts], prompt[self.num_parts :], strict=True)
        layers = [
            pieces
            for past, new in pairs
            for pieces in zip(past.unbind(-4), new.unbind(-4), strict=True)
        ]
        velocity = self.head.velocity_of_rows(encoder.layer3(rows), layers, mask, cos, sin)
        return euler_step(x, velocity, coefficients, leftover, weights)


class LeafEngine(nn.Module):
    """An auxiliary head, of what calls of the decoder put out.

    Args:
        rows: of each call, where a picture's rows begin and end.
    """

    def __init__(self, head: nn.Module, rows: Sequence[slice], *, is_probability: bool) -> None:
        super().__init__()
        self.head, self.rows, self.is_probability = head, rows, is_probability

    def forward(self, *hidden: Array) -> Array:
        kept = [call[rows] for call, rows in zip(hidden, self.rows, strict=True)]
        made: Array = self.head(torch.cat(kept))
        # Not `Sigmoid`, whose approximation in ONNX Runtime is 2e-4 off where nothing is likely.
        return 1 / (1 + torch.exp(-made)) if self.is_probability else made


def engines_of(
    model: SGVLA, slots: int, layers: LayersPerPart = WHOLE, samples: int = 1
) -> dict[str, EngineSpec]:
    """All engines by name; a trunk in several parts has one engine for each, numbered.

    Args:
        samples: chunks that are sampled at once. Of more than one, K, `x` is [K, T, A].
    """
    c = model.config
    num_calls = len(c.pictures) + 1
    per_part = layers.get("language")
    language = language_engines(model.decoder, slots, per_part, num_calls)
    head = model.action_head
    if isinstance(head, TokenHead):
        acting = token_engines(head, model.decoder, language, slots)
    else:
        acting = {"euler": _euler(head, c, slots, language, samples)}
    return {
        **prismatic_engines(model.vision_backbone, model.projector, layers),
        **language,
        **acting,
        **_leaves(model, slots),
    }


def picture_rows(c: SGVLAConfig) -> tuple[slice, ...]:
    """Of each picture's call: the prompt's first token stands in front of the first one."""
    stops = call_rows(c.pictures, c.vision.num_patches)
    return tuple(slice(stop - c.vision.num_patches, stop) for stop in stops)


def _euler(
    head: FlowExpert, c: SGVLAConfig, slots: int, language: dict[str, EngineSpec], samples: int
) -> EngineSpec:
    steps, sizes = c.chunk[0], head.config
    chunk, x = (Tensor(shape=noise_shape(c, k)) for k in (1, samples))
    rotary = Tensor(shape=(steps, sizes.head_dim))
    parts = list(language.values())
    past, new = prompt_ports(len(parts))
    ports = {
        "x": x,
        "mask": Tensor(shape=((len(c.pictures) + 1) * slots,)),
        "cos": rotary,
        "sin": rotary,
        "step": Tensor(shape=(1, sizes.hidden_size)),
        "coefficients": Tensor(shape=(COEFFICIENT_ROW,)),
        "leftover": chunk,
        "weights": Tensor(shape=(steps, 1)),
        **{port: part.inputs["past"] for port, part in zip(past, parts, strict=True)},
        **{port: part.outputs["kv"] for port, part in zip(new, parts, strict=True)},
    }
    return EngineSpec(EulerEngine(head, len(parts)), ports, {"x_next": x}, ("own",))


def _leaves(model: SGVLA, slots: int) -> dict[str, EngineSpec]:
    """By the name of what each puts out."""
    c, rows = model.config, picture_rows(model.config)
    hidden = Tensor(shape=(slots, c.language.hidden_size))
    shapes: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "position": (model.position_head, (c.leaves.position_dim,)),
        "grasp": (model.grasp_head, (1,)),
        "object_pose": (model.pose_head, (POSE_DIM,)),
        "joints": (model.joint_head, (c.leaves.num_joints,)),
        "segmentation": (model.segmentation_head, (c.mask_side, c.mask_side)),
    }
    found = {}
    for name, (head, shape) in shapes.items():
        read = leaf_pictures(c, name)
        found[name] = EngineSpec(
            LeafEngine(
                head,
                [rows[c.pictures.index(picture)] for picture in read],
                is_probability=name == "grasp",
            ),
            {f"hidden_{number}": hidden for number in range(len(read))},
            {name: Tensor(shape=shape)},
        )
    return found


def leaf_pictures(c: SGVLAConfig, leaf: str) -> tuple[str, ...]:
    """Pictures whose rows a head reads."""
    return (c.leaves.mask_view,) if leaf == "segmentation" else c.pictures
