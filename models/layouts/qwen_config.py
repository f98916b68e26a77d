"""The `config.json` of a Qwen-VL of a policy's sizes, as Hugging Face's library spells it.

In: a policy's configuration. Out: the settings of its vision-language model, as they were published
or as transformers 5 writes them. The trade-off: what the policy does not use (token ids, dropout)
is left to the library's defaults.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from models.layouts.hugging_face import spelled
from models.policy_config import QwenPolicyConfig

Spelling = Literal["published", "newer"]
"""Names and settings before transformers 4.52, and those since."""


NAMED = {
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", {"use_sliding_window": False}),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", {"attention_bias": False}),
}
"""Model type -> the library's class, and settings that go without saying here."""


def qwen_config(config: QwenPolicyConfig, spelling: Spelling, dtype: str) -> dict[str, Any]:
    """For `json.dumps`."""
    model_type = spelled(config.vision).model_type
    architecture, unsaid = NAMED[model_type]
    language = dataclasses.asdict(config.language)
    vision = dataclasses.asdict(config.vision)
    theta, section = language.pop("rope_theta"), list(language.pop("mrope_section"))
    is_nested = spelling == "newer" or model_type == "qwen3_vl"  # published with a text_config
    language |= {"hidden_act": "silu", "tie_word_embeddings": True, **unsaid}
    made: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "tie_word_embeddings": True,
    }
    interleaved = {"mrope_interleaved": True} if config.language.mrope_interleaved else {}
    if spelling == "published":
        kind = {"rope_type": "default"} if is_nested else {"type": "mrope"}
        scaling = {**kind, "mrope_section": section, **interleaved}
        language |= {"rope_theta": theta, "rope_scaling": scaling}
    else:
        rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": section}
        language |= {"rope_parameters": rope | interleaved}
    if not is_nested:
        vision |= {"model_type": model_type}
        return {**made, "torch_dtype": dtype, **language, "vision_config": vision}
    text = {"model_type": f"{model_type}_text", **language}
    vision |= {"model_type": f"{model_type}_vision" if model_type == "qwen2_5_vl" else model_type}
    return {**made, "dtype": dtype, "text_config": text, "vision_config": vision}
