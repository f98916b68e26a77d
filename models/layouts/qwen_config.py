"""The `config.json` of a Qwen2.5-VL of a policy's sizes, as Hugging Face's library spells it.

In: a policy's configuration. Out: the settings of its vision-language model, as they were published
or as transformers 5 writes them. The trade-off: what the policy does not use (token ids, dropout)
is left to the library's defaults.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from models.policy_config import PolicyConfig

Spelling = Literal["published", "newer"]
"""Names and settings before transformers 4.52, and those since."""


def qwen_config(config: PolicyConfig, spelling: Spelling, dtype: str) -> dict[str, Any]:
    """For `json.dumps`."""
    language = dataclasses.asdict(config.language)
    vision = dataclasses.asdict(config.vision)
    theta, section = language.pop("rope_theta"), list(language.pop("mrope_section"))
    language |= {"hidden_act": "silu", "tie_word_embeddings": True, "use_sliding_window": False}
    made: dict[str, Any] = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
    }
    if spelling == "published":
        language |= {
            "rope_theta": theta,
            "rope_scaling": {"type": "mrope", "mrope_section": section},
        }
        vision |= {"model_type": "qwen2_5_vl"}
        return {**made, "torch_dtype": dtype, **language, "vision_config": vision}
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": section}
    text = {"model_type": "qwen2_5_vl_text", **language, "rope_parameters": rope}
    vision |= {"model_type": "qwen2_5_vl_vision"}
    return {**made, "dtype": dtype, "text_config": text, "vision_config": vision}
