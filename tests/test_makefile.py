"""make hands paths on as they are: with spaces, quotes, and what a shell would take for its own."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATHS = {
    "export": ("CHECKPOINT", "BUNDLE", "EPISODES", "GOLDEN", "STUDY", "CAMERA"),
    "forecast": ("CHECKPOINT", "CONFIG"),
    "run": ("BUNDLE", "EPISODES", "REPORT", "EMBODIMENT", "CAMERA"),
    "eval": ("BUNDLE",),
    "delays": ("BUNDLE",),
    "soak-loop": ("BUNDLE",),
    "fuzz-server": ("BUNDLE",),
    "fuzz-release": ("BUNDLE",),
    "sign": ("BUNDLE", "KEY"),
    "flash-os": ("BOARD", "L4T", "BUNDLE", "TRUST"),
    "wheelhouse": ("WHEELHOUSE",),
    "openpi-episodes": ("BUNDLE",),
    "record-demo": ("EPISODES",),
    "device-test": ("BUNDLE", "HOST"),
}


def commands(target: str, **values: str) -> list[list[str]]:
    """The words of every line that make would run, whether the tests are run by make or not."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFL"))
    }
    done = subprocess.run(
        ["make", "-n", target, *(f"{name}={value}" for name, value in values.items())],
        cwd=ROOT, env=own, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [shlex.split(line) for line in done.stdout.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("value", ["my {} here", "it's {}; touch x", "{} > x & `y`"])
@pytest.mark.parametrize("target", PATHS)
def test_a_path_stays_one_word(target, value):
    values = {name: value.format(name.lower()) for name in PATHS[target]}
    words = commands(target, **values)[-1]
    assert [name for name, path in values.items() if words.count(path) != 1] == []


def test_the_demo_has_options_of_its_own_and_other_checkpoints_do_not():
    assert "--sensitivity" in commands("export")[-1]
    for checkpoint in ("dir", "my models/demo/checkpoint"):
        words = commands("export", CHECKPOINT=checkpoint)[-1]
        assert "--sensitivity" not in words and words.count(checkpoint) == 1


def test_a_forecast_is_of_what_was_said_and_of_no_default_of_an_export():
    words = commands("forecast")[-1]
    assert words[2:] == ["export", "forecast", "--config", "full", "--board", "agx-orin-64gb"]
    asked = {"CONFIG": "demo", "RECIPE": "orin-w4a16", "BOARD": "orin-nano-8", "IMAGE": "640 480"}
    words = commands("forecast", **asked)[-1]
    assert words[4:] == [
        "--config", "demo", "--board", "orin-nano-8", "--recipe", "orin-w4a16",
        "--image-size", "640", "480",
    ]  # fmt: skip
