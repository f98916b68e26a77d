"""Every pin of a robot exists for both JetPacks, by the markers and tags of the board."""

import json
import shutil

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.tags import Tag

from tests.resolve import FILES, LEFT_OUT, TABLE, TARGETS, main, pins_of, problems

JETPACK_6, JETPACK_7 = TARGETS
KNOWN = json.loads(TABLE.read_text())


@pytest.fixture
def requirements(tmp_path):
    """A copy of the requirements, to plant faults in."""
    for path in FILES:
        shutil.copy(path, tmp_path)
    return tmp_path


def plant(requirements, old, new, *, name="robot-tensorrt.txt"):
    text = (requirements / name).read_text()
    assert old in text
    (requirements / name).write_text(text.replace(old, new))
    return {t: list(problems(pins_of(requirements / name, t), KNOWN, t)) for t in TARGETS}


def answer(name, pin, target):
    """The registry as the table has it, for this target alone."""
    files = [f for f in KNOWN if not list(problems({name: pin}, {f: alone(f)}, target))]
    if not files:
        raise LookupError(f"No matching distribution found for {pin}")
    return files[0], KNOWN[files[0]]


def alone(file):
    return {**KNOWN[file], "requires": []}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_pin_of_a_robot_exists_for_its_jetpack(path, target):
    pins = pins_of(path, target)
    assert {"msgspec", "numpy", "pillow", "tokenizers"} <= pins.keys()
    assert list(problems(pins, KNOWN, target)) == []


def test_each_jetpack_gets_the_bindings_of_its_own_cuda():
    path = next(path for path in FILES if path.name == "robot-tensorrt.txt")
    own = [
        {n: str(p.specifier) for n, p in pins_of(path, t).items() if "cuda" in n} for t in TARGETS
    ]
    assert own == [
        {"pycuda": "==2026.1", "cuda-python": "==12.6.2.post1"},
        {"pycuda": "==2026.1", "cuda-bindings": "==13.2.0", "cuda-pathfinder": "==1.9.0"},
    ]


def test_nothing_of_this_machine_decides_a_marker(requirements):
    for target in TARGETS:
        assert target.environment.keys() == default_environment().keys()
    (requirements / "robot.txt").write_text(
        'numpy==2.2.6 ; platform_machine == "aarch64" and python_full_version < "3.11"\n'
        'msgspec==0.22.0 ; platform_machine == "x86_64" or sys_platform == "win32"\n'
    )
    assert pins_of(requirements / "robot.txt", JETPACK_6).keys() == {"numpy"}
    assert pins_of(requirements / "robot.txt", JETPACK_7) == {}


def test_the_tags_are_those_of_ubuntu_on_the_board():
    """glibc 2.35 is Ubuntu 22.04's, 2.39 is 24.04's."""
    for target, python, newest in ((JETPACK_6, "cp310", 35), (JETPACK_7, "cp312", 39)):
        assert Tag(python, python, f"manylinux_2_{newest}_aarch64") in target.tags
        assert Tag(python, python, f"manylinux_2_{newest + 1}_aarch64") not in target.tags
        assert Tag(python, python, "manylinux2014_x86_64") not in target.tags
        assert Tag("py3", "none", "any") in target.tags
    assert Tag("cp310", "abi3", "manylinux2014_aarch64") in JETPACK_7.tags
    assert Tag("cp312", "cp312", "manylinux2014_aarch64") not in JETPACK_6.tags


def test_a_version_that_nobody_has_seen_is_refused(requirements):
    found = plant(requirements, "pycuda==2026.1", "pycuda==2026.7")
    for target in TARGETS:
        assert found[target] == [
            f"{target.name}: pycuda==2026.7: no such file is known; make resolve asks the registry"
        ]


def test_a_pin_for_another_python_is_refused(requirements):
    """cuda-pathfinder 1.9.0 needs Python 3.11, as it once stood there for both."""
    found = plant(requirements, '1.9.0 ; python_version >= "3.12"', "1.9.0")
    assert found[JETPACK_6] == ["JetPack 6: cuda-pathfinder==1.9.0: needs Python >=3.11"]
    assert found[JETPACK_7] == []


