"""python -m models synthesize: a checkpoint of any size as others write it, with random weights.

In: a configuration, a layout and a seed. Out: a folder as one that was trained would be, whole or
not at all, to try import, export and board before there is one. Layouts of one seed hold the same
policy, bit for bit. One tensor is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import torch

from models.anchorvla4d.config import PolicyConfig
from models.checkpoint import POLICY, read_tokenizer, write_surroundings
from models.config_file import configuration
from models.init import image_of, statistics_of
from models.layouts.hugging_face import INDEX
from models.layouts.megatron import FILE, TRACKER, places
from models.layouts.qwen_config import Spelling, qwen_config
from models.layouts.writers import write_megatron, write_sharded, write_torch
from models.random_weights import random_weights
from models.sources import Source, Weights
from models.verbs import Synthesize
from runtime.board.machine import peak_bytes
from runtime.errors import OutputError
from runtime.storage.folders import check_disk, exclusive, publish, temporary

DESCRIPTION = "synthesized, seeded random weights"
FILES = {
    POLICY, "config.json", "preprocessor_config.json", "dataset_statistics.json", "tokenizer.json",
    INDEX, "action_head.pt", "info_sharing.pt", TRACKER,
}  # fmt: skip
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_RANK = re.compile(rf"iter_\d{{7}}(/mp_rank_\d{{2,}}(/{re.escape(FILE)})?)?")


def synthesize(arguments: Synthesize) -> Path:
    """Do what `Synthesize` says, with a line per file of weights.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        ValueError: the configuration, its tokenizer and the number of shards do not fit together.
    """
    config = dataclasses.replace(
        configuration(arguments.config),
        description=f"{DESCRIPTION} (seed {arguments.seed}, {arguments.outlier_channels} outlier "
        "channels): the arithmetic is real, the behaviour is not",
    )
    if not arguments.tokenizer.is_file():
        raise ValueError(f"{arguments.tokenizer}: no such file; name a tokenizer.json")
    read_tokenizer(arguments.tokenizer, config)
    if arguments.layout == "authors":
        places(config, arguments.shards)  # can it be cut so?
    weights = random_weights(
        config,
        arguments.seed,
        outlier_channels=arguments.outlier_channels,
        dtype=getattr(torch, arguments.dtype),
    )
    out = arguments.out
    print(
        f"{out}: {arguments.config}, {weights.num_bytes / 1e9:.2f} GB of random weights", flush=True
    )
    with exclusive(out, foreign), temporary(out) as folder:
        check_disk(out, weights.num_bytes)
        try:
            _write(folder, config, weights, arguments)
        except (OSError, RuntimeError) as error:  # torch's own writer says it the second way
            raise OutputError(f"{out}: cannot be written: {error}; free some space") from error
        publish(folder, out, foreign)
    print(f"{out}: written, {peak_bytes() / 1e9:.2f} GB of memory at most")
    return out


def foreign(folder: Path) -> str | None:
    """What keeps a folder from being one that `synthesize` wrote."""
    try:
        described = json.loads((folder / POLICY).read_bytes())["description"]
    except (OSError, ValueError, KeyError, TypeError):
        described = ""
    if not str(described).startswith(DESCRIPTION):
        return "it holds no synthesized weights of this command"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not (name in FILES or _SHARD.fullmatch(name) or _RANK.fullmatch(name)):
            return f"{name} is not of this command"
    return None


def _write(folder: Path, config: PolicyConfig, weights: Weights, arguments: Synthesize) -> None:
    def say(line: str) -> None:
        print(f"  {line}", flush=True)

    (folder / POLICY).write_text(config.to_json())
    write_surroundings(
        folder,
        tokenizer=arguments.tokenizer,
        image=image_of(config),
        statistics=statistics_of(config),
    )
    if arguments.layout == "authors":
        write_megatron(folder, weights, config, ranks=arguments.shards, say=say)
        return
    spelled = qwen_config(config, arguments.names, arguments.dtype)
    (folder / "config.json").write_text(json.dumps(spelled, indent=2) + "\n")
    parts = _hugging_face_parts(weights, arguments.names)
    write_sharded(folder, parts["vlm"], DESCRIPTION, say)
    for part in ("action_head", "info_sharing"):
        write_torch(folder / f"{part}.pt", parts[part])
        say(f"{part}.pt: {(folder / f'{part}.pt').stat().st_size / 1e9:.2f} GB")


def _hugging_face_parts(weights: Weights, spelling: Spelling) -> dict[str, dict[str, Source]]:
    """The parameters of each part of a policy, under the names that its own file has."""
    parts: dict[str, dict[str, Source]] = {}
    for name, source in weights.items():
        part, _, inside = name.partition(".")
        if part == "vlm" and spelling == "newer":
            if inside.startswith("model."):
                inside = "model.language_model." + inside.removeprefix("model.")
            else:
                inside = f"model.{inside}"
        parts.setdefault(part, {})[inside] = source
    return parts
