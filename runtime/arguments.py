"""What a caller hands to a policy, checked whole and copied before anything is set.

Nothing of the caller's is kept, and whatever cannot be taken is an `ObservationError` that says
what was given and what is wanted.

H, W = image height and width, S = state dimension, T = step of the chunk, A = action dimension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ObservationError
from .image import ImageConfig, check_grid, check_image


def take_image(
    image: NDArray[np.uint8], config: ImageConfig, grid: tuple[int, int], *, what: str
) -> NDArray[np.uint8]:
    """A copy of an image uint8 [H, W, 3] that gives the exported grid of patches."""
    check_image(image, what=what)
    check_grid(image, config, grid)
    picture: NDArray[np.uint8] = image.copy()
    return picture


def take_state(state: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """A copy of a state [S] in robot units, as float32."""
    try:
        given = np.asarray(state)
    except ValueError as error:  # rows of unlike lengths
        raise ObservationError(f"state must be [{width}] numbers: {error}") from None
    if given.dtype.kind not in "fiu":
        raise ObservationError(
            f"state must be [{width}] numbers, got {type(state).__name__} of {given.dtype}"
        )
    if given.shape != (width,):
        raise ObservationError(f"state must be [{width}], got {list(given.shape)}")
    vector = _float32(given)
    if not np.isfinite(vector).all():
        raise ObservationError(f"state holds NaN or infinity: {vector.tolist()}")
    return vector


def take_noise(noise: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """A copy of action noise [T, A], as float32."""
    if not isinstance(noise, np.ndarray) or noise.dtype.kind != "f":
        kind = noise.dtype if isinstance(noise, np.ndarray) else type(noise).__name__
        raise ObservationError(f"noise must be a numpy array of floats {list(shape)}, got {kind}")
    if noise.shape != shape:
        raise ObservationError(f"noise must be {list(shape)}, got {list(noise.shape)}")
    result = _float32(noise)
    if not np.isfinite(result).all():
        raise ObservationError("noise must be finite in float32; it holds NaN, infinity or more")
    return result


def take_seed(seed: int) -> int:
    """A seed of the noise generator, which has a key of 64 bits."""
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ObservationError(f"seed must be an integer in [0, 2**64), got {seed!r}")
    return int(seed)


def _float32(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """A copy; what float32 cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(numbers, np.float32)
