"""A page in a real browser: headless Chromium, driven by its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/ : one socket, numbered commands, events.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
MAX_WAIT_S = 60.0
"""For what takes a second on an idle machine."""


class Tab:
    """One page, and what its console said."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.complaints: list[str] = []
        """Errors and warnings: exceptions, what a policy forbade, what could not be loaded."""
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What a command answers."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv(timeout=MAX_WAIT_S))
            if said.get("id") == number:
                assert "error" not in said, said["error"]
                return dict(said["result"])
            self._note(said)

    def open(self, address: str) -> None:
        """Anew, also where only what is behind # differs."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript in the page."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def text(self, name: str) -> str:
        """What is to be read in the element of that id; nothing of it while it is hidden."""
        element = f"document.getElementById({name!r})"
        return str(self.evaluate(f"{element}?.checkVisibility() ? {element}.innerText : ''"))

    def click(self, name: str) -> None:
        """With the mouse, in the middle of the element of that id."""
        box = self.evaluate(
            f"(() => {{ const e = document.getElementById({name!r}); "
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind, x=box[0], y=box[1], button="left", clickCount=1,
            )  # fmt: skip

    def type(self, words: str) -> None:
        """Where the cursor is, and then Enter."""
        self.call("Input.insertText", text=words)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                      windowsVirtualKeyCode=13)  # fmt: skip

    def resize(self, width: int, height: int) -> None:
        """What it is looked at on, in pixels of a page."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip

    def photograph(self, path: Path) -> None:
        """The whole page, for whoever looks."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def until(self, comes: Callable[[], bool]) -> None:
        """Wait for what comes soon."""
        end = time.monotonic() + MAX_WAIT_S
        while not comes():
            assert time.monotonic() < end, self.text("state")
            time.sleep(0.02)

    def _note(self, said: dict[str, Any]) -> None:
        about = said.get("params", {})
        if said["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"]))
        if said["method"] == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(about["entry"]["text"])


def program() -> str:
    """The browser; what asks for it is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here; as root: apt-get install chromium-headless-shell")
    return found


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Callable[[], Tab]]:
    """A browser that keeps its profile in `folder`, and ends with the block; opens tabs."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [
            program(), "--headless", *sandbox, "--remote-debugging-port=0", "--no-first-run",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
            "--ignore-certificate-errors", f"--user-data-dir={folder}", "about:blank",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    with contextlib.ExitStack() as sockets:
        try:
            port = _port(folder / "DevToolsActivePort", process)

            def tab() -> Tab:
                new = urllib.request.Request(f"http://127.0.0.1:{port}/json/new", method="PUT")
                with urllib.request.urlopen(new) as answer:
                    address = json.load(answer)["webSocketDebuggerUrl"]
                return Tab(sockets.enter_context(connect(address, max_size=None)))

            yield tab
        finally:
            sockets.close()
            os.killpg(
                process.pid, signal.SIGKILL
            )  # some start it by a script; its profile goes too
            process.wait(MAX_WAIT_S)


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + MAX_WAIT_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(FileNotFoundError, IndexError):
            return int(file.read_text().splitlines()[0])
        time.sleep(0.02)
    raise RuntimeError(f"{program()} did not start: it ended with {process.poll()}")
