"""Ways to int8 inputs side by side: what each does to the stages of a policy, and to its actions.

In: policies and observations, half to learn scales from and half to be judged by. Out: per policy
and form, the error of every network, of the language model's output projections alone and of the
actions, the worst observation. Errors of networks are in multiples of what bfloat16 does to them,
given exact inputs. All layers are int8 but those that no recipe for a device rounds.

    python -m export w8a8
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from device_tests.success.__main__ import machine
from export.config import W8A8, W8A8_POLICIES, W8A8Config
from export.measure import Modules, golden_of, made_up, reference_actions, rounding, stage_errors
from models.checkpoint import Checkpoint, load_checkpoint, write_random_checkpoint
from models.declared import ACTIONS
from models.demo import CHECKPOINT, EPISODES, HELD_OUT
from models.families import CONFIGS, family_of
from models.init import image_of, statistics_of
from models.networks.language import LanguageModel
from models.networks.vision import VisionTower
from models.split import Split
from models.stored import plain
from quant.apply import decide, prepare_folded, quantize_folded
from quant.calibrate import calibrate
from quant.data.observations import Observation, read_observations
from quant.recipes import KEPT, SMALL, Method, Recipe, Rule, orin_bf16
from quant.rotate import Rotation, rotate
from runtime.backends.parity import relative_error
from runtime.storage.files import Kind, check_output, write_file

COMPARISON = Kind("a comparison of W8A8 forms", (b'"forms"', b'"o_proj"'))
O_PROJ = "vlm.model.layers.*.self_attn.o_proj"
ENGINES = ("vision", "language", "spatial", "condition", "denoise")
FULL_IMAGE, FULL_TOKENS = (112, 112), 64
OUTLIERS, NORM_GAIN, STREAM_GAIN = 8, 40.0, 20.0


@dataclass(frozen=True, slots=True)
class Form:
    """A way to int8 inputs."""

    method: Method
    rotations: tuple[Rotation, ...] = ()


BOTH: tuple[Rotation, ...] = ("heads", "residual")
FORMS = {
    "one step a layer": Form("plain"),
    "smooth": Form("smooth"),
    "rotate": Form("plain", BOTH),
    "rotate and smooth": Form("smooth", BOTH),
    "smooth, a scale for each token": Form("tokens"),
    "rotate and smooth, a scale for each token": Form("tokens", BOTH),
}
"""Every layer in the same way. The recipes ship the fifth, or mix it with the second."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A policy, what scales are learnt from, and what is judged by."""

    checkpoint: Checkpoint
    image_size: tuple[int, int]
    tokens: int
    shown: Sequence[Observation]
    judged: Sequence[Observation]


def compare(config: W8A8Config, console: Console | None = None) -> Path:
    """Measure all forms and write them; returns the file."""
    console = console or Console()
    path = config.results / W8A8
    check_output(path, COMPARISON)
    makers = {
        "demo": partial(_demo, config),
        "full width, random": partial(_full_width, config, planted=False),
        "full width, outliers planted": partial(_full_width, config, planted=True),
    }
    for name in config.policies:
        subject = makers[name]()
        floors = _floors(subject)
        forms = {}
        for form in FORMS:
            forms[form] = _measure(subject, FORMS[form], floors)
            console.print(f"{name}, {form}: {forms[form]}", soft_wrap=True)
        _keep(path, name, {"observations": len(subject.judged), "forms": forms})
    return path


def _keep(path: Path, policy: str, found: Mapping[str, Any]) -> None:
    """Into the file; what it says of other policies stays."""
    policies = json.loads(path.read_text())["policies"] if path.exists() else {}
    policies[policy] = {"machine": machine(), **found}
    ordered = {name: policies[name] for name in W8A8_POLICIES if name in policies}
    write_file(path, json.dumps({"policies": ordered}, indent=1) + "\n", COMPARISON)


def _measure(subject: Subject, form: Form, floors: Sequence[dict[str, float]]) -> dict[str, float]:
    """Worst of all observations: per engine and of o_proj alone in floors, and of the actions."""
    turned = rotate(subject.checkpoint.model, form.rotations)
    checkpoint = replace(subject.checkpoint, model=turned)
    runs = [
        partial(reference_actions, checkpoint, golden_of(checkpoint, seen, seed=number))
        for number, seen in enumerate(subject.shown)
    ]
    statistics = calibrate(turned, runs)
    worst = dict.fromkeys((*ENGINES, "o_proj", "actions"), 0.0)
    for only in (False, True):
        recipe = _recipe(form, only)
        folded = prepare_folded(turned, recipe, statistics)
        exact = replace(checkpoint, model=folded.model)
        quantized = replace(checkpoint, model=quantize_folded(folded, recipe))
        parts = [_cut(subject, c) for c in (exact, quantized)]
        for number, seen in enumerate(subject.judged):
            golden = golden_of(checkpoint, seen, seed=100 + number)
            tensors = Modules(exact, parts[0]).tensors(golden)
            errors = stage_errors(parts[1], tensors)
            for stage in parts[1].graph.stages:
                if stage.engine in ENGINES:
                    ratio = errors[stage.name] / floors[number][stage.name]
                    key = "o_proj" if only else stage.engine
                    worst[key] = max(worst[key], ratio)
            if not only:
                actions = Modules(quantized, parts[1]).actions(golden)
                error = relative_error(actions, tensors[ACTIONS])
                worst["actions"] = max(worst["actions"], error)
    return {name: round(value, 4) for name, value in worst.items()}


