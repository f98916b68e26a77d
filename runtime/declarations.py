"""What goes into a policy and what comes out, each declared once.

An input says what it is, where its value comes from and how often that changes. The anchor is
nothing special: a latch of a camera. History is a ring of an input; noise is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

from .meanings import Meaning, check_meaning

ALIGNMENT = 256
"""Bytes, of every tensor that owns memory: TensorRT needs it, and a CPU sees the same addresses."""
ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8, "uint8": 1}

Kind = Literal["image", "depth", "vector", "text", "video", "noise", "leftover"]
Source = Literal["robot", "operator", "latch", "ring", "delay", "memory", "drawn", "loop"]
Pace = Literal["load", "episode", "event", "tick", "control"]
PACES: tuple[Pace, ...] = get_args(Pace)
"""From what changes least. An input's own pace is above `load`, which is that of constants."""

_DTYPES: Mapping[str, str] = {
    "image": "uint8",
    "depth": "float32",
    "vector": "float32",
    "text": "int64",
    "noise": "float32",
    "leftover": "float32",
}
_RANKS = {"image": 3, "depth": 2, "vector": 1, "text": 1, "leftover": 2}
_SOURCES: Mapping[str, tuple[Pace, ...]] = {
    "robot": ("tick", "control"),
    "operator": ("episode", "event"),
    "latch": ("episode", "event"),
    "ring": ("tick", "control"),
    "delay": ("tick", "control"),
    "memory": ("event",),
    "drawn": ("tick", "control"),
    "loop": ("tick", "control"),
}
"""Paces that a source's values may have."""
KEEPERS: tuple[Source, ...] = ("latch", "ring", "delay", "memory")
"""Sources of inputs that keep values of another one."""
MADE: tuple[Source, ...] = ("ring", "delay")
"""Sources of inputs that nobody gives: an episode makes them of what the robot gave."""


class DeclarationError(ValueError):
    """A declaration that contradicts itself or those beside it."""


