"""The `runtime` of a wheel made for a test: `python -m runtime VERB`, as BEHAVIOUR says, and what
stands in the file `behaviour-NUMBER` of the board for the release of that number.

It answers what the agent asks, and serves as the real one does: status.json, READY=1.
"""

import contextlib
import hashlib
import json
import os
import socket
import sys
import time
from pathlib import Path

BEHAVIOUR = {}
SYSTEM = Path(os.environ["ANCHORVLA_TRUST"]).parents[2]


def notify(words):
    name = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(words.encode(), "\0" + name[1:] if name.startswith("@") else name)


def serve():
    if "crash" in BEHAVIOUR:
        sys.exit("cannot start")
    notify("READY=1")
    status = Path(os.environ["RUNTIME_DIRECTORY"], "status.json")
    ticks = 0
    while True:
        ticks += "silent" not in BEHAVIOUR
        partial = status.with_suffix(".new")
        partial.write_text(
            json.dumps({"pid": os.getpid(), "ticks": ticks, "last_ms": 1.0, "cwd": os.getcwd()})
        )
        partial.replace(status)
        if "silent" not in BEHAVIOUR:
            notify("WATCHDOG=1")
        time.sleep(0.5 if "slow" in BEHAVIOUR else 0.05)


def told():
    """Of the release whose folder this is."""
    with contextlib.suppress(OSError, KeyError):
        number = json.loads(Path("release.json").read_bytes())["number"]
        return Path(SYSTEM, f"behaviour-{number}").read_text().split()
    return []


def is_whole(plan, record):
    """As the real one finds out: nothing of a plan counts whose record says another hash."""
    try:
        return record.read_text() == hashlib.sha256(plan.read_bytes()).hexdigest()
    except OSError:
        return False


def main(words):
    BEHAVIOUR.update(told())
    with (
        contextlib.suppress(OSError),  # a service may not write there
        Path(SYSTEM, "said").open("a") as said,
    ):
        said.write(" ".join(words) + "\n")
    if words[0] == "check" and "parity" in BEHAVIOUR:
        print("FAIL prefix_kv 3.0e-01 (allowed 1e-04)", *["ok   actions"] * 9, sep="\n")
        sys.exit("error: 1 of 21 differ from the golden data")
    if words[0] == "doctor":
        sys.exit(2 if "doctor" in BEHAVIOUR else 0)
    if words[0] == "build":
        if "build" in BEHAVIOUR:
            sys.exit("error: out of memory")
        folder = Path("bundle/plans/board")
        folder.mkdir(parents=True, exist_ok=True)
        for engine in Path("bundle/engines").glob("*.onnx"):
            plan, record = (folder / f"{engine.stem}{suffix}" for suffix in (".plan", ".json"))
            if not is_whole(plan, record):
                time.sleep("slow" in BEHAVIOUR)
                for path, text in ((plan, str(time.time())), (record, "")):
                    new = path.with_suffix(".new")  # not the file that another release has too
                    new.write_text(text or hashlib.sha256(plan.read_bytes()).hexdigest())
                    new.replace(path)
    if words[0] == "bench":
        print(json.dumps({"warm": {"tick": {"p50": 2.0, "p99": 3.0, "n": 50}}}))
    if words[0] == "serve":
        serve()


main(sys.argv[1:])
