"""The mutants of a source file. A mutant is its text with one small fault, and what to call it."""

from __future__ import annotations

import ast
import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tests.mutants.operators import Change, changes

MODULE_LEVEL = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A function of a module, or its top level, where lines are told from."""

    name: str
    first_line: int
    last_line: int
    header_end: int
    """Last line before the body: what a caller who runs the body has always read."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small fault in one module."""

    module: str
    """Dotted."""
    path: Path
    place: Place
    operator: str
    lines: range
    """Of the statement that it changes, where they stand in the file today."""
    text: str = field(repr=False)
    before: str
    after: str
    occurrence: int
    """Of the same change in the same function."""

    @property
    def id(self) -> str:
        """The same for the same change, wherever the function stands."""
        words = f"{self.place.name}|{self.operator}|{self.before}|{self.after}|{self.occurrence}"
        return f"{self.module}:{self.lines.start}:{sha256(words.encode()).hexdigest()[:6]}"

    def diff(self) -> str:
        """Changed lines only, with one line around them."""
        old, new = self.path.read_text().splitlines(), self.text.splitlines()
        lines = difflib.unified_diff(old, new, n=1, lineterm="")
        return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


def mutants_of(module: str, path: Path) -> list[Mutant]:
    """All of a file, in its order."""
    source = path.read_text()
    tree = ast.parse(source)
    places = places_of(source, tree)
    spans = list(_statement_spans(tree))
    seen: Counter[tuple[str, ...]] = Counter()
    found = []
    for change in changes(tree):
        text = _with(source, change)
        before, after = _changed_lines(source, text)
        if before == after:
            continue
        line: int = change.node.lineno  # type: ignore[attr-defined]
        place = place_at(places, line)
        key = (place.name, change.operator, before, after)
        lines = min((s for s in spans if line in s), key=len, default=range(line, line + 1))
        found.append(
            Mutant(module, path, place, change.operator, lines, text, before, after, seen[key])
        )
        seen[key] += 1
    return found


def places_of(source: str, tree: ast.Module) -> list[Place]:
    """Top level first, then the functions; what is nested comes after what holds it."""
    lines = source.splitlines()

    def place(name: str, node: ast.stmt, body: list[ast.stmt]) -> Place:
        first, last = node.lineno, node.end_lineno or node.lineno
        words = "\n".join(line.strip() for line in lines[first - 1 : last])
        return Place(name, first, last, body[0].lineno - 1, sha256(words.encode()).hexdigest()[:16])

    def functions(node: ast.AST, prefix: str) -> Iterator[Place]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield place(prefix + child.name, child, child.body)
                yield from functions(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from functions(child, f"{prefix}{child.name}.")
            else:
                yield from functions(child, prefix)

    return [Place(MODULE_LEVEL, 1, len(lines) + 1, 0, ""), *functions(tree, "")]


def place_at(places: list[Place], line: int) -> Place:
    """The innermost one that holds the line."""
    return [place for place in places if place.first_line <= line <= place.last_line][-1]


def _statement_spans(tree: ast.Module) -> Iterator[range]:
    """Of a compound statement, its head."""
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            yield range(node.lineno, max(end, node.lineno) + 1)


def _with(source: str, change: Change) -> str:
    node = change.node
    lines = source.splitlines(keepends=True)
    assert isinstance(node, ast.stmt | ast.expr) and node.end_lineno and node.end_col_offset
    head = "".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
    tail = lines[node.end_lineno - 1][node.end_col_offset :] + "".join(lines[node.end_lineno :])
    return head + change.text + tail


def _changed_lines(old: str, new: str) -> tuple[str, str]:
    """What differs, without indentation: one line each."""
    a, b = old.splitlines(), new.splitlines()
    shorter = min(len(a), len(b))
    same = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    left = shorter - same
    after_it = next((i for i in range(left) if a[-1 - i] != b[-1 - i]), left)
    changed = (lines[same : len(lines) - after_it] for lines in (a, b))
    before, after = (" ".join(line.strip() for line in lines) for lines in changed)
    return before, after
