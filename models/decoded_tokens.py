"""What policies have in common that decode their actions token by token: engines and their place in
the graph.

The first token's scores are read off the last row of the prompt. Every other token is a call of one
engine: it takes the likeliest token before it, and passes its row through the decoder, behind keys
and values where the prompt's calls left them. So a chunk of K tokens is K - 1 short calls, and none
of the prompt is read again. The trade-off: the decoder's weights are there twice.

Keys and values of the tokens lie one behind the other, with as many rows of zeros before them. The
past of a call is a window on that memory which ends where its own rows begin, and what is seen of
it is a constant: an engine of one shape makes every token, and nothing is copied.

Axes: K = tokens of a chunk, W = K - 1 = calls = rows of a window, C = prompt tokens of all calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor as Array
from torch import nn

from models.networks.config import AnyLanguageConfig
from models.networks.engines import EngineSpec
from models.networks.language import LanguageModel
from models.networks.token_head import TokenHead
from models.networks.token_head_config import ROW, TokenHeadConfig
from models.networks.vision_language import rotary_settings
from models.networks.work import Tokens, Work, language_work, picking_flops
from models.split import GraphBuilder
from runtime.declarations import Tensor
from runtime.graph import part_name
from runtime.prompt import MASKED


class FirstTokenEngine(nn.Module):
    """Picks the prompt's last row, by a matrix of zeros and ones, and scores what may follow."""

    def __init__(self, head: TokenHead, decoder: LanguageModel) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("rows", head.rows(decoder).detach().contiguous())
        self.rows: Array

    def forward(self, places: Array, hidden: Array) -> Array:
        scores: Array = self.head(places @ hidden, self.rows)
        return scores


class NextTokenEngine(nn.Module):
    """The likeliest token, through the decoder: what may follow, and its keys and values."""

    def __init__(self, head: TokenHead, decoder: LanguageModel, num_parts: int) -> None:
        """
        Args:
            num_parts: of the decoder, where it reads the prompt.
        """
        super().__init__()
        self.head, self.layers, self.norm = head, decoder.layers, decoder.norm
        self.num_parts, self.window = num_parts, head.config.num_tokens - 1
        self.register_buffer("rows", head.rows(decoder).detach().contiguous())
        self.rows: Array

    def forward(
        self,
        logits: Array,
        tokens: Array,
        seen: Array,
        mask: Array,
        cos: Array,
        sin: Array,
        *prompt: Array,
    ) -> tuple[Array, Array]:
        """
        Args:
            tokens: [W, layers, 2, heads, d] keys and values of the tokens before this one.
            seen: [W] and more, added to their scores.
            mask: [C] added to those of the prompt.
            prompt: keys and values of its calls before the last one, of each part of the decoder;
                and then those of the last one.
        """
        x = self.rows[logits.argmax(-1)]
        seen_1C = torch.cat([mask, seen[: self.window], torch.zeros(1)])[None]
        pairs = zip(prompt[: self.num_parts], prompt[self.num_parts :], strict=True)
        before = [
            pieces
            for past, new in pairs
            for pieces in zip(past.unbind(-4), new.unbind(-4), strict=True)
        ]
        made = []
        for layer, pieces, own in zip(self.layers, before, tokens.unbind(-4), strict=True):
            x, kv = layer(x, torch.cat([*pieces, own], dim=-4), seen_1C, cos, sin)
            made.append(kv)
        return torch.stack(made, dim=-4), self.head(self.norm(x), self.rows)


class TokensEngine(nn.Module):
    """The scores of all tokens -> the chunk."""

    def __init__(self, head: TokenHead) -> None:
        super().__init__()
        self.horizon, self.width = head.config.action_horizon, head.config.action_dim
        self.register_buffer("centres", head.centres())
        self.centres: Array

    def forward(self, logits: Array) -> Array:
        return self.centres[logits.argmax(-1)].unflatten(0, (self.horizon, self.width))


def token_engines(
    head: TokenHead, decoder: LanguageModel, language: Mapping[str, EngineSpec], slots: int
) -> dict[str, EngineSpec]:
    """Behind a prompt that these engines of the decoder read.

    Args:
        language: its parts.
        slots: tokens of a call.
    """
    c, text = head.config, decoder.config
    parts = list(language.values())
    past, new = prompt_ports(len(parts))
    num_past = parts[0].inputs["past"].shape[0]
    row = (text.num_hidden_layers, 2, text.num_key_value_heads, text.head_dim)
    logits = Tensor(shape=(1, c.num_bins))
    rotary = Tensor(shape=(1, text.head_dim))
    ports = {
        "logits": logits,
        "tokens": Tensor(shape=(c.num_tokens - 1, *row)),
        "seen": Tensor(shape=(_seen_width(c),)),
        "mask": Tensor(shape=(num_past + slots,)),
        "cos": rotary,
        "sin": rotary,
        **{port: part.inputs["past"] for port, part in zip(past, parts, strict=True)},
        **{port: part.outputs["kv"] for port, part in zip(new, parts, strict=True)},
    }
    picked = {
        "places": Tensor(shape=(1, slots)),
        "hidden": Tensor(shape=(slots, text.hidden_size)),
    }
    return {
        "first_token": EngineSpec(
            FirstTokenEngine(head, decoder), picked, {"logits": logits}, ("rows",)
        ),
        "next_token": EngineSpec(
            NextTokenEngine(head, decoder, len(parts)),
            ports,
            {"kv": Tensor(shape=(1, *row)), "logits_next": logits},
            ("rows",),
        ),
        "chunk": EngineSpec(
            TokensEngine(head),
            {"logits": Tensor(shape=(c.num_tokens, c.num_bins))},
            {"actions": Tensor(shape=(c.action_horizon, c.action_dim))},
        ),
    }


