"""Pictures in a page, as files inside it.

H, W = image height and width.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .markup import Markup, element

THUMBNAIL_PX = 240
"""Longer side of such a picture: twice what a screen shows of it."""


def frame(image: NDArray[np.uint8], words: str) -> Markup:
    """One of a strip, uint8 [H, W, 3]; that of the anchor stands out."""
    return figure([(image, words)], words, class_="anchor" if words == "anchor" else None)


def figure(
    pictures: list[tuple[NDArray[np.uint8], str]], words: str, *, class_: str | None = None
) -> Markup:
    """Pictures, each with words for those who cannot see it, above one line."""
    shown = (element("img", alt=alt, src=_png(image)) for image, alt in pictures)
    return element("figure", *shown, element("figcaption", words), class_=class_)


def _png(image: NDArray[np.uint8]) -> str:
    """As a data URI."""
    stream, picture = io.BytesIO(), Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    picture.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
