"""README and docs say what is so: commands exist, links lead somewhere, code runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from device_tests.errors import EXIT_CODES
from tests.fuzz_server import served
from tests.test_command_lines import COMMANDS, call

ROOT = Path(__file__).parents[1]
TEXTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_WORDS = 30


def blocks(path: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(path.read_text()) if found == language]


def command_lines() -> list[str]:
    """Of all texts, without their comments."""
    bodies = [body for path in TEXTS for body in blocks(path, "")]
    words = " ".join(" ".join(prose(path).split()) for path in TEXTS)
    bodies += re.findall(r"`((?:make|anchorvla|python -m) [^`]*)`", words)
    starts = ("make ", "anchorvla ", "python -m ")
    lines = (line.split(" #")[0].strip() for body in bodies for line in body.splitlines())
    return sorted({line for line in lines if line.startswith(starts)})


def prose(path: Path) -> str:
    """Paragraphs and items without code, tables and what is rendered, a blank line between two."""
    text = FENCE.sub("\n", path.read_text())
    text = re.sub(r"<!-- results -->.*<!-- end of results -->", "\n", text, flags=re.DOTALL)
    lines = ("" if line.startswith(("|", "#", "![")) else line for line in text.splitlines())
    return re.sub(r"\n(- |\d+\. )", "\n\n", "\n".join(lines))


def test_there_are_commands_to_look_at():
    assert {line.split()[0] for line in command_lines()} == {"make", "anchorvla", "python"}
    assert len(command_lines()) > 20


@pytest.mark.parametrize("line", command_lines())
def test_a_command_in_the_docs_exists_with_its_flags(line, capsys):
    program, *words = shlex.split(line)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for word in words:
            name, is_set, _ = word.partition("=")
            pattern = rf"^{name} *\?=" if is_set else rf"^{name}:.*## "
            assert re.search(pattern, makefile, re.MULTILINE), word
        return
    package = "runtime" if program == "anchorvla" else words.pop(1)
    words = words if program == "anchorvla" else words[1:]
    verb = [word for word in words[:1] if COMMANDS[package][1]]
    assert not verb or verb[0] in COMMANDS[package][1]
    assert call(package, [*verb, "--help"]) == 0
    told = capsys.readouterr().out
    for flag in (word for word in words if word.startswith("--")):
        assert re.search(rf"{flag}\b", told), flag


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_link_and_every_file_that_is_named_is_there(path):
    text = path.read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    folders = "runtime|export|quant|models|device_tests|tests|docs|requirements"
    files = re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", text)
    missing = [name for name in links if not (path.parent / name).exists()]
    assert missing + [name for name in files if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_sentence_is_longer_than_one_breath(path):
    sentences = [
        sentence
        for paragraph in re.split(r"\n\s*\n", prose(path))
        for sentence in re.split(r"(?<=[.:;?!])\s+", " ".join(paragraph.split()))
    ]
    too_long = {s: n for s in sentences if (n := len(s.split())) > MOST_WORDS}
    assert too_long == {}


PRELUDE = """
import numpy as np
image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
state = np.zeros(4, np.float32)
"""


def run_example(code, bundle, folder, prelude=PRELUDE):
    """As a user would, beside a bundle."""
    (folder / "bundle").symlink_to(bundle)
    (folder / "example.py").write_text(prelude + code)
    return subprocess.run(
        [sys.executable, "example.py"],
        cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"), [("README.md", "Stats(num_runs="), ("docs/robot.md", "15 actions, 3 ticks")]
)
def test_the_code_in_the_docs_runs(name, words, demo_bundle, tmp_path):
    (code,) = blocks(ROOT / name, "python")
    done = run_example(code, demo_bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


def test_the_client_in_the_docs_drives_a_served_bundle(demo_bundle, tmp_path):
    (code,) = blocks(ROOT / "docs" / "serving.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    with served(demo_bundle) as (_, port):
        assert code.count("port=8000") == 1
        code = code.replace("port=8000", f"port={port}")
        done = run_example(code, demo_bundle, tmp_path, prelude="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{step} (10, 4)" for step in range(3)]


def test_the_cameras_of_the_docs_show_what_a_recording_holds(tmp_path):
    (code,) = blocks(ROOT / "docs" / "cameras.md", "python")
    camera = 'RealSense(serial="231622070888", size=(640, 480))'
    assert code.count(camera) == 1
    episode = ROOT / "models" / "demo" / "episodes" / "touch-red-1.npz"
    recorded = f"RecordedEpisode(path={str(episode)!r}, size=(112, 112), rate_hz=20)"
    code = code.replace(camera, recorded).replace("import Cameras, RealSense", "import *")
    done = run_example(code, episode, tmp_path, prelude="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(112, 112, 3) {'frame': ")


@pytest.mark.parametrize(
    ("line", "planted", "promise"),
    [
        ("pass  # yours: action_A, within", "return action_A * 2  #", "is within the limits: "),
        ("pass  # yours: zero velocity", "self.arm.stop()  #", "hold keeps still, twice too: "),
        ('"state": (state, ', '"state": (state[:3], ', "read gave 'state' as float32 [3], inputs"),
    ],
)
def test_the_kit_of_the_docs_catches_a_fault_in_their_robot(
    line, planted, promise, demo_bundle, tmp_path
):
    (code,) = blocks(ROOT / "docs" / "robot.md", "python")
    assert code.count(line) == 1
    done = run_example(code.replace(line, planted), demo_bundle, tmp_path)
    assert done.returncode == 1 and "NonConforming: " in done.stderr
    assert promise in done.stderr


def test_the_robot_of_the_docs_takes_forty_lines():
    """From the first import to the last line: what a user has to write, empty lines left out."""
    (code,) = blocks(ROOT / "docs" / "robot.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 40


def test_every_word_of_our_own_is_in_the_glossary_once():
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    defined = re.findall(r"\*\*(.+?)\*\*", glossary)
    assert defined == sorted(set(defined)), "once each, in the order of the alphabet"
    own = {"action chunk", "anchor", "bundle", "engine", "gate", "golden data", "plan", "recipe"}
    assert own | {"stage", "tick", "twin", "warm tick", "backend"} <= set(defined)


def test_the_exit_codes_of_the_docs_are_those_of_the_code():
    text = (ROOT / "docs" / "errors.md").read_text()
    told = {
        name: int(code)
        for code, names in re.findall(r"^\| (\d+) \| (.*?) \|", text, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    codes = {kind.__name__: code for kind, code in EXIT_CODES.items()}
    assert told == codes | {"ValueError": 2}


def test_anchorvla_is_a_command():
    """Of the environment that `make setup` made, from any folder."""
    command = Path(sys.executable).with_name("anchorvla")
    done = subprocess.run([command, "--help"], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: anchorvla ")
