"""The vision-language model of a starVLA run: its sizes, and the files that come with it.

In: the shapes of its tensors, under our names, and what is known of the model that the run began
with (`framework.qwenvl.base_vlm`). A run folder holds neither that model's settings nor its
tokenizer, so they are looked for where they may be: in the run folder, in the folder that base_vlm
names, and in one of that name inside the run. What shapes do not show (heads, full attention,
rotary positions) comes from the model's config.json, or from a table by its name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.json_file import read_object
from models.layouts import hugging_face
from models.layouts.tensors import Shapes, count, sizes
from models.networks.config import (
    AnyLanguageConfig,
    AnyVisionConfig,
    LanguageConfig,
    Qwen3LanguageConfig,
    Qwen3VisionConfig,
    VisionConfig,
)
from models.networks.published import qwen2_5_vl_3b, qwen3_vl_4b

TOKENIZER, PREPROCESSOR, SETTINGS = "tokenizer.json", "preprocessor_config.json", "config.json"
QWEN2_5, QWEN3 = "qwen2_5_vl", "qwen3_vl"
KINDS: Mapping[str, str] = {
    "Qwen2.5-VL": QWEN2_5,
    "nora": QWEN2_5,
    "Qwen3-VL": QWEN3,
    "Qwen3.5": "a Qwen3.5",
    "gemma-4": "a Gemma 4",
    "gemma4": "a Gemma 4",
    "molmo2": "a Molmo 2",
    "minicpm-v": "a MiniCPM-V",
    "minicpmv": "a MiniCPM-V",
    "florence": "a Florence-2",
    "cosmos-reason2": "a Cosmos-Reason2",
}
"""What starVLA finds in the name of a base model, in its order (modules/vlm/__init__.py) -> the
model type of its config.json, or in words what is not served."""
KNOWN: Mapping[str, tuple[AnyVisionConfig, AnyLanguageConfig]] = {
    f"{name}{action}": make()
    for name, make in (
        ("Qwen2.5-VL-3B-Instruct", qwen2_5_vl_3b),
        ("Qwen3-VL-4B-Instruct", qwen3_vl_4b),
    )
    for action in ("", "-Action")
}
"""By the last part of base_vlm; the rows of the vocabulary are read off the weights."""
PUBLIC: Mapping[str, str] = {
    "Qwen2.5-VL-3B-Instruct": "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen2.5-VL-3B-Instruct-Action": "StarVLA/Qwen2.5-VL-3B-Instruct-Action",
    "Qwen3-VL-4B-Instruct": "Qwen/Qwen3-VL-4B-Instruct",
    "Qwen3-VL-4B-Instruct-Action": "StarVLA/Qwen3-VL-4B-Instruct-Action",
}
"""Where such a model is published, on Hugging Face."""
LICENSES: Mapping[str, str] = {
    name: "Apache-2.0 (Qwen3-VL-4B); the run states none of its own"
    if name.startswith("Qwen3")
    else "qwen-research (Qwen2.5-VL-3B); the run states none of its own"
    for name in KNOWN
}


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model that a run began with."""

    stated: str
    """As config.yaml has it: an id on a hub, or a folder."""
    folders: tuple[Path, ...]
    """Where its files may lie."""
    kind: str = QWEN2_5
    """The model type of its config.json."""

    @property
    def name(self) -> str:
        return re.split(r"[/\\]", self.stated.rstrip("/\\"))[-1]

    def find(self, file: str) -> Path | None:
        return next((folder / file for folder in self.folders if (folder / file).is_file()), None)

    def need(self, file: str) -> Path:
        """
        Raises:
            ValueError: it is nowhere; says what to copy.
        """
        found = self.find(file)
        if found is None:
            raise ValueError(
                f"{self.folders[0] / file}: missing, as starVLA saves none with a run. Copy "
                f"{TOKENIZER} and {PREPROCESSOR} of {PUBLIC.get(self.name, self.stated)} (on "
                f"Hugging Face) there; looked for in {', '.join(map(str, self.folders))} too"
            )
        return found

    def settings(self) -> Path | None:
        """Its config.json, which a run folder may have one of its own of that name for."""
        for folder in self.folders:
            file = folder / SETTINGS
            if file.is_file() and read_object(file).get("model_type") == self.kind:
                return file
        return None


