"""Running a bundle leaves nothing in the user's home folder, and says nothing if it cannot.

An export leaves nothing either: see `tests/export/test_build.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.demo import EPISODES

VARIABLE = "ORT_DISABLE_TELEMETRY"
VERBS = """
import sys
from runtime.__main__ import main
bundle, episode = sys.argv[1:]
for verb in (
    ["check", bundle],
    ["run", bundle, "--episodes", episode, "--max-steps", "5"],
    ["bench", bundle, "--ticks", "2"],
    ["show", bundle],
    ["doctor", bundle],
):
    print(verb[0], main(verb))
"""


def run(home: Path, code: str, *arguments: object, **environment: str):
    """A Python of its own with another home, and with no other variable of this process.

    The wheel keeps quiet where it finds one of a CI, such as `CI` itself: there nothing here would
    fail, and `test_what_this_guards_against_is_still_there` would.
    """
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_every_verb_leaves_the_home_folder_empty(demo_bundle, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    episode = next(EPISODES.glob("*.npz"))
    done = run(home, VERBS, demo_bundle, episode)
    assert {"check 0", "run 0", "bench 0", "show 0"} <= set(done.stdout.splitlines())
    assert list(home.rglob("*")) == []


SIMULATE = """
from runtime.robots.metaworld import MetaWorldRobot
MetaWorldRobot(task="reach", seed=0, image_size=16).close()
"""


def test_the_simulator_leaves_the_home_folder_empty(simulator, tmp_path):
    """Mesa asks the password file for the home folder, unless it is given another cache."""
    run(tmp_path, SIMULATE, XDG_CACHE_HOME=str(tmp_path))
    assert list(tmp_path.rglob("*")) == []


IMPORT = "import os, runtime.backends.onnxruntime; print(os.environ['ORT_DISABLE_TELEMETRY'])"


def test_a_home_folder_that_cannot_be_written_is_not_complained_about():
    done = run(Path("/proc/no-home"), IMPORT)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("chosen", ["0", "1", ""])
def test_who_has_decided_about_telemetry_is_not_overruled(chosen, tmp_path):
    assert run(tmp_path, IMPORT, **{VARIABLE: chosen}).stdout == f"{chosen}\n"


def test_what_this_guards_against_is_still_there(tmp_path):
    """Once the wheel writes nothing by itself, the variable and these tests can go."""
    run(tmp_path, IMPORT, **{VARIABLE: "0"})
    assert [path.name for path in tmp_path.rglob("deviceid")] == ["deviceid"]
