"""anchorvla build BUNDLE: compile the engines of a bundle into plans for this machine.

One process per engine, the largest first: it needs the largest piece of memory, and memory that was
in use comes back in pieces. A plan that is there, whole and made for this machine from this bundle
is kept, so a build that was interrupted goes on where it was. A plan counts only after the stages
that use it were compared with the exporter's figures; without a GPU nothing is compared, and the
runtime refuses such plans.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..board.machine import meminfo
from ..bundle import PLANS, Bundle, Verdict, onnx_files, read_bundle
from ..errors import EngineError
from ..storage.files import sweep
from .audit import audit_layers
from .compiler import Compiled, CompileSpec, compile_apart, load_tensorrt
from .diagnosis import FREE_MEMORY, OutOfMemory
from .folder import check_disk, disk_errors, exclusive, how_to_build
from .key import PlanKey, current_key, current_power_mode
from .record import (
    PlanRecord,
    allowed_parity,
    judge,
    map_plan,
    onnx_sha256,
    other_power_modes,
    plan_path,
    publish_plan,
    read_plan,
    read_record,
)

MB = 1 << 20
RETRIES = 3
RESERVE_BYTES = 512 * MB
"""Left to everything else on the machine."""
WEIGHT_COPIES = 3
"""Of the weights while compiling: a 5.5 GB engine was seen to take 16 GB."""
MAX_WORKSPACE_BYTES = 8192 * MB
MIN_WORKSPACE_BYTES = 64 * MB
NO_GPU = "no GPU here"

CheckEngine = Callable[[str, memoryview], Mapping[str, float]]
"""(ONNX path, plan) -> relative error of every stage that calls the engine, on the golden data."""
InspectEngine = Callable[[memoryview], tuple[str, int]]
"""Plan -> what `EngineInspector.get_engine_information` says as JSON, and bytes of scratch memory
that a context of it needs."""


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """One row of the table."""

    engine: str
    onnx_bytes: int
    record: PlanRecord
    verdict: Verdict
    """`pass`, `fail: ...` or `not measured: ...`."""
    was_compiled: bool


def build(
    bundle: Bundle | str | os.PathLike[str],
    *,
    backend: str = "tensorrt",
    capability: str | None = None,
    key: PlanKey | None = None,
    workspace_bytes: int | None = None,
    check_engine: CheckEngine | None = None,
    inspect_engine: InspectEngine | None = None,
    free_bytes: Callable[[], int] | None = None,
    say: Callable[[str], None] = print,
) -> list[BuiltPlan]:
    """Compile what is not compiled yet; a row per engine of the bundle.

    Args:
        bundle: whose folder `plans` is written to; verified here if it is a path.
        backend: `tensorrt` or `tensorrt_rtx`.
        capability: such as `SM86`: compile for a GPU that need not be there, to see whether it
            compiles. TensorRT for RTX only.
        key: of this machine, asked of it if not given.
        workspace_bytes: scratch memory to begin with; from what is free if not given.
        check_engine: compares a plan with the golden data. None where there is no GPU.
        inspect_engine: says what a plan's layers compute in. None: not read.
        free_bytes: what is free now; the system's available memory if not given.
        say: takes a line of progress.

    Raises:
        BundleError: nothing was compiled then.
        EngineError: an engine does not compile, another build is under way, or the disk is full
            or read-only. Plans that were finished stay.
        ValueError: `capability` with another backend than `tensorrt_rtx`.
    """
    if not isinstance(bundle, Bundle):
        bundle = read_bundle(bundle)
    if capability is not None and backend != "tensorrt_rtx":
        raise ValueError(
            f"capability {capability!r} needs backend 'tensorrt_rtx', got {backend!r}: "
            "TensorRT builds for the GPU it runs on, and for no other"
        )
    if key is None:
        key = current_key(backend) if capability is None else _absent_gpu(backend, capability)
    with disk_errors(bundle), exclusive(bundle):
        for left in (bundle.path / PLANS).glob("*/*"):
            if left.suffix in (".new", ".partial"):  # of a build that was killed: we hold the lock
                left.unlink()
        return _Builder(
            bundle=bundle,
            key=key,
            capability=capability,
            workspace_bytes=workspace_bytes,
            check_engine=check_engine,
            inspect_engine=inspect_engine,
            free_bytes=free_bytes or available_memory,
            say=say,
            power_mode="none" if capability else current_power_mode(),
        ).run()


def workspace_for(free_bytes: int, weight_bytes: int) -> int:
    """Scratch memory to offer when so much is free and an engine's weights are so large.

    A Jetson's GPU shares the memory with everything else, so what weights and other programs need
    is left out.
    """
    rest = free_bytes - WEIGHT_COPIES * weight_bytes - RESERVE_BYTES
    return max(MIN_WORKSPACE_BYTES, min(rest, MAX_WORKSPACE_BYTES))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that programs can still get without swapping."""
    found = meminfo(root).get("MemAvailable")
    if found is None:
        where = root / "proc/meminfo"
        raise EngineError(f"{where}: no MemAvailable in it; name a workspace: --workspace-mb")
    return found


