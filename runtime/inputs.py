"""Values for a policy's inputs: checked whole and copied before anything is set, or drawn.

Nothing of the caller's is kept, and whatever cannot be taken is an `ObservationError` that says
what was given and what is wanted. Arrays that are taken cannot be written any more.

H, W = image height and width, S = vector dimension, n = entry of a ring or a video.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import prompt
from .declarations import MADE, Input, Prompt, Source, from_source
from .errors import ObservationError
from .functions.calls import constants
from .functions.tokens import Patches
from .graph import Graph
from .image import check_grid, check_image

Take = Callable[[Any], Any]
_PHILOX, _DRAWING = np.random.Philox(key=0), threading.Lock()
CAMERAS = ("image", "depth", "video")
"""Kinds of what a camera gives."""


def takers(graph: Graph, tokenizers: Mapping[str, Any]) -> dict[str, Take]:
    """For every input: what checks and copies a value of it.

    Args:
        graph: whose inputs they are.
        tokenizers: a `tokenizers.Tokenizer` per file that a text names.
    """
    return {
        name: _taker(name, declared, graph, tokenizers) for name, declared in graph.inputs.items()
    }


def draw_noise(seed: int, tick: int, shape: tuple[int, ...], stream: int = 0) -> NDArray[Any]:
    """Standard normal noise, float32 of `shape`, of one tick, without any history.

    Philox counter generator (Salmon et al., 2011) keyed by the seed, its counter placed by the
    tick; Box-Muller on its raw words, so that the numbers do not depend on numpy's version.

    Args:
        seed: of the episode, in [0, 2**64).
        tick: of the episode.
        shape: of the noise. One of rank 3, [K, T, A], is K noises of rank 2, and the first of
            them is that of a policy that draws only one.
        stream: which of the inputs that are drawn, from 0.
    """
    if len(shape) == 3:
        return np.stack([_noise(seed, (0, k, stream, tick), shape[1:]) for k in range(shape[0])])
    return _noise(seed, (0, 0, stream, tick), shape)


def _noise(seed: int, place: tuple[int, int, int, int], shape: tuple[int, ...]) -> NDArray[Any]:
    size = math.prod(shape)
    count = -(-size // 2)
    raw = _draw(seed, place, 2 * count)
    raw >>= np.uint64(11)
    uniform = raw.astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-53
    radius, angle = uniform[:count], uniform[count:]
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle *= 2.0 * np.pi
    normal = np.empty((2, count))
    np.cos(angle, out=normal[0])
    np.sin(angle, out=normal[1])
    normal *= radius
    noise: NDArray[np.float32] = normal.ravel()[:size].astype(np.float32)
    return noise.reshape(shape)


def _draw(key: int, counter: tuple[int, int, int, int], count: int) -> NDArray[np.uint64]:
    """Raw words of the generator, from there on. A new generator would ask the system for entropy
    first, which takes longer than the drawing."""
    words = np.array(counter, np.uint64), np.array([key, 0], np.uint64)
    with _DRAWING:
        _PHILOX.state = {
            "bit_generator": "Philox",
            "state": {"counter": words[0], "key": words[1]},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,  # nothing is left in it
            "has_uint32": 0,
            "uinteger": 0,
        }
        raw: NDArray[np.uint64] = _PHILOX.random_raw(count)
    return raw


def no_leftover(declared: Input) -> NDArray[np.float32]:
    """The value of a leftover where nothing is left: [T, 1 + A] of zeros."""
    return _frozen(np.zeros(declared.shape, np.float32))


class History:
    """What the robot showed in the last steps, for delayed inputs to show again. It copies nothing.

    Delays of one input share what is kept of it, which is as old as the longest of them.
    """

    def __init__(self, inputs: Mapping[str, Input]) -> None:
        self._delays = from_source(inputs, "delay")
        self.past: dict[str, tuple[Any, ...]] = {d.of: () for d in self._delays.values()}
        """Per input that is delayed, its values, the newest last."""

    def keep(self, values: Mapping[str, Any]) -> None:
        """One step more."""
        for name, past in self.past.items():
            steps = max(d.steps for d in self._delays.values() if d.of == name)
            self.past[name] = (*past, values[name])[-steps - 1 :]

    def delayed(self) -> Iterator[tuple[str, Any]]:
        """Every delayed input with its value; the first stands for those before it."""
        for name, delay in self._delays.items():
            past = self.past[delay.of]
            yield name, past[-min(delay.steps + 1, len(past))]


def push(ring: NDArray[Any] | None, value: NDArray[Any], length: int) -> NDArray[Any]:
    """A ring [n, ...] with one more value; the first value stands for all before it."""
    before = np.repeat(value[None], length, axis=0) if ring is None else ring
    return _frozen(np.concatenate([before[1:], value[None]]))


def check_names(values: Mapping[str, Any], graph: Graph, sources: tuple[Source, ...]) -> None:
    """Refuse names that are no input, or whose value comes from elsewhere.

    Raises:
        ObservationError: says which inputs there are, or where the value belongs.
    """
    taken = from_source(graph.inputs, *sources)
    for name in values:
        if name not in graph.inputs:
            raise ObservationError(
                f"this policy has no input {name!r}; what may be given here is: "
                f"{', '.join(taken) or 'nothing'}"
            )
        source = graph.inputs[name].source
        if source not in sources:
            where = {
                "robot": "it belongs into every observation: act({...})",
                "drawn": "it is drawn from the seed, or belongs into an observation: act({...})",
                "loop": "it belongs into an observation: act({...})",
                **dict.fromkeys(MADE, f"it keeps {graph.inputs[name].of!r} by itself"),
            }.get(source, f"give it at the start or with give({name}=...)")
            raise ObservationError(f"{name!r} cannot be given here: {where}")


def take_recalled(
    values: Mapping[str, Any], graph: Graph, take: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """What delayed inputs and memories are to show, checked and copied.

    Args:
        take: checks and copies a value of an input.

    Raises:
        ObservationError: a value cannot be taken, or is of another input.
    """
    check_names(values, graph, ("delay", "memory"))
    inputs = graph.inputs
    return {
        name: take(name, value)
        if np.any(value)  # a slot that shows nothing is no picture
        else np.zeros(inputs[name].shape, inputs[name].dtype)
        for name, value in values.items()
    }


def take_seed(seed: int) -> int:
    """A seed of the noise generator, which has a key of 64 bits."""
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ObservationError(f"seed must be an integer in [0, 2**64), got {seed!r}")
    return int(seed)


def _taker(name: str, declared: Input, graph: Graph, tokenizers: Mapping[str, Any]) -> Take:
    if declared.prompt is not None:
        spec, limit = declared.prompt, declared.shape[0]
        tokenizer = tokenizers[spec.tokenizer]
        return lambda text: _take_text(text, name, limit, tokenizer, spec)
    if declared.kind == "image":
        grids = _grids(name, graph)
        return lambda image: _take_image(image, name, declared.shape, grids)
    if declared.kind == "video":
        return lambda video: _take_video(video, name, declared.shape)
    if declared.kind == "leftover":
        return lambda leftover: _take_leftover(leftover, name, declared.shape)
    if declared.kind == "noise":
        return lambda noise: _take_noise(noise, name, declared.shape)
    is_depth = declared.kind == "depth"
    return lambda vector: _take_vector(vector, name, declared.shape, is_depth=is_depth)


def _grids(name: str, graph: Graph) -> list[Patches] | None:
    """What cuts the image into patches, also as a latch; None if something takes it as it is."""
    names = {name} | {n for n, i in graph.inputs.items() if i.of == name}
    if any(graph.inputs[n].source == "ring" for n in names):
        return None
    found: list[Patches] = []
    for stage in graph.stages:
        if not names & set(stage.inputs.values()):
            continue
        params = constants(stage)
        if not isinstance(params, Patches):
            return None
        if params not in found:
            found.append(params)
    return found


def _take_image(
    image: NDArray[np.uint8], name: str, shape: tuple[int, ...], grids: list[Patches] | None
) -> NDArray[np.uint8]:
    """An image uint8 [H, W, 3] that gives the exported grid of patches."""
    check_image(image, what=name)
    if grids is None and image.shape != shape:
        raise ObservationError(
            f"{name} must be {list(shape)} as it was exported, got {list(image.shape)}; resize "
            "the camera image, or export again with the camera's size"
        )
    for params in grids or ():
        check_grid(image, params.image, params.grid)
    return _frozen(image.copy())


def _take_video(video: NDArray[np.uint8], name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Pictures uint8 [n, H, W, 3]."""
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.shape != shape:
        got = f"{video.dtype} {list(video.shape)}" if isinstance(video, np.ndarray) else type(video)
        raise ObservationError(f"{name} must be uint8 {list(shape)}, got {got}")
    for number, image in enumerate(video):
        check_image(image, what=f"{name}[{number}]")
    return _frozen(video.copy())


