"""Actions as tokens: a decoder goes on behind its prompt, a number of the action at a time.

Of all tokens only those that stand for numbers may follow, and the likeliest one does. What scores
them is the decoder's own table, and a token's row of it is what the decoder is given next: there is
no weight beside the decoder's. So the chunk is a matter of the prompt alone, and nothing is drawn.

Source of the bins: OpenVLA (2406.09246), prismatic/vla/action_tokenizer.py: edges are
`linspace(-1, 1, 256)`, a number is the middle of its bin, and ids fall from the vocabulary's end.
Oracle: `transformers` `Qwen2ForCausalLM.generate`.

Axes: B = tokens that stand for numbers, D = width of the decoder, K = tokens of a chunk.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.language import LanguageModel
from models.networks.token_head_config import TokenHeadConfig


class TokenHead(nn.Module):
    """The scores of a hidden state. It has no weights."""

    def __init__(self, config: TokenHeadConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, hidden_1D: Tensor, rows_BD: Tensor) -> Tensor:
        """Behind the decoder's norm -> [1, B].

        Args:
            rows_BD: see `rows`.
        """
        return functional.linear(hidden_1D, rows_BD)

    def rows(self, decoder: LanguageModel) -> Tensor:
        """Of the decoder's table, those of the tokens that stand for numbers, [B, D]."""
        ids = self.config.ids(decoder.config)
        return decoder.embed_tokens(torch.arange(ids.start, ids.stop)).float()

    def centres(self) -> Tensor:
        """[B] float32: the number that each stands for, from the lowest id on.

        The last token but one and the last one, counted from the end, are the two lowest bins. The
        first two stand for the same number: there is one edge more than there are bins.
        """
        count = self.config.num_bins
        edges = np.linspace(-1, 1, count)
        middles = (edges[:-1] + edges[1:]) / 2
        bins = np.minimum(np.arange(count - 1, -1, -1), count - 2)
        return torch.from_numpy(middles[bins].astype(np.float32))

    def decode(self, logits_KB: Tensor) -> Tensor:
        """Scores of all tokens of a chunk -> [T, A] from -1 to 1."""
        c = self.config
        chosen: Tensor = self.centres()[logits_KB.argmax(-1)]
        return chosen.unflatten(0, (c.action_horizon, c.action_dim))
