"""The engines of UP-VLA: small modules of fixed shapes, and their ports.

The picture tokenizer looks its codes up in its own copy of their part of the token table, so that
nothing goes through the host between a picture and the decoder. What is foreseen has two engines of
its own, which run when somebody asks.
"""

from __future__ import annotations

from torch import Tensor as Array
from torch import nn
from torch.nn import functional

from models.networks.engines import EngineSpec, language_engines
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.vq import (
    VQDecoder,
    VQEncoder,
    bit_table,
    bits_of,
    codes_of,
    levels_of,
    pixels_of,
)
from models.networks.vq_config import VQConfig
from models.upvla.config import UPVLAConfig
from models.upvla.model import UPVLA
from runtime.declarations import Tensor


class VQEncoderEngine(nn.Module):
    """Patches of a picture -> embeddings of its codes."""

    def __init__(self, encoder: VQEncoder, codes: Array, config: VQConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.codes = nn.Parameter(codes, requires_grad=False)

    def forward(self, patches: Array) -> Array:
        codes = codes_of(self.encoder(pixels_of(patches, self.config)))
        return functional.embedding(codes, self.codes)


class ActEngine(nn.Module):
    """The decoder's rows -> the chunk; the actions' rows are at the end."""

    def __init__(self, model: UPVLA) -> None:
        super().__init__()
        self.token_learner, self.to_logits = model.token_learner, model.to_logits
        self.query = nn.Parameter(model.token_learner.query().detach(), requires_grad=False)
        self.chunk, self.rows = model.config.chunk, action_rows(model.config)

    def forward(self, hidden: Array) -> Array:
        rows = hidden[..., self.rows.start : self.rows.stop, :]
        return self.to_logits(self.token_learner(rows, self.query)).reshape(self.chunk)


class CodeHeadEngine(nn.Module):
    """The decoder's rows -> the likeliest code behind each row of the pictures."""

    def __init__(self, model: UPVLA) -> None:
        super().__init__()
        self.lm_head = model.showo["lm_head"]
        self.num_views, self.num_codes = len(model.config.views), model.config.num_codes

    def forward(self, hidden: Array) -> Array:
        logits = self.lm_head(hidden[..., 1 : 1 + self.num_codes, :])
        return logits.argmax(-1).reshape(self.num_views, -1).int()


class VQDecoderEngine(nn.Module):
    """Codes -> a picture."""

    def __init__(self, decoder: VQDecoder, config: VQConfig) -> None:
        super().__init__()
        self.decoder, self.config = decoder, config
        self.bits = nn.Parameter(bit_table(config.z_channels), requires_grad=False)

    def forward(self, codes: Array) -> Array:
        return levels_of(self.decoder(bits_of(codes, self.bits, self.config)))


def action_rows(c: UPVLAConfig) -> range:
    """Of the call that reads pictures."""
    return range(c.num_picture_rows, c.num_rows)


def engines_of(model: UPVLA, slots: int, layers: LayersPerPart = WHOLE) -> dict[str, EngineSpec]:
    """All engines by name."""
    c = model.config
    v, hidden = c.vision, {"hidden": Tensor(shape=(slots, c.language.hidden_size))}
    codes = Tensor(shape=(v.num_patches,), dtype="int32")
    picture = Tensor(shape=(v.image_size, v.image_size, 3))
    return {
        "vq_encoder": EngineSpec(
            VQEncoderEngine(model.vq_model.encoder, model.code_table, v),
            {"patches": Tensor(shape=(v.num_patches, v.patch_dim))},
            {"tokens": Tensor(shape=(v.num_patches, v.out_hidden_size))},
        ),
        **language_engines(model.decoder, slots, layers.get("language"), past=c.prompt.text_slots),
        "act": EngineSpec(
            ActEngine(model), hidden, {"actions": Tensor(shape=c.chunk)}, fixed=("query",)
        ),
        "code_head": EngineSpec(
            CodeHeadEngine(model),
            hidden,
            {"codes": Tensor(shape=(len(c.views), v.num_patches), dtype="int32")},
        ),
        "vq_decoder": EngineSpec(
            VQDecoderEngine(model.vq_model.decoder, v), {"codes": codes}, {"picture": picture}
        ),
    }
