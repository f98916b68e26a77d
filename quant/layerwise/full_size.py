"""The benchmark of layer by layer: a random language model of the published size, with outliers.

In: `FullSizeConfig`. Out: the figures of a run, a table and a line of JSON. The trade-off: random
weights cost nothing to get and take the time and memory of real ones, but say nothing about what a
recipe does to a trained model. Planted outlier channels at least make the methods do their work.

Axes: S = tokens of a prompt, D = width of the model.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from models.anchorvla4d.config import PolicyConfig
from models.anchorvla4d.presets import full
from models.checkpoint import INDEX
from models.random_weights import random_weights
from quant.config import FullSizeConfig
from quant.layerwise.language import STATE, CalibrationPrompt, quantize_language
from quant.layerwise.shards import LANGUAGE, LAYERS, locate, read_config, save_tensors
from quant.recipes import RECIPES
from runtime import prompt
from runtime.storage.files import PARTIAL, write_file
from runtime.storage.folders import check_folder

TABLE = LANGUAGE + "embed_tokens.weight"
DESCRIPTION = "random language model"
PEAK_LIMIT = 14e9
"""Bytes of memory that the full size may take."""


def full_size(config: FullSizeConfig) -> int:
    """Do what `FullSizeConfig` says.

    Returns:
        The exit code, 1 if memory peaked at 14 GB or more.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        ValueError: it holds the model of another seed.
    """
    check_folder(config.folder, foreign)
    made_s = _make_checkpoint(config)
    start, cpu_start = time.monotonic(), time.process_time()
    prompts = seeded_prompts(
        config.folder, seed=config.seed, prompts=config.prompts, tokens=config.tokens
    )
    recipe = RECIPES[config.recipe]()
    report = quantize_language(config.folder, recipe, prompts, config.folder / recipe.name)
    seconds, cpu_s = time.monotonic() - start, time.process_time() - cpu_start
    if not config.keep:
        _remove(config.folder)
    figures = {
        "recipe": report.recipe,
        "layers": len(report.layers),
        "resumed": report.resumed,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_s, 1),
        "checkpoint_seconds": round(made_s, 1),
        "threads": torch.get_num_threads(),
        "peak_gb": round(report.peak_bytes / 1e9, 3),
        "float_gb": round(sum(layer.float_bytes for layer in report.layers) / 1e9, 3),
        "quantized_gb": round(sum(layer.num_bytes for layer in report.layers) / 1e9, 3),
        "worst_layer": report.worst.layer,
        "worst_error": float(f"{report.worst.error:.3g}"),
        "accumulated_error": float(f"{report.layers[-1].chain_error:.3g}"),
    }
    table = Table("language model at full size", "", show_header=True)
    for name, value in figures.items():
        table.add_row(name.replace("_", " ").replace(" gb", " GB"), f"{value}")
    Console().print(table)
    print(json.dumps(figures))
    return int(report.peak_bytes >= PEAK_LIMIT)


def write_random_language(
    path: Path, config: PolicyConfig, *, seed: int, outlier_channels: int
) -> None:
    """Write the language model of a checkpoint, shard by shard, in bfloat16 with random weights.

    The numbers are those of `models.checkpoint.write_random_checkpoint`, but that
    `outlier_channels` channels leave each layer's two norms 30 to 60 times as large as the others,
    the same ones in all layers. The index is written last: with it, the checkpoint is whole.
    """
    write_file(path / "config.json", config.to_json())
    weights = random_weights(config, seed, outlier_channels=outlier_channels, dtype=torch.bfloat16)
    weight_map: dict[str, str] = {}
    names = [name for name in weights if name.startswith(LANGUAGE)]
    for shard, group in itertools.groupby(names, _file_name):
        tensors = {name: weights[name].read() for name in group}
        save_tensors(path / shard, tensors)
        print(f"  {shard}: {sum(t.nbytes for t in tensors.values()) / 1e9:.2f} GB", flush=True)
        weight_map.update(dict.fromkeys(tensors, shard))
    write_file(path / INDEX, json.dumps({"weight_map": weight_map}, indent=1) + "\n")


def foreign(folder: Path) -> str | None:
    """What keeps a folder from being one that this benchmark wrote."""
    try:
        described = PolicyConfig.from_json(folder / "config.json").description
    except (FileNotFoundError, ValueError):
        described = ""
    if not described.startswith(DESCRIPTION):
        return f"it holds no {DESCRIPTION} of this benchmark"
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        is_own = path.name in ("config.json", INDEX) or path.name.startswith("model-")
        if len(inside) == 2:
            is_own = path.name == STATE or path.name.startswith("layer-")
        if PARTIAL.fullmatch(path.name):
            is_own = True
        if path.is_dir():
            is_own = inside[0] in RECIPES and len(inside) == 1
        if not is_own:
            return f"{path.relative_to(folder)} is not of this benchmark"
    return None


def seeded_prompts(
    checkpoint: Path, *, seed: int, prompts: int, tokens: int
) -> list[CalibrationPrompt]:
    """Text, image, text, image, text, as the policy's own prompts are laid out.

    Text is random rows of the checkpoint's token table. Rows of an image are such rows too, each
    with the image's first one added, because neighbours resemble each other.
    """
    config = read_config(checkpoint).language
    file = locate(checkpoint, {TABLE: (config.vocab_size, config.hidden_size)})[TABLE]
    side = math.isqrt(2 * tokens // 5)
    num_text = tokens - 2 * side**2
    head, middle = num_text // 4, num_text // 8
    tail = num_text - head - middle
    segments: list[prompt.Segment] = [head, (side, side), middle, (side, side), tail]
    positions_3S, _ = prompt.mrope_positions(segments)
    images = [slice(at, at + side**2) for at in (head, head + side**2 + middle)]
    random = np.random.Generator(np.random.Philox(key=seed))
    made = []
    with safe_open(file, framework="pt") as tensors:
        table = tensors.get_tensor(TABLE)  # mapped: only the rows that are taken are read
        for _ in range(prompts):
            rows_SD = table[torch.from_numpy(random.integers(0, len(table), tokens))].float()
            for image in images:
                rows_SD[image] += rows_SD[image][0].clone()
            made.append(CalibrationPrompt(rows_SD, positions_3S))
    return made


def _make_checkpoint(config: FullSizeConfig) -> float:
    """Seconds that it took; 0 if an earlier run left it."""
    described = f"{DESCRIPTION}, seed {config.seed}, {config.outlier_channels} outliers"
    policy = dataclasses.replace(full(), license="none (random weights)", description=described)
    spelled = config.folder / "config.json"
    if spelled.is_file() and spelled.read_text() != policy.to_json():
        raise ValueError(
            f"{config.folder} is there, and it is no {described}: choose another folder, or "
            "remove it"
        )
    if (config.folder / INDEX).is_file():
        return 0.0
    start = time.monotonic()
    print(f"{config.folder}: {described}", flush=True)
    write = partial(
        write_random_language, seed=config.seed, outlier_channels=config.outlier_channels
    )
    # Elsewhere: the token table takes more memory to make than a layer takes to quantize.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(write, config.folder, policy).result()
    return time.monotonic() - start


def _remove(folder: Path) -> None:
    """Unless something came into it meanwhile."""
    if (words := foreign(folder)) is None:
        shutil.rmtree(folder)
    else:
        print(f"{folder}: left as it is, for {words}")


def _file_name(tensor: str) -> str:
    """A file for each layer, one for the token table, one for the final norm."""
    if tensor.startswith(LAYERS):
        index = int(tensor.removeprefix(LAYERS).partition(".")[0])
        return f"model-layer-{index:02d}.safetensors"
    return f"model-{tensor.removeprefix(LANGUAGE).partition('.')[0]}.safetensors"
