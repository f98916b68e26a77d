"""The folder that an export writes: a bundle is replaced, anything else is refused."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from export.errors import ExportError
from runtime.bundle import MANIFEST, PLANS
from runtime.errors import OutputError
from runtime.storage import folders
from runtime.storage.files import FULL, PARTIAL, remedy
from runtime.storage.folders import check_disk, check_folder, temporary
from runtime.storage.signature import SIGNATURE

__all__ = [
    "check_disk",
    "disk_errors",
    "exclusive",
    "kept_work",
    "publish",
    "publish_kept",
    "temporary",
]

MANIFEST_KEYS = ("schema", "policy", "recipe", "graph", "engines", "files")
"""A manifest of any schema has them."""
CALIBRATION = "calibration.npz"
WORK = re.compile(rf"[0-9a-f]{{64}}(\.safetensors|\.npz|\.record)?|{re.escape(CALIBRATION)}")
PLAN_SUFFIXES = (".plan", ".json", ".cache", ".lock", ".new", ".partial")


def exclusive(out: Path) -> contextlib.AbstractContextManager[None]:
    """One export per destination, which is absent, empty or a bundle.

    Raises:
        OutputError: somebody else writes it, it cannot be written, or it is something else.
    """
    return folders.exclusive(out, foreign)


def publish(folder: Path, out: Path) -> None:
    """Put the complete folder of `temporary` in the place of `out`."""
    folders.publish(folder, out, foreign)


def publish_kept(folder: Path, out: Path) -> None:
    """Put a complete folder of `kept_work` there."""
    with temporary(out) as new:
        folders.sync_all(folder)  # the longest part, while it is still where it was
        folder.rename(new)
        publish(new, out)


def foreign(folder: Path) -> str | None:
    """What keeps a folder from being a bundle and nothing else: no manifest, or other files."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it is no bundle"
    except (ValueError, RecursionError):
        return f"its {MANIFEST} is not JSON"
    is_bundle = isinstance(manifest, dict) and all(key in manifest for key in MANIFEST_KEYS)
    if not is_bundle or not isinstance(manifest["files"], dict):
        return f"its {MANIFEST} is not a bundle's"
    known = {MANIFEST, SIGNATURE, *manifest["files"]}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_plan = name.startswith(f"{PLANS}/") and path.suffix in PLAN_SUFFIXES
        if not path.is_dir() and name not in known and not is_plan:
            return f"{name} is not in its {MANIFEST}"
    return None


@contextlib.contextmanager
def kept_work(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what a run that is cut off need not do again. Hold `exclusive`.

    It goes when the export ends, with a bundle or an error of its own. It stays when the export is
    interrupted or killed, or the disk is full: what lies in it is named by what it was made of, so
    the next one takes what it needs.

    Raises:
        OutputError: something in it is not ours, or it cannot be written.
    """
    folder = out.with_name(f"{out.name}.work")
    check_folder(folder, _foreign_work)
    try:
        yield folder
    except (OSError, OutputError):  # not of the export's making
        with contextlib.suppress(OSError):
            folder.rmdir()  # if there is nothing in it
        raise
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _foreign_work(folder: Path) -> str | None:
    names = sorted(path.name for path in folder.iterdir())
    strange = (n for n in names if not (WORK.fullmatch(n) or PARTIAL.fullmatch(n)))
    return next((f"{name} is not of an export" for name in strange), None)


@contextlib.contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """A disk that fills up half-way becomes an `ExportError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ExportError(
            f"{out}: {remedy(error)}, and export again: it goes on where it was"
        ) from error
