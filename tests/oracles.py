"""What the parity tests share: seeded random policies, observations, and how far is too far."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.prompt import prompt as prompt_parts
from models.demo import CHECKPOINT
from models.families import family_of
from models.policy_config import PolicyConfig
from models.random_weights import random_tensors
from runtime.image import ImageConfig, PatchMaker, grid_of
from runtime.prompt import encode_tail

TOKENIZER = CHECKPOINT / "tokenizer.json"
IMAGE = ImageConfig(min_pixels=1, max_pixels=512 * 512)

# Two correct float32 implementations differ by the order of their sums. A product over n terms then
# differs by about sqrt(n) * 2^-24 of its terms' norm, which is a few times 6e-8 here, and the
# differences of L layers add up like a random walk: some 1e-6 at the published depths. The least
# mistakes tried (tanh GELU for the exact one, a scale token off by a tenth) show as 2e-4.
MODULE = 1e-5

FAINT = 1e-3
"""Scale of inputs whose mean square is 1e-6: a wrong epsilon in a norm is plain there, while it
would pass unseen (4e-6) with inputs of order 1."""

# The sampler divides the error of the predicted noise by sqrt(a_t), which is 1/204 at the first
# step and 1/6 at the second; where the clip does not hide it, 5e-7 becomes 1e-4. Over 60 random
# observations of the demo the median is 8e-6 and the worst 5e-5.
END_TO_END = 1e-4


def relative_error(got: ArrayLike, want: ArrayLike) -> float:
    """Norm of the difference over the norm of what is wanted, in float64."""
    got64, want64 = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got64.shape == want64.shape, f"shapes {got64.shape} and {want64.shape} differ"
    return float(np.linalg.norm(got64 - want64) / np.linalg.norm(want64))


def random_policy(config: PolicyConfig, seed: int = 0) -> Any:
    """The module of any family."""
    with torch.device("meta"):
        model = family_of(config).model(config)
    model.load_state_dict(dict(random_tensors(model, seed)), assign=True)
    return model.eval().requires_grad_(False)


def beside_libraries(
    configs: Mapping[str, PolicyConfig], tokenizer: Tokenizer, image: Callable[[str], ImageConfig]
) -> Callable[[str], tuple[Any, Any]]:
    """By name, made once: a random policy, and the composition that shares its weights."""

    @functools.cache
    def of(name: str) -> tuple[Any, Any]:
        ours = random_policy(configs[name])
        return ours, family_of(ours.config).reference(ours, tokenizer, image(name))

    return of


def with_fields(config: Any, changes: Mapping[str, Any]) -> Any:
    """The same with other fields, which are named by their path, `vision.image_size`; each is
    checked when it is set."""
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        inside = with_fields(getattr(config, name), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{name: inside})
    return config


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a policy is given, in policy units."""

    anchor: NDArray[np.uint8]
    frame: NDArray[np.uint8]
    instruction: str
    state: NDArray[np.float32]
    noise: NDArray[np.float32]

    @classmethod
    def random(
        cls, config: AnchorVLA4DConfig, size: tuple[int, int], instruction: str, seed: int
    ) -> Observation:
        rng = np.random.default_rng(seed)
        head = config.head
        anchor, frame = rng.integers(0, 256, (2, *size, 3), np.uint8)
        return cls(
            anchor=anchor,
            frame=frame,
            instruction=instruction,
            state=rng.standard_normal(head.state_dim, np.float32),
            noise=rng.standard_normal((head.prediction_horizon, head.action_dim), np.float32),
        )


def patches_of(image: NDArray[np.uint8], config: ImageConfig = IMAGE) -> torch.Tensor:
    grid = grid_of(image.shape[0], image.shape[1], config)
    out = np.empty((grid[0] * grid[1], config.patch_dim), np.float32)
    PatchMaker(config, grid)(image, out)
    return torch.from_numpy(out)


@torch.no_grad()
def act(model: AnchorVLA4D, tokenizer: Tokenizer, seen: Observation) -> NDArray[np.float32]:
    """The float32 reference, [T, A] in policy units."""
    parts = prompt_parts(model.config, tokenizer)
    actions_TA: NDArray[np.float32] = model(
        [patches_of(seen.anchor), patches_of(seen.frame)],
        grid_of(seen.frame.shape[0], seen.frame.shape[1], IMAGE),
        parts,
        encode_tail(tokenizer, parts.tail, parts.end_ids, seen.instruction),
        torch.from_numpy(seen.state),
        torch.from_numpy(seen.noise),
    ).numpy()
    return actions_TA
