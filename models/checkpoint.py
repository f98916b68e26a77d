"""Checkpoint folders: strict reading, and writing of seeded random ones.

A folder holds `config.json`, `model.safetensors` (or shards with `model.safetensors.index.json`),
`tokenizer.json`, `preprocessor_config.json` and `dataset_statistics.json`. Nothing is skipped and
nothing is guessed: whatever does not fit is an error that lists the names.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from models.anchorvla4d import AnchorVLA4D, PromptParts
from models.config import PolicyConfig
from models.spatial import reference_view
from runtime.bundle import sha256_of
from runtime.image import ImageConfig, PatchMaker, grid_of
from runtime.normalization import Normalization, choose_robot
from runtime.prompt import encode_tail

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 1 << 30
LISTED = 8
"""Names shown in an error before "and so many more"."""


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint: the float32 policy and everything around it."""

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


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder; weights become float32.

    Raises:
        CheckpointError: a file is missing or damaged; tensors are missing, extra, of another shape
            or not finite; statistics do not fit the configuration.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    try:
        config = PolicyConfig.from_json(_required(path / "config.json"))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    preprocessor = _required(path / "preprocessor_config.json")
    try:
        image = read_image_config(preprocessor)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{preprocessor}: {error}") from None
    statistics = _read_statistics(_required(path / "dataset_statistics.json"), config)
    tokenizer = _read_tokenizer(_required(path / "tokenizer.json"), config)
    vision = config.vision
    makes = (image.temporal_patch_size, image.patch_size, image.merge_size)
    reads = (vision.temporal_patch_size, vision.patch_size, vision.spatial_merge_size)
    if makes != reads:
        raise CheckpointError(
            f"{preprocessor}: frames, pixels and merge of a patch are {makes}, the vision tower of "
            f"config.json reads {reads}"
        )
    files = weight_files(path)
    with torch.device("meta"):
        model = AnchorVLA4D(config)
    _load_weights(model, files)
    digest = hashlib.sha256()
    for file in files:
        digest.update(sha256_of(file).encode())
    return Checkpoint(path, config, model.eval(), tokenizer, image, statistics, digest.hexdigest())


@torch.no_grad()
def reference(
    checkpoint: Checkpoint,
    *,
    anchor: np.ndarray,
    frame: np.ndarray,
    instruction: str,
    state: np.ndarray,
    noise: np.ndarray,
    robot: str | None = None,
) -> np.ndarray:
    """The float32 reference from camera to robot units: observation, noise -> action chunk.

    Args:
        checkpoint: the policy.
        anchor: first frame, uint8 [H, W, 3] RGB.
        frame: current frame, uint8 [H, W, 3] RGB.
        instruction: one line of text.
        state: [S] float32 in robot units.
        noise: [T, A] float32 standard normal.
        robot: key of the statistics.

    Returns:
        [T, A] float32 in robot units.
    """
    grid = grid_of(frame.shape[0], frame.shape[1], checkpoint.image)
    make = PatchMaker(checkpoint.image, grid)

    def patches(image: np.ndarray) -> torch.Tensor:
        out = np.empty((grid[0] * grid[1], checkpoint.image.patch_dim), np.float32)
        make(image, out)
        return torch.from_numpy(out)

    key = choose_robot(checkpoint.statistics, robot)
    to_policy, to_robot = normalizations(checkpoint.config, checkpoint.statistics[key], key)
    actions = checkpoint.model(
        patches(anchor),
        patches(frame),
        grid,
        checkpoint.parts,
        checkpoint.tail_ids(instruction),
        torch.from_numpy(to_policy.to_policy(state.astype(np.float32))),
        torch.from_numpy(noise),
    )
    return to_robot.to_robot(actions.numpy())


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


