"""AnchorVLA4D cut into engines, and the graph that joins them.

Each engine is a small module of fixed shapes around parts of the policy. The graph says which
tensor goes where; what has to be recomputed when follows from it alone. Concatenations and slices
are places in memory: image tokens are written between the text rows of the embeddings, the prefix
call's keys are the suffix call's past, and a denoise step reads its row of the modulations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import msgspec

from models.anchorvla4d.config import PolicyConfig
from models.anchorvla4d.engines import (
    COEFFICIENT_ROW,
    EngineSpec,
    engines_of,
    pixels_engine,
)
from models.anchorvla4d.head import ddim_coefficients
from models.anchorvla4d.parts import WHOLE, LayersPerPart
from models.anchorvla4d.policy import AnchorVLA4D, PromptParts
from runtime.declarations import Input, Output, Prompt, Tensor
from runtime.graph import Graph, Stage, part_name, whole_of
from runtime.image import ImageConfig, grid_of
from runtime.prompt import Segment, mrope_positions, num_tokens

ACTIONS, SIMILARITY, SPREAD = "actions", "anchor_similarity", "spread"
"""Outputs of the graph; the last where several chunks are sampled."""
DENOISED = "denoised_actions"
"""What the last denoise step makes, in robot units: a chunk, or several of which one is chosen."""
ResizeOn = Literal["host", "engine"]
TOKENS, TOKENIZER = "tokens", "tokenizer.json"
"""The table of token embeddings, and the file that makes ids of a text."""
FOLDED = ("action_head.t_embedder.*",)
"""Layers, as patterns of `fnmatch`, that no engine holds: their results are constants of one."""


@dataclass(frozen=True, slots=True)
class Split:
    """A policy as engines and a graph."""

    engines: Mapping[str, EngineSpec]
    graph: Graph
    slots: int
    """Tokens per call of the language engine, S; the prefix is the suffix's past, so P = S."""
    num_prefix: int
    """Tokens of the prefix that are not padding."""
    num_suffix: int
    """Tokens of the suffix before the tail."""

    @property
    def max_tail(self) -> int:
        """Tokens that the tail may take."""
        return self.slots - self.num_suffix

    def padded_share(self, tail: int) -> dict[str, float]:
        """Share of padding per language call, for a tail of so many tokens."""
        used = {"prefix": self.num_prefix, "suffix": self.num_suffix + tail}
        return {call: round(1 - n / self.slots, 4) for call, n in used.items()}


def split(
    model: AnchorVLA4D,
    parts: PromptParts,
    image: ImageConfig,
    image_size: tuple[int, int],
    slots: int,
    layers: LayersPerPart = WHOLE,
    *,
    resize_on: ResizeOn = "host",
    samples: int = 1,
) -> Split:
    """Cut `model` for the images of one camera and language calls of `slots` tokens.

    Args:
        model: the policy.
        parts: its prompt.
        image: how an image is prepared.
        image_size: width and height of the camera's images.
        slots: tokens per call of the language engine.
        layers: that one engine holds at most.
        resize_on: where images become patches: in a host function, or in an engine of their own.
        samples: chunks per tick, each from a noise of its own; the medoid is carried out.

    Raises:
        ValueError: the prompt around the images does not fit `slots`, or no engine can resize
            them exactly.
    """
    c = model.config
    width, height = image_size
    grid = grid_of(height, width, image)
    merged, prefix, suffix = _segments(parts, grid)
    num_prefix, num_suffix = num_tokens(prefix), num_tokens(suffix)
    shortest_tail = len(parts.end_ids) + 1
    if max(num_prefix, num_suffix + shortest_tail) > slots:
        raise ValueError(
            f"the prompt takes {num_prefix} prefix and more than {num_suffix + shortest_tail} "
            f"suffix tokens at {grid[0]}x{grid[1]} patches, but --tokens is {slots}: raise it"
        )
    engines = engines_of(model, grid, slots, layers, samples)
    if resize_on == "engine":
        engines |= {"pixels": pixels_engine(image, (height, width), grid)}
    build = _GraphBuilder(engines, {"grid": list(grid), "image": msgspec.to_builtins(image)})
    _texts(build, parts, num_tokens([merged]), slots, c.language.hidden_size)
    _places(build, c, prefix, suffix)
    _constants(build, c)
    _pictures(build)
    _condition(build, c, num_prefix, num_suffix, slots)
    _denoising(build, c, samples)
    graph = Graph(
        inputs=declare_inputs(c, parts, (height, width, 3), slots - num_suffix, samples),
        outputs=_outputs(c, samples),
        tensors=build.tensors,
        stages=tuple(build.stages),
    )
    return Split(engines, graph, slots, num_prefix, num_suffix)


