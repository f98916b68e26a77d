"""One engine from module to file: traced, compared, lowered, audited, compiled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import onnx
from numpy.typing import NDArray

from export.engines.audit import check_target
from export.engines.compile_check import Compiled, check_compiles
from export.engines.join import nodes_of
from export.engines.lower import float32_nodes, lower, modules_beside
from export.engines.onnx_file import OnnxFile, export_graph, save
from export.engines.products import Contents, Precision, read_contents
from export.engines.ranges import leaves_float16, scan_ranges
from export.engines.scratch import unfused_scratch_bytes
from export.errors import ExportError
from export.gates import Gates
from export.kept import Kept
from models.networks.engines import EngineSpec
from models.stored import SHELF, plain
from quant.recipes import FLOAT32_PART, Recipe, Rule
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.parity import engine_errors
from runtime.bundle import EngineEntry
from runtime.graph import Graph
from runtime.storage.files import sync

NATIVE_OPSET = 18
"""What the exporter writes without a converter."""
INT4_OPSET = 21
"""The first that has blocks of int4. Only engines that hold some: ONNX Runtime's optimizer fails on
int8 inputs in this one."""
LOWERED_OPSET = 20
"""The newest that TensorRT 10.3 reads, and new enough for Q/DQ on bfloat16."""


@dataclass(frozen=True, slots=True)
class Exported:
    """An engine's file and what was found out about it."""

    entry: EngineEntry
    file: OnnxFile
    parity: Mapping[str, float]
    """Per stage, the float32 graph against its module."""
    contents: Contents
    """Of the finished file: every product with a weight."""
    islands: Mapping[str, float] = field(default_factory=dict)
    """Tensors that stay float32 because float16 cannot hold them, and their largest magnitude."""
    island_layers: Collection[str] = ()
    """The policy's layers that read or make one of them, and so compute in float32."""
    nodes: tuple[int, int] | None = None
    """As traced, and after layers came to share inputs; None where none are rounded."""

    @property
    def precisions(self) -> Mapping[str, Precision]:
        """Of every weight in the finished file."""
        return {product.weight: product.precision for product in self.contents.products}


