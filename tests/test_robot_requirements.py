"""Every pin of a robot exists for both JetPacks, by the markers and tags of the board."""

import os
import re
import shutil

import msgspec
import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.tags import Tag

from export.errors import ExportError
from export.release.targets import (
    LEFT_OUT,
    TABLE,
    TARGETS,
    File,
    Target,
    fitting,
    pins_of,
    problems,
    read_table,
)
from tests.resolve import FILES, main, wrong_tools
from tests.simple_index import source

JETPACK_6, JETPACK_7 = TARGETS
KNOWN = read_table()


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


def answer(pins, target):
    """The registry as the table has it, for this target alone."""
    found = {}
    for name, pin in pins.items():
        files = fitting(name, pin, KNOWN, target)
        if not files:
            raise ExportError(f"No matching distribution found for {pin}")
        found[files[0]] = msgspec.structs.replace(KNOWN[files[0]], size=0)
    return found


@pytest.fixture
def fetch(tmp_path):
    """Files as long as those of the table; the source says what it is built with."""

    def fetch(files, target):
        paths = {file: tmp_path / file for file in files}
        for file, path in paths.items():
            path.write_bytes(b"" if file.endswith(".whl") else source("pycuda", "2026.1", ""))
            os.truncate(path, KNOWN[file].size)
        return paths

    return fetch


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
        assert Tag(python, python, f"manylinux_2_{newest}_aarch64") in target.ranks
        assert Tag(python, python, f"manylinux_2_{newest + 1}_aarch64") not in target.ranks
        assert Tag(python, python, "manylinux2014_x86_64") not in target.ranks
        assert Tag("py3", "none", "any") in target.ranks
    assert Tag("cp310", "abi3", "manylinux2014_aarch64") in JETPACK_7.ranks
    assert Tag("cp312", "cp312", "manylinux2014_aarch64") not in JETPACK_6.ranks


def test_a_machine_for_trials_has_tags_and_markers_of_its_own():
    target = Target.of("x86_64", (3, 13), 36)
    best = [Tag("cp313", "cp313", f"manylinux_2_{minor}_x86_64") for minor in (36, 35)]
    assert [target.ranks[tag] for tag in best] == [0, 1]
    assert Tag("cp313", "cp313", "manylinux_2_36_aarch64") not in target.ranks
    pins = {name: str(pin.specifier) for name, pin in pins_of(FILES[-1], target).items()}
    assert pins["numpy"] == "==2.5.5"
    assert target.environment["platform_machine"] == "x86_64"


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
    (words,) = problems(pins, {name: File(sha256="")}, JETPACK_6)
    assert words == f"JetPack 6: msgspec==0.22.0: no file for it: {name}"


def test_only_pycuda_is_built_on_the_board():
    pins = {"msgspec": Requirement("msgspec==0.22.0")}
    table = {"msgspec-0.22.0.tar.gz": File(sha256="")}
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
    table = KNOWN | {"cuda_pathfinder-2.0-py3-none-any.whl": File(sha256="")}
    assert list(problems(pins, table, JETPACK_7)) == [
        "JetPack 7: cuda-bindings==13.2.0: declares cuda-pathfinder~=1.1, but the pin is ==2.0"
    ]


def test_the_table_holds_what_is_pinned_and_nothing_else():
    used = {
        file
        for target in TARGETS
        for path in FILES
        for name, pin in pins_of(path, target).items()
        for file in fitting(name, pin, KNOWN, target)
    }
    assert used == KNOWN.keys()
    declared = {w.split(">")[0].split("=")[0] for f in KNOWN.values() for w in f.requires}
    assert all(names <= declared for names in LEFT_OUT.values()), "left out, but nobody declares it"


def test_every_file_of_the_table_has_a_hash_and_a_size():
    for name, file in KNOWN.items():
        assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.size > 0, name


def test_the_registry_is_asked_for_every_pin_and_the_table_written(requirements, fetch, capsys):
    table = requirements / "table.json"
    files = [requirements / path.name for path in FILES]
    assert main(files, answer, fetch, table) == 0
    assert table.read_bytes() == TABLE.read_bytes()
    assert f"{len(KNOWN)} files, all for JetPack 6 and JetPack 7" in capsys.readouterr().out


def test_a_pin_that_the_registry_has_not_is_named_and_the_table_stays(requirements, fetch, capsys):
    table = requirements / "table.json"
    plant(requirements, "pycuda==2026.1", "pycuda==2026.7")
    files = [requirements / path.name for path in FILES]
    assert main(files, answer, fetch, table) == 1
    error = capsys.readouterr().err
    assert "error: JetPack 6: pycuda==2026.7: No matching distribution found for pycuda" in error
    assert not table.exists()


def test_what_the_registry_offers_is_held_against_the_target(requirements, fetch, capsys):
    """pip is asked without its own look at the Python, which would be this machine's."""
    table = requirements / "table.json"
    plant(requirements, '1.9.0 ; python_version >= "3.12"', "1.9.0")

    def careless(pins, target):
        if [*pins] == ["cuda-pathfinder"]:
            file = "cuda_pathfinder-1.9.0-py3-none-any.whl"
            return {file: KNOWN[file]}
        return answer(pins, target)

    assert main([requirements / "robot-tensorrt.txt"], careless, fetch, table) == 1
    assert "JetPack 6: cuda-pathfinder==1.9.0: needs Python >=3.11" in capsys.readouterr().err
    assert not table.exists()


def test_a_source_that_is_built_with_other_tools_than_we_say_is_named(requirements, capsys):
    """A board without a network could not build it."""
    table = requirements / "table.json"

    def fetch(files, target):
        paths = {file: requirements / file for file in files}
        for path in paths.values():
            path.write_bytes(source("pycuda", "2026.1", "", tools=["scikit-build-core", "numpy"]))
        return paths

    assert main([requirements / "robot-tensorrt.txt"], answer, fetch, table) == 1
    assert (
        "error: JetPack 6: pycuda-2026.1.tar.gz: is built with numpy, scikit-build-core, and "
        "SOURCE_ONLY says numpy, setuptools, wheel"
    ) in capsys.readouterr().err
    assert not table.exists()


def test_a_source_that_is_built_with_another_version_than_the_pin_is_named(requirements):
    made = source("pycuda", "2026.1", "", tools=["setuptools>=90", "wheel", "numpy>=1.24"])
    pins = pins_of(requirements / "robot-tensorrt.txt", JETPACK_7)
    (words,) = wrong_tools("pycuda", made, pins)
    assert words.startswith("is built with setuptools>=90, but the pin is ==")


def test_what_a_source_is_built_with_is_pinned(requirements):
    found = plant(requirements, "wheel==", "# wheel==")
    for target in TARGETS:
        assert found[target] == [
            f"{target.name}: pycuda==2026.1: is built with wheel, which is no pin"
        ]
