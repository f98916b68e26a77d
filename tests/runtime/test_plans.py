"""A plan is used where it was made, whole and measured, or refused before TensorRT sees a byte."""

import hashlib
import json
import math
import re
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from msgspec import structs

from runtime.bundle import read_bundle
from runtime.errors import EngineError
from runtime.plans.key import GpuFacts, current_key, current_power_mode
from runtime.plans.record import (
    PlanRecord,
    allowed_parity,
    onnx_sha256,
    other_power_modes,
    plan_path,
    publish_plan,
    read_plan,
)
from tests.runtime.stand_ins.tiny_bundle import KEY, TENSORRT, figures, tiny_bundle

PLAN = b"bytes that run as native code"
GOOD = {"second": 1e-3, "second_again": 1e-3}


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path / "bundle")


@pytest.fixture
def deserialize():
    """Load a plan as the runtime does; `seen` is what reached the deserializer."""
    seen = []

    def load(bundle, **options):
        with read_plan(bundle, "second", KEY, **options) as plan:
            seen.append(bytes(plan))

    load.seen = seen
    return load


def publish(bundle, key=KEY, **changes):
    fields = {
        "engine": "second",
        "key": key,
        "onnx_sha256": onnx_sha256(bundle.manifest, "second"),
        "plan_sha256": hashlib.sha256(PLAN).hexdigest(),
        "plan_bytes": len(PLAN),
        "seconds": 1.5,
        "workspace_bytes": 1 << 30,
        "parity": GOOD,
    }
    record = PlanRecord(**{**fields, **changes})
    path = plan_path(bundle, "second", key)
    path.parent.mkdir(parents=True, exist_ok=True)
    built = path.with_suffix(".new")
    built.write_bytes(PLAN)
    publish_plan(bundle, built, record)
    return path


def edit(path, **changes):
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | changes))


def test_a_good_plan_is_handed_out_whole(bundle, deserialize):
    path = publish(bundle)
    deserialize(bundle)
    assert deserialize.seen == [PLAN]
    assert sorted(p.name for p in path.parent.iterdir()) == ["second.json", "second.plan"]