def read_image_config(path: Path) -> ImageConfig:
    """Settings of a Hugging Face `preprocessor_config.json`, in either of its two spellings."""
    raw = json.loads(path.read_text())
    size = raw.get("size", {})
    fields = {
        "min_pixels": raw.get("min_pixels", size.get("shortest_edge")),
        "max_pixels": raw.get("max_pixels", size.get("longest_edge")),
    }
    if None in fields.values():
        raise ValueError("states no min_pixels and max_pixels")
    for name in ("patch_size", "temporal_patch_size", "merge_size", "rescale_factor"):
        if name in raw:
            fields[name] = raw[name]
    for name in ("image_mean", "image_std"):
        if name in raw:
            fields[name] = tuple(raw[name])
    return ImageConfig(**fields)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint, after checking that index and shards agree.

    Raises:
        CheckpointError: no weights, a missing shard, or a git-lfs pointer in place of one.
    """
    index = path / INDEX
    if index.is_file():
        try:
            weight_map = dict(json.loads(index.read_text())["weight_map"])
            files = [path / name for name in sorted(set(weight_map.values()))]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{index}: not an index of shards: {error!r}") from None
        if missing := [f.name for f in files if not f.is_file()]:
            raise CheckpointError(f"{index}: names shards that are not there: {_some(missing)}")
    else:
        weight_map, files = None, [path / WEIGHTS]
        if not files[0].is_file():
            raise CheckpointError(f"{path}: neither {WEIGHTS} nor {INDEX} in it")
    for file in files:
        with file.open("rb") as stream:
            if stream.read(40).startswith(b"version https://git-lfs"):
                raise CheckpointError(f"{file}: a git-lfs pointer, not weights; run: git lfs pull")
    if weight_map is not None:
        stored = {name: file.name for file in files for name in _open(file).keys()}  # noqa: SIM118
        if stored != weight_map:
            wrong = sorted(
                n for n in stored.keys() | weight_map.keys() if stored.get(n) != weight_map.get(n)
            )
            raise CheckpointError(f"{index}: index and shards disagree about {_some(wrong)}")
    return files


def write_random_checkpoint(
    path: Path,
    config: PolicyConfig,
    *,
    tokenizer: Path,
    image: ImageConfig,
    statistics: dict[str, Any],
    seed: int,
) -> None:
    """Write a checkpoint folder with seeded random weights, shard by shard.

    Every tensor comes from a generator keyed by its name and the seed, so the numbers depend on
    neither torch nor the order of modules. Products keep their input's scale (1 / sqrt(fan-in)).
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(config.to_json())
    (path / "preprocessor_config.json").write_text(json.dumps(image_fields(image), indent=2) + "\n")
    (path / "dataset_statistics.json").write_text(json.dumps(statistics, indent=2) + "\n")
    shutil.copyfile(tokenizer, path / "tokenizer.json")
    with torch.device("meta"):
        model = AnchorVLA4D(config)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(_shards(random_tensors(model, seed))):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, path / name)
        (path / name).chmod(0o644)  # the library writes it for its owner only
        weight_map.update(dict.fromkeys(shard, name))
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}, indent=1) + "\n")


def image_fields(image: ImageConfig) -> dict[str, Any]:
    return {name: getattr(image, name) for name in ImageConfig.__slots__}


def random_tensors(model: AnchorVLA4D, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and seeded random value of every tensor of `model`, in order."""
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        if name.endswith("view_pos_table"):
            yield name, reference_view(model.config.spatial.dim)
            continue
        key = zlib.crc32(name.encode()) << 32 | seed
        normal = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, np.float32)
        if len(shape) > 1:
            normal /= np.float32(np.sqrt(np.prod(shape[1:])))
        elif "norm" in name and name.endswith("weight") or name.endswith("ln_q.weight"):
            normal = 1 + 0.1 * normal
        else:
            normal *= np.float32(0.1)
        yield name, torch.from_numpy(normal)


def _load_weights(model: AnchorVLA4D, files: list[Path]) -> None:
    """Stream every tensor into `model`, which is on the meta device."""
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found: dict[str, Path] = {}
    misshaped, broken, extra = [], [], []
    for file in files:
        with _open(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118
                found[name] = file
                shape = tuple(tensors.get_slice(name).get_shape())
                if name not in wanted:
                    extra.append(name)
                elif shape != wanted[name]:
                    misshaped.append(f"{name} {list(shape)}, expected {list(wanted[name])}")
                else:
                    value = tensors.get_tensor(name).float()
                    if not torch.isfinite(value).all():
                        broken.append(name)
                    model.load_state_dict({name: value}, strict=False, assign=True)
    missing = sorted(wanted.keys() - found.keys())
    problems = [
        f"{label}: {_some(names)}"
        for label, names in (
            ("missing tensors", missing),
            ("extra tensors", extra),
            ("tensors of another shape", misshaped),
            ("tensors with NaN or infinity", broken),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{files[0].parent}: " + "; ".join(problems))


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


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); copy it again"
        ) from None


def _required(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    return path


def _read_statistics(path: Path, config: PolicyConfig) -> dict[str, Any]:
    try:
        statistics = json.loads(path.read_text())
        if not isinstance(statistics, dict) or not statistics:
            raise ValueError("holds no robot")
        for robot, entry in statistics.items():
            normalizations(config, entry, robot)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return statistics


def _read_tokenizer(path: Path, config: PolicyConfig) -> Tokenizer:
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


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
