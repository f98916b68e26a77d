"""Checkpoints of AnchorVLA4D: as Hugging Face's libraries write them, or as the authors' Megatron.

The authors' conversion tool (`checkpoint/vlm_model/mm_to_hf.py` of eileenzhujuan/AnchorVLA4D) puts
the parts beside the vision-language model into files of their own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from models.anchorvla4d import megatron
from models.anchorvla4d.config import MODEL_TYPE, AnchorVLA4DConfig
from models.anchorvla4d.megatron_writer import write_megatron
from models.errors import CheckpointError
from models.layouts import hugging_face
from models.layouts.hugging_face import INDEX
from models.layouts.qwen_config import Spelling, qwen_config
from models.layouts.writers import Say, write_safetensors, write_sharded, write_torch
from models.sources import Source, Weights, parameter_shapes
from models.verbs import Synthesize

READOUTS = "readouts.safetensors"
"""What was fitted to finished weights lies beside them: their file stays as it was trained."""
SIDE_FILES = {
    READOUTS: "readouts.",
    "action_head.pt": "action_head.",
    "info_sharing.pt": "info_sharing.",
    "vit_memory.pt": "vit_memory.",
    "cross_state.pt": "",
}
"""What lies beside the safetensors -> how our names of it begin. But for the readouts the authors'
tool writes them. The last two belong to other policies of theirs: here they are empty, or their
tensors are too many."""
UNUSED = {"vlm.lm_head.weight": "speaks words, of which this policy says none"}
written = re.compile(
    r"config\.json|(action_head|info_sharing)\.pt|readouts\.safetensors|model-\d{5}-of-\d{5}\.safetensors"
    rf"|{re.escape(INDEX)}|{re.escape(megatron.TRACKER)}"
    rf"|iter_\d{{7}}(/mp_rank_\d{{2,}}(/{re.escape(megatron.FILE)})?)?"
)
"""What `write` leaves in a folder."""


def open_weights(path: Path, config: AnchorVLA4DConfig) -> Weights:
    """Where each parameter of the policy in a folder is read. Reads headers only.

    Raises:
        CheckpointError: no weights, files that are missing or damaged, or tensors that do not fit,
            all of them at once.
    """
    if megatron.is_in(path):
        if hugging_face.is_in(path):
            raise CheckpointError(
                f"{path}: holds both safetensors and shards of Megatron; leave one of the two"
            )
        return megatron.open_weights(path, config)
    return hugging_face.open_weights(
        path, parameter_shapes(config), side_files=SIDE_FILES, unused_names=UNUSED
    )


def check_writable(config: AnchorVLA4DConfig, arguments: Synthesize) -> None:
    """
    Raises:
        ValueError: the policy cannot be cut into so many shards, or has no such layout.
    """
    if arguments.layout not in ("hf", "authors"):
        raise ValueError(
            f"an {MODEL_TYPE} is written as --layout hf or --layout authors, got {arguments.layout}"
        )
    if arguments.layout == "authors":
        megatron.places(config, arguments.shards)


def write(
    folder: Path,
    weights: Weights,
    config: AnchorVLA4DConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """Weights as others write them, and what lies beside them; `say` each file.

    Args:
        mark: to tell whose they are.
    """
    if arguments.layout == "authors":
        write_megatron(folder, weights, config, ranks=arguments.shards, say=say)
        return
    spelled = qwen_config(config, arguments.names, arguments.dtype)
    (folder / "config.json").write_text(json.dumps(spelled, indent=2) + "\n")
    parts = _parts(weights, arguments.names)
    write_sharded(folder, parts["vlm"], mark, say)
    for part in ("action_head", "info_sharing"):
        write_torch(folder / f"{part}.pt", parts[part])
        say(f"{part}.pt: {(folder / f'{part}.pt').stat().st_size / 1e9:.2f} GB")
    if "readouts" in parts:
        write_safetensors(folder / READOUTS, parts["readouts"])
        say(f"{READOUTS}: {(folder / READOUTS).stat().st_size / 1e3:.0f} kB")


def _parts(weights: Weights, spelling: Spelling) -> dict[str, dict[str, Source]]:
    """The parameters of each part of a policy, under the names that its own file has."""
    parts: dict[str, dict[str, Source]] = {}
    for name, source in weights.items():
        part, _, inside = name.partition(".")
        if part == "vlm" and spelling == "newer":
            if inside.startswith("model."):
                inside = "model.language_model." + inside.removeprefix("model.")
            else:
                inside = f"model.{inside}"
        parts.setdefault(part, {})[inside] = source
    return parts
