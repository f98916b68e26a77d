"""What an export takes is told before it begins, refused where it is not there, and told again."""

import io
import re
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer
from torch import nn

from export import needs
from export.build import build
from export.config import BuildConfig
from export.errors import ExportError
from export.needs import needs_of, refuse_if_too_large
from export.parts import MESSAGE_BYTES, EngineSizes, smaller, tracing_layers
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.presets import demo, full, proxy, xlerobot
from models.checkpoint import Checkpoint
from models.demo import CHECKPOINT
from models.init import image_of, statistics_of
from models.networks.parts import WHOLE
from quant.apply import decide
from quant.recipes import RECIPES
from runtime.errors import OutputError
from tests.conftest import EPISODES

CONFIG = BuildConfig(
    recipe="orin-w8a8", checkpoint=Path("somewhere"), out=Path("bundle"), tokens=112
)


def on_meta(config):
    with torch.device("meta"):
        return AnchorVLA4D(config)


def estimate(model, recipe="orin-w8a8", layers=None):
    chosen = RECIPES[recipe]()
    rules = decide(chosen, model)
    layers = layers or tracing_layers(model.config)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    image, statistics = image_of(model.config), statistics_of(model.config)
    checkpoint = Checkpoint(Path(), model.config, model, tokenizer, image, statistics, "")
    return needs_of(checkpoint, chosen, rules, layers, CONFIG)


@pytest.fixture(scope="module")
def whole():
    return on_meta(full())


def test_no_part_outgrows_a_message_and_small_networks_stay_whole():
    exact = RECIPES["float32"]()
    for config in (full(), xlerobot()):
        engines = EngineSizes(config, exact).engines(tracing_layers(config))
        assert max(engine.num_bytes for engine in engines.values()) <= MESSAGE_BYTES < 2**31
        assert sum(name.startswith("language") for name in engines) == 6
    assert tracing_layers(proxy()) == tracing_layers(demo()) == WHOLE


def test_the_smaller_part_is_taken_of_what_two_ask_for():
    one = {"vision": 3, "spatial": 2}
    other = {"vision": 5, "language": 6}
    assert smaller(one, other) == smaller(other, one)
    assert smaller(one, other) == {"vision": 3, "language": 6, "spatial": 2}


@pytest.mark.parametrize("recipe", ["orin-w8a8", "orin-w4a16", "orin-bf16"])
def test_the_published_policy_needs_less_than_12_gb_of_memory_and_31_of_disk(whole, recipe):
    """17.6 GB of float32 weights; the disk holds the bundle, its codes and its float32 engines."""
    found = estimate(whole, recipe)
    assert 3e9 < found.memory_bytes < 12e9, found.describe()
    assert found.disk_bytes < 31e9, found.describe()


def test_disk_is_that_of_bundle_codes_and_float32_engines(whole):
    found = estimate(whole, "orin-bf16").disk
    parameters = sum(p.numel() for p in whole.parameters())
    table = whole.vlm.model.embed_tokens.weight.numel()
    engines = parameters - table
    assert found["codes and statistics"] == 0
    # t_embedder's layers are in no engine; a twentieth of the rest stays float32.
    assert found["bundle"] == pytest.approx(4 * table + 2 * engines, rel=0.03)
    assert found["float32 engines"] == pytest.approx(4 * engines, rel=0.01)
    quantized = estimate(whole, "orin-w8a8").disk
    rows = 4 * 256 * sum(m.in_features for m in whole.modules() if isinstance(m, nn.Linear))
    assert quantized["codes and statistics"] == pytest.approx(0.93 * engines + rows, rel=0.05)


def test_too_little_memory_is_refused_with_what_would_do(whole):
    def with_layers(count):
        layers = smaller(tracing_layers(whole.config), {"language": count})
        return estimate(whole, "orin-bf16", layers)

    needed = estimate(whole, "orin-bf16")
    refuse_if_too_large(needed, CONFIG, 36, with_layers, needed.memory_bytes)
    available = with_layers(2).memory_bytes
    if available < needed.memory_bytes:
        message = (
            r"^somewhere: an export needs about [\d.]+ GB of memory \(libraries 0.70 GB, .*\) and "
            rf"[\d.]+ GB of disk .*; {available / 1e9:.2f} GB of memory are free. "
            r"--layers-per-part (\d+) would do with ([\d.]+) GB$"
        )
        with pytest.raises(ExportError, match=message) as refused:
            refuse_if_too_large(needed, CONFIG, 36, with_layers, available)
        count, size = re.search(message, str(refused.value)).groups()
        assert f"{with_layers(int(count)).memory_bytes / 1e9:.2f}" == size
        assert with_layers(int(count)).memory_bytes <= available
    with pytest.raises(ExportError, match=r"2.00 GB of memory are free. Free some; the least that"):
        refuse_if_too_large(needed, CONFIG, 36, with_layers, 2_000_000_000)


def small(checkpoint, out):
    return BuildConfig(
        recipe="orin-w8a8",
        checkpoint=checkpoint,
        out=out,
        image_size=(112, 112),
        tokens=64,
        calibration=EPISODES,
        max_observations=4,
        yardsticks=False,
        compile_check=False,
    )


def test_an_export_is_refused_before_it_begins(cut_checkpoint, tmp_path, monkeypatch):
    config = small(cut_checkpoint, tmp_path / "bundle")
    monkeypatch.setattr("export.build.prepare", lambda *_, **__: pytest.fail("it began"))
    with monkeypatch.context() as patch:
        patch.setattr(needs, "available_bytes", lambda: 500_000_000)
        with pytest.raises(ExportError, match=r"0.50 GB of memory are free. Free some; the least"):
            build(config, Console(file=io.StringIO()))
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 10**6)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"0.0 GB free, bundle needs about 0.0 GB; free some or"):
        build(config, Console(file=io.StringIO()))
    assert not list(tmp_path.iterdir())


def test_estimate_and_truth_are_printed(cut_checkpoint, tmp_path):
    said = io.StringIO()
    build(small(cut_checkpoint, tmp_path / "bundle"), Console(file=said, width=400))
    lines = said.getvalue().splitlines()
    first = next(line for line in lines if line.startswith("this export takes about"))
    last = next(line for line in lines if line.startswith("memory: "))
    truth, estimated = re.search(r"memory: ([\d.]+) GB at most, ([\d.]+) GB est", last).groups()
    assert f"about {estimated} GB of memory" in first and float(truth) > 0.2
    truth, estimated = re.search(r"disk: ([\d.]+) GB at most, ([\d.]+) GB est", last).groups()
    assert f"{estimated} GB of disk" in first
    bundle = sum(p.stat().st_size for p in (tmp_path / "bundle").rglob("*") if p.is_file())
    assert float(truth) >= round(bundle / 1e9, 2)


def test_no_more_memory_is_available_than_there_is():
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    assert 0 < needs.available_bytes() <= total * 1024
