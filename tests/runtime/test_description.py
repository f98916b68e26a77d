"""A robot description is complete or an error that says what is missing; a URDF fills it in."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.robots.description import Measured, read_description
from runtime.robots.metaworld import LIMITS
from runtime.robots.urdf import read_urdf

ROOT = Path(__file__).parents[2]
ARM = """<?xml version="1.0"?>
<robot name="arm">
  <link name="base"/><link name="a"/><link name="b"/>
  <link name="c"/><link name="d"/><link name="e"/>
  <joint name="shoulder_pan_joint" type="revolute">
    <parent link="base"/><child link="a"/><axis xyz="0 0 1"/>
    <limit lower="-1.5" upper="2.25" velocity="1.75" effort="10"/>
  </joint>
  <joint name="roll" type="continuous">
    <parent link="a"/><child link="b"/><axis xyz="0 0 1"/><limit velocity="3.5" effort="10"/>
  </joint>
  <joint name="rail" type="prismatic">
    <parent link="b"/><child link="c"/><axis xyz="1 0 0"/>
    <limit upper="0.8" velocity="0.5" effort="10"/>
    <safety_controller soft_upper_limit="0.7" k_velocity="1"/>
  </joint>
  <joint name="finger" type="prismatic">
    <parent link="c"/><child link="d"/><axis xyz="1 0 0"/>
    <limit lower="0" upper="0.04" velocity="0.1" effort="1"/><mimic joint="rail" multiplier="0.1"/>
  </joint>
  <joint name="weld" type="fixed"><parent link="d"/><child link="e"/></joint>
  <transmission name="t"><joint name="shoulder_pan_joint"/></transmission>
