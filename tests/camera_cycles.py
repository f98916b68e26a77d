"""python -m tests.camera_cycles: unplug a camera, kill its process, again and again.

The camera is the RealSense SDK's software device, in a process as a robot has it. After each fault
the time counts until a fresh picture is there again. All the while somebody observes without a
pause: a picture that is torn, stale or older than the one before ends the run with an error.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from runtime.errors import CameraError
from runtime.robots.cameras import Cameras, RealSense
from runtime.robots.cameras.rig import STALE_S
from tests.runtime.stand_ins.marked_pictures import made_at
from tests.runtime.stand_ins.software_camera import RATE_HZ, SERIAL, SIZE

MOST_S = 10.0
"""To recover."""
GIVES_UP_S = 120.0
BUSY_S = 0.3
"""A machine that is busy may let a frame wait so long between the threads that make it and read it,
which a stamp of the camera cannot tell of the first frame of a process."""


class Observer:
    """Observes, and checks every picture by what stands in its pixels."""

    def __init__(self, control: Path) -> None:
        self.control = control
        control.write_text("")
        module = "tests.runtime.stand_ins.software_camera"
        self.cameras = Cameras(
            {"frame": RealSense(serial=SERIAL, size=SIZE, rate_hz=RATE_HZ)},
            command=(sys.executable, "-m", module, str(control)),
        )
        self.camera = self.cameras.cameras["frame"]
        self.num_seen, self.num_refused, self.frame_id = 0, 0, 0
        self.made_at, self.oldest_s = 0.0, 0.0
        self.errors: set[str] = set()
        self.random = random.Random(0)

    def look(self) -> bool:
        """Whether there is a picture, which is whole, fresh, and no older than the last."""
        time.sleep(0.002)
        before = time.monotonic()
        try:
            seen = self.cameras.observe()
        except CameraError as error:
            self.errors.add(str(error))
            self.num_refused += 1
            return False
        number, at = seen.frame_ids["frame"], made_at(seen.values["frame"])
        age_s = before - at
        assert age_s <= STALE_S + 1 / RATE_HZ + BUSY_S, f"a picture of {age_s:.3f} s ago"
        assert (number > self.frame_id and at > self.made_at) or (number, at) == (
            self.frame_id,
            self.made_at,
        ), f"picture {number} of {at} after {self.frame_id} of {self.made_at}"
        self.num_seen += number > self.frame_id
        self.frame_id, self.made_at = number, at
        self.oldest_s = max(self.oldest_s, age_s)
        return True

    def watch(self, seconds: float) -> bool:
        """Look for so long; whether there was always a picture."""
        until, always = time.monotonic() + seconds, True
        while time.monotonic() < until:
            always &= self.look()
        return always

    def until(self, is_so: Callable[[], bool]) -> float:
        """Look until something is so; how long that took."""
        begin = time.monotonic()
        while not is_so():
            assert time.monotonic() - begin < GIVES_UP_S, f"hangs: {self.camera.problem}"
        return time.monotonic() - begin

    def lasting(self, fault: str) -> float:
        """A fault until the camera is noticed to be lost, then none; the time to recover."""
        self.until(self.look)
        self.control.write_text(fault)
        self.until(lambda: not self.look())
        self.watch(self.random.uniform(0.0, 1.0))
        self.control.write_text("")
        return self.until(self.look)

    def killed(self) -> float:
        """kill -9 at a random moment; the time to a picture of the next process."""
        self.until(self.look)
        self.watch(self.random.uniform(0.0, 0.5))
        process, begin = self.camera.process_id, time.monotonic()
        assert process is not None
        os.kill(process, signal.SIGKILL)
        self.until(lambda: self.look() and self.made_at > begin)
        return time.monotonic() - begin


def cycles(
    faults: Sequence[str],
    num_kills: int,
    folder: Path,
    told: Callable[[str], None] = lambda words: None,
) -> tuple[dict[str, list[float]], Observer]:
    """Seconds to recover by fault, and who looked meanwhile."""
    observer, taken = Observer(folder / "control"), dict[str, list[float]]()
    try:
        observer.until(observer.look)
        for number, fault in enumerate([*faults, *["killed"] * num_kills], 1):
            seconds = observer.killed() if fault == "killed" else observer.lasting(fault)
            taken.setdefault(fault, []).append(seconds)
            told(f"{number} {fault}: {seconds:.2f} s")
    finally:
        observer.cameras.close()
    return taken, observer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unplugs", type=int, default=100, help="and plugged in again")
    parser.add_argument("--others", type=int, default=5, help="of each other fault")
    parser.add_argument("--kills", type=int, default=50, help="of the process, at random moments")
    config = parser.parse_args()
    faults = ["unplugged"] * config.unplugs + ["frozen", "back"] * config.others
    with tempfile.TemporaryDirectory() as folder:
        taken, observer = cycles(faults, config.kills, Path(folder), print)
    for fault, seconds in taken.items():
        median, worst = float(np.median(seconds)), max(seconds)
        print(f"{fault}: {len(seconds)} times, back after {median:.2f} s, at most {worst:.2f} s")
    print(
        f"{observer.num_seen} pictures seen, all whole; the oldest {1e3 * observer.oldest_s:.0f} "
        f"ms old; {observer.num_refused} times none was shown"
    )
    print(*(f"{n} {what}" for what, n in observer.camera.counts.items()), sep=", ")
    return int(max(max(seconds) for seconds in taken.values()) > MOST_S)


if __name__ == "__main__":
    sys.exit(main())
