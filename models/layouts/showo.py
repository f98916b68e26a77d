"""A folder of UP-VLA, as its authors publish and train one on Show-o, read as a policy.

In: the folder: weights and config.json of the model, and in folders of their own those of the
picture tokenizer and tokenizer.json of the language model. Out: a policy's configuration, its image
settings, statistics, and where each parameter is read. Sizes come from the tensors and are compared
with what the files state. Of the head over the vocabulary only the rows of the codes are read.
Nothing in a file is run, and what is believed without being seen is said (`Run.said`).

Source: as `showo_settings`; models/phi.py, models/modeling_magvitv2.py, models/common_modules.py
and models/map_block.py for the names.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from models.errors import CheckpointError
from models.init import image_of
from models.json_file import refuse_pointer
from models.layouts import hugging_face
from models.layouts.runs import Run, counted
from models.layouts.showo_settings import (
    BASE_FROM,
    PHI,
    PHI_FROM,
    POLICY,
    SAFETENSORS,
    TOKENIZER,
    VIEWS,
    VQ,
    VQ_FROM,
    Settings,
    model_folder,
    read_settings,
    weights_file,
)
from models.layouts.stored import stored_safetensors
from models.layouts.tensors import Shapes, count, refuse_wrapped, sizes
from models.networks.phi_config import PhiConfig
from models.networks.vq_config import VQConfig
from models.sources import Misfits, Source, Stored, Weights, parameter_shapes
from models.upvla.config import ADDED, MAPConfig, UPVLAConfig, prompt_behind
from models.upvla.presets import calvin, raw_actions

PICTURES = "vq_model."
"""How our names of the picture tokenizer begin."""
LAYERS, HEADS = "showo.model.layers.", ("showo.lm_head.weight", "showo.lm_head.bias")
ACTION_DIM = 7
"""Numbers of an action, whatever the robot: the authors' head cuts its outputs so."""
TEXT_END = "<|endoftext|>"
"""Of Phi's tokenizer: stands in front of a text, and behind it."""
EMBODIMENT = "upvla"
"""What the robot is called: nothing says, and nothing is normalized."""
CLIP_WIDTH = 1024
_UNSEEN = ("partial_rotary_factor", "rope_theta", "layer_norm_eps")
"""Settings of the language model that no tensor shows."""


def open_run(path: Path) -> Run:
    """Everything but the weights, and where each of those is read.

    Raises:
        ValueError: a file is missing or damaged, of a policy that is not here, or says what does
            not fit together. CheckpointError if tensors do not.
    """
    try:
        if (path / POLICY).exists():
            raise ValueError(
                f"{path / POLICY}: beside weights of UP-VLA's own layout, which tells a policy by "
                "itself; remove it"
            )
        settings = read_settings(path)
        folders = {"": model_folder(path), PICTURES: path / VQ}
        files = [
            weights_file(folder, source)
            for folder, source in zip(
                folders.values(), ("CladernyJorn/UP-VLA-Calvin", VQ_FROM), strict=True
            )
        ]
        tensors = [
            pair
            for begin, file in zip(folders, files, strict=True)
            for pair in _tensors(file, begin)
        ]
        shapes = {name: stored.shape for name, stored in tensors}
        _refuse_others(files[0], shapes)
        words = path / PHI / TOKENIZER
        tokenizer, bos = _tokenizer(words)
        config = _policy(path, shapes, settings, bos)
        _check_stated(settings, config)
        _check_tokens(words, tokenizer, config.prompt.pad)
    except CheckpointError:
        raise
    except ValueError as error:
        named = str(error).startswith(str(path))
        raise ValueError(str(error) if named else f"{path}: {error}") from None
    weights = _place(path, tensors, files, config)
    said = _said(path, files, settings, config)
    statistics: dict[str, Any] = {EMBODIMENT: {"action": {}, "state": {}}}
    return Run(config, image_of(config), statistics, words, weights, said)


