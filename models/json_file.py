"""JSON files of a checkpoint, whose errors name the file.

The trade-off: read whole, so a file of any size that stands there is taken for one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.storage.files import LFS_POINTER


def refuse_pointer(path: Path, what: str = "the file itself") -> None:
    """
    Raises:
        ValueError: a git-lfs pointer stands in place of the file.
    """
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{path}: a git-lfs pointer, not {what}; run: git lfs pull")


def read_json(path: Path) -> Any:
    """
    Raises:
        ValueError: not JSON, in Python's wider sense, which has NaN.
    """
    refuse_pointer(path)
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); copy it again") from None


def read_object(path: Path) -> dict[str, Any]:
    """
    Raises:
        ValueError: not JSON, or no object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be an object, got {type(value).__name__}")
    return value
