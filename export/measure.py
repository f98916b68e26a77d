"""What an export is judged by: the policy's tensors on one observation, and how they move.

Three sources move them, and each is measured, not assumed: quantization (the quantized modules
against the float32 ones), the base format's rounding (the same modules, rounding), and the noise
that a policy starts from (other seeds).
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from export.engines.torch_engine import TorchEngine
from export.tokens import MADE_UP_INSTRUCTION
from models.checkpoint import Checkpoint, normalizations, reference
from models.declared import ACTIONS, DENOISED, TOKENIZER
from models.split import Split
from models.stored import SHELF, Rows, StoredTensor
from quant.data.episode import Observation, shown
from quant.modules import QuantLinear
from runtime.backends.onnxruntime import HostMemory
from runtime.backends.parity import relative_error
from runtime.declarations import from_source
from runtime.engine import in_order
from runtime.functions.function import Resources
from runtime.golden import Golden
from runtime.graph import Graph, Stage
from runtime.inputs import draw_noise, takers
from runtime.interpreter import assemble

NOISE_SEEDS = 8
JITTER = 2.0**-20
"""Relative; two float32 sums of n terms differ by some sqrt(n) * 2^-24, n is up to 11008."""
Tensors = Mapping[str, NDArray[Any]]


def made_up(checkpoint: Checkpoint, image_size: tuple[int, int], *, seed: int = 0) -> Observation:
    """An observation where there is no recorded one: no policy was trained on such pictures.

    Args:
        image_size: width and height.
    """
    embodiment = sorted(checkpoint.statistics)[0]
    unit = np.random.Generator(np.random.Philox(key=10 * seed + 3)).uniform(
        -1, 1, checkpoint.config.state_dim
    )
    statistics = checkpoint.statistics[embodiment]
    to_policy, _ = normalizations(checkpoint.config, statistics, embodiment)
    state = to_policy.to_robot(unit.astype(np.float32))
    robot = from_source(checkpoint.inputs(image_size), "robot")

    def streams(moment: int) -> dict[str, NDArray[Any]]:
        """Pictures of each moment and camera; the state is what it is."""
        cameras = [name for name, declared in robot.items() if declared.kind in MADE_UP]
        made: dict[str, NDArray[Any]] = {
            name: MADE_UP[robot[name].kind](1000 * number + 10 * seed + moment, image_size)
            for number, name in enumerate(cameras)
        }
        return made | {name: state for name in robot.keys() - set(cameras)}

    return Observation(streams(1), streams(2), MADE_UP_INSTRUCTION, "made up")


def golden_of(
    checkpoint: Checkpoint, observation: Observation, *, seed: int, samples: int = 1
) -> dict[str, NDArray[Any]]:
    """An observation as the graph's inputs, with noise of a seed and nothing left over."""
    declared = checkpoint.inputs(observation.image_size, samples)
    inputs = shown(declared, observation, seed=seed)
    return inputs | {"embodiment": np.array(sorted(checkpoint.statistics)[0])}


def reference_actions(checkpoint: Checkpoint, golden: Tensors) -> NDArray[np.float32]:
    """[T, A] of the float32 reference, or [K, T, A] of K samples, robot units."""
    words = {"instruction", "embodiment"}
    given = {n: golden[n] for n in golden.keys() - words - {"leftover", DENOISED, ACTIONS}}
    instruction, embodiment = str(golden["instruction"]), str(golden["embodiment"])
    return reference(
        checkpoint, instruction=instruction, leftover=None, embodiment=embodiment, **given
    )


