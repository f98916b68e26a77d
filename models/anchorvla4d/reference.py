"""The whole policy composed from public libraries: the oracle, and the benchmark's baseline.

Qwen2.5-VL and its image processor come from `transformers`, the spatial trunk from `uniception`,
the sampler from `diffusers`; only the ScaleDP head is written out, on torch's own attention and
pooling. None of our modules runs here and nothing is cached: every call embeds all images and
prefills the whole prompt, as one would write it from these libraries. The weights are those of a
given `AnchorVLA4D`, shared and not copied.

Axes: N = patches of one view, L = tokens, B = pool bin, T = step in the chunk, A = action
dimension, W = head width. The libraries want a batch axis; it is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from uniception.models.info_sharing.alternating_attention_transformer import (
    MultiViewAlternatingAttentionTransformerIFR,
)
from uniception.models.info_sharing.base import MultiViewTransformerInput

from models.anchorvla4d import heard
from models.anchorvla4d.model import AnchorVLA4D
from models.networks.config import ScaleDPConfig, SpatialConfig
from models.networks.parts import LayersPerPart
from models.networks.transformers_qwen import IMAGE_PAD, image_pad_id, image_processor, qwen
from runtime.image import ImageConfig

FREQUENCIES = 256


class Inputs(NamedTuple):
    """What `Composition.forward` takes, in order."""

    pixel_values: Tensor
    """[V N, patch_dim] of V views, the frame last."""
    image_grid_thw: Tensor
    """[V, 3], all rows equal."""
    input_ids: Tensor
    """[1, L]."""
    position_ids: Tensor
    """[3, 1, L], M-RoPE."""
    state: Tensor
    """[S] in policy units."""
    noise: Tensor
    """[T, A] float32 standard normal."""


class Composition(nn.Module):
    def __init__(self, model: AnchorVLA4D, tokenizer: Tokenizer, image: ImageConfig) -> None:
        """Share the weights of `model`. The tokenizer must know `<|image_pad|>`."""
        super().__init__()
        config = model.config
        pad = image_pad_id(tokenizer)
        self.config = config
        self.tokenizer = tokenizer
        self.image_pad_id = pad
        self.processor = image_processor(image)
        self.qwen = qwen(config.vision, config.language, pad)
        with torch.device("meta"):
            self.spatial = SpatialFeatures(
                config.spatial,
                config.vision.patch_dim,
                config.language.hidden_size,
                num_views=config.anchors + 1,
            )
            self.head = Head(config.head, config.language.hidden_size)
            self.readouts = nn.ModuleDict(
                {r.name: nn.Linear(config.language.hidden_size, r.width) for r in config.readouts}
            )
        self.scheduler = ddim_scheduler(config.head)
        self.timesteps: list[int] = self.scheduler.timesteps.tolist()
        self.published = {composed_name(name): name for name in model.state_dict()}
        _share(self, model)
        self.eval().requires_grad_(False)

    def cast(self, dtype: torch.dtype) -> Composition:
        """Change the type of the weights; rotary frequencies stay float32, as `transformers` loads.

        `to(dtype)` would round them too. The model that was given keeps its own weights.
        """
        rotary = (self.qwen.language_model.rotary_emb, self.qwen.visual.rotary_pos_emb)
        frequencies = [module.inv_freq for module in rotary]
        self.to(dtype)
        for module, kept in zip(rotary, frequencies, strict=True):
            module.inv_freq = kept
        return self

    def forward(
        self,
        pixel_values: Tensor,
        image_grid_thw: Tensor,
        input_ids: Tensor,
        position_ids: Tensor,
        state: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """One observation, see `Inputs` -> [T, A] float32 in policy units."""
        hidden_1LD = self.qwen(
            input_ids=input_ids,
            position_ids=position_ids,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            use_cache=False,
        ).last_hidden_state
        spatial_1ND = self.spatial(pixel_values.to(hidden_1LD.dtype))
        tokens_1LD = torch.cat([spatial_1ND, hidden_1LD], dim=1)
        condition = self.head.condition(tokens_1LD, state[None].to(hidden_1LD.dtype))
        x_1TA = noise[None]
        for t in self.timesteps:
            epsilon = self.head(x_1TA.to(condition.dtype), t, condition)
            x_1TA = self.scheduler.step(epsilon.float(), t, x_1TA, return_dict=False)[0]
        return x_1TA[0]

    def prepare(
        self,
        *,
        instruction: str,
        state: NDArray[np.float32],
        noise: NDArray[np.float32],
        **pictures: NDArray[np.uint8],
    ) -> Inputs:
        """Everything that happens before the networks, on the device of the weights.

        Args:
            instruction: one line of text, taken as it is.
            state: [S] in policy units.
            noise: [T, A] standard normal.
            pictures: uint8 [H, W, 3] RGB, `frame` and `anchor`; of several anchors each by its
                name.

        Raises:
            ValueError: if two images give different grids.
        """
        names = self._shown()
        images = [Image.fromarray(pictures[name]) for name in names]
        batch = self.processor(images=images, return_tensors="pt")
        grid = batch["image_grid_thw"]
        for name, other in zip(names, grid, strict=True):
            if not torch.equal(other, grid[-1]):
                raise ValueError(
                    f"{name} and frame give {other[1:].tolist()} and {grid[-1, 1:].tolist()} "
                    "patches; take both from the same camera"
                )
        merged = int(grid[0].prod()) // self.config.vision.spatial_merge_size**2
        ids = torch.tensor([self.input_ids(merged, instruction)])
        kinds = (ids == self.image_pad_id).int()
        positions, _ = self.qwen.get_rope_index(
            ids,  # type: ignore[arg-type]
            kinds,  # type: ignore[arg-type]
            image_grid_thw=grid,
        )
        device = self.qwen.device
        if device.type == "meta":  # weights that are read when they are used
            device = torch.device("cpu")
        inputs = (
            batch["pixel_values"],
            grid,
            ids,
            positions,
            torch.from_numpy(state).float(),
            torch.from_numpy(noise).float(),
        )
        return Inputs(*(tensor.to(device) for tensor in inputs))

    def listen(self) -> dict[str, list[Tensor]]:
        """Hooks that keep what the modules of a tick put out."""
        return heard.listen(self)

    def placed(
        self,
        kept: heard.Heard,
        grid: tuple[int, int],
        layers: LayersPerPart,
        fixed: Mapping[str, int],
    ) -> dict[str, Tensor]:
        """What was kept, under the names of our graph and in its layout, without padded rows.

        Args:
            layers: of our trunks, as they are cut.
            fixed: tokens of our language calls, as `models.split.Split.fixed`.
        """
        hidden_LD, behind = kept["hidden"][0][0], sum(fixed.values())
        readouts = self._readouts(hidden_LD, torch.arange(behind - grid[0] * grid[1] // 4, behind))
        return heard.placed(kept, self.config, grid, layers, fixed) | readouts

    def input_ids(self, image_tokens: int, instruction: str) -> list[int]:
        """The whole prompt as token ids, `image_tokens` pads standing for each image."""
        p = self.config.prompt
        image = p.image_start + IMAGE_PAD * image_tokens + p.image_end
        anchors = image * (len(self._shown()) - 1)
        text = p.template.replace("{anchor}", anchors).replace("{frame}", image)
        text = text.replace("{instruction}", instruction)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        end = self.tokenizer.encode(p.end, add_special_tokens=False).ids
        return [*ids, p.placeholder_token_id, *end]

    @torch.no_grad()
    def act(self, **observed: Any) -> NDArray[np.float32]:
        """From camera images to [T, A] float32 actions in policy units; see `prepare`."""
        actions_TA: NDArray[np.float32] = self(*self.prepare(**observed)).cpu().numpy()
        return actions_TA

    @torch.no_grad()
    def read(self, **observed: Any) -> dict[str, NDArray[np.float32]]:
        """Every readout of an observation, by name; see `prepare`."""
        given = self.prepare(**observed)
        hidden_LD = self.qwen(
            input_ids=given.input_ids,
            position_ids=given.position_ids,
            pixel_values=given.pixel_values,
            image_grid_thw=given.image_grid_thw,
            use_cache=False,
        ).last_hidden_state[0]
        shown = (given.input_ids[0] == self.image_pad_id).nonzero()[:, 0]
        found = self._readouts(hidden_LD, shown.chunk(len(self._shown()))[-1])
        return {name: value.numpy() for name, value in found.items()}

    def _readouts(self, hidden_LD: Tensor, frame: Tensor) -> dict[str, Tensor]:
        """From hidden states of the whole prompt; `frame` are the places of its image tokens."""
        rows = {"end": hidden_LD[-1], "frame": hidden_LD[frame].mean(dim=0)}
        return {r.name: self.readouts[r.name](rows[r.reads]) for r in self.config.readouts}

    def _shown(self) -> list[str]:
        """Pictures in the order of the prompt."""
        others = [f"anchor_{number}" for number in range(2, self.config.anchors + 1)]
        return ["anchor", *others, "frame"]


class SpatialFeatures(nn.Module):
    """UniCeption's trunk over the patches of all views, with the policy's projection."""

    def __init__(
        self, config: SpatialConfig, patch_dim: int, out_dim: int, num_views: int = 2
    ) -> None:
        super().__init__()
        self.num_views = num_views
        self.scale_token = nn.Parameter(torch.zeros(patch_dim))
        self.info_sharing = MultiViewAlternatingAttentionTransformerIFR(
            name="anchorvla4d",
            input_embed_dim=patch_dim,
            depth=config.depth,
            dim=config.dim,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            indices=list(config.indices),
        )
        self.final_projection = nn.Linear(config.dim, out_dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[V N, patch_dim] of V views -> [1, V N (1 + taps), out_dim]."""
        return self.final_projection(self.tokens(pixel_values))

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """The same before the projection: final output of every view, then those of each tap."""
        # The trunk has no positions inside a view, so one column of N patches stands for the grid.
        views = [view.T[None, :, :, None] for view in pixel_values.chunk(self.num_views)]
        final, taps = self.info_sharing(
            MultiViewTransformerInput(
                features=views, additional_input_tokens=self.scale_token[None, :, None]
            )
        )
        features = [view for output in (final, *taps) for view in output.features]
        return torch.cat([view.flatten(2).transpose(1, 2) for view in features], dim=1)


