"""Published networks that policies are built on, as configurations."""

from __future__ import annotations

import dataclasses

from models.networks.config import (
    FlowDiTConfig,
    LanguageConfig,
    LlamaConfig,
    Qwen3LanguageConfig,
    Qwen3VisionConfig,
    VisionConfig,
)
from models.networks.prismatic_config import TOWERS, PrismaticVisionConfig, ViTConfig
from models.networks.siglip_config import SiglipVisionConfig


def qwen2_5_vl_3b() -> tuple[VisionConfig, LanguageConfig]:
    """Qwen2.5-VL-3B-Instruct."""
    vision = VisionConfig(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=2048,
        fullatt_block_indexes=(7, 15, 23, 31),
    )
    language = LanguageConfig(
        num_hidden_layers=36,
        hidden_size=2048,
        intermediate_size=11008,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
        rope_theta=1e6,
        mrope_section=(16, 24, 24),
    )
    return vision, language


def dit_b(*, action_dim: int, action_horizon: int, state_dim: int | None = None) -> FlowDiTConfig:
    """starVLA's DiT-B: 16 blocks of 12 heads of 64."""
    return FlowDiTConfig(
        num_layers=16,
        num_heads=12,
        head_dim=64,
        action_dim=action_dim,
        action_horizon=action_horizon,
        state_dim=state_dim,
    )


def qwen3_vl_4b() -> tuple[Qwen3VisionConfig, Qwen3LanguageConfig]:
    """Qwen3-VL-4B-Instruct."""
    vision = Qwen3VisionConfig(
        depth=24,
        hidden_size=1024,
        intermediate_size=4096,
        num_heads=16,
        out_hidden_size=2560,
        num_position_embeddings=2304,
        deepstack_visual_indexes=(5, 11, 17),
    )
    language = Qwen3LanguageConfig(
        num_hidden_layers=36,
        hidden_size=2560,
        intermediate_size=9728,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        rope_theta=5e6,
        mrope_section=(24, 20, 20),
    )
    return vision, language


def qwen2_5_0_5b() -> LanguageConfig:
    """Qwen2.5-0.5B, which reads text alone: all its rotary frequencies turn with one place."""
    return LanguageConfig(
        num_hidden_layers=24,
        hidden_size=896,
        intermediate_size=4864,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        rope_theta=1e6,
        mrope_section=(32, 0, 0),
    )


def dinosiglip_224(width: int) -> PrismaticVisionConfig:
    """Prismatic's `dinosiglip-vit-so-224px`: DINOv2 ViT-L/14 with registers beside SigLIP So400m.

    DINOv2's mean and deviation are those of ImageNet as they are stored, rounded to bfloat16.

    Args:
        width: of the language model.
    """
    return PrismaticVisionConfig(
        featurizer=ViTConfig(
            depth=24,
            hidden_size=1024,
            intermediate_size=4096,
            num_heads=16,
            image_mean=(0.484375, 0.455078125, 0.40625),
            image_std=(0.228515625, 0.2236328125, 0.224609375),
            class_token=True,
            reg_tokens=4,
            layer_scale=True,
        ),
        fused_featurizer=ViTConfig(
            depth=27,
            hidden_size=1152,
            intermediate_size=4304,
            num_heads=16,
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.5, 0.5, 0.5),
        ),
        out_hidden_size=width,
    )


def smolvlm2_500m() -> tuple[SiglipVisionConfig, LlamaConfig]:
    """SmolVLM2-500M, with the rotary base that LeRobot's policies compute with: its own is 1e5."""
    vision = SiglipVisionConfig(
        depth=12,
        hidden_size=768,
        intermediate_size=3072,
        num_heads=12,
        out_hidden_size=960,
    )
    language = LlamaConfig(
        num_hidden_layers=32,
        hidden_size=960,
        intermediate_size=2560,
        num_attention_heads=15,
        num_key_value_heads=5,
        vocab_size=49280,
        rope_theta=1e4,
        mrope_section=(32, 0, 0),
        rms_norm_eps=1e-5,
    )
    return vision, language


def thin_qwen2_5_vl_3b() -> tuple[VisionConfig, LanguageConfig]:
    """Its widths with two layers each and a small vocabulary."""
    vision, language = qwen2_5_vl_3b()
    return (
        dataclasses.replace(vision, depth=2, fullatt_block_indexes=(1,)),
        dataclasses.replace(language, num_hidden_layers=2, vocab_size=512),
    )


def thin_prismatic() -> tuple[PrismaticVisionConfig, LanguageConfig]:
    """The published widths with few layers and a small vocabulary."""
    language = dataclasses.replace(qwen2_5_0_5b(), num_hidden_layers=3, vocab_size=512)
    vision = dinosiglip_224(language.hidden_size)
    towers = {name: dataclasses.replace(getattr(vision, name), depth=3) for name in TOWERS}
    return dataclasses.replace(vision, **towers), language


def tiny_prismatic() -> tuple[PrismaticVisionConfig, LanguageConfig]:
    """Every structure of it at widths of 64 to 128, for pictures of 56 x 56."""
    published = dinosiglip_224(128)
    vision = PrismaticVisionConfig(
        featurizer=dataclasses.replace(
            published.featurizer, depth=3, hidden_size=64, intermediate_size=128, num_heads=4
        ),
        fused_featurizer=dataclasses.replace(
            published.fused_featurizer, depth=3, hidden_size=96, intermediate_size=160, num_heads=4
        ),
        out_hidden_size=128,
        image_size=56,
    )
    language = LanguageConfig(
        num_hidden_layers=3,
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        rope_theta=100.0,
        mrope_section=(16, 0, 0),
    )
    return vision, language


def tiny_qwen3() -> tuple[Qwen3VisionConfig, Qwen3LanguageConfig]:
    """Every structure of Qwen3-VL at widths of 128: two levels of deep-stack features, grouped
    heads that are wider together than the decoder, and interleaved M-RoPE."""
    vision = Qwen3VisionConfig(
        depth=3,
        hidden_size=128,
        intermediate_size=256,
        num_heads=4,
        out_hidden_size=128,
        num_position_embeddings=64,
        deepstack_visual_indexes=(0, 1),
    )
    language = Qwen3LanguageConfig(
        num_hidden_layers=3,
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
        rope_theta=10.0,
        mrope_section=(6, 5, 5),
    )
    return vision, language


def tiny_qwen() -> tuple[VisionConfig, LanguageConfig]:
    """Every structure of Qwen2.5-VL at widths of 128: windowed and full attention, grouped heads.

    Its rotary base is 10: with 1e6 a 4 x 4 token grid would leave the width section of M-RoPE no
    resolution.
    """
    vision = VisionConfig(
        depth=2,
        hidden_size=128,
        intermediate_size=192,
        num_heads=4,
        out_hidden_size=128,
        fullatt_block_indexes=(1,),
        window_size=56,
    )
    language = LanguageConfig(
        num_hidden_layers=2,
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        rope_theta=10.0,
        mrope_section=(4, 6, 6),
    )
    return vision, language
