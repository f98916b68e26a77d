"""What each engine of UP-VLA multiplies and holds; see `models.networks.work`."""

from __future__ import annotations

from functools import partial

from models.networks.parts import WHOLE, LayersPerPart
from models.networks.phi_config import PhiConfig
from models.networks.vq_config import VQConfig
from models.networks.work import (
    Layer,
    Tokens,
    Work,
    attention_flops,
    convolution,
    layers_of,
    parts_work,
)
from models.upvla.config import UPVLAConfig

WIDENING = 4
"""Of the head's MLP."""


def depths(config: UPVLAConfig) -> dict[str, int]:
    """Layers of each trunk that may be cut."""
    return {"language": config.language.num_hidden_layers}


def engines_work(
    config: UPVLAConfig,
    grid: tuple[int, int],
    tokens: Tokens,
    layers: LayersPerPart = WHOLE,
    samples: int = 1,
) -> dict[str, Work]:
    """Of every engine, under the names and in the order of `engines.engines_of`.

    Args:
        grid: rows and columns of patches, which are the codes'.
        tokens: of a language call; of the past only the instruction's room counts.
        samples: one, see `models.declared.one_chunk`.
    """
    decoder = partial(trunk_work, config, "language", grid=grid, tokens=tokens)
    return {
        "vq_encoder": _encoder(config),
        **parts_work("language", config.language.num_hidden_layers, layers, decoder),
        "act": _act(config),
        "code_head": _code_head(config),
        "vq_decoder": _decoder(config),
    }


def trunk_work(
    config: UPVLAConfig, trunk: str, layers: range, grid: tuple[int, int], tokens: Tokens
) -> Work:
    """Some layers of the decoder in an engine of their own."""
    seen = tokens.new + config.prompt.text_slots
    return phi_work("showo.model", config.language, layers, tokens.new, seen)


def folded_layers(config: UPVLAConfig) -> tuple[Layer, ...]:
    """What the learned row asks is a constant."""
    width = config.language.hidden_size
    return layers_of({"token_learner.attn.q": (width, width)}, 1, has_bias=False)


def phi_work(name: str, c: PhiConfig, indices: range, new: int, seen: int) -> Work:
    """Some layers of a Phi decoder, one call.

    Args:
        new: tokens that pass through them.
        seen: that each of those attends to.
    """
    width = c.hidden_size
    layers: list[Layer] = []
    for index in indices:
        layer = f"{name}.layers.{index}"
        shapes = {
            f"{layer}.self_attn.{which}": (width, width)
            for which in ("q_proj", "k_proj", "v_proj", "dense")
        }
        shapes[f"{layer}.mlp.fc1"] = (width, c.intermediate_size)
        shapes[f"{layer}.mlp.fc2"] = (c.intermediate_size, width)
        layers += layers_of(shapes, new)
    norms = 2 * width * (len(indices) + (indices.stop == c.num_hidden_layers))
    heads = c.num_attention_heads
    return Work(
        layers=tuple(layers),
        attention_flops=attention_flops(heads, new, seen, c.head_dim) * len(indices),
        largest_scores=heads * new * seen,
        beside=norms + 4 * c.head_dim * len(indices),
    )


