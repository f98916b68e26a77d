"""A journal as a `.rrd` file, to be looked at in the rerun viewer.

Goes in: a journal, and what its policy answers now. Comes out: pictures, vectors, predicted and
sent actions and telemetry on the timelines `step` and `time`. The trade-off: rerun-sdk is as large
as everything else here together, so it is imported where a file is written, and nothing needs it.

A = action dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RecordingError
from ..storage.files import Kind, replacing
from .journal import Journal
from .png import encode_png_quickly

APPLICATION = "anchorvla"
RERUN = Kind("a rerun recording of this project", (b"RRF2", APPLICATION.encode()))
FIGURES_MS = {"late_s": "late", "think_s": "thought", "age_s": "age", "record_s": "recording"}
"""Telemetry that is drawn, in milliseconds."""

Entry = tuple[str, str, Any]
"""Where it is shown, as what (`picture`, `numbers`, `words`), and itself."""


def check_rerun(path: Path) -> None:
    """
    Raises:
        RecordingError: rerun-sdk is missing.
    """
    try:
        import rerun  # noqa: F401
    except ImportError as error:
        raise RecordingError(
            f"{path}: writing it needs rerun-sdk ({error}): python -m pip install rerun-sdk"
        ) from None


def write_rerun(journal: Journal, due: Sequence[NDArray[np.float32] | None], path: Path) -> None:
    """
    Args:
        journal: what was recorded.
        due: [A] by control tick, what is due by the chunks computed now.
        path: the file; its folder is made.

    Raises:
        OutputError: it cannot be written, or somebody's file is there.
        RecordingError: rerun-sdk is missing.
    """
    check_rerun(path)
    import rerun

    with replacing(path, RERUN) as partial:
        stream = rerun.RecordingStream(APPLICATION, recording_id=path.stem)
        stream.save(str(partial))
        for tick, entries in _timeline(journal, due):
            stream.set_time("step", sequence=int(tick["step"]))
            stream.set_time("time", duration=float(tick["acted_s"] - journal.ticks["began_s"][0]))
            for name, kind, value in entries:
                if kind == "picture":
                    data = encode_png_quickly(value)
                    stream.log(name, rerun.EncodedImage(contents=data, media_type="image/png"))
                elif kind == "words":
                    stream.log(name, rerun.TextLog(value, level="WARN"))
                else:
                    stream.log(name, rerun.Scalars(value))
        stream.flush()
        stream.disconnect()


def _timeline(
    journal: Journal, due: Sequence[NDArray[np.float32] | None]
) -> Iterator[tuple[np.void, list[Entry]]]:
    """Every tick, and what is shown from then on."""
    looks, shown = journal.named("look"), -1
    names = [name or str(d) for d, name in enumerate(journal.about["robot"]["names"])]
    for tick, due_A in zip(journal.ticks, due, strict=False):
        entries = list[Entry]()
        if tick["look"] != shown:
            shown = int(tick["look"])
            entries += _looked(journal.value(looks[shown]["values"]))
        for d, name in enumerate(names):
            if due_A is not None:
                entries.append((f"action/{name}/predicted", "numbers", [float(due_A[d])]))
            if tick["sent"]:
                entries.append((f"action/{name}/sent", "numbers", [float(tick["command"][d])]))
        entries += [
            (f"ms/{name}", "numbers", [float(tick[key]) * 1e3])
            for key, name in FIGURES_MS.items()
            if not np.isnan(tick[key])
        ]
        said = journal.interventions[int(tick["said"])]
        entries += [("guard", "words", ", ".join(said))] if said else []
        yield tick, entries


def _looked(values: dict[str, NDArray[Any]]) -> Iterator[Entry]:
    """Pictures and vectors of a look; depth and videos are left out."""
    for name, value in values.items():
        if value.ndim == 3 and value.dtype == np.uint8:
            yield f"seen/{name}", "picture", value
        elif value.ndim == 1:
            yield f"seen/{name}", "numbers", value.tolist()
