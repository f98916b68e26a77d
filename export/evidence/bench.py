"""Side by side: what a user would compose, and what this project runs. One process, interleaved.

Rows per size, each from camera image to action chunk on ever-changing input:
(a) `eager`: transformers + UniCeption + diffusers; (b) `compiled`: (a) under torch.compile;
(c) `reference`: our torch modules, plain; (d) `uncached`: our runtime with every input marked as
changed; (e) `warm`: our runtime with the anchor and the instruction unchanged; (f) `resized_warm`:
the same where an engine and not the host resizes and cuts the image; (g) `int8_warm`: (e) of recipe
`cpu-int8`, with the error of its actions beside it.

The roofline of a warm tick is the sum over its stages of the larger of unpadded FLOPs at the
matrix rate and bytes of weights at the memory bandwidth, both measured in the same run.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table

from device_tests.provenance import read_commit
from export.build import build
from export.config import SIZES, BenchConfig, BuildConfig, Size
from export.engines.counts import count
from export.measure import made_up
from models.checkpoint import Checkpoint, load_checkpoint, normalizations, reference
from models.families import family_of
from models.init import init
from models.stored import plain
from models.verbs import Init
from runtime.backends.onnxruntime_module import ort
from runtime.bundle import read_golden
from runtime.cli.progress import Progress
from runtime.graph import whole_of
from runtime.inputs import draw_noise
from runtime.pages.benchmark import Quantiles, Tick, Ticker
from runtime.pages.report import processor_name
from runtime.policy import Policy, load
from runtime.recordings.recording import Recording, evenly, save_recording
from runtime.storage.files import Kind, check_output, write_file

SAMPLES = 8
OPTIONS: dict[str, dict[str, Any]] = {
    "warm": {"recipe": "float32"},
    "resized_warm": {"recipe": "float32", "resize_on": "engine"},
    "sampled_warm": {"recipe": "float32", "samples": SAMPLES},
    "int8_warm": {"recipe": "cpu-int8"},
}
"""Of each row that ticks with the anchor kept: how its bundle is exported."""
FIGURES = Kind("figures of a benchmark", (b'"machine"', b'"sizes"'))
ROWS = ("eager", "compiled", "reference", "uncached", "warm", "resized_warm", "int8_warm")
GEMM_SHAPES = ((112, 2048, 11008), (324, 1280, 3420), (648, 768, 3072))
"""M, K, N of the matrix products that the published widths are made of."""
Timed = dict[str, Quantiles]
"""Per row."""


def bench(config: BenchConfig) -> dict[str, dict[str, Any]]:
    """Run it, print a table per size and one JSON line last."""
    console = Console()
    path = None
    if config.results is not None:
        path = config.results / f"bench-{slug(processor_name())}.json"
        check_output(path, FIGURES)
    results = {}
    for name in config.sizes:
        results[name] = _bench_size(name, config, console)
        _print_table(console, name, results[name])
    if path is not None:
        document = {"machine": machine(), "sizes": results}
        write_file(path, json.dumps(document, indent=1) + "\n", FIGURES)
        console.print(f"written: {path}")
    figures = {n: {k: v for k, v in r.items() if isinstance(v, float)} for n, r in results.items()}
    print(json.dumps(figures))
    return results


def _bench_size(name: str, config: BenchConfig, console: Console) -> dict[str, Any]:
    checkpoint, policies = _make_bundles(name, config, console)
    policy, resized, int8 = (policies[row] for row in ("warm", "resized_warm", "int8_warm"))
    rows = Rows(checkpoint, policies)
    lines = Progress(sys.stderr)
    for row, run in rows.run.items():  # compilers, allocators, caches have their first time here
        lines.step(f"{name}: first run, {row}")
        run()
    for ticks in rows.ticks.values():
        ticks.clear()
    rate, bandwidth = matrix_rate(), read_bandwidth()
    lines.step(f"{name}: ticks of each row")
    quantiles = rows.measure(config.rounds * SIZES[name].rounds_factor, lines.count)
    lines.close()
    rate, bandwidth = max(rate, matrix_rate()), max(bandwidth, read_bandwidth())
    floor = roofline(policy, rate, bandwidth)
    return {
        **_times(quantiles),
        **_warm_ticks(policy, rows.ticks["warm"], floor, quantiles["warm"]),
        "resized_host_functions_ms": _host_functions_ms(resized, rows.ticks["resized_warm"]),
        "matrix_gflops": round(rate / 1e9, 1),
        "bandwidth_gbs": round(bandwidth / 1e9, 1),
        "int8_action_error": round(int8.bundle.manifest.action_error, 5),
        "padded_share": dict(policy.bundle.manifest.padded_share),
    }


def _make_bundles(
    name: str, config: BenchConfig, console: Console
) -> tuple[Checkpoint, dict[str, Policy]]:
    """Random weights of a size, and their bundles loaded, by the row that is a tick of it."""
    size, folder = SIZES[name], config.work / name
    init(Init(config=name, out=folder / "checkpoint"))
    checkpoint = load_checkpoint(folder / "checkpoint")
    make_up_episode(checkpoint, size, folder / "episodes")
    for row, chosen in OPTIONS.items():
        build(
            BuildConfig(
                **chosen,
                checkpoint=folder / "checkpoint",
                out=folder / row,
                image_size=(size.image, size.image),
                tokens=size.tokens,
                calibration=folder / "episodes",
                stride=1,
                yardsticks=False,
                compile_check=False,
            ),
            console,
        )
    return checkpoint, {row: load(folder / row) for row in OPTIONS}


class Rows:
    """What is measured, each row a function that runs one tick."""

    def __init__(self, checkpoint: Checkpoint, policies: Mapping[str, Policy]) -> None:
        self._tickers = {row: Ticker(policy) for row, policy in policies.items()}
        self.ticks: dict[str, list[Tick]] = {row: [] for row in policies}
        self.run = _torch_rows(checkpoint, policies["warm"])
        self.run["uncached"] = lambda: self._tickers["warm"].tick(cold=True)
        self.run |= {row: partial(self._tick, row) for row in policies}

    def _tick(self, row: str) -> None:
        self.ticks[row].append(self._tickers[row].tick(cold=False))

    def measure(self, num_rounds: int, on_round: Callable[[int, int], None]) -> Timed:
        """Every row once in each round."""
        before = {row: partial(ticker.tick, cold=False) for row, ticker in self._tickers.items()}
        return interleaved(self.run, before, num_rounds, on_round)


def interleaved(
    rows: Mapping[str, Callable[[], Any]],
    before: Mapping[str, Callable[[], Any]],
    num_rounds: int,
    on_round: Callable[[int, int], None],
) -> Timed:
    """Every row once in each round.

    Args:
        before: of some rows, what is done first and not timed: the rows before left the caches to
            other weights.
    """
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for done in range(1, num_rounds + 1):
        for row, run in rows.items():
            if row in before:
                before[row]()
            start = time.perf_counter()
            run()
            seconds[row].append(time.perf_counter() - start)
        on_round(done, num_rounds)
    return {row: Quantiles.of(values) for row, values in seconds.items()}


def _times(timed: Timed) -> dict[str, Any]:
    """Of the rows, and how they compare."""
    result: dict[str, Any] = {f"{row}_ms": round(q.p50, 3) for row, q in timed.items()}
    result |= {f"{row}_p99_ms": round(q.p99, 3) for row, q in timed.items()}
    result |= {
        "warm_speedup": round(timed["uncached"].p50 / timed["warm"].p50, 3),
        "int8_speedup": round(timed["warm"].p50 / timed["int8_warm"].p50, 3),
        "sampled_cost": round(timed["sampled_warm"].p50 / timed["warm"].p50, 3),
        "rounds": timed["warm"].n,
    }
    if "compiled" not in timed:
        result["compiled"] = "not measured: torch.compile needs a C++ compiler"
    return result


def _warm_ticks(
    policy: Policy,
    ticks: Sequence[Tick],
    floor: Mapping[str, float],
    warm: Quantiles,
) -> dict[str, Any]:
    """What warm ticks are made of, beside the least that each stage could take."""
    return {
        "overhead_ms": round(float(np.median([tick.outside for tick in ticks])) * 1e3, 4),
        "host_functions_ms": _host_functions_ms(policy, ticks),
        "interpreter_ms": round(float(np.median([tick.interpreter for tick in ticks])) * 1e3, 4),
        "roofline_ms": round(sum(floor.values()) * 1e3, 3),
        "times_roofline": round(warm.p50 / sum(floor.values()) / 1e3, 3),
        "stages": {
            stage: {
                "warm_ms": round(float(np.median([t.stages[stage] for t in ticks])) * 1e3, 3),
                "roofline_ms": round(floor.get(stage, 0.0) * 1e3, 3),
            }
            for stage in ticks[0].stages
        },
    }


def _host_functions_ms(policy: Policy, ticks: Sequence[Tick]) -> float:
    """What all of them take in a tick, median."""
    functions = [s.name for s in policy.graph.stages if s.function]
    host = [sum(tick.stages.get(name, 0.0) for name in functions) for tick in ticks]
    return round(float(np.median(host)) * 1e3, 4)


def make_up_episode(
    checkpoint: Checkpoint, size: Size, folder: Path, *, count: int = 4, seed: int = 0
) -> None:
    """Something to calibrate random weights on: made-up images, states in the statistics' range.

    Args:
        count: observations.
        seed: of the first; each next one has the next.
    """
    image_size = (size.image, size.image)
    frames = [made_up(checkpoint, image_size, seed=seed + n) for n in range(count)]
    save_recording(
        Recording(
            instruction=frames[0].instruction,
            task="made up",
            seed=seed,
            rate_hz=10.0,
            streams={
                name: evenly(np.stack([seen.now[name] for seen in frames]), 10.0)
                for name in frames[0].now
            },
            actions=np.zeros((len(frames), checkpoint.config.chunk[1]), np.float32),
            success=False,
        ),
        folder / "made-up.npz",
    )


def _torch_rows(checkpoint: Checkpoint, policy: Policy) -> dict[str, Callable[[], Any]]:
    """Rows (a) to (c), on the golden observation with a frame that changes."""
    golden = read_golden(policy.bundle)
    checkpoint = dataclasses.replace(checkpoint, model=plain(checkpoint.model))
    embodiment = str(golden["embodiment"])
    statistics = checkpoint.statistics[embodiment]
    to_policy, _ = normalizations(checkpoint.config, statistics, embodiment)
    state = to_policy.to_policy(golden["state"])
    count = 0

    def observation() -> dict[str, Any]:
        nonlocal count
        count += 1
        return {
            "anchor": golden["anchor"],
            "frame": np.roll(golden["frame"], count, axis=1),
            "instruction": str(golden["instruction"]),
            "noise": draw_noise(0, count, policy.chunk_shape),
        }

    rows = library_rows(checkpoint, lambda: {"state": state, **observation()})
    rows["reference"] = lambda: reference(checkpoint, state=golden["state"], **observation())
    return rows


def library_rows(
    checkpoint: Checkpoint, observation: Callable[[], Mapping[str, Any]]
) -> dict[str, Callable[[], Any]]:
    """Rows (a) and (b): a tick of the policy as one composes it from public libraries.

    Args:
        checkpoint: with its weights in memory.
        observation: what the composition prepares, another one with every call.
    """
    composition = family_of(checkpoint.config).reference(
        checkpoint.model, checkpoint.tokenizer, checkpoint.image
    )

    def composed(module: Callable[..., torch.Tensor]) -> Callable[[], torch.Tensor]:
        @torch.no_grad()
        def run() -> torch.Tensor:
            return module(*composition.prepare(**observation()))

        return run

    rows = {"eager": composed(composition)}
    if _has_compiler():  # of one shape: another policy's would be taken for a shape that moves
        rows["compiled"] = composed(torch.compile(composition, dynamic=False))
    return rows


def roofline(policy: Policy, rate: float, bandwidth: float) -> dict[str, float]:
    """Least seconds of each engine stage of a warm tick."""
    manifest = policy.bundle.manifest
    padded = list(manifest.padded_share.values())
    used, context = 1 - padded[-1], 1 - sum(padded) / len(padded)
    seconds = {}
    for stage in policy.graph.stages:
        if stage.engine is None or "frame" not in policy.graph.stage_dependencies[stage.name]:
            continue
        path = policy.bundle.file(manifest.engines[stage.engine].file)
        counts = count(path)
        weights, attention = float(counts.by_weights), float(counts.attention_flops)
        if whole_of(stage.engine) == "language":
            weights, attention = weights * used, attention * used * context
        num_bytes = 4 * manifest.engines[stage.engine].parameters
        seconds[stage.name] = max((weights + attention) / rate, num_bytes / bandwidth)
    return seconds


def matrix_rate() -> float:
    """Best float32 FLOP/s of ONNX Runtime's matrix product over `GEMM_SHAPES`, all cores."""
    best = 0.0
    for m, k, n in GEMM_SHAPES:
        random = np.random.Generator(np.random.Philox(key=k))
        weight = onnx.numpy_helper.from_array(random.standard_normal((k, n), np.float32), "w")
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            "product",
            [value("x", onnx.TensorProto.FLOAT, [m, k])],
            [value("y", onnx.TensorProto.FLOAT, [m, n])],
            [weight],
        )
        opset = [onnx.helper.make_opsetid("", 18)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
        session = ort.InferenceSession(model.SerializeToString())
        x = random.standard_normal((m, k), np.float32)
        seconds = _median_seconds(partial(session.run, None, {"x": x}), 9)
        best = max(best, 2.0 * m * k * n / seconds)
    return best


def read_bandwidth() -> float:
    """Bytes per second that all cores together read from memory."""
    numbers = torch.ones(128 << 20)
    return numbers.nbytes / _median_seconds(lambda: numbers.sum(), 7)


def machine() -> dict[str, Any]:
    """What a figure must be read with."""
    return {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "power_mode": "not applicable",
        "date": time.strftime("%Y-%m-%d"),
        "commit": read_commit(),
        "python": platform.python_version(),
        "versions": {
            p: version(p)
            for p in ("torch", "onnxruntime", "transformers", "uniception", "diffusers")
        },
    }


def _median_seconds(run: Callable[[], Any], count: int) -> float:
    run()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def _print_table(console: Console, name: str, result: dict[str, Any]) -> None:
    table = Table(title=f"{name}: camera image to action chunk, median of {result['rounds']}")
    for column in ("row", "ms", "p99", "against warm"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for row in ROWS:
        if f"{row}_ms" in result:
            ratio = result[f"{row}_ms"] / result["warm_ms"]
            table.add_row(
                row,
                f"{result[f'{row}_ms']:.2f}",
                f"{result[f'{row}_p99_ms']:.2f}",
                f"{ratio:.2f} x",
            )
        else:
            table.add_row(row, result[row], "", "")
    table.add_row(
        "roofline", f"{result['roofline_ms']:.2f}", "", f"{1 / result['times_roofline']:.2f} x"
    )
    console.print(table)
    padded = ", ".join(f"{k} {v:.0%}" for k, v in result["padded_share"].items())
    console.print(
        f"outside engines {result['overhead_ms']} ms, of these host functions "
        f"{result['host_functions_ms']} ({result['resized_host_functions_ms']} where an engine "
        f"resizes), the interpreter {result['interpreter_ms']}; "
        f"{result['matrix_gflops']} GFLOP/s, "
        f"{result['bandwidth_gbs']} GB/s; padding: {padded}"
    )


def slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
