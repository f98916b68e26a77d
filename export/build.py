"""Checkpoint -> bundle: split, export, prove each engine, compile it, pack.

The bundle appears whole or not at all: it is written beside its destination and renamed. A gate
that fails stops the export; no number is reported from an engine that failed its parity check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from export.compile_check import Compiled, check_compiles
from export.errors import ExportError
from export.onnx_file import write_onnx
from export.torch_engine import TorchEngine
from models.anchorvla4d import AnchorVLA4D
from models.checkpoint import Checkpoint, image_fields, load_checkpoint, normalizations, reference
from models.demo import EPISODES
from models.split import EngineSpec, Split, split
from quant.apply import quantize
from quant.calibrate import calibrate
from quant.recipes import RECIPES, Recipe
from runtime.bundle import MANIFEST, EngineEntry, FileEntry, Manifest, read_bundle, sha256_of
from runtime.check import relative_error
from runtime.functions import Resources
from runtime.image import grid_of
from runtime.interpreter import Interpreter
from runtime.onnxruntime_engine import HostMemory, OnnxRuntimeBackend
from runtime.policy import ACTIONS, Policy, bind_stages, draw_noise
from runtime.robot import Recording, load_recording

CALIBRATION_STRIDE = 6
"""Every so many frames of an episode one is calibrated on."""
NOISE_SEEDS = 8
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "tokenizers", "pillow")


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """One export."""

    recipe: str
    """Precision recipe; see `quant.recipes.RECIPES`."""

    checkpoint: Path
    """Folder with config.json, weights, tokenizer and statistics."""

    out: Path
    """Bundle folder to write; an old one there is replaced when the new one is complete."""

    image_size: tuple[int, int] = (256, 256)
    """Width and height of the camera image in pixels."""

    tokens: int = 112
    """Tokens per call of the language engine; the prompt is padded to it, which costs time."""

    golden: Path | None = None
    """Recorded episode whose frames become the golden observation; made-up ones by default."""

    calibration: Path = EPISODES
    """Folder of recorded episodes that show a quantized recipe what flows; prompts included."""

    compile_check: bool = True
    """Compile every engine with TensorRT for RTX, where that is installed."""

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"unknown recipe {self.recipe!r}; there are {sorted(RECIPES)}")
        if min(self.image_size) < 1:
            raise ValueError(f"image_size must be positive, got {self.image_size}")
        if self.tokens < 1:
            raise ValueError(f"tokens must be positive, got {self.tokens}")


def build(config: BuildConfig, console: Console | None = None) -> Path:
    """Export a bundle and print what was measured.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ExportError: another export holds the destination, the disk is too small, or a gate failed.
    """
    console = console or Console()
    recipe = RECIPES[config.recipe]()
    with _exclusive(config.out), _disk_errors(config.out), _progress(console) as progress:
        bar = progress.add_task("load checkpoint", total=None)
        checkpoint = load_checkpoint(config.checkpoint)
        grid = grid_of(config.image_size[1], config.image_size[0], checkpoint.image)
        exported = _in_precision(recipe, checkpoint, config)
        parts = split(exported, checkpoint.parts, grid, config.tokens)
        num_weights = sum(p.numel() for p in checkpoint.model.parameters())
        _check_disk(config.out, num_weights * 4)
        golden = make_golden(checkpoint, config)
        progress.update(bar, description="run the modules")
        tensors = run_modules(checkpoint, parts, grid, golden)
        golden |= {f"stage/{name}": value for name, value in tensors.items()}
        golden[ACTIONS] = _reference_actions(checkpoint, golden)
        folder = config.out.with_name(f"{config.out.name}.tmp-{os.getpid()}")
        with _temporary(folder):
            progress.update(bar, total=3 * len(parts.engines) + 2, completed=0)
            entries, rows = {}, []

            def step(description: str) -> None:
                progress.update(bar, advance=1, description=description)

            for name, spec in parts.engines.items():
                entries[name], row = _export_engine(
                    name, spec, parts, tensors, folder, recipe, config.compile_check, step
                )
                rows.append(row)
            step("pack")
            manifest = _pack(folder, checkpoint, parts, recipe, grid, entries, golden)
            step("run the bundle")
            chunk = _run_bundle(folder, golden)
            parity = relative_error(chunk, tensors[ACTIONS])
            if not parity <= recipe.chain_tolerance:
                raise ExportError(
                    f"the compiled policy differs from its modules by {parity:.2e}, allowed "
                    f"{recipe.chain_tolerance:.0e}, although every engine passed: a fault of the "
                    "graph"
                )
            error = relative_error(chunk, golden[ACTIONS])
            allowed = recipe.chain_tolerance
            if recipe.is_quantized:
                allowed = _noise_spread(checkpoint, golden) / 2
            if not error <= allowed:
                raise ExportError(
                    f"recipe {recipe.name} moves the actions by {error:.2e}, allowed {allowed:.1e}"
                    + (": half of what another noise seed moves them" * recipe.is_quantized)
                )
            gates = {"engine_parity": "pass", "end_to_end": f"pass ({error:.1e} of {allowed:.1e})"}
            manifest = dataclasses.replace(manifest, gates=gates, action_error=error)
            _write_manifest(folder, manifest)
            read_bundle(folder)
            _publish(folder, config.out)
    _print_table(console, rows, manifest, config.out, error)
    return config.out


def run_modules(
    checkpoint: Checkpoint,
    parts: Split,
    grid: tuple[int, int],
    golden: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Every tensor of the graph, computed by the torch modules on the golden observation."""
    memory = HostMemory(parts.graph)
    engines = {name: TorchEngine(spec) for name, spec in parts.engines.items()}
    robot = str(golden["robot"])
    state, action = normalizations(checkpoint.config, checkpoint.statistics[robot], robot)
    resources = Resources(
        embedding_VD=checkpoint.model.vlm.model.embed_tokens.weight.detach().numpy(),
        image=checkpoint.image,
        grid=grid,
        state=state,
        action=action,
    )
    interpreter = Interpreter(parts.graph, bind_stages(parts.graph, engines, memory, resources))
    for name in ("anchor", "frame", "state", "noise"):
        interpreter.set(name, golden[name])
    interpreter.set("instruction", checkpoint.tail_ids(str(golden["instruction"])))
    for leaf in parts.graph.outputs:
        interpreter.run(leaf)
    return {name: memory.host(name).copy() for name in parts.graph.tensors}


