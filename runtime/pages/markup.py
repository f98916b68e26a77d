"""Markup, HTML and SVG alike: text in, escaped elements out.

Whatever text is passed in is escaped; only `Markup`, which `element` returns, goes in as it is. So
no instruction, licence or tensor name can become a tag.
"""

from __future__ import annotations

import html

VOID = frozenset({"meta", "img", "br", "link", "input"})
"""Elements of HTML that have no content and no end tag."""


class Markup(str):
    """A piece of a page, as it is."""

    __slots__ = ()


def element(tag: str, *content: str, **attributes: object) -> Markup:
    """An element around text and markup.

    Args:
        content: in order; escaped unless it is `Markup`.
        attributes: an underscore at the end is dropped, others become hyphens. None: not there.
    """
    pairs = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = "".join(map(_escape, content))
    return Markup(f"<{tag}{pairs}>" if tag in VOID else f"<{tag}{pairs}>{inner}</{tag}>")


def joined(parts: list[Markup]) -> Markup:
    """Pieces one after another."""
    return Markup("".join(parts))


def _escape(text: str) -> str:
    return text if isinstance(text, Markup) else html.escape(text)
