"""The six commands that a family's page in docs/ begins with, each on a synthesized folder."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from export.config import Size
from export.evidence.bench import make_up_episode
from export.release.config import FlashConfig, ReleaseConfig
from export.release.flash import flash
from models.checkpoint import load_checkpoint
from tests.flash.board import loopback_board
from tests.test_command_lines import call

ROOT = Path(__file__).parents[2]


def documented(page: str) -> list[str]:
    """The six, as they are written."""
    text = re.split("\n## From a .* to a robot\n", (ROOT / "docs" / page).read_text())[1]
    return re.search(r"```\n(.*?)```", text, re.DOTALL)[1].strip().splitlines()


def meant(line: str, given: dict[str, object]) -> list[str]:
    """What a line runs, `make`'s own words resolved, with values of the test's."""
    words = shlex.split(line)
    if words[0] != "make":
        return [str(given["CHECKPOINT"]) if word in ("run", "folder") else word for word in words]
    names = {word.partition("=")[0] for word in words[2:]} | given.keys() & {"ARGS", "KEY"}
    said = [f"{name}={given[name]}" for name in sorted(names)]
    dry = subprocess.run(
        ["make", "--dry-run", "-o", "setup", words[1], *said],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return shlex.split(dry.stdout.replace("\\\n", " "))


@pytest.mark.full
@pytest.mark.parametrize(
    ("page", "family", "config", "told"),
    [
        ("starvla.md", "qwengr00t", "tiny", "framework: Qwen"),
        ("starvla.md", "qwenoft", "tiny3", "framework: Qwen"),
        ("vlaadapter.md", "vlaadapter", "tiny", "policy: VLA-Adapter, Pro"),
        ("upvla.md", "upvla", "tiny", "policy: UP-VLA, on Show-o"),
        ("smolvla.md", "smolvla", "tiny", "policy: LeRobot's SmolVLA"),
        ("sgvla.md", "sgvla", "tiny", "nobody published a sgvla"),
    ],
)
def test_six_commands_lead_from_a_folder_to_a_robot(
    page, family, config, told, tmp_path, capsys, monkeypatch
):
    """To a board that is this machine, and so in a recipe that its CPU runs."""
    monkeypatch.chdir(tmp_path)
    run, episodes = tmp_path / "run", tmp_path / "episodes"
    made = ["synthesize", "--family", family, "--config", config, "--out", str(run)]
    assert call("models", made) == 0
    episodes.mkdir()
    for number in range(6):
        make_up_episode(
            load_checkpoint(run), Size(112, 0, 0), tmp_path, count=12, seed=100 * number
        )
        (tmp_path / "made-up.npz").rename(episodes / f"{number}.npz")
    given = {
        "CHECKPOINT": run, "RECIPE": "cpu-int8", "BOARD": "agx-orin-64gb", "IMAGE": "112 112",
        "BUNDLE": tmp_path / "bundle", "EPISODES": episodes, "KEY": tmp_path / "keys/release.key",
    }  # fmt: skip
    check, forecast, export, keys, sign, last = documented(page)
    for line, more in (
        (check, {}),
        (forecast, {"ARGS": f"--out {tmp_path}/forecast", "RECIPE": "orin-w8a8"}),
        (export, {"ARGS": "--no-yardsticks"}),
        (keys, {"ARGS": f"--out {tmp_path}/keys"}),
        (sign, {}),
    ):
        _, flag, package, *words = meant(line, given | more)
        assert flag == "-m"
        assert call(package, words) == 0, line
    said = capsys.readouterr().out
    assert told in said and "fits: " in said and "end_to_end: pass" in said
    assert last == "make flash HOST=robot@orin BUNDLE=bundle"
    with loopback_board(tmp_path / "board") as board:
        release = ReleaseConfig(
            bundle=tmp_path / "bundle", trust=tmp_path / "keys/release.pub",
            backend="onnxruntime", service="serve {bundle} --port 0",
            health_ticks=2, health_s=120.0,
        )  # fmt: skip
        flash(FlashConfig(board=board.config(), release=release))
        assert re.fullmatch(r"\d{14}-[0-9a-f]{12}", board.current)
