"""AnchorVLA4D cut into engines, and the graph that joins them.

Each engine is a small module of fixed shapes around parts of the policy. The graph says which
tensor goes where; what has to be recomputed when follows from it alone. Concatenations and slices
are places in memory: image tokens are written between the text rows of the embeddings, the keys of
a prefix call are in the past of the calls behind it, and a denoise step reads its row of the
modulations.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.anchorvla4d.config import SIMILARITY, AnchorVLA4DConfig
from models.anchorvla4d.engines import engines_of
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.prompt import fixed_tokens, prefixes, segments
from models.declared import camera, chunks, instruction, noise_shape, sampled, state
from models.networks.engines import COEFFICIENT_ROW
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.readouts import engine_name, mean_of, readout_outputs
from models.networks.scale_dp import ddim_coefficients
from models.prompt_parts import PromptParts
from models.split import TOKENS, GraphBuilder, ResizeOn, Split, check_slots
from runtime.declarations import Input, Output
from runtime.image import ImageConfig, grid_of

PREFIXES = "prefixes_hidden"
"""Hidden states of the calls of several anchors, in one piece."""


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
    fixed = fixed_tokens(c, parts, grid)
    check_slots(fixed, parts, grid, slots)
    engines = engines_of(model, grid, slots, layers, samples)
    build = GraphBuilder.of(engines, image, image_size, resize_on)
    _texts(build, c, parts, grid[0] * grid[1] // 4, slots)
    pasts = build.calls(segments(c, parts, grid), c.language, "instruction")
    coefficients = ddim_coefficients(c.head)
    build.tensor("coefficients", (len(coefficients), COEFFICIENT_ROW))
    build.call("constant", {}, {"value": "coefficients"}, {"values": coefficients.tolist()})
    _pictures(build, c, pasts)
    _condition(build, c, list(fixed.values()), slots)
    _denoising(build, c, samples)
    head, image_rows = len(parts.before[-1]), grid[0] * grid[1] // 4
    _readouts(build, c, range(head, head + image_rows), slots)
    return build.split(
        inputs=declare_inputs(c, parts, (height, width, 3), slots - fixed["suffix"], samples),
        outputs=chunks(
            c.normalization,
            samples,
            {SIMILARITY.format(name): Output(axes=("anchor",)) for name in c.anchor_names}
            | readout_outputs(c.readouts),
        ),
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
    latches = {
        name: Input(
            kind="image", source="latch", of="frame", shape=shape, dtype="uint8", pace="episode",
            similarity=SIMILARITY.format(name),
        )
        for name in config.anchor_names
    }  # fmt: skip
    return {
        **latches,
        "instruction": instruction(parts, max_tail),
        "frame": camera(shape),
        "state": state(config),
        **sampled(config, samples),
    }


def _texts(
    build: GraphBuilder, c: AnchorVLA4DConfig, parts: PromptParts, image_rows: int, slots: int
) -> None:
    """Embeddings of every call, and the text around the images, which never changes."""
    calls = (*prefixes(c), "suffix")
    for call, view, before in zip(calls, c.views, parts.before, strict=True):
        rows = f"{call}_embeddings"
        build.tensor(rows, (slots, c.language.hidden_size))
        build.rows(f"{call}_head", rows, 0, len(before))
        build.rows(f"{view}_tokens", rows, len(before), image_rows)
        build.rows(f"{call}_tail", rows, len(before) + image_rows)
    for call, before in zip(calls, parts.before, strict=True):
        build.embed(f"{call}_head", before)
        if call != "suffix":
            build.embed(f"{call}_tail", parts.image_end)


def _pictures(build: GraphBuilder, c: AnchorVLA4DConfig, pasts: Sequence[str]) -> None:
    """Every anchor with its prefix, then the frame with the instruction, then all related."""
    if c.anchors > 1:  # the condition pools over all of them in one piece
        build.tensor(PREFIXES, build.engines["condition"].inputs["prefix"].shape)
    for number, (name, call) in enumerate(zip(c.anchor_names, prefixes(c), strict=True)):
        if c.anchors > 1:
            slots = build.tensors[PREFIXES].shape[0] // c.anchors
            build.rows(f"{call}_hidden", PREFIXES, number * slots, slots)
        _image(build, name)
        build.language(call, pasts[number])

    _image(build, "frame")
    build.call("embed", {"ids": "instruction"}, {"embeddings": "suffix_tail"}, {"table": TOKENS})
    build.language("suffix", pasts[-1])
    _spatial(build, c)


def _image(build: GraphBuilder, name: str) -> None:
    """Its patches, its tokens, and the projection that the spatial encoder keeps of it."""
    build.image(name)
    build.engine(
        "project", f"{name}_project", {"patches": f"{name}_patches"}, {"view": f"{name}_view"}
    )


def _spatial(build: GraphBuilder, c: AnchorVLA4DConfig) -> None:
    """All views related. Parts of the trunk write final tokens and taps each into its place."""
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
    build.chain("spatial", "spatial", {name: f"{name}_view" for name in c.views}, outputs)


def _condition(
    build: GraphBuilder, c: AnchorVLA4DConfig, num_tokens: Sequence[int], slots: int
) -> None:
    """What the head is conditioned on.

    Args:
        num_tokens: of every call, before the tail.
    """
    *num_prefix, num_suffix = num_tokens
    pooling = build.engines["condition"].inputs["pooling"].shape
    build.tensor("pooling", pooling)
    build.call(
        "pooling",
        {"ids": "instruction"},
        {"weights": "pooling"},
        {
            "num_spatial": pooling[1] - len(num_tokens) * slots,
            "num_prefix": num_prefix if c.anchors > 1 else num_prefix[0],
            "num_suffix": num_suffix,
        },
    )
    build.policy_state(c.normalization)
    build.engine(
        "condition",
        "condition",
        {
            "pooling": "pooling",
            "spatial": "spatial_tokens",
            "prefix": PREFIXES if c.anchors > 1 else "prefix_hidden",
            "suffix": "suffix_hidden",
            "state": "policy_state",
        },
        {"modulations": "modulations"},
    )


def _denoising(build: GraphBuilder, c: AnchorVLA4DConfig, samples: int) -> None:
    """From noise to actions in robot units, along what is left of the last chunk; and how like
    each anchor the frame is."""
    build.noise(c.normalization, noise_shape(c, samples))
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
    build.answer(f"x_{c.head.num_inference_timesteps}", c.normalization)
    for name in c.anchor_names:
        leaf = SIMILARITY.format(name)
        build.tensor(leaf, (1,))
        build.call("cosine", {"a": f"{name}_tokens", "b": "frame_tokens"}, {"value": leaf})


def _readouts(build: GraphBuilder, c: AnchorVLA4DConfig, frame: range, slots: int) -> None:
    """Leaves: the rows of the last call that each reads, and its engine.

    Args:
        frame: rows of its image tokens.
    """
    for readout in c.readouts:
        weights = f"{readout.name}_rows"
        build.tensor(weights, (1, slots))
        if readout.reads == "end":
            behind = {"num_new": frame.stop}
            build.call("places", {"ids": "instruction"}, {"places": weights}, behind)
        else:
            values = {"values": mean_of(frame, slots).tolist()}
            build.call("constant", {}, {"value": weights}, values)
        name = engine_name(readout)
        given = {"weights": weights, "hidden": "suffix_hidden"}
        build.engine(name, name, given, {"value": readout.name})
