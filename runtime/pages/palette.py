"""The colours of every page and picture, each by name with its value on light and on dark ground.

A page defines them once, as CSS variables that follow the reader's preference; what it holds uses
nothing else. A picture that stands alone gets the light ones written in, on a ground of its own,
because viewers of SVG files know neither variables nor preferences.
"""

from __future__ import annotations

from collections.abc import Mapping

from .markup import Markup

PALETTE: Mapping[str, tuple[str, str]] = {
    "ground": ("#f6f7f9", "#12161b"),
    "paper": ("#ffffff", "#1b2027"),
    "ink": ("#1f2933", "#e6eaf0"),
    "muted": ("#5b6776", "#a3afbd"),
    "rule": ("#e3e8ef", "#363f4a"),
    "edge": ("#8a96a4", "#75818f"),
    "note": ("#fff8e6", "#302812"),
    "note-edge": ("#f3d999", "#6b5626"),
    "good": ("#04633f", "#7ce0b3"),
    "good-ground": ("#dcf5e8", "#0f3d2b"),
    "bad": ("#b91c1c", "#ff9b93"),
    "bad-ground": ("#fde8e8", "#4a1715"),
    "open": ("#8a3d0b", "#f6c979"),
    "open-ground": ("#fef3c7", "#453109"),
    "hot": ("#f97316", "#b23c0a"),
    "series-0": ("#2563eb", "#6ea8fe"),
    "series-1": ("#c96a04", "#f0a33a"),
    "series-2": ("#059669", "#34c993"),
    "series-3": ("#9333ea", "#c58bfb"),
    "series-4": ("#db2777", "#f472b6"),
    "series-5": ("#0891b2", "#3ec6de"),
    "series-6": ("#4d7c0f", "#a3d34a"),
    "series-7": ("#64748b", "#9fb0c5"),
    "load": ("#eef1f5", "#262d36"),
    "episode": ("#fef3e2", "#3a2a12"),
    "event": ("#e7f7ef", "#10352a"),
    "tick": ("#e8effd", "#182b4d"),
    "control": ("#f3e8fd", "#33204d"),
}


def colour(name: str) -> str:
    """What a style sheet or an attribute of a page calls it.

    Raises:
        KeyError: no such colour.
    """
    PALETTE[name]
    return f"var(--{name})"


INK, MUTED, RULE, EDGE = map(colour, ("ink", "muted", "rule", "edge"))
SERIES = tuple(colour(name) for name in PALETTE if name.startswith("series-"))


def variables() -> str:
    """The palette as CSS: light, dark where that is preferred, and always light on paper."""
    light, dark = (
        "".join(f"--{name}:{pair[which]};" for name, pair in PALETTE.items()) for which in (0, 1)
    )
    return (
        f":root{{color-scheme:light;{light}}}\n@media screen and (prefers-color-scheme:dark)"
        f"{{:root{{color-scheme:dark;{dark}}}}}\n"
    )


def in_light(picture: str) -> Markup:
    """The picture with light colours written in."""
    for name, (light, _) in PALETTE.items():
        picture = picture.replace(colour(name), light)
    return Markup(picture)
