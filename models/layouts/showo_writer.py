"""A folder of UP-VLA, written as its authors train and keep one.

In: a policy and what reads its parameters. Out: weights and config.json of the model, and in
folders of their own weights and config.json of the picture tokenizer, config.json and
tokenizer.json of the language model; and settings of the authors' rollout. All that is stored and
never used is there too, drawn from the same seed.
"""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor

from models.json_file import read_object
from models.layouts.showo import (
    ACTION_DIM,
    HEADS,
    PICTURES,
    TEXT_END,
    unused_tensors,
)
from models.layouts.showo_settings import (
    BIN,
    CLASS,
    CONFIG,
    MODEL,
    PHI,
    PHI_FROM,
    ROLLOUT,
    TOKENIZER,
    VIEWS,
    VQ,
    VQ_CLASS,
    VQ_FROM,
)
from models.layouts.writers import Say, check_asked, check_said, write_torch
from models.networks.vq import bit_table
from models.random_weights import random_tensor
from models.sources import Source, Weights
from models.upvla.config import ADDED, MAPConfig, UPVLAConfig, prompt_behind
from models.upvla.presets import raw_actions
from models.verbs import Synthesize

LAYOUT = "showo"
MARK = "_name_or_path"
"""Setting of diffusers' that tells where a model is from."""
POWERS = f"{PICTURES}quantize.power_vals"
WRITTEN = re.compile(
    "|".join(
        [
            rf"({MODEL}|{VQ})(/({re.escape(CONFIG)}|{re.escape(BIN)}))?",
            rf"{re.escape(PHI)}(/({re.escape(CONFIG)}|{re.escape(TOKENIZER)}))?",
            re.escape(ROLLOUT),
        ]
    )
)
"""Names of what is left in a folder."""


def check_writable(config: UPVLAConfig, arguments: Synthesize) -> None:
    """
    Raises:
        ValueError: it is to be written otherwise, or is what no such folder can say.
    """
    check_asked(arguments, config.model_type, LAYOUT)
    p, text = config.prompt, config.language
    tokens = Tokenizer.from_file(str(arguments.tokenizer))
    found = tokens.get_vocab_size(with_added_tokens=True)
    if (found, tokens.token_to_id(TEXT_END)) != (p.pad, p.bos):
        raise ValueError(
            f"{arguments.tokenizer}: has {found} tokens and {TEXT_END} at "
            f"{tokens.token_to_id(TEXT_END)}, the prompt of this policy stands on {p.pad} and "
            f"{p.bos}; name such a one with --tokenizer, as {PHI_FROM} has it for the published one"
        )
    plain = prompt_behind(p.pad, bos=p.bos, max_text=p.max_text, num_rows=config.num_rows)
    heads = MAPConfig(action_dim=1, action_horizon=1).num_heads
    check_said(
        LAYOUT,
        [
            ("prompt", p, plain),
            (
                "language.vocab_size",
                text.vocab_size,
                p.first_code + config.vision.codebook_size + 1,
            ),
            ("head.num_heads", config.head.num_heads, heads),
            ("head.action_dim", config.head.action_dim, ACTION_DIM),
            ("normalization", config.normalization, raw_actions(ACTION_DIM)),
            ("views", config.views, VIEWS.get(len(config.views))),
        ],
    )


