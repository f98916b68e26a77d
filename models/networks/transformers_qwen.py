"""Qwen2.5-VL, Qwen3-VL and their image processor as `transformers` has them, in our sizes.

They are oracles of our networks, and parts of the baseline that a policy is measured against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLModel,
    Qwen2_5_VLRotaryEmbedding,
    Qwen2_5_VLVisionRotaryEmbedding,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.configuration_qwen3_vl import (
    Qwen3VLConfig,
    Qwen3VLTextConfig,
    Qwen3VLVisionConfig,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLModel,
    Qwen3VLTextRotaryEmbedding,
    Qwen3VLVisionRotaryEmbedding,
)

from models.networks.config import (
    AnyLanguageConfig,
    AnyVisionConfig,
    Qwen3VisionConfig,
    VisionConfig,
    check_backbone,
)
from runtime.image import ImageConfig

IMAGE_PAD = "<|image_pad|>"
"""Token that holds the place of one merged image token."""


def share_weights(
    composition: nn.Module, model: nn.Module, named: Callable[[str], str]
) -> dict[str, str]:
    """Give a composition the weights of a policy, which are not copied, and fix them.

    Args:
        named: what a tensor of `model` is called in `composition`.

    Returns:
        Name of each tensor there -> what a checkpoint calls it.
    """
    given = model.state_dict()
    published = {named(name): name for name in given}
    weights = {here: given[name] for here, name in published.items()}
    composition.load_state_dict(weights, strict=True, assign=True)
    composition.eval().requires_grad_(False)
    return published


def image_pad_id(tokenizer: Tokenizer) -> int:
    """
    Raises:
        ValueError: the tokenizer does not know it.
    """
    pad = tokenizer.token_to_id(IMAGE_PAD)
    if pad is None:
        raise ValueError(f"the tokenizer has no token {IMAGE_PAD!r}, which the prompt needs")
    return int(pad)


def image_processor(image: ImageConfig) -> Qwen2VLImageProcessorPil:
    """The Pillow processor that the policy was trained with. It refuses min_pixels = 0.

    Raises:
        ValueError: the policy was trained with pictures of TensorFlow.
    """
    if stated := image.as_tensorflow + image.as_torch:
        raise ValueError(f"transformers' image processor does not know {', '.join(stated)}")
    return Qwen2VLImageProcessorPil(
        min_pixels=max(image.min_pixels, 1),
        max_pixels=image.max_pixels,
        patch_size=image.patch_size,
        temporal_patch_size=image.temporal_patch_size,
        merge_size=image.merge_size,
        rescale_factor=image.rescale_factor,
        image_mean=list(image.image_mean),
        image_std=list(image.image_std),
    )


def qwen(
    v: AnyVisionConfig, lm: AnyLanguageConfig, image_pad_id: int
) -> Qwen2_5_VLModel | Qwen3VLModel:
    """Vision tower and language model without the LM head, on the meta device.

    Raises:
        ValueError: the two do not belong together.
    """
    check_backbone(v, lm)
    if isinstance(v, Qwen3VisionConfig):
        return _qwen3(v, lm, image_pad_id)
    return _qwen2_5(v, lm, image_pad_id)


def _qwen2_5(v: VisionConfig, lm: AnyLanguageConfig, image_pad_id: int) -> Qwen2_5_VLModel:
    vision = Qwen2_5_VLVisionConfig(
        depth=v.depth,
        hidden_size=v.hidden_size,
        intermediate_size=v.intermediate_size,
        num_heads=v.num_heads,
        patch_size=v.patch_size,
        temporal_patch_size=v.temporal_patch_size,
        spatial_merge_size=v.spatial_merge_size,
        window_size=v.window_size,
        out_hidden_size=v.out_hidden_size,
        fullatt_block_indexes=list(v.fullatt_block_indexes),
    )
    text = Qwen2_5_VLTextConfig(**_text(lm))
    whole = Qwen2_5_VLConfig(
        vision_config=vision, text_config=text, image_token_id=image_pad_id, video_token_id=-1
    )
    with torch.device("meta"):
        model = Qwen2_5_VLModel(whole)
    # The rotary frequencies are no weights: no state_dict would bring them off the meta device.
    model.language_model.rotary_emb = Qwen2_5_VLRotaryEmbedding(text)  # type: ignore[arg-type]
    model.visual.rotary_pos_emb = Qwen2_5_VLVisionRotaryEmbedding(vision)
    return model


def _qwen3(v: Qwen3VisionConfig, lm: AnyLanguageConfig, image_pad_id: int) -> Qwen3VLModel:
    vision = Qwen3VLVisionConfig(
        depth=v.depth,
        hidden_size=v.hidden_size,
        intermediate_size=v.intermediate_size,
        num_heads=v.num_heads,
        patch_size=v.patch_size,
        temporal_patch_size=v.temporal_patch_size,
        spatial_merge_size=v.spatial_merge_size,
        out_hidden_size=v.out_hidden_size,
        num_position_embeddings=v.num_position_embeddings,
        deepstack_visual_indexes=list(v.deepstack_visual_indexes),
    )
    text = Qwen3VLTextConfig(**_text(lm), head_dim=lm.head_dim)
    whole = Qwen3VLConfig(
        vision_config=vision, text_config=text, image_token_id=image_pad_id, video_token_id=-1
    )
    with torch.device("meta"):
        model = Qwen3VLModel(whole)
    model.language_model.rotary_emb = Qwen3VLTextRotaryEmbedding(text)
    model.visual.rotary_pos_emb = Qwen3VLVisionRotaryEmbedding(vision)
    return model


def _text(lm: AnyLanguageConfig) -> dict[str, Any]:
    """Settings that both generations of the language model have."""
    return {
        "vocab_size": lm.vocab_size,
        "hidden_size": lm.hidden_size,
        "intermediate_size": lm.intermediate_size,
        "num_hidden_layers": lm.num_hidden_layers,
        "num_attention_heads": lm.num_attention_heads,
        "num_key_value_heads": lm.num_key_value_heads,
        "rms_norm_eps": lm.rms_norm_eps,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": lm.rope_theta,
            "mrope_section": list(lm.mrope_section),
        },
    }
