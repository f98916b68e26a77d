"""A run folder of starVLA: what training leaves, read as a policy.

In: the folder, or a file of weights in it. It holds config.yaml, dataset_statistics.json and
weights: `checkpoints/steps_N_pytorch_model.pt`, or safetensors, or `final_model`. Out: a policy's
configuration, its image settings, statistics, and where each parameter is read. The configuration
is put together: sizes from the tensors, modes from a table by data mix (`starvla_mixes`), the
vision-language model from what it began with (`starvla_vlm`). Nothing in a file is run, and what is
believed without being seen is said (`Run.said`).

Source: starVLA at snapshot 0ed0aad, training/train_starvla.py for what lies where, and
model/framework/base_framework.py for how it is loaded again.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from models.families import FAMILIES
from models.layouts import hugging_face
from models.layouts.runs import Run, counted
from models.layouts.starvla_config import RunConfig, read_run_config
from models.layouts.starvla_mixes import HOW, Own, modes, read_own, robot_of, units
from models.layouts.starvla_vlm import (
    LICENSES,
    PREPROCESSOR,
    TOKENIZER,
    BaseModel,
    base_model,
    vision_language,
)
from models.layouts.stored import stored_safetensors, stored_torch
from models.layouts.tensors import Shapes, refuse_wrapped
from models.networks.config import AnyLanguageConfig, AnyVisionConfig
from models.policy_config import NormalizationConfig, PolicyConfig
from models.processor import read_image_config
from models.sources import FLAG, Stored, parameter_shapes, some
from models.statistics import read_statistics

STATISTICS = "dataset_statistics.json"
NUMBERS = ("min", "max", "mean", "std", "q01", "q99")
"""Of a vector's statistics, which also hold counts and a mask."""
STEP = re.compile(r"steps_(\d+)_(?:pytorch_model\.pt|model\.safetensors)")
FINAL = ("pytorch_model.pt", "model.safetensors")
PREFIXES = {"qwen_vl_interface.model.": "", "action_model.": "action_head."}
"""How names begin -> what stands there instead; a part of the first is named by `hugging_face`."""
UNUSED = {"vlm.lm_head.weight": "speaks words, of which this policy says none"}
SERVED: Mapping[str, str] = {
    entry.framework: f"{entry.module.rpartition('.')[0]}.run"
    for entry in FAMILIES.values()
    if entry.framework
}
"""Framework -> module that makes a policy's configuration of a run, a `Framework`."""
OTHERS: Mapping[str, str] = {
    "QwenPI": "a flow-matching head on every layer of the language model",
    "QwenPI_v3": "a flow-matching head on every layer of the language model",
    "QwenFM": "the former name of QwenPI",
    "QwenFast": "action tokens, one after another",
    "QwenAdapter": "the bridge attention of VLA-Adapter",
    "QwenDual": "a flow-matching head beside a second vision tower, DINOv2",
    "QwenDiscreteDiffusion": "a discrete diffusion head on every layer of the language model",
    "LangForce": "two branches and latent action queries in front of a flow-matching head",
    "InternVLA-M1": "a QFormer and DINOv2 in front of a diffusion head",
    "ABot_M0": "a head that predicts actions themselves",
    "EgoVLA": "a SigLIP and Qwen2 of VILA with a decoder of hand trajectories",
    "PI0": "pi0, a PaliGemma with an expert",
    "Pi0": "pi0, a PaliGemma with an expert",
    "PI05": "pi0.5, a PaliGemma with an expert",
    "Pi05": "pi0.5, a PaliGemma with an expert",
    "CosmosGR00T": "a flow-matching head on all tokens of a Cosmos-Reason2",
    "Gemma4GR00T": "a flow-matching head on all tokens of a Gemma 4",
    "Gemma4PI": "the head of QwenPI on a Gemma 4",
    "MiniCPMGR00T": "a flow-matching head on all tokens of a MiniCPM-V",
    "MiniCPMPI": "the head of QwenPI on a MiniCPM-V",
    "CosmoPredict2GR00T": "a flow-matching head on a world model, Cosmos-Predict2",
    "CosmoPredict2OFT": "a regression head on a world model, Cosmos-Predict2",
    "CosmoPredict2PI": "the head of QwenPI on a world model, Cosmos-Predict2",
    "WanGR00T": "a flow-matching head on a world model, Wan 2",
    "WanOFT": "a regression head on a world model, Wan 2",
    "WanPI": "the head of QwenPI on a world model, Wan 2",
    "ACT": "an action chunking transformer without a language model",
    "DiffusionPolicy": "a diffusion policy without a language model",
}
"""Frameworks that starVLA registers and nothing here makes, in a few words each."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a framework makes its configuration of."""

    run: RunConfig
    shapes: Shapes
    """Of every stored tensor, by our names."""
    flags: Mapping[str, bool]
    """Tensors of one truth value, likewise."""
    vision: AnyVisionConfig
    language: AnyLanguageConfig
    own: Own
    notes: list[str]
    """Takes what is believed without being seen."""
    license: str
    description: str