@dataclass(kw_only=True)
class _Builder:
    """One build: what its engines have in common."""

    bundle: Bundle
    key: PlanKey
    capability: str | None
    workspace_bytes: int | None
    check_engine: CheckEngine | None
    inspect_engine: InspectEngine | None
    free_bytes: Callable[[], int]
    say: Callable[[str], None]
    power_mode: str
    compiled: list[tuple[int, float]] = field(default_factory=list)
    """ONNX bytes and seconds of every engine compiled so far."""

    def run(self) -> list[BuiltPlan]:
        engines = self.bundle.manifest.engines
        allowed = {name: allowed_parity(self.bundle.manifest, name) for name in engines}
        records = {name: self._kept(name) for name in engines}
        left = sum(self._onnx_bytes(name) for name, record in records.items() if record is None)
        check_disk(self.bundle.path, left)
        for mode in other_power_modes(self.bundle, self.key, self.power_mode):
            self.say(
                f"kept plans were tuned in power mode {mode}, this is {self.power_mode}: they run; "
                f"for plans of this mode remove {self.bundle.path / PLANS / self.key.folder_name}"
            )
        rows = {}
        for number, name in enumerate(sorted(engines, key=self._onnx_bytes, reverse=True), 1):
            kept, head = records[name], f"[{number}/{len(records)}] {name}"
            self.say(f"{head}: kept" if kept else f"{head}: compile{self._time_left(left)}")
            record = kept or self._compile(name, head)
            left -= 0 if kept else self._onnx_bytes(name)
            verdict = judge(record, allowed[name])
            rows[name] = BuiltPlan(name, self._onnx_bytes(name), record, verdict, kept is None)
        return [rows[name] for name in engines]

    def _kept(self, name: str) -> PlanRecord | None:
        """The record of a plan that need not be compiled; measured now if it was not before."""
        try:
            record = read_record(self.bundle, name, self.key)
            plan = read_plan(self.bundle, name, self.key, accept_unmeasured=True)
        except EngineError:
            return None
        with plan:
            if not record.not_measured or self.check_engine is None:
                return record
            record = self._measured(record, plan)
        publish_plan(self.bundle, plan_path(self.bundle, name, self.key), record)
        return record

    def _compile(self, name: str, head: str) -> PlanRecord:
        path = plan_path(self.bundle, name, self.key)
        built = path.with_suffix(".new")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            compiled, workspace = self._try(name, built, head)
            with map_plan(built) as plan:
                record = PlanRecord(
                    engine=name,
                    key=self.key,
                    onnx_sha256=onnx_sha256(self.bundle.manifest, name),
                    plan_sha256=hashlib.sha256(plan).hexdigest(),
                    plan_bytes=plan.nbytes,
                    seconds=compiled.seconds,
                    workspace_bytes=workspace,
                    int8_products=compiled.int8_products,
                    peak_bytes=compiled.peak_bytes,
                    power_mode=self.power_mode,
                )
                record = self._measured(record, plan)
            publish_plan(self.bundle, built, record)
        finally:
            built.unlink(missing_ok=True)
            sweep(built)
        self.compiled.append((self._onnx_bytes(name), compiled.seconds))
        return record

    def _try(self, name: str, built: Path, head: str) -> tuple[Compiled, int]:
        """Compile with less and less workspace; returns also how much it was in the end.

        Less is of no use to a kernel that wants more than was offered, nor where the same block
        was refused before: it is not workspace.
        """
        free = self.free_bytes()
        workspace = self.workspace_bytes or workspace_for(free, self._onnx_bytes(name))
        asked: list[int] = []
        failed: list[OutOfMemory] = []
        while len(asked) <= RETRIES:
            asked.append(workspace // MB)
            try:
                spec = self._spec(name, built, workspace)
                compiled = compile_apart(spec, _progress(head))
            except OutOfMemory as error:
                failed.append(error)
                self.say(f"{head}: out of memory with {workspace // MB} MB of workspace")
                if error.is_workspace or _is_one_block(failed):
                    break
                workspace //= 2
            except EngineError as error:
                raise EngineError(f"engine {name!r} does not compile: {error}") from None
            else:
                if compiled.timing_cache == "refused":
                    self.say(f"{head}: {spec.timing_cache} is another version's; begun anew")
                return compiled, workspace
        raise EngineError(
            f"engine {name!r}: out of memory, {failed[-1]}\n{free // MB} MB were free; asked for "
            f"{', '.join(map(str, asked))} MB of workspace in turn. {_remedy(failed)}, then go on "
            f"with: {how_to_build(self.bundle.path)}"
        )

    def _spec(self, name: str, built: Path, workspace_bytes: int) -> CompileSpec:
        return CompileSpec(
            onnx=str(self._onnx(name)),
            plan=str(built.resolve()),
            backend=self.key.backend,
            workspace_bytes=workspace_bytes,
            timing_cache=str(built.with_name("timing.cache").resolve()),
            capability=self.capability,
        )

    def _measured(self, record: PlanRecord, plan: memoryview) -> PlanRecord:
        """The record with what running the plan says about it."""
        if self.check_engine is None:
            return replace(record, not_measured=NO_GPU)
        return replace(
            record,
            parity=dict(self.check_engine(str(self._onnx(record.engine)), plan)),
            allowed=allowed_parity(self.bundle.manifest, record.engine),
            not_measured="",
            **self._inspected(plan, record.int8_products),
        )

    def _inspected(self, plan: memoryview, products: Collection[str]) -> dict[str, Any]:
        """Fields of the record."""
        if self.inspect_engine is None:
            return {}
        layers_json, scratch_bytes = self.inspect_engine(plan)
        try:
            wrong = audit_layers(layers_json, products)
        except ValueError as error:
            words = f"not read: {error}"
        else:
            right = len(products) - len(wrong)
            words = "; ".join([f"{right} of {len(products)} int8 products run on int8", *wrong])
        return {"layers": words, "scratch_bytes": scratch_bytes}

    def _time_left(self, remaining_bytes: int) -> str:
        """Engines take about as long as they are large."""
        if not self.compiled:
            return ""
        rate = sum(s for _, s in self.compiled) / sum(size for size, _ in self.compiled)
        return f", about {remaining_bytes * rate / 60:.1f} min left"

    def _onnx(self, name: str) -> Path:
        return self.bundle.engine(name).resolve()

    def _onnx_bytes(self, name: str) -> int:
        manifest = self.bundle.manifest
        return sum(manifest.files[file].bytes for file in onnx_files(manifest, name))


def _is_one_block(failed: list[OutOfMemory]) -> bool:
    """Is the last failure the one before, whatever the workspace was?"""
    blocks = [error.block_bytes for error in failed[-2:]]
    return len(blocks) == 2 and blocks[0] is not None and blocks[0] == blocks[1]


def _remedy(failed: list[OutOfMemory]) -> str:
    if failed[-1].is_workspace:
        return "A kernel wants more workspace than that: offer it (--workspace-mb)"
    words = FREE_MEMORY[0].upper() + FREE_MEMORY[1:]
    block = failed[-1].block_bytes
    if block is None:
        return f"{words} or add swap"
    which = "one block" if _is_one_block(failed) else "a block"
    return (
        f"What failed is {which} of {block / 1e6:.1f} MB. {words}; if that is not enough, export "
        "this engine in smaller parts, with fewer layers per part"
    )


def _absent_gpu(backend: str, capability: str) -> PlanKey:
    digits = re.fullmatch(r"SM(\d+)(\d)", capability)
    if digits is None:
        raise ValueError(f"capability must look like SM86, got {capability!r}")
    return PlanKey(
        gpu="none",
        compute_capability=f"{digits[1]}.{digits[2]}",
        num_sms=0,
        backend=backend,
        version=load_tensorrt(backend).__version__,
        cuda="none",
    )


def _progress(head: str) -> Callable[[str, int, int], None] | None:
    """A line that changes, where somebody watches."""
    if not sys.stdout.isatty():
        return None
    return lambda phase, done, of: print(f"\r{head}: {phase} {done}/{of}\x1b[K\r", end="")
