"""The first boot of a board that was flashed with a staged release: the agent on its file system.

The release's own program is a stand-in, and so is systemd; the agent is the one that was staged.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export.release.agent import first_boot, lock, trial
from export.release.agent.place import AgentError, Place, led_to, link, write_json
from export.release.flash_os import flash_os
from tests.flash.board import end_service, stand_in_commands, wait_until
from tests.flash.linux_for_tegra import SYSTEM

UNIT = "anchorvla-first-boot.service"
STEPS = ["environment", "doctor", "build", "prove", "switch", "settle"]


class Booted:
    """A board whose file system is that of the tree. Args: a folder of its own."""

    def __init__(self, tree, folder, monkeypatch):
        self.system = tree / "rootfs"
        self.place = Place(self.system / "opt/anchorvla", self.system)
        self.state = self.system / "systemd"
        commands = stand_in_commands(folder, self.state)
        monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
        monkeypatch.setenv("ANCHORVLA_SYSTEMD", str(self.state))

    def command(self, *words):
        where = ["--root", str(self.place.root), "--system", str(self.system)]
        return [sys.executable, "-I", str(self.place.root / "agent.pyz"), *where, *words]

    def first_boot(self):
        """The unit's command: (exit code, what it returned or said)."""
        done = subprocess.run(self.command("first-boot"), capture_output=True, text=True)
        said = done.stdout if done.returncode == 0 else done.stderr.splitlines()[-1]
        return done.returncode, said.strip()

    def cut_off_at(self, step):
        """The power goes when a step begins."""
        with subprocess.Popen(
            self.command("first-boot"), stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            told = []
            for line in process.stderr:
                told.append(line.strip())
                if told[-1] == step:
                    os.killpg(process.pid, signal.SIGKILL)
                    break
        if step == "settle":
            wait_until(lambda: trial.trial_of(self.place).starts)
        self.power_off()
        return [line for line in told if line in STEPS]

    def power_off(self):
        environment = os.environ["ANCHORVLA_SYSTEMD"]
        end_service(self.state)
        os.environ["ANCHORVLA_SYSTEMD"] = environment
        for process in self.processes():  # the settle unit, which nobody supervises here
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.place.status.unlink(missing_ok=True)  # /run is gone with the power
        holder = self.place.root / "holder.json"
        if holder.exists():
            holder.write_text(json.dumps(json.loads(holder.read_bytes()) | {"boot": "before"}))

    def processes(self):
        """That run this board's own agent, and no other."""
        agent, found = str(self.place.root / "agent.pyz").encode(), []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found += [int(path.parent.name)] * (agent in path.read_bytes().split(b"\0"))
        return found

    def power_on(self):
        """As multi-user.target does it: the service, if there is a release for it."""
        if led_to(self.place.current) is not None:
            subprocess.run(["systemctl", "restart", "anchorvla.service"], check=True)
            wait_until(self.place.status.exists)

    @property
    def release(self):
        return self.place.all()[0]

    @property
    def said(self):
        path = self.system / "said"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def events(self):
        lines = self.place.events.read_text().splitlines() if self.place.events.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def is_armed(self):
        return self.place.first_boot.exists()

    def mend(self, what):
        """The release's program does that wrong no more."""
        packages = (self.place.folder(self.release) / "venv/lib").glob("*/site-packages")
        program = next(packages) / "runtime/__main__.py"
        text = program.read_text()
        assert f"'{what}'" in text
        program.write_text(text.replace(f"'{what}'", "'nothing'"))


@pytest.fixture
def booted(tree, stage, tmp_path, monkeypatch):
    """Boards with a release staged that behaves like that."""
    boards = []

    def boot(*behaviour, **changes):
        flash_os(stage(tree, *behaviour, **changes))
        boards.append(Booted(tree, tmp_path, monkeypatch))
        return boards[-1]

    yield boot
    for board in boards:
        board.power_off()


def test_a_staged_release_is_proven_switched_to_and_confirmed_by_the_board_alone(booted):
    board = booted()
    release = board.release
    assert board.first_boot() == (0, f'"{release}"')
    assert led_to(board.place.current) == release and not board.place.trial.exists()
    assert (board.place.folder(release) / "proven.json").exists()
    assert board.said == ["doctor", "check", "bench", "serve"]
    assert [event["what"] for event in board.events] == ["switched", "confirmed"]
    assert not board.is_armed and not list((board.system / SYSTEM).rglob(UNIT))
    assert (board.system / f"{SYSTEM}/anchorvla.service").exists()
    assert (board.system / f"{SYSTEM}/multi-user.target.wants/anchorvla.service").is_symlink()
    said = board.said
    assert board.first_boot() == (0, "null") and board.said == said
    assert lock.holder(board.place) is None


def test_cut_off_at_every_step_each_boot_goes_on_from_there(booted):
    board = booted("slow", backend="tensorrt", most_starts=2)
    release, built = board.release, 0
    for step in STEPS:
        assert board.cut_off_at(step)[-1] == step
        assert board.is_armed, step
        now = led_to(board.place.current)
        assert now == (release if step == "settle" else None), step
        built = max(built, board.said.count("build"))
        board.power_on()
    assert board.first_boot() == (0, f'"{release}"')
    assert led_to(board.place.current) == release and not board.place.trial.exists()
    assert [board.said.count(word) for word in ("build", "check", "bench")] == [built, 1, 1]
    assert [event["what"] for event in board.events] == ["switched", "confirmed"]
    assert not board.is_armed


def test_cut_off_between_any_two_writes_what_runs_is_proven_and_it_ends_confirmed(
    booted, monkeypatch
):
    board, cuts, done = booted(), 0, None
    release = board.release

    class Cut(BaseException):
        pass

    for allowed in range(100):
        left = [allowed]

        def counted(real, left=left):
            def call(*arguments, **options):
                if not left[0]:
                    raise Cut
                left[0] -= 1
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "symlink_to", "unlink", "rename"):
                patch.setattr(Path, name, counted(getattr(Path, name)))
            try:
                done = first_boot.go_on(board.place, lambda line: None)
            except Cut:
                cuts += 1
        now = led_to(board.place.current)
        assert now in (None, release) and (now is None or not board.place.trial.is_symlink())
        assert now is None or (board.place.folder(release) / "proven.json").exists()
        confirmed = now == release and not board.place.trial.exists()
        assert board.is_armed or confirmed, "given up before it was confirmed"
        if done:
            break
        board.power_off()
        board.power_on()
        if not board.is_armed:
            done = release  # all that was left to do is to remove the unit
            break
    assert done == release and cuts > 8
    assert led_to(board.place.current) == release and not board.place.trial.exists()
    assert [board.said.count(word) for word in ("check", "bench")] == [1, 1]


