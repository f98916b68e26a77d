"""Where and when a result comes from: machine, power mode, clocks, versions, commit, bundle."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from runtime.board.machine import Clocks, Machine, read_clocks
from runtime.bundle import Manifest
from runtime.engine import Backend
from runtime.pages.report import processor_name

PACKAGES = (
    *("msgspec", "numpy", "tokenizers", "pillow", "onnxruntime"),
    *("tensorrt", "pycuda", "cuda-python", "cuda-bindings"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What does not change while a bundle is measured."""

    board: str
    """Row of the budgets."""
    machine: Machine
    processor: str
    clocks: Clocks
    """At the beginning, with their limits."""
    versions: dict[str, str]
    """Of the installed packages."""
    backend: str
    way_to_wait: str
    """Of the host, for the GPU: see `runtime.engine.Backend.waits`."""
    commit: str
    date: str
    bundle_sha256: str
    """Over what decides about the actions."""
    recipe: str
    weights: str
    """What they are."""
    num_weights: int

    @property
    def power_mode(self) -> str:
        mode = self.machine.power_mode
        return "not applicable" if mode is None else f"{mode.name} ({mode.number})"


def read_provenance(
    manifest: Manifest, *, board: str, machine: Machine, backend: Backend, commit: str | None
) -> Provenance:
    """Look around.

    Args:
        manifest: of the bundle.
        board: row of the budgets.
        machine: what it is.
        backend: what runs the engines.
        commit: of the checkout that the tests come from, if somebody knows; asked of git otherwise.
    """
    return Provenance(
        board=board,
        machine=machine,
        processor=processor_name(),
        clocks=read_clocks(),
        versions=_versions(),
        backend=backend.name,
        way_to_wait=backend.waits,
        commit=commit or read_commit(),
        date=time.strftime("%Y-%m-%d %H:%M"),
        bundle_sha256=manifest.content_sha256,
        recipe=manifest.title,
        weights=manifest.description or "undescribed",
        num_weights=count_weights(manifest),
    )


def count_weights(manifest: Manifest) -> int:
    """Of all engines."""
    return sum(engine.parameters for engine in manifest.engines.values())


def read_commit() -> str:
    """Of the checkout that this file lies in; `unknown` outside of one or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
