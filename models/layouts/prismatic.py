"""A folder of VLA-Adapter, Pro, as its authors publish it, read as a policy.

In: the folder: config.json and preprocessor_config.json, safetensors of the merged model, a file of
torch each for the action head and the state's projector, dataset_statistics.json, tokenizer.json.
Out: a policy's configuration, its image settings, statistics, and where each parameter is read. The
configuration is put together: sizes from the tensors, heads of the towers from timm's names, chunk,
modes, units and cameras from a table by robot (`prismatic_robots`). Nothing in a file is run, and
what is believed without being seen is said (`Run.said`). Relatives that are not here, OpenVLA and
its fine-tunings among them, are refused by name.

Source: VLA-Adapter at snapshot 838a36d, experiments/robot/openvla_utils.py for what is loaded from
where, vla-scripts/finetune.py for what is saved, prismatic/extern/hf/modeling_prismatic.py and
prismatic/models/action_heads.py for the names.

Axes: D = width of a tower or of the decoder.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from models.init import image_of
from models.layouts import hugging_face
from models.layouts.prismatic_networks import (
    HEAD,
    LAYERS,
    NAMES,
    language_of,
    unused_tensors,
    vision_of,
)
from models.layouts.prismatic_robots import (
    HOW,
    OWN,
    ROBOTS,
    Own,
    normalization,
    read_own,
    robot_of,
    units,
)
from models.layouts.prismatic_settings import (
    ADAPTER,
    CONFIG,
    COPY,
    OTHER_MODELS,
    PARTS,
    POLICY,
    PREPROCESSOR,
    STATISTICS,
    TOKENIZER,
    Settings,
    check_images,
    parts,
    read_settings,
)
from models.layouts.runs import Run, counted
from models.layouts.tensors import LORA, Shapes, count, refuse_wrapped, sizes
from models.networks.config import BridgeConfig
from models.policy_config import NormalizationConfig
from models.sources import Stored, parameter_shapes, some
from models.statistics import read_statistics
from models.vlaadapter.config import VLAAdapterConfig
from models.vlaadapter.presets import libero

NUMBERS = ("min", "max", "mean", "std", "q01", "q99")
WRAPPER = "module."
"""In front of the names in a file of torch, if several processes trained."""
FILM = re.compile(r"vision_backbone\.(vision_backbone\.|.*\.blocks\.\d+\.(scale|shift|block)\.).*")
PLAIN = (
    "the plain VLA-Adapter, and only its Pro version is here: what the authors publish to run it "
    "begins every action of a chunk with the same zeros and tells their places apart nowhere, so "
    "all actions of a chunk are equal"
)


def open_run(path: Path) -> Run:
    """Everything but the weights, and where each of those is read.

    Raises:
        ValueError: a file is missing or damaged, of a policy that is not here, or says what does
            not fit together. CheckpointError if tensors do not.
    """
    try:
        if not hugging_face.is_in(path) and (path / ADAPTER).is_dir():
            raise ValueError(f"{path / ADAPTER}: adapters {LORA}; no merged weights are beside it")
        if (path / POLICY).exists():
            raise ValueError(
                f"{path / POLICY}: beside a {CONFIG} that tells a policy by itself; remove it"
            )
        settings, own = read_settings(path / CONFIG), read_own(path)
        files, tensors = _tensors(path)
        shapes = {name: stored.shape for name, stored in tensors}
        if f"{HEAD}0.k_proj.weight" in shapes:
            raise ValueError(f"{files[-2]}: of {PLAIN}")
        statistics = _statistics(path / STATISTICS)
        config, said = _policy(path, shapes, settings, own, statistics)
        check_images(path / PREPROCESSOR, config.vision)
        if not (path / TOKENIZER).is_file():
            raise ValueError(f"{path / TOKENIZER}: missing; {COPY}")
    except ValueError as error:
        named = str(error).startswith(str(path))
        raise ValueError(str(error) if named else f"{path}: {error}") from None
    unused = unused_tensors(config.vision, config.language)
    weights = hugging_face.place(
        path, tensors, files, wanted=parameter_shapes(config),
        unused_names={name: why for name, (_, why) in unused.items()},
    )  # fmt: skip
    if (path / ADAPTER).is_dir():
        said.append(f"note: {ADAPTER} is left out: weights beside it are taken for merged ones")
    names = ", ".join([f"{len(files) - 2} of safetensors", *(file.name for file in files[-2:])])
    lines = ("policy: VLA-Adapter, Pro", f"weights: {names}", *said)
    return Run(config, image_of(config), statistics, path / TOKENIZER, weights, lines)


def _tensors(path: Path) -> tuple[list[Path], list[tuple[str, Stored]]]:
    """What the files hold, by our names; the last two files are those of `PARTS`.

    Raises:
        ValueError: a file is missing or damaged, or of a policy that is not here.
    """
    found = _part_files(path)
    held = hugging_face.read_headers(path)
    tensors = [(s.name, s) for stored in held.values() for s in stored]
    _refuse_others(path, [name for name, _ in tensors], has_head=bool(found[PARTS[0]]))
    files = [_only(path, part, found[part]) for part in PARTS]
    for part, file in zip(PARTS, files, strict=True):
        begin = f"{part}."
        inside = hugging_face.side_tensors(file, begin)
        tensors += [(begin + n.removeprefix(begin).removeprefix(WRAPPER), s) for n, s in inside]
    return [*held, *files], tensors


def _part_files(path: Path) -> dict[str, list[Path]]:
    """Of each part, what may hold it.

    Raises:
        ValueError: a part of a policy that is not here.
    """
    for part, whose in {
        "vision_backbone": "towers that the instruction modulates (FiLM)",
        "noisy_action_projector": "a head that denoises actions (diffusion)",
    }.items():
        if found := parts(path, part):
            raise ValueError(f"{found[0]}: of {whose}, which is not here")
    return {part: parts(path, part) for part in PARTS}


def _only(path: Path, part: str, files: list[Path]) -> Path:
    if not files:
        raise ValueError(
            f"{path}: no {part}--*checkpoint.pt in it, without which there is no policy; {COPY}"
        )
    if len(files) > 1:
        raise ValueError(
            f"{path}: {' and '.join(f.name for f in files)} may both be the {part}; leave the one "
            "that is of the same step as the other weights"
        )
    return files[0]


def _refuse_others(path: Path, names: Collection[str], *, has_head: bool) -> None:
    """
    Raises:
        ValueError: these are the names of a policy that is not here, or a wrapper's.
    """
    if film := [name for name in names if FILM.fullmatch(name)]:
        raise ValueError(
            f"{some(film)}: of towers that the instruction modulates (FiLM), which is not here"
        )
    refuse_wrapped(path, names)
    if not any(name.startswith(NAMES[1]) for name in names):
        raise ValueError(
            f"the weights hold no {NAMES[1]}*: a policy with a single vision tower, which is not "
            "here; two are, DINOv2 and SigLIP"
        )
    if not any(re.fullmatch(re.escape(LAYERS) + r"\d+\.self_attn\.q_proj\.bias", n) for n in names):
        which = "OpenVLA-OFT" if has_head else "OpenVLA"
        raise ValueError(
            f"the weights hold no {LAYERS}N.self_attn.q_proj.bias, so the decoder is a Llama's, "
            f"as of {which}. {OTHER_MODELS}"
        )


def _statistics(path: Path) -> dict[str, Any]:
    """The numbers of each robot, and of its actions which are normalized.

    Raises:
        ValueError: the file lacks what the policy needs, or says that some of the state is not
            normalized.
    """
    if not path.is_file():
        raise ValueError(f"{path}: missing; {COPY}")
    found = read_statistics(path)
    for robot, entry in found.items():
        mask = entry["state"].get("mask", [])
        if not isinstance(mask, list) or not all(is_on is True for is_on in mask):
            raise ValueError(
                f"{path}: {robot}.proprio.mask={mask!r}: the authors' code clips what is not "
                "normalized to -1 and 1 as well, which no mode here does"
            )
    kept = {"state": NUMBERS, "action": (*NUMBERS, "mask")}
    return {
        robot: {kind: {n: v for n, v in entry[kind].items() if n in kept[kind]} for kind in kept}
        for robot, entry in found.items()
    }


def _policy(
    path: Path, shapes: Shapes, settings: Settings, own: Own, statistics: Mapping[str, Any]
) -> tuple[VLAAdapterConfig, list[str]]:
    """The configuration, and in lines how it came about.

    Raises:
        ValueError: tensors, settings or statistics that do not fit together.
    """
    notes: list[str] = []
    vision = vision_of(shapes, settings, own.tower_heads)
    language = language_of(shapes, settings, notes)
    action_dim = sizes(shapes, "action_head.model.fc2.weight", 2)[0]
    state_dim = sizes(shapes, "proprio_projector.fc1.weight", 2)[1]
    blocks = count(shapes, HEAD)
    if f"{HEAD}0.q_proj.weight" not in shapes:
        raise ValueError(f"the weights hold no {HEAD}N.q_proj: a head as of OpenVLA-OFT, not here")
    if blocks != language.num_hidden_layers:
        raise ValueError(
            f"the head has {blocks} blocks and the decoder {language.num_hidden_layers} layers, "
            "of which each block reads one"
        )
    made, views, horizon, by = _robot(own, statistics, action_dim, state_dim)
    config = VLAAdapterConfig(
        vision=vision,
        language=language,
        head=BridgeConfig(
            action_dim=action_dim,
            action_horizon=horizon,
            state_dim=state_dim,
            num_queries=sizes(shapes, "action_queries.weight", 2)[0],
        ),
        normalization=made,
        views=views,
        license=libero().license,
        description=f"VLA-Adapter Pro, {path.resolve().name}",
    )
    words = {
        "vision": vision.words,
        **config.other_networks,
        "queries": str(config.head.num_queries),
        "views": ", ".join(views),
        "actions": f"{horizon} x {action_dim}: {counted(made.action)}",
        "state": counted(made.state),
        "statistics": ", ".join(statistics),
    }
    lines = [f"{what}: {said}" for what, said in words.items()]
    believed = [
        f"chunk, modes, units and views are not in the weights: from {by}",
        f"{config.head.num_heads} attention heads in the head, the prompt, and how pictures are "
        "cut and resized are those of the authors' evaluation, and in no file",
    ]
    return config, [*lines, *(f"note: {note}" for note in [*believed, *notes])]


def _robot(
    own: Own, statistics: Mapping[str, Any], action_dim: int, state_dim: int
) -> tuple[NormalizationConfig, tuple[str, ...], int, str]:
    """Normalization, views, actions in a chunk, and in words what says so.

    Raises:
        ValueError: nothing says so, or what does not fit the head.
    """
    if own.normalization and own.views and own.action_horizon:
        return own.normalization, own.views, own.action_horizon, OWN
    name = robot_of(statistics)
    robot = ROBOTS[name]
    is_said = dataclasses.replace(own, tower_heads=None) != Own()
    by = f"the authors' constants of {name}" + (f", and {OWN}" if is_said else "")
    made = own.normalization
    if made is None:
        for kind, stored, known in (
            ("action", action_dim, len(units(robot.action))),
            ("state", state_dim, len(units(robot.state))),
        ):
            if stored != known:
                raise ValueError(
                    f"the weights have {stored} dimensions of {kind}, {name} {known}; {HOW}"
                )
        made = normalization(robot, _mask(statistics, action_dim))
    views = own.views or robot.views
    if not views:
        raise ValueError(f"nothing tells how many pictures a policy of {name} sees; {HOW}")
    return made, views, own.action_horizon or robot.horizon, by


def _mask(statistics: Mapping[str, Any], action_dim: int) -> list[bool]:
    """Which actions are normalized: all of them where nothing is said."""
    masks = {name: entry["action"].get("mask") for name, entry in statistics.items()}
    found = [mask if mask is not None else [True] * action_dim for mask in masks.values()]
    for name, mask in zip(masks, found, strict=True):
        is_whole = isinstance(mask, list) and len(mask) == action_dim
        if not is_whole or not all(isinstance(is_on, bool) for is_on in mask):
            raise ValueError(
                f"{STATISTICS}: {name}.action.mask must hold {action_dim} of true or "
                f"false, got {mask!r}"
            )
        if mask != found[0]:
            raise ValueError(f"{STATISTICS}: the masks of {', '.join(masks)} differ; {HOW}")
    return list(found[0])
