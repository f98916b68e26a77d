"""Action noise of a tick, the same wherever it is drawn.

T = step of the chunk, A = action dimension.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draw_noise(seed: int, tick: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Standard normal noise [T, A] float32 of one tick, without any history.

    Philox counter generator (Salmon et al., 2011) keyed by the seed, its counter placed by the
    tick; Box-Muller on its raw words, so that the numbers do not depend on numpy's version.
    """
    count = -(-shape[0] * shape[1] // 2)
    raw = np.random.Philox(key=seed, counter=tick << 192).random_raw(2 * count)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:count]))
    angle = 2.0 * np.pi * uniform[count:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    noise: NDArray[np.float32] = normal[: shape[0] * shape[1]].astype(np.float32)
    return noise.reshape(shape)