def anonymous_bytes():
    """Of this process's memory, what is no page of a file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])


def test_a_plan_takes_no_memory_beside_its_file(bundle):
    """On a board its copy would take what its weights need. A copy would be all of 64 MB."""
    data = bytes(64 << 20)
    sizes = {"plan_sha256": hashlib.sha256(data).hexdigest(), "plan_bytes": len(data)}
    path = publish(bundle)
    path.write_bytes(data)
    del data
    edit(path.with_suffix(".json"), **sizes)
    before = anonymous_bytes()
    with read_plan(bundle, "second", KEY) as plan:
        assert plan.nbytes == 64 << 20
        assert anonymous_bytes() - before < 8 << 20
        assert str(path) in Path("/proc/self/maps").read_text()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_a_plan_that_is_refused_stays_mapped_nowhere(bundle):
    path = publish(bundle)
    path.write_bytes(b"B" + PLAN[1:])
    with pytest.raises(EngineError, match="SHA-256") as error:
        read_plan(bundle, "second", KEY)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert error.value.__traceback__ is not None


def test_a_plan_cannot_be_written_through_its_mapping(bundle):
    path = publish(bundle)
    with read_plan(bundle, "second", KEY) as plan, pytest.raises(TypeError, match="read-only"):
        plan[0] = 0
    assert path.read_bytes() == PLAN


def test_the_folder_says_what_the_plan_is_for():
    assert KEY.folder_name == "orin-sm87-16sm-tensorrt-10.3.0"
    other = replace(KEY, gpu="Orin (nvgpu)", backend="tensorrt_rtx")
    assert other.folder_name == "orin-nvgpu-sm87-16sm-tensorrt-rtx-10.3.0"


def test_no_plan_names_the_command_that_makes_one(bundle, deserialize):
    words = rf"no plan for engine 'second'; run: anchorvla build {bundle.path}$"
    with pytest.raises(EngineError, match=words):
        deserialize(bundle)
    publish(bundle).with_suffix(".json").unlink()
    with pytest.raises(EngineError, match=words):
        deserialize(bundle)
    assert deserialize.seen == []


OTHERS = {
    "gpu": ("Xavier", "GPU Xavier, here Orin"),
    "compute_capability": ("11.0", "SM 11.0, here 8.7"),
    "num_sms": (8, "number of SMs 8, here 16"),
    "version": ("10.16.1", "TensorRT 10.16.1, here 10.3.0"),
    "backend": ("tensorrt_rtx", "compiler tensorrt_rtx, here tensorrt"),
    "cuda": ("13.2", "CUDA 13.2, here 12.6"),
}
"""Field of a key -> another value, and the words for it."""


def test_every_field_of_a_key_is_tried_below():
    assert OTHERS.keys() == asdict(KEY).keys()


@pytest.mark.parametrize("is_moved", [False, True], ids=["where it was made", "moved here"])
@pytest.mark.parametrize("field", OTHERS)
def test_a_plan_for_another_machine_is_refused_with_both_named(
    bundle, deserialize, field, is_moved
):
    value, words = OTHERS[field]
    other = replace(KEY, **{field: value})
    folder = publish(bundle, other).parent
    if is_moved and other.folder_name != KEY.folder_name:
        folder.rename(folder.with_name(KEY.folder_name))
    with pytest.raises(EngineError) as error:
        deserialize(bundle)
    message = str(error.value)
    assert f"built for {other}, but this machine is {KEY} ({words})" in message
    assert message.endswith(f"Rebuild it here: anchorvla build {bundle.path}")
    assert deserialize.seen == []


def test_a_plan_of_this_machine_is_found_beside_others(bundle, deserialize):
    for field, (value, _) in OTHERS.items():
        if field != "cuda":  # which is not in the folder's name
            publish(bundle, replace(KEY, **{field: value}))
    publish(bundle)
    deserialize(bundle)
    assert deserialize.seen == [PLAN]


def test_an_empty_plan_is_damaged_whatever_its_record_says(bundle, deserialize):
    path = publish(bundle, plan_sha256=hashlib.sha256(b"").hexdigest(), plan_bytes=0)
    path.write_bytes(b"")
    with pytest.raises(EngineError, match=r"second\.plan: 0 bytes, its record says 0: damaged"):
        deserialize(bundle)


def test_another_engines_record_under_this_name_is_refused(bundle, deserialize):
    edit(publish(bundle).with_suffix(".json"), engine="first")
    with pytest.raises(
        EngineError, match=r"second\.json: the record is of engine 'first'.*Rebuild"
    ):
        deserialize(bundle)
    assert deserialize.seen == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (PLAN[:-1], f"{len(PLAN) - 1} bytes, its record says {len(PLAN)}: damaged. Rebuild"),
        (b"B" + PLAN[1:], "SHA-256 differs from its record's: damaged. Rebuild it here"),
        (b"", f"0 bytes, its record says {len(PLAN)}: damaged. Rebuild"),
    ],
)
def test_a_damaged_plan_is_refused(bundle, deserialize, data, words):
    publish(bundle).write_bytes(data)
    with pytest.raises(EngineError, match=rf"second\.plan: {words}"):
        deserialize(bundle)
    assert deserialize.seen == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '{"key": {}, "parity": {}}',
        '{"key": 5, "parity": {"second": "x"}}',
        "[" * 10_000,
        " " * (1 << 21),
    ],
    ids=["empty", "object", "list", "no-key", "types", "deep", "huge"],
)
def test_a_damaged_record_is_refused(bundle, deserialize, text):
    publish(bundle).with_suffix(".json").write_text(text)
    with pytest.raises(EngineError, match=r"second\.json: not a plan's record \(.*Rebuild"):
        deserialize(bundle)
    assert deserialize.seen == []


def test_a_plan_of_other_weights_is_refused(bundle, deserialize, tmp_path):
    publish(bundle)
    other = tiny_bundle(tmp_path / "other", seed=1)
    shutil.copytree(bundle.path / "plans", other.path / "plans")
    with pytest.raises(EngineError, match=r"compiled from another second\.onnx than the one in"):
        deserialize(other)
    assert deserialize.seen == []


def test_weights_beside_the_onnx_file_count_too(bundle, tmp_path):
    weights = bundle.path / "engines" / "second.weights"
    data = weights.read_bytes()[::-1]
    before = onnx_sha256(bundle.manifest, "second")
    weights.write_bytes(data)
    raw = json.loads((bundle.path / "manifest.json").read_text())
    raw["files"]["engines/second.weights"]["sha256"] = hashlib.sha256(data).hexdigest()
    (bundle.path / "manifest.json").write_text(json.dumps(raw))
    assert onnx_sha256(read_bundle(bundle.path).manifest, "second") != before


@pytest.mark.parametrize(
    ("parity", "words"),
    [
        (GOOD | {"second": 5e-3}, r"fail .stage 'second' differs by 5\.0e-03, allowed 4\.0e-03.;"),
        (GOOD | {"second": math.nan}, "fail .stage 'second' differs by inf"),
        ({"second": 1e-3}, "fail .stage 'second_again' differs by inf"),
        ({}, "fail .stage 'second' .*; stage 'second_again'"),
    ],
    ids=["too-far", "nan", "a-stage-left-out", "none"],
)
def test_a_plan_that_computes_something_else_is_refused(bundle, deserialize, parity, words):
    publish(bundle, parity=parity)
    with pytest.raises(EngineError, match=rf"parity of engine 'second': {words}"):
        deserialize(bundle, accept_unmeasured=True)
    assert deserialize.seen == []


def test_what_is_allowed_comes_from_the_bundle_and_not_from_the_record(bundle, deserialize):
    path = publish(bundle, parity=GOOD | {"second": 5e-3}, allowed={"second": 1.0})
    edit(path.with_suffix(".json"), allowed={"second": 1.0, "second_again": 1.0})
    with pytest.raises(EngineError, match="fail .stage 'second'"):
        deserialize(bundle)


def test_a_plan_that_nobody_measured_is_for_compile_checks_only(bundle, deserialize):
    publish(bundle, parity={}, not_measured="no GPU here")
    with pytest.raises(EngineError, match="not measured .no GPU here.; a plan is used only after"):
        deserialize(bundle)
    assert deserialize.seen == []
    deserialize(bundle, accept_unmeasured=True)
    assert deserialize.seen == [PLAN]


def test_allowed_is_what_export_measured_and_what_bfloat16_does(bundle):
    """1.5 x the error of the lowered file where there is one, plus the noise floor."""
    assert allowed_parity(bundle.manifest, "first") == {"first": pytest.approx(8e-3)}
    expected = {"second": pytest.approx(4e-3), "second_again": pytest.approx(7e-3)}
    assert allowed_parity(bundle.manifest, "second") == expected


@pytest.mark.parametrize(
    "stages", [{}, {"second": figures(noise_floor=0.1)}], ids=["no stage", "no parity"]
)
def test_a_bundle_without_measurements_cannot_be_compared(bundle, deserialize, stages):
    publish(bundle)
    quantization = structs.replace(bundle.manifest.quantization, stages=stages)
    manifest = structs.replace(bundle.manifest, quantization=quantization)
    with pytest.raises(EngineError, match="holds no measured error of stage 'second'.*export the"):
        deserialize(replace(bundle, manifest=manifest))
    assert deserialize.seen == []


def test_a_record_is_one_mebibyte_at_most(bundle, deserialize):
    path = publish(bundle).with_suffix(".json")
    text = path.read_text()
    path.write_text(text.ljust(1 << 20))
    deserialize(bundle)
    path.write_text(text.ljust((1 << 20) + 1))
    with pytest.raises(EngineError, match="1048577 bytes, the limit is 1048576"):
        deserialize(bundle)


def test_an_error_that_is_no_number_is_written_as_json_that_everybody_reads(bundle):
    path = publish(bundle, parity={"second": math.inf}).with_suffix(".json")
    assert json.loads(path.read_text())["parity"] == {"second": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish(bundle, seconds=math.nan)


def test_links_are_refused(bundle, deserialize, tmp_path):
    path = publish(bundle)
    path.rename(tmp_path / "elsewhere.plan")
    path.symlink_to(tmp_path / "elsewhere.plan")
    with pytest.raises(EngineError, match=r"second\.plan: a link; plans are plain files"):
        deserialize(bundle)
    assert deserialize.seen == []


def test_unknown_engines_and_names_that_leave_the_folder_are_refused(bundle):
    with pytest.raises(EngineError, match=r"no engine 'third'; it has \['first', 'second'\]"):
        read_plan(bundle, "third", KEY)
    entry = bundle.manifest.engines["second"]
    manifest = structs.replace(bundle.manifest, engines={"../../escape": entry})
    with pytest.raises(EngineError, match=r"the engine's name '../../escape' is no file name"):
        read_plan(replace(bundle, manifest=manifest), "../../escape", KEY)


def test_the_key_of_this_machine_is_asked_of_its_driver(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(str(TENSORRT))
    plant_driver(monkeypatch)
    try:
        key = current_key("tensorrt")
    finally:
        sys.modules.pop("tensorrt", None)
    assert key == KEY


def test_the_power_mode_decides_no_key(monkeypatch):
    """Its name is another one under sudo, in a container, on the next release."""
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    facts = GpuFacts("Orin", "8.7", 16, "12.6")
    for mode in (None, SimpleNamespace(name="MAXN"), SimpleNamespace(name="15W")):
        plant_power_mode(monkeypatch, mode)
        assert current_key(read_gpu=lambda: facts) == KEY


def test_the_power_mode_is_read_from_the_machine(monkeypatch):
    plant_power_mode(monkeypatch, SimpleNamespace(name="MAXN"))
    assert current_power_mode() == "MAXN"
    plant_power_mode(monkeypatch, None)
    assert current_power_mode() == "unknown"


def plant_power_mode(monkeypatch, mode):
    machine = SimpleNamespace(power_mode=mode)
    monkeypatch.setattr("runtime.board.machine.read_machine", lambda: machine)


def test_a_plan_of_another_power_mode_is_used_and_named(bundle, deserialize):
    publish(bundle, power_mode="15W")
    deserialize(bundle)
    assert deserialize.seen == [PLAN]
    assert other_power_modes(bundle, KEY, "MAXN") == ["15W"]
    assert other_power_modes(bundle, KEY, "15W") == []
    assert other_power_modes(bundle, KEY, "unknown") == []
    assert other_power_modes(bundle, replace(KEY, num_sms=8), "MAXN") == [], "not of this machine"
    publish(bundle, power_mode="unknown")
    assert other_power_modes(bundle, KEY, "MAXN") == []


def test_what_is_missing_for_a_key_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="tensorrt cannot be imported .* it comes with JetPack"):
        current_key("tensorrt")
    with pytest.raises(ValueError, match=r"backend must be one of \['tensorrt', 'tensorrt_rtx'\]"):
        current_key("tensorflow")
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(EngineError, match="pycuda cannot be imported .*robot-tensorrt.txt"):
        current_key("tensorrt")
    plant_driver(monkeypatch, error="no CUDA-capable device is detected")
    with pytest.raises(EngineError, match=r"no GPU answers \(no CUDA-capable device is detected"):
        current_key("tensorrt")


def plant_driver(monkeypatch, error=None):
    """A stand-in for `pycuda.driver` on an Orin."""

    class Error(Exception):
        pass

    def init():
        if error:
            raise Error(error)

    device = SimpleNamespace(
        name=lambda: "Orin",
        compute_capability=lambda: (8, 7),
        get_attribute=lambda attribute: {"sms": 16}[attribute],
    )
    driver = ModuleType("pycuda.driver")
    driver.Error, driver.init, driver.Device = Error, init, [device].__getitem__
    driver.device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT="sms")
    driver.get_driver_version = lambda: 12060
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
