"""A bundle for machines without the arithmetic of another: the float32 twin of every engine.

What a bfloat16 or float16 bundle does on a board can so be seen, gated and filmed on any CPU.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
from msgspec.structs import replace

from export.config import TwinConfig
from export.destination import exclusive, publish, temporary
from export.engines.lower import twin
from export.engines.onnx_file import save
from export.kept import Kept
from runtime.bundle import MANIFEST, FileEntry, read_bundle
from runtime.storage.listed import sha256_of
from runtime.storage.trust import anybody


def make_twin(config: TwinConfig) -> Path:
    """Write it.

    Raises:
        BundleError: the bundle is damaged.
        OutputError: the destination cannot be written, or is something else than a bundle.
    """
    with exclusive(config.out), temporary(config.out) as folder:
        write_twin(config.bundle, folder, lambda engine: print(f"twin of {engine}", flush=True))
        publish(folder, config.out)
    return config.out


def write_twin(
    bundle: Path,
    folder: Path,
    say: Callable[[str], None] = lambda engine: None,
    kept: Kept | None = None,
) -> None:
    """Into a folder. All but the engines is linked where the file system can.

    Args:
        folder: empty, or what a run that was cut off has left of the same twin, if it is of `kept`.
        say: told of each engine before it is rewritten.
    """
    kept = kept or Kept()
    manifest = read_bundle(bundle, verify=anybody).manifest
    files = {n: entry for n, entry in manifest.files.items() if not n.startswith("engines/")}
    for name in files:
        (folder / name).unlink(missing_ok=True)
        try:
            os.link(bundle / name, folder / name)
        except OSError:
            shutil.copyfile(bundle / name, folder / name)
    for name, engine in manifest.engines.items():

        def make(name: str = name, file: str = engine.file) -> bytes:
            say(name)
            written = save(twin(onnx.load(bundle / file)), folder / file)
            entries = {
                path.relative_to(folder).as_posix(): FileEntry(
                    sha256=sha256_of(path), bytes=path.stat().st_size
                )
                for path in written.files
            }
            return msgspec.json.encode(entries)

        record = kept.record(f"twin of {name}", make)
        files |= msgspec.json.decode(record, type=dict[str, FileEntry])
    changed = replace(manifest, files=files, twin_of=manifest.content_sha256)
    (folder / MANIFEST).write_bytes(changed.to_json())
