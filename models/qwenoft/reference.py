"""The whole policy composed from public libraries: the oracle, and the benchmark's baseline.

Qwen2.5-VL and its image processor come from `transformers`; the head is `torch.nn` alone. None of
our modules runs here and nothing is cached. The weights are those of a given `QwenOFT`, shared and
not copied.

Axes: N = patches of one view, L = token, T = action in the chunk, A = action dimension. The
libraries want a batch axis; it is 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from models.networks.heard import Heard, Sized, placed_qwen
from models.networks.parts import LayersPerPart
from models.networks.transformers_action_tokens import ActionTokenComposition, composed_name
from models.networks.transformers_chat import ChatInputs, chat_inputs
from models.qwenoft.model import QwenOFT
from runtime.image import ImageConfig


class Composition(ActionTokenComposition):
    def __init__(self, model: QwenOFT, tokenizer: Tokenizer, image: ImageConfig) -> None:
        """Share the weights of `model`. The tokenizer must know `<|image_pad|>`."""
        super().__init__(model, tokenizer, image, composed_name)

    def prepare(
        self, *, instruction: str, padding: int = 0, **views: NDArray[np.uint8]
    ) -> ChatInputs:
        """Everything that happens before the networks.

        Args:
            instruction: one line of text, taken as it is.
            padding: tokens of it in front, as a longer prompt in the same batch would leave.
            views: uint8 [H, W, 3] RGB, by the names of the configuration.
        """
        pictures = [views[name] for name in self.config.views]
        text = self.config.text.replace("{instruction}", instruction)
        return chat_inputs(
            self.qwen, self.image, self.tokenizer, self.config.prompt, pictures, text, padding
        )

    def placed(
        self,
        kept: Heard,
        grid: tuple[int, int],
        layers: LayersPerPart,
        fixed: Mapping[str, int],
    ) -> dict[str, Tensor]:
        """What was kept, under the names of our graph and in its layout, without padded rows."""
        c = self.config
        sized = Sized(c.vision, c.language, c.views, grid, layers, fixed)
        actions = kept["actions"][0]
        return placed_qwen(kept, sized) | {"made_actions": actions, "predicted_0": actions}