def make_golden(checkpoint: Checkpoint, config: BuildConfig) -> dict[str, NDArray[Any]]:
    """The observation that every parity check uses: anchor, frame, instruction, state, noise."""
    head = checkpoint.config.head
    robot = sorted(checkpoint.statistics)[0]
    noise = draw_noise(0, 0, (head.prediction_horizon, head.action_dim))
    if config.golden is not None:
        recording = load_recording(config.golden)
        frame = len(recording.images) // 2
        anchor, image = recording.images[0], recording.images[frame]
        state, instruction = recording.states[frame], recording.instruction
    else:
        anchor, image = (_made_up_image(seed, config.image_size) for seed in (1, 2))
        unit = np.random.Generator(np.random.Philox(key=3)).uniform(-1, 1, head.state_dim)
        to_policy, _ = normalizations(checkpoint.config, checkpoint.statistics[robot], robot)
        state = to_policy.to_robot(unit.astype(np.float32))
        instruction = "put the carrot on the plate"
    return {
        "anchor": anchor,
        "frame": image,
        "instruction": np.array(instruction),
        "state": state.astype(np.float32),
        "noise": noise,
        "robot": np.array(robot),
    }


def measure_parity(
    path: Path, engine: str, graph: Any, tensors: Mapping[str, NDArray[Any]]
) -> dict[str, float]:
    """Worst relative error of an ONNX file on each stage that calls it.

    Inputs are the modules' own tensors, so that no engine inherits another one's error.
    """
    backend = OnnxRuntimeBackend()
    loaded = backend.engine(path)
    errors = {}
    for stage in graph.stages:
        if stage.engine != engine:
            continue
        memory = HostMemory(graph)
        for name in stage.inputs.values():
            memory.host(name)[...] = tensors[name]
        loaded.bind(stage.inputs, stage.outputs, memory)()
        errors[stage.name] = max(
            relative_error(memory.host(name), tensors[name]) for name in stage.outputs.values()
        )
    return errors


