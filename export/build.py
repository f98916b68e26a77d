"""Checkpoint -> bundle: quantize, split, export, prove each engine, compile it, pack.

The bundle appears whole or not at all: it is written beside its destination and renamed. A gate
that fails stops the export; no number is reported from an engine that failed its parity check.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import rich.progress
import torch
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as Printed
from rich.text import Text

from export.config import BuildConfig
from export.destination import (
    check_disk,
    disk_errors,
    exclusive,
    kept_work,
    publish_kept,
)
from export.engines.engine import EngineExporter, Exported
from export.errors import ExportError
from export.gates import GateFailed, Gates
from export.judge import (
    allowed_in_chain,
    allowed_parity,
    judge_actions,
    judge_closed_loop,
    judge_coverage,
    judge_precisions,
    judge_rounding,
    judge_split,
    judge_stages,
)
from export.kept import versions
from export.needs import DiskWatch, Needs, compare, needs_of, refuse_if_too_large
from export.page.failure import advise, write_failure
from export.page.figures import read_study
from export.page.report import write_report
from export.parts import largest_of
from export.subject import Subject, choose_parts, prepare, scanned_tensors
from export.twin import write_twin
from models.checkpoint import Checkpoint, load_checkpoint
from models.declared import ACTIONS, DENOISED, TOKENIZER
from models.split import TOKENS
from models.statistics import KINDS
from models.stored import Rows, return_what_is_freed
from quant.apply import decide
from quant.recipes import Recipe, Rule
from quant.search.yardsticks import yardsticks
from runtime.bundle import (
    GOLDEN,
    MANIFEST,
    Bundle,
    FileEntry,
    Manifest,
    Quantization,
    RecipeEntry,
    Table,
    read_bundle,
)
from runtime.cli.progress import Progress
from runtime.pages.show import file_bytes, memory_plan, networks
from runtime.storage.files import PAGE, check_output
from runtime.storage.listed import sha256_of
from runtime.storage.trust import anybody

EMBEDDING = "embedding.bin"
ROWS = 4096
"""Of the token table that are copied at a time."""


def build(config: BuildConfig, console: Console | None = None) -> Path:
    """Export a bundle, print what was measured, and write a report beside it.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ExportError: the disk is too small, or a gate failed.
        OutputError: another export writes the destination, it cannot be written, or it is
            something else than a bundle.
        ValueError: the recipe does not fit the policy.
    """
    console = console or Console()
    return_what_is_freed()
    recipe = config.chosen_recipe()
    if config.sensitivity is not None:
        read_study(config.sensitivity)  # a wrong one is found before the work
    report = config.out.with_name(f"{config.out.name}-report.html")
    failed = config.out.with_name(f"{config.out.name}-failed.html")
    for page in (report, failed):
        check_output(page, PAGE)
    with (
        exclusive(config.out),
        disk_errors(config.out),
        kept_work(config.out) as work,
        _Bar(console) as bar,
    ):
        bar.step("load checkpoint")
        checkpoint = load_checkpoint(config.checkpoint)
        disk = DiskWatch(work)
        needs = _needs(config, recipe, checkpoint, kept_bytes=disk.look())
        _say(console, f"this export takes {needs.describe()}")

        def step(name: str) -> None:
            disk.look()
            bar.step(name)

        subject = prepare(config, recipe, checkpoint, step, work=work)
        folder = subject.kept.folder("bundle")
        bar.expect(4 * len(subject.parts.engines) + 5)
        gates = Gates(force=config.force)
        try:
            manifest = _export(subject, gates, folder, step)
        except GateFailed as failure:
            bar.step("find out where it errs")
            raise _explained(subject, gates, failure, failed) from failure
        publish_kept(folder, config.out)
        failed.unlink(missing_ok=True)  # of an export before: a page of ours, as was seen above
        bar.step("report")
        compared = config.yardsticks and subject.statistics
        model = subject.checkpoint.model
        write_report(
            report,
            manifest,
            sensitivity=config.sensitivity,
            yardsticks=yardsticks(model, subject.statistics) if compared else (),
        )
    _print_table(console, manifest, config.out)
    if words := subject.tokens.warning:
        _say(console, f"warning: {words}")
    if manifest.unmeasured:
        _say(console, f"warning: not measured: {', '.join(manifest.unmeasured)}")
    _say(console, compare(needs, disk.most_bytes))
    _say(console, f"report: {report}")
    return config.out


def _needs(
    config: BuildConfig, recipe: Recipe, checkpoint: Checkpoint, *, kept_bytes: int
) -> Needs:
    """What the export takes.

    Args:
        kept_bytes: of disk, that one that was cut off has taken already.

    Raises:
        ExportError, OutputError: it is not there.
    """
    rules = decide(recipe, checkpoint.model)

    def estimate(layers_per_part: int | None) -> Needs:
        asked = dataclasses.replace(config, layers_per_part=layers_per_part)
        layers = choose_parts(asked, recipe, checkpoint.config)
        return needs_of(checkpoint, recipe, rules, layers, config)

    needs = estimate(config.layers_per_part)
    depth = checkpoint.config.language.num_hidden_layers
    refuse_if_too_large(needs, config, depth, estimate)
    check_disk(config.out, max(0, needs.disk_bytes - kept_bytes))
    return needs


def _explained(subject: Subject, gates: Gates, failure: GateFailed, page: Path) -> ExportError:
    """The failure, with a page that shows where, and what to try next."""
    write_failure(page, subject, gates.verdicts, failure)
    told = (f"{failure}.", *advise(subject.recipe.name, failure.gate), "No bundle was written;")
    return ExportError(f"{' '.join(told)} where it errs: {page}")


def _export(subject: Subject, gates: Gates, folder: Path, step: Callable[[str], None]) -> Manifest:
    """Write the bundle; every gate has a verdict then."""
    config, recipe = subject.config, subject.recipe
    judge_split(subject, gates)
    if subject.statistics:
        judge_coverage(subject, gates)
    step("judge the stages")
    stages = judge_stages(subject, gates)
    exporter = EngineExporter(
        recipe, subject.rules, subject.parts.graph, subject.tensors, scanned_tensors(subject),
        allowed_parity(subject), folder, gates, config.compile_check, subject.kept,
    )  # fmt: skip
    names = subject.layer_names
    exported = {
        engine: exporter.export(engine, spec, names[engine], step)
        for engine, spec in subject.parts.engines.items()
    }
    judge_precisions(subject, gates, exported)
    for engine in exported.values():
        for stage, parity in engine.parity.items():
            stages[stage] = replace(
                stages[stage], parity=parity, parity_allowed=exporter.allowed[stage]
            )
    step("pack")
    manifest = _pack(subject, folder, exported)
    step("run the bundle")
    runnable = folder
    if recipe.base != "float32":
        runnable = subject.kept.folder("twin")
        write_twin(folder, runnable, kept=subject.kept)
        exported = judge_rounding(subject, gates, exported, stages, runnable)
    allowed = allowed_in_chain(subject, exported)
    step("judge the actions")
    error = judge_actions(subject, gates, runnable, allowed)
    judge_closed_loop(subject, gates, manifest)
    manifest = replace(
        manifest,
        engines={name: e.entry for name, e in exported.items()},
        gates=gates.verdicts,
        action_error=error,
        tolerance=allowed | {ACTIONS: allowed[DENOISED]},
        quantization=replace(
            manifest.quantization, stages=stages, observations=subject.evidence.describe()
        ),
    )
    _write_manifest(folder, manifest)
    read_bundle(folder, verify=anybody)
    return manifest


def _pack(subject: Subject, folder: Path, exported: Mapping[str, Exported]) -> Manifest:
    checkpoint, parts = subject.checkpoint, subject.parts
    config = checkpoint.config
    (folder / MANIFEST).unlink(missing_ok=True)  # of a run that was cut off
    tables = {name: _write_table(folder, name, table) for name, table in parts.tables.items()}
    shutil.copyfile(checkpoint.tokenizer_file, folder / TOKENIZER)
    golden = {f"stage/{name}": value for name, value in subject.tensors.items()}
    golden |= subject.golden
    np.savez_compressed(folder / GOLDEN, allow_pickle=False, **golden)
    files = {
        path.relative_to(folder).as_posix(): FileEntry(
            sha256=sha256_of(path), bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    tail = len(checkpoint.tail_ids(str(golden["instruction"])))
    manifest = Manifest(
        policy=config.model_type,
        recipe=_recipe(subject.recipe.fitted(subject.rules)),
        license=config.license,
        description=config.description,
        source_sha256=checkpoint.sha256,
        twin_of="",
        graph=parts.graph,
        dependencies=parts.graph.listed_dependencies,
        statistics={
            name: {kind: entry[kind] for kind in KINDS}
            for name, entry in checkpoint.statistics.items()
        },
        tables=tables,
        engines={name: e.entry for name, e in exported.items()},
        files=files,
        padded_share=parts.padded_share(tail),
        tolerance={},
        quantization=_describe(subject.rules, exported),
        tool_versions=versions(),
    )  # fmt: skip
    _write_manifest(folder, manifest)
    return manifest


def _write_table(folder: Path, name: str, numbers: torch.Tensor) -> Table:
    """As float32, some rows at a time."""
    path, rows = folder / (EMBEDDING if name == TOKENS else f"{name}.bin"), Rows(numbers)
    with path.open("wb") as file:
        for start in range(0, len(rows), ROWS):
            rows[start : start + ROWS].tofile(file)
    return Table(file=path.name, shape=rows.shape, dtype="float32")


def engine_bytes(manifest: Manifest) -> int:
    """Of all files in engines/."""
    return sum(f.bytes for name, f in manifest.files.items() if name.startswith("engines/"))


def _recipe(recipe: Recipe) -> RecipeEntry:
    return RecipeEntry(
        name=recipe.name,
        target=recipe.target,
        purpose=recipe.purpose,
        base=recipe.base,
        softmax=recipe.softmax,
        tolerance=recipe.tolerance,
        rules=tuple((r.pattern, r.format, r.method) for r in recipe.rules),
    )


def _describe(rules: Mapping[str, Rule], exported: Mapping[str, Exported]) -> Quantization:
    return Quantization(
        layers=dict(sorted(Counter(f"{r.format} {r.method}" for r in rules.values()).items())),
        precisions={
            name: dict(sorted(Counter(map(str, e.precisions.values())).items()))
            for name, e in exported.items()
        },
        nodes={name: e.nodes for name, e in exported.items() if e.nodes is not None},
        islands={name: dict(e.islands) for name, e in exported.items() if e.islands},
    )


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_bytes(manifest.to_json())


class _Bar:
    """Of the steps of one export: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._lines = None if console.is_terminal else Progress(console.file)
        self._bar = rich.progress.Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, name: str) -> None:
        """Something else begins."""
        if self._lines is not None:
            self._lines.step(name)
        self._bar.update(self._task, advance=1, description=name)

    def expect(self, total: int) -> None:
        """So many steps will follow."""
        self._bar.update(self._task, total=total, completed=0)


