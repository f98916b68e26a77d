"""A bundle whose images are resized by an engine is the bundle whose host resizes them."""

import numpy as np
import onnx
import pytest

import runtime
from export.build import build
from export.engines.compile_check import check_compiles, is_available
from export.engines.onnx_file import write_onnx
from models.networks.engines import pixels_engine
from runtime.golden import Golden, vary
from runtime.image import ImageConfig, grid_of
from tests.export.conftest import cut_config
from tests.once import once

CAMERA = (150, 118)
"""Width and height; neither side is a multiple of 28."""


@pytest.fixture(scope="module")
def bundles(cut_checkpoint, shared_folder):
    """The cut policy for one camera, float32, by where images are resized."""

    def export(where):
        changes = {"image_size": CAMERA, "tokens": 96, "resize_on": where}
        changes |= {"calibration": None, "held_out": None}
        return once(
            shared_folder / f"resized-on-{where}",
            lambda out: build(cut_config(cut_checkpoint, out, "float32", **changes)),
        )

    return {where: export(where) for where in ("host", "engine")}


def test_a_recipe_of_another_format_leaves_the_engine_in_float32(cut_checkpoint, tmp_path):
    changes = {"image_size": CAMERA, "tokens": 96, "resize_on": "engine"}
    changes |= {"calibration": None, "held_out": None}
    out = build(cut_config(cut_checkpoint, tmp_path / "bundle", "orin-bf16", **changes))
    model = onnx.load(out / "engines" / "pixels.onnx", load_external_data=False)
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute}
    assert types <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    vision = onnx.load(out / "engines" / "vision.onnx", load_external_data=False)
    assert onnx.TensorProto.BFLOAT16 in {tensor.data_type for tensor in vision.graph.initializer}


@pytest.mark.parametrize("camera", [(112, 112), (112, 120)])
def test_a_camera_that_delivers_the_size_along_an_axis_needs_no_matrix_there(
    cut_checkpoint, tmp_path, camera
):
    changes = {"image_size": camera, "tokens": 96, "resize_on": "engine"}
    changes |= {"calibration": None, "held_out": None}
    out = build(cut_config(cut_checkpoint, tmp_path / "bundle", "float32", **changes))
    model = onnx.load(out / "engines" / "pixels.onnx", load_external_data=False)
    names = {tensor.name for tensor in model.graph.initializer}
    assert names & {"rows", "columns"} == ({"rows"} if camera[1] == 120 else set())
    assert all(parity.passed for parity in runtime.load(out).check())


def test_both_answer_alike_to_the_bit(bundles):
    answers = []
    for path in bundles.values():
        with runtime.load(path) as policy:
            golden = Golden.of(policy.bundle)
            episode = policy.start(seed=5, **golden.given)
            ticks = [vary(policy.inputs, golden.observed, count) for count in range(3)]
            answers.append([episode.act(tick).actions for tick in ticks])
            assert all(parity.passed for parity in policy.check())
    assert np.array_equal(*answers)
    assert not np.array_equal(answers[0][0], answers[0][1])


def test_the_anchor_is_resized_once_and_every_frame_anew(bundles):
    with runtime.load(bundles["engine"]) as policy:
        golden = Golden.of(policy.bundle)
        with policy.start(instruction=golden.given["instruction"]) as episode:
            for count in (7, 8, 9):
                episode.act(vary(policy.inputs, golden.observed, count))
            runs = episode.stats.num_runs
    assert (runs["anchor_patches"], runs["frame_patches"]) == (1, 3)


def test_another_camera_is_refused_with_both_sizes(bundles):
    with runtime.load(bundles["engine"]) as policy:
        golden = Golden.of(policy.bundle)
        episode = policy.start(**golden.given)
        image = np.ascontiguousarray(golden.observed["frame"][:-1])
        with pytest.raises(runtime.ObservationError, match=r"\[118, 150, 3\].*got \[117, 150, 3\]"):
            episode.act({**golden.observed, "frame": image})


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Of a camera of 640 by 480."""
    config = ImageConfig(min_pixels=1, max_pixels=512 * 512)
    spec = pixels_engine(config, (480, 640), grid_of(480, 640, config))
    return write_onnx(spec, tmp_path_factory.mktemp("engine") / "pixels.onnx", opset=18).path


def test_the_engine_stays_float32_and_reads_bytes(published):
    model = onnx.load(published, load_external_data=False)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert types <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


@pytest.mark.skipif(not is_available(), reason="TensorRT for RTX has wheels for x86-64 Linux only")
def test_the_engine_compiles_for_orins_nearest_relative(published):
    compiled = check_compiles(published)
    assert compiled.ok, compiled.message
    assert compiled.message.startswith("SM86 in")