</robot>
"""
PAN = "shoulder_pan_joint"
AXIS = {"name": "a", "control": "position", "unit": "rad", "low": -1, "high": 1, "velocity": 1,
        "acceleration": 5, "jerk": 50, "measured": {"index": 0}}  # fmt: skip
STEP = {"name": "a", "control": "delta", "unit": "m", "low": -1, "high": 1, "velocity": 1,
        "acceleration": 5, "measured": {"index": 0}, "max_error": 0.1}  # fmt: skip
WHOLE = {"robot": "r", "stamps": "monotonic", "state": "state", "axes": [AXIS]}


def read(folder, raw, urdf=ARM):
    (folder / "arm.urdf").write_text(urdf)
    path = folder / "robot.json"
    path.write_text(raw if isinstance(raw, str) else json.dumps(raw))
    return read_description(path)


def without(raw, *keys):
    return {key: value for key, value in raw.items() if key not in keys}


def test_the_shipped_description_is_of_the_simulated_robot():
    shipped = read_description(ROOT / "runtime/robots/metaworld.json")
    assert shipped.names == LIMITS.names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": -90, "high": 90}, r"'a': a bound of 90 rad looks like degrees; write rad"),
        ({"velocity": 180}, "a velocity of 180 rad/s looks like degrees"),
        ({"unit": "m", "low": -500, "high": 500}, "a bound of 500 m looks like millimetres"),
        ({"low": 1, "high": 1}, "must have low < high, got 1 and 1"),
        ({"low": 2, "high": -2}, "must have low < high, got 2 and -2"),
        ({"low": None}, "low and high belong together"),
        ({"low": None, "high": None}, "a position in rad needs low and high"),
        ({"velocity": 0}, "velocity must be a positive number, got 0"),
        ({"jerk": -3}, "jerk must be a positive number, got -3"),
        ({"acceleration": 1e999}, "robot.json:"),
        ({"scale": 0}, "scale must be a positive number"),
        ({"velocity": None}, "a position in rad needs velocity, its own or a norm's"),
        ({"acceleration": None}, "needs acceleration"),
        ({"jerk": None}, "a position in rad needs jerk"),
        ({"measured": None}, "its first command is judged by where it stands"),
        ({"measured": {"index": -1}}, "name it as state"),
        ({"measured": {"index": 0, "scale": 0}}, "measured has scale 0, expected not 0"),
        ({"control": "torque"}, r"Invalid enum value 'torque'"),
        ({"unit": "deg"}, r"Invalid enum value 'deg'"),
        ({"maximum": 3}, "unknown field `maximum`"),
        ({"name": ""}, "axes: the name '' must be there once"),
    ],
)  # fmt: skip
def test_an_axis_that_cannot_be_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, {**WHOLE, "axes": [{**AXIS, **change}]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": None, "high": None}, "a delta in m needs low and high"),
        ({"max_error": None}, "a sum of steps drifts from where the arm is"),
        ({"offset": 0.5}, "offset is of positions, and this is a delta"),
        ({"measured": None}, "its first command is judged by where it stands"),
        ({"measured": None, "unit": "rad", "low": None, "high": None}, "max_error compares with"),
    ],
)
def test_a_step_needs_a_workspace_that_it_cannot_drift_out_of(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, {**WHOLE, "axes": [{**STEP, **change}]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": []}, "axes: 0 of them, expected 1 to 64"),
        ({"axes": [AXIS, AXIS]}, "the name 'a' must be there once, got 2 times"),
        ({"state": None}, "name it as state"),
        ({"norms": [{"name": "n", "axes": ["b"], "velocity": 1, "acceleration": 1}]}, "axis 'b'"),
        ({"norms": [{"name": "n", "axes": [], "velocity": 1, "acceleration": 1}]}, "of one unit"),
        ({"norms": [{"name": "n", "axes": ["a"], "velocity": 0, "acceleration": 1}]},
         "norm 'n': velocity must be positive"),
        ({"cameras": {"frame": {"rate_hz": 0}}}, r"rate_hz must be in \(0, 1000\], got 0"),
        ({"cameras": {"frame": {"rate_hz": 30}}, "stamps": "simulated"}, "leave them out"),
        ({"arming": {"actions": 5, "fraction": 0}}, r"fraction in \(0, 1\], got 5 and 0"),
        ({"arming": {"actions": -1}}, "actions must not be negative"),
        ({"max_spread": 0}, r"max_spread must be in \(0, 2\], got 0"),
        ({"max_spread": 2.1}, r"max_spread must be in \(0, 2\], got 2.1"),
        ({"period_s": 0}, r"period_s must be in \[0.001, 10\], got 0"),
        ({"stamps": "ros"}, "Invalid enum value 'ros'"),
        ({"urdf": "nowhere.urdf"}, "nowhere.urdf: cannot be read"),
        ({"urdf": 3}, "robot.json: Expected `str"),
        ({"joints": {"a": {"index": 1}}}, "joints: 'a' needs a name that no axis has"),
        ({"joints": {"": {"index": 1}}}, "joints: '' needs a name that no axis has"),
        ({"joints": {"b": {"index": -1}}}, "joint 'b': counts the numbers of an input; name it"),
        ({"joints": {"b": {"index": 1, "scale": 0}}}, "joint 'b': has scale 0, expected not 0"),
        ({"axes": [{**AXIS, "closed": "high"}]}, "'a': closed is of grippers, this is a position"),
    ],
)  # fmt: skip
def test_a_description_that_cannot_be_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, {**WHOLE, **change})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"robot": "r"}', "\x00"])
def test_what_is_no_description_is_refused_by_its_path(tmp_path, text):
    with pytest.raises(ValueError, match=r"robot.json: "):
        read(tmp_path, text)
    with pytest.raises(ValueError, match=r"none.json: cannot be read"):
        read_description(tmp_path / "none.json")


def test_a_gripper_needs_a_range_only(tmp_path):
    gripper = {"name": "g", "control": "gripper", "unit": "fraction", "low": 0, "high": 1}
    assert read(tmp_path, {**WHOLE, "axes": [AXIS, gripper]}).names == ("a", "g")
    with pytest.raises(ValueError, match="'g': a gripper in fraction needs low and high"):
        read(tmp_path, {**WHOLE, "axes": [AXIS, without(gripper, "low", "high")]})
    with pytest.raises(ValueError, match="'g': its first command is judged by where it stands"):
        read(tmp_path, {**WHOLE, "axes": [AXIS, {**gripper, "velocity": 1}]})


def test_encoders_go_by_the_names_of_axes_and_joints_that_turn(tmp_path):
    slide = {**STEP, "name": "slide"}
    joints = {"elbow": {"index": 3, "scale": 0.5, "offset": 0.25}}
    arm = read(tmp_path, {**WHOLE, "axes": [AXIS, slide], "joints": joints})
    elbow = Measured(index=3, scale=0.5, offset=0.25)
    assert arm.encoders == {"a": arm.axes[0].measured, "elbow": elbow}
    assert [*read(tmp_path, joined(joint=PAN)).encoders] == ["a", PAN]


def joined(**change):
    return {
        **WHOLE,
        "urdf": "arm.urdf",
        "axes": [{**without(AXIS, "low", "high", "velocity"), **change}],
    }


MUJOCO = """
import json, sys, mujoco
model = mujoco.MjModel.from_xml_string(sys.stdin.read())
units = {mujoco.mjtJoint.mjJNT_HINGE: "rad", mujoco.mjtJoint.mjJNT_SLIDE: "m"}
joints = [model.joint(number) for number in range(model.njnt)]
print(json.dumps({j.name: [units[mujoco.mjtJoint(int(j.type[0]))], bool(model.jnt_limited[j.id]),
                           *j.range.tolist()] for j in joints}))