class Modules:
    """The torch modules of a split behind the runtime's interpreter: only what changed runs."""

    def __init__(self, checkpoint: Checkpoint, parts: Split) -> None:
        self._graph = without_stores(parts.graph)
        self._take = takers(self._graph, {TOKENIZER: checkpoint.tokenizer})
        self._memory = HostMemory(self._graph)
        engines = {name: TorchEngine(spec) for name, spec in parts.engines.items()}
        embodiment = sorted(checkpoint.statistics)[0]
        resources = Resources(
            tables={name: cast(Any, Rows(table)) for name, table in parts.tables.items()},
            statistics=checkpoint.statistics[embodiment],
        )
        self._interpreter = assemble(self._graph, engines, self._memory, resources, in_order)

    def actions(self, golden: Tensors) -> NDArray[np.float32]:
        """[T, A] on an observation, or [K, T, A] of K samples, robot units."""
        seen = Golden.from_arrays(self._graph, golden)
        for name, value in {**seen.given, **seen.observed, **seen.drawn}.items():
            self._interpreter.set(name, self._take[name](value))
        for name, value in seen.recalled.items():  # an empty slot is no picture to be taken
            self._interpreter.set(name, value)
        self._interpreter.run(ACTIONS)
        return self._memory.host(DENOISED).copy()

    def forget(self) -> None:
        """Everything runs again."""
        self._interpreter.forget()

    def tensors(self, golden: Tensors) -> dict[str, NDArray[Any]]:
        """Every tensor of the graph on an observation."""
        self.actions(golden)
        for leaf in self._graph.outputs:
            self._interpreter.run(leaf)
        return {name: self._memory.host(name).copy() for name in self._graph.tensors}

    def noise_spread(self, golden: Tensors) -> float:
        """How far another noise seed moves the actions, relative, root mean square; not at all
        where nothing is drawn."""
        drawn = from_source(self._graph.inputs, "drawn")
        if not drawn:
            return 0.0
        want = self.actions(golden)
        errors = []
        for seed in range(1, NOISE_SEEDS + 1):
            noises = {name: draw_noise(seed, 0, golden[name].shape) for name in drawn}
            errors.append(relative_error(self.actions({**golden, **noises}), want))
        return float(np.sqrt(np.mean(np.square(errors))))


def without_stores(graph: Graph) -> Graph:
    """Computes all tensors anew: a result that is copied leaves those on the way to it as they
    were, and shows the layers that make it nothing."""
    held = {n for store in graph.stores.values() for entry in store.entries for n in entry}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name not in held}
    return replace(graph, tensors=tensors, stores={})


def stage_errors(parts: Split, tensors: Tensors) -> dict[str, float]:
    """How far each stage's module is from `tensors`, given its inputs from there: worst output."""
    return {s.name: _error(parts, s, tensors) for s in parts.graph.stages if s.engine}


def errors_in(engine: str, parts: Split, shown: Sequence[Tensors]) -> dict[str, list[float]]:
    """The same of the stages that call one engine, for each of `shown`.

    Of all observations, engine after engine: weights that lie on disk are read once for all.
    """
    stages = [stage for stage in parts.graph.stages if stage.engine == engine]
    return {stage.name: [_error(parts, stage, tensors) for tensors in shown] for stage in stages}