@dataclass(frozen=True, slots=True)
class EngineExporter:
    """What the engines of one export have in common."""

    recipe: Recipe
    rules: Mapping[str, Rule]
    """Of every linear layer of the policy."""
    graph: Graph
    tensors: Mapping[str, NDArray[Any]]
    """Of the quantized modules on the golden observation."""
    observed: Sequence[Mapping[str, NDArray[Any]]]
    """The same on observations for the range scan."""
    allowed: Mapping[str, float]
    """Per stage, relative error of the engine against its module before it is lowered."""
    folder: Path
    """Of the bundle."""
    gates: Gates
    compile_check: bool
    kept: Kept

    def export(
        self, name: str, spec: EngineSpec, names: Mapping[str, str], step: Callable[[str], None]
    ) -> Exported:
        """Write one engine.

        Args:
            names: path of a layer in the module -> its name in the policy.

        Raises:
            ExportError: a gate failed, or the compiler refuses the engine.
        """
        path = self.folder / "engines" / f"{name}.onnx"
        if not path.is_file():
            self.kept.forget(f"engine {name}")
        found = msgspec.msgpack.decode(
            self.kept.record(
                f"engine {name}",
                lambda: msgspec.msgpack.encode(self._make(name, path, spec, names, step)),
            ),
            type=_Found,
        )
        self._judge(name, found.parity)
        return Exported(
            entry=found.entry,
            file=OnnxFile(path, found.entry.parameters, found.num_bytes),
            parity=found.parity,
            contents=read_contents(path),
            islands=found.islands,
            island_layers=found.island_layers,
            nodes=found.nodes,
        )

    def _make(
        self,
        name: str,
        path: Path,
        spec: EngineSpec,
        names: Mapping[str, str],
        step: Callable[[str], None],
    ) -> _Found:
        """The engine's files."""
        step(f"{name}: export")
        has_int4 = any(self.rules[n].format == "w4" for n in names.values() if n in self.rules)
        opset = INT4_OPSET if has_int4 else NATIVE_OPSET
        is_lowered = self.recipe.base != "float32"
        first = self.kept.folder("float32") / path.name if is_lowered else path
        file, nodes = _trace(spec, first, opset=opset, keep_scopes=is_lowered)
        step(f"{name}: parity")
        parity = engine_errors(OnnxRuntimeBackend(), first, self.graph, self.tensors)
        self._judge(name, parity)
        islands: dict[str, float] = {}
        island_layers: set[str] = set()
        if is_lowered:
            step(f"{name}: lower")
            opset = max(opset, LOWERED_OPSET)
            file, islands, beside = self._lower(name, spec, names, first, path, opset)
            island_layers = {names[path] for path in beside & names.keys()}
        try:
            check_target(path, self.recipe.target)
        except ValueError as error:
            raise ExportError(f"engine {name}: {error}") from None
        step(f"{name}: compile")
        compiled = check_compiles(path) if self.compile_check else Compiled(True, "not checked")
        if not compiled.ok:
            raise ExportError(f"engine {name} does not compile:\n{compiled.message}")
        for written in file.files:
            sync(written)  # before the record says that it is there
        entry = EngineEntry(
            file=path.relative_to(self.folder).as_posix(),
            inputs=spec.inputs,
            outputs=spec.outputs,
            parameters=file.parameters,
            parity=max(parity.values()),
            compiled=compiled.message,
            unfused_scratch_bytes=unfused_scratch_bytes(path),
        )
        return _Found(entry, file.num_bytes, parity, islands, sorted(island_layers), nodes)

    def _judge(self, name: str, errors: Mapping[str, float]) -> None:
        worst = max(errors, key=lambda stage: errors[stage] / self.allowed[stage])
        allowed = self.allowed[worst]
        self.gates.judge(
            "engine_parity",
            errors[worst] <= allowed,
            f"at most {max(self.allowed.values()):.1e}",
            f"engine {name}: stage {worst!r} differs from its module by {errors[worst]:.2e}, "
            f"allowed {allowed:.1e}",
        )

    def _lower(
        self,
        name: str,
        spec: EngineSpec,
        names: Mapping[str, str],
        first: Path,
        path: Path,
        opset: int,
    ) -> tuple[OnnxFile, dict[str, float], set[str]]:
        """The file, its islands, and the modules beside them."""
        islands: dict[str, float] = {}
        if self.recipe.base == "float16":
            islands = leaves_float16(scan_ranges(first, self._inputs(name)))
        model = onnx.load(first)
        for left in first.parent.glob(f"{first.stem}.*"):
            left.unlink()
        exact = {path for path, layer in names.items() if self._is_float32(layer)}
        kept = float32_nodes(
            model, spec.module, modules=exact, tensors=islands, softmax=self.recipe.softmax
        )
        words, beside = _describe(model, islands), modules_beside(model, islands)
        try:
            lower(model, self.recipe.base, kept, opset)
        except ValueError as error:
            raise ExportError(f"engine {name}: {error}") from None
        return save(model, path), words, beside

    def _is_float32(self, module: str) -> bool:
        """Linear layers as the recipe says; beside them, all of the action head."""
        if module in self.rules:
            return self.rules[module].format == "float32"
        return module.startswith(FLOAT32_PART)

    def _inputs(self, name: str) -> list[dict[str, NDArray[Any]]]:
        """What the engine is given on every observation, by every stage that calls it."""
        return [
            {port: tensors[source] for port, source in stage.inputs.items()}
            for tensors in (self.tensors, *self.observed)
            for stage in self.graph.stages
            if stage.engine == name
        ]


class _Found(msgspec.Struct, frozen=True):
    """Of `Exported`, what the files do not say."""

    entry: EngineEntry
    num_bytes: int
    parity: dict[str, float]
    islands: dict[str, float]
    island_layers: list[str]
    nodes: tuple[int, int] | None


def _trace(
    spec: EngineSpec, path: Path, *, opset: int, keep_scopes: bool
) -> tuple[OnnxFile, tuple[int, int] | None]:
    """The file, and its nodes before and after inputs came to be shared.

    All weights of the module are in memory here, and only here; others make room for them.
    """
    SHELF.clear()
    model = export_graph(replace(spec, module=plain(spec.module)), opset=opset)
    nodes = nodes_of(model)
    return save(model, path, keep_scopes=keep_scopes), nodes


def with_parity(exported: Exported, parity: Mapping[str, float]) -> Exported:
    """The same engine, judged by its lowered file."""
    entry = msgspec.structs.replace(exported.entry, parity=max(parity.values()))
    return replace(exported, entry=entry)


def _describe(model: onnx.ModelProto, islands: Mapping[str, float]) -> dict[str, float]:
    """Tensors by a name that says where they come from."""
    made = {name: node for node in model.graph.node for name in node.output}
    return {
        f"{made[n].op_type} {made[n].name} -> {n}" if n in made else n: v
        for n, v in islands.items()
    }