def base_model(run: Path, stated: str) -> BaseModel:
    """
    Raises:
        ValueError: a model whose networks are not here.
    """
    folded = stated.lower()
    kind = next((what for part, what in KINDS.items() if part.lower() in folded), None)
    if kind is None:
        raise ValueError(
            f"framework.qwenvl.base_vlm={stated!r} names no model that starVLA knows; a Qwen2.5-VL "
            "or a Qwen3-VL is wanted, with that in its name"
        )
    if kind not in READERS:
        raise ValueError(
            f"framework.qwenvl.base_vlm={stated!r} is {kind}: its networks are not here; a run "
            "on a Qwen2.5-VL or a Qwen3-VL is wanted"
        )
    named = Path(stated)
    beside = run / BaseModel(stated, ()).name
    return BaseModel(stated, (run, *([named] if named.is_dir() else []), beside), kind)


def vision_language(base: BaseModel, shapes: Shapes) -> tuple[AnyVisionConfig, AnyLanguageConfig]:
    """Both networks, of the sizes that are stored.

    Raises:
        ValueError: tensors are missing or of another model, what they do not show is nowhere, or
            the base model is of other sizes.
    """
    settings = base.settings()
    if settings is not None:
        stated = _stated(settings, base.kind)
    elif base.name in KNOWN:
        vision, language = KNOWN[base.name]
        stated = {**dataclasses.asdict(vision), **dataclasses.asdict(language)}
    else:
        raise ValueError(
            f"base_vlm {base.stated!r} is none of {', '.join(KNOWN)}, and its number of heads, "
            f"blocks of full attention and rotary positions are in no tensor; copy its {SETTINGS} "
            f"to {base.folders[-1]}"
        )
    made = READERS[base.kind](shapes, stated)
    if settings is not None:
        hugging_face.check_config(settings, *made, beside="the weights")
    else:
        for got, known in zip(made, KNOWN[base.name], strict=True):
            _compare(base, got, known)
    return made


def _compare(base: BaseModel, got: Any, known: Any) -> None:
    for field in dataclasses.fields(got):
        ours, theirs = getattr(got, field.name), getattr(known, field.name)
        if ours != theirs and field.name != "vocab_size":
            raise ValueError(
                f"the weights have {field.name}={ours}, and base_vlm {base.name} {theirs}; copy "
                f"the {SETTINGS} of the model that they are of to {base.folders[-1]}"
            )


def _stated(file: Path, kind: str) -> dict[str, Any]:
    """What tensors do not show, of the model's config.json."""
    raw = read_object(file)
    text = raw["text_config"] if isinstance(raw.get("text_config"), dict) else raw
    vision = raw.get("vision_config")
    known = next(one for one in hugging_face.SPELLED if one.model_type == kind)
    rope = hugging_face.rope_settings(file, text, known.accepted)
    places = {"num_heads": vision, "rms_norm_eps": text, "rope_theta": rope, "mrope_section": rope}
    if kind == QWEN2_5:
        places |= {"num_attention_heads": text}
        places |= dict.fromkeys(("fullatt_block_indexes", "window_size"), vision)
    else:
        places |= {"deepstack_visual_indexes": vision}
    stated = {}
    for name, place in places.items():
        value = place.get(name) if isinstance(place, Mapping) else None
        numbers = value if isinstance(value, list) else [value]
        if not numbers or any(
            isinstance(n, bool) or not isinstance(n, int | float) for n in numbers
        ):
            raise ValueError(f"{file}: {name} must be stated, got {value!r}")
        stated[name] = tuple(numbers) if isinstance(value, list) else value
    return stated


