"""A page as its reader has it: parsed, and held to what every page promises."""

import contextlib
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "input"}
LOADS = {"src", "href", "srcset", "data", "action", "poster"}
"""Attributes that name something outside of the page."""
COLOUR = re.compile(r"#[0-9a-fA-F]{3,8}\b|\b(?:rgb|hsl)a?\(")
SVG = "{http://www.w3.org/2000/svg}"
BELOW_TICK = 4
"""How much lower than its tick the base line of a figure beside the axis is."""
RULES = (
    "@media screen and (prefers-color-scheme:dark){:root{color-scheme:dark;",
    "@media (max-width:600px){main{padding:20px 12px 40px}",
    ".scroll{overflow-x:auto}",
    # Words break at spaces and stay wide enough to be read.
    ".words{white-space:normal;overflow-wrap:break-word;min-width:10em}",
    # On paper nothing scrolls, and nothing is cut in two that fits.
    ".scroll{overflow:visible}",
    "svg,tr,h3,.strip,.card,.note,.alarm{break-inside:avoid}",
    "@media print{*{print-color-adjust:exact;",
)
"""Of the style, that no reader without a browser can see the want of."""
PAINT = {"fill", "stroke", "style", "stop-color"}


@dataclass
class Page(HTMLParser):
    """Text, tables by section, and the tags around it all. A tag that is not closed is a fault."""

    source: str
    tags: list = field(default_factory=list)
    attributes: list = field(default_factory=list)
    texts: list = field(default_factory=list)
    sections: dict = field(default_factory=lambda: {"": []})
    style: str = ""
    inside: list = field(default_factory=list)
    """Per tag, in order: those it stands in, with their classes."""

    def __post_init__(self):
        super().__init__()
        self.open, self.section = [], ""
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert len(values) == len(attrs), f"{tag} says something twice"
        self.tags.append(tag)
        self.attributes.append((tag, values))
        self.inside.append([*self.open])
        if tag not in VOID:
            self.open.append((tag, values.get("class") or ""))
        rows = self.sections[self.section]
        if tag == "tr":
            rows.append([])
        if tag in ("td", "th"):
            rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        names = [tag for tag, _ in self.open]
        if names[-1:] == ["style"]:
            self.style += data
            return
        self.texts.append(data)
        if names[-1:] == ["h2"]:
            self.section = data
            self.sections[data] = []
        elif {"td", "th"} & set(names):
            self.sections[self.section][-1][-1] += data

    @property
    def text(self):
        return " ".join(self.texts)

    def rows(self, section):
        """By their first cell."""
        return {row[0]: row for row in self.sections[section]}

    def meters(self):
        """Title and colour of each."""
        titles = [a.get("title", "") for _, a in self.attributes if a.get("class") == "meter"]
        colours = [a["class"] for tag, a in self.attributes if tag == "i"]
        return list(zip(titles, colours, strict=True))

    def charts(self):
        """Lines by the label of their picture, see `read_lines`."""
        pictures = re.findall(r"<svg.*?</svg>", self.source)
        roots = [ElementTree.fromstring(picture) for picture in pictures]
        return {root.get("aria-label"): read_lines(root) for root in roots}


def read_lines(root):
    """Lists of (x, y) as a reader takes them off the axes of a chart, one for each line."""
    ticks = {"middle": {}, "end": {}}
    for node in root.iter(f"{SVG}text"):
        with contextlib.suppress(ValueError, KeyError):
            ticks[node.get("text-anchor")][float(node.text)] = node
    lines = [line.get("points") for line in root.iter(f"{SVG}polyline")]
    if not lines:
        return []
    scales = []
    for anchor, axis in (("middle", "x"), ("end", "y")):
        low, high = min(ticks[anchor]), max(ticks[anchor])
        first, last = (float(ticks[anchor][value].get(axis)) for value in (low, high))
        scales.append((low, first, (high - low) / (last - first)))
    (x0, left, per_x), (y0, bottom, per_y) = scales
    bottom -= BELOW_TICK
    return [
        [
            (x0 + (float(x) - left) * per_x, y0 + (float(y) - bottom) * per_y)
            for x, y in (point.split(",") for point in points.split())
        ]
        for points in lines
    ]


def broken_promises(page):
    """What a page does not keep of what all of them promise, in words."""
    metas = [a for tag, a in page.attributes if tag == "meta"]
    found = []
    if not any("width=device-width" in a.get("content", "") for a in metas):
        found.append("no viewport: a phone shows it as a desk does")
    if page.attributes[0] != ("html", {"lang": "en"}):
        found.append("no language")
    found += [f"style lacks {rule}" for rule in RULES if rule not in page.style.replace("\n", "")]
    defined = set(re.findall(r"(--[\w-]+):", page.source))
    used = set(re.findall(r"var\((--[\w-]+)\)", page.source))
    found += [f"nothing defines {name}" for name in sorted(used - defined)]
    rules = re.sub(r":root\{[^}]*\}", "", page.style)
    found += [f"style has a colour of its own: {c}" for c in COLOUR.findall(rules)]
    for (tag, attributes), around in zip(page.attributes, page.inside, strict=True):
        classes = " ".join(kind for _, kind in around)
        if tag == "svg" and (attributes.get("role") != "img" or not attributes.get("aria-label")):
            found.append("a picture without a name")
        if tag == "img" and not attributes.get("alt"):
            found.append("an image without words")
        if tag == "table" and "scroll" not in classes:
            found.append("a table that no phone can scroll")
        if tag == "svg" and "scroll" not in classes and "small" not in classes:
            found.append("a picture that no phone can scroll")
        if "scroll" in (attributes.get("class") or "").split() and "tabindex" not in attributes:
            found.append(f"a {tag} that no key can scroll")
        for name in PAINT & attributes.keys():
            if COLOUR.search(attributes[name]):
                found.append(f"{tag} has a colour of its own: {attributes[name]}")
        for name in LOADS & attributes.keys():
            if not attributes[name].startswith("data:"):
                found.append(f"{tag} loads {attributes[name]}")
        if tag in ("script", "link", "iframe", "object", "base") or any(
            name.startswith("on") for name in attributes
        ):
            found.append(f"{tag} runs or loads something")
    if "url(" in page.source or "@import" in page.source:
        found.append("style loads something")
    if not page.source.isascii():
        found.append("not ASCII")
    return found