def prompt_ports(num_parts: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of what reads a prompt: keys and values of the calls before the last one, and of the last
    one, of so many parts of the decoder."""
    past, new = (
        tuple(part_name(port, i, num_parts) for i in range(num_parts)) for port in ("past", "new")
    )
    return past, new


def decode_tokens(
    build: GraphBuilder,
    c: TokenHeadConfig,
    language: AnyLanguageConfig,
    prompt: Mapping[str, str],
    call: str,
    fixed: Sequence[int],
) -> None:
    """`{call}_hidden` -> `made_actions`.

    Args:
        prompt: tensor of each port that `prompt_ports` names, and `mask`.
        call: that reads the text, to which it has all its tokens.
        fixed: tokens of each call, a text's not counted.
    """
    window, step = c.num_tokens - 1, build.engines["next_token"]
    text = {"ids": "instruction"}
    build.tensor("places", build.engines["first_token"].inputs["places"].shape)
    build.call("places", text, {"places": "places"}, {"num_new": fixed[-1]})
    row = step.outputs["kv"].shape[1:]
    build.tensor("tokens_kv", (2 * window, *row))
    build.tensor("seen", (window, _seen_width(c)))
    build.call("constant", {}, {"value": "seen"}, {"values": _seen(c)})
    build.tensor("logits", (c.num_tokens, c.num_bins))
    for k in range(c.num_tokens):
        build.rows(f"logits_{k}", "logits", k, 1)
    for k in range(window):
        build.rows(f"tokens_{k}", "tokens_kv", k, window)
        build.rows(f"token_{k}_kv", "tokens_kv", window + k, 1)
        build.slice(f"seen_{k}", "seen", k)
        angles = {port: f"token_{k}_{port}" for port in ("cos", "sin")}
        for tensor in angles.values():
            build.tensor(tensor, step.inputs["cos"].shape)
        places: dict[str, Any] = {"segments": [sum(fixed)], "start": k, "behind": 1}
        places |= rotary_settings(language)
        build.call("rotary", text, angles, places, name=f"token_{k}_rotary")
    build.call("constant", {}, {"value": "tokens_0"}, {"values": []})
    picked = {"places": "places", "hidden": f"{call}_hidden"}
    build.engine("first_token", "first_token", picked, {"logits": "logits_0"})
    for k in range(window):
        given = {"logits": f"logits_{k}", "tokens": f"tokens_{k}", "seen": f"seen_{k}", **prompt}
        given |= {port: f"token_{k}_{port}" for port in ("cos", "sin")}
        made = {"kv": f"token_{k}_kv", "logits_next": f"logits_{k + 1}"}
        build.engine("next_token", f"next_token_{k}", given, made)
    build.engine("chunk", "chunk", {"logits": "logits"}, {"actions": "made_actions"})


def token_work(
    c: TokenHeadConfig, language: AnyLanguageConfig, name: str, tokens: Tokens
) -> dict[str, Work]:
    """Of each engine.

    Args:
        name: of the decoder in the policy.
        tokens: of a call of it.
    """
    width = language.hidden_size
    scores, rows = 2 * width * c.num_bins, width * c.num_bins
    one = Tokens(new=1, seen=tokens.seen + c.num_tokens)
    step = language_work(name, language, range(language.num_hidden_layers), one)
    return {
        "first_token": Work(
            layers=(), attention_flops=picking_flops(1, width, tokens) + scores, beside=rows
        ),
        "next_token": replace(
            step,
            attention_flops=step.attention_flops + scores,
            beside=step.beside + rows,
            calls=c.num_tokens - 1,
        ),
        "chunk": Work(layers=(), attention_flops=0, beside=c.num_bins),
    }


def _seen_width(c: TokenHeadConfig) -> int:
    return -(-(c.num_tokens - 1) // ROW) * ROW


def _seen(c: TokenHeadConfig) -> list[list[float]]:
    """Of each call, what is added to the scores of its window: as many tokens as there are before
    it, at its end."""
    window, width = c.num_tokens - 1, _seen_width(c)
    return [[MASKED] * (window - k) + [0.0] * (k + width - window) for k in range(window)]
