"""An export as one HTML page that needs nothing else: what was decided, measured and allowed.

In: the manifest, and what only the exporting machine has: a sensitivity study, yardsticks. Every
section is always there; where something was not measured, it says so and how to come by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from export.page.figures import (
    show_denoise_steps,
    show_islands,
    show_sensitivity,
    show_stages,
    show_yardsticks,
)
from export.page.meters import bar, number, percent
from quant.search.yardsticks import Yardstick
from runtime.bundle import Manifest, Verdict, VerdictKind
from runtime.pages.markup import Markup, element
from runtime.pages.page import (
    Column,
    alarm,
    badge,
    cards,
    document,
    note,
    section,
    sentence,
    table,
)
from runtime.pages.show import file_bytes, networks
from runtime.storage.files import PAGE, write_file

FLOAT32_BYTES = 4
GATES = {
    "split": "cut into stages, the float32 policy computes what it does in one plain pass",
    "folding": "the float32 policy made ready for its formats computes what it did before",
    "calibration": "calibration has seen what the policy sees",
    "engine_parity": "each engine computes what its torch module does",
    "precision_audit": "the files hold the formats that the recipe names",
    "stage_error": "no stage is moved further than the recipe allows",
    "rounding": "lowering errs as rounding in torch does, within a small factor",
    "graph_parity": "the engines together compute what their modules do",
    "end_to_end": "the actions stay near those of the float32 reference",
    "success": "in closed loop, episodes succeed as often as with float32",
    "motion": "in closed loop, the robot moves as smoothly as with float32",
}
"""What each asks: whether ..."""
CLOSED_LOOP: Mapping[str, Mapping[VerdictKind, str]] = {
    "success": {
        "pass": "The policy keeps its success in this precision",
        "fail": "The policy loses success in this precision",
        "not measured": "How often the policy succeeds in this precision was not measured",
    },
    "motion": {
        "pass": "The robot moves as smoothly in this precision",
        "fail": "The robot moves worse in this precision",
        "not measured": "How smoothly the robot moves in this precision was not measured",
    },
}


def write_report(
    path: Path,
    manifest: Manifest,
    *,
    sensitivity: Path | None = None,
    yardsticks: Sequence[Yardstick] = (),
) -> None:
    """Write the page.

    Args:
        path: the file; its folder is made.
        manifest: complete, with the verdict of every gate.
        sensitivity: recipe.json of `make sensitivity`.
        yardsticks: of this policy's layers.

    Raises:
        ExportError: `sensitivity` is no such file.
    """
    title = f"{manifest.policy}, recipe {manifest.title}"
    weights = f"Weights: {manifest.description or 'undescribed'}. Licence: {manifest.license}."
    parts = [
        sentence(_provenance(manifest)),
        _banner(manifest),
        note(weights),
        _cards(manifest),
        section("Verdicts", *_verdicts(manifest)),
        section("Observations", *_observations(manifest)),
        section("Engines", *_engines(manifest)),
        section("Stages", *show_stages(manifest)),
        section("Denoise steps", *show_denoise_steps(manifest)),
        section("Closed loop", *_closed_loop(manifest)),
        section("Float32 islands", *show_islands(manifest)),
        section("Sensitivity", *show_sensitivity(manifest, sensitivity)),
        section("Yardsticks", *show_yardsticks(yardsticks)),
        section("Recipe and tools", *_recipe(manifest)),
    ]
    write_file(path, document(title, parts), PAGE)


def _provenance(manifest: Manifest) -> str:
    return (
        f"Target {manifest.recipe.target}, {_purpose(manifest)}base format "
        f"{manifest.recipe.base}, "
        f"{len(manifest.engines)} engines. Content {manifest.content_sha256[:16]}, made from "
        f"weights {manifest.source_sha256[:16]}."
    )


def _purpose(manifest: Manifest) -> str:
    purpose = manifest.recipe.purpose
    return f"made for {purpose}, " if purpose else ""


def _banner(manifest: Manifest) -> Markup:
    failed = manifest.failed_gates
    if not failed:
        return Markup()
    return alarm(
        element("b", f"Forced: {len(failed)} of {len(manifest.gates)} gates failed"),
        "This bundle exists only because its export was forced. The runtime refuses it, and no "
        "number on this page is a result.",
        element("ul", *(element("li", f"{name}: {words}") for name, words in failed.items())),
    )


def _cards(manifest: Manifest) -> Markup:
    kinds = [verdict.kind for verdict in manifest.gates.values()]
    held, whole = _sizes(manifest)
    found = [
        (f"{kinds.count('pass')} of {len(kinds)}", "gates passed"),
        (percent(held, whole), f"of float32's engine bytes: {_mb(held)} instead of {_mb(whole)}"),
        (number(manifest.action_error), "relative error of the golden actions against float32"),
    ]
    others: dict[VerdictKind, str] = {"not measured": "gates not measured", "fail": "gates failed"}
    for kind, words in others.items():
        if count := kinds.count(kind):
            found.insert(1, (str(count), words))
    return cards(found)


def _verdicts(manifest: Manifest) -> list[Markup]:
    if not manifest.gates:
        return [sentence("The manifest holds no verdict of any gate: export the bundle again.")]
    return show_verdicts(manifest.gates)


def _observations(manifest: Manifest) -> list[Markup]:
    seen = manifest.quantization.observations
    if seen is None:
        return [sentence("The manifest does not say what was observed: export the bundle again.")]
    golden = f"The golden observation is {seen.golden}."
    if not seen.judged_by:
        return [sentence(f"Nothing is learnt from episodes in this precision. {golden}")]
    held_out = seen.held_out or "none of them held out"
    words = (
        f"Calibrated on {seen.calibrated_on} observations. Judged by {len(seen.judged_by)}, "
        f"{held_out}; at least {seen.least} held-out ones are demanded. {golden}"
    )
    parts = [sentence(words), element("ul", *(element("li", where) for where in seen.judged_by))]
    if seen.unproven:
        parts.insert(0, sentence(f"Not measured: {seen.unproven}."))
    return parts


def show_verdicts(gates: Mapping[str, Verdict]) -> list[Markup]:
    """What every gate asks, and its answer."""
    head = [
        Column("verdict", "name"),
        Column("gate", "name"),
        Column("asks whether", "words"),
        Column("figures", "words"),
    ]
    rows = [(badge(v.kind), name, GATES.get(name, ""), v.figures) for name, v in gates.items()]
    return [table(head, rows)]


def _engines(manifest: Manifest) -> list[Markup]:
    head = [
        Column("engine", "name"), Column("parameters"), Column("in float32"),
        Column("in the files"), Column("share"), Column("", "name"), Column("parity"),
        Column("products with weights", "words"), Column("compile check", "words"),
    ]  # fmt: skip
    precisions = manifest.quantization.precisions
    rows = []
    for name, parts in networks(manifest).items():
        kinds = sum((Counter(precisions.get(part, {})) for part in parts), Counter[str]())
        held = sum(file_bytes(manifest, entry) for entry in parts.values())
        sizes = _size_cells(sum(entry.parameters for entry in parts.values()), held)
        formats = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "not audited"
        parity = number(max(entry.parity for entry in parts.values()))
        compiled = "; ".join(dict.fromkeys(entry.compiled for entry in parts.values()))
        rows.append((name, *sizes, parity, formats, compiled))
    held, whole = _sizes(manifest)
    total = ("all", *_size_cells(whole // FLOAT32_BYTES, held), "", "", "")
    beside = sum(file.bytes for file in manifest.files.values()) - held
    words = (
        f"Sizes are in bytes; float32 takes {FLOAT32_BYTES} for each parameter that the manifest "
        f"counts. What lies beside the engines, such as the token table, adds {_mb(beside)}. "
        "Parity is the relative error of a file against its torch module on its worst stage. "
        "Formats were read back from the finished files."
    )
    return [table(head, rows, total=total), sentence(f"{words}{_shared(manifest)}")]


def _shared(manifest: Manifest) -> str:
    """How many nodes layers share."""
    nodes = manifest.quantization.nodes
    if not nodes:
        return ""
    counts = ", ".join(f"{name} {after} of {before}" for name, (before, after) in nodes.items())
    return (
        " Layers that read one tensor share its rounding to int8 and their product; nodes left of "
        f"those traced: {counts}."
    )


def _size_cells(parameters: int, held: int) -> tuple[str, ...]:
    whole = parameters * FLOAT32_BYTES
    share = bar(held / whole if whole else 0.0)
    return f"{parameters:,}", f"{whole:,}", f"{held:,}", percent(held, whole), share


def _closed_loop(manifest: Manifest) -> list[Markup]:
    asked = [gate for gate in CLOSED_LOOP if gate in manifest.gates]
    if not asked:
        return [sentence("Not asked: a recipe that changes no precision costs no episode.")]
    parts = []
    for gate in asked:
        verdict = manifest.gates[gate]
        words = CLOSED_LOOP[gate][verdict.kind]
        parts.append(element("p", badge(verdict.kind), f" {words}: {verdict.figures}"))
    explained = (
        "Both are measured against float32 in the same episodes. Points are percentage points of "
        "success, and the lower end of the interval decides. Motion is judged by the actions as "
        "they are sent: the third derivative of position (jerk), the share of energy in periods "
        "of fewer than four actions, the step from one chunk to the next. There the upper end "
        "decides."
    )
    return [*parts, sentence(explained)]


def _recipe(manifest: Manifest) -> list[Markup]:
    quantization = manifest.quantization
    layers = [f"{count} {kind}" for kind, count in quantization.layers.items()]
    parts = [sentence(f"Linear layers: {', '.join(layers) or 'not counted'}.")]
    if rules := manifest.recipe.rules:
        head = [Column(title, "words") for title in ("layers", "format", "method")]
        summary = element("summary", f"Rules of the recipe ({len(rules)}); the first match decides")
        parts.append(element("details", summary, table(head, rules)))
    versions = ", ".join(f"{tool} {version}" for tool, version in manifest.tool_versions.items())
    return [*parts, sentence(f"Made with {versions or 'tools that the manifest does not name'}.")]


def _sizes(manifest: Manifest) -> tuple[int, int]:
    """Bytes of all engines: in their files, and in float32."""
    held = sum(file_bytes(manifest, entry) for entry in manifest.engines.values())
    return held, FLOAT32_BYTES * sum(entry.parameters for entry in manifest.engines.values())


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
