"""The board's side of flash as one file: a zip that the system's own Python runs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import runtime

ROOT = Path(str(runtime.__file__)).parents[1]
EMPTY = ("runtime/__init__.py", "export/__init__.py", "export/release/__init__.py")
"""What imports more than a board has."""
MODULES = (
    "runtime/errors.py",
    "runtime/storage/__init__.py",
    "runtime/storage/files.py",
    "runtime/storage/signature.py",
)
AGENT = "export/release/agent"
MAIN = """import sys
from export.release.agent.__main__ import main
sys.exit(main())
"""
DATE = (2020, 1, 1, 0, 0, 0)
"""Of every file in it: the same sources make the same bytes."""


def agent_archive() -> bytes:
    """The bytes of `agent.pyz`."""
    names = list(MODULES)
    names += [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / AGENT).iterdir())
        if path.suffix in (".py", ".service", ".conf")
    ]
    texts = {name: (ROOT / name).read_bytes() for name in names}
    texts |= dict.fromkeys(EMPTY, b"") | {"__main__.py": MAIN.encode()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(texts.items()):
            archive.writestr(zipfile.ZipInfo(name, DATE), data, zipfile.ZIP_DEFLATED)
    return stream.getvalue()