@dataclass(frozen=True, slots=True)
class _Row:
    engine: str
    parameters: int
    num_bytes: int
    parity: float
    compiled: str


def _export_engine(
    name: str,
    spec: EngineSpec,
    parts: Split,
    tensors: Mapping[str, NDArray[Any]],
    folder: Path,
    recipe: Recipe,
    compile_check: bool,
    step: Callable[[str], None],
) -> tuple[EngineEntry, _Row]:
    step(f"{name}: export")
    file = write_onnx(spec, folder / "engines" / f"{name}.onnx", opset=recipe.opset)
    step(f"{name}: parity")
    errors = measure_parity(file.path, name, parts.graph, tensors)
    worst = max(errors, key=lambda stage: errors[stage])
    if not errors[worst] <= recipe.tolerance:
        raise ExportError(
            f"engine {name}: stage {worst!r} differs from its module by {errors[worst]:.2e}, "
            f"allowed {recipe.tolerance:.0e}; nothing was written"
        )
    step(f"{name}: compile")
    compiled = check_compiles(file.path) if compile_check else Compiled(True, "not checked")
    if not compiled.ok:
        raise ExportError(f"engine {name} does not compile:\n{compiled.message}")
    entry = EngineEntry(
        file=file.path.relative_to(folder).as_posix(),
        inputs=spec.inputs,
        outputs=spec.outputs,
        parameters=file.parameters,
        parity=errors[worst],
        compiled=compiled.message,
    )
    return entry, _Row(name, file.parameters, file.num_bytes, errors[worst], compiled.message)