class Framework(Protocol):
    """A module of a family."""

    UNUSED: Mapping[str, str]
    """By our names, what may be stored and is not read -> why."""

    def policy(self, facts: Facts) -> PolicyConfig:
        """
        Raises:
            ValueError: tensors or settings that do not fit together.
        """


def open_run(path: Path) -> Run:
    """Everything but the weights, and where each of those is read.

    Args:
        path: the folder, whose last step is taken, or a file of weights in it.

    Raises:
        ValueError: a file is missing or damaged, of a framework or a base model that is not here,
            or says what does not fit together. CheckpointError if tensors do not.
    """
    folder = path if path.is_dir() else path.parent.parent
    run = read_run_config(folder)
    if run.framework not in SERVED:
        raise ValueError(f"{run.path}: {_not_served(run.framework)}")
    file, others = (path, []) if path.is_file() else _latest(folder)
    tensors = _tensors(file)
    notes = [*run.notes]
    try:
        base = base_model(folder, run.base_vlm)
        shapes = {name: stored.shape for name, stored in tensors}
        flags = {n: bool(s.read()) for n, s in tensors if (s.dtype, s.shape) == (FLAG, ())}
        facts = Facts(
            run, shapes, flags, *vision_language(base, shapes), read_own(folder), notes,
            LICENSES.get(base.name, "unstated"), f"starVLA run {run.name}, {file.name}",
        )  # fmt: skip
        framework = cast(Framework, importlib.import_module(SERVED[run.framework]))
        config = framework.policy(facts)
        image = replace(read_image_config(base.need(PREPROCESSOR)), size=run.image_size)
        tokenizer = base.need(TOKENIZER)
        statistics = _statistics(folder / STATISTICS, config)
    except ValueError as error:
        named = str(error).startswith(str(folder))
        raise ValueError(str(error) if named else f"{run.path}: {error}") from None
    wanted, unused = parameter_shapes(config), {**UNUSED, **framework.UNUSED}
    weights = hugging_face.place(
        file, tensors, [file], wanted=wanted,
        unused_names={name: why for name, why in unused.items() if name not in wanted},
    )  # fmt: skip
    return Run(
        config, image, statistics, tokenizer, weights,
        tuple(_said(run, base, config, file, others, notes)),
    )  # fmt: skip


def _not_served(framework: str) -> str:
    what = OTHERS.get(framework)
    served = " or ".join(SERVED)
    if what is None:
        return f"framework.name is {framework!r}, which starVLA does not know; it must be {served}"
    return f"framework.name is {framework} ({what}), which is not here; it must be {served}"


def _latest(folder: Path) -> tuple[Path, list[Path]]:
    """The weights of the last step, or of the end, and all others.

    Raises:
        ValueError: there are none, or two of the last step.
    """
    steps = [
        (int(match[1]), file)
        for file in sorted((folder / "checkpoints").glob("steps_*"))
        if (match := STEP.fullmatch(file.name)) and file.is_file()
    ]
    end = [folder / "final_model" / name for name in FINAL]
    last = [file for file in end if file.is_file()]
    if not last:
        most = max((step for step, _ in steps), default=0)
        last = [file for step, file in steps if step == most]
    if not last:
        raise ValueError(
            f"{folder}: holds no weights; checkpoints/steps_N_pytorch_model.pt (or "
            "steps_N_model.safetensors) or final_model/pytorch_model.pt is wanted"
        )
    if len(last) > 1:
        raise ValueError(
            f"{folder}: {' and '.join(f.name for f in last)} are of the same step; name the file "
            "that is meant, in place of the folder"
        )
    return last[0], [file for _, file in steps if file != last[0]]


def _tensors(file: Path) -> list[tuple[str, Stored]]:
    """What a file of weights holds, by our names.

    Raises:
        CheckpointError: it is no such file. ValueError: its names are wrapped.
    """
    if file.suffix == ".safetensors":
        stored = stored_safetensors(file)
    else:
        stored = []
        for place, item in stored_torch(file):
            if not isinstance(item, Stored) or len(place) != 1:
                raise ValueError(
                    f"{file}: {'.'.join(place) or 'its content'} is "
                    f"{'nested' if isinstance(item, Stored) else type(item).__name__}; it must be "
                    "one dictionary of tensors, as starVLA saves a state_dict"
                )
            stored.append(item)
    refuse_wrapped(file, [s.name for s in stored])
    return [(published_name(s.name), s) for s in stored]


