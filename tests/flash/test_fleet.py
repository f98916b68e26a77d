"""Many boards: who is first, who follows, when it stops; and two real ones over sshd."""

import threading
import time

import pytest

from export.errors import ExportError
from export.release.config import AnyBoardConfig, FleetConfig
from export.release.fleet import Outcome, fleet, read_hosts, roll_out, table


def flashed(failing=(), slow_s=0.0):
    """A way to flash, and what it was asked to do: (host, how many were at work)."""
    asked, at_work, lock = [], [0], threading.Lock()

    def one(host):
        with lock:
            at_work[0] += 1
            asked.append((host, at_work[0]))
        time.sleep(slow_s)
        with lock:
            at_work[0] -= 1
        return Outcome(host, "broken" if host in failing else "confirmed", failed=host in failing)

    return one, asked


def test_the_first_is_alone_and_the_others_wait_for_it():
    hosts = ["a", "b", "c", "d", "e"]
    one, asked = flashed(slow_s=0.05)
    outcomes = roll_out(hosts, one, parallel=2, most_failures=1)
    assert [o.host for o in outcomes] == hosts and not any(o.failed for o in outcomes)
    assert asked[0] == ("a", 1) and max(count for _, count in asked) == 2


def test_nothing_follows_a_first_that_fails():
    one, asked = flashed(failing={"a"})
    outcomes = roll_out(["a", "b", "c"], one, parallel=2, most_failures=5)
    assert [host for host, _ in asked] == ["a"]
    assert [o.words for o in outcomes] == ["broken", "not begun", "not begun"]


@pytest.mark.parametrize(("most", "begun"), [(1, "abc"), (2, "abcde"), (3, "abcdef")])
def test_it_stops_at_the_stated_number_of_failures(most, begun):
    one, asked = flashed(failing={"c", "e"})
    outcomes = roll_out(list("abcdef"), one, parallel=1, most_failures=most)
    assert "".join(host for host, _ in asked) == begun
    assert [o.words for o in outcomes[len(begun) :]] == ["not begun"] * (6 - len(begun))


def test_the_table_says_what_became_of_each():
    rows = table([Outcome("a", "confirmed", sent_bytes=1234567, seconds=3.21), Outcome("b", "bad")])
    assert rows[1].split() == ["a", "1,234,567", "3.2", "confirmed"]
    assert rows[2].split() == ["b", "0", "0.0", "bad"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "names no board"), ("# a\n", "names no board"), ("a\nb\na # again\n", "names a twice")],
)
def test_a_file_without_boards_or_with_one_twice_is_refused(tmp_path, text, words):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ExportError, match=words):
        read_hosts(path)
    with pytest.raises(ExportError, match="cannot be read"):
        read_hosts(tmp_path / "none")


def test_comments_and_order_of_the_file(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\nrobot@b:22 # first\n\n  robot@a\n")
    assert read_hosts(path) == ["robot@b:22", "robot@a"]


def test_one_that_fails_leaves_the_others_flashed_and_the_table_says_so(
    board,
    make,
    tmp_path,
    capsys,
):
    """The second address is one at which nobody listens."""
    hosts = tmp_path / "hosts"
    user = board.server.user
    hosts.write_text(f"{board.server.address}\n{user}@127.0.0.1:1\n")
    config = make()
    changes = {name: getattr(config.board, name) for name in AnyBoardConfig.__slots__}
    with pytest.raises(ExportError, match="1 of 2 boards failed, 0 were not begun"):
        fleet(FleetConfig(hosts=hosts, board=AnyBoardConfig(**changes), release=config.release))
    told = capsys.readouterr().out.splitlines()
    assert board.current.startswith("1-")
    assert told[-2].split()[0] == board.server.address and told[-2].endswith("confirmed")
    assert "not reached" in told[-1]