class Head(nn.Module):
    """ScaleDP: a DiT whose condition is one vector of pooled features, state and timestep."""

    def __init__(self, config: ScaleDPConfig, cond_dim: int) -> None:
        super().__init__()
        width, pooled = config.n_emb, cond_dim * config.adaptive_pool_dim
        self.pool = nn.AdaptiveAvgPool1d(config.adaptive_pool_dim)
        self.norm_after_pool = nn.LayerNorm(pooled)
        self.state_linear = nn.Linear(config.state_dim, config.state_embed_dim)
        self.combine = nn.Sequential(
            nn.Linear(pooled + config.state_embed_dim, config.combine_dim),
            nn.ReLU(),
            nn.Linear(config.combine_dim, config.combine_dim),
            nn.ReLU(),
            nn.Linear(config.combine_dim, cond_dim),
        )
        self.cond_obs_emb = nn.Linear(cond_dim, width)
        self.t_embedder = nn.Sequential(
            nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.x_embedder = nn.Linear(config.action_dim, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.prediction_horizon, width))
        self.blocks = nn.ModuleList(HeadBlock(config) for _ in range(config.depth))
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.final_linear = nn.Linear(width, config.action_dim)

    def condition(self, tokens_1LD: Tensor, state_1S: Tensor) -> Tensor:
        """All tokens and the state -> [1, W]."""
        pooled_1BD = self.pool(tokens_1LD.transpose(1, 2)).transpose(1, 2)
        features = self.norm_after_pool(pooled_1BD.flatten(1))
        features = torch.cat([features, self.state_linear(state_1S)], dim=1)
        return self.cond_obs_emb(self.combine(features))

    def forward(self, x_1TA: Tensor, t: int, condition_1W: Tensor) -> Tensor:
        """Predicted noise of `x_1TA` at timestep `t`."""
        time = step_embedding(t, device=condition_1W.device).to(condition_1W.dtype)
        c = self.t_embedder(time)[None] + condition_1W
        x = self.x_embedder(x_1TA) + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c)[:, None].chunk(2, dim=-1)
        return self.final_linear(_adaptive_norm(x, shift, scale))


