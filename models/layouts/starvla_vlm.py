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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.json_file import read_object
from models.layouts import hugging_face
from models.networks.config import LanguageConfig, VisionConfig

Shapes = Mapping[str, tuple[int, ...]]
TOKENIZER, PREPROCESSOR, SETTINGS = "tokenizer.json", "preprocessor_config.json", "config.json"
KINDS: Mapping[str, str] = {
    "Qwen2.5-VL": "",
    "nora": "",
    "Qwen3-VL": "Qwen3-VL, whose vision tower reaches into several layers of its language model",
    "Qwen3.5": "Qwen3.5",
    "gemma-4": "Gemma 4",
    "gemma4": "Gemma 4",
    "molmo2": "Molmo 2",
    "minicpm-v": "MiniCPM-V",
    "minicpmv": "MiniCPM-V",
    "florence": "Florence-2",
    "cosmos-reason2": "Cosmos-Reason2, which is a Qwen3-VL",
}
"""What starVLA finds in the name of a base model, in its order (modules/vlm/__init__.py) -> what is
not served; nothing where it is a Qwen2.5-VL."""
QWEN_3B = (
    VisionConfig(
        depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=2048,
        fullatt_block_indexes=(7, 15, 23, 31),
    ),
    LanguageConfig(
        num_hidden_layers=36, hidden_size=2048, intermediate_size=11008, num_attention_heads=16,
        num_key_value_heads=2, vocab_size=151936, rope_theta=1e6, mrope_section=(16, 24, 24),
    ),
)  # fmt: skip
KNOWN: Mapping[str, tuple[VisionConfig, LanguageConfig]] = {
    "Qwen2.5-VL-3B-Instruct": QWEN_3B,
    "Qwen2.5-VL-3B-Instruct-Action": QWEN_3B,
}
"""By the last part of base_vlm; the rows of the vocabulary are read off the weights."""
PUBLIC: Mapping[str, str] = {
    "Qwen2.5-VL-3B-Instruct": "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen2.5-VL-3B-Instruct-Action": "StarVLA/Qwen2.5-VL-3B-Instruct-Action",
}
"""Where such a model is published, on Hugging Face."""
LICENSES: Mapping[str, str] = dict.fromkeys(
    KNOWN, "qwen-research (Qwen2.5-VL-3B); the run states none of its own"
)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model that a run began with."""

    stated: str
    """As config.yaml has it: an id on a hub, or a folder."""
    folders: tuple[Path, ...]
    """Where its files may lie."""

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
            if file.is_file() and read_object(file).get("model_type") == hugging_face.MODEL_TYPE:
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
            "is wanted, with Qwen2.5-VL in its name"
        )
    if kind:
        raise ValueError(
            f"framework.qwenvl.base_vlm={stated!r} is a {kind}: its networks are not here; a run "
            "on a Qwen2.5-VL is wanted"
        )
    named = Path(stated)
    beside = run / BaseModel(stated, ()).name
    return BaseModel(stated, (run, *([named] if named.is_dir() else []), beside))


def vision_language(base: BaseModel, shapes: Shapes) -> tuple[VisionConfig, LanguageConfig]:
    """Both networks, of the sizes that are stored.

    Raises:
        ValueError: tensors are missing or of no Qwen2.5-VL, what they do not show is nowhere, or
            the base model is of other sizes.
    """
    settings = base.settings()
    if settings is not None:
        stated = _stated(settings)
    elif base.name in KNOWN:
        vision, language = KNOWN[base.name]
        stated = {**dataclasses.asdict(vision), **dataclasses.asdict(language)}
    else:
        raise ValueError(
            f"base_vlm {base.stated!r} is none of {', '.join(KNOWN)}, and its number of heads, "
            f"blocks of full attention and rotary positions are in no tensor; copy its {SETTINGS} "
            f"to {base.folders[-1]}"
        )
    made = _of_shapes(shapes, stated)
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


def _stated(file: Path) -> dict[str, Any]:
    """What tensors do not show, of a Qwen2.5-VL's config.json."""
    raw = read_object(file)
    text = raw["text_config"] if isinstance(raw.get("text_config"), dict) else raw
    vision = raw.get("vision_config")
    rope = hugging_face.rope_settings(file, text)
    places = {
        "num_heads": vision, "fullatt_block_indexes": vision, "window_size": vision,
        "num_attention_heads": text, "rms_norm_eps": text,
        "rope_theta": rope, "mrope_section": rope,
    }  # fmt: skip
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


def _of_shapes(shapes: Shapes, stated: Mapping[str, Any]) -> tuple[VisionConfig, LanguageConfig]:
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


def sizes(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    """Of a tensor.

    Raises:
        ValueError: it is not there, or has another number of axes.
    """
    shape = shapes.get(name)
    if shape is None or len(shape) != axes or 0 in shape:
        got = "missing" if shape is None else f"{list(shape)}"
        raise ValueError(f"the weights hold no {name} of {axes} axes: {got}")
    return shape


def count(shapes: Shapes, begin: str) -> int:
    """Layers of a name.

    Raises:
        ValueError: none, or a gap between them.
    """
    found = {
        int(number)
        for name in shapes
        if name.startswith(begin) and (number := name.removeprefix(begin).split(".")[0]).isdecimal()
    }
    if not found or found != set(range(len(found))):
        raise ValueError(
            f"the weights hold layers {sorted(found)} of {begin}N, none may be missing"
        )
    return len(found)