def _qwen2_5(shapes: Shapes, stated: Mapping[str, Any]) -> tuple[VisionConfig, LanguageConfig]:
    patch = sizes(shapes, "vlm.visual.patch_embed.proj.weight", 5)
    merged = sizes(shapes, "vlm.visual.merger.mlp.0.weight", 2)[1]
    out, rows = sizes(shapes, "vlm.visual.merger.mlp.2.weight", 2)[0], patch[0]
    vision = VisionConfig(
        depth=count(shapes, "vlm.visual.blocks."),
        hidden_size=rows,
        intermediate_size=sizes(shapes, "vlm.visual.blocks.0.mlp.gate_proj.weight", 2)[0],
        num_heads=stated["num_heads"],
        out_hidden_size=out,
        fullatt_block_indexes=stated["fullatt_block_indexes"],
        patch_size=patch[-1],
        temporal_patch_size=patch[2],
        spatial_merge_size=round((merged / rows) ** 0.5),
        window_size=stated["window_size"],
    )
    vocabulary, width = sizes(shapes, "vlm.model.embed_tokens.weight", 2)
    heads, layer = stated["num_attention_heads"], "vlm.model.layers.0."
    language = LanguageConfig(
        num_hidden_layers=count(shapes, "vlm.model.layers."),
        hidden_size=width,
        intermediate_size=sizes(shapes, layer + "mlp.gate_proj.weight", 2)[0],
        num_attention_heads=heads,
        num_key_value_heads=sizes(shapes, layer + "self_attn.k_proj.weight", 2)[0] * heads // width,
        vocab_size=vocabulary,
        rope_theta=float(stated["rope_theta"]),
        mrope_section=stated["mrope_section"],
        rms_norm_eps=float(stated["rms_norm_eps"]),
    )
    return vision, language


def _qwen3(
    shapes: Shapes, stated: Mapping[str, Any]
) -> tuple[Qwen3VisionConfig, Qwen3LanguageConfig]:
    patch = sizes(shapes, "vlm.visual.patch_embed.proj.weight", 5)
    out, merged = sizes(shapes, "vlm.visual.merger.linear_fc2.weight", 2)
    levels = count(shapes, "vlm.visual.deepstack_merger_list.")
    if levels != len(stated["deepstack_visual_indexes"]):
        raise ValueError(
            f"the weights hold {levels} mergers of deep-stack features, "
            f"deepstack_visual_indexes={list(stated['deepstack_visual_indexes'])}"
        )
    vision = Qwen3VisionConfig(
        depth=count(shapes, "vlm.visual.blocks."),
        hidden_size=patch[0],
        intermediate_size=sizes(shapes, "vlm.visual.blocks.0.mlp.linear_fc1.weight", 2)[0],
        num_heads=stated["num_heads"],
        out_hidden_size=out,
        num_position_embeddings=sizes(shapes, "vlm.visual.pos_embed.weight", 2)[0],
        deepstack_visual_indexes=stated["deepstack_visual_indexes"],
        patch_size=patch[-1],
        temporal_patch_size=patch[2],
        spatial_merge_size=round((merged / patch[0]) ** 0.5),
    )
    vocabulary, width = sizes(shapes, "vlm.model.embed_tokens.weight", 2)
    layer = "vlm.model.layers.0."
    head_dim = sizes(shapes, layer + "self_attn.q_norm.weight", 1)[0]
    heads, pairs = (
        sizes(shapes, f"{layer}self_attn.{which}_proj.weight", 2)[0] // head_dim for which in "qk"
    )
    language = Qwen3LanguageConfig(
        num_hidden_layers=count(shapes, "vlm.model.layers."),
        hidden_size=width,
        intermediate_size=sizes(shapes, layer + "mlp.gate_proj.weight", 2)[0],
        num_attention_heads=heads,
        num_key_value_heads=pairs,
        head_dim=head_dim,
        vocab_size=vocabulary,
        rope_theta=float(stated["rope_theta"]),
        mrope_section=stated["mrope_section"],
        rms_norm_eps=float(stated["rms_norm_eps"]),
    )
    return vision, language


READERS: Mapping[str, Callable[[Shapes, Mapping[str, Any]], tuple[Any, Any]]] = {
    QWEN2_5: _qwen2_5,
    QWEN3: _qwen3,
}
"""By model type: shapes, and what they do not show -> both networks."""