class HeadBlock(nn.Module):
    """A DiT block with adaLN-Zero (Peebles and Xie, 2023)."""

    def __init__(self, config: ScaleDPConfig) -> None:
        super().__init__()
        width, hidden = config.n_emb, int(config.n_emb * config.mlp_ratio)
        self.attn = nn.MultiheadAttention(width, config.num_heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c_1W: Tensor) -> Tensor:
        vectors = self.modulation(c_1W)[:, None].chunk(6, dim=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = vectors
        h = _adaptive_norm(x, shift_attn, scale_attn)
        x = x + gate_attn * self.attn(h, h, h, need_weights=False)[0]
        return x + gate_mlp * self.mlp(_adaptive_norm(x, shift_mlp, scale_mlp))


def step_embedding(t: int, device: torch.device | None = None) -> Tensor:
    """Sinusoids of the timestep, [256] bfloat16; the frequencies are rounded too, as trained."""
    index = torch.arange(FREQUENCIES // 2, dtype=torch.bfloat16, device=device)
    frequencies = torch.exp(index * -math.log(10000) / (FREQUENCIES // 2))
    angles = t * frequencies.float()
    return torch.cat([angles.cos(), angles.sin()]).bfloat16()


def ddim_scheduler(config: ScaleDPConfig) -> DDIMScheduler:
    """The published sampler, its timesteps set."""
    scheduler = DDIMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="epsilon",
        clip_sample=True,
        set_alpha_to_one=True,
        steps_offset=0,
    )
    scheduler.set_timesteps(config.num_inference_timesteps)
    return scheduler


PARTS = {
    "vlm.visual.": "qwen.visual.",
    "vlm.model.": "qwen.language_model.",
    "info_sharing.": "spatial.",
    "action_head.": "head.",
    "readouts.": "readouts.",
}
"""How a published name begins, and how it begins here."""

HEAD_NAMES = {
    "t_embedder.mlp.": "t_embedder.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.2.",
    "final_layer.adaLN_modulation.": "final_modulation.",
    "final_layer.linear.": "final_linear.",
    "adaLN_modulation.": "modulation.",
}
"""The same for pieces of the head's names."""


def _share(composition: Composition, model: AnchorVLA4D) -> None:
    """Let every parameter of `composition` use the storage of its counterpart in `model`."""
    weights = {composed_name(name): tensor for name, tensor in model.state_dict().items()}
    composition.load_state_dict(weights, strict=True, assign=True)


def composed_name(name: str) -> str:
    """What the tensor published as `name` is called in a `Composition`."""
    old = next(part for part in PARTS if name.startswith(part))
    rest = name.removeprefix(old)
    if old == "action_head.":
        for published, here in HEAD_NAMES.items():
            rest = rest.replace(published, here)
    return PARTS[old] + rest


def _adaptive_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],), eps=1e-6) * (1 + scale) + shift
