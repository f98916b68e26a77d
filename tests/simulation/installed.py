"""The simulation as modules that a whole machine has: `import tensorrt` finds it, in any process.

`tests.virtual_board.simulated` puts this and `SHIMS` into the Python of a virtual board. A process
has a world of its own, whose bundle counts as verified: another process verified it. The compiler
is the stand-in without a GPU, so its variable STAND_IN works too; its plans are as large as what
they were made of.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

from tests.runtime.stand_ins.tensorrt_without_gpu import tensorrt as compiler
from tests.simulation.compiled import make_plan
from tests.simulation.modules import stand_ins
from tests.simulation.world import World

SHIMS = ("tensorrt", "pycuda", "cuda")
"""Modules that import this one, and are replaced by it; all that lies in them is there then."""
VERSIONS = {"tensorrt": "10.3.0", "pycuda": "2026.1", "cuda-python": "12.6.2.post1"}
"""What they say they are, by distribution."""


def plan_of(onnx: Path) -> bytes:
    """What it is of, and the network and its weights, so that it goes where no such file is."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(onnx.parent.glob(f"{onnx.stem}.*")):
            archive.write(path, path.name)
    return b"\0".join([bytes(make_plan(onnx)), stream.getvalue()])


def put_in_place() -> World:
    """Make this process's world, and be imported under the real names from now on."""
    world = World()
    world.is_verified = True
    modules = stand_ins(world)
    vars(compiler).update({**vars(modules["tensorrt"]), "plan_of": plan_of})
    sys.modules.update(modules | {"tensorrt": compiler})
    return world
