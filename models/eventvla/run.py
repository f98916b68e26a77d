"""A run of starVLA's kind whose framework is EventVLA, as a configuration of ours.

In: what `models.layouts.starvla` found out. Out: an `EventVLAConfig`. Tensors say of which sizes
the heads are. Whether the keyframe head speaks is a setting, and where that is `auto`, a tensor: it
was set when a picture of the training had an annotation.

Source: InternRobotics/EventVLA at 4b5b260, eventvla/model/framework/EventVLA.py for the settings
and their defaults, and examples/RoboTwin-Mem/eval_files for how pictures are taken and kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.chat import own_chat
from models.eventvla.config import EventVLAConfig
from models.layouts.starvla import Facts, normalization
from models.layouts.starvla_config import whole
from models.layouts.tensors import count, sizes
from models.networks.config import MLPResNetConfig, Qwen3LanguageConfig
from runtime.functions.keyframes import EventSettings

HEAD, MODE = "action_head.model.", "pure_image_keyframe_memory"
OBSERVED = "_keyframe_annotations_observed"
KEYFRAME_HEAD = tuple(f"keyframe_head.{n}.{kind}" for n in (0, 1, 3) for kind in ("weight", "bias"))
UNUSED: Mapping[str, str] = {
    OBSERVED: "says whether keyframes were annotated",
    **dict.fromkeys(KEYFRAME_HEAD, "predicts keyframes, and does not speak in this run"),
}
"""By our names, what may be there and is not read -> why."""
MEMORY, DATA = "framework.memory_buffer.", "datasets.vla_data."
ON = {True: True, "true": True, "yes": True, "on": True, "1": True, "enabled": True}
OFF = {False: False, "false": False, "no": False, "off": False, "0": False, "disabled": False}
SPOKEN = {**ON, **OFF, "none": False}
"""What `use_keyframe_predict_head` may be."""


def policy(facts: Facts) -> EventVLAConfig:
    """
    Raises:
        ValueError: tensors or settings that do not fit together, or are not honoured.
    """
    width, context = sizes(facts.shapes, f"{HEAD}fc1.weight", 2)
    if context != facts.language.hidden_size or width % context:
        raise ValueError(
            f"{HEAD}fc1 makes {width} numbers of {context}; a multiple of the language model's "
            f"{facts.language.hidden_size} is wanted, made of as many"
        )
    action_dim = sizes(facts.shapes, f"{HEAD}fc2.weight", 2)[0]
    said = whole(facts.run.action_model, "action_dim", "framework.action_model.")
    if said not in (None, action_dim):
        raise ValueError(
            f"framework.action_model.action_dim={said}, and the weights say {action_dim}"
        )
    if facts.run.include_state or facts.own.takes_state:
        raise ValueError("include_state: EventVLA takes no state")
    height, side = facts.run.image_size
    if height != side:
        raise ValueError(
            f"{DATA}image_size is {height} and {side}: EventVLA's code takes its width first in "
            "one place and its height in another; only squares are served"
        )
    memory = _section(facts.run.framework_settings, "memory_buffer", MEMORY)
    normalized, views, _ = normalization(facts, action_dim, None)
    has_labels = _labelled(facts, _injection(facts, memory))
    labels = {} if has_labels else {"observation_label": "", "keyframe_label": ""}
    return EventVLAConfig(
        vision=facts.vision,
        language=facts.language,
        head=MLPResNetConfig(
            action_dim=action_dim,
            action_horizon=_horizon(facts.run.action_model),
            num_blocks=count(facts.shapes, f"{HEAD}mlp_resnet_blocks."),
            widening=width // context,
        ),
        normalization=normalized,
        views=views,
        main_view=_main_view(facts, views),
        delays=_delays(facts),
        predicts_keyframes=_speaks(facts, memory),
        events=_events(memory, _injection(facts, memory)),
        prompt=own_chat(facts.language, facts.run.text),
        license=facts.license,
        description=facts.description,
        **labels,
    )


def _horizon(action_model: Mapping[str, Any]) -> int:
    """Here the older name counts."""
    future = whole(action_model, "future_action_window_size", "framework.action_model.")
    stated: int = action_model["action_horizon"]
    return stated if future is None else future + 1


def _injection(facts: Facts, memory: Mapping[str, Any]) -> Mapping[str, Any]:
    """How keyframes come into the prompt, of the one way that is served."""
    where = f"{MEMORY}qwen_memory_injection."
    found = _section(memory, "qwen_memory_injection", where)
    stated = facts.run.framework_settings.get("memory_ablation_mode"), found.get("mode", MODE)
    if stated != (MODE, MODE):
        raise ValueError(
            f"framework.memory_ablation_mode and {where}mode must be {MODE!r}, got {stated}"
        )
    position = found.get("keyframe_image_position", "after_anchor_images_before_action")
    if position != "after_anchor_images_before_action":
        raise ValueError(
            f"{where}keyframe_image_position={position!r} is not served: keyframes in front of all "
            "other pictures would change the whole prompt with each of them"
        )
    if not _is_on(memory, "enable_keyframe_inference_event_filter", MEMORY, True):
        raise ValueError(
            f"{MEMORY}enable_keyframe_inference_event_filter=false is not served: events are told "
            "apart by it"
        )
    return found


def _labelled(facts: Facts, injection: Mapping[str, Any]) -> bool:
    """Whether words stand in front of the pictures: Qwen2.5-VL's interface writes none."""
    where = f"{MEMORY}qwen_memory_injection."
    is_on = _is_on(injection, "use_image_role_text", where, True)
    return is_on and isinstance(facts.language, Qwen3LanguageConfig)


