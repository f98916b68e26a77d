"""SG-VLA: Qwen2.5 reads colour and depth of two cameras and the instruction, an expert acts, and
five heads say what they know of the scene.

`forward` is the float32 reference: one plain pass with no cache, no split and no trick. The expert
reads keys and values of every layer of the decoder; or the decoder itself goes on, with tokens that
stand for numbers. The heads read its final hidden states where pictures stand, which come before
the text and never see it.

Axes: T = action in the chunk, A = action dimension, N = patches of a picture, P = picture, L =
layer, S = token of the prompt, D = width of the decoder, J = joints, H, W = sides of the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.auxiliary_heads import JointTransformer, MaskDecoder, RowsMLP
from models.networks.flow_expert import FlowExpert
from models.networks.language import DecoderLayer, LanguageModel, SharingLayer
from models.networks.prismatic import PrismaticVision, Projector
from models.networks.token_head import TokenHead
from models.networks.token_head_config import TokenHeadConfig
from models.networks.vision_language import patches_of, rotary, rotary_settings
from models.prompt_parts import PromptParts
from models.sgvla.config import SGVLAConfig
from runtime.depth import DepthPatchMaker
from runtime.image import ImageConfig
from runtime.prompt import attention_mask, mrope_positions, mrope_tables

POSE_DIM = 7
"""x, y, z and a quaternion."""


class Leaves(NamedTuple):
    """What the auxiliary heads say."""

    position: Tensor
    """[3] metres."""
    grasp: Tensor
    """[1] probability."""
    object_pose: Tensor
    """[7] metres, and a quaternion in the configuration's order."""
    joints: Tensor
    """[J] rad."""
    segmentation: Tensor
    """[H, W] logits."""


class Predicted(NamedTuple):
    """Of one observation."""

    actions_TA: Tensor
    """[T, A], or [K, T, A] of K samples, in policy units."""
    leaves: Leaves


