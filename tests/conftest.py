"""Fixtures that several packages share: one exported demo bundle per test run."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import runtime
from export.build import build
from export.config import BuildConfig
from models.demo import EPISODES
from models.init import init
from models.verbs import Init
from runtime.errors import RobotError
from runtime.metaworld import MetaWorldRobot
from runtime.policy import Policy
from tests.once import once


def pytest_configure() -> None:
    """Let tests interrupt what they start, in a background job too.

    A shell starts such a job with SIGINT ignored, every process under it inherits that, and one
    that is sent SIGINT would be waited for in vain. A handler, unlike that, ends at exec.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def export_demo(folder: Path, *, seed: int = 0, compile_check: bool = False) -> Path:
    """Seeded random demo weights, exported into `folder`/bundle."""
    init(Init(config="demo", out=folder / "checkpoint", seed=seed))
    return build(
        BuildConfig(
            recipe="float32",
            checkpoint=folder / "checkpoint",
            out=folder / "bundle",
            image_size=(112, 112),
            tokens=64,
            golden=EPISODES / "touch-red-1.npz",
            compile_check=compile_check,
        )
    )


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One for all workers; what lies there is made by `once`."""
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "shared"


@pytest.fixture(scope="session")
def demo_bundle(shared_folder: Path) -> Path:
    """The demo policy, exported once for all workers. Tests must not write into it."""
    return once(shared_folder / "bundle", lambda bundle: export_demo(bundle.parent))


@pytest.fixture(scope="session")
def simulator() -> None:
    """Meta-World with a renderer; what asks for it is skipped where there is none."""
    try:
        MetaWorldRobot(task="reach", seed=0, image_size=16).close()
    except RobotError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def worker_id(request: pytest.FixtureRequest) -> str:
    """Name of the pytest-xdist worker, `master` without one."""
    return getattr(request.config, "workerinput", {}).get("workerid", "master")


@pytest.fixture(scope="module")
def policy(demo_bundle: Path) -> Iterator[Policy]:
    """The demo bundle, loaded."""
    yield runtime.load(demo_bundle)


@pytest.fixture
def image() -> Callable[[int], NDArray[np.uint8]]:
    """Random 112 x 112 images by seed."""

    def make(seed: int) -> NDArray[np.uint8]:
        random = np.random.Generator(np.random.Philox(key=seed))
        return random.integers(0, 256, (112, 112, 3), dtype=np.uint8)

    return make
