"""A folder of SmolVLA as LeRobot saves one, read as a policy.

In: the folder: config.json, model.safetensors, policy_preprocessor.json and
policy_postprocessor.json with the numbers of their normalizers beside them, and the tokenizer.json
of the language model, which LeRobot fetches by its name. Out: a policy's configuration, its image
settings, statistics, and where each parameter is read. Nothing in a file is run, and what is
believed without being seen is said (`Run.said`). What no file of LeRobot's says may stand in one of
our own (`OWN`).

Of the language model only keys and values are used, so the last layer's other weights, its final
norm and its LM head are stored and never read.

Source: LeRobot 0.6.1, policies/smolvla and processor/pipeline.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import CheckpointError
from models.fields import parse
from models.init import image_of
from models.json_file import read_object
from models.layouts import hugging_face
from models.layouts.lerobot_settings import (
    CONFIG,
    POLICY,
    POSTPROCESSOR,
    PREPROCESSOR,
    TOKENIZER,
    Settings,
    read_settings,
    state_file,
    view_of,
)
from models.layouts.runs import Run
from models.layouts.stored import stored_safetensors
from models.layouts.tensors import Shapes, refuse_wrapped, sizes
from models.networks.config import LlamaConfig
from models.networks.expert_config import ActionExpertConfig
from models.networks.published import smolvlm2_500m
from models.networks.siglip_config import SiglipVisionConfig
from models.policy_config import NormalizationConfig, Unit
from models.smolvla.config import PromptConfig, SmolVLAConfig
from models.sources import Stored, parameter_shapes, some

KNOWN: Mapping[str, Callable[[], tuple[SiglipVisionConfig, LlamaConfig]]] = {
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": smolvlm2_500m,
    "HuggingFaceTB/SmolVLM2-500M-Instruct": smolvlm2_500m,
}
"""Language models that a config.json may name, whose heads no tensor tells."""
VLM = "model.vlm_with_expert.vlm.model."
NAMES: Mapping[str, str] = {
    f"{VLM}vision_model.": "vlm.visual.",
    f"{VLM}connector.": "vlm.connector.",
    f"{VLM}text_model.": "vlm.model.",
    "model.vlm_with_expert.vlm.lm_head.": "vlm.lm_head.",
    "model.vlm_with_expert.lm_expert.": "action_head.",
    "model.state_proj.": "state_proj.",
    "model.action_": "action_head.action_",
}
"""How LeRobot's names begin, and how ours do."""
OLDER = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
"""Numbers of normalizers among the weights."""
EMBODIMENT = "lerobot"
"""What the robot is called: a folder does not say."""
MULTIPLE = 256
"""Of the width of the expert's MLPs."""
OWN = "anchorvla.json"
"""May lie beside config.json."""
STATISTICS = (
    ("state", "observation.state", PREPROCESSOR, "normalizer_processor"),
    ("action", "action", POSTPROCESSOR, "unnormalizer_processor"),
)
"""Of each vector its key, the file that is read, and the registered name of the step in it."""
NUMBERS = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True, kw_only=True, slots=True)
class Own:
    """What a file of one's own may say, each for itself."""

    vision: SiglipVisionConfig | None = None
    """Of the language model that config.json names, where it is none of `KNOWN`."""
    language: LlamaConfig | None = None
    """All its layers, or those that are used."""
    action_units: tuple[Unit, ...] | None = None
    """Of each number."""
    state_units: tuple[Unit, ...] | None = None


def open_run(path: Path) -> Run:
    """Everything but the weights, and where each of those is read.

    Raises:
        ValueError: a file is missing or damaged, of a policy that is not here, or says what does
            not fit together. CheckpointError if tensors do not.
    """
    try:
        if (path / POLICY).exists():
            raise ValueError(
                f"{path / POLICY}: beside a {CONFIG} that tells a policy by itself; remove it"
            )
        settings = read_settings(path / CONFIG)
        held = hugging_face.read_headers(path)
        stored = [tensor for tensors in held.values() for tensor in tensors]
        _refuse_others(path, [tensor.name for tensor in stored])
        tensors = [(our_name(tensor.name), tensor) for tensor in stored]
        own = _read_own(path / OWN)
        config = _config(path / CONFIG, settings, own, {name: t.shape for name, t in tensors})
        statistics = _statistics(path)
        if not (path / TOKENIZER).is_file():
            raise ValueError(
                f"{path / TOKENIZER}: missing; copy it from "
                f"{settings.values['vlm_model_name']}, whose tokenizer LeRobot takes"
            )
    except CheckpointError:
        raise
    except ValueError as error:
        named = str(error).startswith(str(path))
        raise ValueError(str(error) if named else f"{path}: {error}") from None
    weights = hugging_face.place(
        path,
        tensors,
        [*held],
        wanted=parameter_shapes(config),
        unused_names={name: why for name, (_, why) in unused_tensors(config).items()},
    )
    said = [
        "policy: LeRobot's SmolVLA",
        f"cameras: {', '.join(settings.cameras)}, here {', '.join(config.views)}",
    ]
    if own.action_units is None or own.state_units is None:
        said.append(f"units: those of the data set, which a folder does not state; {OWN} may")
    if settings.left_out:
        said.append(f"note: {', '.join(settings.left_out)} are never seen, and left out")
    return Run(config, image_of(config), statistics, path / TOKENIZER, weights, tuple(said))


def our_name(name: str) -> str:
    """What LeRobot's tensor of this name is called here; others keep theirs."""
    begin = next((begin for begin in NAMES if name.startswith(begin)), "")
    return NAMES[begin] + name.removeprefix(begin) if begin else name


