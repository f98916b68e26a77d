"""The cross-check with torch-tensorrt: what it refuses, and what it measures of a stand-in.

No torch-tensorrt is here. `StandInCompiler` has its calling convention and returns the exported
program itself, so it proves our side only: what is passed, measured, compared and said.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.errors import ExportError
from export.evidence.crosscheck import CrosscheckConfig, crosscheck
from models.checkpoint import WEIGHTS
from models.demo import CHECKPOINT
from runtime.backends.registry import BACKENDS
from runtime.errors import EngineError

ENGINES = ("project", "condition", "denoise")
ROUNDING = 1e-5
"""Two float32 sums of n terms differ by some sqrt(n) * 2^-24, and n is up to 1024 here: 2e-6."""


class StandInCompiler:
    """In place of the module `torch_tensorrt`: compiles nothing."""

    def __init__(self, *, factor=1.0, refuses=()):
        self.dynamo = SimpleNamespace(compile=self._compile)
        self.settings = []
        self._factor, self._refuses = factor, refuses

    def _compile(self, program, arg_inputs, **settings):
        assert isinstance(program, torch.export.ExportedProgram)
        self.settings.append(settings)
        if len(self.settings) in self._refuses:
            raise RuntimeError("no converter for aten.made_up\nand a long trace")
        function = program.module()
        return lambda *arguments: function(*arguments) * self._factor


@pytest.fixture(scope="module")
def config(cut_checkpoint, exported):
    return CrosscheckConfig(
        checkpoint=cut_checkpoint,
        bundle=exported("float32"),
        image_size=(112, 112),
        tokens=64,
        runs=2,
        engines=ENGINES,
    )


def check(config, compiler=None, **options):
    """On the CPU; ONNX Runtime stands for the backend of the plans."""
    options = {"device": "cpu", "make_backend": BACKENDS["onnxruntime"]} | options
    return crosscheck(config, compiler=compiler or StandInCompiler(), **options)


def test_without_torch_tensorrt_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(ExportError, match=r"needs torch-tensorrt: .*JetPack 6.*2\.8\.0.*workstat"):
        crosscheck(CrosscheckConfig(checkpoint=CHECKPOINT))


def test_without_a_gpu_it_says_what_to_look_at(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", StandInCompiler())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ExportError, match=r"needs a CUDA device, and torch .* sees none.*nvidia-s"):
        crosscheck(CrosscheckConfig(checkpoint=CHECKPOINT))


def test_every_engine_is_measured_each_way(config, capsys):
    rows = check(config)
    assert [row.engine for row in rows] == list(ENGINES)
    for row in rows:
        assert list(row.ways) == ["torch", "torch-tensorrt", "plan"]
        assert all(way.median_ms > 0 for way in row.ways.values())
        assert all(way.error < ROUNDING for way in row.ways.values())
        assert row.ways["torch"].error == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in (*ENGINES, "torch-tensorrt", "plan"))


def test_without_a_bundle_only_the_module_is_compared_with(config, capsys):
    (row,) = check(dataclasses.replace(config, bundle=None, engines=("project",)))
    assert list(row.ways) == ["torch", "torch-tensorrt"]
    assert "plan" not in capsys.readouterr().out


def test_types_are_the_modules_own_and_nothing_falls_back_to_torch(config):
    compiler = StandInCompiler()
    check(dataclasses.replace(config, bundle=None, engines=("project",)), compiler)
    (settings,) = compiler.settings
    assert settings["use_explicit_typing"] is True
    assert settings["require_full_compilation"] is True


def test_an_engine_that_computes_something_else_stands_out(config):
    (row,) = check(dataclasses.replace(config, engines=("project",)), StandInCompiler(factor=1.01))
    assert row.ways["torch-tensorrt"].error == pytest.approx(0.01, rel=1e-3)
    assert row.ways["plan"].error < ROUNDING


def test_an_engine_that_is_refused_is_named_after_the_others_were_measured(config, capsys):
    message = r"does not compile 1 engine\(s\): condition: no converter for aten.made_up$"
    with pytest.raises(ExportError, match=message):
        check(config, StandInCompiler(refuses=(2,)))
    printed = capsys.readouterr().out
    assert "refused" in printed
    assert "denoise" in printed


def test_an_engine_that_there_is_not_is_refused(config):
    with pytest.raises(ValueError, match=r"unknown engines \['wheels'\]; there are \['condition'"):
        check(dataclasses.replace(config, engines=("wheels",)))


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="runs must be positive, got 0"):
        CrosscheckConfig(checkpoint=CHECKPOINT, runs=0)


def test_a_bundle_of_other_weights_is_refused(config, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(config.checkpoint, other)
    weights = load_file(other / WEIGHTS)
    weights["action_head.x_embedder.bias"] += 1
    save_file(weights, other / WEIGHTS)
    with pytest.raises(ExportError, match=r"made from weights .* holds .*; give the one it was ma"):
        check(dataclasses.replace(config, checkpoint=other))


def test_a_quantized_bundle_is_refused(config, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(config.bundle, bundle, copy_function=lambda a, b: Path(b).hardlink_to(a))
    raw = json.loads((bundle / "manifest.json").read_text())
    raw["recipe"]["name"] = "orin-mixed"
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(
        ExportError, match=r"recipe orin-mixed, but .* python -m export build float"
    ):
        check(dataclasses.replace(config, bundle=bundle))


def test_a_bundle_of_other_shapes_is_refused(config):
    with pytest.raises(ExportError, match="other shapes; give the --image-size and --tokens"):
        check(dataclasses.replace(config, tokens=70))


def test_a_plan_that_cannot_be_used_is_said_in_the_runtimes_words(config):
    def no_plans(bundle):
        raise EngineError("no plans here; make them: anchorvla build")

    with pytest.raises(ExportError, match="plans cannot be run: no plans here; make them: anchorv"):
        check(config, make_backend=no_plans)
