"""python -m models synthesize: a checkpoint of any size as others write it, with random weights.

In: a configuration, a layout and a seed. Out: a folder as one that was trained would be, whole or
not at all, to try import, export and board before there is one. Layouts of one seed hold the same
policy, bit for bit. One tensor is in memory at a time.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from models.checkpoint import POLICY, read_tokenizer, write_surroundings
from models.config_file import configuration
from models.families import FAMILIES, family_of, read_config, to_json
from models.init import image_of, statistics_of
from models.layouts import (
    lerobot_writer,
    own_writer,
    prismatic_writer,
    showo_writer,
    starvla_writer,
)
from models.random_weights import random_weights
from models.verbs import Synthesize
from runtime.board.machine import peak_bytes
from runtime.errors import OutputError
from runtime.storage.folders import check_disk, exclusive, publish, temporary

DESCRIPTION = "synthesized, seeded random weights"
RUN_WRITERS = (starvla_writer, prismatic_writer, lerobot_writer, showo_writer, own_writer)
"""Each tells by a mark of its own what it wrote."""
BESIDE = {POLICY, "preprocessor_config.json", "dataset_statistics.json", "tokenizer.json"}


def synthesize(arguments: Synthesize) -> Path:
    """Do what `Synthesize` says, with a line per file of weights.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        ValueError: the configuration, its tokenizer and the number of shards do not fit together.
    """
    config = dataclasses.replace(
        FAMILIES[arguments.family].presets[arguments.config]()
        if arguments.family
        else configuration(arguments.config),
        description=f"{DESCRIPTION} (seed {arguments.seed}, {arguments.outlier_channels} outlier "
        "channels): the arithmetic is real, the behaviour is not",
    )
    if not arguments.tokenizer.is_file():
        raise ValueError(f"{arguments.tokenizer}: no such file; name a tokenizer.json")
    read_tokenizer(arguments.tokenizer, config)
    family = family_of(config)
    family.check_writable(config, arguments)
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
            if arguments.layout in ("hf", "authors"):  # a run folder has settings of its own
                (folder / POLICY).write_text(to_json(config))
                write_surroundings(
                    folder,
                    tokenizer=arguments.tokenizer,
                    image=image_of(config),
                    statistics=statistics_of(config),
                )
            family.write(
                folder, weights, config, arguments, DESCRIPTION,
                lambda line: print(f"  {line}", flush=True),
            )  # fmt: skip
        except (OSError, RuntimeError) as error:  # torch's own writer says it the second way
            raise OutputError(f"{out}: cannot be written: {error}; free some space") from error
        publish(folder, out, foreign)
    print(f"{out}: written, {peak_bytes() / 1e9:.2f} GB of memory at most")
    return out


def foreign(folder: Path) -> str | None:
    """What keeps a folder from being one that `synthesize` wrote."""
    marked = [writer for writer in RUN_WRITERS if writer.mark_of(folder) == DESCRIPTION]
    if marked:
        beside, written = set(), marked[0].WRITTEN
    else:
        try:
            config = read_config(folder / POLICY)
        except (OSError, ValueError):
            config = None
        if config is None or not config.description.startswith(DESCRIPTION):
            return "it holds no synthesized weights of this command"
        beside, written = BESIDE, family_of(config).written
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not (name in beside or written.fullmatch(name)):
            return f"{name} is not of this command"
    return None