def _error(parts: Split, stage: Stage, tensors: Tensors) -> float:
    assert stage.engine is not None
    spec = parts.engines[stage.engine]
    inputs = [torch.from_numpy(tensors[stage.inputs[port]]) for port in spec.inputs]
    with torch.no_grad():
        outputs = spec.module(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return max(
        relative_error(got.numpy(), tensors[stage.outputs[port]])
        for port, got in zip(spec.outputs, outputs, strict=True)
    )


def step_sensitivity(parts: Split, exact: Split, tensors: Tensors) -> dict[str, float]:
    """What each step of the sampler of `parts` alone does to the last one's result, all else exact.

    Args:
        exact: the float32 policy.
        tensors: of it.
    """
    steps = sampling(exact.graph)
    errors = {}
    for changed in steps:
        x = torch.from_numpy(tensors[changed.inputs["x"]])
        for stage in steps[steps.index(changed) :]:
            spec = (parts if stage is changed else exact).engines[stage.engine or ""]
            given = {port: torch.from_numpy(tensors[t]) for port, t in stage.inputs.items()}
            with torch.no_grad():
                x = spec.module(*(x if port == "x" else given[port] for port in spec.inputs))
        errors[changed.name] = relative_error(x.numpy(), tensors[steps[-1].outputs["x_next"]])
    return errors


def sampling(graph: Graph) -> list[Stage]:
    """Stages that call one engine again and again, each on what the one before it made."""
    by_engine: dict[str, list[Stage]] = {}
    for stage in graph.stages:
        if stage.engine:
            by_engine.setdefault(stage.engine, []).append(stage)
    for stages in by_engine.values():
        made = {stage.outputs.get("x_next") for stage in stages} - {None}
        if any(stage.inputs.get("x") in made for stage in stages):
            return stages
    return []


@contextlib.contextmanager
def rounding(model: nn.Module, base: str, exact: set[str]) -> Iterator[None]:
    """Within, linear layers and convolutions of `model` round input, weight and output to `base`.

    What a device does between its products, in a second way: `export.engines.lower` does it to a
    file. In float32 the numbers move by `JITTER` instead, as another order of summation moves them;
    that shows how many int8 codes lie on an edge.

    Args:
        exact: names of the layers that do not.
    """
    kind = getattr(torch, base)
    random = torch.Generator().manual_seed(0)

    def rounded(x: Tensor) -> Tensor:
        if kind != torch.float32:
            return x.to(kind).float()
        return x * (1 + JITTER * (2 * torch.rand(x.shape, generator=random) - 1))

    def weight_of(layer: nn.Linear | nn.Conv2d) -> Tensor:
        if kind == torch.float32:  # other numbers each time
            return rounded(layer.weight)
        weight = layer.weight
        read = weight.read if isinstance(weight, StoredTensor) else lambda: weight
        return SHELF.get(keys[layer], weight.nbytes, lambda: rounded(read()))

    def linear(layer: nn.Linear, x: Tensor) -> Tensor:
        bias = None if layer.bias is None else rounded(layer.bias)
        return rounded(functional.linear(rounded(x), weight_of(layer), bias))

    def convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
        bias = None if layer.bias is None else rounded(layer.bias)
        return rounded(layer._conv_forward(rounded(x), weight_of(layer), bias))

    def quantized(layer: QuantLinear, is_exact: bool, x: Tensor) -> Tensor:
        output = type(layer).forward(layer, rounded(x))
        return output if is_exact else rounded(output)

    keys = collections.defaultdict[nn.Module, int](SHELF.new_key)
    changed: list[nn.Module] = []
    try:
        for name, layer in model.named_modules():
            if isinstance(layer, QuantLinear):
                layer.forward = partial(quantized, layer, name in exact)  # type: ignore[method-assign]
            elif isinstance(layer, nn.Linear) and name not in exact:
                layer.forward = partial(linear, layer)  # type: ignore[method-assign]
            elif isinstance(layer, nn.Conv2d) and name not in exact:
                layer.forward = partial(convolution, layer)  # type: ignore[method-assign]
            else:
                continue
            changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward  # of the object; its class has the other one
        for key in keys.values():
            SHELF.drop(key)


def _made_up_image(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Smooth colour patches with some noise on them: neither flat nor white noise."""
    random = np.random.Generator(np.random.Philox(key=seed))
    width, height = size
    coarse = random.uniform(0, 255, (8, 8, 3))
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    image = coarse[rows][:, columns] + random.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def _made_up_depth(seed: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Flat patches at some decimetres to some metres, and pixels of which nothing was measured."""
    random = np.random.Generator(np.random.Philox(key=seed))
    width, height = size
    coarse = random.uniform(0.3, 4.0, (8, 8))
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    depth_m = coarse[rows][:, columns] + random.normal(0, 0.01, (height, width))
    return np.where(random.random((height, width)) < 0.05, 0, depth_m).astype(np.float32)


MADE_UP: Mapping[str, Callable[[int, tuple[int, int]], NDArray[Any]]] = {
    "image": _made_up_image,
    "depth": _made_up_depth,
}
"""What a camera shows, by the kind of input."""
