"""The language model quantized layer by layer, at a size that does not fit memory as a whole.

In: a checkpoint folder, a recipe and calibration prompts. Out: a folder with the quantized layers,
one shard each (`quant.layerwise.shards`), and a report. At any time one decoder layer is in memory,
and the hidden states of all prompts. A run that was cut off goes on at its next layer.

Every layer is calibrated on what the float layers before it give, as AWQ and SmoothQuant do it:
so statistics, codes and scales are those of `quant.apply.quantize` on the whole model, bit for bit.
(GPTQ's own code feeds a layer from the quantized ones before it, whose errors it can then make up
for.) Two errors are reported: of each layer alone, and as they add up from layer to layer.

The token table and the final norm stay where they are: nothing here changes them.

Axes: S = tokens of a prompt, D = width of the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import safe_open
from torch import Tensor

from models.anchorvla4d.config import LanguageConfig
from models.anchorvla4d.language import DecoderLayer
from models.anchorvla4d.policy import AnchorVLA4D
from quant.apply import decide, linear_layers, quantize_layer
from quant.calibrate import calibrate
from quant.fold import fold
from quant.layerwise.shards import (
    LAYERS,
    locate,
    read_config,
    read_float_layer,
    save_tensors,
    shard_path,
    write_layer,
)
from quant.recipes import Recipe, Rule
from runtime import prompt
from runtime.errors import OutputError
from runtime.storage.listed import sha256_of

STATE = "state.safetensors"


@dataclass(frozen=True, slots=True)
class CalibrationPrompt:
    """What enters the language model, and where it stands."""

    embeddings_SD: Tensor
    """float32."""
    positions_3S: NDArray[np.int64]
    """In time, height and width (`runtime.prompt.mrope_positions`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """How a decoder layer fared."""

    layer: int
    error: float
    """Of its output, given the float inputs; norm of difference over norm, over all prompts."""
    chain_error: float
    """The same, given what the quantized layers before it put out."""
    float_bytes: int
    """In the checkpoint."""
    num_bytes: int
    """In its shard."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageReport:
    """How a run fared."""

    recipe: str
    layers: tuple[LayerReport, ...]
    resumed: int
    """Layers that an earlier run had finished."""
    peak_bytes: int
    """Most memory that this process ever held, mapped files included."""

    @property
    def worst(self) -> LayerReport:
        """The layer of the largest error."""
        return max(self.layers, key=lambda layer: layer.error)


@torch.no_grad()
def quantize_language(
    checkpoint: Path, recipe: Recipe, prompts: Sequence[CalibrationPrompt], out: Path
) -> LanguageReport:
    """Quantize every decoder layer of `checkpoint` into `out`; see the module's docstring.

    Args:
        checkpoint: needs `config.json` and the tensors of the decoder layers, others may lack.
        recipe: names layers as in the whole policy, `vlm.model.layers.0.mlp.up_proj`.
        prompts: what to calibrate on.
        out: folder; layers that a run of the same weights, recipe and prompts left in it are kept,
            those of any other run go.

    Raises:
        CheckpointError: tensors are missing, of another shape or not finite.
        OutputError: layers of somebody are in `out`, or it cannot be written.
        ValueError: the recipe or the prompts do not fit, or a layer cannot be quantized.
    """
    config = read_config(checkpoint)
    _check_prompts(prompts, config.language)
    with torch.device("meta"):
        policy = AnchorVLA4D(config)
    rules = decide(recipe, policy)
    shapes = {n: t.shape for n, t in policy.state_dict().items() if n.startswith(LAYERS)}
    files = locate(checkpoint, shapes)
    key = _key(config.language, sorted(set(files.values())), recipe, prompts)
    run = _resume(out, key) or _begin(out, key, prompts)
    resumed = len(run.layers)
    with _progress(config.language, resumed) as progress:
        for index in range(resumed, config.language.num_hidden_layers):
            done = _quantize_layer(
                index, config.language, files, rules, prompts, run, out, progress
            )
            run.layers.append(done)
            run.save(out / STATE)
            progress.console.print(
                f"layer {index}: error {done.error:.2e}, accumulated {done.chain_error:.2e}, "
                f"{done.float_bytes / 1e6:.0f} -> {done.num_bytes / 1e6:.0f} MB, "
                f"{done.seconds:.1f} s"
            )
    return LanguageReport(
        recipe=recipe.name, layers=tuple(run.layers), resumed=resumed, peak_bytes=_peak_bytes()
    )


@dataclass(slots=True)
class _Run:
    """What a run needs to go on: hidden states in front of the next layer, and figures so far."""

    key: str
    hidden_SD: list[Tensor]
    chain_SD: list[Tensor]
    layers: list[LayerReport]

    def save(self, path: Path) -> None:
        tensors = {f"hidden/{i}": x for i, x in enumerate(self.hidden_SD)}
        tensors |= {f"chain/{i}": x for i, x in enumerate(self.chain_SD)}
        layers = [dataclasses.asdict(layer) for layer in self.layers]
        save_tensors(path, tensors, json.dumps({"key": self.key, "layers": layers}))


def _begin(out: Path, key: str, prompts: Sequence[CalibrationPrompt]) -> _Run:
    """A run from the first layer; what another one left would pass for part of this one.

    The state is there before the first layer: layers without a state are somebody's.
    """
    stale = sorted(out.glob("layer-*.safetensors"))
    if stale and not (out / STATE).is_file():
        raise OutputError(
            f"{stale[0]}: in the way, and no run of ours left it (no {STATE} beside it); move it, "
            "or choose another folder"
        )
    for path in (*stale, out / STATE):
        path.unlink(missing_ok=True)
    hidden_SD = [given.embeddings_SD for given in prompts]
    run = _Run(key, hidden_SD, [x.clone() for x in hidden_SD], [])
    run.save(out / STATE)
    return run


def _resume(out: Path, key: str) -> _Run | None:
    """The run that was cut off, if it was this one and its shards are there."""
    path = out / STATE
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as tensors:
        state = json.loads(tensors.metadata()["state"])
        layers = [LayerReport(**layer) for layer in state["layers"]]
        if state["key"] != key or not all(shard_path(out, r.layer).is_file() for r in layers):
            return None
        count = len(tensors.keys()) // 2
        hidden_SD, chain_SD = (
            [tensors.get_tensor(f"{kind}/{i}").clone() for i in range(count)]
            for kind in ("hidden", "chain")
        )
    return _Run(key, hidden_SD, chain_SD, layers)


def _quantize_layer(
    index: int,
    config: LanguageConfig,
    files: Mapping[str, Path],
    rules: Mapping[str, Rule],
    prompts: Sequence[CalibrationPrompt],
    run: _Run,
    out: Path,
    progress: Progress,
) -> LayerReport:
    """Write the shard of a layer, and take `run` across it."""
    start = time.monotonic()
    prefix = f"{LAYERS}{index}."
    layer, types = read_float_layer(prefix, config, files)
    float_bytes = sum(t.numel() * types[n].itemsize for n, t in layer.state_dict().items())
    tables = [_tables(config, p.positions_3S) for p in prompts]
    exact_SD: list[Tensor] = []

    def forward(x_SD: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        past = x_SD.new_zeros(*x_SD.shape[:-2], 0, 2, config.num_key_value_heads, config.head_dim)
        y_SD: Tensor = layer(x_SD, past, mask, cos, sin)[0]
        return y_SD

    def observe(x_SD: Tensor, table: tuple[Tensor, Tensor, Tensor]) -> None:
        exact_SD.append(forward(x_SD, *table))

    given = zip(run.hidden_SD, tables, strict=True)
    try:
        seen = calibrate(layer, [partial(observe, *arguments) for arguments in given])
        own = {name: rules[prefix + name] for name in linear_layers(layer)}
        folded = fold(layer, own, seen)
        before = dict(layer.named_parameters())
        # What folding changed is no number of the checkpoint's type any more.
        changed = {n for n, p in folded.model.named_parameters() if p is not before[n]}
        types |= dict.fromkeys(changed, torch.float32)
        layer = folded.model
        for name, linear in linear_layers(layer).items():
            if own[name].format not in ("float32", "float"):
                arguments = folded.statistics[name], folded.factors.get(name)
                layer.set_submodule(name, quantize_layer(linear, own[name], *arguments))
            progress.advance(progress.task_ids[0], linear.weight.numel())
    except ValueError as error:
        raise ValueError(f"{prefix[:-1]}: {error}") from None
    # Both inputs in one call, so that weights are dequantized once.
    both = [
        forward(torch.stack(pair), *t)
        for *pair, t in zip(run.hidden_SD, run.chain_SD, tables, strict=True)
    ]
    alone_SD, chain_SD = ([pair[i].contiguous() for pair in both] for i in (0, 1))
    num_bytes = write_layer(shard_path(out, index), prefix, layer, types)
    run.hidden_SD, run.chain_SD = exact_SD, chain_SD
    return LayerReport(
        layer=index,
        error=_relative_error(alone_SD, exact_SD),
        chain_error=_relative_error(chain_SD, exact_SD),
        float_bytes=float_bytes,
        num_bytes=num_bytes,
        seconds=time.monotonic() - start,
    )


def _check_prompts(prompts: Sequence[CalibrationPrompt], config: LanguageConfig) -> None:
    if not prompts:
        raise ValueError("nothing to calibrate on: pass at least one prompt")
    for number, given in enumerate(prompts):
        shape, places = tuple(given.embeddings_SD.shape), given.positions_3S.shape
        if (
            given.embeddings_SD.dtype != torch.float32
            or shape[1:] != (config.hidden_size,)
            or places != (3, shape[0])
        ):
            raise ValueError(
                f"prompt {number}: embeddings are {given.embeddings_SD.dtype} {list(shape)} and "
                f"positions {list(places)}, expected float32 [S, {config.hidden_size}] and [3, S]"
            )


def _key(
    config: LanguageConfig,
    files: Sequence[Path],
    recipe: Recipe,
    prompts: Sequence[CalibrationPrompt],
) -> str:
    """Of everything that codes and scales depend on."""
    digest = hashlib.sha256(repr((config, recipe)).encode())
    for file in files:
        digest.update(sha256_of(file).encode())
    for given in prompts:
        digest.update(given.embeddings_SD.numpy().tobytes())
        digest.update(given.positions_3S.tobytes())
    return digest.hexdigest()


def _tables(
    config: LanguageConfig, positions_3S: NDArray[np.int64]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, cosines and sines of a prompt that starts at position 0."""
    length = positions_3S.shape[1]
    mask = prompt.attention_mask(0, 0, length, length)
    cos, sin = prompt.mrope_tables(
        positions_3S, theta=config.rope_theta, sections=config.mrope_section
    )
    return torch.from_numpy(mask), torch.from_numpy(cos), torch.from_numpy(sin)


def _relative_error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    wanted = torch.cat(list(want)).double()
    return float((torch.cat(list(got)).double() - wanted).norm() / wanted.norm())


def _progress(config: LanguageConfig, done: int) -> Progress:
    """Counts weights, so that the time left is known within a layer."""
    with torch.device("meta"):
        layer = linear_layers(DecoderLayer(config))
    size = sum(linear.weight.numel() for linear in layer.values())
    progress = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=600,
    )
    progress.add_task("layers", total=size * config.num_hidden_layers, completed=size * done)
    return progress


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