class Tensor(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A named block of memory of fixed shape."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    part_of: tuple[str, int] | None = None
    """Name of the larger tensor this one lies in and the element it starts at."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.size * ITEM_SIZES[self.dtype]


class Prompt(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a text becomes token ids: what it is put into, and what is appended."""

    tokenizer: str
    """File of the bundle."""
    template: str
    """With `{instruction}` where the text goes."""
    end_ids: tuple[int, ...]
    """Appended as they are."""
    lowercase: bool = False
    """Whether the text is put into it in small letters."""


class Memory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pictures that a policy keeps of its own events; see `runtime.functions.keyframes`."""

    slots: tuple[str, ...]
    """Inputs that show them, the oldest first; those behind the last one show nothing."""
    output: str
    """[T] how likely each step of a chunk is an event."""
    threshold: Annotated[float, Meta(gt=0, le=1)]
    least_offset: Annotated[int, Meta(ge=1)]
    nms_window: Annotated[int, Meta(ge=0)]
    cooldown: Annotated[int, Meta(ge=0)]
    num_replans: Annotated[int, Meta(ge=0)]


class Input(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One input of a policy.

    H, W = image height and width, S = vector dimension, n = entry of a ring.
    """

    kind: Kind
    source: Source
    """`robot`: in every observation. `operator`: given at the start or in between. `latch`: the
    input `of`, as it was when it was last latched, at the latest in the first tick. `ring`: the
    last n values of the input `of`, the oldest first; the first value stands for those before it.
    `delay`: the input `of` as it was `steps` steps ago, likewise; a step is an `Episode.act` or an
    `Episode.see`.
    `memory`: a picture of the input `of` from a step that the policy itself called an event, or
    nothing, which is zeros; and of how many such pictures there are.
    `drawn`: standard normal, from the seed and the tick. `loop`: what is left of the last chunk and
    how much of it counts, from whoever carries chunks out; zeros where nobody says."""
    shape: tuple[int, ...]
    """[H, W, 3] for an image as it was exported, [H, W] for depth, [S], at most so many token ids
    for a text; with n in front for a ring or a video. [T, 1 + A] for a leftover: per action its
    weight in [0, 1], and the action in robot units."""
    dtype: str
    pace: Pace
    """How often it is expected to change. No result depends on it."""
    unit: str = ""
    """Of the numbers, where they have one."""
    of: str = ""
    """The input that a latch, a ring or a delay keeps."""
    steps: int = 0
    """Of a delay: how many steps old its value is."""
    similarity: str = ""
    """Of a latch: the output that says how like it the present value is, from -1 to 1."""
    prompt: Prompt | None = None
    """Of a text."""
    memory: Memory | None = None
    """Of the number of pictures that are kept."""


class Output(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A tensor that may be asked for. The first of a graph is what a tick is for."""

    axes: tuple[str, ...] = ()
    """What each axis of the tensor counts, where that has a name."""
    units: tuple[str, ...] = ()
    """Per entry of the last axis."""
    names: tuple[str, ...] = ()
    """Likewise what it is called, where it has a name."""
    step_s: float | None = None
    """Seconds from one entry of the first axis to the next; None where nobody stated them."""
    statistics: str = ""
    """Of an embodiment: the ones that its numbers were scaled by."""
    spread: str = ""
    """Of several samples the one that is chosen: the output that says how far it is from the
    others, in policy units, where a range is 2 long."""
    every: int = 0
    """A leaf that is computed in every so many ticks; 0 if only when it is asked for."""
    means: Meaning | None = None
    """Of a leaf: what a control loop may hold it against."""


class Store(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Results that are remembered by the value of the input that they were computed from.

    All stages that a member needs depend on one input, and those of the members compute the same of
    theirs: what one member has computed of a value serves them all. No result depends on it.
    """

    entries: tuple[tuple[str, ...], ...]
    """Per result that is remembered, the tensors that hold it. No stage reads or writes them."""
    members: tuple[tuple[str, ...], ...]
    """Per member its tensors, in the order of an entry's."""


def from_source(inputs: Mapping[str, Input], *sources: Source) -> dict[str, Input]:
    """Those whose values come from there, in their order."""
    return {name: declared for name, declared in inputs.items() if declared.source in sources}


def seen_later(inputs: Mapping[str, Input]) -> frozenset[str]:
    """What the robot gives and a policy may want again after its step: it has to see every one."""
    return frozenset(i.of for i in from_source(inputs, "delay", "memory").values() if i.of)


def check_inputs(inputs: Mapping[str, Input], outputs: Mapping[str, Output]) -> None:
    """Refuse inputs that nothing could feed.

    Raises:
        DeclarationError: says which, what is wrong with it, and what would be right.
    """
    for name, declared in inputs.items():
        try:
            _check_input(declared, inputs, outputs)
        except DeclarationError as error:
            raise DeclarationError(f"input {name!r}: {error}") from None

    for name, output in outputs.items():
        if output.spread and output.spread not in outputs:
            raise DeclarationError(f"output {name!r}: its spread {output.spread!r} is no output")


def check_outputs(
    outputs: Mapping[str, Output], inputs: Mapping[str, Input], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse outputs that do not fit their tensors.

    Raises:
        DeclarationError: says which, and what is wrong with it.
    """
    if not outputs:
        raise DeclarationError("a graph needs at least one output")
    for name, declared in inputs.items():
        if declared.similarity in outputs and tensors[declared.similarity].size != 1:
            raise DeclarationError(f"input {name!r}: its similarity must be one number")
        memory = declared.memory
        if memory and memory.output in outputs and len(tensors[memory.output].shape) != 1:
            raise DeclarationError(f"input {name!r}: its output must be one number per step")
    for name, output in outputs.items():
        if output.spread in outputs and tensors[output.spread].size != 1:
            raise DeclarationError(f"output {name!r}: its spread must be one number")
        shape = tensors[name].shape
        if output.axes and len(output.axes) != len(shape):
            raise DeclarationError(f"output {name!r} is {list(shape)}, its axes are {output.axes}")
        for what in ("units", "names"):
            count = len(getattr(output, what))
            if count not in (0, shape[-1]):
                raise DeclarationError(
                    f"output {name!r} has {count} {what} for {shape[-1]} entries of its last axis"
                )
        if output.step_s is not None and not 0 < output.step_s < 3600:
            raise DeclarationError(f"output {name!r}: step_s is {output.step_s}, above 0 is wanted")
        if output.every < 0:
            raise DeclarationError(f"output {name!r}: every is {output.every}, 0 or more is wanted")
        _check_means(name, outputs, inputs, tensors[name])


def _check_means(
    name: str, outputs: Mapping[str, Output], inputs: Mapping[str, Input], tensor: Tensor
) -> None:
    output = outputs[name]
    if output.means is None:
        return
    if name == next(iter(outputs)):
        raise DeclarationError(f"output {name!r}: what a tick is for is no leaf that means a thing")
    cameras = from_source(inputs, "robot")
    try:
        check_meaning(
            output.means,
            shape=tensor.shape,
            dtype=tensor.dtype,
            units=output.units,
            cameras={n: i.shape for n, i in cameras.items() if i.kind == "image"},
        )
    except ValueError as error:
        raise DeclarationError(f"output {name!r}: {error}") from None


def _check_input(
    declared: Input, inputs: Mapping[str, Input], outputs: Mapping[str, Output]
) -> None:
    kind, source = declared.kind, declared.source
    if not declared.shape or any(side < 1 for side in declared.shape):
        raise DeclarationError(f"shape {list(declared.shape)}, every side must be at least 1")
    if declared.pace not in _SOURCES[source]:
        allowed = " or ".join(_SOURCES[source])
        raise DeclarationError(f"pace {declared.pace!r}, what comes from {source!r} has {allowed}")
    if (kind == "noise") != (source == "drawn"):
        raise DeclarationError(f"{kind} from {source!r}; noise is drawn, and nothing else is")
    if (kind == "leftover") != (source == "loop"):
        raise DeclarationError(
            f"{kind} from {source!r}; a leftover is the loop's, and nothing else is"
        )
    if (kind == "text") != (declared.prompt is not None):
        raise DeclarationError("a text needs a 'prompt', and nothing else has one")
    if declared.prompt is not None and "{instruction}" not in declared.prompt.template:
        raise DeclarationError("its prompt's template has no {instruction}, so no text would count")
    if kind == "text" and source != "operator":
        raise DeclarationError(f"a text from {source!r}; only an operator says something")
    keeps = source in KEEPERS and declared.memory is None
    if bool(declared.of) != keeps:
        raise DeclarationError(
            "a latch, a ring, a delay or a picture of a memory names the input it keeps in 'of', "
            "others do not"
        )
    if (declared.steps >= 1) != (source == "delay") or declared.steps < 0:
        raise DeclarationError(
            f"steps {declared.steps}; a delay is 1 step or more, and nothing else has them"
        )
    if declared.memory is not None:
        _check_memory(declared, inputs, outputs)
    elif source == "memory":
        counted = [n for i in inputs.values() if i.memory for n in i.memory.slots]
        if sum(inputs.get(name) is declared for name in counted) != 1:
            raise DeclarationError("one number of kept pictures must name it among its slots")
    if declared.similarity and source != "latch":
        raise DeclarationError("only a latch has a 'similarity'")
    if declared.similarity and declared.similarity not in outputs:
        raise DeclarationError(f"its similarity {declared.similarity!r} is no output")
    if keeps:
        _check_keeps(declared, inputs)
    else:
        _check_values(kind, declared.shape, declared.dtype)


def _check_memory(
    declared: Input, inputs: Mapping[str, Input], outputs: Mapping[str, Output]
) -> None:
    """The number of kept pictures, and what it is declared of."""
    memory = declared.memory
    assert memory is not None
    if (declared.kind, declared.source, declared.shape) != ("vector", "memory", (1,)):
        raise DeclarationError(
            "the number of kept pictures is a vector [1] from 'memory' with a 'memory', and "
            "nothing else has one"
        )
    slots = [inputs.get(name) for name in memory.slots]
    sources = {(slot.kind, slot.source, slot.of) if slot else None for slot in slots}
    if len(sources) != 1 or None in sources or len(set(memory.slots)) < len(slots):
        raise DeclarationError(
            f"its slots {list(memory.slots)} must be pictures that a memory keeps of one camera"
        )
    if next(iter(sources))[:2] != ("image", "memory"):  # type: ignore[index]
        raise DeclarationError(f"its slots {list(memory.slots)} are no pictures from 'memory'")
    if memory.output not in outputs or outputs[memory.output].every != 1:
        raise DeclarationError(
            f"its output {memory.output!r} must be one that is computed in every tick"
        )


def _check_keeps(declared: Input, inputs: Mapping[str, Input]) -> None:
    """What keeps another input, against that one."""
    kept = inputs.get(declared.of)
    if kept is None or kept.source != "robot":
        raise DeclarationError(f"keeps {declared.of!r}, which is no input that the robot gives")
    shape: tuple[int, ...] = kept.shape
    kind: Kind = kept.kind
    if declared.source == "ring":
        shape = (declared.shape[0], *kept.shape)
        kind = "video" if kind == "image" else kind
    if (declared.kind, declared.shape, declared.dtype) != (kind, shape, kept.dtype):
        raise DeclarationError(
            f"is {declared.kind} {declared.dtype} {list(declared.shape)}, but a {declared.source} "
            f"of {declared.of!r} is {kind} {kept.dtype} {list(shape)}"
        )


def _check_values(kind: Kind, shape: tuple[int, ...], dtype: str) -> None:
    if kind == "video":
        if len(shape) != 4:
            raise DeclarationError(f"a video is [n, H, W, 3], not {list(shape)}")
        kind, shape = "image", shape[1:]
    rank = _RANKS.get(kind, len(shape))
    if dtype != _DTYPES[kind] or len(shape) != rank or (kind == "image" and shape[2] != 3):
        axes = {"image": "[H, W, 3]", "depth": "[H, W]", "leftover": "[T, 1 + A]"}.get(kind, "[n]")
        raise DeclarationError(f"{kind} must be {_DTYPES[kind]} {axes}, not {dtype} {list(shape)}")
