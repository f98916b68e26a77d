"""python -m tests.ros2: the tests of the ROS 2 robot with the real rclpy, in a venv of its own.

rclpy comes as wheels (requirements/ros2.txt, 60 MB to load) into build/ros2, which is kept. Nodes
find each other on this machine only. Exit codes: of pytest; 0 too, with the reason, where there are
no such wheels for this Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "ros2"
REQUIREMENTS = ROOT / "requirements" / "ros2.txt"
PYTHON = (3, 11)
"""That the pinned wheels are for."""


def main(arguments: list[str]) -> int:
    if sys.version_info[:2] != PYTHON:
        print(f"skipped: the wheels of rclpy are for Python {'.'.join(map(str, PYTHON))}")
        return 0
    python, stamp = FOLDER / "bin" / "python", FOLDER / ".stamp"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        venv.create(FOLDER, clear=True, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS], check=True
        )
        stamp.write_text(REQUIREMENTS.read_text())
    # What the project has installed, behind what is installed here.
    here = Path(sysconfig.get_path("purelib", vars={"base": str(FOLDER)}))
    (here / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {
        **os.environ,
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(FOLDER / "log"),
        "ROS_HOME": str(FOLDER),
    }
    words = ["-m", "pytest", "--noconftest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        [python, *words, "tests/runtime/test_ros2_robot.py"], cwd=ROOT, env=environment, check=False
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