def _take_vector(
    vector: NDArray[np.float32], name: str, shape: tuple[int, ...], *, is_depth: bool
) -> NDArray[np.float32]:
    """A vector [S] in robot units, or a depth map [H, W] in metres with 0 where nothing was
    measured, as float32."""
    wanted = list(shape)
    try:
        given = np.asarray(vector)
    except ValueError as error:  # rows of unlike lengths
        raise ObservationError(f"{name} must be {wanted} numbers: {error}") from None
    if given.dtype.kind not in "fiu":
        raise ObservationError(
            f"{name} must be {wanted} numbers, got {type(vector).__name__} of {given.dtype}"
        )
    if given.shape != shape:
        raise ObservationError(f"{name} must be {wanted}, got {list(given.shape)}")
    if is_depth and given.dtype.kind != "f":
        raise ObservationError(
            f"{name} must be metres in floating point, got {given.dtype}, as depth cameras count "
            "their units: multiply by one, 0.001 for millimetres"
        )
    taken = _float32(given)
    if not np.isfinite(taken).all():
        seen = "" if is_depth else f": {taken.tolist()}"
        raise ObservationError(f"{name} holds NaN or infinity{seen}")
    if is_depth and taken.min() < 0:
        raise ObservationError(f"{name} holds {taken.min()} m, a depth is at least 0")
    return _frozen(taken)


