"""A package index on this machine, with files that a test makes: pages in JSON or in HTML."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOOLS = ("setuptools", "wheel", "numpy>=1.24")
"""What pycuda is built with."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(
    name: str, version: str = "1.0", requires: Sequence[str] = (), content: str = ""
) -> bytes:
    """A wheel with one module, named as the distribution."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {words}\n" for words in requires)
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return made.getvalue()


def source(
    name: str,
    version: str,
    setup: str,
    tools: Sequence[str] = TOOLS,
    python: str = ">=3.8",
    requires: Sequence[str] = (),
) -> bytes:
    """A source with a setup.py, which whoever asks for its metadata runs."""
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n"
    about += "".join(f"Requires-Dist: {words}\n" for words in requires)
    files = {
        "PKG-INFO": about,
        "pyproject.toml": f"[build-system]\nrequires = {json.dumps(list(tools))}\n",
        "setup.py": setup,
    }
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


@dataclass
class SimpleIndex:
    """What is served."""

    port: int = 0
    in_html: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    """By name, as they are; a page states their sha256."""
    served: dict[str, bytes] = field(default_factory=dict)
    """What comes instead of one."""
    cut: dict[str, int] = field(default_factory=dict)
    """Bytes after which the connection ends."""
    moved: dict[str, str] = field(default_factory=dict)
    """Name -> where the page says it is, or where its place redirects to."""
    redirected: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Paths, in the order of the requests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/simple"

    def page(self, name: str) -> tuple[str, bytes]:
        """Its kind and its bytes."""
        of_name = {
            file: (self.moved.get(file, f"../../files/{file}"), sha256(data))
            for file, data in self.files.items()
            if file.split("-")[0].replace("_", "-") == name
        }
        if self.in_html:
            links = (f'<a href="{u}#sha256={h}">{f}</a>' for f, (u, h) in of_name.items())
            return "text/html", f"<!DOCTYPE html><body>{''.join(links)}</body>".encode()
        listed = [
            {"filename": f, "url": u, "hashes": {"sha256": h}, "requires-python": None}
            for f, (u, h) in of_name.items()
        ]
        page = {"meta": {"api-version": "1.0"}, "name": name, "files": listed}
        return "application/vnd.pypi.simple.v1+json", json.dumps(page).encode()


@contextmanager
def serving(index: SimpleIndex) -> Iterator[SimpleIndex]:
    """Until the block ends; nobody answers afterwards."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.asked.append(self.path)
            name = unquote(self.path).strip("/").split("/")[-1]
            if self.path.startswith("/simple/"):
                self.answer(*index.page(name))
            elif name in index.redirected:
                self.send_response(302)
                self.send_header("Location", index.redirected[name])
                self.end_headers()
            elif name in index.files:
                data = index.served.get(name, index.files[name])
                self.answer("application/octet-stream", data, index.cut.get(name))
            else:
                self.send_error(404)

        def answer(self, kind: str, data: bytes, cut: int | None = None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:cut])

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("", 0), Handler) as server:
        index.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield index
        finally:
            server.shutdown()
            thread.join()
