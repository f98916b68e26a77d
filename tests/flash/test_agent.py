"""The board's side of flash, one step at a time, and cut off between any two writes."""

import io
import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from export.release.agent import install, lock, service, transfer, trial
from export.release.agent.place import AgentError, Place, checked, led_to, link, write_json
from export.release.archive import agent_archive
from runtime.storage.signature import Signature

OLD, NEW = "1-" + "a" * 12, "2-" + "b" * 12


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "opt", tmp_path / "system")


def description(number=1, files=()):
    return {
        "format": 1,
        "policy": "a policy",
        "number": number,
        "license": "apache",
        "python": [3, 10],
        "backend": "onnxruntime",
        "files": {
            name: {"sha256": sha256(data).hexdigest(), "size": len(data)} for name, data in files
        },
        "service": ["serve", "{bundle}"],
        "budget_ms": None,
        "health": {"ticks": 3, "within_s": 5.0},
        "most_starts": 2,
    }


def proven(place, release):
    """A whole release, as the steps leave it."""
    number = int(release.split("-")[0])
    folder = place.folder(release)
    (folder / "bundle").mkdir(parents=True)
    write_json(folder / "release.json", description(number))
    signature = Signature("ab" * 32, number, b"x" * 64)
    (folder / "bundle/manifest.sig").write_bytes(signature.to_bytes())
    write_json(folder / "proven.json", {})


def confirmed(place, release):
    trial.begin(place, release)
    assert trial.confirm(place) == release


# --- cut off between any two writes ---


class Cut(BaseException):
    """The power is gone."""


CALLS = ("replace", "symlink_to", "unlink", "rename")


def cut_after(monkeypatch, count):
    """Let `count` changes of the file system happen, and none after them."""
    left = [count]

    def counted(real):
        def call(*arguments, **options):
            if not left[0]:
                raise Cut
            left[0] -= 1
            return real(*arguments, **options)

        return call

    for name in CALLS:
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    return left


def both(place):
    proven(place, OLD)
    confirmed(place, OLD)
    proven(place, NEW)


def begin(place):
    trial.begin(place, NEW)


def confirm(place):
    trial.begin(place, NEW)
    trial.confirm(place)


def give_back(place):
    trial.begin(place, NEW)
    trial.give_back(place, "ill")


@pytest.mark.parametrize("change", [begin, confirm, give_back])
def test_a_cut_anywhere_leaves_a_whole_release_and_the_next_flash_converges(
    change, tmp_path, monkeypatch
):
    count, was_cut = 0, True
    while was_cut:
        place = Place(tmp_path / str(count))
        both(place)
        with monkeypatch.context() as patch:
            cut_after(patch, count)
            try:
                change(place)
                was_cut = False
            except Cut:
                pass
        trial.recover(place)  # as the service's start does after the reboot
        now, running = led_to(place.current), trial.trial_of(place)
        assert now in (OLD, NEW)
        # What runs is confirmed, or there is a way back to what was.
        if running is not None:
            assert now == NEW and running == trial.Trial(NEW, OLD, 0)
        elif now == NEW:
            assert led_to(place.previous) == OLD and change is confirm
        assert place.trial.exists() == (running is not None)
        trial.begin(place, NEW)
        assert trial.confirm(place) == (NEW if now == OLD or running else None)
        assert (led_to(place.current), led_to(place.previous)) == (NEW, OLD)
        count += 1
    assert count > 4  # the changes of one switch, at least


def test_every_cut_of_a_switch_in_the_middle_of_another_trial_leads_back_to_what_was_confirmed(
    tmp_path, monkeypatch
):
    third, was_cut, count = "3-" + "c" * 12, True, 0
    while was_cut:
        place = Place(tmp_path / str(count))
        both(place)
        proven(place, third)
        trial.begin(place, NEW)
        with monkeypatch.context() as patch:
            cut_after(patch, count)
            try:
                trial.begin(place, third)
                was_cut = False
            except Cut:
                pass
        trial.recover(place)
        running = trial.trial_of(place)
        if running is None:
            assert led_to(place.current) == OLD
        else:
            assert running.previous == OLD and running.release in (NEW, third)
        trial.give_back(place, "ill")
        assert led_to(place.current) == OLD
        count += 1
    assert count > 4


