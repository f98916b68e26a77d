"""Pictures drawn with whole numbers alone, so that every machine draws the same, and what
TensorFlow was asked to make of them for `tests/runtime/tensorflow_images.npz`."""

from typing import NamedTuple

import numpy as np


def noise(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    bow = (x - width // 3) ** 2 + (y - height // 2) ** 2
    tent = np.abs((3 * x + 5 * y) % 510 - 255)
    return np.stack([255 * y // (height - 1), 255 * bow // bow.max(), tent], 2).astype(np.uint8)


def edges(height, width):
    """Black and white in each channel, so sums overshoot, and many are alike."""
    y, x = np.mgrid[:height, :width]
    checks = (x // 20 + y // 20) % 2, (x + y) // 33 % 2, (x - y) // 51 % 2
    return (255 * np.stack(checks, 2)).astype(np.uint8)


class Asked(NamedTuple):
    picture: object
    """One of the above."""
    seen: tuple
    """Height and width of the camera's image."""
    size: tuple = (224, 224)
    crop_area: float = 0.9
    quality: int = 95

    @property
    def name(self):
        numbers = "x".join(map(str, self.seen)), "x".join(map(str, self.size)), self.crop_area
        return "-".join(map(str, (self.picture.__name__, *numbers, self.quality)))


ASKED = [
    Asked(noise, (480, 640)),
    Asked(smooth, (480, 640)),
    Asked(edges, (256, 256)),
    Asked(smooth, (256, 256)),  # many sums lie near one half
    Asked(noise, (128, 128)),
    Asked(smooth, (243, 321)),
    Asked(edges, (224, 224)),  # neither JPEG nor a resize
    Asked(noise, (224, 300), quality=60),  # along one axis alone
    Asked(noise, (150, 260), (196, 140), 0.5),  # up and down, and no square
    Asked(edges, (37, 50), (28, 42), 1.0, 100),
]
EVERY = 41
"""Of the rows of what was made one in so many is kept."""
LONG, SHORT = (9, 100, 128, 240, 256, 480, 640, 1280), 224
"""Pixels along an axis before and after."""
