"""A policy that is measured beside public libraries: random weights, a bundle and a composition."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from tokenizers import AddedToken, Tokenizer

from export.build import build
from export.config import BuildConfig
from export.evidence.bench import library_rows, slug
from export.forecast.policy import Prompt, SizedPolicy, size
from export.tokens import MADE_UP_INSTRUCTION, choose_tokens
from models.checkpoint import Checkpoint, load_checkpoint, normalizations
from models.config_file import configuration
from models.families import CONFIGS, family_of
from models.init import init
from models.stored import plain
from models.verbs import Init
from runtime.backends.parity import relative_error
from runtime.image import grid_of
from runtime.policy import Policy, load
from runtime.storage.files import write_file

WORD = re.compile(r" ?[A-Za-z]+|[^\x00-\x7f]")


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A configuration with random weights, as a bundle and as a composition."""

    name: str
    checkpoint: Checkpoint
    sized: SizedPolicy
    policy: Policy
    shown: dict[str, Any]
    """What the composition is shown, by the names of the policy's inputs."""
    libraries: Mapping[str, Callable[[], Any]]

    @classmethod
    def make(
        cls,
        name: str,
        work: Path,
        side: int,
        console: Console,
        check: Callable[[SizedPolicy], None] = lambda _: None,
    ) -> Subject:
        """
        Args:
            name: a config.json, or a named configuration.
            work: folder for checkpoints and bundles.
            side: of the camera's pictures.
            check: asked before the work, of the policy without weights.
        """
        folder, size_of = work / slug(name), (side, side)
        tokenizer = folder / "tokenizer.json"
        write_file(tokenizer, with_words(name).to_str())
        init(Init(config=name, out=folder / "checkpoint", tokenizer=tokenizer))
        checkpoint = load_checkpoint(folder / "checkpoint")
        grid = grid_of(*size_of, checkpoint.image)
        slots = choose_tokens(checkpoint, grid, [MADE_UP_INSTRUCTION], None).slots
        tail = len(checkpoint.tail_ids(MADE_UP_INSTRUCTION))
        sized = size(
            checkpoint.config,
            name=name,
            prompt=Prompt(parts=checkpoint.parts, tail=tail),
            image=checkpoint.image,
            image_size=size_of,
            slots=slots,
            layers={},
        )
        check(sized)
        bundle = build(
            BuildConfig(
                recipe="float32",
                checkpoint=folder / "checkpoint",
                out=folder / "bundle",
                image_size=size_of,
                tokens=slots,
                yardsticks=False,
                compile_check=False,
            ),
            console,
        )
        checkpoint = dataclasses.replace(checkpoint, model=plain(checkpoint.model))
        shown: dict[str, Any] = {}
        return cls(
            name=name,
            checkpoint=checkpoint,
            sized=sized,
            policy=load(bundle),
            shown=shown,
            libraries=library_rows(checkpoint, lambda: shown),
        )

    def error(self, actions: NDArray[np.float32], told: Mapping[str, Any]) -> float:
        """Of the last tick's actions, in robot units, against those of the libraries.

        Args:
            told: what the operator gave.
        """
        checkpoint, values = self.checkpoint, self.policy.interpreter.values
        (key,) = checkpoint.statistics
        to_policy, to_robot = normalizations(checkpoint.config, checkpoint.statistics[key], key)
        self.shown.clear()
        for name, declared in self.policy.inputs.items():
            if declared.kind not in ("text", "leftover"):
                self.shown[name] = values[name].copy()
        if "state" in self.shown:
            self.shown["state"] = to_policy.to_policy(self.shown["state"])
        self.shown.update(told)
        return relative_error(actions, to_robot.to_robot(self.libraries["eager"]().numpy()))

    def describe(self) -> dict[str, Any]:
        manifest = self.policy.bundle.manifest
        return {
            "layers": family_of(self.checkpoint.config).depths(self.checkpoint.config),
            "parameters": sum(engine.parameters for engine in manifest.engines.values()),
            "slots": self.sized.slots,
            "tokens": {call: tokens.new for call, tokens in self.sized.used.items()},
        }


def check_names(names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: there is no such configuration.
    """
    for name in names:
        if name not in CONFIGS and not Path(name).exists():
            raise ValueError(
                f"unknown configuration {name!r}; there are {sorted(CONFIGS)}, or name a "
                "config.json of your own"
            )


def with_words(name: str) -> Tokenizer:
    """The demo's tokenizer, to which each word of a policy's prompt is one token, as to those that
    were trained on more: so the prompt is about as long as the published one."""
    config, tokenizer = configuration(name), Tokenizer.from_file(str(Init.tokenizer))
    parts = family_of(config).prompt(config, tokenizer)
    before = (tokenizer.decode(ids, skip_special_tokens=False) for ids in parts.before)
    words = WORD.findall(" ".join([*before, parts.tail.replace("{instruction}", "")]))
    # Those of an instruction stay as they are: a runtime refuses one that holds such tokens.
    left_out = {*tokenizer.get_vocab(), *WORD.findall(MADE_UP_INSTRUCTION)}
    new = [word for word in dict.fromkeys(words) if word not in left_out]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in new])
    return tokenizer
