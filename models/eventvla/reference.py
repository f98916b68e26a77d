"""The whole policy composed from public libraries: the oracle, and the benchmark's baseline.

Qwen3-VL, or Qwen2.5-VL, and its image processor come from `transformers`; the heads are `torch`
alone. None of our modules runs here and nothing is cached. The weights are those of a given
`EventVLA`, shared and not copied.

Axes: N = patches of a picture, L = token, T = action in the chunk, D = width of the decoder. The
libraries want a batch axis; it is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.eventvla.model import EventVLA, Predicted
from models.eventvla.pictures import KEYFRAMES, PROBABILITIES, observed_names, slot_names
from models.networks import transformers_action_tokens
from models.networks.heard import Heard, Listener, Sized, placed_qwen
from models.networks.parts import LayersPerPart
from models.networks.transformers_action_tokens import ActionTokenComposition
from models.networks.transformers_chat import ChatInputs, chat_inputs
from runtime.image import ImageConfig


class Composition(ActionTokenComposition):
    events: nn.Module

    def __init__(self, model: EventVLA, tokenizer: Tokenizer, image: ImageConfig) -> None:
        """Share the weights of `model`. The tokenizer must know `<|image_pad|>`."""
        config = model.config
        with torch.device("meta"):
            width = config.language.hidden_size
            events = EventHead(width) if config.predicts_keyframes else NoEvents()
        super().__init__(model, tokenizer, image, composed_name, events=events)

    def forward(self, *observed: Tensor) -> Tensor:
        """As of the class above, and the head of events hears the same rows."""
        return self.predicted(*observed).actions_TA

    def predicted(self, *observed: Tensor) -> Predicted:
        """The same with the probabilities of events."""
        rows_TD = self.rows(*observed)
        return Predicted(self.head(rows_TD), self.events(rows_TD))

    def prepare(
        self,
        *,
        instruction: str,
        padding: int = 0,
        **observed: NDArray[Any],
    ) -> ChatInputs:
        """Everything that happens before the networks.

        Args:
            instruction: one line of text, taken as it is.
            padding: tokens of it in front, as a longer prompt in the same batch would leave.
            observed: pictures by their names, uint8 [H, W, 3] RGB, and `keyframes`, how many of the
                slots show one.
        """
        c = self.config
        names, count = observed_names(c), int(observed[KEYFRAMES][0]) if c.most_keyframes else 0
        pictures = [observed[name] for name in names]
        keyframes = [observed[name] for name in slot_names(c)[:count]]
        return chat_inputs(
            self.qwen,
            self.image,
            self.tokenizer,
            c.prompt,
            [*pictures, *keyframes],
            c.text.replace("{instruction}", instruction),
            padding,
            {0: c.observation_label, len(pictures): c.keyframe_label},
        )

    def listen(self) -> dict[str, list[Tensor]]:
        """Hooks that keep what the modules of a tick put out."""
        heard = super().listen()
        Listener(heard).keep("probabilities", self.events)
        return heard

    def placed(
        self,
        kept: Heard,
        grid: tuple[int, int],
        layers: LayersPerPart,
        fixed: Mapping[str, int],
    ) -> dict[str, Tensor]:
        """What was kept, under the names of our graph and in its layout, without padded rows; of an
        observation with as many keyframes as there may be."""
        c = self.config
        names = (*observed_names(c), *slot_names(c))
        sized = Sized(c.vision, c.language, names, grid, layers, fixed)
        actions = kept["actions"][0]
        found = placed_qwen(kept, sized) | {"made_actions": actions, "predicted_0": actions}
        return found | ({PROBABILITIES: kept["probabilities"][0]} if c.predicts_keyframes else {})


class EventHead(nn.Module):
    """Norm, layer, GELU by the error function, layer, logistic function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        shapes = {"norm": (width,), "inner": (width, width), "outer": (1, width)}
        self.of = nn.ParameterDict()
        for name, shape in shapes.items():
            self.of[f"{name}_weight"] = nn.Parameter(torch.empty(shape))
            self.of[f"{name}_bias"] = nn.Parameter(torch.empty(shape[0]))

    def forward(self, rows_TD: Tensor) -> Tensor:
        of = self.of
        variance, mean = torch.var_mean(rows_TD, dim=-1, correction=0, keepdim=True)
        x = (rows_TD - mean) / (variance + 1e-5).sqrt() * of["norm_weight"] + of["norm_bias"]
        x = x @ of["inner_weight"].T + of["inner_bias"]
        x = x / 2 * (1 + torch.erf(x / 2**0.5))
        logits_T1 = x @ of["outer_weight"].T + of["outer_bias"]
        return 1 / (1 + torch.exp(-logits_T1[:, 0]))


class NoEvents(nn.Module):
    def forward(self, rows_TD: Tensor) -> Tensor:
        return rows_TD.new_zeros(len(rows_TD))


def composed_name(name: str, num_blocks: int) -> str:
    """What the tensor of our policy called `name` is called in a `Composition`."""
    if name.startswith("keyframe_head."):
        _, place, which = name.split(".")
        kind = {"0": "norm", "1": "inner", "3": "outer"}[place]
        return f"events.of.{kind}_{which}"
    return transformers_action_tokens.composed_name(name, num_blocks)