def _main_view(facts: Facts, views: tuple[str, ...]) -> str:
    """The camera whose pictures are kept: the first that is no wrist, by its name."""
    where = f"{DATA}keyframe_image_memory."
    stated = _section(facts.run.data_settings, "keyframe_image_memory", where)
    excluded = [str(pattern).lower() for pattern in stated.get("exclude_name_patterns", ["wrist"])]
    included = [str(name).lower() for name in stated.get("include_names", [])]
    for view in views:
        name = view.lower()
        if any(pattern in name for pattern in excluded if pattern):
            continue
        if "wrist" not in name or any(part in name for part in included if part):
            return view
    return views[0]


def _delays(facts: Facts) -> tuple[int, ...]:
    """Control steps back, of `delta_indices`, which end with now."""
    where = f"{DATA}temporal.image."
    temporal = _section(facts.run.data_settings, "temporal", f"{DATA}temporal.")
    stated = _section(temporal, "image", where)
    first, deltas = stated.get("absolute_indices", [0]), stated.get("delta_indices", [-30, -15, 0])
    numbers = isinstance(deltas, list) and all(type(delta) is int for delta in deltas)
    if first != [0] or not numbers or deltas[-1:] != [0] or deltas != sorted(set(deltas)):
        raise ValueError(
            f"{where}absolute_indices must be [0] and delta_indices rise to 0, got {first} and "
            f"{deltas}"
        )
    return tuple(-delta for delta in deltas[:-1])


def _speaks(facts: Facts, memory: Mapping[str, Any]) -> bool:
    """Whether the keyframe head does."""
    said = memory.get("use_keyframe_predict_head", "enabled")
    word = said if isinstance(said, bool) else str(said).lower()
    if word in SPOKEN:
        return SPOKEN[word]
    if word != "auto":
        raise ValueError(f"{MEMORY}use_keyframe_predict_head must be auto or a bool, got {said!r}")
    if OBSERVED not in facts.flags:
        raise ValueError(f"{MEMORY}use_keyframe_predict_head is auto, and {OBSERVED} is missing")
    is_observed = facts.flags[OBSERVED]
    facts.notes.append(
        f"the keyframe head {'speaks' if is_observed else 'is silent'}: "
        f"use_keyframe_predict_head is auto, and {OBSERVED} is {str(is_observed).lower()}"
    )
    return is_observed


def _events(memory: Mapping[str, Any], injection: Mapping[str, Any]) -> EventSettings:
    """With the defaults of the authors; older names count where newer ones say nothing."""
    window = memory.get("keyframe_cluster_timestep_window", 20)

    def stated(name: str, default: Any) -> Any:
        return memory.get(f"keyframe_inference_{name}", memory.get(f"keyframe_{name}", default))

    numbers: dict[str, Any] = {
        "least_offset": memory.get("event_future_min_offset", 1),
        "nms_window": stated("nms_window", window),
        "cooldown": stated("cooldown_steps", window),
        "most_keyframes": injection.get("max_keyframe_images", 4),
    }
    for name, number in numbers.items():
        if type(number) is not int:
            raise ValueError(f"{MEMORY[:-1]}: {name} must be a whole number, got {number!r}")
    threshold = memory.get("event_commit_threshold", 0.55)
    if type(threshold) not in (int, float):
        raise ValueError(f"{MEMORY}event_commit_threshold must be a number, got {threshold!r}")
    return EventSettings(threshold=float(threshold), **numbers)


def _section(raw: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """Settings that may be missing."""
    value = raw.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{where[:-1]} must hold settings by name, got {value!r}")
    return value


def _is_on(raw: Mapping[str, Any], name: str, where: str, default: bool) -> bool:
    value = raw.get(name, default)
    word = value if isinstance(value, bool) else str(value).lower()
    if word not in ON and word not in OFF:
        raise ValueError(f"{where}{name} must be true or false, got {value!r}")
    return word in ON
