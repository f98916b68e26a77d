"""What outputs may mean: declared in a bundle, refused where it cannot be, and run by its name."""

import json
import re

import numpy as np
import pytest
from msgspec.structs import replace

import models.declared
import runtime
from runtime.__main__ import main
from runtime.bundle import read_bundle
from runtime.control.clock import VirtualClock
from runtime.declarations import Output, Tensor
from runtime.graph import GraphError, Stage
from runtime.meanings import FutureImage, Grasp, JointPositions
from runtime.pages.leaf_checks import MOST_NOTICES, checks_of
from runtime.recordings.recording import Recording, evenly, save_recording
from tests.families import CHUNK, INPUTS, SIDE, golden_of, toy_graph, write_bundle
from tests.pages import Page, broken_promises
from tests.runtime.stand_ins.telling import ARM, Arm, TellingPolicy, drive

JOINTS = ("a", "b", "")
LEAVES = {
    "grasp": models.declared.grasp(),
    "where": models.declared.joint_positions(JOINTS),
    "future": models.declared.future_image("camera", 4),
}


def telling_graph(**outputs):
    """A `toy_graph` whose leaves are constants, and joints as they are felt."""
    graph = toy_graph(INPUTS)
    shapes = {"grasp": (1,), "where": (3,), "future": (SIDE, SIDE, 3)}
    white = np.full((SIDE, SIDE, 3), 255.0).tolist()
    stages = [
        Stage(name=name, function="constant", outputs={"value": name}, params={"values": values})
        for name, values in (("grasp", [0.125]), ("future", white))
    ]
    where = {"inputs": {"value": "joints"}, "outputs": {"value": "where"}}
    return replace(
        graph,
        outputs={**graph.outputs, **LEAVES, **outputs},
        tensors={**graph.tensors, **{name: Tensor(shape=shape) for name, shape in shapes.items()}},
        stages=(*graph.stages, *stages, Stage(name="where", function="copy", **where)),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("telling") / "toy"
    return write_bundle(folder, telling_graph(), golden_of(INPUTS))


def test_a_bundle_keeps_what_its_leaves_mean(bundle):
    outputs = read_bundle(bundle).manifest.graph.outputs
    assert outputs["grasp"].means == Grasp()
    assert outputs["where"].means == JointPositions(names=JOINTS)
    assert outputs["future"].means == FutureImage(camera="camera", steps=4)
    raw = json.loads((bundle / "manifest.json").read_bytes())["graph"]["outputs"]
    assert raw["grasp"]["means"] == {"is": "grasp"}
    assert raw["where"]["means"] == {"is": "joint_positions", "names": ["a", "b", ""]}
    assert raw["future"]["means"] == {"is": "future_image", "camera": "camera", "steps": 4}
    assert [name for name, output in raw.items() if "means" in output] == [*LEAVES]


def test_joints_whose_names_nobody_knows_mean_nothing():
    assert models.declared.joint_positions(["", ""]) == Output(
        axes=("joint",), units=("rad", "rad")
    )
    middle = models.declared.future_image("camera", 3, is_middle=True)
    assert middle.means == FutureImage(camera="camera", steps=3, is_middle=True)
    assert models.declared.grasp("left").means == Grasp(gripper="left")


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"grasp": Output(means=FutureImage(camera="camera", steps=1))},
         "output 'grasp': a future image is uint8 or float32 [H, W, 3], not float32 [1]"),
        ({"where": Output(means=Grasp())},
         "output 'where': a grasp is float32 [1], not float32 [3]"),
        ({"where": Output(means=JointPositions(names=("a",)))},
         "joint positions with 1 names are float32 [1], not float32 [3]"),
        ({"where": Output(means=JointPositions(names=("", "", "")))},
         "joint positions need a name each, and once, got ['', '', '']"),
        ({"where": Output(means=JointPositions(names=("a", "b", "a")))},
         "joint positions need a name each, and once, got ['a', 'b', 'a']"),
        ({"where": Output(units=("rad", "m", "m"), means=JointPositions(names=JOINTS))},
         "joint 'b' is in 'm', joint positions are in rad"),
        ({"future": Output(means=FutureImage(camera="joints", steps=1))},
         "a future image of 'joints', which is no camera of the robot; there are camera"),
        ({"future": Output(means=FutureImage(camera="nose", steps=1))},
         "a future image of 'nose', which is no camera of the robot; there are camera"),
        ({"actions": Output(means=Grasp())},
         "output 'actions': what a tick is for is no leaf that means a thing"),
    ],
)  # fmt: skip
def test_a_meaning_that_a_tensor_cannot_have_is_refused(outputs, said):
    with pytest.raises(GraphError, match=re.escape(said)):
        telling_graph(**outputs)


def test_a_joint_that_nobody_compares_may_slide():
    slides = Output(units=("rad", "rad", "m"), means=JointPositions(names=JOINTS))
    assert telling_graph(where=slides).outputs["where"] is slides


def test_a_grasp_of_whole_numbers_is_refused():
    graph = toy_graph(INPUTS)
    tensors = {**graph.tensors, "grasp": Tensor(shape=(1,), dtype="int32")}
    stage = Stage(name="grasp", function="constant", outputs={"value": "grasp"})
    with pytest.raises(GraphError, match=re.escape("a grasp is float32 [1], not int32 [1]")):
        replace(
            graph, outputs={**graph.outputs, "grasp": Output(means=Grasp())}, tensors=tensors,
            stages=(*graph.stages, stage),
        )  # fmt: skip


@pytest.mark.parametrize("steps", [0, -1])
def test_a_future_that_is_none_is_no_manifest(bundle, tmp_path, steps):
    raw = json.loads((bundle / "manifest.json").read_bytes())
    raw["graph"]["outputs"]["future"]["means"]["steps"] = steps
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(runtime.BundleError):
        read_bundle(tmp_path)