def test_links_and_trial_are_on_the_disk_before_the_next_of_them_changes(place, monkeypatch):
    """The order of writes and fsyncs: each change of a name is followed by one of its folder."""
    both(place)
    done = recorded(monkeypatch, "replace", "unlink")
    confirm(place)
    renamed = [(at, what, Path(path)) for at, (what, path) in enumerate(done) if what != "fsync"]
    ends = [*(at for at, *_ in renamed[1:]), len(done)]
    leading = {
        (what, path.name): ("fsync", str(place.root)) in done[at:end]
        for (at, what, path), end in zip(renamed, ends, strict=True)
        if path.parent == place.root
    }
    for change in (
        ("replace", ".current.partial"),
        ("replace", ".previous.partial"),
        ("unlink", "trial.json"),
    ):
        assert leading[change], change


# --- trials ---


def test_a_release_that_starts_too_often_goes_back(place):
    both(place)
    trial.begin(place, NEW)
    assert [trial.count_start(place, 2) for _ in range(4)] == [NEW, NEW, OLD, OLD]
    event = json.loads(place.events.read_text().splitlines()[-1])
    assert event["what"] == "returned" and event["to"] == OLD
    assert event["why"] == "its service was started 2 times and was never healthy"


def test_starts_of_a_confirmed_release_are_not_counted(place):
    both(place)
    assert {trial.count_start(place, 1) for _ in range(5)} == {OLD}
    assert not place.trial.exists()


def test_the_first_release_has_nothing_to_go_back_to(place):
    proven(place, OLD)
    trial.begin(place, OLD)
    trial.give_back(place, "ill")
    assert led_to(place.current) is None and not os.path.lexists(place.current)


def test_a_release_that_was_not_proven_is_not_switched_to(place):
    both(place)
    (place.folder(NEW) / "proven.json").unlink()
    with pytest.raises(AgentError, match=f"{NEW}: not proven on this board; flash it"):
        trial.begin(place, NEW)
    assert led_to(place.current) == OLD and not place.trial.exists()


def test_an_older_number_is_refused_whatever_the_release_is_called(place):
    both(place)
    confirmed(place, NEW)
    renamed = place.folder("9-" + "c" * 12)
    place.folder(OLD).rename(renamed)
    with pytest.raises(AgentError, match="release 1 is older than 2, which runs here; .*--allow-"):
        trial.begin(place, renamed.name)
    assert led_to(place.current) == NEW
    assert trial.begin(place, renamed.name, may_be_older=True)


def test_a_second_build_of_the_same_number_is_no_downgrade(place):
    both(place)
    confirmed(place, NEW)
    again = "2-" + "c" * 12
    proven(place, again)
    assert trial.begin(place, again)


def test_a_link_to_a_release_that_is_not_whole_leads_nowhere(place):
    both(place)
    link(place.current, NEW)
    (place.folder(NEW) / "release.json").unlink()
    assert led_to(place.current) is None


# --- files ---


def entry(data, offset=0):
    return {"sha256": sha256(data).hexdigest(), "size": len(data), "offset": offset}


def stream(*pairs):
    return io.BytesIO(b"".join(json.dumps(e).encode() + b"\n" + data for e, data in pairs))


def files_of(*contents):
    return {f"bundle/{n}": entry(data) for n, data in enumerate(contents)}


def test_what_was_cut_off_is_sent_from_there_on(place, tmp_path):
    first, second = b"a" * 1000, os.urandom(5000)
    wanted = transfer.missing(place, files_of(first, second))
    assert [w["offset"] for w in wanted] == [0, 0]
    broken = stream((entry(first), first), (entry(second), second[:1234]))
    with pytest.raises(AgentError, match="broke off after 1234 of 5000 bytes"):
        transfer.receive(place, broken)
    (rest,) = transfer.missing(place, files_of(first, second))
    assert rest == entry(second, 1234)
    source = tmp_path / "second"
    source.write_bytes(second)
    sent = io.BytesIO()
    assert transfer.send(iter([(rest, source)]), sent) == 5000 - 1234
    sent.seek(0)
    assert transfer.receive(place, sent) == 5000 - 1234
    assert transfer.missing(place, files_of(first, second)) == []
    assert (place.incoming / entry(second)["sha256"]).read_bytes() == second


