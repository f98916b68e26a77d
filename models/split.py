"""A policy cut into engines, and the graph that joins them: what every family's `split` returns.

The graph says which tensor goes where; what has to be recomputed when follows from it alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import msgspec
import torch

from models.declared import ACTIONS, DENOISED, SPREAD
from models.networks.config import AnyLanguageConfig
from models.networks.engines import EngineSpec, pixels_engine
from models.networks.prismatic_config import PrismaticVisionConfig
from models.networks.siglip_config import SiglipVisionConfig
from models.networks.vision_language import rotary_settings
from models.networks.vq_config import VQConfig
from models.policy_config import NormalizationConfig
from models.prompt_parts import PromptParts
from runtime.declarations import Input, Output, Store, Tensor
from runtime.graph import Graph, Stage, part_name, whole_of
from runtime.image import ImageConfig, grid_of
from runtime.prompt import Segment, mrope_positions, num_tokens

TOKENS = "tokens"
"""The table of token embeddings."""
ResizeOn = Literal["host", "engine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """A policy as engines and a graph."""

    engines: Mapping[str, EngineSpec]
    graph: Graph
    tables: Mapping[str, torch.Tensor]
    """[rows, D] that host functions read."""
    slots: int
    """Tokens per call of the language engine, S; a call's past is what the calls before it wrote,
    so of n calls P = (n - 1) S."""
    fixed: Mapping[str, int]
    """Of each language call the tokens that every prompt has; the tail is behind those of the last
    one here. They stand in the order of their tokens, but for one that has the tail and others
    behind it."""

    @property
    def max_tail(self) -> int:
        """Tokens that the tail may take."""
        return self.slots - list(self.fixed.values())[-1]

    def used(self, tail: int) -> dict[str, int]:
        """Tokens of each language call that are no padding, for a tail of so many."""
        last = list(self.fixed)[-1]
        return {call: count + tail * (call == last) for call, count in self.fixed.items()}

    def padded_share(self, tail: int) -> dict[str, float]:
        """Share of padding per language call, for a tail of so many tokens."""
        return {call: round(1 - n / self.slots, 4) for call, n in self.used(tail).items()}


def check_slots(
    fixed: Mapping[str, int], parts: PromptParts, grid: tuple[int, int], slots: int
) -> None:
    """
    Raises:
        ValueError: the prompt around the pictures does not fit.
    """
    *others, (last, count) = fixed.items()
    shortest = count + len(parts.end_ids) + 1
    if max([shortest, *(n for _, n in others)]) > slots:
        words = [*(f"{n} {call}" for call, n in others), f"more than {shortest} {last}"]
        raise ValueError(
            f"the prompt takes {' and '.join(words)} tokens at {grid[0]}x{grid[1]} patches, but "
            f"--tokens is {slots}: raise it"
        )


def check_places(
    grid: tuple[int, int], vision: PrismaticVisionConfig | SiglipVisionConfig | VQConfig, who: str
) -> None:
    """
    Args:
        who: reads so many patches, with its verb.

    Raises:
        ValueError: pictures are not brought to the size that there are places for.
    """
    side = vision.image_size // vision.patch_size
    if grid != (side, side):
        raise ValueError(
            f"pictures give {grid[0]}x{grid[1]} patches, and {who} {side}x{side}: set "
            f"size in preprocessor_config.json to {vision.image_size} x {vision.image_size}"
        )


class GraphBuilder:
    """Collects tensors and stages in running order."""

    def __init__(
        self, engines: Mapping[str, EngineSpec], image: ImageConfig, grid: tuple[int, int]
    ) -> None:
        self.engines = engines
        settings = msgspec.to_builtins(image)
        stated = {name: value for name, value in settings.items() if value is not None}
        self.patches = {"grid": list(grid), "image": stated}
        self.patches_shape = (grid[0] * grid[1], image.patch_dim)
        self.tensors: dict[str, Tensor] = {}
        self.stages: list[Stage] = []

    @classmethod
    def of(
        cls,
        engines: Mapping[str, EngineSpec],
        image: ImageConfig,
        image_size: tuple[int, int],
        resize_on: ResizeOn,
    ) -> GraphBuilder:
        """For pictures of one width and height, which an engine more resizes if wanted.

        Raises:
            ValueError: no engine can resize them exactly.
        """
        width, height = image_size
        grid = grid_of(height, width, image)
        if resize_on == "engine":
            engines = {**engines, "pixels": pixels_engine(image, (height, width), grid)}
        return cls(engines, image, grid)

    def split(
        self,
        *,
        inputs: Mapping[str, Input],
        outputs: Mapping[str, Output],
        tables: Mapping[str, torch.Tensor],
        slots: int,
        fixed: Mapping[str, int],
        stores: Mapping[str, Store] | None = None,
    ) -> Split:
        """What was collected, as a whole; the rest is as `Split` and `Graph` have it."""
        graph = Graph(
            inputs=inputs,
            outputs=outputs,
            tensors=self.tensors,
            stages=tuple(self.stages),
            stores=stores or {},
        )
        return Split(engines=self.engines, graph=graph, tables=tables, slots=slots, fixed=fixed)

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
        """Rows of a tensor, to the end if `count` is left out."""
        total, *row = self.tensors[parent].shape
        count = total - start if count is None else count
        self.tensors[name] = Tensor(shape=(count, *row), part_of=(parent, start * math.prod(row)))

    def stack(self, name: str, port: str) -> None:
        """What every layer of the decoder puts out at a port, the first axis: one tensor, of which
        each part of the decoder has its own rows."""
        shapes = [part.outputs[port].shape for part in self.parts("language")]
        depths = [shape[0] for shape in shapes]
        self.tensor(name, (sum(depths), *shapes[0][1:]))
        for i, depth in enumerate(depths if len(depths) > 1 else ()):
            self.rows(part_name(name, i, len(depths)), name, sum(depths[:i]), depth)

    def slice(self, name: str, parent: str, index: int) -> None:
        """One entry along the first axis."""
        shape = self.tensors[parent].shape[1:]
        size = Tensor(shape=shape).size
        dtype = self.tensors[parent].dtype
        part = (parent, index * size)
        self.tensors[name] = Tensor(shape=shape, dtype=dtype, part_of=part)

    def vision_ports(self) -> list[str]:
        """What the vision tower makes of an image, whichever of its parts puts it out."""
        parts = self.parts("vision")
        return [port for part in parts for port in part.outputs if not port.endswith("_next")]

    def cut(self, name: str) -> str:
        """Patches of an image, `{name}_patches`."""
        patches, pixels = f"{name}_patches", f"{name}_pixels"
        if "pixels" in self.engines:
            self.tensors[pixels] = self.engines["pixels"].inputs["image"]
            self.call("copy", {"value": name}, {"value": pixels})
            self.engine("pixels", patches, {"image": pixels}, {"patches": patches})
        else:
            self.tensor(patches, self.patches_shape)
            self.call("patches", {"image": name}, {"patches": patches}, self.patches)
        return patches

    def cut_depth(self, name: str, settings: Mapping[str, Any]) -> str:
        """Patches of a depth map, `{name}_patches`; settings as `runtime.depth` has them."""
        patches = f"{name}_patches"
        self.tensor(patches, self.patches_shape)
        given = {**self.patches, **settings}
        self.call("depth_patches", {"depth": name}, {"patches": patches}, given)
        return patches

    def image(self, name: str) -> None:
        """Patches of an image, and their vision tokens with what else the vision engine makes."""
        patches = self.cut(name)
        outputs = {port: f"{name}_{port}" for port in self.vision_ports()}
        self.chain("vision", f"{name}_vision", {"patches": patches}, outputs)

    def embed(self, target: str, ids: Sequence[int]) -> None:
        """Rows of constant text."""
        self.call("embed", {}, {"embeddings": target}, {"table": TOKENS, "ids": list(ids)})

    def places(
        self,
        call: str,
        segments: Sequence[Segment],
        language: AnyLanguageConfig,
        *,
        start: int = 0,
        num_past: int | Sequence[int] = 0,
        ids: str = "",
        optional: int = 0,
        count: str = "",
    ) -> None:
        """Mask and rotary angles of a language call.

        Args:
            segments: what it holds before the text.
            start: position of the first.
            num_past: tokens of the calls before it; of several, those of each block of its past.
            ids: the text behind them, if there is one.
            optional: pairs of segments at their end of which the first few are there.
            count: the input that says how many.
        """
        for port in ("cos", "sin", "mask"):
            self.tensor(f"{call}_{port}", self.parts("language")[0].inputs[port].shape)
        text = ({"ids": ids} if ids else {}) | ({"count": count} if optional else {})
        sizes = [num_tokens([segment]) for segment in segments]
        pairs = [sum(sizes[i : i + 2]) for i in range(len(sizes) - 2 * optional, len(sizes), 2)]
        rotary = {
            "segments": [list(s) if isinstance(s, tuple) else s for s in segments],
            "start": start,
            **rotary_settings(language),
        } | ({"optional": optional} if optional else {})
        tables = {port: f"{call}_{port}" for port in ("cos", "sin")}
        self.call("rotary", text, tables, rotary, name=f"{call}_rotary")
        past = num_past if isinstance(num_past, int) else list(num_past)
        counts: dict[str, Any] = {"num_past": past, "num_new": num_tokens(segments)}
        if optional:
            counts["optional"] = pairs
        self.call("mask", text, {"mask": f"{call}_mask"}, counts)

    def no_past(self) -> None:
        """What the first language call finds before it, `empty_past`."""
        pasts = [part.inputs["past"] for part in self.parts("language")]
        self.tensor("empty_past", pasts[0].shape)
        if len(pasts) > 1:  # the first part has the most layers; the others read fewer zeros
            for i, past in enumerate(pasts):
                self.tensors[part_name("empty_past", i, len(pasts))] = Tensor(
                    shape=past.shape, part_of=("empty_past", 0)
                )
        self.call("constant", {}, {"value": "empty_past"}, {"values": []})

    def calls(
        self, calls: Mapping[str, Sequence[Segment]], language: AnyLanguageConfig, ids: str
    ) -> list[str]:
        """A prompt that is read call by call: places of each, and what each finds before it.

        Of two calls the first has no past, and the cache of the first is the past of the other. Of
        more, with caches of S rows, the caches lie one behind the other, and as many rows of zeros
        before them. The past of a call is a window on that memory which ends where its own cache
        begins: blocks of zeros, and then the caches of the calls before it. So a call depends on
        those before it, nothing is copied, and no engine reads where it writes.

        Args:
            calls: by name, what each holds before the text.
            ids: the text, in the last one.

        Returns:
            Of each call the name of its past, see `language`.
        """
        names, sizes = list(calls), [num_tokens(segments) for segments in calls.values()]
        num_blocks, start = len(calls) - 1, 0
        for number, (name, segments) in enumerate(calls.items()):
            blocks = [0] * (num_blocks - number) + sizes[:number]
            past = blocks[0] if num_blocks == 1 else blocks
            text = ids if number == num_blocks else ""
            self.places(name, segments, language, start=start, num_past=past, ids=text)
            _, start = mrope_positions(segments, start)
        if num_blocks == 1:
            self.no_past()
            return ["empty_past", f"{names[0]}_kv"]
        parts = self.parts("language")
        for i, part in enumerate(parts):
            numbered = partial(part_name, index=i, count=len(parts))
            num_rows, *row = part.inputs["past"].shape
            slots = num_rows // num_blocks
            self.tensor(numbered("caches"), (2 * num_rows, *row))
            for number, name in enumerate(names):
                self.rows(numbered(f"{name}_past"), numbered("caches"), number * slots, num_rows)
                if number < num_blocks:
                    at = num_rows + number * slots
                    self.rows(numbered(f"{name}_kv"), numbered("caches"), at, slots)
            self.call("constant", {}, {"value": numbered(f"{names[0]}_past")}, {"values": []})
        return [f"{name}_past" for name in names]

    @property
    def deepstack(self) -> list[str]:
        """Ports of the decoder that are added to the rows of pictures, if it has any."""
        ports = (port for part in self.parts("language") for port in part.inputs)
        return [port for port in ports if port.startswith("deepstack_")]

    def language(self, call: str, past: str) -> None:
        """A call of the decoder behind `past`: all else that it is given has its own name, as what
        it makes has."""
        if "states" in self.parts("language")[-1].outputs:
            self.stack(f"{call}_states", "states")
        made = ("kv", "hidden", "states")
        self.chain(
            "language",
            call,
            {"embeddings": f"{call}_embeddings", "past": past}
            | {port: f"{call}_{port}" for port in ("mask", "cos", "sin", *self.deepstack)},
            {port: f"{call}_{port}" for port in made},
            own=("past", "kv", "states"),
        )

    def corner(self, name: str, shape: tuple[int, ...], of: str) -> None:
        """Numbers of another tensor of its rank: those that lie within `shape`, and zeros beyond
        them."""
        self.tensor(name, shape)
        self.call("corner", {"of": of}, {"value": name})

    def policy_state(self, n: NormalizationConfig) -> None:
        """The state in policy units, `policy_state`."""
        self.tensor("policy_state", (len(n.state),))
        scaling = scaling_of("state", n)
        self.call("normalize", {"value": "state"}, {"value": "policy_state"}, scaling)

    def noise(self, n: NormalizationConfig, noises: tuple[int, ...]) -> None:
        """Where the sampler begins, `x_0`, and what is left of the last chunk in policy units."""
        self.tensor("x_0", noises)
        self.call("copy", {"value": "noise"}, {"value": "x_0"})
        self.tensor("leftover_actions", (noises[-2], len(n.action)))
        self.tensor("leftover_weights", (noises[-2], 1))
        self.call(
            "leftover",
            {"leftover": "leftover"},
            {"actions": "leftover_actions", "weights": "leftover_weights"},
            scaling_of("action", n),
        )

    def answer(self, denoised: str, n: NormalizationConfig, *, leftover: bool = True) -> None:
        """The chunk in robot units; of several samples one is chosen.

        Args:
            leftover: whether what is left of the last chunk takes the place of new actions.
        """
        scaling, shape = scaling_of("action", n), self.tensors[denoised].shape
        self.tensor(DENOISED, shape)
        self.call("unnormalize", {"value": denoised}, {"value": DENOISED}, scaling)
        chosen = DENOISED
        if len(shape) == 3:
            chosen = "chosen_actions"
            self.tensor(chosen, shape[-2:])
            self.tensor(SPREAD, (1,))
            outputs = {"actions": chosen, "spread": SPREAD}
            self.call("medoid", {"samples": DENOISED}, outputs, scaling)
        self.tensor(ACTIONS, shape[-2:])
        if leftover:
            self.call("commit", {"denoised": chosen, "leftover": "leftover"}, {"actions": ACTIONS})
        else:
            self.call("copy", {"value": chosen}, {"value": ACTIONS})

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


def scaling_of(statistics: Literal["action", "state"], n: NormalizationConfig) -> dict[str, Any]:
    """How a vector is scaled, as a host function is told."""
    modes, units = {"action": (n.action, n.action_units), "state": (n.state, n.state_units)}[
        statistics
    ]
    return {"statistics": statistics, "modes": list(modes), "units": list(units)}
