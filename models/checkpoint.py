"""Checkpoint folders: strict reading, and writing of seeded random ones.

A folder holds `config.json`, `model.safetensors` (or shards with `model.safetensors.index.json`),
`tokenizer.json`, `preprocessor_config.json` and `dataset_statistics.json`. Nothing is skipped and
nothing is guessed: whatever does not fit is an error that lists the names (`models.sources`,
`models.processor`, `models.statistics`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from models.errors import CheckpointError as CheckpointError
from models.families import family_of, read_config, to_json
from models.json_file import refuse_pointer
from models.layouts import hugging_face, runs
from models.layouts.hugging_face import INDEX as INDEX
from models.layouts.hugging_face import WEIGHTS as WEIGHTS  # for whoever asks what is in one
from models.networks.config import AnyLanguageConfig, AnyVisionConfig
from models.policy_config import PolicyConfig
from models.processor import image_fields, read_image_config
from models.prompt_parts import PromptParts
from models.random_weights import random_tensors
from models.sources import Misfits, Weights, is_finite, some
from models.statistics import read_statistics
from models.stored import StoredTensor, put
from runtime.declarations import Input
from runtime.image import ImageConfig
from runtime.normalization import Normalization, choose_embodiment

POLICY = "policy.json"
"""A policy's configuration, where `config.json` is that of its vision-language model alone."""
SHARD_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint: the float32 policy, its weights on disk, and everything around it."""

    path: Path
    config: PolicyConfig
    model: nn.Module
    tokenizer: Tokenizer
    image: ImageConfig
    statistics: dict[str, Any]
    sha256: str
    """Over the weight files, in name order."""
    tokenizer_file: Path = Path("tokenizer.json")
    """Of `tokenizer`."""

    @property
    def parts(self) -> PromptParts:
        return family_of(self.config).prompt(self.config, self.tokenizer)

    def inputs(self, image_size: tuple[int, int], samples: int = 1) -> dict[str, Input]:
        """What a graph of it is given, for images of this width and height.

        Args:
            samples: chunks that are drawn at once.
        """
        (width, height), family = image_size, family_of(self.config)
        return family.inputs(self.config, self.parts, (height, width, 3), 1, samples)

    def tail_ids(self, instruction: str) -> tuple[int, ...]:
        return self.parts.tail_ids(self.tokenizer, instruction)


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """A checkpoint of any layout, of which no weights have been read yet."""

    path: Path
    config: PolicyConfig
    tokenizer: Tokenizer
    tokenizer_file: Path
    image: ImageConfig
    statistics: dict[str, Any]
    weights: Weights
    said: tuple[str, ...] = ()
    """What it was taken for, in lines, where a layout had to find that out."""


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder. Weights are checked, and read again when they are used.

    Raises:
        CheckpointError: a file is missing or damaged; tensors are missing, extra, of another shape
            or not finite; statistics do not fit the configuration.
    """
    opened = open_checkpoint(path)
    with torch.device("meta"):
        model = family_of(opened.config).model(opened.config)
    load_weights(model, opened.weights)
    for line in opened.said:
        print(f"{path}: {line}", file=sys.stderr)
    if unused := opened.weights.unused:
        print(
            f"{path}: left out, as this policy does not use it: {some([u.name for u in unused])}",
            file=sys.stderr,
        )
    return Checkpoint(
        path,
        opened.config,
        model.eval(),
        opened.tokenizer,
        opened.image,
        opened.statistics,
        opened.weights.sha256(),
        opened.tokenizer_file,
    )


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Give `model`, which is on the meta device, its parameters: checked, and left on disk.

    Raises:
        CheckpointError: some hold NaN or infinity.
    """
    misfits = Misfits()
    for name, source in weights.items():
        if not is_finite(source.read().float()):
            names = dict.fromkeys(stored.name for stored in source.stored)
            misfits.broken.append(" + ".join(names))
        put(model, name, StoredTensor(source.shape, torch.float32, source.read))
    misfits.refuse(Path(os.path.commonpath([file.parent for file in weights.files])))


def open_checkpoint(path: Path) -> OpenCheckpoint:
    """Everything of a checkpoint folder but its weights, and where each of those is read.

    The policy's configuration is `policy.json`, or `config.json` where there is none. With both,
    `config.json` is that of a Qwen2.5-VL, and must agree. Folders of `models.layouts.runs` have
    none: their layout makes one. Of a run of starVLA, `path` may also be a file of weights in it.

    Raises:
        CheckpointError: a file is missing or damaged; tensors are missing, extra or of another
            shape; statistics do not fit the configuration.
    """
    if runs.is_in(path):
        return _open_run(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    preprocessor = path / "preprocessor_config.json"
    policy = path / POLICY
    try:
        config = read_config(policy if policy.is_file() else _required(path / "config.json"))
        image = read_image_config(_required(preprocessor))
        statistics = _read_statistics(_required(path / "dataset_statistics.json"), config)
        tokenizer = read_tokenizer(_required(path / "tokenizer.json"), config)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if policy.is_file() and (path / "config.json").is_file():
        vision, language = config.vision, config.language
        if not (isinstance(vision, AnyVisionConfig) and isinstance(language, AnyLanguageConfig)):
            raise CheckpointError(
                f"{path}: a config.json beside policy.json has to be a Qwen-VL's, and a "
                f"{config.model_type} has none; remove one of the two"
            )
        hugging_face.check_config(path / "config.json", vision, language)
    _check_patches(preprocessor, image, config, policy.name if policy.is_file() else "config.json")
    weights = family_of(config).open_weights(path, config)
    return OpenCheckpoint(
        path, config, tokenizer, path / "tokenizer.json", image, statistics, weights
    )


def _open_run(path: Path) -> OpenCheckpoint:
    """
    Raises:
        CheckpointError: as `open_checkpoint`.
    """
    try:
        run = runs.open_run(path)
        _check_statistics(path, run.statistics, run.config)
        tokenizer = read_tokenizer(run.tokenizer, run.config)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    _check_patches(path, run.image, run.config, "the run")
    return OpenCheckpoint(
        path, run.config, tokenizer, run.tokenizer, run.image, run.statistics, run.weights, run.said
    )


def _check_patches(where: Path, image: ImageConfig, config: PolicyConfig, of: str) -> None:
    vision = config.vision
    makes = (image.temporal_patch_size, image.patch_size, image.merge_size)
    reads = (vision.temporal_patch_size, vision.patch_size, vision.spatial_merge_size)
    if makes != reads:
        raise CheckpointError(
            f"{where}: frames, pixels and merge of a patch are {makes}, the vision tower of "
            f"{of} reads {reads}"
        )


def reference(
    checkpoint: Checkpoint,
    *,
    instruction: str,
    leftover: NDArray[np.float32] | None = None,
    embodiment: str | None = None,
    **given: NDArray[Any],
) -> NDArray[np.float32]:
    """The float32 reference from camera to robot units: observation, noise -> action chunk.

    Args:
        checkpoint: the policy.
        instruction: one line of text.
        leftover: [T, 1 + A] float32, what is left of the last chunk: per action its weight in
            [0, 1], and the action in robot units; nothing by default.
        embodiment: key of the statistics.
        given: the policy's other inputs: pictures, uint8 [H, W, 3] RGB; `state`, [S] float32 in
            robot units, if it takes one; `noise`, [T, A] float32 standard normal, if it draws one.

    Returns:
        [T, A] float32 in robot units.
    """
    key = choose_embodiment(checkpoint.statistics, embodiment)
    to_policy, to_robot = normalizations(checkpoint.config, checkpoint.statistics[key], key)
    observed = dict(given)
    if "state" in given:
        observed["state"] = to_policy.to_policy(given["state"].astype(np.float32))
    if leftover is not None:
        observed |= {"leftover": to_robot.to_policy(leftover[:, 1:]), "weights": leftover[:, :1]}
    actions = family_of(checkpoint.config).actions(
        checkpoint.model,
        checkpoint.parts,
        checkpoint.image,
        checkpoint.tail_ids(instruction),
        observed,
    )
    answered = to_robot.to_robot(actions)
    if leftover is None:
        return answered
    return np.where(leftover[:, :1] == 1, leftover[:, 1:], answered)


def normalizations(
    config: PolicyConfig, statistics: dict[str, Any], what: str
) -> tuple[Normalization, Normalization]:
    """Mappings of the state and of the action for one robot's statistics."""
    n = config.normalization
    pairs = {"state": (n.state, n.state_units), "action": (n.action, n.action_units)}
    state, action = (
        Normalization.from_statistics(statistics[kind], *pairs[kind], what=f"{what}.{kind}")
        for kind in ("state", "action")
    )
    return state, action


