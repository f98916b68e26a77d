"""Simulations of TensorRT, pycuda and cuda-bindings: no GPU, but rules that a GPU would enforce.

Engines compute with ONNX Runtime; whatever is enqueued runs only when somebody synchronizes, so
that a forgotten wait shows as wrong numbers or as a `Violation`.
"""

from tests.simulation.compiled import make_plan
from tests.simulation.modules import install
from tests.simulation.world import Violation, World

__all__ = ["Violation", "World", "install", "make_plan"]
