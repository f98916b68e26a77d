"""The page on which somebody looks on: cameras, actions, figures and a stop button.

It loads nothing, and a browser lets it run its own script and nothing else (Content Security
Policy, https://www.w3.org/TR/CSP3/). What it shows comes through one socket, as JSON; texts become
text, whatever they hold.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...control.sight import Sight
from ..markup import Markup, element
from ..page import STYLE
from ..svg import lines
from .script import SCRIPT
from .terminal import stages

TITLE = "anchorvla live"
MOST_PX = 320
"""Longer side of a picture that is sent."""
QUALITY = 80
"""Of JPEG."""
LIVE_STYLE = STYLE + (
    """main{padding-top:0}[hidden]{display:none!important}
header{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;gap:10px 16px;
align-items:center;background:var(--ground);padding:14px 0 12px}
header div{flex:1 1 240px}h1{font-size:20px}.alarm{margin:0 0 16px}
button,input{font:inherit;border-radius:8px;border:1px solid var(--edge);padding:8px 14px;
background:var(--paper);color:var(--ink)}button{cursor:pointer}
button:focus-visible,input:focus-visible{outline:3px solid var(--series-0);outline-offset:2px}
#stop{flex:0 1 220px;min-height:64px;font-size:24px;font-weight:700;background:var(--bad);
color:var(--paper);border-color:var(--bad)}#stop:disabled{opacity:.45;cursor:not-allowed}
form{display:flex;flex-wrap:wrap;gap:10px;align-items:center}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:0 16px}
figure{margin:0}figure img{width:100%;max-height:420px;object-fit:contain;display:block;
border-radius:6px;background:var(--ground)}
#plot svg{width:100%;min-width:600px;max-width:920px;height:auto}.alarm button{margin-top:10px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(150px,100%),1fr));gap:10px}
figcaption{font-size:12px;color:var(--muted)}.facts .bad{color:var(--bad);font-weight:600}
.facts dd{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
body.old .fresh{opacity:.35;filter:grayscale(1)}
@media (max-width:600px){header{padding-top:8px}#stop{flex:1 1 100%}}
"""
)


def _document() -> str:
    def hidden(tag: str, name: str, *content: Markup, **attributes: object) -> Markup:
        return element(tag, *content, id=name, hidden="", **attributes)

    head = (
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("link", rel="icon", href="data:,"),
        element("title", TITLE),
        element("style", Markup(LIVE_STYLE)),
    )
    names = element("div", element("h1", TITLE, id="title"), element("p", id="state", class_="sub"))
    bar = element("header", names, element("button", "STOP", id="stop", type="button", disabled=""))
    key = element("input", id="key", type="password", autocomplete="off", aria_label="key")
    ask = hidden(
        "form",
        "ask",
        element("label", "Key of this server:", for_="key"),
        key,
        element("button", "Look on", type="submit"),
        class_="panel",
    )
    again = element("button", "Allow driving again", id="release", type="button")
    why = element("b", id="why")
    alarms = (
        hidden("div", "lost", element("b", id="silent"), class_="alarm", role="alert"),
        hidden("div", "stopped", why, again, class_="alarm", role="alert"),
    )
    seen = element(
        "div",
        element("div", element("div", id="pictures", class_="grid"), class_="panel"),
        element("div", element("dl", id="figures", class_="facts"), class_="panel"),
        class_="two",
    )
    plot = element(
        "div", element("div", id="plot", class_="scroll wide", tabindex=0), class_="panel"
    )
    fresh = hidden("div", "shown", seen, plot, class_="fresh")
    script = element("script", Markup(SCRIPT))
    body = element("body", element("main", bar, *alarms, ask, fresh), script)
    page = element("html", element("head", *head), body, lang="en")
    return f"<!doctype html>{page}\n"


def _policy() -> str:
    """What the page may do."""

    def only(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    rules = {
        "default-src": "'none'",
        "script-src": only(SCRIPT),
        "style-src": only(LIVE_STYLE),
        "img-src": "data:",
        "connect-src": "'self'",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {what}" for name, what in rules.items())


class LivePage:
    """As `control.server.viewers.Show` describes it."""

    html = _document().encode("ascii", "xmlcharrefreplace")
    headers: Mapping[str, str] = {
        "Content-Security-Policy": _policy(),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }

    def draw(self, sight: Sight) -> str:
        """The page's words for it."""
        told = [*sight.figures, *stages(sight)]
        stop = sight.stop
        drawn = {
            "title": sight.title,
            "figures": [[figure.name, figure.words, figure.is_bad] for figure in told],
            "pictures": {name: _jpeg(picture) for name, picture in sight.pictures.items()},
            "plot": plot(sight),
            "stop": stop and {"number": stop.number, "why": stop.why, "may": stop.may_release},
        }
        return json.dumps(drawn)


def plot(sight: Sight) -> str:
    """Actions over time; empty if there was none. How wide it is says the page: a style of its own
    is what the page's policy forbids."""
    if not any(sight.actions.values()):
        return ""
    drawn = lines(
        sight.actions,
        title="actions",
        x_title="seconds from now",
        y_title="action",
        marks=sight.marks,
    )
    return re.sub(' style="[^"]*"', "", drawn, count=1)


def _jpeg(picture: NDArray[np.uint8]) -> str:
    """As a data URI."""
    small = Image.fromarray(picture)
    small.thumbnail((MOST_PX, MOST_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
