"""What a workstation asks of a board before it sends anything."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from export.release.agent import lock, trial
from export.release.agent.place import Place, led_to

L4T = "etc/nv_tegra_release"
"""Says which Jetson Linux a root file system is."""


def facts(place: Place) -> dict[str, Any]:
    """Of this machine; nothing is changed.

    `free_bytes` are those where releases go, `trusts` the files of the keys that it trusts.
    """
    existing = next(p for p in (place.root, *place.root.parents) if p.exists())
    return {
        "machine": platform.machine(),
        "python": list(sys.version_info[:2]),
        "glibc": platform.libc_ver()[1],
        "has_venv": importlib.util.find_spec("ensurepip") is not None,
        "has_tensorrt": importlib.util.find_spec("tensorrt") is not None,
        "has_systemd": shutil.which("systemctl") is not None,
        "may_write": os.access(existing, os.W_OK),
        "free_bytes": shutil.disk_usage(existing).free,
        "time": time.time(),
        "board": _text(place, "proc/device-tree/model") or platform.machine(),
        "l4t": l4t_of(_text(place, L4T)),
        "trusts": sorted(_names(place.trust)),
        "current": led_to(place.current),
        "previous": led_to(place.previous),
        "trial": trial.trial_of(place) is not None,
        "releases": place.all(),
        "holder": lock.holder(place),
    }


def l4t_of(words: str) -> str | None:
    """Version of Jetson Linux, by what `L4T` holds: `# R36 (release), REVISION: 4.3, ...`."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", words)
    return f"{found[1]}.{found[2]}" if found else None


def _text(place: Place, name: str) -> str:
    try:
        return (place.system / name).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _names(folder: Path) -> list[str]:
    return [n for n in os.listdir(folder) if not n.startswith(".")] if folder.is_dir() else []
