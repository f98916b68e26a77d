"""What an export has worked out, in a folder: one that was cut off goes on where it was.

In: a name and what makes it. Out: the result, from its file where an export of the same policy, in
the same recipe, sizes, observations, code and versions has made it already. A result is there whole
or not at all. The trade-off: what is kept is read again as it was written, and nothing checks it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.storage.files import replacing, write_file

TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "tokenizers", "pillow")
PACKAGES = ("export", "models", "quant", "runtime")
"""Of this project: what a result is worked out by."""
MARK = "@"
"""Before an array's name, which could otherwise be that of an argument of numpy's."""
Arrays = Mapping[str, NDArray[Any]]


class Kept:
    """Results of one export."""

    def __init__(self, folder: Path | None = None, *parts: object) -> None:
        """
        Args:
            folder: that takes them; without one nothing is kept.
            parts: all that they depend on, beside this project's code and the libraries.
        """
        self._folder = folder
        self._key = hashlib.sha256(_code())
        for part in parts:
            self._key.update(repr(part).encode() + b"\0")

    def arrays(self, name: str, make: Callable[[], Arrays]) -> dict[str, NDArray[Any]]:
        """Arrays by name."""
        if self._folder is None:
            return dict(make())
        path = self._folder / f"{self._key_of(name)}.npz"
        if not path.is_file():
            with replacing(path) as partial, partial.open("wb") as file:
                named = {MARK + entry: value for entry, value in make().items()}
                np.savez(file, allow_pickle=False, **named)
        with np.load(path, allow_pickle=False) as found:
            return {entry.removeprefix(MARK): found[entry] for entry in found.files}

    def figures(self, name: str, make: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Numbers by name, float64."""
        made = self.arrays(name, lambda: {n: np.array(v, np.float64) for n, v in make().items()})
        return {entry: float(value) for entry, value in made.items()}

    def record(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Bytes: what was found out while something was made in a `folder`."""
        if self._folder is None:
            return make()
        path = self._folder / f"{self._key_of(name)}.record"
        if not path.is_file():
            write_file(path, make())
        return path.read_bytes()

    def forget(self, name: str) -> None:
        """Of a record: what it says is no longer so."""
        if self._folder is not None:
            (self._folder / f"{self._key_of(name)}.record").unlink(missing_ok=True)

    def folder(self, name: str) -> Path:
        """A folder, with what lies in it already.

        Raises:
            ValueError: nothing is kept.
        """
        if self._folder is None:
            raise ValueError(f"{name}: a folder needs one to lie in")
        folder = self._folder / self._key_of(name)
        folder.mkdir(exist_ok=True)
        return folder

    def _key_of(self, name: str) -> str:
        digest = self._key.copy()
        digest.update(name.encode())
        return digest.hexdigest()


def digest_of(arrays: Arrays) -> str:
    """Of all their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(repr((name, value.dtype.str, value.shape)).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of the libraries that an export is made with."""
    return {"python": platform.python_version()} | {
        tool: importlib.metadata.version(tool) for tool in TOOLS
    }


@functools.cache
def _code() -> bytes:
    root = Path(__file__).parents[1]
    digest = hashlib.sha256(repr(versions()).encode())
    for package in PACKAGES:
        for source in sorted((root / package).rglob("*.py")):
            digest.update(source.relative_to(root).as_posix().encode() + source.read_bytes())
    return digest.digest()