def test_a_switch_that_was_cut_off_before_the_service_was_told_starts_it(booted):
    board = booted()
    board.cut_off_at("switch")
    assert trial.begin(board.place, board.release)
    assert board.first_boot() == (0, f'"{board.release}"')
    assert [event["what"] for event in board.events] == ["switched", "confirmed"]


FAILING = {
    "doctor": ("doctor", "what keeps this board from running it: journalctl -u anchorvla-first"),
    "build": ("build", "plans cannot be built: error: out of memory"),
    "parity": ("prove", "parity with the golden data: FAIL prefix_kv 3.0e-01 (allowed 1e-04)"),
    "crash": ("settle", "not confirmed, its service was started 1 times and was never healthy"),
    "silent": ("settle", "not confirmed, not healthy within 10 s: 0 of 3 good ticks"),
}
"""What is wrong with a release -> the step that fails, and why."""


def test_a_step_that_fails_is_written_down_and_tried_again_at_the_next_boot(booted):
    board = booted(*FAILING, backend="tensorrt", most_starts=1, health_s=10.0)
    (wheel,) = board.place.folder(board.release).glob("wheels/*.whl")
    good, times = wheel.read_bytes(), 0

    def fails(step, why):
        nonlocal times
        code, said = board.first_boot()
        assert code == 1 and said.startswith(f"error: {why}"), said
        failed = [event for event in board.events if event["what"] == "failed"]
        times += 1
        assert len(failed) == times and failed[-1]["release"] == board.release
        assert failed[-1]["why"].startswith(f"{step}: {why}")
        assert failed[-1]["why"].endswith("; the next boot tries again")
        assert board.is_armed and led_to(board.place.current) is None
        assert (board.system / f"{SYSTEM}/{UNIT}").exists()
        board.power_off()

    wheel.write_bytes(b"not a wheel")
    fails("environment", "the release's packages do not install")
    wheel.write_bytes(good)
    for what, (step, why) in FAILING.items():
        fails(step, why)
        if what in ("doctor", "crash"):
            fails(step, why)
        board.mend(what)
    assert board.first_boot() == (0, f'"{board.release}"')
    assert led_to(board.place.current) == board.release and not board.is_armed


def test_a_release_that_was_flashed_meanwhile_is_not_switched_away_from(booted):
    board, other = booted(), "2-" + "b" * 12
    (board.place.releases / other).mkdir()
    write_json(board.place.releases / other / "release.json", {})
    link(board.place.current, other)
    assert board.first_boot() == (0, "null")
    assert led_to(board.place.current) == other and board.said == []
    (event,) = board.events
    assert (event["what"], event["why"]) == ("passed over", f"{other} was flashed before its turn")
    assert not board.is_armed and not (board.system / f"{SYSTEM}/{UNIT}").exists()


def test_while_somebody_flashes_the_first_boot_waits_for_another(booted):
    board = booted()
    token = lock.take(board.place, "ada on desk")
    code, said = board.first_boot()
    assert code == 1 and "this board is being flashed by ada on desk since" in said
    assert board.is_armed and board.said == []
    assert lock.leave(board.place, token), "it is still held by who held it"


def test_what_names_no_release_is_an_error_and_not_a_trace(booted):
    board = booted()
    for words in ("{", "[]", '{"release": "../../etc"}', '{"release": "9-' + "a" * 12 + '"}'):
        board.place.first_boot.write_text(words)
        code, said = board.first_boot()
        assert code == 1 and said.startswith("error: "), words
        assert os.listdir(board.place.releases) == [board.release], words
    assert board.said == [] and led_to(board.place.current) is None
    with pytest.raises(AgentError, match=r"first-boot.json: damaged"):
        board.place.first_boot.write_text("{")
        first_boot.go_on(board.place, print)
