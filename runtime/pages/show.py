"""What a bundle is and when each of its parts is recomputed, as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..backends.device_memory import host_roots, layout
from ..backends.schedule import NUM_STREAMS, plan
from ..bundle import PLANS, Bundle, EngineEntry, Manifest
from ..declarations import PACES, Input, Pace, from_source
from ..graph import Graph, Stage, whole_of
from ..plans.record import read_scratch
from .markup import Markup, element
from .palette import EDGE, MUTED, SERIES, colour
from .svg import CHARACTER, label, svg

BORDERS: Mapping[Pace, str] = {
    "load": EDGE,
    "episode": SERIES[1],
    "event": SERIES[2],
    "tick": SERIES[0],
    "control": SERIES[3],
}
"""Per pace; its fill is the colour of its name."""
DASHES = "4 3"
SEVERAL = ""
"""Lane of what depends on several inputs."""
ORDER = ("image", "video", "depth", "text", "vector", "leftover", "noise")
"""Kinds of the inputs whose lanes stand below that one; those of latches stand above."""


def when(graph: Graph, needs: Iterable[str]) -> str:
    """When something that depends on these inputs is recomputed, in words."""
    names = sorted(needs)
    if not names:
        return "once, at load"
    if often := [n for n in names if graph.inputs[n].pace in ("tick", "control")]:
        return "every tick with a new " + " or ".join(often)
    return "on a new " + " or ".join(names)


def describe(bundle: Bundle, *, brief: bool = False) -> str:
    """The bundle, and unless `brief` its stages and its tensors, as aligned text."""
    manifest, graph = bundle.manifest, bundle.manifest.graph
    weights = sum(e.parameters for e in manifest.engines.values())
    size = sum(e.bytes for e in manifest.files.values())
    head = [
        f"{bundle.path}: {manifest.policy}, recipe {manifest.title}",
        f"weights: {manifest.description or 'undescribed'}; licence: {manifest.license}",
        f"{weights:,} weights in {len(manifest.engines)} engines, {size:,} bytes in "
        f"{len(manifest.files)} files",
        *(f"input {name}: {_declared(declared)}" for name, declared in graph.inputs.items()),
        "gates: " + ", ".join(f"{k} {v}" for k, v in manifest.gates.items()),
    ]
    head += [f"store {words}" for words in _stores(graph)]
    head += [f"on a GPU: {words}" for words in memory_plan(bundle)]
    if brief:
        return "\n".join(head)
    return "\n".join([*head, "", *_align(_stages(graph)), "", *_align(_tensors(graph))])


def counted(name: str, count: int) -> str:
    """A name, and how many go by it."""
    return name if count == 1 else f"{name} x {count}"


def networks(manifest: Manifest) -> dict[str, dict[str, EngineEntry]]:
    """Engines by the network that they are parts of and their own name; most stand alone."""
    found: dict[str, dict[str, EngineEntry]] = {}
    for name, entry in manifest.engines.items():
        found.setdefault(manifest.graph.networks.get(name, name), {})[name] = entry
    return {counted(name, len(parts)): parts for name, parts in found.items()}


def file_bytes(manifest: Manifest, engine: EngineEntry) -> int:
    """Of an engine's graph and weights."""
    stem = engine.file.removesuffix("onnx")
    return sum(file.bytes for name, file in manifest.files.items() if name.startswith(stem))


def _stages(graph: Graph) -> list[tuple[str, ...]]:
    """A table; the stages of a chain are one row."""
    rows: dict[str, list[Stage]] = {}
    for stage in graph.stages:
        rows.setdefault(graph.rows[stage.name], []).append(stage)
    table: list[tuple[str, ...]] = [("stage", "calls", "reads", "recomputed")]
    for name, stages in rows.items():
        made = {tensor for stage in stages for tensor in stage.outputs.values()}
        reads = [t for stage in stages for t in stage.inputs.values() if t not in made]
        labels = list(dict.fromkeys(stage.label for stage in stages))
        network = graph.networks.get(labels[0], labels[0])
        calls = counted(network, len(labels)) if network != labels[0] else " ".join(labels)
        words = (counted(name, len(stages)), calls, " ".join(_ranges(reads)) or "-")
        table.append((*words, _paced(graph, stages[0])))
    return table