def _say(console: Console, words: str) -> None:
    """A line as it is, to be copied: not wrapped, and no brackets of a path taken for colours."""
    console.print(words, soft_wrap=True, markup=False)


def _print_table(console: Console, manifest: Manifest, out: Path) -> None:
    table = Printed(title=Text(f"{out} ({manifest.recipe.name})"))
    for column in ("engine", "parameters", "bytes", "parity", "weights", "compile"):
        left = column in ("engine", "weights", "compile")
        table.add_column(column, justify="left" if left else "right")
    for name, parts in networks(manifest).items():
        kinds = sum((Counter(manifest.quantization.precisions[p]) for p in parts), Counter[str]())
        table.add_row(
            name,
            f"{sum(engine.parameters for engine in parts.values()):,}",
            f"{sum(file_bytes(manifest, engine) for engine in parts.values()):,}",
            f"{max(engine.parity for engine in parts.values()):.1e}",
            ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
            "; ".join(dict.fromkeys(engine.compiled for engine in parts.values())),
        )
    console.print(table)
    padded = ", ".join(f"{k} {v:.0%}" for k, v in manifest.padded_share.items())
    _say(
        console,
        f"actions against the float32 reference: {manifest.action_error:.1e}; engines: "
        f"{engine_bytes(manifest) / 1e6:.1f} MB; padding: {padded}",
    )
    _say(console, largest_of({n: file_bytes(manifest, e) for n, e in manifest.engines.items()}))
    for words in memory_plan(Bundle(out, manifest)):
        _say(console, f"on a GPU: {words}")
    for name, verdict in manifest.gates.items():
        _say(console, f"gate {name}: {verdict}")
    for name, tensors in manifest.quantization.islands.items():
        worst = max(tensors, key=lambda t: tensors[t])
        _say(
            console,
            f"float32 islands in {name}: {len(tensors)} tensors, {worst} reaches "
            f"{tensors[worst]:.3g}",
        )
    _say(console, f"weights: {manifest.description or 'undescribed'}; licence: {manifest.license}")
