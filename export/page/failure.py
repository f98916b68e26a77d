"""The page of an export that a gate stopped: what failed, where it errs, and what to try.

In: the subject, the verdicts so far and the failure. Out: an HTML file beside where the bundle
would be, and one sentence of advice. No bundle was written; nothing on the page is a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.diagnosis import Diagnosis, diagnose
from export.gates import GateFailed
from export.page.meters import meter, number
from export.page.report import show_verdicts
from export.subject import Subject
from runtime.bundle import Verdict
from runtime.pages.markup import Markup, element
from runtime.pages.page import Column, alarm, document, note, section, sentence, table
from runtime.storage.files import PAGE, write_file

FINER = {
    "orin-w4a16": "orin-w8a8",
    "orin-mixed": "orin-w8a8",
    "orin-w8-weight-only-unproved": "orin-w8a8",
    "orin-w8a8-static": "orin-w8a8",
    "orin-w8a8": "orin-bf16",
    "orin-fp16-safe": "orin-bf16",
    "orin-bf16": "float32",
    "cpu-int8": "float32",
}
"""Recipe -> the next one to try where it moves the policy too far."""
COARSE = ("stage_error", "end_to_end", "success", "motion")
"""Gates at which a recipe fails because it is too coarse for the policy."""
SHOWN_LAYERS = 20


def advise(recipe: str, gate: str) -> list[str]:
    """What to do about it, in sentences; none where the gate's own message says it."""
    if gate == "calibration":
        return []
    if gate not in COARSE:
        return ["No recipe helps: the exported files do not compute what their modules do."]
    if recipe == "orin-mixed":
        return [
            f"Try {FINER[recipe]} next, or let python -m quant sensitivity choose formats for this "
            "policy: those of orin-mixed were chosen for other weights."
        ]
    return [f"Try {FINER[recipe]} next." if recipe in FINER else "Try a finer recipe."]


def write_failure(
    path: Path, subject: Subject, verdicts: Mapping[str, Verdict], failure: GateFailed
) -> None:
    """Diagnose and write the page."""
    found = diagnose(subject)
    recipe, config = subject.recipe, subject.checkpoint.config
    title = f"{config.model_type}, recipe {recipe.name}: gate {failure.gate} failed"
    parts = [
        alarm(
            element("b", f"Gate {failure.gate} failed; no bundle was written"),
            " ".join((f"{failure}.", *advise(recipe.name, failure.gate))),
        ),
        note(f"Weights: {config.description or 'undescribed'}."),
        section("Verdicts", *show_verdicts(verdicts)),
        section("Observations", *_observations(subject, found)),
        section("Engines", *_engines(found)),
        section("Stages", *_stages(found)),
        section("Layers", *_layers(subject, found)),
    ]
    write_file(path, document(title, parts), PAGE)


def _observations(subject: Subject, found: Diagnosis) -> list[Markup]:
    head = [
        Column("observation", "name"), Column("actions moved by"), Column("half a seed's spread"),
        Column("of it", "name"),
    ]  # fmt: skip
    rows = [
        (where, number(error), number(limit), meter(error, limit))
        for where, (error, limit) in found.observations.items()
    ]
    evidence = subject.evidence
    words = (
        f"Calibrated on {len(evidence.calibration)} observations. Judged by these, "
        f"{evidence.held_out_by or 'none of them held out'}: the root mean squares of both columns "
        "are compared."
    )
    return [table(head, rows), sentence(words)]


def _engines(found: Diagnosis) -> list[Markup]:
    head = [Column("engine", "name"), Column("actions moved by")]
    ranked = sorted(found.engines.items(), key=lambda item: -item[1])
    words = f"Each engine alone in the recipe's formats, all others float32; on {found.worst}."
    return [table(head, [(name, number(error)) for name, error in ranked]), sentence(words)]


def _stages(found: Diagnosis) -> list[Markup]:
    head = [
        Column("stage", "name"), Column("error"), Column("allowed"), Column("of it", "name"),
        Column("worst observation", "words"),
    ]  # fmt: skip
    rows = [
        (
            name,
            number(s.error),
            number(s.allowed),
            meter(s.error, s.allowed),
            s.where,
        )
        for name, s in found.stages.items()
    ]
    return [table(head, rows), sentence("Given exact inputs, on the observation that is worst.")]


def _layers(subject: Subject, found: Diagnosis) -> list[Markup]:
    if not found.layers:
        return [sentence("The recipe quantizes no layer.")]
    head = [
        Column("layer", "words"), Column("format", "name"), Column("error of its output"),
    ]  # fmt: skip
    shown = list(found.layers.items())[:SHOWN_LAYERS]
    rows = [
        (name, f"{subject.rules[name].format} {subject.rules[name].method}", number(error))
        for name, error in shown
    ]
    words = (
        f"The {len(shown)} worst of {len(found.layers)} quantized layers, given float32's inputs; "
        f"on {found.worst}."
    )
    return [table(head, rows), sentence(words)]
