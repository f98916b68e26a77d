"""python -m tests.virtual_board [VERB]: the virtual board by hand, and the proof that it is one.

    prove       make it, boot it, look at it, cut its power; what `make virtual-board` does
    up          the one in build/virtual-board/board, as after its first boot; stays until `down`
    boot        the same from what is on its disk by now, as after `down` and `cut`
    ssh WORDS   a command there, or a shell
    cut         its power goes
    down        shut it down in order
    reset       its disk as after the first boot

Exit codes: 0 all well or skipped with the reason, 1 something is not as it should be.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence

from tests.virtual_board.board import BoardError, VirtualBoard, make_booted
from tests.virtual_board.image import CACHE, make_image, reasons_to_skip

FACTS = {
    "systemctl is-system-running --wait": "running",
    "systemctl is-active ssh": "active",
    "python3 --version": "Python 3.11",
    "sudo -u robot sudo -n id -un": "root",
    "id -Gn anchorvla": "anchorvla video",
    "cat /etc/nv_tegra_release": "# R36 (release)",
    "findmnt --noheadings --output FSTYPE /": "ext4",
}
"""What is asked there, and how the answer begins."""
WRITE = """
import os
with open("/srv/kept", "w") as file:
    file.write("flushed")
    file.flush()
    os.fsync(file.fileno())
folder = os.open("/srv", os.O_RDONLY)
os.fsync(folder)
open("/srv/lost", "w").write("not flushed")
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.virtual_board",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", nargs="?", default="prove", choices=["prove", *VERBS])
    parser.add_argument("words", nargs=argparse.REMAINDER, help="of ssh")
    options = parser.parse_args(arguments)
    if reasons := list(reasons_to_skip()):
        print(f"skipped: {'; '.join(reasons)}")
        return 0
    try:
        if options.verb == "prove":
            return prove()
        return VERBS[options.verb](by_hand(), options.words)
    except BoardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def by_hand() -> VirtualBoard:
    """The one that stays."""
    image = make_image()
    return VirtualBoard(CACHE / "board", image, booted=make_booted(image, CACHE), stays=True)


def prove() -> int:
    """Print what was done, and how long each took: by the clock, and of qemu's processors."""
    start = time.monotonic()
    image = make_image()
    booted = make_booted(image, CACHE)
    say("image and snapshot of a booted machine", time.monotonic() - start)
    folder = CACHE / "proof"
    shutil.rmtree(folder, ignore_errors=True)
    board = VirtualBoard(folder, image, booted=booted)
    try:
        say("resume", board.start(), board.cpu_s())
        wrong = [*_unlike_facts(board)]
        start, cpu = time.monotonic(), board.cpu_s()
        board.ssh(["true"])
        say("a command by ssh", time.monotonic() - start, board.cpu_s() - cpu)
        board.ssh(["python3", "-"], stdin=WRITE)
        board.cut()
        start = time.monotonic()
        if found := board.fsck():
            wrong.append(found)
        say("cut, and e2fsck", time.monotonic() - start)
        say("boot", board.start(cold=True), board.cpu_s())
        there = board.ssh(["sh", "-c", "cat /srv/kept; cat /srv/lost"], check=False).stdout
        if there != "flushed":
            wrong.append(f"after the cut there is {there!r}, not what was flushed and that only")
    finally:
        if board.pid is not None:
            board.cut()
    shutil.rmtree(folder)
    print("\n".join(f"error: {words}" for words in wrong) or "virtual board: it is one")
    return bool(wrong)


def _unlike_facts(board: VirtualBoard) -> list[str]:
    said = {words: board.ssh(words.split(), check=False) for words in FACTS}
    return [
        f"{words}: {said[words].stdout}{said[words].stderr}, not {begins}"
        for words, begins in FACTS.items()
        if not said[words].stdout.startswith(begins)
    ]


def say(what: str, seconds: float, cpu_s: float | None = None) -> None:
    cpu = "" if cpu_s is None else f", {cpu_s:.1f} of processors"
    print(f"virtual board: {what}: {seconds:.1f} s{cpu}", flush=True)


def up(board: VirtualBoard, words: Sequence[str]) -> int:
    if board.pid is None:
        say("start", board.start())
    print(f"ssh -F {board.ssh_config} root@board")
    return 0


def boot(board: VirtualBoard, words: Sequence[str]) -> int:
    say("boot", board.start(cold=True))
    return 0


def ssh(board: VirtualBoard, words: Sequence[str]) -> int:
    if board.pid is None:
        raise BoardError("it is off: python -m tests.virtual_board up")
    os.execvp("ssh", ["ssh", "-F", str(board.ssh_config), "root@board", *words])


def cut(board: VirtualBoard, words: Sequence[str]) -> int:
    board.cut()
    return 0


def down(board: VirtualBoard, words: Sequence[str]) -> int:
    board.shutdown()
    return 0


def reset(board: VirtualBoard, words: Sequence[str]) -> int:
    if board.pid is not None:
        board.cut()
    board.reset()
    return 0


VERBS: dict[str, Callable[[VirtualBoard, Sequence[str]], int]] = {
    "up": up,
    "boot": boot,
    "ssh": ssh,
    "cut": cut,
    "down": down,
    "reset": reset,
}

if __name__ == "__main__":
    sys.exit(main())
