"""AnchorVLA4D cut into engines, and the graph that joins them.

Each engine is a small module of fixed shapes around parts of the policy. The graph says which
tensor goes where; what has to be recomputed when follows from it alone. Concatenations and slices
are places in memory: image tokens are written between the text rows of the embeddings, the prefix
call's keys are the suffix call's past, and a denoise step reads its row of the modulations.
"""

from __future__ import annotations

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.anchorvla4d.engines import COEFFICIENT_ROW, engines_of
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.prompt import fixed_tokens, segments
from models.networks.engines import pixels_engine
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.scale_dp import ddim_coefficients
from models.prompt_parts import PromptParts
from models.split import (
    TOKENS,
    GraphBuilder,
    ResizeOn,
    Split,
    camera,
    check_slots,
    chunks,
    instruction,
    noise_shape,
    sampled,
    state,
)
from runtime.declarations import Input, Output
from runtime.graph import Graph
from runtime.image import ImageConfig, grid_of
from runtime.prompt import mrope_positions, num_tokens

SIMILARITY = "anchor_similarity"
"""A leaf: how like the anchor the frame is."""


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
    fixed = fixed_tokens(c, parts, grid)
    num_prefix, num_suffix = fixed.values()
    check_slots(fixed, parts, grid, slots)
    engines = engines_of(model, grid, slots, layers, samples)
    if resize_on == "engine":
        engines |= {"pixels": pixels_engine(image, (height, width), grid)}
    build = GraphBuilder(engines, image, grid)
    _texts(build, parts, num_tokens([merged]), slots, c.language.hidden_size)
    build.places("prefix", prefix, c.language)
    build.places(
        "suffix",
        suffix,
        c.language,
        start=mrope_positions(prefix)[1],
        num_past=num_prefix,
        ids="instruction",
    )
    build.no_past()
    coefficients = ddim_coefficients(c.head)
    build.tensor("coefficients", (len(coefficients), COEFFICIENT_ROW))
    build.call("constant", {}, {"value": "coefficients"}, {"values": coefficients.tolist()})
    _pictures(build)
    _condition(build, c, num_prefix, num_suffix, slots)
    _denoising(build, c, samples)
    graph = Graph(
        inputs=declare_inputs(c, parts, (height, width, 3), slots - num_suffix, samples),
        outputs=chunks(c.normalization, samples, {SIMILARITY: Output(axes=("anchor",))}),
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
    latch = Input(
        kind="image", source="latch", of="frame", shape=shape, dtype="uint8", pace="episode",
        similarity=SIMILARITY,
    )  # fmt: skip
    return {
        "anchor": latch,
        "instruction": instruction(parts, max_tail),
        "frame": camera(shape),
        "state": state(config),
        **sampled(config, samples),
    }


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


def _pictures(build: GraphBuilder) -> None:
    """The anchor with its prefix, then the frame with the instruction, then both related."""
    _image(build, "anchor")
    build.language("prefix", "empty_past")

    _image(build, "frame")
    build.call("embed", {"ids": "instruction"}, {"embeddings": "suffix_tail"}, {"table": TOKENS})
    build.language("suffix", "prefix_kv")
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
    build.policy_state(c.normalization)
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
    build.tensor(SIMILARITY, (1,))
    build.call("cosine", {"a": "anchor_tokens", "b": "frame_tokens"}, {"value": SIMILARITY})