def test_what_is_sent_from_another_place_than_what_is_there_ends_is_refused(place):
    data = os.urandom(200)
    with pytest.raises(AgentError, match="broke off"):
        transfer.receive(place, stream((entry(data), data[:100])))
    with pytest.raises(AgentError, match="100 bytes, sent from 50; flash again"):
        transfer.receive(place, stream((entry(data, 50), data[50:])))
    assert transfer.missing(place, files_of(data)) == [entry(data, 100)]


def recorded(monkeypatch, *names):
    """What happens from now on, in order: (fsync, path), and calls of `Path` by their names."""
    done, fsync = [], os.fsync

    def told(name, real):
        def tell(self, *arguments, **options):
            done.append((name, str(self)))
            return real(self, *arguments, **options)

        return tell

    def tell_fsync(number):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{number}")))
        return fsync(number)

    monkeypatch.setattr(os, "fsync", tell_fsync)
    for name in names:
        monkeypatch.setattr(Path, name, told(name, getattr(Path, name)))
    return done


def test_a_file_has_its_name_when_it_is_on_the_disk(place, monkeypatch):
    data = os.urandom(100)
    done = recorded(monkeypatch, "replace")
    transfer.receive(place, stream((entry(data), data)))
    partial = str(place.incoming / f"{entry(data)['sha256']}.partial")
    assert done == [("fsync", partial), ("replace", partial), ("fsync", str(place.incoming))]


def test_a_release_has_its_name_when_all_of_it_is_on_the_disk(place, monkeypatch):
    files = [("bundle/engines/a.onnx", b"a"), ("wheels/b.whl", b"b"), ("requirements.txt", b"c")]
    transfer.receive(place, stream(*((entry(data), data) for _, data in files)))
    done = recorded(monkeypatch, "rename")
    install.unpack(place, NEW, description(2, files))
    partial = place.releases / f".{NEW}.partial"
    named = done.index(("rename", str(partial)))
    synced = {path for what, path in done[:named] if what == "fsync"}
    folders = [partial, *(partial / n for n in ("bundle", "bundle/engines", "wheels"))]
    assert {str(folder) for folder in folders} <= synced
    assert done[named + 1 :] == [("fsync", str(place.releases))]


def test_a_file_that_is_not_what_its_name_says_is_thrown_away(place):
    data = b"good" * 100
    with pytest.raises(AgentError, match="came with another hash, and was thrown away"):
        transfer.receive(place, stream((entry(data), b"evil" * 100)))
    assert list(place.incoming.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        b"{}\n",
        b"rubbish\n",
        b'{"sha256": "../../etc/passwd", "size": 1, "offset": 0}\nx',
        b'{"sha256": "' + b"a" * 63 + b'", "size": 1, "offset": 0}\nx',
        b'{"sha256": "' + b"a" * 64 + b'", "size": 1, "offset": 5}\nx',
        b"[" * 600 + b"\n",
    ],
)
def test_a_damaged_stream_is_refused(place, line):
    with pytest.raises(AgentError):
        transfer.receive(place, io.BytesIO(line))
    assert not [p for p in place.incoming.iterdir() if p.suffix != ".partial"]


def test_a_file_of_another_release_is_linked_if_it_still_is_what_it_was(place):
    good, bad = b"good" * 99, b"bad!" * 99
    folder = place.folder(OLD)
    (folder / "bundle").mkdir(parents=True)
    files = [("bundle/good", good), ("bundle/bad", bad)]
    write_json(folder / "release.json", description(files=files))
    (folder / "bundle/good").write_bytes(good)
    (folder / "bundle/bad").write_bytes(bad[:-1] + b"?")
    wanted = transfer.missing(place, description(files=files)["files"])
    assert wanted == [entry(bad)]
    linked = place.incoming / entry(good)["sha256"]
    assert linked.samefile(folder / "bundle/good")


