"""systemd in small, for a board that has none: one service, started, watched and started again.

It reads the units that the agent wrote and runs their commands. State lies in the folder that
`STATE` names. Of the real one it has: ExecStartPre, ExecStart, restarts, READY through
NOTIFY_SOCKET, `show`. The virtual board has the real one.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["ANCHORVLA_SYSTEMD"])
UNITS = STATE.parent / "etc/systemd/system"
RUN = STATE.parent / "run/anchorvla"
RESTART_S = 0.1
MOST = 10


def command(unit, what):
    lines = (UNITS / unit).read_text().splitlines()
    words = next(line for line in lines if line.startswith(f"{what}=")).split("=", 1)[1]
    return [sys.executable, *words.lstrip("+").split()[1:]]


def write(**values):
    partial = STATE / f"show.{os.getpid()}"
    partial.write_text(json.dumps(values))
    partial.replace(STATE / "show")


def supervise():
    """One life of the service: until it is stopped, or was started too often."""
    (STATE / "supervisor").write_text(str(os.getpid()))
    process, restarts = None, 0

    def stop(*_):
        if process is not None:
            process.terminate()
            process.wait()
        write(ActiveState="inactive", SubState="dead", MainPID=0, NRestarts=restarts)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    while restarts <= MOST:
        write(ActiveState="activating", SubState="start", MainPID=0, NRestarts=restarts)
        with contextlib.suppress(FileNotFoundError):
            (RUN / "status.json").unlink()
        RUN.mkdir(parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            address = f"\0anchorvla-{os.getpid()}-{restarts}"
            listener.bind(address)
            listener.settimeout(0.05)
            told = {"NOTIFY_SOCKET": "@" + address[1:], "RUNTIME_DIRECTORY": str(RUN)}
            with (STATE / "journal").open("a") as journal:
                before = subprocess.run(
                    command("anchorvla.service", "ExecStartPre"), stdout=journal, stderr=journal
                )
                if before.returncode == 0:
                    process = subprocess.Popen(
                        command("anchorvla.service", "ExecStart"),
                        env=os.environ | told,
                        stdout=journal,
                        stderr=journal,
                    )
                    while process.poll() is None:
                        with contextlib.suppress(TimeoutError):
                            if b"READY=1" in listener.recv(4096):
                                write(
                                    ActiveState="active",
                                    SubState="running",
                                    MainPID=process.pid,
                                    NRestarts=restarts,
                                )
        restarts += 1
        time.sleep(RESTART_S)
    write(ActiveState="failed", SubState="failed", MainPID=0, NRestarts=restarts)


def end():
    """Only if it is still the supervisor: a number that is free is soon somebody else's."""
    path = STATE / "supervisor"
    with contextlib.suppress(FileNotFoundError, ValueError):
        number = int(path.read_text())
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"supervise" in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
                os.kill(number, signal.SIGTERM)
                for _ in range(200):
                    os.kill(number, 0)
                    time.sleep(0.02)
        path.unlink()


def detached(*words):
    subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def main(words):
    verb, *names = [word for word in words if not word.startswith("--")]
    if verb == "restart" and names == ["anchorvla.service"]:
        end()
        detached(sys.executable, __file__, "supervise")
    elif verb == "restart":
        detached(*command(names[0], "ExecStart"))
    elif verb == "supervise":
        supervise()
    elif verb == "stop":
        end()
    elif verb == "enable":
        for name in names:
            (STATE / f"{name}.enabled").touch()
    elif verb == "is-enabled":
        print("enabled" if (STATE / f"{names[0]}.enabled").exists() else "disabled")
    elif verb == "show" and (STATE / "show").exists():
        for name, value in json.loads((STATE / "show").read_text()).items():
            print(f"{name}={value}")


if __name__ == "__main__":
    main(sys.argv[1:])
