"""An interrupted export goes on: what it had worked out is not worked out again."""

import copy
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import export.build
import export.subject
import quant.apply
from export.build import build
from export.config import BuildConfig
from export.destination import CALIBRATION, kept_work
from export.kept import Kept
from export.subject import prepare
from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT
from models.stored import StoredTensor
from quant.modules import QuantLinear
from quant.recipes import RECIPES
from runtime.errors import OutputError
from tests.conftest import EPISODES
from tests.export.conftest import cut_config

ROOT = Path(__file__).parents[2]
MADE = "0" * 64 + ".safetensors"
KILLS = 20
CHILD = """
import sys
from pathlib import Path
from export.build import build
from export.kept import Kept
from tests.export.conftest import cut_config
from tests.export.test_interrupted import watch

log = open(sys.argv[3], "a", buffering=1)
watch(lambda event, name: log.write(f"{event} {name}\\n"), setattr)
build(cut_config(Path(sys.argv[1]), Path(sys.argv[2]), "orin-w8a8"))
"""


def watch(tell, patch):
    """Have `tell("begin" or "end", name)` called around whatever an export works out."""

    def watched(real):
        @functools.wraps(real)
        def method(kept, name, make):
            def told():
                tell("begin", name)
                made = make()
                tell("made", name)
                return made

            result = real(kept, name, told)
            tell("kept", name)
            return result

        return method

    for method in ("arrays", "record"):
        patch(Kept, method, watched(getattr(Kept, method)))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_repeats(events, interruptions):
    """Nothing that was kept is worked out again, and one part at most for each interruption."""
    kept, begun = set(), Counter()
    for event, name in events:
        if event == "begin":
            assert name not in kept, f"{name} was kept and is worked out again"
            begun[name] += 1
        elif event == "kept":
            kept.add(name)
    assert kept == set(begun)
    assert sum(begun.values()) - len(begun) <= interruptions
    return kept


