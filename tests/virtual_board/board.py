"""A virtual board that runs, loses its power, and comes back.

    image = make_image()                     # minutes the first time; kept in build/virtual-board
    booted = make_booted(image)              # boots it once and keeps the state after that
    board = VirtualBoard(folder, image, booted=booted)
    board.start()                            # resumes there (seconds); start(cold=True) boots
    board.ssh(["systemctl", "is-active", "ssh"]).stdout      # as root; user="robot" has sudo
    board.ssh(["tar", "-x"], stdin=data, check=False)        # bytes in, a CompletedProcess out
    board.cut()                              # power: kill -9; what the guest did not flush is lost
    assert board.fsck() == ""                # journal replayed on a copy, then e2fsck -fn
    board.start(cold=True)                   # a boot, from what is on the disk
    board.snapshot("installed")              # disk and memory, while it runs
    board.restore("installed")               # back there, running or cut, as often as you like
    board.set_link(up=False)                 # the cable; connections stay and hear nothing
    board.pause(); board.resume()            # the processor
    board.shutdown()                         # in order

Other programs reach it with `ssh -F {board.ssh_config} root@board` (or robot@board): a port of
loopback, a key and known hosts of its own. `board.console` is what its serial port said.

A cut is that of a board whose disk keeps what was flushed, and of the rest anything or nothing: the
overlay's tables are in qemu's memory until the guest flushes, and go with it.

What machine it is, and how to give it a real processor, is in `machine`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.virtual_board.image import Image, environment
from tests.virtual_board.machine import machine_words, qemu_command
from tests.virtual_board.monitor import MonitorError, tell, tell_in_words

BOOTED = "booted"
"""Snapshot of a machine that has just booted."""
IS_UP = re.compile(r"^board: sshd is up after ([\d.]+) s", re.MULTILINE)
"""Said on the serial port once per boot."""
DIED = re.compile(r"Kernel panic.*|Attempted to kill init.*|emergency mode.*")
TIMEOUT_S = 900.0
"""Of a boot and of a command: the host may be busy with other things."""
RESUMED_S = 120.0
"""Until a machine answers that has returned to a snapshot."""
POLL_S = 0.05


class BoardError(Exception):
    """The machine did not do what it was told."""


class VirtualBoard:
    """One machine; its overlay, console and sockets lie in `folder`.

    Args:
        folder: of its own. What is there goes on, and a running machine is found again.
        image: under the overlay.
        booted: an overlay with the snapshot `BOOTED`, copied where there is none yet; without it
            the disk begins as the image, and the first start is a boot.
        stays: it outlives the process that starts it.
    """

    def __init__(
        self,
        folder: Path,
        image: Image,
        *,
        booted: Path | None = None,
        stays: bool = False,
    ) -> None:
        self.folder, self.image = folder.resolve(), image
        self.stays, self._booted = stays, booted
        self._process: subprocess.Popen[bytes] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.disk.exists():
            self.reset()
        self.port = self._settle_port()

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def console(self) -> Path:
        return self.folder / "console.log"

    @property
    def ssh_config(self) -> Path:
        return self.folder / "ssh_config"

    def reset(self) -> None:
        """The disk as it was at first; the machine has to be off."""
        self._must_be_off()
        self.disk.unlink(missing_ok=True)
        if self._booted is not None:
            copy = ["cp", "--reflink=auto", "--sparse=always", str(self._booted), str(self.disk)]
            _run(copy)
            return
        under = ["-b", str(self.image.disk.resolve()), "-F", "raw"]
        _run(["qemu-img", "create", "-q", "-f", "qcow2", *under, str(self.disk)])

    @property
    def pid(self) -> int | None:
        """Of qemu; None if the machine is off."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / "pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if f"guest={self.folder}".encode() in words:
                return pid
        return None

    def start(self, *, cold: bool = False) -> float:
        """Until sshd answers; how long that took in seconds.

        The snapshot of a booted machine is resumed where the disk has it and `cold` does not ask
        for a boot: that is a return to it, disk included.

        Raises:
            BoardError: it does not come up, with the end of its console.
        """
        self._must_be_off()
        snapshot = BOOTED if not cold and BOOTED in self.snapshots() else None
        start = time.monotonic()
        self._launch(snapshot)
        self._come_up(resumed=snapshot is not None)
        return time.monotonic() - start

    def cut(self) -> None:
        """The power goes."""
        pid = self.pid
        if pid is None:
            raise BoardError(f"{self.folder}: the machine is off already")
        os.kill(pid, signal.SIGKILL)
        self._wait_until_gone(pid)

    def shutdown(self) -> None:
        """In order, by systemd."""
        pid = self.pid
        if pid is None:
            return
        self.ssh(["systemctl", "poweroff"], check=False)
        self._wait_until_gone(pid)

    def wait_for_boot(self, boots: int) -> None:
        """Until sshd has come up `boots` times since the machine was started (it may reboot)."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.num_boots < boots:
            said = self._said()
            if self.pid is None or DIED.search(said) or time.monotonic() > deadline:
                end = "\n".join(said.splitlines()[-20:])
                raise BoardError(f"{self.folder}: it does not come up; its console says\n{end}")
            time.sleep(POLL_S)

    @property
    def num_boots(self) -> int:
        """Since the machine was started; a resumed one has not booted."""
        return len(IS_UP.findall(self._said()))

    def ssh(
        self,
        words: Sequence[str],
        *,
        user: str = "root",
        stdin: bytes | str | None = None,
        check: bool = True,
        timeout_s: float = TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there; its output as text.

        Raises:
            BoardError: it failed (255: the connection did), unless `check` is off.
            subprocess.TimeoutExpired: it took longer.
        """
        options = ["-F", "ssh_config", "-S", f"control-{user}", "-o", "ControlMaster=auto"]
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            ["ssh", *options, "-o", "ControlPersist=yes", f"{user}@board", shlex.join(words)],
            cwd=self.folder,
            input=b"" if given is None else given,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if check and done.returncode:
            raise BoardError(f"{shlex.join(words)}: exit code {done.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(list(words), done.returncode, out, err)

    def set_clock(self) -> None:
        """The host's time: a resumed machine has that of its snapshot."""
        self.ssh(["date", "--utc", "--set", f"@{time.time():.3f}"])

    def snapshot(self, name: str) -> None:
        """Keep disk and memory under `name`, in the overlay; the machine goes on."""
        self._monitor(f"savevm {name}")

    def restore(self, name: str) -> None:
        """Back to a snapshot, running; whether the machine is on or off now.

        Raises:
            BoardError: there is no such snapshot.
        """
        if self.pid is None:
            if name not in self.snapshots():
                raise BoardError(f"{self.disk}: no snapshot {name!r}: {self.snapshots()}")
            self._launch(name)
        else:
            self._monitor(f"loadvm {name}")
        self._come_up(resumed=True)

    def snapshots(self) -> list[str]:
        """Of a machine that is off."""
        said = _run(["qemu-img", "info", "--output=json", str(self.disk)])
        return [found["name"] for found in json.loads(said).get("snapshots", [])]

    def set_link(self, *, up: bool) -> None:
        """Plug the network cable, or pull it."""
        tell(self.folder, "set_link", name="net0", up=up)

    def pause(self) -> None:
        """Stop its processors."""
        tell(self.folder, "stop")

    def resume(self) -> None:
        tell(self.folder, "cont")

    def fsck(self) -> str:
        """What e2fsck finds wrong with the disk of a machine that is off; "" if it is clean.

        As at a boot the journal is replayed first, on a copy.
        """
        self._must_be_off()
        copy = self.folder / "fsck.raw"
        try:
            _run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(self.disk), str(copy)])
            for options in (["-y", "-E", "journal_only"], ["-f", "-n"]):
                done = subprocess.run(
                    ["e2fsck", *options, str(copy)],
                    env=environment(), capture_output=True, text=True, check=False,
                )  # fmt: skip
                if done.returncode:
                    return f"e2fsck {shlex.join(options)}: {done.returncode}\n{done.stdout}"
            return ""
        finally:
            copy.unlink(missing_ok=True)

    def cpu_s(self) -> float:
        """Seconds of processor that qemu has used: what a busy host does not change much."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _launch(self, snapshot: str | None) -> None:
        self.console.unlink(missing_ok=True)
        (self.folder / "monitor").unlink(missing_ok=True)
        command = qemu_command(self.folder, self.image, self.port, snapshot)
        if not self.stays:
            command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        with (self.folder / "qemu.log").open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _come_up(self, *, resumed: bool) -> None:
        self._wait_until_it_runs()
        if resumed:
            self._hang_up()
            self._set_clock_at_last()
        else:
            self.wait_for_boot(1)

    def _set_clock_at_last(self) -> None:
        """Right after its return a machine may break a connection or two off."""
        deadline = time.monotonic() + RESUMED_S
        while True:
            try:
                return self.set_clock()
            except BoardError:
                if self.pid is None or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    def _wait_until_it_runs(self) -> None:
        """Its monitor is heard once memory is as it was in the snapshot."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            with contextlib.suppress(MonitorError):
                if tell(self.folder, "query-status")["running"]:
                    return
            if self._process is None or self._process.poll() is not None:
                raise BoardError(f"qemu ended at once: {(self.folder / 'qemu.log').read_text()}")
            if time.monotonic() > deadline:
                raise BoardError(f"{self.folder}: qemu does not answer")
            time.sleep(POLL_S)

    def _wait_until_gone(self, pid: int) -> None:
        """And its files closed: a process whose memory is gone may still hold them."""
        if self._process is not None and self._process.pid == pid:
            self._process.wait(TIMEOUT_S)
        deadline = time.monotonic() + TIMEOUT_S
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                raise BoardError(f"{self.folder}: process {pid} does not end")
            time.sleep(POLL_S)
        self._hang_up()

    def _must_be_off(self) -> None:
        if (pid := self.pid) is not None:
            raise BoardError(f"{self.folder}: the machine is on (process {pid}); cut it first")

    def _hang_up(self) -> None:
        """End connections that are shared: their other end is gone."""
        for control in self.folder.glob("control-*"):
            subprocess.run(
                ["ssh", "-F", "ssh_config", "-S", control.name, "-O", "exit", "board"],
                cwd=self.folder, capture_output=True, check=False,
            )  # fmt: skip
            control.unlink(missing_ok=True)

    def _monitor(self, words: str) -> None:
        try:
            tell_in_words(self.folder, words)
        except MonitorError as error:
            raise BoardError(str(error)) from None

    def _said(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.console.read_text(errors="replace").replace("\r", "")
        return ""

    def _settle_port(self) -> int:
        """The same for all its life, so that its configuration of ssh stays true."""
        place = self.folder / "port"
        if place.exists():
            return int(place.read_text())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        place.write_text(f"{port}\n")
        known = self.folder / "known_hosts"
        known.write_text(f"[127.0.0.1]:{port} {self.image.host_key}\n")
        self.ssh_config.write_text(ssh_config(port, self.image.key.resolve(), known))
        return port


def ssh_config(port: int, key: Path, known_hosts: Path) -> str:
    """For `ssh -F`: the host `board`, asked nothing of the user's own."""
    return "\n".join(
        [
            "Host board",
            "  HostName 127.0.0.1",
            f"  Port {port}",
            "  User root",
            f'  IdentityFile "{key}"',
            "  IdentitiesOnly yes",
            f'  UserKnownHostsFile "{known_hosts}"',
            "  GlobalKnownHostsFile /dev/null",
            "  StrictHostKeyChecking yes",
            "  BatchMode yes",
            "  ConnectTimeout 120",
            "  LogLevel ERROR",
            "",
        ]
    )


def make_booted(image: Image, cache: Path) -> Path:
    """An overlay with the snapshot `BOOTED`, made by booting `image` once; kept in `cache`."""
    booted, stamp = cache / "booted.qcow2", cache / "booted.done"
    made_of = "\n".join(_made_of(image))
    if booted.is_file() and stamp.is_file() and stamp.read_text() == made_of:
        return booted
    stamp.unlink(missing_ok=True)
    shutil.rmtree(cache / "booting", ignore_errors=True)
    board = VirtualBoard(cache / "booting", image)
    board.start(cold=True)
    try:
        board.ssh(["systemctl", "is-system-running", "--wait"])
        board._hang_up()
        board.snapshot(BOOTED)
    finally:
        if board.pid is not None:
            board.cut()
    board.disk.replace(booted)
    shutil.rmtree(cache / "booting")
    stamp.write_text(made_of)
    return booted


def _made_of(image: Image) -> Iterator[str]:
    """A snapshot goes on only where it was made: the same qemu, machine and disk."""
    yield _run(["qemu-system-x86_64", "--version"]).splitlines()[0]
    yield json.dumps(machine_words())
    yield image.folder.with_suffix(".done").read_text()


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise BoardError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout
