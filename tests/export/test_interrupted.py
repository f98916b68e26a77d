"""An interrupted export goes on: what it had calibrated and quantized is not made again."""

import pytest
import torch

import export.subject
import quant.apply
from export.config import BuildConfig
from export.destination import CALIBRATION, kept_work
from export.subject import prepare
from models.checkpoint import load_checkpoint
from models.stored import StoredTensor
from quant.modules import QuantLinear
from quant.recipes import RECIPES
from runtime.errors import OutputError
from tests.conftest import EPISODES

MADE = "0" * 64 + ".safetensors"


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
        assert len(ran) == 5 + 1 + 5
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
