"""Rules of the house that hold for every file: lean imports, no code execution from data, pins.

What ruff and import-linter check already is here again only where they can be fooled: by a lazy
import, an alias, or a keyword argument.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]

HEAVY = {"torch", "transformers", "onnx", "models", "quant", "export"}
HTTP_CLIENTS = {"httpx", "httpx2", "requests", "urllib3", "huggingface_hub", "aiohttp"}

# What a robot has: requirements/robot*.txt, and the simulator extra where it is wanted.
RUNTIME_IMPORTS = {"msgspec", "numpy", "PIL", "tokenizers", "onnxruntime", "metaworld", "mujoco"}
DATASET_IMPORTS = {"av", "pyarrow", "rerun"}
"""On a workstation: a robot replays recordings, and the runtime must load without them too."""
GPU_IMPORTS = {"tensorrt", "tensorrt_rtx_libs", "tensorrt_rtx_bindings", "pycuda", "cuda"}
"""On a robot, and only there: the runtime must load without them."""
ROS_IMPORTS = {"rclpy", "sensor_msgs", "std_msgs", "trajectory_msgs"}
"""Of ROS 2, which no registry of ours pins for a robot: `runtime/robots/ros2.py` alone."""
CAMERA_IMPORTS = {"pyrealsense2", "cv2"}
"""On a robot with such cameras, in the process of each: the runtime must load without them."""
SIGNING_IMPORTS = {"cryptography"}
"""Where releases are signed: `runtime/storage` looks at signatures if a machine trusts a key."""
SERVER_IMPORTS = {"websockets"}
"""Of `anchorvla serve`, which is optional: no other command may need them."""

UNSAFE_MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
}
UNSAFE_KEYWORDS = {"allow_pickle", "shell", "trust_remote_code"}


def repository_files(suffix: str = "") -> list[Path]:
    """Tracked files, and new ones that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return [ROOT / name for name in listed if name.endswith(suffix) and (ROOT / name).is_file()]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every absolute import anywhere in the file, with its line: lazy ones, `import_module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
        elif (
            isinstance(node, ast.Call)
            and _last_name(node.func) in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and not str(node.args[0].value).startswith(".")
        ):
            yield node.lineno, str(node.args[0].value)


def unsafe(source: str) -> list[str]:
    """What in `source` could run code that comes from data, as `line: what`."""
    tree = ast.parse(source)
    aliases = _aliases(tree)
    found = [
        (line, f"imports {name}")
        for line, name in imports(tree)
        if name.split(".")[0] in UNSAFE_MODULES
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = _full_name(node, aliases).removeprefix("builtins.")
            if name in UNSAFE_CALLS | {"eval", "exec"}:
                found.append((node.lineno, f"uses {name}"))
        elif isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in _unsafe_arguments(node, aliases)]
        elif isinstance(node, ast.Dict):
            keys = {_constant(k): v for k, v in zip(node.keys, node.values, strict=True)}
            found += [
                (node.lineno, f"passes {key}")
                for key in UNSAFE_KEYWORDS & keys.keys()
                if _constant(keys[key]) is not False
            ]
    return [f"{line}: {what}" for line, what in sorted(set(found))]


def _unsafe_arguments(call: ast.Call, aliases: dict[str, str]) -> Iterator[str]:
    keywords = {k.arg: k.value for k in call.keywords}
    for key in UNSAFE_KEYWORDS & _names(keywords):
        if _constant(keywords[key]) is not False:
            yield f"passes {key}"
    name = _full_name(call.func, aliases)
    if name == "numpy.load" and len(call.args) > 2:
        yield "passes allow_pickle"
    if name in ("torch.load", "torch.serialization.load") and (
        "weights_only" not in keywords or _constant(keywords["weights_only"]) is not True
    ):
        yield "calls torch.load without weights_only=True"


def _names(keywords: dict[str | None, ast.expr]) -> set[str]:
    return {key for key in keywords if key is not None}


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it was imported as."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({a.asname: a.name for a in node.names if a.asname})
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    return names


def _full_name(node: ast.expr, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, aliases)}.{node.attr}"
    return "?"


def _last_name(node: ast.expr) -> str:
    return _full_name(node, {}).split(".")[-1]


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def test_importing_the_runtime_stays_lean():
    code = (
        "import importlib, pkgutil, sys, runtime\n"
        "for module in pkgutil.walk_packages(runtime.__path__, 'runtime.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "runtime" in loaded
    lazy = GPU_IMPORTS | DATASET_IMPORTS | ROS_IMPORTS | CAMERA_IMPORTS
    lazy |= {"metaworld", "mujoco"} | SIGNING_IMPORTS
    assert not (HEAVY | HTTP_CLIENTS | lazy).intersection(loaded)


@pytest.mark.parametrize("path", sorted((ROOT / "runtime").rglob("*.py")), ids=lambda p: p.name)
def test_the_runtime_imports_only_what_a_robot_has_even_lazily(path):
    allowed = RUNTIME_IMPORTS | GPU_IMPORTS | DATASET_IMPORTS | set(sys.stdlib_module_names)
    if path.parent.name == "cameras":
        allowed |= CAMERA_IMPORTS
    if path.parent.name == "server":
        allowed |= SERVER_IMPORTS
    if path.parent.name == "storage":
        allowed |= SIGNING_IMPORTS
    if path.name == "ros2.py":
        allowed |= ROS_IMPORTS
    wrong = [
        f"{path.name}:{line}: {name}"
        for line, name in imports(ast.parse(path.read_text()))
        if name.split(".")[0] not in allowed
    ]
    assert not wrong


IMPORT_ONNX_RUNTIME = {
    "runtime/backends/onnxruntime_module.py": "switches telemetry off first",
    "tests/quant/test_formats.py": "its quantizer, after tests/conftest.py imported that module",
}


def importers(name: str, paths: Iterable[Path]) -> list[str]:
    """Files that import the package `name`, or a part of it."""
    return [
        str(path.relative_to(ROOT))
        for path in paths
        if any(found.split(".")[0] == name for _, found in imports(ast.parse(path.read_text())))
    ]


def test_onnx_runtime_is_imported_where_its_telemetry_is_switched_off_and_nowhere_else():
    """Not in the code that tests hand to other processes either."""
    files = repository_files(".py")
    assert importers("onnxruntime", files) == sorted(IMPORT_ONNX_RUNTIME)
    in_text = re.compile("import onnxrun" + "time|from onnxrun" + "time[ .]")
    found = [p for p in files if in_text.search(p.read_text())]
    assert [str(p.relative_to(ROOT)) for p in sorted(found)] == sorted(IMPORT_ONNX_RUNTIME)


@pytest.mark.parametrize(
    ("snippet", "name"),
    [
        ("import torch.nn", "torch.nn"),
        ("def f():\n    from transformers import AutoModel", "transformers"),
        ("import importlib\nimportlib.import_module('onnx')", "onnx"),
        ("__import__('models')", "models"),
        ("from export.build import build", "export.build"),
    ],
)
def test_a_planted_import_is_seen(snippet, name):
    assert name in [found for _, found in imports(ast.parse(snippet))]


def test_no_source_can_run_code_that_comes_from_data():
    found = {
        str(path.relative_to(ROOT)): lines
        for path in repository_files(".py")
        if (lines := unsafe(path.read_text()))
    }
    assert not found


@pytest.mark.parametrize(
    ("snippet", "what"),
    [
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle"),
        ("def f():\n    import cloudpickle as quick", "imports cloudpickle"),
        ("import importlib\nimportlib.import_module('pickle')", "imports pickle"),
        ("import torch\ntorch.load(path)", "torch.load without weights_only"),
        ("import torch as t\nt.load(path, weights_only=False)", "torch.load without weights_only"),
        (
            "from torch import load\nload(path, weights_only=flag)",
            "torch.load without weights_only",
        ),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "passes allow_pickle"),
        ("import numpy\nnumpy.load(path, 'r', True)", "passes allow_pickle"),
        ("import numpy as np\nnp.load(path, **{'allow_pickle': True})", "passes allow_pickle"),
        ("import yaml\nyaml.load(text)", "uses yaml.load"),
        ("from yaml import load as read\nread(text)", "uses yaml.load"),
        ("import yaml\nyaml.unsafe_load(text)", "uses yaml.unsafe_load"),
        ("eval(text)", "uses eval"),
        ("list(map(eval, texts))", "uses eval"),
        ("import builtins\nbuiltins.exec(text)", "uses exec"),
        ("exec(text)", "uses exec"),
        ("import subprocess\nsubprocess.run(line, shell=True)", "passes shell"),
        ("run(line, shell=flag)", "passes shell"),
        ("import os\nos.system(line)", "uses os.system"),
        ("AutoModel.from_pretrained(path, trust_remote_code=True)", "passes trust_remote_code"),
    ],
)
def test_a_planted_danger_is_caught(snippet, what):
    assert any(what in line for line in unsafe(snippet))


@pytest.mark.parametrize(
    "snippet",
    [
        "model.eval()",
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import json\njson.load(file)",
        "import yaml\nyaml.safe_load(text)",
        "import subprocess\nsubprocess.run([tool], shell=False)",
        "'a string that says eval(x), pickle and shell=True'",
    ],
)
def test_harmless_code_is_left_alone(snippet):
    assert unsafe(snippet) == []


MAY_COMMAND = {
    "runtime/control/guard.py": "judges what it sends",
    "runtime/robots/testing.py": "checks a robot of whoever calls it, and says that it moves",
    "runtime/control/server/connections.py": "sends to sockets",
    "device_tests/serving/checks.py": "sends to sockets",
    "device_tests/serving/target.py": "sends to sockets",
}
"""Who may tell a robot what to do, in what runs on one; others' words `send` and `hold` go here
too, with what they are sent to."""


def commands(source: str) -> list[int]:
    """Lines that take `send` or `hold` of something, called or not, or name them to `getattr`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        named = isinstance(node, ast.Attribute) and node.attr in ("send", "hold")
        if isinstance(node, ast.Call) and _last_name(node.func) in (
            "getattr", "attrgetter", "methodcaller",
        ):  # fmt: skip
            named = any(_constant(argument) in ("send", "hold") for argument in node.args)
        found += [node.lineno] if named else []
    return found


def test_nothing_but_the_guard_tells_a_robot_what_to_do():
    files = [p for room in ("runtime", "device_tests") for p in (ROOT / room).rglob("*.py")]
    found = {str(p.relative_to(ROOT)) for p in files if commands(p.read_text())}
    assert found == MAY_COMMAND.keys()


@pytest.mark.parametrize(
    "snippet",
    [
        "robot.send(action_A)",
        "self._robot.hold()",
        "tell = robot.send\ntell(action_A)",
        "getattr(robot, 'send')(action_A)",
        "operator.methodcaller('hold')(robot)",
        "super().send(action_A)",
    ],
)
def test_a_planted_command_is_caught(snippet):
    assert commands(snippet) == [1]
    assert commands("def send(self, action_A): ...\nguard.act(action_A, now=0.0)\n'send'") == []


FAMILIES = sorted(path.parent.name for path in (ROOT / "models").glob("*/family.py"))
MAY_NAME_A_FAMILY = (
    "models/families.py", "models/demo/", "models/layouts/prismatic", "models/layouts/lerobot",
    "models/layouts/showo",
    "tests/", "docs/", "README.md",
)  # fmt: skip
"""The table; how the shipped policy was made, and what three layouts hold, each of one family;
tests; words for people."""


def naming(source: str) -> list[str]:
    """Lines that name a family."""
    return [line for line in source.splitlines() if re.search("|".join(FAMILIES), line, re.I)]


def test_what_serves_every_family_names_none():
    own = tuple(f"models/{family}/" for family in FAMILIES)
    found = {
        name: lines
        for path in repository_files(".py")
        if not (name := str(path.relative_to(ROOT))).startswith((*own, *MAY_NAME_A_FAMILY))
        and (lines := naming(path.read_text()))
    }
    assert not found


def test_a_planted_family_is_caught():
    assert FAMILIES == [
        "anchorvla4d", "eventvla", "qwengr00t", "qwenoft", "sgvla", "smolvla", "upvla",
        "vlaadapter",
    ]  # fmt: skip
    assert naming("from models.anchorvla4d.model import AnchorVLA4D") and naming("AnchorVLA4D run")
    assert not naming("import runtime  # anchorvla-runtime, `anchorvla run`")


def test_every_family_has_the_same_modules():
    wanted = {
        "checkpoint", "config", "engines", "family", "model", "presets", "reference", "split",
        "work",
    }  # fmt: skip
    for family in FAMILIES:
        modules = {path.stem for path in (ROOT / "models" / family).glob("*.py")}
        assert wanted <= modules, family


# Written in two parts, so that this file does not find itself.
PRIVATE = {
    "a path of somebody's machine": "|".join(
        [
            r"(?<![\w.])/(ro" + r"ot|ho" + r"me|Us" + r"ers)/\w",
            r"(?<![\w.])/wo" + r"rk/",
            r"/op" + r"t/(wheels|pypi)",
            r"\.\./sha" + r"red\b",
        ]
    ),
    "the address of a package registry": "|".join(
        [
            r"py" + r"pi\.org",
            r"python" + r"hosted\.org",
            r"download\.py" + r"torch",
            r"pypi\.nv" + r"idia",
            r"jetson-ai-" + r"lab",
            r"npm" + r"js\.(org|com)",
            r"deb\.deb" + r"ian\.org",
        ]
    ),
}


@pytest.mark.parametrize("what", PRIVATE)
def test_no_file_holds(what):
    pattern = re.compile(PRIVATE[what])
    found = []
    for path in repository_files():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode().splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found


@pytest.mark.parametrize("text", ["/ro" + "ot/x", "see ../sha" + "red/style.md", "(/wo" + "rk/m)"])
def test_a_planted_path_is_caught(text):
    assert re.search(PRIVATE["a path of somebody's machine"], text)


def test_source_is_ascii():
    suffixes = (".py", ".sh", ".toml", ".yaml", "Makefile", ".ci/run")
    files = [path for path in repository_files() if str(path).endswith(suffixes)]
    assert files
    assert [str(path.relative_to(ROOT)) for path in files if not path.read_bytes().isascii()] == []


PIN_FILES = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"[A-Za-z0-9._-]+==[0-9][\w.]*( ; [\w\s.=<>\"]+)?")


def pins(path: Path) -> list[Requirement]:
    lines = [line for line in path.read_text().splitlines() if line and line[0] not in "#-"]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("path", PIN_FILES, ids=lambda p: p.name)
def test_requirements_are_exact_pins_without_an_index_address(path):
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    # `-r` joins two of our own files; a marker is the only other thing allowed beside a pin.
    wrong = [line for line in lines if not PIN.fullmatch(line) and line != "-r robot.txt"]
    assert not wrong
    assert "://" not in path.read_text()


def test_the_pins_lie_in_the_ranges_that_the_projects_declare():
    declared: dict[str, Requirement] = {}
    for path in (ROOT / "pyproject.toml", ROOT / "runtime" / "pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        extras = project["optional-dependencies"].values()
        for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
            requirement = Requirement(line)
            declared[canonicalize_name(requirement.name)] = requirement
    pinned = {}
    for pin in (pin for path in PIN_FILES for pin in pins(path)):
        name = canonicalize_name(pin.name)
        version = str(pin.specifier).removeprefix("==")
        pinned[name] = version
        if name in declared:
            assert declared[name].specifier.contains(version), f"{pin} is not in {declared[name]}"
    assert not declared.keys() - pinned.keys() - {"anchorvla-edge"}
