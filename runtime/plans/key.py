"""What a plan is tied to: it runs where all of this is the same, and nowhere else."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, fields

from ..errors import EngineError
from .compiler import load_tensorrt

LABELS = {
    "gpu": "GPU",
    "compute_capability": "SM",
    "num_sms": "number of SMs",
    "backend": "compiler",
    "version": "TensorRT",
    "cuda": "CUDA",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanKey:
    """What a plan is tied to: it runs where all of this is the same, and nowhere else."""

    gpu: str
    """Name by the driver, `none` for a compile check without a GPU."""
    compute_capability: str
    """Such as `8.7`."""
    num_sms: int
    """Multiprocessors in use: some power modes halve them. All else of a mode is clocks, which
    change no plan, only how well its kernels were chosen: the record beside it holds the mode."""
    backend: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str
    """Of TensorRT."""
    cuda: str
    """Version that the driver implements, such as `12.6`."""

    @property
    def folder_name(self) -> str:
        """Name of the plans' folder, such as `orin-sm87-16sm-tensorrt-10.3.0`."""
        capability = self.compute_capability.replace(".", "")
        words = f"{self.gpu}-sm{capability}-{self.num_sms}sm-{self.backend}-{self.version}"
        return re.sub(r"[^a-z0-9.]+", "-", words.lower())

    def __str__(self) -> str:
        return (
            f"{self.gpu} (SM {self.compute_capability}, {self.num_sms} SMs) with {self.backend} "
            f"{self.version}, CUDA {self.cuda}"
        )

    def differences(self, other: PlanKey) -> list[str]:
        """What `other` has otherwise, as `label theirs, here ours`."""
        pairs = ((f.name, getattr(other, f.name), getattr(self, f.name)) for f in fields(self))
        return [f"{LABELS[name]} {got}, here {here}" for name, got, here in pairs if got != here]


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What the driver says about the first GPU."""

    name: str
    compute_capability: str
    num_sms: int
    cuda: str


def current_key(
    backend: str = "tensorrt", *, read_gpu: Callable[[], GpuFacts] | None = None
) -> PlanKey:
    """The key of this machine.

    Args:
        read_gpu: how to ask for the GPU, where not through pycuda.

    Raises:
        EngineError: the backend, pycuda or a GPU is missing.
    """
    version = load_tensorrt(backend).__version__
    gpu = (read_gpu or _gpu_of_driver)()
    return PlanKey(
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        num_sms=gpu.num_sms,
        backend=backend,
        version=version,
        cuda=gpu.cuda,
    )


def _gpu_of_driver() -> GpuFacts:
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise EngineError(
            f"pycuda cannot be imported ({error}), so nobody can ask the GPU what it is; "
            "install requirements/robot-tensorrt.txt on the machine that has the GPU"
        ) from None
    try:
        driver.init()
        device = driver.Device(0)
        major, minor = device.compute_capability()
        sms = device.get_attribute(driver.device_attribute.MULTIPROCESSOR_COUNT)
        name, cuda = device.name(), driver.get_driver_version()
    except driver.Error as error:
        raise EngineError(f"no GPU answers ({error}); look at the driver's state") from None
    return GpuFacts(name, f"{major}.{minor}", sms, f"{cuda // 1000}.{cuda % 1000 // 10}")


def current_power_mode() -> str:
    """NVIDIA's name of it, `unknown` where nobody says: in a container, without nvpmodel."""
    from ..board.machine import read_machine

    mode = read_machine().power_mode
    return "unknown" if mode is None else mode.name