def published_name(name: str) -> str:
    """What a tensor of starVLA's is called here."""
    for begin, instead in PREFIXES.items():
        if name.startswith(begin):
            inside = name.removeprefix(begin)
            return instead + inside if instead else hugging_face.published_name(inside)
    return name


def _statistics(path: Path, config: PolicyConfig) -> dict[str, Any]:
    """The numbers of each robot, whose mask has to agree with the modes.

    A mask is false where a dimension is binary; that of older runs also where it is a gripper,
    whatever its mode. It is not kept, since what says "normalized" there need not be.

    Raises:
        ValueError: the file lacks what the policy needs, or a mask contradicts a mode.
    """
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    optional = ("state",) if config.state_dim == 0 else ()
    found = read_statistics(path, optional)
    for robot, entry in found.items():
        mask, action = entry["action"].get("mask"), config.normalization.action
        if mask is not None and (not isinstance(mask, list) or len(mask) != len(action)):
            raise ValueError(
                f"{path}: {robot}.action.mask must hold {len(action)} of true or false"
            )
        for index, (is_on, mode) in enumerate(zip(mask or (), action, strict=False)):
            if is_on == (mode == "binary") and mode != "identity":
                raise ValueError(
                    f"{path}: {robot}.action[{index}]: the mask says {str(is_on).lower()} and the "
                    f"mode is {mode!r}; the data mix is another one than it says. {HOW}"
                )
    kept = {"state": config.state_dim > 0, "action": True}
    return {
        robot: {
            kind: {n: v for n, v in entry[kind].items() if n in NUMBERS} if is_kept else {}
            for kind, is_kept in kept.items()
        }
        for robot, entry in found.items()
    }


def normalization(facts: Facts, action_dim: int, state_dim: int | None) -> tuple[Any, Any, bool]:
    """How a run normalizes, what its cameras are called, and whether it takes a state.

    Args:
        state_dim: of the encoder that is stored, None if there is none.

    Raises:
        ValueError: its data mix is not known, or does not fit the head.
    """
    run, own = facts.run, facts.own
    takes_state = own.takes_state
    if takes_state is None:
        takes_state = bool(run.include_state)
        if run.include_state is None and state_dim is not None:
            facts.notes.append(
                "no include_state in the settings: no state is taken, as starVLA takes it; "
                'if the run was trained with one, say {"takes_state": true} in policy.json'
            )
    if own.normalization is not None and own.views is not None:
        return own.normalization, own.views, takes_state
    robot = robot_of(run.data_mix)
    if own.normalization is not None:
        return own.normalization, robot.views, takes_state
    if run.action_mode != "abs":
        raise ValueError(
            f"action_mode={run.action_mode!r} makes other actions of data_mix {run.data_mix!r} "
            f"than its units say; {HOW}"
        )
    if takes_state and isinstance(robot.state, str):
        raise ValueError(f"include_state with data_mix {run.data_mix!r}: {robot.state}; {HOW}")
    state = robot.state if takes_state and not isinstance(robot.state, str) else ()
    made = NormalizationConfig(
        action=modes(robot.action),
        state=modes(state),
        action_units=units(robot.action),
        state_units=units(state),
    )
    for kind, width, stored in (
        ("action", len(made.action), action_dim),
        ("state", len(made.state), (state_dim or 0) if takes_state else 0),
    ):
        if width != stored:
            raise ValueError(
                f"the head has {stored} dimensions of {kind}, data_mix {run.data_mix!r} {width}; "
                f"{HOW}"
            )
    return made, own.views or robot.views, takes_state


def _said(
    run: RunConfig,
    base: BaseModel,
    config: PolicyConfig,
    file: Path,
    others: list[Path],
    notes: list[str],
) -> list[str]:
    n, (num_actions, width) = config.normalization, config.chunk
    words = {
        "framework": run.framework,
        "base model": base.stated,
        "weights": file.name,
        **config.other_networks,
        "views": ", ".join(getattr(config, "views", ())),
        "actions": f"{num_actions} x {width}: {counted(n.action)}",
        "state": counted(n.state) or "none",
        "data mix": run.data_mix,
    }
    lines = [f"{what}: {said}" for what, said in words.items()]
    if others:
        lines.append(f"left out: {some([o.name for o in others])}: not the last step")
    return [*lines, *(f"note: {note}" for note in notes)]
