"""What an AnchorVLA4D policy is made of, as data.

A `PolicyConfig` holds one frozen dataclass per network and is what `config.json` in a checkpoint
folder spells out; `presets` has those that have a name. Field names are those of the networks' own
public configurations.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from models.json_file import read_json
from runtime.normalization import MODES

HUGGING_FACE = ("architectures", "transformers_version", "torch_dtype", "text_config")
"""Fields that transformers writes into every config.json of its own."""
Unit = Literal["m", "rad", "m/step", "rad/step", "fraction"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """Qwen2.5-VL vision tower and merger."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    """Width of the merged tokens: the language model's."""
    fullatt_block_indexes: tuple[int, ...]
    """Blocks that attend over the whole image; the others attend inside windows."""
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    """Side of an attention window in pixels."""

    def __post_init__(self) -> None:
        _check_divides(self.num_heads, self.hidden_size, "vision.num_heads", "vision.hidden_size")
        if self.hidden_size // self.num_heads % 4:
            raise ValueError(
                "vision head width must be a multiple of 4 for 2-D rotary positions, got "
                f"{self.hidden_size}/{self.num_heads}"
            )
        token = self.patch_size * self.spatial_merge_size
        if token < 1 or self.window_size < token or self.window_size % token:
            raise ValueError(
                f"vision.window_size={self.window_size} must be a positive multiple of a merged "
                f"token's side, {token} pixels"
            )
        if not all(0 <= i < self.depth for i in self.fullatt_block_indexes):
            raise ValueError(
                f"vision.fullatt_block_indexes must lie in [0, {self.depth}), "
                f"got {self.fullatt_block_indexes}"
            )
        _check_numbers(self, "vision")

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: channels x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig:
    """Qwen2.5 decoder without its LM head."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    """Rotary frequencies given to time, height and width; their sum is half the head width."""
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_divides(
            self.num_attention_heads,
            self.hidden_size,
            "language.num_attention_heads",
            "language.hidden_size",
        )
        _check_divides(
            self.num_key_value_heads,
            self.num_attention_heads,
            "language.num_key_value_heads",
            "language.num_attention_heads",
        )
        if len(self.mrope_section) != 3 or 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(
                f"language.mrope_section must hold three numbers that add up to half the head "
                f"width {self.head_dim // 2}, got {self.mrope_section}"
            )
        if self.rms_norm_eps >= 1:
            raise ValueError(f"language.rms_norm_eps must be below 1, got {self.rms_norm_eps}")
        _check_numbers(self, "language")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class SpatialConfig:
    """Alternating-attention trunk over both views (UniCeption)."""

    depth: int
    dim: int
    num_heads: int
    indices: tuple[int, ...]
    """Blocks whose output is tapped, in order."""
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        _check_divides(self.num_heads, self.dim, "spatial.num_heads", "spatial.dim")
        if not all(0 <= i < self.depth for i in self.indices):
            raise ValueError(f"spatial.indices must lie in [0, {self.depth}), got {self.indices}")
        if list(self.indices) != sorted(set(self.indices)):
            raise ValueError(f"spatial.indices must rise, got {self.indices}")
        _check_numbers(self, "spatial")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """ScaleDP diffusion head and its DDIM sampler."""

    depth: int
    n_emb: int
    num_heads: int
    action_dim: int
    prediction_horizon: int
    """Actions in a chunk."""
    state_dim: int
    state_embed_dim: int
    combine_dim: int = 1024
    """Width of the condition MLP."""
    adaptive_pool_dim: int = 8
    """Bins that all tokens are averaged into."""
    mlp_ratio: float = 4.0
    num_train_timesteps: int = 10
    num_inference_timesteps: int = 10

    def __post_init__(self) -> None:
        _check_divides(self.num_heads, self.n_emb, "head.num_heads", "head.n_emb")
        if (
            self.num_inference_timesteps < 1
            or self.num_train_timesteps % self.num_inference_timesteps
        ):
            raise ValueError(
                f"head.num_inference_timesteps={self.num_inference_timesteps} must divide "
                f"num_train_timesteps={self.num_train_timesteps}"
            )
        _check_numbers(self, "head")

    def chunk_shape(self, samples: int = 1) -> tuple[int, ...]:
        """(T, A) of a chunk, or (K, T, A) of K samples."""
        chunk = self.prediction_horizon, self.action_dim
        return chunk if samples == 1 else (samples, *chunk)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig:
    """The text around the two images. `{anchor}`, `{frame}` and `{instruction}` are replaced."""

    template: str = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "giving initial state {anchor}, and current state {frame}\n{instruction}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    image_start: str = "<|vision_start|>"
    image_end: str = "<|vision_end|>"
    placeholder_token_id: int = 151679
    """Token that stands where the actions would be spoken."""
    end: str = "<|im_end|>"

    def __post_init__(self) -> None:
        for name in ("{anchor}", "{frame}", "{instruction}"):
            if self.template.count(name) != 1:
                raise ValueError(f"prompt.template must hold {name} once, got {self.template!r}")
        places = [self.template.index(n) for n in ("{anchor}", "{frame}", "{instruction}")]
        if places != sorted(places):
            raise ValueError(
                "prompt.template must hold {anchor}, {frame}, {instruction} in this order: "
                "what comes before the frame is what the anchor cache can keep"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalizationConfig:
    """How each dimension maps to robot units; the numbers are in `dataset_statistics.json`."""

    action: tuple[str, ...]
    """One mode per action dimension (see `runtime.normalization.MODES`)."""
    state: tuple[str, ...]
    """One mode per state dimension."""
    action_units: tuple[Unit, ...]
    state_units: tuple[Unit, ...]

    def __post_init__(self) -> None:
        for kind, modes, units in (
            ("action", self.action, self.action_units),
            ("state", self.state, self.state_units),
        ):
            if unknown := [m for m in modes if m not in MODES]:
                raise ValueError(f"normalization.{kind}: unknown modes {unknown}, know {MODES}")
            if len(modes) != len(units):
                raise ValueError(
                    f"normalization.{kind} has {len(modes)} modes but {len(units)} units"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyConfig:
    """A whole AnchorVLA4D policy."""

    vision: VisionConfig
    language: LanguageConfig
    spatial: SpatialConfig
    head: HeadConfig
    normalization: NormalizationConfig
    prompt: PromptConfig = PromptConfig()
    model_type: str = "anchorvla4d"
    license: str = "unstated"
    """Licence of the weights; shown by every tool that touches them."""
    description: str = ""
    """What these weights are, in one line; shown beside the licence."""

    def __post_init__(self) -> None:
        if self.model_type != "anchorvla4d":
            raise ValueError(f"model_type must be 'anchorvla4d', got {self.model_type!r}")
        if self.vision.out_hidden_size != self.language.hidden_size:
            raise ValueError(
                f"vision.out_hidden_size={self.vision.out_hidden_size} must equal "
                f"language.hidden_size={self.language.hidden_size}"
            )
        for kind, modes, width in (
            ("action", self.normalization.action, self.head.action_dim),
            ("state", self.normalization.state, self.head.state_dim),
        ):
            if len(modes) != width:
                raise ValueError(
                    f"normalization.{kind} has {len(modes)} modes for head.{kind}_dim={width}; "
                    f"give one mode, and one of {kind}_units, per dimension"
                )

    def to_json(self) -> str:
        """The text of `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> PolicyConfig:
        """Read `config.json`.

        Raises:
            ValueError: unknown or missing fields, wrong types, or values that do not fit together.
        """
        raw = read_json(path)
        if isinstance(raw, dict) and not raw.keys().isdisjoint(HUGGING_FACE):
            raise ValueError(
                f"{path}: a configuration of Hugging Face transformers (model_type "
                f"{raw.get('model_type')!r}), which knows no spatial encoder, action head or "
                "normalization. Write one of a whole policy beside it, and set its sizes from this "
                "file: python -m models config full --out policy.json"
            )
        try:
            return _parse(cls, raw, "")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


T = TypeVar("T")


MAX_NUMBER = 2**31 - 1
"""Of anything that counts or measures: a larger one is damage, or another field's."""


def _check_numbers(config: Any, where: str) -> None:
    """Refuse what counts nothing, is not finite, or cannot be meant."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        least = 0 if isinstance(value, tuple) else 1
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                # A width factor, a rotary base, an epsilon: NaN fails the comparison too.
                if not 0 < number <= MAX_NUMBER:
                    raise ValueError(
                        f"{where}.{field.name} must be a finite number above zero, got {number}"
                    )
            elif not least <= number <= MAX_NUMBER:
                raise ValueError(
                    f"{where}.{field.name} must be from {least} to {MAX_NUMBER}, got {number}"
                )


def _check_divides(small: int, large: int, small_name: str, large_name: str) -> None:
    if small <= 0 or large % small:
        raise ValueError(f"{small_name}={small} must divide {large_name}={large}")


def _parse(cls: type[T], raw: Any, where: str) -> T:
    """Build the dataclass `cls` from JSON, refusing anything that does not fit its fields."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where or 'config'} must be an object, got {type(raw).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    if unknown := sorted(raw.keys() - fields.keys()):
        raise ValueError(f"unknown fields {[prefix + n for n in unknown]}")
    required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
    if missing := sorted(required - raw.keys()):
        raise ValueError(f"missing fields {[prefix + n for n in missing]}")
    return cls(**{n: _value(hints[n], v, prefix + n) for n, v in raw.items()})


def _value(hint: Any, raw: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _parse(typing.cast(type, hint), raw, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(raw, list):
            raise ValueError(f"{where} must be a list, got {raw!r}")
        return tuple(_value(typing.get_args(hint)[0], item, where) for item in raw)
    if typing.get_origin(hint) is Literal:
        if raw not in typing.get_args(hint):
            raise ValueError(f"{where} must be one of {typing.get_args(hint)}, got {raw!r}")
        return raw
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if not isinstance(raw, hint) or isinstance(raw, bool):
        raise ValueError(f"{where} must be {hint.__name__}, got {raw!r}")
    return raw