def test_wheels_of_another_python_are_none(requirements):
    found = plant(requirements, '12.6.2.post1 ; python_version == "3.10"', "12.6.2.post1")
    assert found[JETPACK_6] == []
    (words,) = found[JETPACK_7]
    assert words.startswith("JetPack 7: cuda-python==12.6.2.post1: no file for it: cuda_python-12")


def test_wheels_of_another_architecture_are_none():
    name = "msgspec-0.22.0-cp310-cp310-manylinux2014_x86_64.whl"
    pins = {"msgspec": Requirement("msgspec==0.22.0")}
    (words,) = problems(pins, {name: {"requires_python": "", "requires": []}}, JETPACK_6)
    assert words == f"JetPack 6: msgspec==0.22.0: no file for it: {name}"


def test_only_pycuda_is_built_on_the_board():
    pins = {"msgspec": Requirement("msgspec==0.22.0")}
    table = {"msgspec-0.22.0.tar.gz": {"requires_python": "", "requires": []}}
    (words,) = problems(pins, table, JETPACK_7)
    assert words == "JetPack 7: msgspec==0.22.0: no file for it: msgspec-0.22.0.tar.gz"


def test_what_a_pin_declares_is_pinned_too(requirements):
    found = plant(requirements, "cuda-pathfinder", "# cuda-pathfinder")
    assert found[JETPACK_6] == []
    assert found[JETPACK_7] == [
        "JetPack 7: cuda-bindings==13.2.0: declares cuda-pathfinder~=1.1, which is no pin and not "
        "left out on purpose"
    ]


def test_what_a_pin_declares_is_pinned_in_a_version_that_fits(requirements):
    pins = {
        "cuda-bindings": Requirement("cuda-bindings==13.2.0"),
        "cuda-pathfinder": Requirement("cuda-pathfinder==2.0"),
    }
    table = KNOWN | {
        "cuda_pathfinder-2.0-py3-none-any.whl": {"requires_python": "", "requires": []}
    }
    assert list(problems(pins, table, JETPACK_7)) == [
        "JetPack 7: cuda-bindings==13.2.0: declares cuda-pathfinder~=1.1, but the pin is ==2.0"
    ]


def test_the_table_holds_what_is_pinned_and_nothing_else():
    used = {
        file
        for target in TARGETS
        for path in FILES
        for name, pin in pins_of(path, target).items()
        for file in KNOWN
        if not any(
            "no file" in p or "known" in p
            for p in problems({name: pin}, {file: alone(file)}, target)
        )
    }
    assert used == KNOWN.keys()
    declared = {w.split(">")[0].split("=")[0] for f in KNOWN.values() for w in f["requires"]}
    assert all(names <= declared for names in LEFT_OUT.values()), "left out, but nobody declares it"


def test_the_registry_is_asked_for_every_pin_and_the_table_written(requirements, capsys):
    table = requirements / "table.json"
    files = [requirements / path.name for path in FILES]
    assert main(files, answer, table) == 0
    assert json.loads(table.read_text()) == KNOWN
    assert f"{len(KNOWN)} files, all for JetPack 6 and JetPack 7" in capsys.readouterr().out


def test_a_pin_that_the_registry_has_not_is_named_and_the_table_stays(requirements, capsys):
    table = requirements / "table.json"
    plant(requirements, "pycuda==2026.1", "pycuda==2026.7")
    files = [requirements / path.name for path in FILES]
    assert main(files, answer, table) == 1
    error = capsys.readouterr().err
    assert "error: JetPack 6: pycuda==2026.7: No matching distribution found for pycuda" in error
    assert not table.exists()


def test_what_the_registry_offers_is_held_against_the_target(requirements, capsys):
    """pip is asked without its own look at the Python, which would be this machine's."""
    table = requirements / "table.json"
    plant(requirements, '1.9.0 ; python_version >= "3.12"', "1.9.0")

    def careless(name, pin, target):
        if name == "cuda-pathfinder":
            return "cuda_pathfinder-1.9.0-py3-none-any.whl", KNOWN[
                "cuda_pathfinder-1.9.0-py3-none-any.whl"
            ]
        return answer(name, pin, target)

    assert main([requirements / "robot-tensorrt.txt"], careless, table) == 1
    assert "JetPack 6: cuda-pathfinder==1.9.0: needs Python >=3.11" in capsys.readouterr().err
    assert not table.exists()
