"""The bundle: a folder with a manifest, engines, embedding table, tokenizer and golden data.

This module owns the contract; `export` writes what it defines. Reading verifies everything before
any other code sees a byte of it: who signed it, names inside the folder, no links, size and SHA-256
of every file, and a graph that is sound and whose dependency sets are those it implies. ONNX files
alone may be left for later, for TensorRT never opens them; none is handed out unverified.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from .declarations import MADE, Tensor
from .errors import BundleError
from .functions.calls import check_call, constants
from .graph import Graph, Stage
from .storage.listed import check_hash, check_none_else, check_places, readable
from .storage.signature import SIGNATURE
from .storage.trust import check_trusted

SCHEMA = 2
MANIFEST = "manifest.json"
PLANS = "plans"
"""Folder that a device adds; not part of the release, so not listed in the manifest."""
GOLDEN = "golden.npz"
GOLDEN_STAGE = "stage/"
"""Before the name of a tensor in the golden data: the float32 reference's."""
MAX_MANIFEST_BYTES = 16 << 20
ITEM_TYPES = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
"""Of a table's numbers -> numpy's, which has no bfloat16."""

VerdictKind = Literal["pass", "fail", "not measured"]


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the parts of a manifest have in common: every field is there, and no other."""


class Verdict(Entry, frozen=True, kw_only=True):
    """A gate's answer."""

    kind: VerdictKind
    figures: str
    """What was measured and what is allowed, or why nothing was, in a few words."""

    def __str__(self) -> str:
        return f"{self.kind} ({self.figures})" if self.figures else self.kind


class EngineEntry(Entry, frozen=True, kw_only=True):
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


class FileEntry(Entry, frozen=True, kw_only=True):
    """One file of the bundle."""

    sha256: str
    bytes: int


class Table(Entry, frozen=True, kw_only=True):
    """Rows that host functions look up, such as token embeddings."""

    file: str
    shape: tuple[int, int]
    dtype: Literal["float32", "float16", "bfloat16"]


class StageFigures(Entry, frozen=True, kw_only=True, omit_defaults=True):
    """Relative errors of a stage's worst output, given exact inputs; None where not measured."""

    noise_floor: float
    """What bfloat16 alone does to it."""
    error: float
    """What quantization does to it."""
    allowed: float
    where: str
    """The observation of `error`."""
    final: float | None = None
    """Of a denoise step: what it alone does to the last step's result."""
    parity: float | None = None
    """Of its file against its module."""
    parity_allowed: float | None = None
    rounding: float | None = None
    """Of its lowered file against its module."""
    rounding_allowed: float | None = None


class RecipeEntry(Entry, frozen=True, kw_only=True):
    """The precision recipe that a bundle was exported by."""

    name: str
    target: str
    """What it is made for: a kind of GPU, or `cpu`."""
    purpose: str = ""
    """What it is for: accuracy, time or memory; empty in bundles older than this field."""
    base: Literal["float32", "float16", "bfloat16"]
    """What is computed in where nothing else is said."""
    softmax: Literal["float32", "base"] = "float32"
    tolerance: float
    """Relative error that a file may have against its module."""
    rules: tuple[tuple[str, str, str], ...]
    """Pattern of layer names, format, method; the first match decides."""


class Observations(Entry, frozen=True, kw_only=True):
    """What an export was shown."""

    calibrated_on: int
    """How many."""
    held_out: str
    """How those that it is judged by were kept from calibration, in words; empty if they were
    not."""
    judged_by: tuple[str, ...]
    """Where each was seen."""
    least: int
    """Held-out ones that are demanded."""
    golden: str
    unproven: str
    """Why they cannot show that a gate passes; empty if they can."""