def test_unpacking_is_whole_or_not_at_all(place):
    files = [("bundle/engines/a.onnx", b"a"), ("wheels/b.whl", b"b"), ("requirements.txt", b"c")]
    described = description(2, files)
    transfer.receive(place, stream(*((entry(data), data) for _, data in files[:2])))
    with pytest.raises(AgentError, match="requirements.txt of .* was not received"):
        install.unpack(place, NEW, described)
    assert place.all() == []
    transfer.receive(place, stream((entry(b"c"), b"c")))
    assert install.unpack(place, NEW, described) is True
    assert install.unpack(place, NEW, described) is False
    assert {n: (place.folder(NEW) / n).read_bytes() for n, _ in files} == dict(files)
    assert place.all() == [NEW]


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "bundle/../../x", "venv/x", "release.json", "bundle\\x", "a//b"]
)
def test_a_description_that_leaves_its_folder_is_refused(name):
    with pytest.raises(AgentError, match="no place in a release"):
        checked(description(files=[(name, b"")]), "here")


@pytest.mark.parametrize("release", ["../x", "1-", "x-" + "a" * 12, "1-" + "a" * 13, ""])
def test_a_name_that_is_none_of_a_release_is_refused(place, release):
    with pytest.raises(AgentError, match="no name of a release"):
        place.folder(release)


# --- removal ---


def test_cleaning_keeps_what_something_leads_to(place):
    both(place)
    third, fourth = "3-" + "c" * 12, "4-" + "d" * 12
    confirmed(place, NEW)
    for release in (third, fourth):
        proven(place, release)
    trial.begin(place, third)
    (place.incoming).mkdir()
    assert install.clean(place) == [fourth]
    assert place.all() == [OLD, NEW, third] and not place.incoming.exists()
    for release in (OLD, NEW, third):
        with pytest.raises(AgentError, match="in use; roll back first"):
            install.drop(place, release)


def test_what_is_being_removed_is_no_release_any_more(place, monkeypatch):
    both(place)
    real = shutil.rmtree

    def cut(path, **options):
        if os.path.exists(path):
            (Path(path) / "proven.json").unlink()
            raise Cut
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut)
        with pytest.raises(Cut):
            install.clean(place)
    assert place.all() == [OLD]
    assert install.clean(place) == []
    assert [path.name for path in place.releases.iterdir()] == [OLD]


# --- one at a time ---


def test_the_second_is_told_who_is_first(place):
    token = lock.take(place, "ada on desk, process 7")
    with pytest.raises(AgentError, match="being flashed by ada on desk, process 7 since 20.* UTC"):
        lock.take(place, "bob")
    with pytest.raises(AgentError, match="another flash took over"), lock.working(place, "other"):
        pass
    with lock.working(place, token):
        pass
    assert not lock.leave(place, "other") and lock.leave(place, token)
    assert lock.take(place, "bob") != token


def test_one_that_was_not_heard_of_is_gone_unless_its_step_is_at_work(place):
    token = lock.take(place, "ada")
    holder = place.root / "holder.json"

    def silent_for(seconds):
        then = holder.stat().st_mtime - seconds
        os.utime(holder, (then, then))

    with lock.working(place, token):
        silent_for(lock.LOST_S + 60)
        with pytest.raises(AgentError, match="flashed by ada"):
            lock.take(place, "bob")
    silent_for(lock.LOST_S - 10)
    with pytest.raises(AgentError, match="flashed by ada"):
        lock.take(place, "bob")
    lock.stay(place, "another")
    lock.stay(place, token)
    silent_for(lock.LOST_S - 10)
    with pytest.raises(AgentError, match="flashed by ada"):
        lock.take(place, "bob")
    lock.stay(place, "another")
    silent_for(15)
    assert lock.take(place, "bob")
    with pytest.raises(AgentError, match="took over"), lock.working(place, token):
        pass


def test_a_reboot_ends_what_was_held(place, monkeypatch, tmp_path):
    lock.take(place, "ada")
    monkeypatch.setattr(lock, "BOOT", tmp_path / "boot")
    lock.BOOT.write_text("another")
    assert lock.holder(place) is None
    lock.take(place, "bob")
    assert lock.holder(place).startswith("bob since")


# --- health ---


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """A systemctl that says what it is told to."""
    commands = tmp_path / "commands"
    commands.mkdir()

    def say(**properties):
        lines = "\\n".join(f"{name}={value}" for name, value in properties.items())
        (commands / "systemctl").write_text(f"#!/bin/sh\nprintf '{lines}\\n'\n")
        (commands / "systemctl").chmod(0o755)

    say()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return say


