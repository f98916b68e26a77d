"""A manifest that this runtime could not load, feed and run is refused before anything loads."""

import json

import msgspec
import pytest
from msgspec.structs import replace

import runtime
from runtime.bundle import read_bundle
from runtime.declarations import Input, Memory, Output, Prompt, Tensor, check_inputs, check_outputs
from tests.families import INPUTS
from tests.runtime.test_declarations import AGO, FIRST, GOAL, HISTORY, PROMPT, family


def _edit(path, change):
    raw = json.loads((path / "manifest.json").read_text())
    change(raw)
    (path / "manifest.json").write_text(json.dumps(raw))


def _actions_of_one_axis(raw):
    raw["graph"]["outputs"]["actions"] = {}
    raw["graph"]["tensors"]["actions"]["shape"] = [6]


def _inputs(name, **changes):
    return lambda raw: raw["graph"]["inputs"][name].update(changes)


def _outputs(name, **changes):
    return lambda raw: raw["graph"]["outputs"][name].update(changes)


def _stage(number, **changes):
    return lambda raw: raw["graph"]["stages"][number].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_inputs("camera", shape=[8, 8]), r"'camera': image must be uint8 \[H, W, 3\], not uint8"),
        (_inputs("camera", shape=[8, 8, 4]), r"\[H, W, 3\], not uint8 \[8, 8, 4\]"),
        (_inputs("camera", dtype="float32"), r"image must be uint8 \[H, W, 3\], not float32"),
        (_inputs("camera", pace="episode"), "pace 'episode', what comes from 'robot' has tick or"),
        (_inputs("camera", source="drawn"), "image from 'drawn'; noise is drawn, and nothing e"),
        (
            _inputs("camera", of="joints"),
            "a latch, a ring, a delay or a picture of a memory names the input it keeps in",
        ),
        (_inputs("camera", kind="sound"), "Invalid enum value 'sound'"),
        (_inputs("camera", shape=[8, 0, 3]), "every side must be at least 1"),
        (_inputs("camera", similarity="x"), "only a latch has a 'similarity'"),
        (_inputs("first", similarity="x"), "its similarity 'x' is no output"),
        (_inputs("first", of="latent"), "keeps 'latent', which is no input that the robot gives"),
        (_inputs("first", of="gone"), "keeps 'gone', which is no input that the robot gives"),
        (_inputs("first", pace="tick"), "pace 'tick', what comes from 'latch' has episode or even"),
        (_inputs("first", pace="load"), "pace 'load', what comes from 'latch' has episode or even"),
        (_inputs("first", shape=[9, 8, 3]), r"a latch of 'camera' is image uint8 \[8, 8, 3\]"),
        (_inputs("past", shape=[4, 2]), r"a ring of 'joints' is vector float32 \[4, 3\]"),
        (_inputs("ago", shape=[8, 9, 3]), r"a delay of 'camera' is image uint8 \[8, 8, 3\]"),
        (_inputs("ago", steps=0), "'ago': steps 0; a delay is 1 step or more, and nothing else"),
        (_inputs("ago", steps=-1), "'ago': steps -1; a delay is 1 step or more"),
        (_inputs("first", steps=1), "'first': steps 1; a delay is 1 step or more"),
        (_inputs("first", steps=-1), "'first': steps -1; a delay is 1 step or more"),
        (_inputs("ago", of="first"), "keeps 'first', which is no input that the robot gives"),
        (_inputs("ago", pace="episode"), "pace 'episode', what comes from 'delay' has tick or"),
        (_inputs("latent", prompt={}), "missing required field"),
        (
            _inputs("goal", kind="text", dtype="int64", shape=[4], prompt=PROMPT),
            r"its prompt's template has no \{instruction\}",
        ),
        (_inputs("first", similarity="actions"), "its similarity must be one number"),
        (_outputs("actions", spread="x"), "output 'actions': its spread 'x' is no output"),
        (_outputs("actions", spread="actions"), "output 'actions': its spread must be one number"),
        (_inputs("latent", kind="leftover"), "leftover from 'drawn'; noise is drawn, and nothing"),
        (_inputs("latent", source="loop"), "noise from 'loop'; noise is drawn, and nothing else"),
        (_inputs("joints", source="loop"), "vector from 'loop'; a leftover is the loop's, and no"),
        (
            _inputs("joints", kind="leftover", source="loop"),
            r"leftover must be float32 \[T, 1 \+ A\], not float32 \[3\]",
        ),
        (
            lambda raw: raw["graph"]["tensors"]["camera_mean"].update(dtype="bfloat16"),
            r"outputs \['camera_mean'\] are bfloat16",
        ),
        (_inputs("goal", kind="text", dtype="int64"), "a text needs a 'prompt'"),
        (_inputs("joints", width=3), "unknown field `width`"),
        (_inputs("joints", kind="video", shape=[3, 3]), r"a video is \[n, H, W, 3\], not \[3, 3\]"),
        (_stage(0, function="copy"), r"reads \['image'\], not \['value'\]"),
        (_stage(0, params={}), "missing required field `grid`"),
        (_stage(0, params={"grid": [2, 2], "image": {"min_pixels": 9, "max_pixels": 1}}), "9, 1"),
        (
            _stage(
                2,
                function="patches",
                inputs={"image": "joints"},
                outputs={"patches": "joints_rows"},
            ),
            "'image' takes image or video, 'joints' is a vector",
        ),
        (_stage(0, inputs={"image": "camera_mean"}), "reads 'camera_mean' before all of it is wri"),
        (_stage(0, outputs={"rows": "camera_rows"}), r"writes \['rows'\], not \['patches'\]"),
        (
            lambda raw: raw["graph"]["stages"][0]["params"].update(grid=[2, 3]),
            r"'patches' is \[4, 96\], \[6, 96\] is wanted",
        ),
        (
            lambda raw: raw["graph"]["stages"][2].update(inputs={"value": "past"}),
            "are not those the graph implies",
        ),
        (_actions_of_one_axis, r"must be a chunk of actions float32 \[T, A\], got float32 \[6\]"),
        (lambda raw: raw["graph"]["outputs"].clear(), "a graph needs at least one output"),
        (
            lambda raw: raw["graph"].update(outputs={"camera_rows": {}}),
            r"no tolerance for \['camera_rows'\]",
        ),
        (
            lambda raw: raw["graph"]["outputs"]["actions"].update(axes=["step"]),
            r"is \[2, 3\], its axes are",
        ),
        (
            lambda raw: raw["graph"]["outputs"]["actions"].update(units=["m"]),
            "has 1 units for 3 entries",
        ),
        (lambda raw: raw["graph"]["outputs"]["actions"].update(step_s=0), "step_s is 0"),
        (lambda raw: raw["graph"]["outputs"]["actions"].update(every=-1), "every is -1"),
        (
            lambda raw: raw["graph"]["inputs"].update(extra=raw["graph"]["inputs"]["joints"]),
            "extra",
        ),
    ],
)
def test_a_manifest_that_cannot_be_fed_is_refused_in_one_line(tmp_path, change, message):
    path = family(tmp_path, {**INPUTS, "first": FIRST, "goal": GOAL, "past": HISTORY, "ago": AGO})
    read_bundle(path)
    _edit(path, change)
    with pytest.raises(runtime.BundleError, match=message) as caught:
        read_bundle(path)
    assert "\n" not in str(caught.value)


