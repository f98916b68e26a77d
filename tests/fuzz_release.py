"""python -m tests.fuzz_release BUNDLE [--mutations 10000]

A signed release with one thing wrong, again and again: a bit, an end, an order, a name, a kind of
file, a number in the manifest, a signature of another key or release. Each has to be refused with
one line, before a byte of a changed manifest was parsed and before anything opened an engine for
more than its hash, in bounded memory and time. Prints counts by kind; exits 1 if one was not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from export.release.config import KeysConfig, SignConfig
from export.release.signing import make_keys, sign
from runtime.bundle import MANIFEST, read_bundle
from runtime.errors import BundleError
from runtime.storage import trust
from runtime.storage.signature import SIGNATURE
from tests.families import list_again

MOST_S, MOST_BYTES = 5.0, 64 << 20
"""That one refusal may take; the manifest of the published policy is 1 MB."""
NUMBER = 20261128175500


@dataclass
class Release:
    """A signed bundle, and others that are not to be taken for it."""

    folder: Path
    foreign: Path
    """The same bundle, signed by a key that nobody trusts."""
    other: Path
    """Another bundle, signed by the trusted key."""
    random: random.Random
    files: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = sorted(p for p in self.folder.rglob("*") if p.is_file())

    def file(self) -> Path:
        """One of them; as often the manifest or the signature as all others."""
        if self.random.random() < 0.5:
            return self.folder / self.random.choice([MANIFEST, SIGNATURE])
        return self.random.choice(self.files)


Mutation = Callable[[Release], contextlib.AbstractContextManager[str]]
"""Changes a release, tells what it changed, and undoes it."""
MUTATIONS: dict[str, Mutation] = {}


def mutation(change: Callable[[Release], Iterator[str]]) -> Mutation:
    MUTATIONS[change.__name__] = made = contextlib.contextmanager(change)
    return made


@contextlib.contextmanager
def other_bytes(path: Path, data: bytes) -> Iterator[None]:
    """In the place of what is there, until the block ends."""
    kept = path.read_bytes()
    try:
        path.write_bytes(data)
        yield
    finally:
        path.write_bytes(kept)


@contextlib.contextmanager
def moved(path: Path, to: Path) -> Iterator[None]:
    path.rename(to)
    try:
        yield
    finally:
        to.rename(path)


@contextlib.contextmanager
def linked(path: Path, to: Path) -> Iterator[str]:
    """To the very bytes: what it names may change after it was read."""
    with moved(path, to):
        path.symlink_to(to)
        try:
            yield path.name
        finally:
            path.unlink()


@mutation
def bit(release: Release) -> Iterator[str]:
    path = release.file()
    at, which = release.random.randrange(path.stat().st_size), release.random.randrange(8)

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << which]))

    flip()
    try:
        yield f"{path.name}, byte {at}, bit {which}"
    finally:
        flip()


@mutation
def truncation(release: Release) -> Iterator[str]:
    path = release.file()
    data = path.read_bytes()
    length = release.random.randrange(len(data))
    with other_bytes(path, data[:length]):
        yield f"{path.name}, {length} of {len(data)} bytes"


@mutation
def longer(release: Release) -> Iterator[str]:
    path = release.file()
    more = release.random.choice([b"\0", b" ", b"\n", bytes(1 << 16)])
    with other_bytes(path, path.read_bytes() + more):
        yield f"{path.name}, {len(more)} bytes more"


@mutation
def order(release: Release) -> Iterator[str]:
    path = release.file()
    data = path.read_bytes()
    at = sorted(release.random.sample(range(len(data) + 1), 3))
    swapped = data[: at[0]] + data[at[1] : at[2]] + data[at[0] : at[1]] + data[at[2] :]
    if swapped == data:
        swapped = data + data
    with other_bytes(path, swapped):
        yield f"{path.name}, pieces at {at}"


@mutation
def exchanged(release: Release) -> Iterator[str]:
    one, two = release.random.sample(release.files, 2)
    first, second = one.read_bytes(), two.read_bytes()
    if first == second:
        second += b"\0"
    with other_bytes(one, second):
        yield f"{one.name} holds {two.name}"


@mutation
def renamed(release: Release) -> Iterator[str]:
    path = release.file()
    to = path.with_name(
        release.random.choice([path.name.upper(), f"{path.name}~", f".{path.name}"])
    )
    with moved(path, to):
        yield f"{path.name} is called {to.name}"


@mutation
def removed(release: Release) -> Iterator[str]:
    path = release.file()
    with moved(path, release.folder.parent / "removed"):
        yield path.name


@mutation
def added(release: Release) -> Iterator[str]:
    names = ("x", ".x", "engines/x.onnx", "engines/x.weights", "planss/x", "manifest.json.sig")
    path = release.folder / release.random.choice(names)
    is_new = not path.parent.exists()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * release.random.randrange(3))
    try:
        yield path.name
    finally:
        path.unlink()
        if is_new:
            path.parent.rmdir()


@mutation
def link(release: Release) -> Iterator[str]:
    with linked(release.file(), release.folder.parent / "linked") as name:
        yield name


@mutation
def folder_link(release: Release) -> Iterator[str]:
    with linked(release.folder / "engines", release.folder.parent / "linked") as name:
        yield name


@mutation
def kind(release: Release) -> Iterator[str]:
    path = release.file()
    is_folder = release.random.random() < 0.5
    with moved(path, release.folder.parent / "kept"):
        if is_folder:
            path.mkdir()
        else:
            os.mkfifo(path)
        try:
            yield f"{path.name} is a {'folder' if is_folder else 'pipe'}"
        finally:
            path.rmdir() if is_folder else path.unlink()


@mutation
def manifest(release: Release) -> Iterator[str]:
    """A value somewhere in it, or a name; and none of it signed again."""
    path = release.folder / MANIFEST
    raw = msgspec.json.decode(path.read_bytes())
    words = _change(raw, release.random)
    with other_bytes(path, msgspec.json.encode(raw)):
        yield words


def _change(raw: Any, random: random.Random) -> str:
    at = []
    while True:
        key = random.choice(list(raw) if isinstance(raw, dict) else range(len(raw)))
        at.append(str(key))
        value = raw[key]
        if isinstance(value, dict | list) and value and random.random() < 0.9:
            raw = value
            continue
        if isinstance(raw, dict) and random.random() < 0.2:
            raw[random.choice(["../" + key, key + "\0", "/" + key])] = raw.pop(key)
        else:
            raw[key] = random.choice(
                [None, -1, 2**63, 1e308, "", "../../etc/passwd", [[]], {}, "NaN", not value]
            )
        return ".".join(at)


@mutation
def number(release: Release) -> Iterator[str]:
    """Of the release: an older one, or another spelling."""
    path = release.folder / SIGNATURE
    text = path.read_bytes()
    one = str(NUMBER).encode()
    forms = (b"1", b"0", b"-1", b"+" + one, b"0" + one, one + b".0", b"2e13", one[:-1], b"",
             b"9" * 400, one + b" ", str(NUMBER + 1).encode(), b"0x1")  # fmt: skip
    form = release.random.choice(forms)
    with other_bytes(path, text.replace(one, form)):
        yield form[:20].decode()


@mutation
def signature(release: Release) -> Iterator[str]:
    """Of another key, or of another release by the trusted key."""
    whose = release.random.choice([release.foreign, release.other])
    with other_bytes(release.folder / SIGNATURE, (whose / SIGNATURE).read_bytes()):
        yield whose.name


@mutation
def other_manifest(release: Release) -> Iterator[str]:
    """One that the trusted key signed: of other files."""
    names = [MANIFEST, SIGNATURE][: release.random.randint(1, 2)]
    with contextlib.ExitStack() as stack:
        for name in names:
            data = (release.other / name).read_bytes()
            stack.enter_context(other_bytes(release.folder / name, data))
        yield f"{' and '.join(names)} of the other release"


class Spy:
    """What was opened or handed to a parser, by Python's own account."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.is_on = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event == "open" and isinstance(arguments[0], str | os.PathLike):
            self.opened.append(os.fspath(arguments[0]))

    @contextlib.contextmanager
    def on(self) -> Iterator[list[str]]:
        self.opened, self.is_on = [], True
        try:
            yield self.opened
        finally:
            self.is_on = False


