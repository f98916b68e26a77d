"""The whole policy with discrete tokens, composed from public libraries: the oracle.

All that reads is `models.sgvla.reference`'s; tokens come from `generate` of transformers'
`Qwen2ForCausalLM`, greedy, where all other tokens are forbidden.

Axes: L = token, K = token of a chunk, T = action in the chunk, A = action dimension, V = tokens of
the vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.qwen2 import Qwen2ForCausalLM

from models.networks.heard import Heard, Listener
from models.networks.token_head_config import TokenHeadConfig
from models.sgvla.reference import Composition


class TokenInputs(NamedTuple):
    """What `TokenComposition.forward` takes, in order: the first two of `Inputs`."""

    pixel_values: Tensor
    input_ids: Tensor


class TokenComposition(Composition):
    def add_head(self) -> None:
        """Nothing of its own has weights."""
        head, vocabulary = self.config.head, self.config.language.vocab_size
        assert isinstance(head, TokenHeadConfig)
        self.numbers = Numbers(head, vocabulary)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        """One observation -> [T, A] float32 in policy units."""
        made = self.generate(pixel_values, input_ids)
        actions_TA: Tensor = self.numbers(made.sequences[0])
        return actions_TA

    def generate(self, pixel_values: Tensor, input_ids: Tensor) -> Any:
        """Tokens of the chunk, `sequences` [1, K], and scores of each, `logits`, K of [1, V]."""
        language: Any = self.language
        with torch.device("meta"):
            model: Any = Qwen2ForCausalLM(language.config)
        model.model, model.lm_head.weight = language, language.embed_tokens.weight
        count, allowed = self.numbers.count, self.numbers.ids.tolist()
        rows_1LD = self.rows(pixel_values, input_ids)
        return model.generate(
            inputs_embeds=rows_1LD,
            attention_mask=torch.ones(rows_1LD.shape[:2], dtype=torch.long),
            prefix_allowed_tokens_fn=lambda _batch, _ids: allowed,
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )

    def prepare(  # type: ignore[override]
        self, *, instruction: str, **seen: NDArray[Any]
    ) -> TokenInputs:
        """See `Composition.prepare`: nothing is drawn."""
        return TokenInputs(*self.observed(instruction, seen))

    def hear_head(self, listener: Listener) -> None:
        listener.keep("actions", self.numbers)

    def placed_head(self, kept: Heard) -> dict[str, Tensor]:
        """Every call of the language model but the first one had one row."""
        found = {"made_actions": kept["actions"][0]}
        for k, kv in enumerate(kept["kv"][1:]):
            found[f"token_{k}_kv"] = kv[-1:]
        table: Tensor = self.language.get_parameter("embed_tokens.weight")
        for k, hidden in enumerate(kept["hidden"]):
            logits = hidden[0, -1:] @ table[self.numbers.ids].T
            found |= {f"logits_{k}": logits, f"predicted_{k}": logits}
        return found


class Numbers(nn.Module):
    """What tokens stand for, as OpenVLA's tokenizer has it."""

    def __init__(self, c: TokenHeadConfig, vocabulary: int) -> None:
        super().__init__()
        self.end = vocabulary if c.end_id is None else c.end_id
        self.shape, self.count = (c.action_horizon, c.action_dim), c.action_horizon * c.action_dim
        self.ids = torch.arange(self.end - c.num_bins, self.end)
        edges = np.linspace(-1, 1, c.num_bins)
        self.centres = (edges[:-1] + edges[1:]) / 2

    def forward(self, ids_K: Tensor) -> Tensor:
        number_K = np.clip(self.end - ids_K.numpy() - 1, 0, len(self.centres) - 1)
        return torch.from_numpy(self.centres[number_K]).float().reshape(self.shape)
