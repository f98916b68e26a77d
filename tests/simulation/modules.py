"""Stand-ins for `tensorrt`, `pycuda` and `cuda.bindings.runtime` over one simulated world."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from tests.simulation.bindings import bindings, driver_bindings
from tests.simulation.compiled import tensorrt
from tests.simulation.driver import driver
from tests.simulation.world import World


def stand_ins(world: World) -> dict[str, ModuleType]:
    """By the name under which the runtime imports each."""
    return {
        "tensorrt": tensorrt(world),
        "pycuda": ModuleType("pycuda"),
        "pycuda.driver": driver(world),
        "cuda": ModuleType("cuda"),
        "cuda.bindings": ModuleType("cuda.bindings"),
        "cuda.bindings.runtime": bindings(world),
        "cuda.bindings.driver": driver_bindings(world),
    }


def install(monkeypatch: Any) -> World:
    """Put the stand-ins in the place of the real modules for one test."""
    world = World()
    for name, stand_in in stand_ins(world).items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    return world
