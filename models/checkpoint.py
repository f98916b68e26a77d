"""Checkpoint folders: strict reading, and writing of seeded random ones.

A folder holds `config.json`, `model.safetensors` (or shards with `model.safetensors.index.json`),
`tokenizer.json`, `preprocessor_config.json` and `dataset_statistics.json`. Nothing is skipped and
nothing is guessed: whatever does not fit is an error that lists the names (`models.weights`,
`models.processor`, `models.statistics`).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from models.anchorvla4d.config import PolicyConfig
from models.anchorvla4d.policy import AnchorVLA4D, PromptParts
from models.errors import CheckpointError as CheckpointError
from models.json_file import refuse_pointer
from models.layouts import hugging_face
from models.layouts.hugging_face import INDEX as INDEX
from models.layouts.hugging_face import WEIGHTS as WEIGHTS  # for whoever asks what is in one
from models.processor import read_image_config
from models.random_weights import random_tensors
from models.sources import Weights, some
from models.statistics import read_statistics
from models.weights import load_weights, open_weights
from runtime.image import ImageConfig, PatchMaker, grid_of
from runtime.normalization import Normalization, choose_embodiment
from runtime.prompt import encode_tail

POLICY = "policy.json"
"""A policy's configuration, where `config.json` is that of its vision-language model alone."""
SHARD_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint: the float32 policy, its weights on disk, and everything around it."""

    path: Path
    config: PolicyConfig
    model: AnchorVLA4D
    tokenizer: Tokenizer
    image: ImageConfig
    statistics: dict[str, Any]
    sha256: str
    """Over the weight files, in name order."""

    @property
    def parts(self) -> PromptParts:
        return PromptParts.of(self.config.prompt, self.tokenizer)

    def tail_ids(self, instruction: str) -> tuple[int, ...]:
        parts = self.parts
        return encode_tail(self.tokenizer, parts.tail, parts.end_ids, instruction)


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """A checkpoint of any layout, of which no weights have been read yet."""

    path: Path
    config: PolicyConfig
    tokenizer: Tokenizer
    image: ImageConfig
    statistics: dict[str, Any]
    weights: Weights


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder. Weights are checked, and read again when they are used.

    Raises:
        CheckpointError: a file is missing or damaged; tensors are missing, extra, of another shape
            or not finite; statistics do not fit the configuration.
    """
    opened = open_checkpoint(path)
    with torch.device("meta"):
        model = AnchorVLA4D(opened.config)
    load_weights(model, opened.weights)
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
    )


def open_checkpoint(path: Path) -> OpenCheckpoint:
    """Everything of a checkpoint folder but its weights, and where each of those is read.

    The policy's configuration is `policy.json`, or `config.json` where there is none. With both,
    `config.json` is that of a Qwen2.5-VL, and must agree.

    Raises:
        CheckpointError: a file is missing or damaged; tensors are missing, extra or of another
            shape; statistics do not fit the configuration.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    preprocessor = path / "preprocessor_config.json"
    policy = path / POLICY
    try:
        config = PolicyConfig.from_json(
            policy if policy.is_file() else _required(path / "config.json")
        )
        image = read_image_config(_required(preprocessor))
        statistics = _read_statistics(_required(path / "dataset_statistics.json"), config)
        tokenizer = read_tokenizer(_required(path / "tokenizer.json"), config)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if policy.is_file() and (path / "config.json").is_file():
        hugging_face.check_config(path / "config.json", config)
    vision = config.vision
    makes = (image.temporal_patch_size, image.patch_size, image.merge_size)
    reads = (vision.temporal_patch_size, vision.patch_size, vision.spatial_merge_size)
    if makes != reads:
        raise CheckpointError(
            f"{preprocessor}: frames, pixels and merge of a patch are {makes}, the vision tower of "
            f"{policy.name if policy.is_file() else 'config.json'} reads {reads}"
        )
    return OpenCheckpoint(path, config, tokenizer, image, statistics, open_weights(path, config))


@torch.no_grad()
def reference(
    checkpoint: Checkpoint,
    *,
    anchor: np.ndarray,
    frame: np.ndarray,
    instruction: str,
    state: np.ndarray,
    noise: np.ndarray,
    leftover: np.ndarray | None = None,
    embodiment: str | None = None,
) -> np.ndarray:
    """The float32 reference from camera to robot units: observation, noise -> action chunk.

    Args:
        checkpoint: the policy.
        anchor: first frame, uint8 [H, W, 3] RGB.
        frame: current frame, uint8 [H, W, 3] RGB.
        instruction: one line of text.
        state: [S] float32 in robot units.
        noise: [T, A] float32 standard normal.
        leftover: [T, 1 + A] float32, what is left of the last chunk: per action its weight in
            [0, 1], and the action in robot units; nothing by default.
        embodiment: key of the statistics.

    Returns:
        [T, A] float32 in robot units.
    """
    grid = grid_of(frame.shape[0], frame.shape[1], checkpoint.image)
    make = PatchMaker(checkpoint.image, grid)

    def patches(image: np.ndarray) -> torch.Tensor:
        out = np.empty((grid[0] * grid[1], checkpoint.image.patch_dim), np.float32)
        make(image, out)
        return torch.from_numpy(out)

    key = choose_embodiment(checkpoint.statistics, embodiment)
    to_policy, to_robot = normalizations(checkpoint.config, checkpoint.statistics[key], key)
    left = () if leftover is None else (to_robot.to_policy(leftover[:, 1:]), leftover[:, :1])
    actions = checkpoint.model(
        patches(anchor),
        patches(frame),
        grid,
        checkpoint.parts,
        checkpoint.tail_ids(instruction),
        torch.from_numpy(to_policy.to_policy(state.astype(np.float32))),
        torch.from_numpy(noise),
        *map(torch.from_numpy, left),
    )
    answered = to_robot.to_robot(actions.numpy())
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
    (path / "config.json").write_text(config.to_json())
    write_surroundings(path, tokenizer=tokenizer, image=image, statistics=statistics)
    with torch.device("meta"):
        model = AnchorVLA4D(config)
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


def image_fields(image: ImageConfig) -> dict[str, Any]:
    return {name: getattr(image, name) for name in ImageConfig.__slots__}


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
    try:
        for embodiment, entry in statistics.items():
            normalizations(config, entry, embodiment)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return statistics


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
    if size > rows or not 0 <= config.prompt.placeholder_token_id < rows:
        raise CheckpointError(
            f"{path}: ids below {size} and placeholder {config.prompt.placeholder_token_id} do not "
            f"fit the {rows} rows of the embedding table"
        )
    p = config.prompt
    for token in (p.image_start, p.image_end, p.end):
        if tokenizer.token_to_id(token) is None:
            raise CheckpointError(f"{path}: has no token {token!r}, which the prompt needs")
    return tokenizer
