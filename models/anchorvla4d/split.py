"""AnchorVLA4D cut into engines, and the graph that joins them.

Each engine is a small module of fixed shapes around parts of the policy. The graph says which
tensor goes where; what has to be recomputed when follows from it alone. Concatenations and slices
are places in memory: image tokens are written between the text rows of the embeddings, the prefix
call's keys are the suffix call's past, and a denoise step reads its row of the modulations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.anchorvla4d.engines import COEFFICIENT_ROW, engines_of
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.prompt import fixed_tokens, segments
from models.networks.engines import pixels_engine
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.scale_dp import ddim_coefficients
from models.prompt_parts import PromptParts
from models.split import ACTIONS, DENOISED, TOKENIZER, TOKENS, GraphBuilder, ResizeOn, Split
from runtime.declarations import Input, Output, Prompt, Tensor
from runtime.graph import Graph, part_name
from runtime.image import ImageConfig, grid_of
from runtime.prompt import Segment, mrope_positions, num_tokens

SIMILARITY, SPREAD = "anchor_similarity", "spread"
"""Outputs of the graph; the second where several chunks are sampled."""


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
    merged, prefix, suffix = segments(parts, grid)
    fixed = fixed_tokens(parts, grid)
    num_prefix, num_suffix = fixed.values()
    shortest_tail = len(parts.end_ids) + 1
    if max(num_prefix, num_suffix + shortest_tail) > slots:
        raise ValueError(
            f"the prompt takes {num_prefix} prefix and more than {num_suffix + shortest_tail} "
            f"suffix tokens at {grid[0]}x{grid[1]} patches, but --tokens is {slots}: raise it"
        )
    engines = engines_of(model, grid, slots, layers, samples)
    if resize_on == "engine":
        engines |= {"pixels": pixels_engine(image, (height, width), grid)}
    build = GraphBuilder(engines, image, grid)
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
    return Split(
        engines=engines,
        graph=graph,
        tables={TOKENS: model.vlm.model.embed_tokens.weight},
        slots=slots,
        fixed=fixed,
    )


def declare_inputs(
    config: AnchorVLA4DConfig,
    parts: PromptParts,
    shape: tuple[int, int, int],
    max_tail: int,
    samples: int = 1,
) -> dict[str, Input]:
    """What the policy sees, is told and starts from."""
    camera = partial(Input, kind="image", shape=shape, dtype="uint8")
    num_actions, width = config.head.chunk_shape()
    noises = config.head.chunk_shape(samples)
    units = set(config.normalization.state_units)
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
            kind="vector", source="robot", shape=(config.head.state_dim,), dtype="float32",
            pace="tick", unit=units.pop() if len(units) == 1 else "",
        ),
        "noise": Input(kind="noise", source="drawn", shape=noises, dtype="float32", pace="tick"),
        "leftover": Input(
            kind="leftover", source="loop", shape=(num_actions, 1 + width), dtype="float32",
            pace="tick",
        ),
    }  # fmt: skip


def _outputs(c: AnchorVLA4DConfig, samples: int) -> dict[str, Output]:
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


def _texts(
    build: GraphBuilder, parts: PromptParts, image_rows: int, slots: int, hidden_size: int
) -> None:
    """Embeddings of both calls, and the text around the images, which never changes."""
    build.tensor("prefix_embeddings", (slots, hidden_size))
    build.rows("prefix_head", "prefix_embeddings", 0, len(parts.before[0]))
    build.rows("anchor_tokens", "prefix_embeddings", len(parts.before[0]), image_rows)
    build.rows("prefix_tail", "prefix_embeddings", len(parts.before[0]) + image_rows)
    build.tensor("suffix_embeddings", (slots, hidden_size))
    build.rows("suffix_head", "suffix_embeddings", 0, len(parts.before[1]))
    build.rows("frame_tokens", "suffix_embeddings", len(parts.before[1]), image_rows)
    build.rows("suffix_tail", "suffix_embeddings", len(parts.before[1]) + image_rows)
    build.embed("prefix_head", parts.before[0])
    build.embed("prefix_tail", parts.image_end)
    build.embed("suffix_head", parts.before[1])


def _places(
    build: GraphBuilder, c: AnchorVLA4DConfig, prefix: Sequence[Segment], suffix: Sequence[Segment]
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


def _constants(build: GraphBuilder, c: AnchorVLA4DConfig) -> None:
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


def _pictures(build: GraphBuilder) -> None:
    """The anchor with its prefix, then the frame with the instruction, then both related."""
    _image(build, "anchor")
    build.chain(
        "language",
        "prefix",
        {"embeddings": "prefix_embeddings", "past": "empty_past"}
        | {port: f"prefix_{port}" for port in ("mask", "cos", "sin")},
        {"kv": "prefix_kv", "hidden": "prefix_hidden"},
        own=("past", "kv"),
    )

    _image(build, "frame")
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


def _image(build: GraphBuilder, name: str) -> None:
    """Its patches, its tokens, and the projection that the spatial encoder keeps of it."""
    build.image(name)
    build.engine(
        "project", f"{name}_project", {"patches": f"{name}_patches"}, {"view": f"{name}_view"}
    )


def _spatial(build: GraphBuilder) -> None:
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
    build: GraphBuilder, c: AnchorVLA4DConfig, num_prefix: int, num_suffix: int, slots: int
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


def _denoising(build: GraphBuilder, c: AnchorVLA4DConfig, samples: int) -> None:
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
