"""Compiled plans of a bundle: where they lie, what they were made for, and when one may be used.

A plan is `plans/<slug>/NAME.plan` with a record beside it, `NAME.json`. `read_plan` hands out
bytes only if they are whole, were made from this bundle's ONNX for exactly this machine, and
passed their parity check: TensorRT runs native code of a plan and does not notice tampering. The
record is not signed: it protects from damage and mix-ups, not from somebody who may write into
the bundle's folder. Nor from one who writes into the file between the hash and TensorRT: a plan is
mapped and not copied, because on a board its copy would take memory that its weights need.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..bundle import PLANS, Bundle, Manifest, Verdict, onnx_files
from ..errors import EngineError
from ..storage.files import beside
from .folder import how_to_build
from .key import PlanKey

PARITY_FACTOR = 1.5
"""Times the error that export measured which a plan may have: another order of summation."""
MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRecord:
    """What is known about a plan; kept beside it as JSON."""

    engine: str
    key: PlanKey
    onnx_sha256: str
    """Of the ONNX files it was made from, see `onnx_sha256`."""
    plan_sha256: str
    plan_bytes: int
    seconds: float
    """How long compiling took."""
    workspace_bytes: int
    parity: Mapping[str, float] = field(default_factory=dict)
    """Relative error of each stage that calls the engine, measured on this machine."""
    allowed: Mapping[str, float] = field(default_factory=dict)
    """For people: what counts is what the bundle's manifest allows, see `allowed_parity`."""
    not_measured: str = ""
    """Why there is no parity."""
    int8_products: Sequence[str] = ()
    """ONNX names of the products that should run on int8."""
    scratch_bytes: int | None = None
    """Memory for intermediate results; stages that never run at once share it."""
    layers: str = "not read"
    """What the engine's layers were seen to compute in."""
    power_mode: str = "unknown"
    """In which its kernels were timed and chosen. The plan runs in any with as many SMs."""
    peak_bytes: int = 0
    """Of memory, that compiling took at most; 0 in records older than this field."""

    def to_json(self) -> str:
        raw = asdict(self)
        raw["parity"] = {s: e if math.isfinite(e) else None for s, e in self.parity.items()}
        return json.dumps(raw, indent=1, allow_nan=False) + "\n"


def read_plan(
    bundle: Bundle, engine: str, key: PlanKey, *, accept_unmeasured: bool = False
) -> memoryview:
    """The bytes of a plan that may be deserialized here, as `map_plan` hands them out.

    Args:
        bundle: a verified one.
        key: of this machine.
        accept_unmeasured: take a plan without parity too. For compile checks, which run nothing.

    Raises:
        EngineError: there is no such plan, it was made for another machine or from other ONNX
            files, it is damaged, or its parity was not accepted. The message says what to run.
    """
    record = read_record(bundle, engine, key)
    verdict = judge(record, allowed_parity(bundle.manifest, engine))
    if verdict.kind == "fail" or (record.not_measured and not accept_unmeasured):
        raise EngineError(
            f"{plan_path(bundle, engine, key)}: parity of engine {engine!r}: {verdict}; a plan is "
            f"used only after it passed. {_rebuild(bundle)}"
        )
    return _read_verified(bundle, engine, key, record)


def read_record(bundle: Bundle, engine: str, key: PlanKey) -> PlanRecord:
    """The record of a plan made for this machine from this bundle's files.

    Raises:
        EngineError: as `read_plan`, for all but the plan's bytes and its parity.
    """
    path = plan_path(bundle, engine, key).with_suffix(".json")
    if not path.exists() or not path.with_suffix(".plan").exists():
        raise EngineError(_missing(bundle, engine, key))
    record = _parse_record(bundle, path)
    if record.key != key or record.engine != engine:
        raise EngineError(_other_machine(bundle, path, record, key))
    if record.onnx_sha256 != onnx_sha256(bundle.manifest, engine):
        raise EngineError(
            f"{path.with_suffix('.plan')}: compiled from another {engine}.onnx than the one in "
            f"this bundle. {_rebuild(bundle)}"
        )
    return record


