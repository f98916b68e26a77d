"""anchorvla build: its arguments, its table, its exit code."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ..bundle import Bundle
from .build import MB, BuiltPlan, CheckEngine, InspectEngine, build


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `anchorvla build`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--backend",
        choices=["tensorrt", "tensorrt_rtx"],
        default="tensorrt",
        help="compiler (default tensorrt)",
    )
    parser.add_argument(
        "--capability",
        help="compile for a GPU that is not here, such as SM86, to see whether it compiles: "
        "tensorrt_rtx only, and its plans run on no Jetson",
    )
    parser.add_argument(
        "--workspace-mb",
        type=int,
        help="scratch memory to offer the compiler (default: from what is free)",
    )


def main_build(
    options: argparse.Namespace,
    *,
    bundle: Bundle | None = None,
    check_engine: CheckEngine | None = None,
    inspect_engine: InspectEngine | None = None,
) -> int:
    """`anchorvla build`: 0 if every plan may be used, 1 if one may not.

    With `--capability` nothing can be measured: 0 if all compiled.

    Args:
        bundle: the one that `options` names, where it was verified already: that reads all of it.
    """
    if options.workspace_mb is not None and options.workspace_mb <= 0:
        raise ValueError(f"--workspace-mb must be positive, got {options.workspace_mb}")
    rows = build(
        bundle or options.bundle,
        backend=options.backend,
        capability=options.capability,
        workspace_bytes=options.workspace_mb and options.workspace_mb * MB,
        check_engine=check_engine,
        inspect_engine=inspect_engine,
        say=lambda line: print(line, flush=True),
    )
    print(table(rows))
    refused = [row.engine for row in rows if row.verdict.kind != "pass"]
    if not refused or (options.capability and not any(_failed(row) for row in rows)):
        return 0
    print(
        f"error: the runtime refuses {len(refused)} of {len(rows)} plans: {', '.join(refused)}; "
        "the table says why. Build again where the GPU is, and if parity fails again, export again",
        file=sys.stderr,
    )
    return 1


def table(rows: Sequence[BuiltPlan]) -> str:
    """What was built, for people."""
    head = ("engine", "ONNX bytes", "plan bytes", "seconds", "workspace", "parity of allowed")
    lines = [head, *map(_cells, rows)]
    name, *numbers, _ = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [
                first.ljust(name),
                *(cell.rjust(width) for cell, width in zip(middle, numbers, strict=True)),
                last,
            ]
        )
        for first, *middle, last in lines
    )


def _cells(row: BuiltPlan) -> tuple[str, ...]:
    record = row.record
    figures = [
        f"{stage} {record.parity.get(stage, math.inf):.1e} of {allowed:.1e}"
        for stage, allowed in record.allowed.items()
    ]
    return (
        row.engine,
        f"{row.onnx_bytes:,}",
        f"{record.plan_bytes:,}",
        f"{record.seconds:.1f}" if row.was_compiled else "kept",
        f"{record.workspace_bytes // MB:,} MB",
        f"{', '.join(figures) or row.verdict}{' FAIL' * _failed(row)}; layers: {record.layers}",
    )


def _failed(row: BuiltPlan) -> bool:
    return row.verdict.kind == "fail"