def test_no_option_but_the_leaf_is_needed(bundle, tmp_path, capsys, monkeypatch):
    """The encoder of joint a says 1 rad more than it is seen at; the gripper is always closed."""
    monkeypatch.setattr("runtime.control.loop.MonotonicClock", VirtualClock)
    count, random = 41, np.random.default_rng(0)
    streams = {
        "camera": evenly(random.integers(0, 255, (count, SIDE, SIDE, 3), np.uint8), 10.0),
        "joints": evenly(random.normal(size=(count, CHUNK[1])).astype(np.float32), 10.0),
    }
    episode, page, limits = (tmp_path / n for n in ("episode.npz", "page.html", "limits.json"))
    save_recording(
        Recording(instruction="go", task="", seed=0, rate_hz=10.0, streams=streams), episode
    )
    grip = {"control": "gripper", "unit": "fraction", "low": -1000.0, "high": 9000.0}
    limits.write_text(json.dumps({
        "robot": "r", "stamps": "simulated", "state": "joints",
        "arming": {"actions": 0, "fraction": 1.0},
        "joints": {"a": {"index": 0, "offset": 1.0}, "b": {"index": 1}},
        "axes": [
            *({"name": n, "control": "delta", "unit": "rad", "scale": 0.001, "velocity": 30,
               "acceleration": 9000} for n in "xy"),
            {"name": "grip", **grip},
        ],
    }))  # fmt: skip
    words = ["run", str(bundle), "--episodes", str(episode), "--rate-hz", "50", "--execute", "1"]
    words += ["--limits", str(limits), "--flight", str(tmp_path / "flight"), "--max-steps", "40"]
    leaves = [f"--leaf={name}=50" for name in LEAVES]
    assert main([*words, *leaves, "--report", str(page)]) == 0
    out = capsys.readouterr().out
    told = json.loads(out.strip().splitlines()[-1])
    assert told["noticed"] == {"perception": 1, "grasp missed": 1}
    assert told["interventions"] == {} and told["steps"] == 40
    for name in LEAVES:
        assert f"  leaf {name}: read 40 times, at most 0.0 ms, 0 skipped; held against " in out
    assert "  grasp missed, 1 times" in out and "  perception, 1 times" in out
    drawn = Page(page.read_text())
    assert broken_promises(drawn) == []
    assert "held against the encoders of 2 joints of 3" in drawn.text
    assert "held against axis 'grip'" in drawn.text
    assert "joint 'a' is seen 1.00 rad from where it is felt" in drawn.text
    assert "future: expected above, what camera camera showed then below" in drawn.text
    assert main([*words, *leaves, "--on-perception", "stop"]) == 6
    assert "the guard stopped the robot: perception: leaf where: jo" in capsys.readouterr().err
    (record,) = (tmp_path / "flight").iterdir()
    assert [n["kind"] for n in json.loads(record.read_text())["notices"]] == ["perception"]


def pairs_in(page):
    """The alternative words of pictures that share a figure."""
    return [a["alt"] for tag, a in page.attributes if tag == "img" and a["alt"] != "anchor"]


def drawn(trace):
    return Page("<main>" + "".join(checks_of(trace)) + "</main>")


def test_the_page_shows_what_was_expected_above_what_came():
    policy = TellingPolicy(
        lambda step: step >= 20,
        grasp=lambda step: [0.1],
        future=lambda step: np.full((6, 8, 3), 2 * (step + 8), np.uint8),
    )
    trace = drive(policy, Arm(60, shades=lambda step: 2 * step, raw=ARM), num_steps=48)
    page = drawn(trace)
    num_pairs = len(trace.leaves["future"].foreseen.pairs.things)
    assert pairs_in(page) == ["expected", "frame then"] * num_pairs
    assert "future: expected above, what camera frame showed then below" in page.text
    assert "0.4 s, 0.000" in page.text and "The last pictures were not due" in page.text
    rows = page.sections[""]
    assert ["2.0", "grasp missed", trace.notices[0].words] in rows
    charts = page.charts()
    looks = trace.leaves["future"].foreseen.looks
    for what, values in (
        ("distance", [look.distance for look in looks]),
        ("progress", [look.progress for look in looks]),
    ):
        ((*points,),) = charts[f"future, {what}, over the episode"]
        times, drawn_at = np.asarray(points).T
        assert times == pytest.approx([0.05 * look.step for look in looks], abs=0.02)
        assert drawn_at == pytest.approx(values, abs=0.02)


def test_the_page_says_nothing_of_pictures_that_were_on_time_or_never_came():
    still = TellingPolicy(future=lambda step: np.zeros((6, 8, 3), np.uint8))
    trace = drive(still, Arm(60, shades=lambda step: 0, raw=ARM), num_steps=1)
    assert "expected above" not in drawn(trace).text
    trace = drive(still, Arm(60, shades=lambda step: 0, raw=ARM), num_steps=16, execute=8)
    page = drawn(trace)
    assert "expected above" in page.text and "not due" not in page.text
    assert "future, distance, over the episode" in page.charts()
    assert "future, progress, over the episode" not in page.charts(), "nothing was to change"


def test_more_notices_than_anybody_reads_are_counted():
    policy = TellingPolicy(lambda step: step % 100 >= 20, grasp=lambda step: [0.1])
    trace = drive(policy, num_steps=2500)
    assert len(trace.notices) == 25
    page = drawn(trace)
    assert page.text.count("grasp missed") == MOST_NOTICES and "And 5 more." in page.text


def test_leaves_without_a_meaning_are_not_spoken_of():
    assert checks_of(drive(TellingPolicy(plain=lambda step: [1.0]), num_steps=8)) == []