def write(
    folder: Path,
    weights: Weights,
    config: UPVLAConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """Everything that such a folder holds; `say` each file of weights.

    Args:
        mark: to tell whose it is, in the model's config.json.
    """
    for name, settings in {
        f"{MODEL}/{CONFIG}": {MARK: mark, **_model(config)},
        f"{VQ}/{CONFIG}": {"_class_name": VQ_CLASS, "_diffusers_version": "0.30.1"},
        f"{PHI}/{CONFIG}": _text(config, arguments.dtype),
    }.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(json.dumps(settings, indent=2) + "\n")
    shutil.copyfile(arguments.tokenizer, folder / PHI / TOKENIZER)
    (folder / ROLLOUT).write_text(yaml.safe_dump(_rollout(config), sort_keys=False))
    tensors = {**weights, **_unused(config, arguments)}
    for name in HEADS:
        tensors[name] = _whole_head(weights[name], config, arguments.seed)
    z = config.vision.z_channels
    powers = {POWERS.removeprefix(PICTURES): 1 << torch.arange(z - 1, -1, -1)}
    for where, begin, others in ((MODEL, "", {}), (VQ, PICTURES, powers)):
        inside = {
            name.removeprefix(begin): source
            for name, source in tensors.items()
            if name.startswith(PICTURES) == bool(begin)
        }
        file = folder / where / BIN
        write_torch(file, inside, others)
        say(f"{where}/{BIN}: {file.stat().st_size / 1e9:.2f} GB")


def mark_of(folder: Path) -> str | None:
    """Of a folder that `write` wrote."""
    try:
        raw = read_object(folder / MODEL / CONFIG)
    except (OSError, ValueError):
        return None
    return str(raw.get(MARK)) if raw.get("_class_name") == CLASS else None


def _model(config: UPVLAConfig) -> dict[str, Any]:
    """config.json of the model, as diffusers registers its arguments."""
    return {
        "_class_name": CLASS,
        "_diffusers_version": "0.30.1",
        "act_step": config.head.action_horizon,
        "codebook_size": config.vision.codebook_size,
        "llm_model_path": f"./{PHI}",
        "llm_vocab_size": config.prompt.pad,
        "load_from_showo": True,
        "mask_token_id": config.language.vocab_size - 1,
        "num_vq_tokens": config.vision.num_patches,
        "vocab_size": config.language.vocab_size,
        "w_clip_vit": True,
    }


def _text(config: UPVLAConfig, dtype: str) -> dict[str, Any]:
    """config.json of the language model, as Microsoft has it before Show-o changes it."""
    text = config.language
    return {
        "architectures": ["PhiForCausalLM"],
        "hidden_act": "gelu_new",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "layer_norm_eps": text.layer_norm_eps,
        "model_type": "phi",
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": None,
        "partial_rotary_factor": text.partial_rotary_factor,
        "qk_layernorm": False,
        "rope_scaling": None,
        "rope_theta": text.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "vocab_size": config.prompt.pad,
    }


def _rollout(config: UPVLAConfig) -> dict[str, Any]:
    """upvla_model.yaml, what of it says something of a policy."""
    model, side = _model(config), config.vision.image_size
    names = ("w_clip_vit", "vocab_size", "llm_vocab_size", "llm_model_path", "codebook_size",
             "num_vq_tokens")  # fmt: skip
    return {
        "act_step": config.head.action_horizon,
        "model": {
            "vq_model": {"type": VQ, "vq_model_name": VQ_FROM},
            "showo": {
                "tuned_model_path": ".",
                **{name: model[name] for name in names},
                "num_new_special_tokens": len(ADDED),
            },
            "vla": {"num_view": len(config.views)},
        },
        "dataset": {
            "preprocessing": {"max_seq_length": config.prompt.max_text - 1, "resolution": side}
        },
    }


def _unused(config: UPVLAConfig, arguments: Synthesize) -> dict[str, Source]:
    """What is stored and not read: drawn, or what it is."""
    made: dict[str, Source] = {}
    drawn, dtype = f"drawn from seed {arguments.seed}", getattr(torch, arguments.dtype)
    for name, (shape, _) in unused_tensors(config).items():
        if name == POWERS:
            continue  # whole numbers, which no weights are
        if name.startswith(PICTURES):
            read = partial(bit_table, config.vision.z_channels)
            made[name] = Source(name, shape, torch.float32, (), "bits of each code", read)
        else:
            read = partial(random_tensor, name, shape, arguments.seed, dtype=dtype)
            made[name] = Source(name, shape, dtype, (), drawn, read)
    return made


def _whole_head(part: Source, config: UPVLAConfig, seed: int) -> Source:
    """A head over the vocabulary around its part over the codes."""
    first, shape = config.prompt.first_code, (config.language.vocab_size, *part.shape[1:])

    def read() -> Tensor:
        made = random_tensor(f"{part.name} of words", shape, seed, dtype=part.dtype)
        made[first : first + part.shape[0]] = part.read()
        return made

    return Source(part.name, shape, part.dtype, (), part.how, read)