def _pack(
    folder: Path,
    checkpoint: Checkpoint,
    parts: Split,
    recipe: Recipe,
    grid: tuple[int, int],
    entries: Mapping[str, EngineEntry],
    golden: Mapping[str, NDArray[Any]],
) -> Manifest:
    config = checkpoint.config
    table = checkpoint.model.vlm.model.embed_tokens.weight.detach().numpy()
    table.tofile(folder / "embedding.bin")
    shutil.copyfile(checkpoint.path / "tokenizer.json", folder / "tokenizer.json")
    np.savez_compressed(folder / "golden.npz", allow_pickle=False, **golden)
    files = {
        path.relative_to(folder).as_posix(): FileEntry(
            sha256=sha256_of(path), bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    n = config.normalization
    tail = len(checkpoint.tail_ids(str(golden["instruction"])))
    manifest = Manifest(
        policy=config.model_type,
        recipe=recipe.name,
        license=config.license,
        description=config.description,
        source_sha256=checkpoint.sha256,
        grid=grid,
        image=image_fields(checkpoint.image),
        prompt={
            "tail": checkpoint.parts.tail,
            "end_ids": list(checkpoint.parts.end_ids),
            "max_tail": parts.max_tail,
        },
        normalization={
            "action": {"modes": list(n.action), "units": list(n.action_units)},
            "state": {"modes": list(n.state), "units": list(n.state_units)},
            "robots": checkpoint.statistics,
        },
        embedding={"file": "embedding.bin", "shape": list(table.shape), "dtype": str(table.dtype)},
        graph=parts.graph,
        engines=entries,
        files=files,
        padded_share=parts.padded_share(tail),
        tolerance=recipe.chain_tolerance,
        tool_versions={"python": platform.python_version()}
        | {tool: importlib.metadata.version(tool) for tool in TOOLS},
    )
    _write_manifest(folder, manifest)
    return manifest


def _in_precision(recipe: Recipe, checkpoint: Checkpoint, config: BuildConfig) -> AnchorVLA4D:
    """The policy as the recipe wants it, calibrated on recorded episodes where it has to be."""
    if not recipe.is_quantized:
        return checkpoint.model
    recordings = [load_recording(path) for path in sorted(config.calibration.glob("*.npz"))]
    if not recordings:
        raise ExportError(
            f"{config.calibration}: no recorded episodes (.npz) to calibrate {recipe.name} on"
        )

    def run(recording: Recording, frame: int) -> object:
        head = checkpoint.config.head
        return reference(
            checkpoint,
            anchor=recording.images[0],
            frame=recording.images[frame],
            instruction=recording.instruction,
            state=recording.states[frame],
            noise=draw_noise(frame, 0, (head.prediction_horizon, head.action_dim)),
        )

    runs = [
        partial(run, recording, frame)
        for recording in recordings
        for frame in range(0, len(recording.images), CALIBRATION_STRIDE)
    ]
    return quantize(checkpoint.model, recipe, calibrate(checkpoint.model, runs))


def _noise_spread(checkpoint: Checkpoint, golden: Mapping[str, NDArray[Any]]) -> float:
    """How far another noise seed moves the reference's actions, relative, root mean square."""
    errors = []
    for seed in range(1, NOISE_SEEDS + 1):
        noise = draw_noise(seed, 0, golden["noise"].shape)
        chunk = _reference_actions(checkpoint, {**golden, "noise": noise})
        errors.append(relative_error(chunk, golden[ACTIONS]))
    return float(np.sqrt(np.mean(np.square(errors))))


def _run_bundle(folder: Path, golden: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The golden observation's actions, by the runtime."""
    policy = Policy(read_bundle(folder), str(golden["robot"]), OnnxRuntimeBackend())
    episode = policy.start(anchor=golden["anchor"], instruction=str(golden["instruction"]))
    return episode.act(golden["frame"], golden["state"], noise=golden["noise"])


def _reference_actions(
    checkpoint: Checkpoint, golden: Mapping[str, NDArray[Any]]
) -> NDArray[np.float32]:
    return reference(
        checkpoint,
        anchor=golden["anchor"],
        frame=golden["frame"],
        instruction=str(golden["instruction"]),
        state=golden["state"],
        noise=golden["noise"],
        robot=str(golden["robot"]),
    )


def _made_up_image(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Smooth colour patches with some noise on them: neither flat nor white noise."""
    random = np.random.Generator(np.random.Philox(key=seed))
    width, height = size
    coarse = random.uniform(0, 255, (8, 8, 3))
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    image = coarse[rows][:, columns] + random.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.to_json())


def _publish(folder: Path, out: Path) -> None:
    """Put a complete folder in the place of `out`. The old one is moved aside, then removed."""
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    folder.rename(out)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[None]:
    """A working folder that is gone afterwards, whatever happens short of SIGKILL."""
    for left in folder.parent.glob(f"{folder.name.rsplit('-', 1)[0]}-*"):
        shutil.rmtree(left, ignore_errors=True)  # from an export that was killed: we hold the lock
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """One export per destination. The lock dies with its process."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f"{out.name}.lock")
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise ExportError(
                f"{out}: another export writes it (process {holder}); wait for it or stop it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ExportError(f"{out}: the disk is full; free some space and export again") from error


def _check_disk(out: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < num_bytes * 1.1:
        raise ExportError(
            f"{out.parent}: {free / 1e9:.1f} GB free, the bundle needs about "
            f"{num_bytes * 1.1 / 1e9:.1f} GB; free some or choose another --out"
        )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=not console.is_terminal,
    )


def _print_table(
    console: Console, rows: list[_Row], manifest: Manifest, out: Path, error: float
) -> None:
    table = Table(title=f"{out} ({manifest.recipe})")
    for column in ("stage", "parameters", "bytes", "parity", "compile"):
        table.add_column(column, justify="left" if column in ("stage", "compile") else "right")
    for row in rows:
        table.add_row(
            row.engine,
            f"{row.parameters:,}",
            f"{row.num_bytes:,}",
            f"{row.parity:.1e}",
            row.compiled,
        )
    console.print(table)
    padded = ", ".join(f"{k} {v:.0%}" for k, v in manifest.padded_share.items())
    console.print(f"actions against the float32 reference: {error:.1e}; padding: {padded}")
    console.print(f"weights: {manifest.description or 'undescribed'}; licence: {manifest.license}")