def _recipe(form: Form, only_o_proj: bool) -> Recipe:
    """Every layer in the form, or the output projections alone; the rest float."""
    small = tuple(Rule(pattern, "float") for pattern in SMALL)
    back = (Rule("vlm.model.norm.*", "float"),) if form.rotations else ()
    chosen = Rule(O_PROJ if only_o_proj else "*", "w8a8", form.method)
    rest = (Rule("*", "float"),) if only_o_proj else ()
    rules = (chosen, *rest) if only_o_proj else (*KEPT, *small, *back, chosen)
    return Recipe(
        name="trial", rules=rules, target="orin", purpose="time", base="bfloat16", chain_tolerance=1
    )


def _floors(subject: Subject) -> list[dict[str, float]]:
    """Per observation and stage, what bfloat16 does to the policy as it is."""
    model = subject.checkpoint.model
    rules = orin_bf16().decide(decide(orin_bf16(), model))
    exact = {name for name, rule in rules.items() if rule.format == "float32"}
    parts = _cut(subject, subject.checkpoint)
    floors = []
    for number, seen in enumerate(subject.judged):
        golden = golden_of(subject.checkpoint, seen, seed=100 + number)
        tensors = Modules(subject.checkpoint, parts).tensors(golden)
        with rounding(model, "bfloat16", exact):
            floors.append(stage_errors(parts, tensors))
    return floors


def _cut(subject: Subject, checkpoint: Checkpoint) -> Split:
    return family_of(checkpoint.config).split(
        checkpoint.model, checkpoint.parts, checkpoint.image, subject.image_size, subject.tokens
    )


def _demo(config: W8A8Config) -> Subject:
    shown, judged = (
        tuple(read_observations(folder, stride=1, limit=config.observations))
        for folder in (EPISODES, HELD_OUT)
    )
    return Subject(load_checkpoint(CHECKPOINT), (112, 112), 64, shown, judged)


def _full_width(config: W8A8Config, *, planted: bool) -> Subject:
    """Published widths, a layer or two of each network, random weights."""
    folder = config.work / "full-width"
    shapes = CONFIGS["least"]()
    if not (folder / "config.json").is_file():
        write_random_checkpoint(
            folder,
            shapes,
            tokenizer=CHECKPOINT / "tokenizer.json",
            image=image_of(shapes),
            statistics=statistics_of(shapes),
            seed=0,
        )
    checkpoint = load_checkpoint(folder)
    if planted:
        checkpoint = replace(checkpoint, model=plain(checkpoint.model))
        plant_outliers(checkpoint.model)
    frames = [made_up(checkpoint, FULL_IMAGE, seed=n) for n in range(4)]
    seen = [replace(frame, first=frames[0].now) for frame in frames]
    return Subject(checkpoint, FULL_IMAGE, FULL_TOKENS, seen[:2], seen[2:])


@torch.no_grad()
def plant_outliers(model: nn.Module, *, seed: int = 0) -> None:
    """Channels of the vision and language streams that stand out, as trained models have them.

    In front of every layer by its norm's weight, whose mean square stays 1; and in the stream, by
    what is written to it.
    """
    random = np.random.Generator(np.random.Philox(key=seed))

    def some(width: int) -> torch.Tensor:
        return torch.from_numpy(random.choice(width, OUTLIERS, replace=False))

    def norm_gain(weight_D: torch.Tensor) -> None:
        weight_D[some(len(weight_D))] *= NORM_GAIN
        weight_D /= weight_D.square().mean().sqrt()

    language: Any = next(m for m in model.modules() if isinstance(m, LanguageModel))
    vision: Any = next(m for m in model.modules() if isinstance(m, VisionTower))
    channels = some(language.config.hidden_size)
    language.embed_tokens.weight[:, channels] *= STREAM_GAIN
    vision.merger.mlp[2].weight[channels] *= STREAM_GAIN
    for layer in language.layers:
        norm_gain(layer.input_layernorm.weight)
        norm_gain(layer.post_attention_layernorm.weight)
        layer.self_attn.o_proj.weight[channels] *= STREAM_GAIN
        layer.mlp.down_proj.weight[channels] *= STREAM_GAIN
    channels = some(vision.config.hidden_size)
    for block in vision.blocks:
        norm_gain(block.norm1.weight)
        norm_gain(block.norm2.weight)
        block.attn.proj.weight[channels] *= STREAM_GAIN
        block.mlp.down_proj.weight[channels] *= STREAM_GAIN
