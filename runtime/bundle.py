"""The bundle: a folder with a manifest, engines, embedding table, tokenizer and golden data.

This module owns the contract; `export` writes what it defines. Reading verifies everything before
any other code sees a byte of it: names stay inside the folder, no links, sizes and SHA-256 of
every file, and a graph that is sound and whose stored dependency sets are those it implies.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .functions import FUNCTIONS
from .graph import Graph, GraphError, Stage, Tensor

SCHEMA = 2
MANIFEST = "manifest.json"
PLANS = "plans"
"""Folder that a device adds; not part of the release, so not listed in the manifest."""
GOLDEN = "golden.npz"
MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineEntry:
    """One compiled network of the bundle."""

    file: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    parameters: int
    """Number of weights."""
    parity: float
    """Worst relative error against the torch module, measured at export."""
    compiled: str = "not checked"
    """What the compile check said."""
    unfused_scratch_bytes: int = 0
    """What intermediate results take at once if a compiler fuses nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything the runtime must know. See the module docstring of each user for the parts."""

    policy: str
    """Family of the policy."""
    recipe: str
    """Name of the precision recipe."""
    license: str
    """Licence of the weights."""
    description: str
    """What the weights are."""
    source_sha256: str
    """Hash over the checkpoint's weight files."""
    grid: tuple[int, int]
    """Patches of the image, rows and columns."""
    image: Mapping[str, Any]
    """Fields of `ImageConfig`."""
    prompt: Mapping[str, Any]
    """`tail` template, `end_ids`, and how many tokens the tail may take: `max_tail`."""
    normalization: Mapping[str, Any]
    """`action` and `state` modes and units, and `embodiments`: key -> statistics."""
    embedding: Mapping[str, Any]
    """`file`, `shape`, `dtype` of the token table."""
    graph: Graph
    engines: Mapping[str, EngineEntry]
    files: Mapping[str, FileEntry]
    padded_share: Mapping[str, float]
    """Share of the language engine's tokens that is padding for the golden prompt, per call."""
    tolerance: Mapping[str, float]
    """Relative error that a tensor may have against the exporter's modules: of all that engines
    write, and of the actions."""
    action_error: float = 0.0
    """Relative error of the golden actions against the float32 reference, measured at export."""
    gates: Mapping[str, str] = field(default_factory=dict)
    """Verdicts, with figures: each begins with `pass`, `fail` or `not measured`."""
    quantization: Mapping[str, Any] = field(default_factory=dict)
    """What the export decided and measured: `recipe`, `layers`, `precisions`, `islands`, `stages`,
    and `observations`: what it calibrated on, which were held out to judge by, which is golden.
    For people and reports, `anchorvla build` and `anchorvla doctor`; no tick depends on it."""
    tool_versions: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def failed_gates(self) -> dict[str, str]:
        """Gates that failed; such a bundle exists only because somebody forced its export."""
        return {name: words for name, words in self.gates.items() if words.startswith("fail")}

    @property
    def unmeasured(self) -> dict[str, str]:
        """Gates that nobody could judge: what they ask is open."""
        kind = "not measured"
        return {name: words for name, words in self.gates.items() if words.startswith(kind)}

    @property
    def content_sha256(self) -> str:
        """Over what decides about the actions: engines, embedding, tokenizer and graph.

        Not over golden data and measurements, so that the same policy keeps its hash.
        """
        digest = hashlib.sha256()
        for name, entry in sorted(self.files.items()):
            if name != GOLDEN:
                digest.update(f"{name} {entry.sha256}\n".encode())
        plain = _plain(self)
        for part in ("graph", "normalization", "image", "prompt", "grid"):
            digest.update(json.dumps(plain[part], sort_keys=True).encode())
        return digest.hexdigest()

    def to_json(self) -> str:
        return json.dumps(_plain(self), indent=1) + "\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of a listed file.

        Raises:
            BundleError: if the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: the manifest lists no {name!r}")
        return self.path / name


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleError: with the file and what is wrong with it. Nothing was loaded then.
    """
    folder = Path(path)
    try:
        manifest = _parse_manifest(folder / MANIFEST, _read_manifest(folder))
        _verify_files(folder, manifest)
    except OSError as error:
        raise BundleError(
            f"{error.filename or folder}: cannot be read ({error.strerror}); give this user the "
            "right to read the whole bundle, or copy it again"
        ) from error
    _verify_graph(folder / MANIFEST, manifest)
    return Bundle(folder, manifest)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> Any:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; make one with: python -m export build")
    if not path.is_file() or path.is_symlink():
        raise BundleError(f"{folder}: no {MANIFEST} in it, so this is no bundle")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: {path.stat().st_size} bytes, the limit is {MAX_MANIFEST_BYTES}")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON ({error}); copy the bundle again") from None


def read_golden(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The bundle's golden data: inputs, and the float32 reference's output of every stage."""
    with np.load(bundle.file(GOLDEN), allow_pickle=False) as golden:
        return {name: golden[name] for name in golden.files}