def _take_noise(
    noise: NDArray[np.float32], name: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Noise as float32."""
    if not isinstance(noise, np.ndarray) or noise.dtype.kind != "f":
        kind = noise.dtype if isinstance(noise, np.ndarray) else type(noise).__name__
        raise ObservationError(f"{name} must be a numpy array of floats {list(shape)}, got {kind}")
    if noise.shape != shape:
        raise ObservationError(f"{name} must be {list(shape)}, got {list(noise.shape)}")
    result = _float32(noise)
    if not np.isfinite(result).all():
        raise ObservationError(f"{name} must be finite in float32; it holds NaN, infinity or more")
    return _frozen(result)


def _take_leftover(
    leftover: NDArray[np.float32], name: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Weights and actions [T, 1 + A] as float32."""
    taken = _take_vector(leftover, name, shape, is_depth=False)
    if not ((taken[:, 0] >= 0) & (taken[:, 0] <= 1)).all():
        raise ObservationError(
            f"the weights of {name}, its first column, must be in [0, 1], got "
            f"{taken[:, 0].tolist()}"
        )
    return taken


def _take_text(text: str, name: str, limit: int, tokenizer: Any, spec: Prompt) -> tuple[int, ...]:
    """Token ids of a text in its frame."""
    ids = prompt.encode_tail(
        tokenizer, spec.template, spec.end_ids, text, lowercase=spec.lowercase, what=name
    )
    if len(ids) > limit:
        raise ObservationError(
            f"the {name} with its frame takes {len(ids)} tokens, this bundle was exported for at "
            f"most {limit}: shorten it, or export again with more --tokens"
        )
    return ids


def _float32(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """A copy; what float32 cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(numbers, np.float32)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
