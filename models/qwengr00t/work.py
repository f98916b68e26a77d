"""What each engine of QwenGR00T multiplies and holds; see `models.networks.work`."""

from __future__ import annotations

from models.networks.config import FlowDiTConfig
from models.networks.flow_dit import FREQUENCIES
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.work import (
    Layer,
    Tokens,
    Work,
    attention_flops,
    layers_of,
    qwen_trunks_work,
)
from models.qwengr00t.config import QwenGR00TConfig

BLOCKS = "action_head.model.transformer_blocks"


def engines_work(
    config: QwenGR00TConfig,
    grid: tuple[int, int],
    tokens: Tokens,
    layers: LayersPerPart = WHOLE,
    samples: int = 1,
) -> dict[str, Work]:
    """Of every engine, under the names and in the order of `engines.engines_of`.

    Args:
        grid: rows and columns of patches of an image.
        tokens: of a language call. The head attends to all that are seen.
        samples: chunks that are sampled at once.
    """
    found = qwen_trunks_work(config, grid, tokens, layers)
    found["cross_kv"] = _cross_kv(config, tokens)
    if config.takes_state:
        found["state"] = _state(config.head, config.state_dim)
    found["euler"] = _euler(config.head, tokens, samples, takes_state=config.takes_state)
    return found


def folded_layers(config: QwenGR00TConfig) -> tuple[Layer, ...]:
    """Those that no engine holds: the steps of the sampler alone decide about their results, but of
    the action encoder's second, half of which is a matrix of its own. And those of an encoder of
    states that the policy does not use."""
    c, steps = config.head, config.head.num_inference_timesteps
    embedder = "action_head.model.timestep_encoder.timestep_embedder"
    shapes = {
        f"{embedder}.linear_1": (FREQUENCIES, c.width),
        f"{embedder}.linear_2": (c.width, c.width),
        **{f"{BLOCKS}.{i}.norm1.linear": (c.width, 2 * c.width) for i in range(c.num_layers)},
        "action_head.model.proj_out_1": (c.width, 2 * c.width),
        "action_head.action_encoder.layer2": (2 * c.width, c.width),
    }
    found = layers_of(shapes, steps)
    if c.state_dim is not None and not config.takes_state:
        found += _state(c, c.state_dim).layers
    return found


def _cross_kv(config: QwenGR00TConfig, tokens: Tokens) -> Work:
    c = config.head
    shapes = {
        f"{BLOCKS}.{index}.attn1.to_{which}": (config.language.hidden_size, c.width)
        for index in range(c.num_layers)
        if c.is_cross(index)
        for which in "kv"
    }
    return Work(layers=layers_of(shapes, tokens.new), attention_flops=0, beside=0)


def _state(c: FlowDiTConfig, state_dim: int) -> Work:
    shapes = {
        "action_head.state_encoder.layer1": (state_dim, c.hidden_size),
        "action_head.state_encoder.layer2": (c.hidden_size, c.width),
    }
    return Work(layers=layers_of(shapes, 1), attention_flops=0, beside=0)


def _euler(c: FlowDiTConfig, tokens: Tokens, samples: int, *, takes_state: bool) -> Work:
    rows, width = c.num_future_tokens + c.action_horizon + takes_state, c.width
    encoder, decoder = "action_head.action_encoder", "action_head.action_decoder"
    actions = samples * c.action_horizon
    layers = [
        *layers_of({f"{encoder}.layer1": (c.action_dim, width)}, actions),
        # Of the second, what the time's half makes of it is a table, with the bias.
        *layers_of({f"{encoder}.layer2": (width, width)}, actions, has_bias=False),
        *layers_of({f"{encoder}.layer3": (width, width)}, actions),
    ]
    shapes: dict[str, tuple[int, int]] = {}
    attention, scores = 0, 0
    for index in range(c.num_layers):
        block, is_cross = f"{BLOCKS}.{index}", c.is_cross(index)
        names = ["to_q", "to_out.0"] if is_cross else ["to_q", "to_k", "to_v", "to_out.0"]
        shapes |= {f"{block}.attn1.{name}": (width, width) for name in names}
        shapes[f"{block}.ff.net.0.proj"] = (width, 4 * width)
        shapes[f"{block}.ff.net.2"] = (4 * width, width)
        keys = tokens.seen if is_cross else rows
        attention += attention_flops(samples * c.num_heads, rows, keys, c.head_dim)
        scores = max(scores, samples * c.num_heads * rows * keys)
    shapes["action_head.model.proj_out_2"] = (width, c.output_dim)
    layers += layers_of(shapes, samples * rows)
    last = {
        f"{decoder}.layer1": (c.output_dim, c.hidden_size),
        f"{decoder}.layer2": (c.hidden_size, c.action_dim),
    }
    layers += layers_of(last, actions)
    positions = c.action_horizon if c.add_pos_embed else 0
    return Work(
        layers=tuple(layers),
        attention_flops=attention,
        largest_scores=scores,
        beside=(c.num_future_tokens + positions) * width,
        calls=c.num_inference_timesteps,
    )
