"""A folder is replaced whole or not at all, by one writer at a time, and only if it is ours."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import OutputError
from runtime.storage import folders
from runtime.storage.folders import exclusive, publish, refuse_foreign, temporary, workshop

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from runtime.storage import folders
from tests.runtime.test_folders import state, write

folder, exchange = Path(sys.argv[1]), sys.argv[2] == "exchange"
if not exchange:
    folders._exchange = lambda first, second: False
events = ("open", "os.", "shutil.", "fcntl.", "ctypes.")
before, seen, number = state(folder / "out"), set(), 0
while True:
    wanted = "new" if before != "new" else "old"
    child = os.fork()
    if child == 0:
        count = 0

        def kill(event, arguments):
            global count
            if event.startswith(events) and event != "os.kill":
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.addaudithook(kill)
        write(folder / "out", wanted)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    was = state(folder / "out")
    seen.add(was)
    if was is None and before is not None:  # the next command puts the old one back
        assert state(folder / ".out.writing" / "old") == before
        assert not exchange
        with folders.exclusive(folder / "out", lambda folder: None):
            was = state(folder / "out")
            assert was == before
    assert was in (before, wanted), (number, was)
    before = was
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0 and was == wanted
        break
    number += 1
print(number, None in seen, sorted(os.listdir(folder)))
"""
"""Kills a writer before each of its calls into the system in turn, until it comes to its end."""


def nothing(folder: Path) -> None:
    return None


def only_ours(folder: Path) -> str | None:
    strange = sorted(p.name for p in folder.iterdir() if p.name not in ("one", "two", "inner"))
    return f"{strange[0]} is strange" if strange else None


def write(out: Path, words: str) -> None:
    """A folder of two files, both of which say the same."""
    with exclusive(out, only_ours), temporary(out) as folder:
        for name in ("one", "two"):
            (folder / name).write_text(words)
        publish(folder, out, only_ours)


def state(out: Path) -> str | None:
    """What the files in a folder say; None if there is no folder."""
    if not out.exists():
        return None
    words = {(out / name).read_text() for name in ("one", "two")}
    assert len(words) == 1, words
    return words.pop()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("how", ["exchange", "rename", "first"])
def test_a_writer_killed_before_any_of_its_calls_leaves_the_old_or_the_new(tmp_path, how):
    if how != "first":
        write(tmp_path / "out", "old")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), how],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    number, was_neither, left = done.stdout.split(maxsplit=2)
    assert int(number) > 25
    assert was_neither == str(how != "exchange"), "the moment between two renames must be met"
    assert left.strip() == "['out']"


def test_a_folder_is_replaced_as_a_whole_and_the_workshop_goes(tmp_path):
    write(tmp_path / "a" / "out", "old")
    (tmp_path / "a" / "out" / "inner").mkdir()
    write(tmp_path / "a" / "out", "new")
    assert tree(tmp_path) == {"a/out/one": b"new", "a/out/two": b"new"}
    assert os.listdir(tmp_path / "a") == ["out"]


def test_an_empty_folder_may_be_taken(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new")
    assert state(tmp_path / "out") == "new"


def a_file(out):
    out.write_text("mine")


def a_strange_file(out):
    out.mkdir()
    (out / "notes.txt").write_text("mine")


def a_link_to_a_folder(out):
    (out.parent / "elsewhere").mkdir()
    (out.parent / "elsewhere" / "one").write_text("mine")
    out.symlink_to(out.parent / "elsewhere")


def a_link_inside(out):
    out.mkdir()
    (out / "one").symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (a_file, "a file, where a folder is to be written"),
        (a_strange_file, "not ours to replace: notes.txt is strange. Nothing was removed"),
        (a_link_to_a_folder, "a link, where a folder is to be written"),
        (a_link_inside, "not ours to replace: one is a link. Nothing was removed"),
    ],
)
def test_what_is_not_ours_is_refused_and_stays(tmp_path, put, words):
    put(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=words), exclusive(tmp_path / "out", only_ours):
        raise AssertionError("this is known before the work begins")
    assert tree(tmp_path) == before
    assert not workshop(tmp_path / "out").exists()


def test_what_comes_while_the_work_goes_on_is_refused_too(tmp_path):
    out = tmp_path / "out"
    with exclusive(out, only_ours), temporary(out) as folder:
        (folder / "one").write_text("new")
        out.mkdir()
        (out / "notes.txt").write_text("mine")
        with pytest.raises(OutputError, match="notes.txt is strange"):
            publish(folder, out, only_ours)
    assert tree(tmp_path) == {"out/notes.txt": b"mine"}


@pytest.mark.parametrize("inside", [["notes.txt"], ["lock"], ["new", "old"], ["lock", "notes.txt"]])
def test_a_folder_that_merely_has_the_name_of_a_workshop_stays(tmp_path, inside):
    place = workshop(tmp_path / "out")
    place.mkdir()
    for name in inside:
        (place / name).write_text("mine")
    with pytest.raises(OutputError, match="in the way, and not a folder of ours; move it"):
        write(tmp_path / "out", "new")
    assert sorted(os.listdir(place)) == sorted(inside)
    assert all((place / name).read_text() == "mine" for name in inside)


def test_a_file_of_somebody_in_a_workshop_of_ours_stays(tmp_path):
    place = workshop(tmp_path / "out")
    place.mkdir()
    (place / "lock").write_text(f"{folders.MARK}1\n")
    (place / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="in the way, and not a folder of ours; move it"):
        write(tmp_path / "out", "new")
    assert (place / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["out.lock", "out.tmp-12", "out.old-12", "out.calibration.npz"])
def test_neighbours_stay(tmp_path, name):
    (tmp_path / name).write_text("mine")
    write(tmp_path / "out", "new")
    assert (tmp_path / name).read_text() == "mine"


def test_a_second_writer_is_told_who_is_at_work(tmp_path):
    out = tmp_path / "out"
    with (
        exclusive(out, nothing),
        pytest.raises(OutputError, match=rf"another command is writing it \(process {os.getpid()}"),
        exclusive(out, nothing),
    ):
        raise AssertionError("two writers at once")
    write(out, "new")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written: .*something is in the way: move it"):
        write(tmp_path / "file" / "out", "new")
    with pytest.raises(OutputError, match="the root of the file system; name a folder in it"):
        write(Path("/"), "new")


def test_an_exchange_that_fails_for_another_reason_is_said(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    assert folders._exchange(tmp_path / "first", tmp_path / "second")
    with pytest.raises(OSError, match="No such file"):
        folders._exchange(tmp_path / "first", tmp_path / "gone")


def test_an_interrupted_writer_leaves_the_old_one_and_no_workshop(tmp_path):
    write(tmp_path / "out", "old")
    with (
        pytest.raises(KeyboardInterrupt),
        exclusive(tmp_path / "out", only_ours),
        temporary(tmp_path / "out"),
    ):
        signal.raise_signal(signal.SIGINT)
    assert tree(tmp_path) == {"out/one": b"old", "out/two": b"old"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_is_ours_is_not_refused(tmp_path):
    write(tmp_path / "out", "old")
    refuse_foreign(tmp_path / "out", only_ours)
    refuse_foreign(tmp_path / "absent", only_ours)