@pytest.fixture
def process(place):
    """One that works in the folder of the new release."""
    both(place)
    confirmed(place, NEW)
    started = subprocess.Popen(["sleep", "600"], cwd=place.folder(NEW))
    yield started.pid
    started.kill()
    started.wait()


def status_of(place, pid, ticks):
    place.status.parent.mkdir(parents=True, exist_ok=True)
    write_json(place.status, {"pid": pid, "ticks": ticks})


def test_health_is_good_ticks_of_the_services_own_process(place, systemd, process):
    systemd(ActiveState="active", SubState="running", MainPID=process)
    is_healthy, words = service.health(place)
    assert not is_healthy and words.endswith("and has not said how it does")
    status_of(place, process, 2)
    assert service.health(place) == (False, "2 of 3 good ticks")
    status_of(place, process, 3)
    assert service.health(place) == (True, "3 of 3 good ticks")
    status_of(place, process + 1, 3)
    assert not service.health(place)[0], "ticks of a process that is gone"
    status_of(place, process, 3)
    systemd(ActiveState="activating", SubState="auto-restart", MainPID=process, Result="exit-code")
    is_healthy, words = service.health(place)
    assert not is_healthy and words.endswith("activating (auto-restart), last result exit-code")
    systemd(ActiveState="active", SubState="running", MainPID=0)
    assert not service.health(place)[0]


def test_good_ticks_of_the_release_before_do_not_count(place, systemd, process):
    """systemd has not restarted it yet."""
    trial.begin(place, OLD, may_be_older=True)
    status_of(place, process, 99)
    systemd(ActiveState="active", SubState="running", MainPID=process)
    assert service.health(place) == (False, f"the process that runs is of {NEW}")


def test_settling_waits_as_long_as_the_release_says_and_then_returns(place, systemd):
    both(place)
    trial.begin(place, NEW)
    systemd(ActiveState="active", SubState="running", MainPID=1)
    now, told = [0.0], []

    def sleep(seconds):
        now[0] += seconds

    assert service.settle(place, told.append, lambda: now[0], sleep) is False
    assert 5.0 <= now[0] < 6.0 and led_to(place.current) == OLD
    assert told == [
        f"{NEW}: not healthy within 5 s (the service is active (running) and has not said how it "
        "does); returned"
    ]
    assert service.settle(place, told.append, lambda: now[0], sleep) is None


@pytest.mark.parametrize(("code", "is_started"), [(1, True), (6, False)])
def test_a_robot_that_the_guard_stopped_is_not_driven_by_the_release_before(
    place, tmp_path, monkeypatch, code, is_started
):
    both(place)
    trial.begin(place, NEW)
    commands, asked = tmp_path / "commands", tmp_path / "asked"
    commands.mkdir()
    (commands / "systemctl").write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\necho ActiveState=failed\necho ExecMainStatus={code}\n'
    )
    (commands / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    now = iter(range(100))
    service.settle(place, lambda line: None, lambda: next(now), lambda seconds: None)
    assert led_to(place.current) == OLD
    assert ("restart --no-block anchorvla.service" in asked.read_text()) is is_started


# --- the archive ---


def test_the_archive_needs_nothing_but_the_standard_library(tmp_path):
    assert agent_archive() == agent_archive()
    agent = tmp_path / "agent.pyz"
    agent.write_bytes(agent_archive())
    where = ["--root", str(tmp_path / "opt"), "--system", str(tmp_path)]

    def run(*words):
        command = [sys.executable, "-I", "-S", str(agent), *where, *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    facts = json.loads(run("facts").stdout)
    assert facts["python"] == list(sys.version_info[:2]) and facts["current"] is None
    assert not (tmp_path / "opt").exists(), "facts change nothing"
    refused = run("rollback")
    assert refused.returncode == 1 and refused.stderr == "error: lock it first\n"
    token = json.loads(run("lock", "--who=ada").stdout)
    refused = run("rollback", f"--token={token}")
    assert refused.stderr == "error: there is no release before this one; flash another\n"