def unused_tensors(config: UPVLAConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """What may be stored and is never used, by our names: its shape, and why."""
    width, v = config.language.hidden_size, config.vision
    chat = "brings pictures of CLIP to the chat, of which this policy does nothing"
    made: dict[str, tuple[tuple[int, ...], str]] = {}
    for layer, inputs in ((0, CLIP_WIDTH), (2, width)):
        made[f"mm_projector.{layer}.weight"] = (width, inputs), chat
        made[f"mm_projector.{layer}.bias"] = (width,), chat
    bits = "a code is the signs of its bits, which are counted and not looked up"
    made[f"{PICTURES}quantize.embedding"] = (v.codebook_size, v.z_channels), bits
    made[f"{PICTURES}quantize.power_vals"] = (v.z_channels,), bits
    return made


def _tensors(file: Path, begin: str) -> Iterable[tuple[str, Stored]]:
    """What a file holds, by our names.

    Raises:
        CheckpointError: it is damaged, or holds something else.
    """
    if file.name == SAFETENSORS:
        return [(begin + stored.name, stored) for stored in stored_safetensors(file)]
    return list(hugging_face.side_tensors(file, begin))


def _refuse_others(file: Path, shapes: Shapes) -> None:
    """
    Raises:
        ValueError: these are the names of a model that is not here, or a wrapper's.
    """
    refuse_wrapped(file, shapes)
    if not any(name.startswith("token_learner.") for name in shapes):
        raise ValueError(
            f"{file}: holds no token_learner.*, the head of actions: of Show-o ({BASE_FROM}), "
            "which UP-VLA is trained from, or of something else"
        )
    if f"{LAYERS}0.self_attn.q_proj.weight" in shapes and (
        f"{LAYERS}0.self_attn.q_layernorm.weight" not in shapes
    ):
        raise ValueError(
            f"{file}: holds no {LAYERS}0.self_attn.q_layernorm.*: a Phi without norms of queries "
            "and keys, as Microsoft's own is; Show-o's has them"
        )


def _policy(path: Path, shapes: Shapes, settings: Settings, bos: int) -> UPVLAConfig:
    """The configuration.

    Args:
        bos: stands around a text.

    Raises:
        ValueError: tensors are missing, or do not fit together or the settings.
    """
    language = _language(shapes, settings)
    vision = _vision(shapes, settings, language.hidden_size)
    outputs = sizes(shapes, "to_logits.0.weight", 2)[0]
    if outputs % ACTION_DIM:
        raise ValueError(
            f"to_logits.0.weight has {outputs} rows, which are no actions of {ACTION_DIM} numbers"
        )
    horizon = outputs // ACTION_DIM
    codes, rows = vision.codebook_size, language.vocab_size
    num_tokens = rows - len(ADDED) - codes - 1
    if num_tokens < 1:
        raise ValueError(
            f"the weights have {rows} rows of tokens: too few for {codes} codes of pictures, "
            f"{len(ADDED)} tokens that Show-o adds, and a mask"
        )
    return UPVLAConfig(
        vision=vision,
        language=language,
        head=MAPConfig(action_dim=ACTION_DIM, action_horizon=horizon),
        normalization=raw_actions(ACTION_DIM),
        views=VIEWS[settings.num_views],
        prompt=prompt_behind(
            num_tokens,
            bos=bos,
            max_text=settings.max_text,
            num_rows=settings.num_views * vision.num_patches + 2 + horizon,
        ),
        license=calvin().license,
        description=f"UP-VLA, {path.resolve().name}",
    )


def _tokenizer(file: Path) -> tuple[Tokenizer, int]:
    """And the id of what stands around a text.

    Raises:
        ValueError: it is missing or no tokenizer, or does not know what stands around a text.
    """
    if not file.is_file():
        raise ValueError(
            f"{file}: missing; copy it from {PHI_FROM}, whose tokenizer the authors take"
        )
    refuse_pointer(file)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file}: not a tokenizer: {error}") from None
    bos = tokenizer.token_to_id(TEXT_END)
    if bos is None:
        raise ValueError(f"{file}: has no token {TEXT_END!r}; take that of {PHI_FROM}")
    return tokenizer, bos


