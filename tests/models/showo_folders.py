"""Small policies in folders as UP-VLA's authors keep them, how their files change, and what the
published ones hold, told from the authors' modules."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from transformers import PhiConfig, PhiForCausalLM

from models.families import to_json
from models.upvla.config import prompt_behind
from models.upvla.presets import tiny
from tests.models.synthesized import command

SEED = 7
MODEL, VQ, PHI = "unwrapped_model", "magvitv2", "phi-1_5"
ROLLOUT, BIN, CONFIG = "upvla_model.yaml", "pytorch_model.bin", "config.json"


def other():
    """Two views, and no size that `tiny` has."""
    config = tiny()
    rows = 2 * 16 + 2 + 4
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(
            config.vision,
            ch_mult=(1, 1, 2),
            num_res_blocks=(1, 2, 1),
            decoder_ch_mult=(2, 1, 1),
            decoder_num_res_blocks=(1, 1, 2),
            z_channels=5,
        ),
        language=dataclasses.replace(
            config.language,
            num_hidden_layers=2,
            intermediate_size=96,
            num_attention_heads=2,
            vocab_size=441 + 32,
            partial_rotary_factor=1.0,
            rope_theta=50.0,
            layer_norm_eps=1e-4,
        ),
        head=dataclasses.replace(config.head, action_horizon=4),
        views=("frame", "wrist"),
        prompt=prompt_behind(430, bos=424, max_text=50, num_rows=rows),
    )


MADE = {"tiny": tiny, "other": other}


def synthesized(base: Path, name: str) -> Path:
    out = base / name
    (base / f"{name}.json").write_text(to_json(MADE[name]()))
    words = ("--config", base / f"{name}.json", "--seed", SEED, "--outlier-channels", 2)
    assert command("synthesize", *words, "--out", out) == 0
    return out


def edit_tensors(file: Path, edit) -> None:
    """Change what a file of torch holds."""
    state = torch.load(file, weights_only=True)
    torch.save(edit(state) or state, file)


def read(path: Path):
    return json.loads(path.read_text())


def model_shapes(
    *, vocabulary=58498, width=2048, inner=8192, layers=24, heads=32, outputs=70
) -> dict[str, tuple[int, ...]]:
    """The authors' model: transformers' Phi with norms of queries and keys; by hand the rest."""
    settings = PhiConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, qk_layernorm=True,
    )  # fmt: skip
    with torch.device("meta"):
        phi = PhiForCausalLM(settings)
    shapes = {f"showo.{name}": tuple(value.shape) for name, value in phi.state_dict().items()}
    shapes["token_learner.latents"] = (1, width)
    for norm in ("attn_norm", "mlp_norm"):
        shapes[f"token_learner.{norm}.g"] = (width,)
    shapes["token_learner.attn.q.weight"] = (width, width)
    shapes["token_learner.attn.kv.weight"] = (2 * width, width)
    for layer, (rows, columns) in {
        "token_learner.projection": (width, width),
        "token_learner.attn.proj": (width, width),
        "token_learner.mlp.0.project": (8 * width, width),
        "token_learner.mlp.1": (width, 4 * width),
        "to_logits.0": (outputs, width),
        "mm_projector.0": (width, 1024),
        "mm_projector.2": (width, width),
    }.items():
        shapes |= {f"{layer}.weight": (rows, columns), f"{layer}.bias": (rows,)}
    return shapes


def vq_shapes(ch=128, z=13) -> dict[str, tuple[int, ...]]:
    """The authors' picture tokenizer, as published."""
    shapes: dict[str, tuple[int, ...]] = {
        "quantize.embedding": (2**z, z), "quantize.power_vals": (z,)
    }  # fmt: skip

    def conv(name, inputs, outputs, size=3):
        shapes[f"{name}.weight"] = (outputs, inputs, size, size)
        shapes[f"{name}.bias"] = (outputs,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def block(name, inputs, outputs):
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def around(name, width, first, last):
        conv(f"{name}.conv_in", *first)
        for number in (1, 2):
            block(f"{name}.mid.block_{number}", width, width)
        norm(f"{name}.mid.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.mid.attn_1.{part}", width, width, 1)
        norm(f"{name}.norm_out", last[0])
        conv(f"{name}.conv_out", *last)

    width = ch
    around("encoder", 4 * ch, (3, ch), (4 * ch, z))
    conv("encoder.quant_conv", z, z, 1)
    for level, (mult, count) in enumerate(((1, 4), (2, 3), (2, 4), (4, 3), (4, 4))):
        for number in range(count):
            block(f"encoder.down.{level}.block.{number}", width, mult * ch)
            width = mult * ch
        if level < 4:
            conv(f"encoder.down.{level}.downsample.conv", width, width)
    around("decoder", 4 * ch, (z, 4 * ch), (ch, 3))
    conv("decoder.post_quant_conv", z, z, 1)
    for level, (mult, count) in reversed([*enumerate(((1, 4), (1, 4), (2, 3), (2, 4), (4, 3)))]):
        for number in range(count):
            block(f"decoder.up.{level}.block.{number}", width, mult * ch)
            width = mult * ch
        if level:
            conv(f"decoder.up.{level}.upsample.conv", width, width)
    return shapes


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of safetensors of these sizes, bfloat16 and zero, of which the disk holds little."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    words = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        file.truncate(8 + len(words) + end)