def test_every_field_of_a_declaration_counts():
    with pytest.raises(ValueError, match="input 'a': a text from 'robot'; only an operator says"):
        text = Input(
            kind="text", source="robot", shape=(3,), dtype="int64", pace="tick",
            prompt=Prompt(tokenizer="t", template="{instruction}", end_ids=()),
        )  # fmt: skip
        check_inputs({"a": text}, {"out": Output()})


MEMORY = {
    "slots": ["old", "new"], "output": "events", "threshold": 0.5, "least_offset": 1,
    "nms_window": 2, "cooldown": 2, "num_replans": 3,
}  # fmt: skip


def memory(**changes):
    return msgspec.convert(MEMORY | changes, Memory)


SLOT = replace(AGO, source="memory", steps=0, pace="event")
COUNT = Input(
    kind="vector", source="memory", shape=(1,), dtype="float32", pace="event", memory=memory()
)
KEPT = {**INPUTS, "old": SLOT, "new": replace(SLOT), "count": COUNT}
EVENTS = {"out": Output(), "events": Output(every=1)}


def test_a_memory_of_pictures_is_declared():
    check_inputs(KEPT, EVENTS)


@pytest.mark.parametrize(
    ("changes", "outputs", "message"),
    [
        ({}, {"out": Output()}, "'count': its output 'events' must be one that is computed in eve"),
        ({}, {"events": Output(every=2)}, "'count': its output 'events' must be one that is comp"),
        ({"count": replace(COUNT, shape=(2,))}, EVENTS, r"kept pictures is a vector \[1\] from"),
        ({"count": replace(COUNT, source="robot", pace="tick")}, EVENTS, r"is a vector \[1\] from"),
        ({"old": replace(SLOT, memory=memory())}, EVENTS, "'old': a latch, a ring, a delay or a p"),
        ({"old": replace(SLOT, of="")}, EVENTS, "'old': a latch, a ring, a delay or a picture of"),
        ({"old": replace(SLOT, of="joints")}, EVENTS, "'old': is image uint8"),
        ({"old": replace(SLOT, steps=1)}, EVENTS, "'old': steps 1"),
        ({"old": replace(SLOT, pace="tick")}, EVENTS, "what comes from 'memory' has event"),
        ({"third": replace(SLOT)}, EVENTS, "'third': one number of kept pictures must name it"),
        ({"more": replace(COUNT)}, EVENTS, "'old': one number of kept pictures must name it"),
        (
            {"count": replace(COUNT, memory=memory(slots=["old", "old"]))},
            EVENTS,
            "'old': one number of kept pictures must name it among its slots",
        ),
        (
            {"count": replace(COUNT, memory=memory(slots=["old", "new", "gone"]))},
            EVENTS,
            r"'count': its slots \['old', 'new', 'gone'\] must be pictures that a memory keeps of",
        ),
        (
            {"wrist": INPUTS["camera"], "new": replace(SLOT, of="wrist")},
            EVENTS,
            r"'count': its slots \['old', 'new'\] must be pictures that a memory keeps of one cam",
        ),
        (
            {"count": replace(COUNT, memory=memory(slots=["camera"])), "old": AGO, "new": AGO},
            EVENTS,
            r"its slots \['camera'\] are no pictures from 'memory'",
        ),
    ],
)
def test_a_memory_that_nothing_could_fill_is_refused(changes, outputs, message):
    with pytest.raises(ValueError, match=message):
        check_inputs({**KEPT, **changes}, outputs)


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 0}, {"threshold": 1.5}, {"least_offset": 0}, {"nms_window": -1},
        {"cooldown": -1}, {"num_replans": -1},
    ],
)  # fmt: skip
def test_settings_of_a_memory_that_cannot_be_are_refused(changes):
    with pytest.raises(msgspec.ValidationError, match=next(iter(changes))):
        memory(**changes)


def test_events_are_one_number_per_step():
    tensors = {"out": Tensor(shape=(4, 2)), "events": Tensor(shape=(4, 1))}
    with pytest.raises(ValueError, match="'count': its output must be one number per step"):
        check_outputs(EVENTS, KEPT, tensors)
    check_outputs(EVENTS, KEPT, tensors | {"events": Tensor(shape=(4,))})


def test_manifest_bytes_are_verified_before_anything_parses_them(tmp_path):
    path = family(tmp_path, INPUTS)
    seen = []
    read_bundle(path, verify=lambda *given: seen.append(given))
    assert seen == [(path, (path / "manifest.json").read_bytes())]
    (path / "manifest.json").write_bytes(b"[" * 100)

    def refuse(_, data):
        raise runtime.BundleError(f"not signed: {len(data)} bytes")

    with pytest.raises(runtime.BundleError, match="not signed: 100 bytes"):
        read_bundle(path, verify=refuse)
