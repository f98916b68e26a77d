"""What a package index has, asked for without running any of it.

pip chooses and fetches wheels, wherever it was told to look. To learn a source's name it runs its
setup.py, so sources are fetched here: from the pages that pip says it looks at, with the sha256
that they state. No index is named in this project.
"""

from __future__ import annotations

import email
import hashlib
import http.client
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
from packaging.requirements import Requirement
from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion

from export.errors import ExportError
from export.release.targets import SOURCE_ONLY, File, Target, is_of

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
MOST_BYTES = 64 << 20
"""Of a page or a source."""
TIMEOUT_S = 60.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")
PAGE = re.compile(r"^\* (\S+)$", re.MULTILINE)
"""What pip says before it looks at a page."""
ORIGIN = re.compile(r" from (\S+?)(?:#\S+)? \(from -r ")
HASHES = re.compile(r"Expected sha256 (\w+)\s+Got\s+(\w+)")
"""What pip says of a file that is not the one that is meant."""
UNREADABLE = (OSError, http.client.HTTPException)


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A file on a page of an index."""

    filename: str
    url: str
    hashes: dict[str, str] = {}


class _Page(msgspec.Struct):
    files: list[Link]


def ask(pins: Mapping[str, Requirement], target: Target) -> dict[str, File]:
    """The files that `target` would get for these pins, and what they declare.

    Raises:
        ExportError: there is none for one of them, or the index cannot be asked.
    """
    wheels = {name: pin for name, pin in pins.items() if name not in SOURCE_ONLY}
    found = dict(_ask_for_source(name, pins[name]) for name in pins.keys() - wheels.keys())
    return found | (_ask_pip(wheels, target) if wheels else {})


def _ask_pip(pins: Mapping[str, Requirement], target: Target) -> dict[str, File]:
    answer = _pip(
        *("install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"),
        "--ignore-requires-python",  # it is held against this machine's; `problems` does it
        *("--target", "nowhere"),  # nothing is installed, but pip asks for it with tags
        *("--report", "-", *_wheels_for(target)),
        *(f"{name}{pin.specifier}" for name, pin in pins.items()),
    )
    return dict(map(_reported, json.loads(answer)["install"]))


def _reported(found: Any) -> tuple[str, File]:
    """What pip's report says of a file that it would install."""
    declared, origin = found["metadata"], found["download_info"]
    file = _file_of(origin["url"])
    sha256 = origin.get("archive_info", {}).get("hashes", {}).get("sha256")
    if not sha256:
        raise ExportError(f"{file}: {origin['url']} has no sha256; another index may state one")
    python, requires = declared.get("requires_python", ""), declared.get("requires_dist", [])
    return file, _declared(sha256, python, requires)


def _ask_for_source(name: str, pin: Requirement) -> tuple[str, File]:
    for link in _links(name):
        if _is_source(link.filename, name, pin) and "sha256" in link.hashes:
            data = _fetch(link, link.hashes["sha256"])
            said = email.message_from_bytes(read_member(data, "PKG-INFO"))
            return link.filename, _declared(
                link.hashes["sha256"],
                said.get("Requires-Python", ""),
                said.get_all("Requires-Dist", []),
            )
    raise ExportError(f"no source of {name}{pin.specifier} with a sha256 on any index of pip's")


def fetch_wheels(files: Mapping[str, File], target: Target, folder: Path) -> None:
    """Put wheels of an index into `folder`.

    Raises:
        ExportError: one is not to be had, or is not the one that is meant.
    """
    lines = []
    for name, file in files.items():
        distribution, version, *_ = parse_wheel_filename(name)
        lines.append(f"{distribution}=={version} --hash=sha256:{file.sha256}")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write("\n".join(lines))
        wanted.flush()
        _pip(
            *("download", "--quiet", "--no-deps", "--require-hashes", "--dest", str(folder)),
            *(*_wheels_for(target), "-r", wanted.name),
        )


def fetch_source(name: str, file: str, sha256: str) -> bytes:
    """A source of an index.

    Raises:
        ExportError: it is not to be had, or is not the one that is meant.
    """
    links = [link for link in _links(name) if link.filename == file]
    if not links:
        raise ExportError(f"{file}: on no page of the indexes that pip looks at")
    meant = [link for link in links if link.hashes.get("sha256", sha256) == sha256]
    if not meant:
        raise _mismatch(file, links[0].url, sha256, links[0].hashes["sha256"])
    return _fetch(meant[0], sha256)


