"""An export never holds the whole policy: published widths under a limit of the address space.

With the layers, what an export may keep is scaled down: weights used last, engines that are loaded.
The limit is less than all weights in float32 beside a process that has imported everything, so no
step can hold them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from export.evidence.bench import Size, make_up_episode
from models import checkpoint
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.presets import full, shallow
from models.checkpoint import load_checkpoint
from runtime import read_bundle
from tests.export.conftest import write_random

ROOT = Path(__file__).parents[2]
CHILD = """
import resource, sys
from functools import partial
from pathlib import Path

import onnxscript, torch._dynamo, torch._inductor, torch.onnx._internal.exporter._core
from export import judge
from export.build import build
from export.config import BuildConfig
from export.engines.engine import EngineExporter
from export.engines.resident import ResidentBackend
from export.gates import Gates
from export.subject import prepare
from models import stored
from models.checkpoint import load_checkpoint
from quant.recipes import RECIPES

folder, room, what, held = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
stored.SHELF = stored.Shelf(64 << 20)
judge.ResidentBackend = partial(ResidentBackend, 64 << 20)
config = BuildConfig(
    recipe="orin-w8a8", checkpoint=folder, out=folder / "bundle", image_size=(112, 112), tokens=64,
    calibration=folder / "episodes", stride=1, max_observations=1, layers_per_part=1,
    verdicts=folder / "none.json", yardsticks=False, compile_check=False, force=True,
)
def size(kind):
    found = next(l for l in open("/proc/self/status") if l.startswith(kind))
    return int(found.split()[1]) * 1024
base = size("VmSize")
resource.setrlimit(resource.RLIMIT_AS, (base + room, base + room))
if held:
    weights = stored.plain(load_checkpoint(folder).model)
if what == "whole":
    build(config)
else:
    work = folder / "work"
    work.mkdir()
    subject = prepare(config, RECIPES["orin-w8a8"](), load_checkpoint(folder), work=work)
    allowed = dict.fromkeys((s.name for s in subject.parts.graph.stages), 1.0)
    exporter = EngineExporter(
        subject.recipe, subject.rules, subject.parts.graph, subject.tensors, [], allowed,
        folder / "part", Gates(force=True), False, subject.kept,
    )
    exporter.export(what, subject.parts.engines[what], subject.layer_names[what], print)
print(f"{(size('VmPeak') - base) / 1e9:.2f} GB of {room / 1e9:.2f}")
"""


def write(folder: Path, **layers: int) -> Path:
    """Random weights in small shards: a file is mapped as a whole."""
    config = shallow(full(), **layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "SHARD_BYTES", 1 << 20)
        write_random(folder, config)
    make_up_episode(load_checkpoint(folder), Size(112, 64, 1), folder / "episodes")
    return folder


def float32_bytes(folder: Path) -> int:
    config = load_checkpoint(folder).config
    with torch.device("meta"):
        return 4 * sum(p.numel() for p in AnchorVLA4D(config).parameters())


def export(folder: Path, what: str, share: float, *, held: str = "") -> str:
    """What a process says that exports a part, or all of it, in a share of the weights' bytes."""
    room = int(share * float32_bytes(folder))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(room), what, held],
        cwd=ROOT, capture_output=True, text=True, check=False,
        # What is freed goes back at once, and threads share one heap: the limit is of what is used.
        env=os.environ
        | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    print(done.stdout)
    return "" if done.returncode == 0 else done.stderr


def test_a_policy_is_prepared_and_a_part_exported_in_less_than_its_weights(tmp_path):
    """Calibrated, folded, quantized, run in float32 and in int8; then a layer traced and proved."""
    folder = write(tmp_path, vision=1, language=2, spatial=2, head=1)
    assert export(folder, "language_0", 0.7) == ""


@pytest.mark.full
def test_a_whole_export_holds_less_than_its_weights_and_no_more_would_fit(tmp_path):
    folder = write(tmp_path, vision=2, language=2, spatial=2, head=2)
    assert export(folder, "whole", 0.8) == ""
    assert len(read_bundle(folder / "bundle").manifest.graph.networks) == 8
    assert "memory" in export(folder, "whole", 0.8, held="held").lower()