class SGVLA(nn.Module):
    def __init__(self, config: SGVLAConfig) -> None:
        super().__init__()
        self.config = config
        c, width = config.leaves, config.language.hidden_size
        self.vision_backbone = PrismaticVision(config.vision)
        self.projector = Projector(config.vision)
        layer = DecoderLayer if isinstance(config.head, TokenHeadConfig) else SharingLayer
        self.language_model = nn.ModuleDict({"model": LanguageModel(config.language, layer=layer)})
        self.action_head: FlowExpert | TokenHead
        if isinstance(config.head, TokenHeadConfig):
            self.action_head = TokenHead(config.head)
        else:
            self.action_head = FlowExpert(config.head)
        self.position_head = RowsMLP(width, c.hidden_size, c.position_dim)
        self.grasp_head = RowsMLP(width, c.hidden_size, 1)
        self.pose_head = RowsMLP(width, c.hidden_size, POSE_DIM)
        self.joint_head = JointTransformer(
            width,
            num_joints=c.num_joints,
            hidden_size=c.joint_hidden_size,
            intermediate_size=c.joint_intermediate_size,
            num_layers=c.joint_layers,
            num_heads=c.joint_heads,
        )
        self.segmentation_head = MaskDecoder(width, c.mask_widths)

    @property
    def decoder(self) -> LanguageModel:
        """Of the language model, which has no head."""
        found = self.language_model["model"]
        assert isinstance(found, LanguageModel)
        return found

    def forward(
        self,
        patches: Sequence[Tensor],
        parts: PromptParts,
        tail_ids: tuple[int, ...],
        noise_TA: Tensor | None = None,
        leftover_TA: Tensor | None = None,
        weights_T1: Tensor | None = None,
    ) -> Predicted:
        """One observation -> one action chunk, and what is known of the scene.

        Args:
            patches: [N, patch_dim] of each picture, normalised, in raster order.
            parts: fixed tokens of the prompt.
            tail_ids: tokens behind the last picture.
            noise_TA: [T, A] standard normal, or [K, T, A] of K samples; none where tokens are
                decoded.
            leftover_TA: [T, A] of the last chunk in policy units; none by default.
            weights_T1: [T, 1] how much of it counts, see `flow_dit.euler_step`.
        """
        decoder, first = self.decoder, parts.before[0]
        seen = [self.projector(self.vision_backbone(picture)) for picture in patches]
        before, behind = (decoder.embed_tokens(torch.tensor(ids)) for ids in (first, tail_ids))
        embeddings_SD = torch.cat([before, *seen, behind])
        length = len(embeddings_SD)
        mask = torch.from_numpy(attention_mask(0, 0, length, length))
        cos, sin = rotary(decoder.config, [length])
        kv, hidden_SD = decoder(embeddings_SD, decoder.empty_past(0), mask, cos, sin)
        if isinstance(self.action_head, TokenHead):
            actions = self.action_head.decode(self._decoded(kv, hidden_SD[-1:]))
        else:
            places = self._behind(length, self.config.chunk[0])
            actions = self.action_head(kv, *places, noise_TA, leftover_TA, weights_T1)
        count = len(patches) * self.config.vision.num_patches
        rows_PND = hidden_SD[len(first) : len(first) + count].unflatten(0, (len(patches), -1))
        return Predicted(actions, self.leaves(rows_PND))

    def leaves(self, rows_PND: Tensor) -> Leaves:
        """Of the final hidden states where pictures stand, in the order of the prompt."""
        c, rows = self.config, rows_PND.flatten(0, 1)
        return Leaves(
            position=self.position_head(rows),
            grasp=torch.sigmoid(self.grasp_head(rows)),
            object_pose=self.pose_head(rows),
            joints=self.joint_head(rows),
            segmentation=self.segmentation_head(rows_PND[c.pictures.index(c.leaves.mask_view)]),
        )

    def _decoded(self, kv: Tensor, hidden_1D: Tensor) -> Tensor:
        """Behind a prompt: the scores of each token of the chunk, [tokens, bins].

        Args:
            kv: of the prompt.
            hidden_1D: its last row.
        """
        head, decoder = self.action_head, self.decoder
        assert isinstance(head, TokenHead)
        rows_BD = head.rows(decoder)
        logits = [head(hidden_1D, rows_BD)]
        while len(logits) < head.config.num_tokens:
            x_1D = rows_BD[logits[-1].argmax(-1)]
            no_mask = torch.zeros(1, len(kv) + 1)
            new, hidden_1D = decoder(x_1D, kv, no_mask, *self._behind(len(kv), 1))
            kv = torch.cat([kv, new])
            logits.append(head(hidden_1D, rows_BD))
        return torch.cat(logits)

    def _behind(self, length: int, count: int) -> tuple[Tensor, Tensor]:
        """Rotary tables of so many rows, which stand behind as many tokens."""
        positions, _ = mrope_positions([count], length)
        cos, sin = mrope_tables(positions, **rotary_settings(self.config.language))
        return torch.from_numpy(cos), torch.from_numpy(sin)


@torch.no_grad()
def actions(
    model: SGVLA,
    parts: PromptParts,
    image: ImageConfig,
    tail_ids: tuple[int, ...],
    observed: Mapping[str, NDArray[Any]],
) -> NDArray[np.float32]:
    """The chunk; see `models.family.Family.actions`.

    Args:
        observed: every view, uint8 [H, W, 3] RGB, and depth map, float32 [H, W] metres; and
            where something is drawn `noise`, and perhaps `leftover` with its `weights`.
    """
    made: NDArray[np.float32] = predict(model, parts, image, tail_ids, observed).actions_TA.numpy()
    return made


@torch.no_grad()
def predict(
    model: SGVLA,
    parts: PromptParts,
    image: ImageConfig,
    tail_ids: tuple[int, ...],
    observed: Mapping[str, NDArray[Any]],
) -> Predicted:
    """`SGVLA.forward` from what cameras show; see `actions`."""
    c = model.config
    shown, grid = patches_of([observed[name] for name in c.views], image)
    patches = dict(zip(c.views, shown, strict=True))
    make = DepthPatchMaker(image, grid, **c.depth.stated)
    for name in c.depth_views:
        made = np.empty((grid[0] * grid[1], image.patch_dim), np.float32)
        make(observed[name], made)
        patches[name] = torch.from_numpy(made)
    given = [
        torch.from_numpy(observed[name]) if name in observed else None
        for name in ("noise", "leftover", "weights")
    ]
    predicted: Predicted = model([patches[name] for name in c.pictures], parts, tail_ids, *given)
    return predicted