def _tensors(graph: Graph) -> list[tuple[str, ...]]:
    """A table; tensors of a chain are one row if they are numbered and recomputed alike."""
    writers = {t: s for s in graph.stages for t in s.outputs.values()}
    stores = {t: n for n, s in graph.stores.items() for entry in s.entries for t in entry}
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, tensor in graph.tensors.items():
        needs, writer = graph.dependencies[name], "its parts"
        if name in writers:
            writer = graph.rows[writers[name].name]
            writer = counted(writer, list(graph.rows.values()).count(writer))
        elif name in stores:
            writer = f"store {stores[name]}"
        elif tensor.part_of:
            writer = f"part of {tensor.part_of[0]}"
        depends = ", ".join(n for n in graph.inputs if n in needs) or "nothing"
        again = _paced(graph, writers[name]) if name in writers else when(graph, needs)
        again = "with a new result" if name in stores else again
        rows.setdefault((whole_of(name), writer, depends, again), []).append(name)
    table: list[tuple[str, ...]] = [
        ("tensor", "shape", "bytes", "written by", "depends on", "recomputed")
    ]
    for (_, *words), names in rows.items():
        for row, inside in _ranges(names).items():
            shapes = ("x".join(map(str, graph.tensors[n].shape)) for n in inside)
            size = sum(graph.tensors[n].num_bytes for n in inside)
            table.append((row, " ".join(dict.fromkeys(shapes)), f"{size:,}", *words))
    return table


def _paced(graph: Graph, stage: Stage) -> str:
    """When it is recomputed, and whether a tick asks for it."""
    asked = "" if stage.name in _unasked(graph) else ", if asked for"
    return when(graph, graph.stage_dependencies[stage.name]) + asked


def _unasked(graph: Graph) -> set[str]:
    """Stages that a tick runs for its actions."""
    return {graph.stages[i].name for i in graph.needed_for(graph.target)}