def test_an_export_that_is_stopped_again_and_again_repeats_one_part_each_time(
    exported, cut_checkpoint, tmp_path, monkeypatch
):
    """Stopped at the worst moment: something has just been worked out and is not kept yet."""
    want = contents(exported("orin-w8a8"))
    events, stops = [], {1, 4, 9, 16, 26, 33, 41}

    def tell(event, name):
        events.append((event, name))
        if event == "made" and sum(e == "made" for e, _ in events) in stops:
            raise KeyboardInterrupt

    watch(tell, monkeypatch.setattr)
    config = cut_config(cut_checkpoint, tmp_path / "bundle", "orin-w8a8")
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            build(config)
    with monkeypatch.context() as patch:  # all is made, and the bundle is just about to appear
        patch.setattr(export.build, "publish_kept", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    assert not config.out.exists()
    num_events = len(events)
    with monkeypatch.context() as patch:
        patch.setattr(export.build, "publish_kept", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    assert {event for event, _ in events[num_events:]} == {"kept"}, "nothing was left to do"
    made = check_repeats(events, len(stops))
    places = config.out.with_name("bundle.work").glob("*/engines/denoise.onnx")  # the twin's too
    (own,) = (p for p in places if p.read_bytes() == want[Path("engines/denoise.onnx")])
    own.unlink()
    num_events = len(events)
    build(config)
    again = {name for event, name in events[num_events:] if event == "begin"}
    assert again == {"engine denoise"}, "what is said to be there and is not"
    assert len(made) > max(stops) and contents(config.out) == want
    assert {p.name for p in tmp_path.iterdir()} == {"bundle", "bundle-report.html"}


def test_what_is_kept_is_of_one_policy_recipe_size_and_calibration(tmp_path):
    parts = ("weights", "recipe", (112, 112), 64)

    def value(number):
        return lambda: {"x": torch.tensor(number).numpy()}

    def of(*parts):
        return int(Kept(tmp_path, *parts).arrays("stage", value(2))["x"])

    assert int(Kept(tmp_path, *parts).arrays("stage", value(1))["x"]) == 1
    assert of(*parts) == 1
    for index in range(len(parts)):
        assert of(*parts[:index], "other", *parts[index + 1 :]) == 2
    assert int(Kept(tmp_path, *parts).arrays("other stage", value(3))["x"]) == 3
    assert of("weights", "recipe", (112, 112), 6, 4) == 2
    named = {name: np.full(2, n) for n, name in enumerate(("file", "allow_pickle", "a/b"))}
    for _ in range(2):
        found = Kept(tmp_path).arrays("any names", lambda: named)
        assert found.keys() == named.keys()
        assert all(np.array_equal(found[name], named[name]) for name in named)
    assert int(Kept(None, *parts).arrays("stage", value(4))["x"]) == 4


def stopped(*arguments):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def demo_checkpoint():
    return load_checkpoint(CHECKPOINT)


def of_other_statistics(checkpoint):
    statistics = copy.deepcopy(checkpoint.statistics)
    next(iter(statistics.values()))["state"]["min"][0] -= 0.5
    return replace(checkpoint, statistics=statistics)


def with_another_word(checkpoint):
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.to_str())
    tokenizer.add_tokens(["gripper"])
    return replace(checkpoint, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("recipe", "changes", "change"),
    [
        ("orin-bf16", {}, None),
        ("float32", {"image_size": (128, 112)}, None),
        ("float32", {"resize_on": "engine"}, None),
        ("float32", {"tokens": 72}, None),
        ("float32", {"layers_per_part": 1}, None),
        ("float32", {"compile_check": True}, None),
        ("float32", {}, of_other_statistics),
        ("float32", {}, lambda c: replace(c, image=replace(c.image, max_pixels=112 * 140))),
        ("float32", {}, lambda c: replace(c, sha256="0")),
        ("float32", {}, lambda c: replace(c, config=replace(c.config, license="other"))),
        ("float32", {}, with_another_word),
        ("cpu-int8", {"stride": 1}, None),
    ],
)
def test_nothing_is_taken_from_an_export_of_something_else(
    demo_checkpoint, tmp_path, recipe, changes, change
):
    def place(recipe, change, **changes):
        options = {"held_out": None, "calibration": None, "max_observations": 1} | changes
        config = cut_config(CHECKPOINT, tmp_path / "bundle", recipe, **options)
        checkpoint = change(demo_checkpoint) if change else demo_checkpoint
        return prepare(config, config.chosen_recipe(), checkpoint, work=tmp_path).kept.folder("a")

    learnt = {"calibration": EPISODES} if recipe == "cpu-int8" else {}
    first = place(recipe if learnt else "float32", None, **learnt)
    assert place(recipe, change, **learnt, **changes) != first
    assert place(recipe if learnt else "float32", None, **learnt) == first


@pytest.mark.full
def test_an_export_that_is_killed_at_random_moments_ends_with_the_same_bytes(
    exported, cut_checkpoint, tmp_path
):
    want = contents(exported("orin-w8a8"))
    log, out = tmp_path / "log", tmp_path / "bundle"
    command = [sys.executable, "-c", CHILD, str(cut_checkpoint), str(out), str(log)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start():
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )

    began = time.monotonic()
    assert start().wait() == 0
    whole_s = time.monotonic() - began
    assert contents(out) == want
    moments = random.Random(0)
    for _ in range(KILLS):
        log.write_text("")
        shutil.rmtree(out)
        export = start()
        time.sleep(moments.uniform(0.05, 0.95) * whole_s)
        os.killpg(export.pid, signal.SIGKILL)
        export.wait()
        before = log.read_text().count("kept ")
        if out.exists():  # the bundle was there already, and the next export is another one
            assert contents(out) == want
            log.write_text("")
        assert start().wait() == 0
        events = [tuple(line.split(" ", 1)) for line in log.read_text().splitlines()]
        print(f"{before} kept before, {len(check_repeats(events, 1))} in all")
        assert contents(out) == want
        assert not out.with_name("bundle.work").exists()


def test_calibration_and_codes_are_taken_from_the_run_before(cut_checkpoint, tmp_path, monkeypatch):
    config = BuildConfig(
        recipe="orin-w8a8",
        checkpoint=cut_checkpoint,
        out=tmp_path / "bundle",
        image_size=(112, 112),
        tokens=64,
        calibration=EPISODES,
        max_observations=4,
    )
    recipe, checkpoint = RECIPES[config.recipe](), load_checkpoint(cut_checkpoint)
    real, quantized, ran = quant.apply.quantize_layer, [], []
    reference = export.subject.reference_actions

    def killed(*arguments):
        if len(quantized) == 3:
            raise KeyboardInterrupt
        quantized.append(1)
        return real(*arguments)

    def counted(*arguments):
        ran.append(1)
        return reference(*arguments)

    monkeypatch.setattr(export.subject, "reference_actions", counted)
    with monkeypatch.context() as patch:
        patch.setattr(quant.apply, "quantize_layer", killed)
        with pytest.raises(KeyboardInterrupt), kept_work(config.out) as work:
            prepare(config, recipe, checkpoint, work=work)
    assert len(list(work.glob("*.safetensors"))) == 3 and (work / CALIBRATION).is_file()
    assert len(ran) == 1 + 4

    monkeypatch.setattr(quant.apply, "quantize_layer", lambda *a: quantized.append(1) or real(*a))
    with kept_work(config.out) as work:
        again = prepare(config, recipe, checkpoint, work=work)
        undisturbed = prepare(config, recipe, checkpoint)
        layers = {n: m for n, m in again.model.named_modules() if isinstance(m, QuantLinear)}
        assert len(quantized) == 2 * len(layers), "no layer twice, but for the undisturbed run"
        assert len(ran) == 5 + 5, "the reference is kept too"
        for name, layer in layers.items():
            want = undisturbed.model.get_submodule(name).state_dict()
            assert layer.state_dict().keys() == want.keys()
            assert all(torch.equal(t, want[n]) for n, t in layer.state_dict().items()), name
        assert any(isinstance(layer.codes, StoredTensor) for layer in layers.values())
    assert not work.exists()


@pytest.mark.parametrize(("error", "stays"), [(KeyboardInterrupt, True), (ValueError, False)])
def test_what_was_made_stays_only_for_an_export_to_go_on(tmp_path, error, stays):
    with pytest.raises(error), kept_work(tmp_path / "bundle") as work:
        (work / MADE).write_bytes(b"codes")
        raise error
    assert work.exists() == stays
    with kept_work(tmp_path / "bundle") as work:
        assert (work / MADE).exists() == stays
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_in_its_place_is_refused(tmp_path):
    place = tmp_path / "bundle.work"
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    with (
        pytest.raises(OutputError, match="not ours to replace: notes.txt is not of an export"),
        kept_work(tmp_path / "bundle"),
    ):
        pass
    assert (place / "notes.txt").read_text() == "mine"