def read_scratch(folder: Path) -> dict[str, int]:
    """Scratch memory of each engine whose plan in `folder` was inspected, in bytes."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_bytes())
        if record.get("scratch_bytes") is not None:
            found[path.stem] = int(record["scratch_bytes"])
    return found


def other_power_modes(bundle: Bundle, key: PlanKey, here: str) -> list[str]:
    """Modes in which plans of this machine were made, if not in this one. Unknown ones are none."""
    found = dict[str, None]()
    for engine in bundle.manifest.engines:
        try:
            found[read_record(bundle, engine, key).power_mode] = None
        except EngineError:  # `read_plan` tells it
            continue
    return [mode for mode in found if "unknown" not in (mode, here) and mode != here]


def judge(record: PlanRecord, allowed: Mapping[str, float]) -> Verdict:
    """Every stage of `allowed` needs a figure."""
    if record.not_measured:
        return Verdict(kind="not measured", figures=record.not_measured)
    wrong = [
        f"stage {stage!r} differs by {record.parity.get(stage, math.inf):.1e}, allowed {limit:.1e}"
        for stage, limit in allowed.items()
        if not record.parity.get(stage, math.inf) <= limit
    ]
    return Verdict(kind="fail" if wrong else "pass", figures="; ".join(wrong))


def allowed_parity(manifest: Manifest, engine: str) -> dict[str, float]:
    """Relative error that a plan may have, by stage that calls the engine.

    What export measured of the same file in ONNX Runtime times `PARITY_FACTOR`, and what rounding
    to bfloat16 does to the stage: kernels sum in other orders and round in other places.

    Raises:
        EngineError: the manifest holds no such figures.
    """
    figures, allowed = manifest.quantization.stages, {}
    for stage in manifest.graph.stages:
        if stage.engine != engine:
            continue
        seen = figures.get(stage.name)
        measured = None
        if seen is not None:
            measured = seen.parity if seen.rounding is None else seen.rounding
        if seen is None or measured is None:
            raise EngineError(
                f"the manifest holds no measured error of stage {stage.name!r}, so nothing can be "
                "compared with it; export the bundle again"
            )
        allowed[stage.name] = PARITY_FACTOR * measured + seen.noise_floor
    return allowed


def onnx_sha256(manifest: Manifest, engine: str) -> str:
    """Over the manifest's hashes of the engine's ONNX file and the weights beside it."""
    digest = hashlib.sha256()
    for name in onnx_files(manifest, engine):
        digest.update(f"{name} {manifest.files[name].sha256}\n".encode())
    return digest.hexdigest()


def plan_path(bundle: Bundle, engine: str, key: PlanKey) -> Path:
    """Where the plan of an engine lies, or would lie.

    Raises:
        EngineError: the bundle has no such engine, its name is no file name, or the folder is a
            link that may lead anywhere.
    """
    if engine not in bundle.manifest.engines:
        raise EngineError(
            f"{bundle.path}: no engine {engine!r}; it has {sorted(bundle.manifest.engines)}"
        )
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", engine):
        raise EngineError(f"{bundle.path}: the engine's name {engine!r} is no file name")
    folder = bundle.path / PLANS / key.folder_name
    path = folder / f"{engine}.plan"
    for part in (folder.parent, folder, path, path.with_suffix(".json")):
        if part.is_symlink():
            raise EngineError(f"{part}: a link; plans are plain files. Remove it and build again")
    return path


def publish_plan(bundle: Bundle, built: Path, record: PlanRecord) -> None:
    """Put a finished plan in its place, then its record: without it, a plan counts for nothing."""
    path = plan_path(bundle, record.engine, record.key)
    built.replace(path)
    with beside(path.with_suffix(".json")) as partial:
        partial.write_text(record.to_json())


def map_plan(path: Path) -> memoryview:
    """A plan's bytes, which are pages of its file: they take no memory that others could not have.

    The caller releases them, best in a `with` statement, which unmaps the file.

    Raises:
        ValueError: the file is empty.
    """
    with path.open("rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _read_verified(bundle: Bundle, engine: str, key: PlanKey, record: PlanRecord) -> memoryview:
    path = plan_path(bundle, engine, key)
    size = path.stat().st_size
    if size != record.plan_bytes or not size:
        raise EngineError(
            f"{path}: {size} bytes, its record says {record.plan_bytes}: damaged. "
            f"{_rebuild(bundle)}"
        )
    plan = map_plan(path)
    if hashlib.sha256(plan).hexdigest() != record.plan_sha256:
        plan.release()
        raise EngineError(f"{path}: SHA-256 differs from its record's: damaged. {_rebuild(bundle)}")
    return plan


def _parse_record(bundle: Bundle, path: Path) -> PlanRecord:
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, the limit is {MAX_RECORD_BYTES}")
        raw = json.loads(path.read_bytes())
        parity = {s: math.inf if e is None else float(e) for s, e in raw.pop("parity").items()}
        return PlanRecord(key=PlanKey(**raw.pop("key")), parity=parity, **raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EngineError(f"{path}: not a plan's record ({error!r}). {_rebuild(bundle)}") from None


def _missing(bundle: Bundle, engine: str, key: PlanKey) -> str:
    """Words for a plan that is not there: perhaps another machine's is."""
    for path in sorted((bundle.path / PLANS).glob(f"*/{engine}.json")):
        try:
            record = _parse_record(bundle, path)
        except EngineError:
            continue
        if record.key != key:
            return _other_machine(bundle, path, record, key)
    return f"{bundle.path}: no plan for engine {engine!r}; run: {how_to_build(bundle.path)}"


def _other_machine(bundle: Bundle, path: Path, record: PlanRecord, key: PlanKey) -> str:
    if record.engine != path.stem:
        return f"{path}: the record is of engine {record.engine!r}. {_rebuild(bundle)}"
    return (
        f"{path.with_suffix('.plan')}: built for {record.key}, but this machine is {key} "
        f"({'; '.join(key.differences(record.key))}). {_rebuild(bundle)}"
    )


def _rebuild(bundle: Bundle) -> str:
    return f"Rebuild it here: {how_to_build(bundle.path)}"