@dataclass
class Refusals:
    """What became of them."""

    by_kind: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    most_bytes: int = 0


def prepare(bundle: Path, folder: Path, seed: int) -> Release:
    """A release in `folder`, whose key is trusted."""
    for name in ("ours", "theirs"):
        make_keys(KeysConfig(out=folder / name))
    os.environ[trust.STORE_VARIABLE] = str(folder / "trust")
    trust.add(folder / "ours" / "release.pub")
    for name, key in (("release", "ours"), ("foreign", "theirs"), ("other", "ours")):
        made = folder / name
        shutil.copytree(bundle, made, ignore=shutil.ignore_patterns("plans", SIGNATURE))
        if name == "other":
            with (made / "golden.npz").open("ab") as stream:
                stream.write(b"more")
            list_again(made, "golden.npz")
        sign(SignConfig(bundle=made, key=folder / key / "release.key", number=NUMBER))
    read_bundle(folder / "release")
    return Release(folder / "release", folder / "foreign", folder / "other", random.Random(seed))


def refuse_all(release: Release, spy: Spy, num: int) -> Refusals:
    """As many mutations as `num`, of all kinds in turn."""
    found, kinds = Refusals(), list(MUTATIONS)
    tracemalloc.start()
    for index in range(num):
        name = kinds[index % len(kinds)]
        with MUTATIONS[name](release) as words:
            is_vouched = _is_vouched(release.folder)
            tracemalloc.reset_peak()
            before, begin = tracemalloc.get_traced_memory()[0], time.monotonic()
            with spy.on() as opened:
                told = _refusal(release.folder)
            found.longest_s = max(found.longest_s, time.monotonic() - begin)
            found.most_bytes = max(found.most_bytes, tracemalloc.get_traced_memory()[1] - before)
        engines = [p for p in opened if "/engines/" in p]
        if told is None or "\n" in told:
            found.wrong.append(f"{name}: {words}: {told or 'accepted'}")
        elif engines and not is_vouched:
            found.wrong.append(f"{name}: {words}: {engines[0]} was opened before the refusal")
        found.by_kind[name] += 1
    tracemalloc.stop()
    read_bundle(release.folder)  # all was undone
    return found


def _is_vouched(folder: Path) -> bool:
    """Whether the trusted key has signed its manifest, so that its files may be read."""
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        return False
    with contextlib.suppress(BundleError):
        return trust.check_trusted(folder, path.read_bytes()) is not None
    return False


def _refusal(folder: Path) -> str | None:
    try:
        read_bundle(folder)
    except BundleError as error:
        return str(error)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz_release",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        release = prepare(options.bundle, Path(folder), options.seed)
        found = refuse_all(release, Spy(), options.mutations)
    for name, count in sorted(found.by_kind.items()):
        print(f"{name:16} {count:6} refused")
    print(
        f"{found.by_kind.total()} mutations, seed {options.seed}: longest refusal "
        f"{found.longest_s * 1e3:.0f} ms, at most {found.most_bytes / 1e6:.1f} MB of memory"
    )
    for words in found.wrong[:20]:
        print(f"error: {words}", file=sys.stderr)
    is_slow = found.longest_s > MOST_S or found.most_bytes > MOST_BYTES
    return int(bool(found.wrong) or is_slow)


if __name__ == "__main__":
    sys.exit(main())
