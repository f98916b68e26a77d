"""Fixtures that several packages share: policies that are made or exported once per test run."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import runtime
from export.build import build
from export.config import BuildConfig
from models.anchorvla4d.checkpoint import READOUTS
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.presets import shallow
from models.checkpoint import WEIGHTS, load_checkpoint
from models.demo import CHECKPOINT, EPISODES
from models.families import to_json
from models.init import init
from models.verbs import Init
from runtime.errors import RobotError
from runtime.policy import Policy
from runtime.robots.metaworld import MetaWorldRobot
from tests.once import once
from tests.traces import remembered


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


def copy_checkpoint(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The shipped checkpoint with weights that `change` has edited in place."""
    weights = {n: w.clone() for n, w in load_checkpoint(CHECKPOINT).model.state_dict().items()}
    change(weights)
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns(READOUTS))
    save_file(weights, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One for all workers; what lies there is made by `once`."""
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "shared"


@pytest.fixture(scope="session", autouse=True)
def traces(shared_folder: Path) -> Iterator[None]:
    """Exports of one module trace it once for all workers."""
    with remembered(shared_folder / "traces"):
        yield


@pytest.fixture(scope="session")
def demo_bundle(shared_folder: Path) -> Path:
    """The demo policy, exported once for all workers. Tests must not write into it."""
    return once(shared_folder / "bundle", lambda bundle: export_demo(bundle.parent))


@pytest.fixture(scope="session")
def cut_checkpoint(shared_folder: Path) -> Path:
    """The shipped policy with the first layer or two of each network: half the time to export.

    Not random weights: a head that does not denoise multiplies every error by 200 in its first
    step, and no recipe would pass its gates.
    """

    def cut(folder: Path) -> None:
        whole = load_checkpoint(CHECKPOINT).config
        config = shallow(whole, vision=1, language=1, spatial=2, head=1)
        config = replace(config, license=whole.license)
        with torch.device("meta"):
            names = set(AnchorVLA4D(config).state_dict())
        partial = folder.with_name("partial")
        copy_checkpoint(partial, lambda weights: [weights.pop(n) for n in set(weights) - names])
        (partial / "config.json").write_text(to_json(config))
        partial.rename(folder)

    return once(shared_folder / "cut-checkpoint", cut)


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
