"""Pictures in which it stands when they were made, and whether they are whole."""

import zlib

import numpy as np


def picture(made_at: float, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] of a width and a height, whose bytes can be checked."""
    seed = int(made_at * 1e9) % 2**63
    flat = np.random.default_rng(seed).integers(0, 256, size[0] * size[1] * 3, np.uint8)
    flat[:8] = np.frombuffer(np.float64(made_at).tobytes(), np.uint8)
    flat[8:12] = np.frombuffer(np.uint32(zlib.crc32(flat[12:])).tobytes(), np.uint8)
    return flat.reshape(size[1], size[0], 3)


def made_at(shown: np.ndarray) -> float:
    """When a picture was made; raises if it is not whole."""
    flat = shown.reshape(-1)
    at = float(flat[:8].copy().view(np.float64)[0])
    size = (shown.shape[1], shown.shape[0])
    assert zlib.crc32(flat[12:]) == flat[8:12].copy().view(np.uint32)[0], "torn"
    assert np.array_equal(shown, picture(at, size)), "torn"
    return at
