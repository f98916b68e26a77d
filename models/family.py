"""What a family of policies has to answer, for it to be quantized, exported and measured.

Axes: T = action in the chunk, A = action dimension, S = state dimension.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.families import family_of
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.work import Layer, Tokens, Work
from models.policy_config import PolicyConfig
from models.prompt_parts import PromptParts
from models.sources import Weights
from models.split import ResizeOn, Split
from models.verbs import Synthesize
from runtime.declarations import Input
from runtime.image import ImageConfig


class Reference(Protocol):
    """The policy composed from public libraries, with the weights of one of ours."""

    def prepare(self, **observed: Any) -> tuple[Tensor, ...]:
        """What its `forward` takes, of what was observed; the state in policy units."""

    @property
    def published(self) -> Mapping[str, str]:
        """Name of each of its tensors -> what it is called in a checkpoint."""

    def listen(self) -> dict[str, list[Tensor]]:
        """Hooks that keep what its modules put out in a tick, in the order in which they run."""

    def placed(
        self,
        kept: Mapping[str, list[Tensor]],
        grid: tuple[int, int],
        layers: LayersPerPart,
        fixed: Mapping[str, int],
    ) -> dict[str, Tensor]:
        """What was kept, under the names of a `split`'s graph and in its layout, without padding;
        the sampler's predictions as `predicted_K`."""


class Family(Protocol):
    """Implemented by `models.<family>.family`. `config` is the family's own throughout."""

    @property
    def written(self) -> re.Pattern[str]:
        """Names of what `write` leaves in a folder."""

    def model(self, config: Any) -> nn.Module:
        """All networks, under the names that are published; on torch's current device."""

    def shapes(self, config: Any) -> nn.Module:
        """The same without memory, but for what `split` computes with, which is not filled."""

    def depths(self, config: Any) -> dict[str, int]:
        """Layers of each trunk that may be cut; `language` is one of them."""

    def engines_work(
        self,
        config: Any,
        grid: tuple[int, int],
        tokens: Tokens,
        layers: LayersPerPart = WHOLE,
        samples: int = 1,
    ) -> dict[str, Work]:
        """Of every engine, under the names and in the order of a `split`."""

    def trunk_work(
        self, config: Any, trunk: str, layers: range, grid: tuple[int, int], tokens: Tokens
    ) -> Work:
        """Some layers of a trunk in an engine of their own."""

    def folded_layers(self, config: Any) -> tuple[Layer, ...]:
        """Those that no engine holds, since their results are constants."""

    def prompt(self, config: Any, tokenizer: Tokenizer) -> PromptParts:
        """Around the images, as ids of this tokenizer."""

    def published_prompt(self, config: Any) -> tuple[PromptParts, int]:
        """Without a tokenizer: as many ids as the published one makes, and of a usual tail."""

    def fixed_tokens(
        self, config: Any, parts: PromptParts, grid: tuple[int, int]
    ) -> dict[str, int]:
        """As `Split.fixed`."""

    def inputs(
        self,
        config: Any,
        parts: PromptParts,
        shape: tuple[int, int, int],
        max_tail: int,
        samples: int = 1,
    ) -> dict[str, Input]:
        """What a graph of this policy is given, for images of one shape."""

    def split(
        self,
        model: Any,
        parts: PromptParts,
        image: ImageConfig,
        image_size: tuple[int, int],
        slots: int,
        layers: LayersPerPart = WHOLE,
        *,
        resize_on: ResizeOn = "host",
        samples: int = 1,
    ) -> Split:
        """Cut `model` for the images of one camera and language calls of `slots` tokens.

        Args:
            image: how an image is prepared.
            image_size: width and height of the camera's images.
            layers: that one engine holds at most.
            resize_on: where images become patches: in a host function, or in an engine.
            samples: chunks per tick, each from a noise of its own; the medoid is carried out.

        Raises:
            ValueError: the prompt around the images does not fit `slots`, or no engine can resize
                them exactly.
        """

    def actions(
        self,
        model: Any,
        parts: PromptParts,
        image: ImageConfig,
        tail_ids: tuple[int, ...],
        observed: Mapping[str, NDArray[Any]],
    ) -> NDArray[np.float32]:
        """One plain float32 pass, with nothing kept.

        Args:
            observed: pictures as they come, `state` [S] in policy units, `noise`, and perhaps
                `leftover` [T, A] in policy units with its `weights` [T, 1].

        Returns:
            [T, A] in policy units, or [K, T, A] of K samples.
        """

    def predictor(self, model: Any) -> nn.Module:
        """Of `model`, what puts out the sampler's prediction, once a step."""

    def reference(self, model: Any, tokenizer: Tokenizer, image: ImageConfig) -> Any:
        """A module that is a `Reference` too, and shares the weights of `model`."""

    def open_weights(self, path: Path, config: Any) -> Weights:
        """Where each parameter of a checkpoint in a folder is read. Reads headers only.

        Raises:
            CheckpointError: no weights, damaged files, or tensors that do not fit, all of them at
                once.
        """

    def check_writable(self, config: Any, arguments: Synthesize) -> None:
        """
        Raises:
            ValueError: the policy cannot be written so.
        """

    def write(
        self,
        folder: Path,
        weights: Weights,
        config: Any,
        arguments: Synthesize,
        mark: str,
        say: Callable[[str], None],
    ) -> None:
        """Weights as others write them, and what lies beside them; `say` each file.

        Args:
            mark: to tell whose they are.
        """


def layer_names(config: PolicyConfig) -> list[str]:
    """Of every layer of the policy, for a recipe to decide about."""
    family = family_of(config)
    works = family.engines_work(config, (2, 2), Tokens.padded(1)).values()
    layers = (*(layer for work in works for layer in work.layers), *family.folded_layers(config))
    return list(dict.fromkeys(layer.name for layer in layers))