def _check_tokens(file: Path, tokenizer: Tokenizer, wanted: int) -> None:
    """
    Raises:
        ValueError: it is not the one whose ids those of the prompt follow.
    """
    found = tokenizer.get_vocab_size(with_added_tokens=True)
    if found != wanted:
        raise ValueError(
            f"{file}: has {found} tokens, and in the weights Show-o's own begin behind {wanted}; "
            f"take that of {PHI_FROM} as it is published"
        )


def _language(shapes: Shapes, settings: Settings) -> PhiConfig:
    """Show-o's Phi; what is neither stated nor seen is Phi-1.5's.

    Raises:
        ValueError: tensors are missing, or settings are, or do not fit them.
    """
    vocabulary, width = sizes(shapes, "showo.model.embed_tokens.weight", 2)
    head_dim = sizes(shapes, f"{LAYERS}0.self_attn.q_layernorm.weight", 1)[0]
    inner = sizes(shapes, f"{LAYERS}0.mlp.fc1.weight", 2)[0]
    path, text = settings.text_path, settings.text
    stated = {**text, **hugging_face.rope_settings(path, text, {})}
    known = calvin().language
    if width != known.hidden_size and (left := [n for n in _UNSEEN if n not in stated]):
        raise ValueError(
            f"{path}: must state {', '.join(left)}, since the width {width} of the weights is not "
            f"that of Phi-1.5, {known.hidden_size}"
        )
    unseen = {name: stated.get(name, getattr(known, name)) for name in _UNSEEN}
    for name, value in unseen.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise ValueError(f"{path}: {name} must be a number above zero, got {value!r}")
    if width % head_dim:
        raise ValueError(
            f"{LAYERS}0.self_attn.q_layernorm.weight has {head_dim} numbers, which must divide "
            f"the width {width}"
        )
    made = PhiConfig(
        num_hidden_layers=count(shapes, LAYERS),
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=width // head_dim,
        vocab_size=vocabulary,
        **{name: float(value) for name, value in unseen.items()},
    )
    # The vocabulary stated there is Phi-1.5's own, padded.
    for field in dataclasses.fields(made):
        ours = getattr(made, field.name)
        if field.name != "vocab_size" and stated.get(field.name, ours) != ours:
            raise ValueError(
                f"{path}: {field.name}={stated[field.name]!r}, and the weights say {ours}"
            )
    return made


def _vision(shapes: Shapes, settings: Settings, width: int) -> VQConfig:
    """Both directions of the picture tokenizer.

    Raises:
        ValueError: tensors are missing or of other sizes, or the codes are of no square.
    """
    ch = sizes(shapes, f"{PICTURES}encoder.conv_in.weight", 4)[0]
    down, up = (_levels(shapes, f"{PICTURES}{of}.", ch) for of in ("encoder.down", "decoder.up"))
    side = math.isqrt(settings.num_codes)
    if side**2 != settings.num_codes:
        raise ValueError(f"num_vq_tokens={settings.num_codes} codes of a picture are no square")
    return VQConfig(
        out_hidden_size=width,
        ch=ch,
        ch_mult=tuple(mult for mult, _ in down),
        num_res_blocks=tuple(blocks for _, blocks in down),
        decoder_ch_mult=tuple(mult for mult, _ in up),
        decoder_num_res_blocks=tuple(blocks for _, blocks in up),
        z_channels=sizes(shapes, f"{PICTURES}encoder.quant_conv.weight", 4)[0],
        image_size=side * 2 ** (len(down) - 1),
    )