def read_member(source: bytes, name: str) -> bytes:
    """A file in the first folder of a source, which is not unpacked.

    Raises:
        ExportError: it is not there.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(source), mode="r:gz") as archive:
            for member in archive:
                if member.isfile() and member.name.split("/")[1:] == [name]:
                    file = archive.extractfile(member)
                    return file.read(MOST_BYTES) if file else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ExportError(f"a source that cannot be read: {error}") from None
    raise ExportError(f"a source without {name}; nothing says what it needs")


def _wheels_for(target: Target) -> list[str]:
    tags = ["--only-binary", ":all:", "--implementation", "cp"]
    tags += ["--python-version", target.short_python]
    for platform in target.platforms:
        tags += ["--platform", platform]
    return tags


def _pip(*words: str) -> str:
    """What pip prints.

    Raises:
        ExportError: it failed; the message is pip's.
    """
    done = subprocess.run([*PIP, *words], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    if found := HASHES.search(done.stderr):
        origin = ORIGIN.search(done.stderr)
        url = origin[1] if origin else "a page of the index"
        raise _mismatch(_file_of(url), url, *found.groups())
    raise ExportError(last_words(done.stderr))


def last_words(text: str) -> str:
    """The line of a tool's output that says why it failed."""
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    return (errors or text.splitlines() or ["no reason was given"])[-1].removeprefix("ERROR: ")


def _links(name: str) -> list[Link]:
    """On all pages of a distribution, those of the first index first.

    Raises:
        ExportError: no page can be read.
    """
    found, failed = [], []
    pages = _pages(name)
    for page in pages:
        try:
            found += _links_on(page)
        except ExportError as error:
            failed.append(str(error))
    if not found:
        raise ExportError("; ".join(failed) or f"{name}: pip looks at no page of an index")
    return found


def _pages(name: str) -> list[str]:
    """Where pip looks for a distribution: it says so, whoever configured it.

    It is asked for what cannot be, so it ends where others begin to fetch.
    """
    with tempfile.TemporaryDirectory() as nowhere:
        words = ("download", "-vv", "--no-deps", "--only-binary", ":all:", "--dest", nowhere)
        done = subprocess.run(
            [*PIP, *words, f"{name}<0"], capture_output=True, text=True, check=False
        )
    return PAGE.findall(done.stdout)


def _links_on(page: str) -> list[Link]:
    if page.startswith("file:") and page.endswith("/"):
        page += "index.html"
    url, kind, data = _read(page, ACCEPT)
    if kind.endswith("+json"):
        try:
            links = msgspec.json.decode(data, type=_Page).files
        except msgspec.DecodeError as error:
            raise ExportError(f"{page}: not a page of an index ({error})") from None
    else:
        parser = _Anchors()
        parser.feed(data.decode(errors="replace"))
        links = [_link_of(href) for href in parser.hrefs]
    return [
        msgspec.structs.replace(link, url=urllib.parse.urljoin(url, link.url)) for link in links
    ]


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hrefs += [href for name, href in attrs if (tag, name) == ("a", "href") and href]


def _link_of(href: str) -> Link:
    url, fragment = urllib.parse.urldefrag(href)
    hashes = dict([fragment.split("=", 1)]) if "=" in fragment else {}
    return Link(filename=_file_of(url), url=url, hashes=hashes)


def _file_of(url: str) -> str:
    """As pip names it: a slash that is written as %2F is one."""
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 1)[-1]


def _is_source(file: str, name: str, pin: Requirement) -> bool:
    try:
        return file.endswith(".tar.gz") and is_of(file, name, pin)
    except (InvalidSdistFilename, InvalidWheelFilename, InvalidVersion):
        return False


def _fetch(link: Link, sha256: str) -> bytes:
    _, _, data = _read(link.url, "*/*")
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise _mismatch(link.filename, link.url, sha256, got)
    return data


def _read(url: str, accept: str) -> tuple[str, str, bytes]:
    """The address where it was in the end, its kind, and what is there.

    Raises:
        ExportError: it cannot be read, or anybody on the way could have changed it.
    """
    request = urllib.request.Request(url, headers={"Accept": accept})
    try:
        _refuse_unsafe(url)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            _refuse_unsafe(answer.geturl())
            data = answer.read(MOST_BYTES + 1)
            kind = answer.headers.get_content_type()
    except UNREADABLE as error:
        raise ExportError(f"{url}: cannot be read ({error})") from None
    if len(data) > MOST_BYTES:
        raise ExportError(f"{url}: more than {MOST_BYTES >> 20} MiB, so it is not read")
    return answer.geturl(), kind, data


def _refuse_unsafe(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    is_here = parts.scheme == "http" and parts.hostname in LOOPBACK
    if parts.scheme not in ("https", "file") and not is_here:
        raise ExportError(f"{url}: not https, so anybody on the way could have changed it")


def _declared(sha256: str, python: str, requires: list[Any]) -> File:
    # What only extras need never counts: left out, so that the table stays short.
    needed = tuple(words for words in map(str, requires) if "extra ==" not in words)
    return File(sha256=sha256, requires_python=str(python), requires=needed)


def _mismatch(file: str, url: str, expected: str, got: str) -> ExportError:
    return ExportError(
        f"{file}: {url} has sha256 {got}, expected {expected}: another file than the one that was "
        "looked at, so it is not used; if it is meant, make resolve takes it"
    )