def their_name(name: str) -> str:
    """What LeRobot calls our tensor of this name."""
    theirs, ours = max(
        (pair for pair in NAMES.items() if name.startswith(pair[1])), key=lambda pair: len(pair[1])
    )
    return theirs + name.removeprefix(ours)


def unused_tensors(config: SmolVLAConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """Of what is stored and never read, by our names: shape, and why."""
    c = config.language
    width, hidden, heads = c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim
    last = f"vlm.model.layers.{c.num_hidden_layers - 1}."
    behind = "of the language model only keys and values are used, and it is behind the last ones"
    shapes: dict[str, tuple[int, ...]] = {
        f"{last}self_attn.q_proj": (heads, width),
        f"{last}self_attn.o_proj": (width, heads),
        f"{last}mlp.gate_proj": (hidden, width),
        f"{last}mlp.up_proj": (hidden, width),
        f"{last}mlp.down_proj": (width, hidden),
        f"{last}post_attention_layernorm": (width,),
        "vlm.model.norm": (width,),
        "vlm.lm_head": (c.vocab_size, width),
    }
    return {f"{name}.weight": (shape, behind) for name, shape in shapes.items()}


def _read_own(path: Path) -> Own:
    """
    Raises:
        ValueError: a file that says something else.
    """
    if not path.is_file():
        return Own()
    try:
        return parse(Own, read_object(path), "")
    except ValueError as error:
        named = str(error).startswith(str(path))
        raise ValueError(str(error) if named else f"{path}: {error}") from None


def _refuse_others(path: Path, names: list[str]) -> None:
    """
    Raises:
        ValueError: names of an older folder, or a wrapper's.
    """
    refuse_wrapped(path, names)
    if older := [name for name in names if name.startswith(OLDER)]:
        raise ValueError(
            f"{some(older)}: a folder from before LeRobot had processors; its "
            "processor/migrate_policy_normalization.py makes one of today"
        )


def _networks(path: Path, name: str, own: Own) -> tuple[SiglipVisionConfig, LlamaConfig]:
    """Of the language model of this name.

    Raises:
        ValueError: nobody says of which sizes it is.
    """
    known = KNOWN[name]() if name in KNOWN else (None, None)
    vision, language = own.vision or known[0], own.language or known[1]
    if vision is None or language is None:
        raise ValueError(
            f"{path}: vlm_model_name={name!r} is not here, only {sorted(KNOWN)}; say in {OWN} "
            'beside it of which sizes it is: {"vision": {...}, "language": {...}}, with the '
            "fields of a SmolVLA configuration"
        )
    return vision, language


def _config(path: Path, settings: Settings, own: Own, shapes: Shapes) -> SmolVLAConfig:
    """Put together from settings, and the vocabulary from its table.

    Raises:
        ValueError: settings that do not fit together, or a language model that is not known.
    """
    v = settings.values
    name, layers = v["vlm_model_name"], v["num_vlm_layers"]
    vision, language = _networks(path, name, own)
    if v["num_expert_layers"] > 0 and v["num_expert_layers"] != layers:
        raise ValueError(
            f"{path}: num_expert_layers={v['num_expert_layers']} of num_vlm_layers={layers}: an "
            "expert with fewer layers is not here"
        )
    if v["resize_imgs_with_padding"] != [vision.image_size] * 2:
        raise ValueError(
            f"{path}: resize_imgs_with_padding={v['resize_imgs_with_padding']} is not here, only "
            f"{[vision.image_size] * 2}"
        )
    every = v["self_attn_every_n_layers"]
    rows, _ = sizes(shapes, "vlm.model.embed_tokens.weight", 2)
    width = int(language.hidden_size * v["expert_width_multiplier"])
    unit: tuple[Unit, ...] = ("fraction",)  # whatever it is, it is passed on
    normalization = NormalizationConfig(
        action=(settings.modes["action"],) * settings.action_dim,
        state=(settings.modes["state"],) * settings.state_dim,
        action_units=own.action_units or unit * settings.action_dim,
        state_units=own.state_units or unit * settings.state_dim,
    )
    return SmolVLAConfig(
        vision=vision,
        language=dataclasses.replace(language, num_hidden_layers=layers, vocab_size=rows),
        head=ActionExpertConfig(
            hidden_size=width,
            intermediate_size=mlp_width(width),
            action_dim=settings.action_dim,
            action_horizon=v["chunk_size"],
            state_dim=settings.state_dim,
            max_action_dim=v["max_action_dim"],
            max_state_dim=v["max_state_dim"],
            self_attn_every_n_layers=every,
            num_inference_timesteps=v["num_steps"],
            min_period=float(v["min_period"]),
            max_period=float(v["max_period"]),
        ),
        normalization=normalization,
        views=tuple(view_of(camera) for camera in settings.cameras),
        prompt=PromptConfig(max_length=v["tokenizer_max_length"]),
        license="see the checkpoint's own card",
        description="LeRobot's SmolVLA",
    )


def mlp_width(width: int) -> int:
    """Of an expert of this width: two thirds of four times as much, up to the next multiple."""
    hidden = 4 * int(2 * width / 3)
    return -(-hidden // MULTIPLE) * MULTIPLE


def _statistics(path: Path) -> dict[str, Any]:
    """Numbers of the state from what comes in, and of the actions from what goes out.

    Raises:
        ValueError: a file is missing, or lacks them.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for kind, key, file, step in STATISTICS:
        held = {s.name: s for s in stored_safetensors(state_file(path / file, step))}
        numbers = {n: held[f"{key}.{n}"] for n in NUMBERS if f"{key}.{n}" in held}
        found[kind] = {name: _listed(stored) for name, stored in numbers.items()}
    return {EMBODIMENT: found}


def _listed(stored: Stored) -> list[float]:
    return [float(number) for number in stored.read().double().flatten()]
