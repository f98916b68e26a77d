"""The machines that a bundle can run on, by name. Each is made for a bundle that was verified."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ..board.arithmetic import needs_bfloat16, no_bfloat16
from ..bundle import PLANS, Bundle, read_golden
from ..engine import Backend
from ..errors import EngineError, PowerModeWarning
from ..plans.folder import how_to_build
from .parity import engine_errors

MakeBackend = Callable[[Bundle], Backend]


def on_onnxruntime(bundle: Bundle) -> Backend:
    """On the CPU.

    Raises:
        EngineError: the bundle computes in what a CPU has not.
    """
    from .onnxruntime import OnnxRuntimeBackend

    if needs_bfloat16(bundle.manifest):
        raise EngineError(
            f"{bundle.path} (recipe {bundle.manifest.recipe.name}): {no_bfloat16(bundle.path)}"
        )
    return OnnxRuntimeBackend()


def on_tensorrt(bundle: Bundle, *, name: str = "tensorrt") -> Backend:
    """On the GPU, by the plans that `anchorvla build` made here.

    Raises:
        EngineError: TensorRT or a GPU is missing. Later, of an engine whose plan may not be used.

    Warns:
        PowerModeWarning: plans were tuned in another power mode.
    """
    from ..plans.key import current_key, current_power_mode
    from ..plans.record import other_power_modes, read_plan
    from .cuda_context import wait_of_environment
    from .tensorrt import TensorRTBackend

    key, wait, mode = current_key(name), wait_of_environment(), current_power_mode()
    if others := other_power_modes(bundle, key, mode):
        warnings.warn(
            f"{bundle.path}: its plans were tuned in power mode {', '.join(others)}, this is "
            f"{mode}: they compute the same, perhaps not as fast as plans of this mode; for these "
            f"remove {bundle.path / PLANS / key.folder_name} and run: "
            f"{how_to_build(bundle.path)}",
            PowerModeWarning,
            stacklevel=3,
        )
    return TensorRTBackend(lambda path: read_plan(bundle, path.stem, key), name=name, wait=wait)


BACKENDS: Mapping[str, MakeBackend] = {
    "onnxruntime": on_onnxruntime,
    "tensorrt": on_tensorrt,
    "tensorrt_rtx": partial(on_tensorrt, name="tensorrt_rtx"),
}


def plan_errors(bundle: Bundle, path: str, plan: memoryview, *, name: str) -> Mapping[str, float]:
    """Relative error of a new plan on the golden data, by stage that calls it.

    Args:
        path: of the ONNX file that the plan was made from.

    Raises:
        EngineError: the plan cannot be loaded or run here.
    """
    from .tensorrt import TensorRTBackend

    backend = TensorRTBackend(lambda _: memoryview(plan), name=name)
    golden = read_golden(bundle)
    tensors = {n.removeprefix("stage/"): v for n, v in golden.items() if n.startswith("stage/")}
    try:
        return engine_errors(backend, Path(path), bundle.manifest.graph, tensors)
    finally:
        backend.close()
