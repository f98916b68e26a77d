"""A folder of our own, as `python -m models init` writes one: for families that nobody published.

In: a policy and what reads its parameters. Out: config.json, preprocessor_config.json,
dataset_statistics.json, tokenizer.json, and shards of safetensors with an index, which tells whose
they are. Unlike those of init, the weights are of any dtype, and have outlier channels.
"""

from __future__ import annotations

import re
from pathlib import Path

from models.checkpoint import write_surroundings
from models.families import read_config, to_json
from models.init import image_of, statistics_of
from models.json_file import read_object
from models.layouts.hugging_face import INDEX
from models.layouts.writers import Say, check_asked, write_sharded
from models.policy_config import PolicyConfig
from models.sources import Weights
from models.verbs import Synthesize

LAYOUT = "own"
CONFIG = "config.json"
WRITTEN = re.compile(
    r"config\.json|preprocessor_config\.json|dataset_statistics\.json|tokenizer\.json|"
    r"model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json"
)
"""Names of what is left in a folder."""


def check_writable(config: PolicyConfig, arguments: Synthesize) -> None:
    """
    Raises:
        ValueError: it is to be written otherwise.
    """
    check_asked(arguments, config.model_type, LAYOUT, why=": nobody published another")


def write(
    folder: Path,
    weights: Weights,
    config: PolicyConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """Everything that such a folder holds; `say` whose layout it is, and each file of weights.

    Args:
        mark: to tell whose it is, in the index.
    """
    say(f"nobody published a {config.model_type}: this is a folder of our own, as of models init")
    (folder / CONFIG).write_text(to_json(config))
    write_surroundings(
        folder,
        tokenizer=arguments.tokenizer,
        image=image_of(config),
        statistics=statistics_of(config),
    )
    write_sharded(folder, weights, mark, say)


def mark_of(folder: Path) -> str | None:
    """Of a folder that `write` wrote."""
    try:
        read_config(folder / CONFIG)
        told = read_object(folder / INDEX).get("metadata")
    except (OSError, ValueError):
        return None
    return str(told.get("written_by")) if isinstance(told, dict) else None