class Quantization(Entry, frozen=True, kw_only=True):
    """What the export decided and measured. No tick depends on it."""

    layers: Mapping[str, int]
    """Linear layers by format and method."""
    precisions: Mapping[str, Mapping[str, int]]
    """Per engine: products with weights by format, read back from its file."""
    nodes: Mapping[str, tuple[int, int]] = {}
    """Per engine whose layers round their inputs: nodes as the layers were traced, one by one, and
    after those that read one tensor came to share its rounding and their product."""
    islands: Mapping[str, Mapping[str, float]]
    """Per engine: tensors that stay float32, and their largest magnitude."""
    stages: Mapping[str, StageFigures] = field(default_factory=dict)
    observations: Observations | None = None


class Manifest(Entry, frozen=True, kw_only=True):
    """Everything the runtime must know. See the module docstring of each user for the parts."""

    schema: int = SCHEMA
    policy: str
    """Family of the policy."""
    recipe: RecipeEntry
    license: str
    """Licence of the weights."""
    description: str
    """What the weights are."""
    source_sha256: str
    """Hash over the checkpoint's weight files."""
    twin_of: str
    """Content hash of the bundle whose rounding this one computes in float32; empty otherwise."""
    graph: Graph
    dependencies: Mapping[str, tuple[str, ...]]
    """Per tensor: the inputs it depends on, as the graph implies them."""
    statistics: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Per embodiment, by the name that stages know them by."""
    tables: Mapping[str, Table]
    engines: Mapping[str, EngineEntry]
    files: Mapping[str, FileEntry]
    padded_share: Mapping[str, float]
    """Share of the language engine's tokens that is padding for the golden prompt, per call."""
    tolerance: Mapping[str, float]
    """Relative error that a tensor may have against the exporter's modules: of all that engines
    write, and of the actions."""
    action_error: float = 0.0
    """Relative error of the golden actions against the float32 reference, measured at export."""
    gates: Mapping[str, Verdict] = field(default_factory=dict)
    quantization: Quantization
    tool_versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The recipe, what was asked for beside it, and whose twin it is."""
        softmax = f", softmax in {self.recipe.base}" if self.recipe.softmax == "base" else ""
        twin = f" (float32 twin of {self.twin_of[:16]})" if self.twin_of else ""
        return f"{self.recipe.name}{softmax}{twin}"

    @property
    def failed_gates(self) -> dict[str, Verdict]:
        """Gates that failed; such a bundle exists only because somebody forced its export."""
        return {name: verdict for name, verdict in self.gates.items() if verdict.kind == "fail"}

    @property
    def unmeasured(self) -> dict[str, Verdict]:
        """Gates that nobody could judge: what they ask is open."""
        return {n: verdict for n, verdict in self.gates.items() if verdict.kind == "not measured"}

    @property
    def content_sha256(self) -> str:
        """Over what decides about the actions: engines, tables, tokenizer, graph and statistics.

        Not over golden data and measurements, so that the same policy keeps its hash.
        """
        digest = hashlib.sha256()
        for name, entry in sorted(self.files.items()):
            if name != GOLDEN:
                digest.update(f"{name} {entry.sha256}\n".encode())
        for part in (self.graph, self.statistics, self.tables):
            digest.update(msgspec.json.encode(part, order="deterministic"))
        return digest.hexdigest()

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: what it hands out holds what the manifest says."""

    path: Path
    manifest: Manifest
    verified: dict[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """Files that were read, and the hash that they had."""

    @property
    def bytes_verified(self) -> int:
        """What was read to make sure."""
        return sum(self.manifest.files[name].bytes for name in self.verified)

    def file(self, name: str) -> Path:
        """Path of a listed file, which is verified now if it was not before.

        Raises:
            BundleError: the manifest does not list it, or it is damaged.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: the manifest lists no {name!r}")
        path, entry = self.path / name, self.manifest.files[name]
        if self.verified.get(name) != entry.sha256:
            with readable(self.path):
                check_hash(path, entry)
            self.verified[name] = entry.sha256
        return path

    def engine(self, name: str) -> Path:
        """Path of an engine's ONNX file; what opens it finds the weights beside it verified too.

        Raises:
            BundleError: as `file`.
        """
        return [self.file(file) for file in onnx_files(self.manifest, name)][0]


def read_bundle(
    path: str | os.PathLike[str],
    *,
    verify: Callable[[Path, bytes], object] = check_trusted,
    engines: bool = True,
) -> Bundle:
    """Read and verify a bundle.

    Args:
        path: its folder.
        verify: is given the folder and the manifest's bytes, which nothing has parsed yet, and
            raises `BundleError`; by default where this machine does not trust who signed them.
        engines: read the ONNX files too, most of a bundle. If not, they are verified when the
            bundle hands them out; that they are there and as large as they should be is checked.

    Raises:
        BundleError: with the file and what is wrong with it. Nothing was loaded then.
    """
    folder = Path(path)
    with readable(folder):
        data = _read_manifest(folder)
        verify(folder, data)
        manifest = _parse_manifest(folder / MANIFEST, data)
        check_places(folder, manifest.files)
        bundle = Bundle(folder, manifest)
        later = {f for n in manifest.engines if not engines for f in onnx_files(manifest, n)}
        for name in (name for name in manifest.files if name not in later):
            bundle.file(name)
        check_none_else(folder, {MANIFEST, SIGNATURE, *manifest.files}, but=PLANS)
        _verify_golden(bundle)
    return bundle


def onnx_files(manifest: Manifest, engine: str) -> list[str]:
    """Names of an engine's ONNX file and of the weights beside it, if there are."""
    file = manifest.engines[engine].file
    return [n for n in (file, file.removesuffix("onnx") + "weights") if n in manifest.files]


def read_golden(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The bundle's golden data: inputs, and the float32 reference's output of every stage."""
    with np.load(bundle.file(GOLDEN), allow_pickle=False) as golden:
        return {name: golden[name] for name in golden.files}


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; make one with: python -m export build")
    if not path.is_file() or path.is_symlink():
        raise BundleError(f"{folder}: no {MANIFEST} in it, so this is no bundle")
    with path.open("rb") as stream:
        data = stream.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        size = path.stat().st_size
        raise BundleError(f"{path}: {size} bytes, the limit is {MAX_MANIFEST_BYTES}: no manifest")
    return data


def _parse_manifest(path: Path, data: bytes) -> Manifest:
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON ({error}); copy the bundle again") from None
    if not isinstance(raw, dict) or "schema" not in raw:
        raise BundleError(f"{path}: not a bundle manifest: no 'schema' in it")
    if raw["schema"] != SCHEMA:
        raise BundleError(
            f"{path}: schema {raw['schema']!r}, this runtime reads {SCHEMA}; "
            "export the bundle again, or install the runtime it was made for"
        )
    try:
        manifest = msgspec.convert(raw, Manifest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BundleError(f"{path}: not a manifest of schema {SCHEMA}: {error}") from None
    try:
        _verify_graph(manifest)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    return manifest


def _verify_golden(bundle: Bundle) -> None:
    """Is there a golden value of all that the runtime feeds and compares?"""
    graph, path = bundle.manifest.graph, bundle.file(GOLDEN)
    wanted = {name for name, declared in graph.inputs.items() if declared.source not in MADE}
    wanted |= {graph.target, *(GOLDEN_STAGE + name for name in graph.engine_outputs)}
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise BundleError(f"{path}: damaged ({error}); copy the bundle again") from None
    if missing := sorted(wanted - names):
        raise BundleError(
            f"{path}: lacks {', '.join(missing)}, which the graph names; export the bundle again"
        )


def _verify_graph(manifest: Manifest) -> None:
    """Refuse a graph that this runtime could not load, feed and run."""
    graph = manifest.graph
    implied, stored = graph.listed_dependencies, manifest.dependencies
    if implied != stored:
        wrong = sorted(n for n in implied.keys() | stored.keys() if implied.get(n) != stored.get(n))
        raise BundleError(
            f"stored dependencies of {wrong} are not those the graph implies; "
            "a cache built on them would go stale: export the bundle again"
        )
    shape, dtype = graph.tensors[graph.target].shape, graph.tensors[graph.target].dtype
    if len(shape) != 2 or dtype != "float32":
        raise BundleError(
            f"output {graph.target!r}, the first, must be a chunk of actions float32 [T, A], "
            f"got {dtype} {list(shape)}"
        )
    if wide := [n for n in graph.outputs if graph.tensors[n].dtype == "bfloat16"]:
        raise BundleError(f"outputs {wide} are bfloat16, which numpy has not: cast them")
    prompts = [declared.prompt for declared in graph.inputs.values() if declared.prompt]
    files = [table.file for table in manifest.tables.values()]
    files += [engine.file for engine in manifest.engines.values()]
    for name in (*files, *(prompt.tokenizer for prompt in prompts), GOLDEN):
        if name not in manifest.files:
            raise BundleError(f"lists no {name!r}")
    for name, table in manifest.tables.items():
        width = np.dtype(ITEM_TYPES[table.dtype]).itemsize
        if manifest.files[table.file].bytes != table.shape[0] * table.shape[1] * width:
            raise BundleError(
                f"table {name!r}: {table.file} has not the size of {table.dtype} "
                f"{list(table.shape)}"
            )
    for stage in graph.stages:
        if stage.engine is None:
            _verify_call(stage, manifest)
        else:
            _verify_engine(stage, stage.engine, manifest)
    lacking = {graph.target, *graph.engine_outputs} - manifest.tolerance.keys()
    if manifest.tolerance and lacking:
        raise BundleError(f"no tolerance for {sorted(lacking)}: export the bundle again")


def _verify_call(stage: Stage, manifest: Manifest) -> None:
    """A call of a host function, with what it needs of the manifest."""
    check_call(stage, manifest.graph)
    params = constants(stage)
    table = getattr(params, "table", None)
    if table is not None:
        if table not in manifest.tables:
            raise BundleError(
                f"stage {stage.name!r} needs table {table!r}, there are {sorted(manifest.tables)}"
            )
        width = manifest.tables[table].shape[1]
        rows = manifest.graph.tensors[stage.outputs["embeddings"]].shape
        if rows[-1] != width:
            raise BundleError(
                f"stage {stage.name!r}: rows of {table!r} are {width} wide, not {rows[-1]}"
            )
    kind = getattr(params, "statistics", None)
    lacking = [name for name, found in manifest.statistics.items() if kind not in found]
    if kind is not None and (lacking or not manifest.statistics):
        raise BundleError(
            f"stage {stage.name!r} needs statistics {kind!r}, of every embodiment; "
            f"they are missing of {', '.join(lacking) or 'all, for there is none'}"
        )


def _verify_engine(stage: Stage, engine: str, manifest: Manifest) -> None:
    """What is bound to an engine's ports."""
    if engine not in manifest.engines:
        raise BundleError(f"stage {stage.name!r} needs unknown engine {engine!r}")
    entry = manifest.engines[engine]
    for ports, used in ((entry.inputs, stage.inputs), (entry.outputs, stage.outputs)):
        if ports.keys() != used.keys():
            raise BundleError(
                f"stage {stage.name!r} binds {sorted(used)}, engine {engine!r} has {sorted(ports)}"
            )
        for port, name in used.items():
            want, got = ports[port], manifest.graph.tensors[name]
            if (want.shape, want.dtype) != (got.shape, got.dtype):
                raise BundleError(
                    f"stage {stage.name!r} binds {name!r} {got.dtype} {list(got.shape)} to port "
                    f"{port!r}, which is {want.dtype} {list(want.shape)}"
                )