def _act(config: UPVLAConfig) -> Work:
    c, width = config.head, config.language.hidden_size
    pooled = {"token_learner.projection": (width, width)}
    asked = {
        "token_learner.attn.proj": (width, width),
        "token_learner.mlp.0.project": (width, 2 * WIDENING * width),
        "token_learner.mlp.1": (WIDENING * width, width),
        "to_logits.0": (width, c.action_horizon * c.action_dim),
    }
    keys = layers_of(
        {"token_learner.attn.kv": (width, 2 * width)}, c.action_horizon, has_bias=False
    )
    return Work(
        layers=(*layers_of(pooled, c.action_horizon), *keys, *layers_of(asked, 1)),
        attention_flops=attention_flops(c.num_heads, 1, c.action_horizon, width // c.num_heads),
        largest_scores=c.num_heads * c.action_horizon,
        beside=4 * width,
    )


def _code_head(config: UPVLAConfig) -> Work:
    shapes = {"showo.lm_head": (config.language.hidden_size, config.vision.codebook_size)}
    return Work(layers=layers_of(shapes, config.num_codes), attention_flops=0, beside=0, calls=0)


def _encoder(config: UPVLAConfig) -> Work:
    """And the codes' embeddings."""
    c, name = config.vision, "vq_model.encoder"
    net = _Net(c, name)
    side, width = c.image_size, c.ch
    net.conv("conv_in", 3, width, side)
    for number, (mult, count) in enumerate(zip(c.ch_mult, c.num_res_blocks, strict=True)):
        width = net.level(f"down.{number}", width, c.ch * mult, count, side)
        if number < c.num_levels - 1:
            side //= 2
            net.conv(f"down.{number}.downsample.conv", width, width, side)
    net.middle(width, side)
    net.norm(width)
    net.conv("conv_out", width, c.z_channels, side)
    net.conv("quant_conv", c.z_channels, c.z_channels, side, size=1)
    return net.work(c.codebook_size * c.out_hidden_size, calls=len(config.views))


def _decoder(config: UPVLAConfig) -> Work:
    """And the bits of each code."""
    c, name = config.vision, "vq_model.decoder"
    net = _Net(c, name)
    mult, (side, _) = c.decoder_ch_mult, c.grid
    width = c.ch * mult[-1]
    net.conv("post_quant_conv", c.z_channels, c.z_channels, side, size=1)
    net.conv("conv_in", c.z_channels, width, side)
    net.middle(width, side)
    for number in reversed(range(c.num_levels)):
        count = c.decoder_num_res_blocks[number]
        width = net.level(f"up.{number}", width, c.ch * mult[number], count, side)
        if number:
            side *= 2
            net.conv(f"up.{number}.upsample.conv", width, width, side)
    net.norm(width)
    net.conv("conv_out", width, 3, side)
    return net.work(c.codebook_size * c.z_channels, calls=0)


class _Net:
    """Adds up what the parts of one direction of the picture tokenizer multiply and hold."""

    def __init__(self, c: VQConfig, name: str) -> None:
        self.config, self.name = c, name
        self.layers: list[Layer] = []
        self.beside = 0

    def conv(self, name: str, width: int, out: int, side: int, size: int = 3) -> None:
        self.layers.append(convolution(f"{self.name}.{name}", width, out, side**2, size))

    def norm(self, width: int) -> None:
        self.beside += 2 * width

    def level(self, name: str, width: int, out: int, count: int, side: int) -> int:
        """Blocks of one size; their channels."""
        for number in range(count):
            self.block(f"{name}.block.{number}", width, out, side)
            width = out
        return width

    def block(self, name: str, width: int, out: int, side: int) -> None:
        self.norm(width)
        self.conv(f"{name}.conv1", width, out, side)
        self.norm(out)
        self.conv(f"{name}.conv2", out, out, side)
        if width != out:
            self.conv(f"{name}.nin_shortcut", width, out, side, size=1)

    def middle(self, width: int, side: int) -> None:
        self.block("mid.block_1", width, width, side)
        self.norm(width)
        for layer in ("q", "k", "v", "proj_out"):
            self.conv(f"mid.attn_1.{layer}", width, width, side, size=1)
        self.block("mid.block_2", width, width, side)

    def work(self, beside: int, calls: int) -> Work:
        """
        Args:
            beside: numbers of a table.
        """
        c = self.config
        (width,) = {x.num_outputs for x in self.layers if x.name.endswith("attn_1.q")}
        return Work(
            layers=tuple(self.layers),
            attention_flops=attention_flops(1, c.num_patches, c.num_patches, width),
            largest_scores=c.num_patches**2,
            beside=self.beside + beside,
            calls=calls,
        )