def _ranges(names: Iterable[str]) -> dict[str, list[str]]:
    """Each name once, in order; those that are numbered on from another as `x_1..10`."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(whole_of(name), []).append(name)
    found: dict[str, list[str]] = {}
    for whole, members in groups.items():
        numbers = [name.removeprefix(f"{whole}_") for name in members]
        first = numbers[0] if len(members) > 1 and numbers[0].isdecimal() else ""
        if first and numbers == [str(int(first) + i) for i in range(len(numbers))]:
            found[f"{whole}_{first}..{numbers[-1]}"] = members
        else:
            found |= {name: [name] for name in members}
    return found


def _declared(declared: Input) -> str:
    """An input in a few words."""
    shape = "x".join(map(str, declared.shape))
    words = f"{declared.kind} {declared.dtype} {shape}, {declared.source}"
    words += f" of {declared.of}" if declared.of else ""
    words += f" by {declared.steps} step" if declared.steps else ""
    words += "s" if declared.steps > 1 else ""
    return f"{words}, pace {declared.pace}" + (f", {declared.unit}" if declared.unit else "")


def _stores(graph: Graph) -> Iterator[str]:
    """Each with what it takes and whom it serves."""
    for name, store in graph.stores.items():
        size = sum(graph.tensors[n].num_bytes for entry in store.entries for n in entry)
        sources = ", ".join(cone.source for cone in graph.cones[name])
        yield f"{name}: {len(store.entries)} results in {size:,} bytes, by the value of {sources}"


def memory_plan(bundle: Bundle) -> Iterator[str]:
    """Bytes of tensors and weights, and of scratch for every machine that plans were built for."""
    graph, manifest = bundle.manifest.graph, bundle.manifest
    _, tensors = layout(graph)
    twins = sum(graph.tensors[name].num_bytes for name in host_roots(graph))
    weights = [file_bytes(manifest, engine) for engine in manifest.engines.values()]
    yield (
        f"tensors {tensors:,} bytes in one allocation, weights {sum(weights):,} bytes, "
        f"{max(weights, default=0):,} of them in one engine"
    )
    yield f"page-locked {twins:,} bytes on the host, for what it reads and writes"
    unfused = {n: e.unfused_scratch_bytes for n, e in bundle.manifest.engines.items()}
    yield f"scratch {_shared(graph, unfused)} if a compiler fused nothing"
    for folder in sorted((bundle.path / PLANS).glob("*/")):
        scratch = read_scratch(folder)
        if scratch.keys() == bundle.manifest.engines.keys():
            yield f"scratch {_shared(graph, scratch)} ({folder.name})"


def _shared(graph: Graph, scratch: Mapping[str, int]) -> str:
    """Stages of a stream never run at once, so the largest of them decides."""
    stream, sizes = plan(graph).stream, [0] * NUM_STREAMS
    for stage in graph.stages:
        if stage.engine:
            number = stream[stage.name]
            sizes[number] = max(sizes[number], scratch[stage.engine])
    return " + ".join(f"{size:,}" for size in sizes) + " bytes, one block per stream"


def draw(graph: Graph) -> Markup:
    """The graph as an SVG: inputs on the left, columns by depth, coloured by pace.

    Stages that run once are left out, and a chain of calls of one engine is one box. What runs only
    if somebody asks for it has a dashed border.
    """
    boxes, edges = _boxes(graph)
    columns = _columns(boxes, edges, tuple(graph.inputs))
    lanes = {name: _lane(graph, boxes, name) for name in columns}
    rows = _rows(columns, lanes, edges)
    tops, y = {}, 44.0
    for lane in _lanes(graph):
        tops[lane] = y
        depth = 1 + max([rows[n] for n in columns if lanes[n] == lane], default=-1)
        y += 46 * depth + (14 if depth else 0)
    width, step = 118.0, 152.0
    place = {n: (16 + columns[n] * step, tops[lanes[n]] + 46 * rows[n]) for n in columns}
    unasked = _unasked(graph)
    asked = {name for name, stages in boxes.items() if stages[0].name not in unasked}
    parts = _key(graph, has_asked=bool(asked))
    for source, target in edges:
        (x1, y1), (x2, y2) = place[source], place[target]
        x1, y1, y2, turn = x1 + width, y1 + 16, y2 + 16, x2 - (step - width)
        # Along its own row up to the gap before the target, where no box stands in the way.
        parts.append(
            element(
                "path",
                d=f"M{x1} {y1} H{turn} C{x2 - 8} {y1} {turn + 8} {y2} {x2} {y2}",
                fill="none",
                stroke=EDGE,
                stroke_width=1.3,
            )  # fmt: skip
        )
    for name, (x, top) in place.items():
        stages = boxes.get(name)
        needs = {name} if stages is None else graph.stage_dependencies[stages[0].name]
        kind = graph.pace(needs)
        heavy = stages is not None and stages[0].engine is not None
        parts.append(
            element(
                "rect",
                x=x,
                y=top,
                width=width,
                height=32,
                rx=16 if stages is None else 5,
                fill=colour("paper" if stages is None else kind),
                stroke=BORDERS[kind],
                stroke_width=2 if heavy else 1.1,
                stroke_dasharray=DASHES if name in asked else None,
            )  # fmt: skip
        )
        words = counted(name, 1 if stages is None else len(stages))
        size = 11.5 if len(words) < 18 else 10
        parts.append(label(x + width / 2, top + 20.5, words, size=size, anchor="middle"))
    constants = sum(1 for needs in graph.stage_dependencies.values() if not needs)
    parts.append(
        label(
            16, y + 8, f"Not drawn: {constants} stages that run once, at load.", size=11, fill=MUTED
        )
    )
    return svg(
        16 + (max(columns.values()) + 1) * step,
        y + 20,
        parts,
        title="The graph: stages and inputs, coloured by what is recomputed when",
    )


def _boxes(graph: Graph) -> tuple[dict[str, list[Stage]], list[tuple[str, str]]]:
    """Stages grouped into boxes, and the edges between boxes and from inputs."""
    boxes: dict[str, list[Stage]] = {}
    for stage in graph.stages:
        if graph.stage_dependencies[stage.name]:
            boxes.setdefault(graph.rows[stage.name], []).append(stage)
    home = {stage.name: name for name, stages in boxes.items() for stage in stages}
    edges: dict[tuple[str, str], None] = {}
    for name, stages in boxes.items():
        for stage in stages:
            for source in stage.inputs.values():
                if source in graph.inputs:
                    edges[source, name] = None
                    continue
                for writer in graph.writers(source):
                    if writer.name in home and home[writer.name] != name:
                        edges[home[writer.name], name] = None
    return boxes, list(edges)


def _columns(
    boxes: dict[str, list[Stage]], edges: list[tuple[str, str]], inputs: tuple[str, ...]
) -> dict[str, int]:
    """Longest path from an input."""
    columns = dict.fromkeys(inputs, 0)
    for name in boxes:  # in running order, so sources come first
        columns[name] = 1 + max(columns[source] for source, target in edges if target == name)
    return columns


def _rows(
    columns: dict[str, int], lanes: dict[str, str], edges: list[tuple[str, str]]
) -> dict[str, int]:
    """Row inside the lane. A box with an edge past the next column leaves row 0 to that column."""
    rows: dict[str, int] = {}
    taken: set[tuple[str, int, int]] = set()
    for name, column in columns.items():
        lane = lanes[name]
        skips = any(s == name and lanes[t] == lane and columns[t] > column + 1 for s, t in edges)
        row = int(skips)
        while (lane, column, row) in taken:
            row += 1
        taken.add((lane, column, row))
        rows[name] = row
    return rows


def _lane(graph: Graph, boxes: dict[str, list[Stage]], name: str) -> str:
    needs = {name} if name not in boxes else set(graph.stage_dependencies[boxes[name][0].name])
    return SEVERAL if len(needs) > 1 else needs.pop()


def _lanes(graph: Graph) -> list[str]:
    """From the top."""
    latches = from_source(graph.inputs, "latch")
    others = [name for name in graph.inputs if name not in latches]
    return [*latches, SEVERAL, *sorted(others, key=lambda n: ORDER.index(graph.inputs[n].kind))]


def _key(graph: Graph, *, has_asked: bool) -> list[Markup]:
    parts: list[Markup] = []
    x = 16.0
    by_pace: dict[Pace, list[str]] = {}
    for name, declared in graph.inputs.items():
        by_pace.setdefault(declared.pace, []).append(name)
    for key in (pace for pace in PACES if pace in by_pace):
        names = by_pace[key]
        stay = f"{' and '.join(names)} stay" + ("s" if len(names) == 1 else "")
        text = f"kept while the {stay}" if key in ("episode", "event") else f"every {key}"
        box = {"x": x, "y": 8, "width": 14, "height": 14, "rx": 3}
        parts.append(element("rect", **box, fill=colour(key), stroke=BORDERS[key]))
        parts.append(label(x + 20, 19, text, fill=MUTED))
        x += 44 + CHARACTER * 12 * len(text)
    if has_asked:
        box = {"x": x, "y": 8, "width": 14, "height": 14, "rx": 3}
        dashed = {"fill": "none", "stroke": MUTED, "stroke_dasharray": DASHES}
        parts.append(element("rect", **box, **dashed))
        parts.append(label(x + 20, 19, "if asked for", fill=MUTED))
    return parts


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
