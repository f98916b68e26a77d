"""What goes to a board as one unit: a signed bundle, the runtime's wheels, and how it is run.

Its name is the number that was signed and a hash of all that it consists of: what has the same name
is the same to the byte. Nothing of it is copied here; every file is read where it lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.release.agent.place import BUNDLE, FORMAT, REQUIREMENTS, WHEELS
from runtime.bundle import MANIFEST, Bundle, read_bundle
from runtime.storage.listed import sha256_of
from runtime.storage.signature import SIGNATURE, Signature, read_signature
from runtime.storage.trust import anybody


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A release, and where its files lie here."""

    description: Mapping[str, Any]
    """`release.json`, as `export.release.agent.place.checked` takes it."""
    sources: Mapping[str, Path]
    """SHA-256 -> file here."""

    @property
    def name(self) -> str:
        """NUMBER-HASH."""
        digest = hashlib.sha256(self.to_json()).hexdigest()
        return f"{self.description['number']}-{digest[:12]}"

    def to_json(self) -> bytes:
        """One form for one release."""
        return json.dumps(self.description, sort_keys=True).encode()

    @property
    def num_bytes(self) -> int:
        return sum(entry["size"] for entry in self.description["files"].values())

    def bytes_in(self, folder: str) -> int:
        """Of its files below a folder."""
        files = self.description["files"].items()
        return sum(entry["size"] for name, entry in files if name.startswith(f"{folder}/"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """How a release is run, and when it is well."""

    words: Sequence[str]
    """After `anchorvla`; `{bundle}` stands for the bundle."""
    budget_ms: float | None
    """Of a warm tick, 99th percentile; not judged if None."""
    ticks: int
    """Good ones, that the service has to do..."""
    within_s: float
    """...in so many seconds, to be confirmed."""
    most_starts: int
    """Of the service while it is on trial."""


def read_signed(path: Path) -> tuple[Bundle, Signature]:
    """A bundle that may become a release: whole, and signed by somebody.

    Raises:
        BundleError: it is damaged, or its signature is of another form.
        ExportError: it is not signed.
    """
    bundle = read_bundle(path, verify=anybody)
    found = read_signature(path)
    if found is None:
        raise ExportError(
            f"{path}: not signed, and boards run what somebody signed whom they trust; sign it "
            "first: make sign BUNDLE=..."
        )
    return bundle, found


def make_release(
    bundle: Bundle,
    signature: Signature,
    *,
    wheels: Path,
    python: Sequence[int],
    backend: str,
    service: Service,
) -> Release:
    """Describe a release.

    Args:
        wheels: folder with requirements.txt and, in wheels/, all that it names.
        python: version on the board, major and minor.
        backend: that computes.

    Raises:
        ExportError: there are no wheels.
    """
    paths = {f"{BUNDLE}/{name}": bundle.path / name for name in bundle.manifest.files}
    paths |= {f"{BUNDLE}/{name}": bundle.path / name for name in (MANIFEST, SIGNATURE)}
    requirements = wheels / REQUIREMENTS
    if not requirements.is_file():
        raise ExportError(f"{wheels}: no {REQUIREMENTS}, so it is no wheelhouse")
    packages = sorted((wheels / WHEELS).iterdir())
    paths |= {f"{WHEELS}/{path.name}": path for path in packages} | {REQUIREMENTS: requirements}
    files, sources = {}, {}
    verified = {f"{BUNDLE}/{name}": e.sha256 for name, e in bundle.manifest.files.items()}
    for name, path in sorted(paths.items()):
        sha256 = verified.get(name) or sha256_of(path)
        files[name] = {"sha256": sha256, "size": path.stat().st_size}
        sources[sha256] = path
    description = {
        "format": FORMAT,
        "policy": bundle.manifest.policy,
        "number": signature.number,
        "license": bundle.manifest.license,
        "python": list(python),
        "backend": backend,
        "files": files,
        "service": list(service.words),
        "budget_ms": service.budget_ms,
        "health": {"ticks": service.ticks, "within_s": service.within_s},
        "most_starts": service.most_starts,
    }
    return Release(description=description, sources=sources)
