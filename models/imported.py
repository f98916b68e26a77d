"""python -m models import: a checkpoint of any layout as a folder of our own, a tensor at a time.

In: a folder that `models.checkpoint.open_checkpoint` reads. Out: the same policy in safetensors
under the published names, in the types in which it is stored, and a table of what went where. The
trade-off: an export reads every layout by itself, so an import is for who wants to see the table,
or to keep one small form of a checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from models.checkpoint import INDEX, open_checkpoint, write_surroundings
from models.families import to_json
from models.layouts.writers import write_sharded
from models.sources import FLOATS, Source, Unused, Weights
from models.verbs import Import
from runtime.board.machine import peak_bytes
from runtime.errors import OutputError
from runtime.storage.folders import check_disk, exclusive, publish, temporary

MARK = "python -m models import"
BESIDE = ("preprocessor_config.json", "dataset_statistics.json", "tokenizer.json")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def import_checkpoint(arguments: Import) -> Path:
    """Do what `Import` says.

    Raises:
        CheckpointError: the checkpoint cannot be placed, whole and nothing left over.
        OutputError: the folder holds something else, or cannot be written.
    """
    checkpoint, out = open_checkpoint(arguments.checkpoint), arguments.out
    weights = checkpoint.weights
    print("\n".join([*checkpoint.said, table(weights)]), flush=True)
    with exclusive(out, foreign), temporary(out) as folder:
        check_disk(out, weights.num_bytes)
        try:
            write_surroundings(
                folder,
                tokenizer=checkpoint.tokenizer_file,
                image=checkpoint.image,
                statistics=checkpoint.statistics,
            )
            (folder / "config.json").write_text(to_json(checkpoint.config))
            write_sharded(folder, weights, MARK, lambda line: print(f"  {line}", flush=True))
        except OSError as error:
            raise OutputError(f"{out}: cannot be written: {error}; free some space") from error
        publish(folder, out, foreign)
    print(
        f"{out}: {len(weights)} parameters, {weights.num_bytes / 1e9:.2f} GB; "
        f"{peak_bytes() / 1e9:.2f} GB of memory at most"
    )
    return out


def foreign(folder: Path) -> str | None:
    """What keeps a folder from being one that `import` wrote."""
    try:
        mark = json.loads((folder / INDEX).read_bytes())["metadata"]["written_by"]
    except (OSError, ValueError, KeyError, TypeError):
        mark = ""
    if mark != MARK:
        return "it holds no checkpoint that this command imported"
    for path in sorted(folder.iterdir()):
        ours = path.name in (*BESIDE, "config.json", INDEX) or _SHARD.fullmatch(path.name)
        if not path.is_file() or not ours:
            return f"{path.name} is not of this command"
    return None


def table(weights: Weights) -> str:
    """What went where, layers of a kind in one row, and what was left out and why."""
    rows: dict[tuple[str, ...], int] = {}
    for source in weights.values():
        row = _row(source)
        rows[row] = rows.get(row, 0) + 1
    lines: list[tuple[str, ...]] = [("parameter", "shape", "type", "from", "how", "number")]
    lines += [(*row, str(count)) for row, count in rows.items()]
    return "\n".join([*_aligned(lines), *_left_out(weights.unused)])


def _row(source: Source) -> tuple[str, ...]:
    names = list(dict.fromkeys(_NUMBER.sub("*", stored.name) for stored in source.stored))
    shards = f" of {len(source.stored)} shards" if len(source.stored) > 1 else ""
    return (
        _NUMBER.sub("*", source.name),
        " x ".join(map(str, source.shape)),
        FLOATS[source.dtype],
        " + ".join(names) + shards,
        source.how,
    )


def _left_out(unused: Iterable[Unused]) -> list[str]:
    return [f"left out: {u.name} of {u.file.name}: {u.why}" for u in unused]


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest word."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