def write_random_checkpoint(
    path: Path,
    config: PolicyConfig,
    *,
    tokenizer: Path,
    image: ImageConfig,
    statistics: dict[str, Any],
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a checkpoint folder with seeded random weights (`models.random_weights`), shard by
    shard, and `say` each."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(to_json(config))
    write_surroundings(path, tokenizer=tokenizer, image=image, statistics=statistics)
    with torch.device("meta"):
        model = family_of(config).model(config)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(_shards(random_tensors(model, seed))):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, path / name)
        (path / name).chmod(0o644)  # the library writes it for its owner only
        weight_map.update(dict.fromkeys(shard, name))
        say(f"{name}: {sum(t.nbytes for t in shard.values()) / 1e9:.2f} GB")
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}, indent=1) + "\n")


def write_surroundings(
    path: Path, *, tokenizer: Path, image: ImageConfig, statistics: dict[str, Any]
) -> None:
    """Write what a checkpoint folder holds beside its configuration and its weights."""
    (path / "preprocessor_config.json").write_text(json.dumps(image_fields(image), indent=2) + "\n")
    (path / "dataset_statistics.json").write_text(json.dumps(statistics, indent=2) + "\n")
    shutil.copyfile(tokenizer, path / "tokenizer.json")


def _shards(
    tensors: Iterator[tuple[str, torch.Tensor]],
) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, value in tensors:
        if size and size + value.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = value
        size += value.nbytes
    yield shard


def _required(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    return path


def _read_statistics(path: Path, config: PolicyConfig) -> dict[str, Any]:
    statistics = read_statistics(path)
    _check_statistics(path, statistics, config)
    return statistics


def _check_statistics(where: Path, statistics: dict[str, Any], config: PolicyConfig) -> None:
    try:
        for embodiment, entry in statistics.items():
            normalizations(config, entry, embodiment)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_tokenizer(path: Path, config: PolicyConfig) -> Tokenizer:
    """
    Raises:
        CheckpointError: the file is no tokenizer, or not one that the policy can be told with.
    """
    refuse_pointer(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: not a tokenizer: {error}") from None
    size, rows = 1 + max(tokenizer.get_vocab().values()), config.language.vocab_size
    if size > rows or not all(0 <= known < rows for known in config.special_ids):
        raise CheckpointError(
            f"{path}: ids below {size} and {', '.join(map(str, config.special_ids))} of the prompt "
            f"do not fit the {rows} rows of the embedding table"
        )
    for token in config.special_tokens:
        if tokenizer.token_to_id(token) is None:
            raise CheckpointError(f"{path}: has no token {token!r}, which the prompt needs")
    return tokenizer