def _levels(shapes: Shapes, begin: str, ch: int) -> list[tuple[int, int]]:
    """Of each size of picture, channels as a multiple, and blocks."""
    found: list[tuple[int, int]] = []
    for level in range(count(shapes, begin)):
        blocks = f"{begin}{level}.block."
        number = count(shapes, blocks)
        out = sizes(shapes, f"{blocks}0.conv1.weight", 4)[0]
        if out % ch:
            raise ValueError(f"{blocks}0.conv1.weight has {out} channels, no multiple of {ch}")
        found.append((out // ch, number))
    return found


def _check_stated(settings: Settings, config: UPVLAConfig) -> None:
    """
    Raises:
        ValueError: numbers in the files are not those of the tensors, all of them at once.
    """
    v = config.vision
    seen = {
        "vocab_size": config.language.vocab_size,
        "llm_vocab_size": config.prompt.pad,
        "codebook_size": v.codebook_size,
        "num_vq_tokens": settings.num_codes,
        "num_new_special_tokens": len(ADDED),
        "act_step": config.head.action_horizon,
        "resolution": v.image_size,
    }
    because = {
        "num_vq_tokens": "config.json says",
        "num_new_special_tokens": "the authors' code adds",
        "resolution": f"{settings.num_codes} codes of {v.patch_size} x {v.patch_size} pixels make",
    }
    wrong = [
        f"{file}: {name}={value}, and {because.get(name, 'the weights say')} {seen[name]}"
        for file, name, value in settings.stated
        if value != seen[name]
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def _place(
    path: Path, tensors: Iterable[tuple[str, Stored]], files: Iterable[Path], config: UPVLAConfig
) -> Weights:
    """Where each parameter is read; of the head over the vocabulary the rows of the codes.

    Raises:
        CheckpointError: tensors that do not fit.
    """
    first, codes = config.prompt.first_code, config.vision.codebook_size
    unused = unused_tensors(config)
    whole = config.language.vocab_size, config.language.hidden_size
    wanted = {name: shape for name, (shape, _) in unused.items()}
    wanted |= dict(zip(HEADS, (whole, whole[:1]), strict=True))
    misfits = Misfits()
    placed: list[tuple[str, Stored]] = []
    for name, stored in tensors:
        if stored.shape != wanted.get(name, stored.shape):
            want = list(wanted[name])
            misfits.misshaped.append(f"{stored.name} {list(stored.shape)}, expected {want}")
        elif name in HEADS:
            shape = (codes, *stored.shape[1:])
            read = partial(_rows, stored, first, codes)
            stored = dataclasses.replace(stored, shape=shape, read=read)
        placed.append((name, stored))
    misfits.refuse(path)
    weights = hugging_face.place(
        path, placed, files, wanted=parameter_shapes(config),
        unused_names={name: why for name, (_, why) in unused.items()},
    )  # fmt: skip
    rows = f"rows {first} to {first + codes - 1}, the codes'"
    sources: Mapping[str, Source] = {
        name: dataclasses.replace(source, how=rows) if name in HEADS else source
        for name, source in weights.items()
    }
    return Weights(sources, weights.files, weights.unused)


def _rows(stored: Stored, first: int, number: int) -> Tensor:
    return stored.read()[first : first + number]


def _said(
    path: Path, files: Iterable[Path], settings: Settings, config: UPVLAConfig
) -> tuple[str, ...]:
    """How it came about, in lines."""
    horizon, action_dim = config.chunk
    v, first = config.vision, config.prompt.first_code
    words: dict[str, Any] = {
        "policy": "UP-VLA, on Show-o",
        "weights": ", ".join(file.relative_to(path).as_posix() for file in files),
        "vision": v.words,
        **config.other_networks,
        "pictures": f"{v.image_size} x {v.image_size} pixels, {v.num_patches} codes each",
        "views": ", ".join(config.views),
        "actions": f"{horizon} x {action_dim}: {counted(config.normalization.action)}",
    }
    notes = [
        f"{config.head.num_heads} heads of attention in the head, {ACTION_DIM} numbers of an "
        "action, raw as the robot takes them, and how pictures are cut are those of the authors' "
        "code, and in no file",
        f"of showo.lm_head the rows of codes, {first} to {first + v.codebook_size - 1}, are read; "
        "the others say words",
        *settings.notes,
    ]
    if not settings.text:
        notes.append(f"{', '.join(_UNSEEN)}: not stated, Phi-1.5's are taken")
    return (*(f"{name}: {text}" for name, text in words.items()), *(f"note: {n}" for n in notes))
