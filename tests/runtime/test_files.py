"""A file is written whole or not at all, and replaces only what is empty or of its own kind."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import OutputError
from runtime.storage.files import (
    Kind,
    bears_marks,
    beside,
    check_output,
    output_errors,
    replacing,
    write_file,
)

ROOT = Path(__file__).parents[2]
NOTE = Kind("a note of ours", (b"NOTE", b"by us"))
KILLED = """
import os, signal, sys
from pathlib import Path
from runtime.storage.files import write_file
from tests.runtime.test_files import NOTE

path = Path(sys.argv[1])
number, before = 0, path.read_text()
while True:
    wanted = f"NOTE {number} by us"
    child = os.fork()
    if child == 0:
        count = 0

        def kill(event, arguments):
            global count
            if event.startswith(("open", "os.", "mmap.")) and event != "os.kill":
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.addaudithook(kill)
        write_file(path, wanted, NOTE)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert path.read_text() in (before, wanted), number
    before = path.read_text()
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0 and before == wanted
        break
    number += 1
print(number, os.listdir(path.parent))
"""
"""Kills a writer before each of its calls into the system in turn, until it comes to its end."""


def test_a_writer_killed_before_any_of_its_calls_leaves_the_old_or_the_new(tmp_path):
    (tmp_path / "note").write_text("NOTE by us")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "note")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    number, left = done.stdout.split(maxsplit=1)
    assert int(number) > 8
    assert left.strip() == "['note']", "what killed writers leave goes with the next one"


@pytest.mark.parametrize("old", [None, "", "NOTE by us, an older one"])
def test_what_is_absent_empty_or_ours_is_replaced(tmp_path, old):
    path = tmp_path / "a" / "note"
    if old is not None:
        path.parent.mkdir()
        path.write_text(old)
    check_output(path, NOTE)
    assert os.listdir(path.parent) == ([] if old is None else ["note"])
    write_file(path, "NOTE by us", NOTE)
    assert path.read_text() == "NOTE by us"
    assert os.listdir(path.parent) == ["note"]


@pytest.mark.parametrize("write", [check_output, lambda p, k: write_file(p, "NOTE by us", k)])
@pytest.mark.parametrize("mine", ["a letter", "NOTE by somebody else"])
def test_a_file_of_somebody_else_is_refused_and_stays(tmp_path, write, mine):
    (tmp_path / "note").write_text(mine)
    with pytest.raises(OutputError, match="there is a file already, and it is not a note of ours"):
        write(tmp_path / "note", NOTE)
    assert (tmp_path / "note").read_text() == mine
    assert os.listdir(tmp_path) == ["note"]


@pytest.mark.parametrize("place", ["/dev/full", "/dev/null"])
def test_a_device_is_refused_and_stays_one(place):
    before = os.stat(place)
    for write in (check_output, lambda p, k: write_file(p, "NOTE by us", k)):
        with pytest.raises(OutputError, match="a device, a pipe or the like; name a plain file"):
            write(Path(place), NOTE)
    assert os.stat(place).st_rdev == before.st_rdev


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(OutputError, match="a folder; name a plain file to write a note of ours to"):
        check_output(tmp_path, NOTE)


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(OutputError, match="link: there is a file already"):
        write_file(tmp_path / "link", "NOTE by us", NOTE)
    (tmp_path / "there").write_text("NOTE by us")
    write_file(tmp_path / "link", "NOTE two by us", NOTE)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == "NOTE two by us"


def test_an_old_file_is_replaced_and_not_written_over(tmp_path):
    """Whoever still has it open, or another name for it, keeps the old one."""
    (tmp_path / "note").write_text("NOTE by us")
    (tmp_path / "other name").hardlink_to(tmp_path / "note")
    write_file(tmp_path / "note", "NOTE two by us", NOTE)
    assert (tmp_path / "other name").read_text() == "NOTE by us"


def test_an_error_half_way_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    (tmp_path / "note").write_text("NOTE by us")
    with pytest.raises(ValueError, match="half"), replacing(tmp_path / "note", NOTE) as partial:
        partial.write_text("NOTE")
        raise ValueError("half")
    assert (tmp_path / "note").read_text() == "NOTE by us"
    assert os.listdir(tmp_path) == ["note"]


def test_only_what_dead_writers_of_this_very_file_left_is_swept(tmp_path):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    swept = f".note.{gone}.partial"
    kept = [
        f".note.{os.getppid()}.partial",  # of somebody who is at work
        f".other.{gone}.partial",
        f"note.{gone}.partial",
        f".note.{gone}.partial.txt",
        ".note.mine.partial",
    ]
    for name in (swept, *kept):
        (tmp_path / name).write_text("x")
    (tmp_path / f".note.0{gone}.partial").symlink_to("nowhere")
    write_file(tmp_path / "note", "NOTE by us", NOTE)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, f".note.0{gone}.partial", "note"])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space or choose another place"),
        (errno.EDQUOT, "the disk is full; free some space or choose another place"),
        (errno.EACCES, "permission denied; choose another place, or run as a user who may write"),
        (errno.EROFS, "read-only file system; choose another place, or run as a user who may"),
        (errno.ENOTDIR, "not a directory; something is in the way: move it or choose another"),
        (errno.EIO, "input/output error; choose another place"),
    ],
)
def test_what_the_system_says_becomes_one_line_with_a_remedy(number, words):
    line = f"x.html: cannot be written: {words}"
    with pytest.raises(OutputError, match=line), output_errors(Path("x.html")):
        raise OSError(number, os.strerror(number))


def test_a_file_where_a_folder_must_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written: .*something is in the way"):
        check_output(tmp_path / "file" / "note", NOTE)


def test_a_writer_that_forgets_the_marks_is_our_mistake(tmp_path):
    with pytest.raises(AssertionError, match="without the marks of a note of ours"):
        write_file(tmp_path / "note", "something", NOTE)
    assert not list(tmp_path.iterdir())


def test_marks_are_found_wherever_they_stand(tmp_path):
    (tmp_path / "big").write_bytes(b"NOTE" + bytes(1 << 20) + b"by us")
    assert bears_marks(tmp_path / "big", NOTE)
    (tmp_path / "big").write_bytes(b"NOTE" + bytes(1 << 20))
    assert not bears_marks(tmp_path / "big", NOTE)


def test_a_disk_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "note").write_text("NOTE by us")

    def fail(descriptor):
        raise OSError(errno.EIO, "no power")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OutputError, match="note: cannot be written: no power"):
        write_file(tmp_path / "note", "NOTE two by us", NOTE)
    with pytest.raises(OSError, match="no power"), beside(tmp_path / "note") as partial:
        partial.write_text("NOTE two by us")
    assert (tmp_path / "note").read_text() == "NOTE by us"
    assert os.listdir(tmp_path) == ["note"]