def declare_inputs(
    c: PolicyConfig,
    parts: PromptParts,
    shape: tuple[int, int, int],
    max_tail: int,
    samples: int = 1,
) -> dict[str, Input]:
    """What the policy sees, is told and starts from."""
    camera = partial(Input, kind="image", shape=shape, dtype="uint8")
    num_actions, width = c.head.chunk_shape()
    noises = c.head.chunk_shape(samples)
    units = set(c.normalization.state_units)
    prompt = Prompt(tokenizer=TOKENIZER, template=parts.tail, end_ids=tuple(parts.end_ids))
    return {
        "anchor": camera( source="latch", of="frame", pace="episode", similarity=SIMILARITY
        ),
        "instruction": Input(
            kind="text", source="operator", shape=(max_tail,), dtype="int64", pace="event",
            prompt=prompt,
        ),
        "frame": camera( source="robot", pace="tick"),
        "state": Input(
            kind="vector", source="robot", shape=(c.head.state_dim,), dtype="float32",
            pace="tick", unit=units.pop() if len(units) == 1 else "",
        ),
        "noise": Input(kind="noise", source="drawn", shape=noises, dtype="float32", pace="tick"),
        "leftover": Input(
            kind="leftover", source="loop", shape=(num_actions, 1 + width), dtype="float32",
            pace="tick",
        ),
    }  # fmt: skip


def _outputs(c: PolicyConfig, samples: int) -> dict[str, Output]:
    """The chunk, and how like the anchor the frame is; of several, all, and how far apart."""
    units = tuple(c.normalization.action_units)
    outputs = {
        ACTIONS: Output(
            axes=("step", "action"),
            units=units,
            statistics="action",
            spread=SPREAD if samples > 1 else "",
        ),
        SIMILARITY: Output(axes=("anchor",)),
    }
    if samples > 1:
        outputs[SPREAD] = Output()
        outputs[DENOISED] = Output(
            axes=("sample", "step", "action"), units=units, statistics="action"
        )
    return outputs


def num_prompt_tokens(parts: PromptParts, grid: tuple[int, int]) -> tuple[int, int]:
    """Tokens of the prefix, and of the suffix before the tail."""
    _, prefix, suffix = _segments(parts, grid)
    return num_tokens(prefix), num_tokens(suffix)


