"""One tick, camera to actions, twice: by our stages as the graph cuts them, and by the libraries.

In: a policy's configuration, its weights by name, and what was observed. Out: every tensor that a
stage of the graph writes, of either side under the graph's names. Both sides are the modules that
are used elsewhere (`split` and `reference` of the family), streamed: neither is ever in memory as a
whole, and each layer is given what the layer before it put out.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from export.evidence.streamed import Float64, Weights, stream
from export.measure import Modules
from export.tokens import choose_tokens
from models.checkpoint import Checkpoint, normalizations
from models.families import family_of
from models.family import Reference
from models.init import image_of, statistics_of
from models.networks.parts import LayersPerPart
from models.policy_config import PolicyConfig
from models.split import Split
from runtime.image import grid_of

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A policy without its weights, and a tick."""

    config: PolicyConfig
    tokenizer: Tokenizer
    image_size: tuple[int, int]
    """Width and height."""
    layers: LayersPerPart

    @property
    def grid(self) -> tuple[int, int]:
        width, height = self.image_size
        return grid_of(height, width, image_of(self.config))

    def checkpoint(self, model: nn.Module) -> Checkpoint:
        """As if it had been read from a folder."""
        image, statistics = image_of(self.config), statistics_of(self.config)
        return Checkpoint(Path(), self.config, model, self.tokenizer, image, statistics, "")


@dataclass(frozen=True, slots=True)
class Heard:
    """A tick of the libraries."""

    library: Reference
    kept: Mapping[str, list[Tensor]]
    """What its modules put out, in the order in which they ran."""


def on_meta(config: PolicyConfig) -> nn.Module:
    """A policy of no memory, for its names and shapes."""
    with torch.device("meta"):
        return family_of(config).model(config).eval().requires_grad_(False)


@torch.no_grad()
def run_stages(subject: Subject, weights: Weights, golden: Tensors) -> tuple[Split, Tensors]:
    """Our stages in the runtime's interpreter, on what `golden` observed.

    Returns:
        The graph that ran, and its tensors, float32. `predicted_K` is what
        step K of the sampler predicts.
    """
    model = on_meta(subject.config)
    stream(model, weights, {name: name for name in model.state_dict()})
    checkpoint = subject.checkpoint(model)
    slots = choose_tokens(checkpoint, subject.grid, (str(golden["instruction"]),), None).slots
    family = family_of(subject.config)
    parts = family.split(
        model, checkpoint.parts, checkpoint.image, subject.image_size, slots, subject.layers
    )
    predicted: list[Tensor] = []
    family.predictor(model).register_forward_hook(lambda _m, _i, out: predicted.append(out))
    tensors = Modules(checkpoint, parts).tensors(golden)
    return parts, tensors | {f"predicted_{k}": e.numpy() for k, e in enumerate(predicted)}


@torch.no_grad()
def run_libraries(
    subject: Subject, weights: Weights, golden: Tensors, dtype: torch.dtype = torch.float32
) -> Heard:
    """The composition of libraries, float32 or float64, on what `golden` observed."""
    model = on_meta(subject.config)
    library = family_of(subject.config).reference(
        model, subject.tokenizer, image_of(subject.config)
    )
    frequencies = {n: b for n, b in library.named_buffers() if n.endswith("inv_freq")}
    assert frequencies and all(b.dtype == torch.float32 for b in frequencies.values())
    stream(library, weights, library.published, dtype)
    heard = library.listen()
    checkpoint = subject.checkpoint(model)
    key = str(golden["embodiment"])
    to_policy, _ = normalizations(subject.config, checkpoint.statistics[key], key)
    observed: dict[str, Any] = {
        name: golden[name] for name in golden.keys() - {"leftover", "embodiment"}
    }
    observed["instruction"] = str(golden["instruction"])
    if "state" in observed:
        observed["state"] = to_policy.to_policy(golden["state"])
    with Float64() if dtype == torch.float64 else nullcontext():
        last = library(*library.prepare(**observed))
    heard.setdefault("x", []).append(last)
    return Heard(library, heard)


def placed(heard: Heard, subject: Subject, parts: Split) -> Tensors:
    """What was heard under the names of our graph, in its layout, without padded rows."""
    found = heard.library.placed(heard.kept, subject.grid, subject.layers, parts.fixed)
    return {name: tensor.numpy() for name, tensor in found.items()}
