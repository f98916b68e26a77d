"""LeRobot's own reader, and rerun, in an environment of its own.

    python -m tests.lerobot_reader --make               # build/lerobot, 750 MB
    build/lerobot/bin/python tests/lerobot_reader.py DATASET OUT.npz

The environment sees what .venv holds, torch among it. Second line: all that LeRobot reads of a
dataset, frame by frame, as arrays.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / "build" / "lerobot"
PYTHON = ENVIRONMENT / "bin" / "python"
PINS = ROOT / "requirements" / "lerobot.txt"


def make() -> None:
    """The environment, where it is not there yet."""
    import sysconfig

    subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
    packages = next(ENVIRONMENT.glob("lib/python*/site-packages"))
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    subprocess.run([PYTHON, *install, "-r", PINS], check=True)
    print(f"{ENVIRONMENT}: LeRobot is there")


def read(root: str, out: str) -> None:
    """By feature, everything of every frame; `meta`, a text, what LeRobot tells of the dataset."""
    import numpy as np
    import torch

    # torchvision's operators are compiled for another torch; their names alone are asked for.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("nobody/ours", root=root, video_backend="pyav")
    items = [dataset[number] for number in range(len(dataset))]
    columns = {key: np.stack([np.asarray(item[key]) for item in items]) for key in items[0]}
    meta = {
        "episodes": dataset.num_episodes,
        "fps": dataset.fps,
        "names": dataset.meta.names["action"],
        "cameras": dataset.meta.camera_keys,
        "tasks": list(dataset.meta.tasks.index),
        "stats": {
            key: {name: np.asarray(value).tolist() for name, value in of.items()}
            for key, of in dataset.meta.stats.items()
        },
    }
    np.savez(out, meta=json.dumps(meta), **columns)


if __name__ == "__main__":
    make() if sys.argv[1:] == ["--make"] else read(*sys.argv[1:])