def _segments(
    parts: PromptParts, grid: tuple[int, int]
) -> tuple[Segment, list[Segment], list[Segment]]:
    """An image's, the prefix's, and the suffix's before the tail."""
    image: Segment = (grid[0] // 2, grid[1] // 2)
    return (
        image,
        [len(parts.head), image, len(parts.anchor_end)],
        [len(parts.middle), image],
    )


def _texts(
    build: _GraphBuilder, parts: PromptParts, image_rows: int, slots: int, hidden_size: int
) -> None:
    """Embeddings of both calls, and the text around the images, which never changes."""
    build.tensor("prefix_embeddings", (slots, hidden_size))
    build.rows("prefix_head", "prefix_embeddings", 0, len(parts.head))
    build.rows("anchor_tokens", "prefix_embeddings", len(parts.head), image_rows)
    build.rows("prefix_tail", "prefix_embeddings", len(parts.head) + image_rows)
    build.tensor("suffix_embeddings", (slots, hidden_size))
    build.rows("suffix_head", "suffix_embeddings", 0, len(parts.middle))
    build.rows("frame_tokens", "suffix_embeddings", len(parts.middle), image_rows)
    build.rows("suffix_tail", "suffix_embeddings", len(parts.middle) + image_rows)
    build.embed("prefix_head", parts.head)
    build.embed("prefix_tail", parts.anchor_end)
    build.embed("suffix_head", parts.middle)


def _places(
    build: _GraphBuilder, c: PolicyConfig, prefix: Sequence[Segment], suffix: Sequence[Segment]
) -> None:
    """Masks and rotary angles of both calls."""
    num_prefix, num_suffix = num_tokens(prefix), num_tokens(suffix)
    after_prefix = mrope_positions(prefix)[1]
    rotary = {"theta": c.language.rope_theta, "sections": list(c.language.mrope_section)}
    language = build.parts("language")[0].inputs
    for call, places, start in (("prefix", prefix, 0), ("suffix", suffix, after_prefix)):
        for port in ("cos", "sin", "mask"):
            build.tensor(f"{call}_{port}", language[port].shape)
        is_prefix = call == "prefix"
        ids = {} if is_prefix else {"ids": "instruction"}
        build.call(
            "rotary",
            ids,
            {"cos": f"{call}_cos", "sin": f"{call}_sin"},
            {"segments": [list(s) if isinstance(s, tuple) else s for s in places], "start": start}
            | rotary,
            name=f"{call}_rotary",
        )
        build.call(
            "mask",
            ids,
            {"mask": f"{call}_mask"},
            {"num_past": 0, "num_new": num_prefix}
            if is_prefix
            else {"num_past": num_prefix, "num_new": num_suffix},
        )


def _constants(build: _GraphBuilder, c: PolicyConfig) -> None:
    """No past before the prefix, and the sampler's numbers."""
    pasts = [part.inputs["past"] for part in build.parts("language")]
    build.tensor("empty_past", pasts[0].shape)
    if len(pasts) > 1:  # zeros are zeros: the first part has the most layers, the others read less
        for i, past in enumerate(pasts):
            build.tensors[part_name("empty_past", i, len(pasts))] = Tensor(
                shape=past.shape, part_of=("empty_past", 0)
            )
    build.call("constant", {}, {"value": "empty_past"}, {"values": []})
    coefficients = ddim_coefficients(c.head)
    build.tensor("coefficients", (len(coefficients), COEFFICIENT_ROW))
    build.call("constant", {}, {"value": "coefficients"}, {"values": coefficients.tolist()})


def _pictures(build: _GraphBuilder) -> None:
    """The anchor with its prefix, then the frame with the instruction, then both related."""
    build.image("anchor")
    build.chain(
        "language",
        "prefix",
        {"embeddings": "prefix_embeddings", "past": "empty_past"}
        | {port: f"prefix_{port}" for port in ("mask", "cos", "sin")},
        {"kv": "prefix_kv", "hidden": "prefix_hidden"},
        own=("past", "kv"),
    )

    build.image("frame")
    build.call("embed", {"ids": "instruction"}, {"embeddings": "suffix_tail"}, {"table": TOKENS})
    build.chain(
        "language",
        "suffix",
        {"embeddings": "suffix_embeddings", "past": "prefix_kv"}
        | {port: f"suffix_{port}" for port in ("mask", "cos", "sin")},
        {"kv": "suffix_kv", "hidden": "suffix_hidden"},
        own=("past", "kv"),
    )
    _spatial(build)


def _spatial(build: _GraphBuilder) -> None:
    """Both views related. Parts of the trunk write final tokens and taps each into its place."""
    outputs = {"tokens": "spatial_tokens"}
    parts = build.parts("spatial")
    if len(parts) > 1:
        shape = build.engines["condition"].inputs["spatial"].shape
        build.tensor("spatial_tokens", shape)
        names = ["tokens", *(p for part in parts for p in part.outputs if p.startswith("tap_"))]
        outputs = {port: f"spatial_{port.replace('tokens', 'final')}" for port in names}
        for place, tensor in enumerate(outputs.values()):
            count = shape[0] // len(names)
            build.rows(tensor, "spatial_tokens", place * count, count)
    build.chain("spatial", "spatial", {"anchor": "anchor_view", "frame": "frame_view"}, outputs)


def _condition(
    build: _GraphBuilder, c: PolicyConfig, num_prefix: int, num_suffix: int, slots: int
) -> None:
    """What the head is conditioned on."""
    pooling = build.engines["condition"].inputs["pooling"].shape
    build.tensor("pooling", pooling)
    build.call(
        "pooling",
        {"ids": "instruction"},
        {"weights": "pooling"},
        {
            "num_spatial": pooling[1] - 2 * slots,
            "num_prefix": num_prefix,
            "num_suffix": num_suffix,
        },
    )
    build.tensor("policy_state", (c.head.state_dim,))
    build.call(
        "normalize", {"value": "state"}, {"value": "policy_state"},
        _scaling("state", c.normalization.state, c.normalization.state_units),
    )  # fmt: skip
    build.engine(
        "condition",
        "condition",
        {
            "pooling": "pooling",
            "spatial": "spatial_tokens",
            "prefix": "prefix_hidden",
            "suffix": "suffix_hidden",
            "state": "policy_state",
        },
        {"modulations": "modulations"},
    )


def _denoising(build: _GraphBuilder, c: PolicyConfig, samples: int) -> None:
    """From noise to actions in robot units, along what is left of the last chunk; and how like the
    anchor the frame is."""
    chunk, denoised = c.head.chunk_shape(), c.head.chunk_shape(samples)
    scaling = _scaling("action", c.normalization.action, c.normalization.action_units)
    build.tensor("x_0", denoised)
    build.call("copy", {"value": "noise"}, {"value": "x_0"})
    build.tensor("leftover_actions", chunk)
    build.tensor("leftover_weights", (chunk[0], 1))
    build.call(
        "leftover",
        {"leftover": "leftover"},
        {"actions": "leftover_actions", "weights": "leftover_weights"},
        scaling,
    )
    for k in range(c.head.num_inference_timesteps):
        build.slice(f"modulation_{k}", "modulations", k)
        build.slice(f"coefficients_{k}", "coefficients", k)
        build.engine(
            "denoise",
            f"denoise_{k}",
            {
                "x": f"x_{k}",
                "modulation": f"modulation_{k}",
                "coefficients": f"coefficients_{k}",
                "leftover": "leftover_actions",
                "weights": "leftover_weights",
            },
            {"x_next": f"x_{k + 1}"},
        )
    build.tensor(DENOISED, denoised)
    last = f"x_{c.head.num_inference_timesteps}"
    build.call("unnormalize", {"value": last}, {"value": DENOISED}, scaling)
    chosen = DENOISED
    if samples > 1:
        chosen = "chosen_actions"
        build.tensor(chosen, chunk)
        build.tensor(SPREAD, (1,))
        build.call("medoid", {"samples": DENOISED}, {"actions": chosen, "spread": SPREAD}, scaling)
    build.tensor(ACTIONS, chunk)
    build.call("commit", {"denoised": chosen, "leftover": "leftover"}, {"actions": ACTIONS})
    build.tensor(SIMILARITY, (1,))
    build.call("cosine", {"a": "anchor_tokens", "b": "frame_tokens"}, {"value": SIMILARITY})


def _scaling(statistics: str, modes: Sequence[str], units: Sequence[str]) -> dict[str, Any]:
    return {"statistics": statistics, "modes": list(modes), "units": list(units)}


class _GraphBuilder:
    """Collects tensors and stages in running order."""

    def __init__(self, engines: Mapping[str, EngineSpec], patches: Mapping[str, Any]) -> None:
        self.engines = engines
        self.patches = patches
        self.tensors: dict[str, Tensor] = {}
        self.stages: list[Stage] = []

    def parts(self, network: str) -> list[EngineSpec]:
        """Its engines, in the order they are called."""
        return [spec for name, spec in self.engines.items() if whole_of(name) == network]

    def chain(
        self,
        network: str,
        name: str,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        own: Sequence[str] = (),
    ) -> None:
        """The parts of a network in turn: what one puts out as `x_next` is `x` of those behind it.

        Args:
            inputs: port -> tensor; a part takes those that it has ports for.
            outputs: likewise.
            own: ports for which each part has a tensor of its own.
        """
        parts, at_hand = self.parts(network), dict(inputs)
        for i, part in enumerate(parts):
            numbered = partial(part_name, index=i, count=len(parts))
            passed = {
                port: numbered(f"{name}_{port.removesuffix('_next')}")
                for port in part.outputs
                if port.endswith("_next")
            }
            made = {port: outputs[port] for port in part.outputs if port not in passed}
            self.engine(
                numbered(network),
                numbered(name),
                {p: numbered(at_hand[p]) if p in own else at_hand[p] for p in part.inputs},
                passed | {p: numbered(t) if p in own else t for p, t in made.items()},
            )
            at_hand |= {port.removesuffix("_next"): t for port, t in passed.items()}

    def tensor(self, name: str, shape: tuple[int, ...]) -> None:
        self.tensors[name] = Tensor(shape=shape)

    def rows(self, name: str, parent: str, start: int, count: int | None = None) -> None:
        """Rows of a matrix, to the end if `count` is left out."""
        total, width = self.tensors[parent].shape
        count = total - start if count is None else count
        self.tensors[name] = Tensor(shape=(count, width), part_of=(parent, start * width))

    def slice(self, name: str, parent: str, index: int) -> None:
        """One entry along the first axis."""
        shape = self.tensors[parent].shape[1:]
        size = Tensor(shape=shape).size
        self.tensors[name] = Tensor(shape=shape, part_of=(parent, index * size))

    def image(self, name: str) -> None:
        """Patches of an image, their vision tokens and their projection."""
        patches, pixels = f"{name}_patches", f"{name}_pixels"
        if "pixels" in self.engines:
            self.tensors[pixels] = self.engines["pixels"].inputs["image"]
            self.call("copy", {"value": name}, {"value": pixels})
            self.engine("pixels", patches, {"image": pixels}, {"patches": patches})
        else:
            self.tensor(patches, self.parts("vision")[0].inputs["patches"].shape)
            self.call("patches", {"image": name}, {"patches": patches}, self.patches)
        self.chain("vision", f"{name}_vision", {"patches": patches}, {"tokens": f"{name}_tokens"})
        self.engine("project", f"{name}_project", {"patches": patches}, {"view": f"{name}_view"})

    def embed(self, target: str, ids: Sequence[int]) -> None:
        """Rows of constant text."""
        self.call("embed", {}, {"embeddings": target}, {"table": TOKENS, "ids": list(ids)})

    def call(
        self,
        function: str,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        params: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        """A host function, by default named after what it writes."""
        name = name or next(iter(outputs.values()))
        self.stages.append(
            Stage(name=name, function=function, inputs=inputs, outputs=outputs, params=params or {})
        )

    def engine(
        self, engine: str, name: str, inputs: Mapping[str, str], outputs: Mapping[str, str]
    ) -> None:
        for port, tensor in outputs.items():
            spec = self.engines[engine].outputs[port]
            self.tensors.setdefault(tensor, spec)
        self.stages.append(Stage(name=name, engine=engine, inputs=inputs, outputs=outputs))