def _parse_manifest(path: Path, raw: Any) -> Manifest:
    if not isinstance(raw, dict) or "schema" not in raw:
        raise BundleError(f"{path}: not a bundle manifest: no 'schema' in it")
    if raw["schema"] != SCHEMA:
        raise BundleError(
            f"{path}: schema {raw['schema']!r}, this runtime reads {SCHEMA}; "
            "export the bundle again, or install the runtime it was made for"
        )
    raw = dict(raw)
    try:
        stored = raw.pop("dependencies")
        graph = _parse_graph(raw.pop("graph"))
        engines = {n: _parse_engine(e) for n, e in raw.pop("engines").items()}
        files = {n: FileEntry(**e) for n, e in raw.pop("files").items()}
        rows, columns = raw.pop("grid")
        grid = (int(rows), int(columns))
        manifest = Manifest(grid=grid, graph=graph, engines=engines, files=files, **raw)
    except (GraphError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BundleError(f"{path}: not a manifest of schema {SCHEMA}: {error!r}") from None
    implied = {name: sorted(needs) for name, needs in graph.dependencies.items()}
    if implied != stored:
        wrong = sorted(n for n in implied.keys() | stored.keys() if implied.get(n) != stored.get(n))
        raise BundleError(
            f"{path}: stored dependencies of {wrong} are not those the graph implies; "
            "a cache built on them would go stale: export the bundle again"
        )
    return manifest


def _parse_tensor(raw: Mapping[str, Any]) -> Tensor:
    part = raw.get("part_of")
    return Tensor(
        shape=tuple(int(side) for side in raw["shape"]),
        dtype=raw["dtype"],
        unit=raw.get("unit", ""),
        part_of=(str(part[0]), int(part[1])) if part else None,
    )


def _parse_engine(raw: Mapping[str, Any]) -> EngineEntry:
    ports = {
        kind: {n: _parse_tensor(t) for n, t in raw[kind].items()} for kind in ("inputs", "outputs")
    }
    return EngineEntry(**{**raw, **ports})


def _parse_graph(raw: Mapping[str, Any]) -> Graph:
    return Graph(
        inputs=tuple(raw["inputs"]),
        tensors={n: _parse_tensor(t) for n, t in raw["tensors"].items()},
        stages=tuple(Stage(**stage) for stage in raw["stages"]),
        outputs=tuple(raw["outputs"]),
    )


def _verify_files(folder: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or str(pure) != name:
            raise BundleError(f"{folder}: the manifest names {name!r}, which leaves the folder")
        path = folder / name
        inside = [folder / p for p in (pure, *pure.parents) if str(p) != "."]
        if any(p.is_symlink() for p in inside):
            raise BundleError(f"{path}: a link; a bundle holds plain files only")
        if not path.is_file():
            raise BundleError(f"{path}: missing; copy the bundle again")
        if path.stat().st_size != entry.bytes:
            raise BundleError(
                f"{path}: {path.stat().st_size} bytes, the manifest says {entry.bytes}; "
                "copy the bundle again"
            )
        if sha256_of(path) != entry.sha256:
            raise BundleError(f"{path}: SHA-256 differs from the manifest's; copy the bundle again")
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        known = name == MANIFEST or name in manifest.files or name.split("/")[0] == PLANS
        if not known and not path.is_dir():
            raise BundleError(f"{path}: not in the manifest; remove it")


def _verify_graph(path: Path, manifest: Manifest) -> None:
    files = [manifest.embedding["file"], *(e.file for e in manifest.engines.values())]
    for name in (*files, "tokenizer.json", "golden.npz"):
        if name not in manifest.files:
            raise BundleError(f"{path}: lists no {name!r}")
    for stage in manifest.graph.stages:
        if stage.function is not None and stage.function not in FUNCTIONS:
            raise BundleError(
                f"{path}: stage {stage.name!r} needs the host function {stage.function!r}, which "
                f"this runtime lacks; it has {sorted(FUNCTIONS)}. Install a newer runtime"
            )
        if stage.engine is None:
            continue
        if stage.engine not in manifest.engines:
            raise BundleError(f"{path}: stage {stage.name!r} needs unknown engine {stage.engine!r}")
        entry = manifest.engines[stage.engine]
        for ports, used in ((entry.inputs, stage.inputs), (entry.outputs, stage.outputs)):
            if ports.keys() != used.keys():
                raise BundleError(
                    f"{path}: stage {stage.name!r} binds {sorted(used)}, engine {stage.engine!r} "
                    f"has {sorted(ports)}"
                )
            for port, name in used.items():
                want, got = ports[port], manifest.graph.tensors[name]
                if (want.shape, want.dtype) != (got.shape, got.dtype):
                    raise BundleError(
                        f"{path}: stage {stage.name!r} binds {name!r} {got.dtype} "
                        f"{list(got.shape)} to port {port!r}, which is {want.dtype} "
                        f"{list(want.shape)}"
                    )


def _plain(manifest: Manifest) -> dict[str, Any]:
    graph = manifest.graph

    def tensor(t: Tensor) -> dict[str, Any]:
        fields: dict[str, Any] = {"shape": list(t.shape), "dtype": t.dtype}
        if t.unit:
            fields["unit"] = t.unit
        if t.part_of:
            fields["part_of"] = list(t.part_of)
        return fields

    def stage(s: Stage) -> dict[str, Any]:
        fields = {"name": s.name, "engine": s.engine, "function": s.function}
        maps = {"inputs": dict(s.inputs), "outputs": dict(s.outputs), "params": dict(s.params)}
        return {k: v for k, v in {**fields, **maps}.items() if v}

    def engine(e: EngineEntry) -> dict[str, Any]:
        return {
            "file": e.file,
            "inputs": {n: tensor(t) for n, t in e.inputs.items()},
            "outputs": {n: tensor(t) for n, t in e.outputs.items()},
            "parameters": e.parameters,
            "parity": e.parity,
            "compiled": e.compiled,
            "unfused_scratch_bytes": e.unfused_scratch_bytes,
        }

    plain: dict[str, Callable[[Any], Any]] = {
        "graph": lambda g: {
            "inputs": list(g.inputs),
            "tensors": {n: tensor(t) for n, t in g.tensors.items()},
            "stages": [stage(s) for s in g.stages],
            "outputs": list(g.outputs),
        },
        "engines": lambda entries: {n: engine(e) for n, e in entries.items()},
        "files": lambda entries: {
            n: {"sha256": e.sha256, "bytes": e.bytes} for n, e in entries.items()
        },
    }
    names = ("schema", *(n for n in Manifest.__slots__ if n != "schema"))
    result = {n: plain.get(n, lambda v: v)(getattr(manifest, n)) for n in names}
    result["dependencies"] = {n: sorted(needs) for n, needs in graph.dependencies.items()}
    return result
