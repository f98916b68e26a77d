"""A board over ssh: the agent there, asked verb by verb. The host's key is always checked."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

from device_tests.errors import RemoteError
from device_tests.remote import SSH_FAILED, Remote, error_of
from export.errors import ExportError
from export.release.archive import agent_archive

AGENT = "agent.pyz"
Say = Callable[[str], None]


class StepFailed(ExportError):
    """A step that the board refused; its words say what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """Where releases go."""

    remote: Remote
    root: str = "/opt/anchorvla"
    system: str = "/"
    sudo: str = ""
    """Before every command; empty for a user who is root."""

    @classmethod
    @contextlib.contextmanager
    def reached(cls, remote: Remote, *, root: str, system: str = "/") -> Iterator[Board]:
        """Connect. One connection serves all commands, and closes at the end.

        Raises:
            RemoteError: the host is not reached, is another, or does not let us in.
        """
        with tempfile.TemporaryDirectory(prefix="flash-") as folder:
            shared = (f"ControlPath={folder}/%C", "ControlMaster=auto", "ControlPersist=60")
            board = cls(
                remote=replace(remote, options=(*shared, *remote.options)), root=root, system=system
            )
            try:
                user = board.shell("id -u").decode(errors="replace").strip()
                yield board if user == "0" or system != "/" else replace(board, sudo="sudo -n ")
            finally:
                end = board.remote.command("")[:-3] + ["-O", "exit", "--", board.address]
                subprocess.run(end, capture_output=True, check=False)

    @property
    def address(self) -> str:
        return self.remote.address

    def ask(
        self,
        verb: str,
        *words: str,
        token: str = "",
        data: bytes | Callable[[IO[bytes]], object] = b"",
        say: Say = lambda line: None,
    ) -> Any:
        """Do a verb of the agent there.

        Args:
            token: of the lock, for verbs that change something.
            data: for its standard input, or what writes it.
            say: told each line of its standard error.

        Returns:
            Its result.

        Raises:
            StepFailed: the agent refused.
            RemoteError: the connection was lost, or sudo does not let us.
        """
        return self._ask(f"{self.root}/{AGENT}", verb, words, token, data, say)

    @contextlib.contextmanager
    def visiting(self) -> Iterator[Callable[..., Any]]:
        """`ask` of an agent that was put into a temporary file, and is gone afterwards."""
        words = "umask 077; f=$(mktemp /tmp/anchorvla-agent.XXXXXXXX) && cat > $f && echo $f"
        name = self.shell(words, agent_archive()).decode(errors="replace").strip()

        def ask(verb: str, *words: str, token: str = "", data: bytes = b"") -> Any:
            return self._ask(name, verb, words, token, data, lambda line: None)

        try:
            yield ask
        finally:
            with contextlib.suppress(RemoteError, StepFailed):
                self.shell(f"rm -f -- {shlex.quote(name)}")

    def shell(self, words: str, data: bytes = b"") -> bytes:
        """What a command of the other machine's shell prints.

        Raises:
            RemoteError: the connection was lost, or the command failed.
        """
        done = subprocess.run(
            self.remote.command(words), input=data, capture_output=True, check=False
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace")
            raise error_of(self.remote, done.returncode, said, words.split()[0])
        return done.stdout

    def _ask(
        self,
        agent: str,
        verb: str,
        words: tuple[str, ...],
        token: str,
        data: bytes | Callable[[IO[bytes]], object],
        say: Say,
    ) -> Any:
        command = [self.remote.python, "-I", agent, "--root", self.root, "--system", self.system]
        command += [verb, *words, *([f"--token={token}"] if token else [])]
        said: list[str] = []
        with subprocess.Popen(
            self.remote.command(self.sudo + shlex.join(command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdin and process.stdout and process.stderr
            listener = threading.Thread(target=_listen, args=(process.stderr, said, say))
            listener.start()
            with contextlib.suppress(BrokenPipeError):  # the other side says why
                if callable(data):
                    data(process.stdin)
                else:
                    process.stdin.write(data)
                process.stdin.close()
            out = process.stdout.read().decode(errors="replace")
            listener.join()
        if process.returncode == 0:
            return json.loads(out.splitlines()[-1])
        last = next((line for line in reversed(said) if line.startswith("error: ")), "")
        if process.returncode != SSH_FAILED and last:
            raise StepFailed(f"{self.address}: {last.removeprefix('error: ')}")
        if "sudo:" in "".join(said):
            raise RemoteError(
                f"{self.address}: this user may not become root there without a password "
                f"({said[-1]}); flash as root, or allow it in /etc/sudoers.d"
            )
        raise error_of(self.remote, process.returncode, "\n".join(said), verb)


def _listen(stream: IO[bytes], said: list[str], say: Say) -> None:
    for line in stream:
        words = line.decode(errors="replace").rstrip()
        said.append(words)
        if not words.startswith("error: "):
            say(words)