"""
"""In a process of its own: whoever imports mujoco first chooses how it renders."""


def test_joints_of_a_urdf_are_those_that_mujoco_reads(tmp_path):
    """Its parser is written in C++ by others; it merges fixed joints and knows no velocities."""
    (tmp_path / "arm.urdf").write_text(ARM)
    joints = read_urdf(tmp_path / "arm.urdf")
    inertia = '<inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/>'
    inertial = f'<inertial><mass value="1"/>{inertia}</inertial>'
    heavy = re.sub(r'<link name="(\w+)"/>', rf'<link name="\1">{inertial}</link>', ARM)
    hard = re.sub(r"<safety_controller[^>]*>", "", heavy)
    said = subprocess.run(
        [sys.executable, "-c", MUJOCO], input=hard, capture_output=True, text=True, check=True,
        env={**os.environ, "MUJOCO_GL": "disable"},
    ).stdout  # fmt: skip
    theirs = json.loads(said.splitlines()[-1])
    moving = {name: joint for name, joint in joints.items() if joint.kind != "fixed"}
    assert theirs.keys() == moving.keys() and len(moving) == 4
    for name, joint in moving.items():
        unit, is_limited, low, high = theirs[name]
        assert unit == joint.unit
        if joint.kind == "continuous":
            assert joint.low is joint.high is None and not is_limited
        elif name == "rail":
            assert (low, high) == (0, 0.8) and (joint.low, joint.high) == (0, 0.7)
        else:
            assert is_limited and (low, high) == (joint.low, joint.high)
    assert joints["finger"].follows == "rail" and joints["weld"].kind == "fixed"
    assert [j.velocity for j in joints.values()] == [1.75, 3.5, 0.5, 0.1, None]


def test_a_urdf_gives_what_the_description_leaves_out_and_no_more(tmp_path):
    (axis,) = read(tmp_path, joined(joint="shoulder_pan_joint")).axes
    assert (axis.low, axis.high, axis.velocity, axis.jerk) == (-1.5, 2.25, 1.75, 50)
    (axis,) = read(tmp_path, joined(joint="shoulder_pan_joint", low=-1, high=2, velocity=1)).axes
    assert (axis.low, axis.high, axis.velocity) == (-1, 2, 1)
    (axis,) = read(tmp_path, joined(joint="roll")).axes
    assert (axis.low, axis.high, axis.velocity) == (None, None, 3.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joint": "elbow"}, "'a': the URDF has no joint 'elbow'; it has shoulder_pan_joint, roll"),
        ({"joint": "finger", "unit": "m"}, "joint 'finger' follows 'rail' \\(mimic\\)"),
        ({"joint": "weld"}, "joint 'weld' is fixed: no single number moves it"),
        ({"joint": "rail"}, "'a' is in rad, joint 'rail' \\(prismatic\\) in m; write the unit"),
        ({"joint": "roll", "velocity": 4}, "velocity 4 is wider than the URDF's 3.5"),
        ({"joint": PAN, "low": -1.6, "high": 1}, "low -1.6 is wider than the URDF's -1.5"),
        ({"joint": PAN, "low": -1, "high": 2.3}, "high 2.3 is wider than the URDF's 2.25"),
    ],
)  # fmt: skip
def test_an_axis_that_is_not_its_joint_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, joined(**change))


ENTITIES = '<!DOCTYPE robot [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><robot name="&b;"/>'
EXTERNAL = '<!DOCTYPE robot SYSTEM "file:///etc/passwd"><robot name="r"/>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTITIES, "arm.urdf: holds a document type"),
        (EXTERNAL, "arm.urdf: holds a document type"),
        ("<robot", "not XML: "),
        ("", "not XML: no element found"),
        ("<mujoco/>", "begins with <mujoco>, expected <robot>"),
        ("<robot><xacro:arm/></robot>", "holds <xacro:arm>; expand it first"),
        ("<robot><joint type='fixed'/></robot>", "a joint without a name"),
        (ARM.replace("roll", "rail"), "two joints named 'rail'"),
        (ARM.replace("continuous", "hinge"), "joint 'roll' is of type 'hinge', expected one of"),
        (ARM.replace('upper="2.25"', 'upper="x"'), "upper of joint 'shoulder_pan_joint' is 'x'"),
        (ARM.replace('upper="2.25"', 'upper="nan"'), "is 'nan', expected a finite number"),
        (ARM.replace('upper="2.25"', 'upper="-2"'), "must have lower < upper, got -1.5 and -2"),
        (ARM.replace('velocity="1.75"', 'velocity="0"'), "has velocity 0, expected more than 0"),
        ("<robot><joint name='j' type='revolute'/></robot>", "joint 'j' has no <limit>"),
    ],
)  # fmt: skip
def test_a_urdf_that_cannot_be_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, joined(joint="shoulder_pan_joint"), text)
