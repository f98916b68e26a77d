"""What of a virtual board can be told without starting one: `make virtual-board` starts one."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.virtual_board import image as images
from tests.virtual_board.__main__ import main
from tests.virtual_board.board import BoardError, VirtualBoard
from tests.virtual_board.image import HERE, Image, find_tool, image_digest, reasons_to_skip
from tests.virtual_board.initrd import DATA, FOLDER, PROGRAM, archive, initrd, load_order
from tests.virtual_board.machine import ACCELERATOR, machine_words, qemu_command
from tests.virtual_board.monitor import MonitorError, tell, tell_in_words
from tests.virtual_board.simulated import files

DEP = """kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko
kernel/fs/jbd2/jbd2.ko: kernel/lib/journal-sums.ko
kernel/lib/journal-sums.ko:
kernel/lib/crc16.ko:
kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio-ring.ko
kernel/drivers/virtio/virtio-ring.ko:
"""
BUILTIN = "kernel/drivers/virtio/virtio-pci.ko\n"
QEMU_SAYS = "qemu-system-x86_64: no such machine"


def test_a_module_comes_after_all_that_it_needs():
    order = load_order(DEP, BUILTIN, ["ext4", "virtio_pci", "virtio_ring"])
    names = [Path(file).stem for file in order]
    assert sorted(names) == ["crc16", "ext4", "jbd2", "journal-sums", "virtio-ring"]
    assert names.index("journal-sums") < names.index("jbd2") < names.index("ext4")
    assert names.index("crc16") < names.index("ext4")
    with pytest.raises(ValueError, match="this kernel has no module 'virtio_net'"):
        load_order(DEP, BUILTIN, ["virtio_net"])


def entries_of(data):
    """Path -> mode and content, read by the fields of the format (newc), not by what wrote them."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * k : at + 14 + 8 * k], 16) for k in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        at += (110 + name_size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            return found
        found[name[:-1].decode()] = (mode, data[at : at + size])
        at += (size + 3) // 4 * 4


def test_an_archive_holds_what_was_put_in_whatever_its_length():
    sizes = {f"file{n}": (DATA, bytes(range(n))) for n in range(9)}
    put = {"a": (FOLDER, b""), "a/program": (PROGRAM, b"#!x"), **sizes}
    assert entries_of(archive(put)) == put


def test_the_first_file_system_holds_a_shell_and_the_modules_in_order(tmp_path):
    modules = tmp_path / "lib" / "modules" / "6.1"
    wanted = ("virtio_pci", "virtio_blk", "virtio_net", "ext4", "crc32c_generic")
    for name in wanted:
        (modules / "kernel").mkdir(parents=True, exist_ok=True)
        (modules / "kernel" / f"{name}.ko").write_text(f"module {name}")
    needs = {"virtio_blk": "kernel/virtio_pci.ko", "ext4": "kernel/crc32c_generic.ko"}
    lines = [f"kernel/{name}.ko: {needs.get(name, '')}\n" for name in wanted]
    (modules / "modules.dep").write_text("".join(lines))
    (modules / "modules.builtin").write_text("")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "busybox").write_text("a shell")
    entries = entries_of(initrd(tmp_path, b"#!/bin/busybox sh\n"))
    order = entries["modules/order"][1].decode().split()
    assert sorted(order) == sorted(f"{name}.ko" for name in wanted)
    assert order.index("crc32c_generic.ko") < order.index("ext4.ko")
    assert all(entries[f"modules/{name}"][1] == f"module {name[:-3]}".encode() for name in order)
    assert entries["init"] == (PROGRAM, b"#!/bin/busybox sh\n")
    assert entries["bin/busybox"] == (PROGRAM, b"a shell")
    (modules / "kernel" / "ext4.ko").rename(modules / "kernel" / "ext4.ko.xz")
    text = (modules / "modules.dep").read_text().replace("ext4.ko", "ext4.ko.xz")
    (modules / "modules.dep").write_text(text)
    with pytest.raises(
        ValueError, match=r"compressed, which busybox does not load: .'ext4\.ko\.xz"
    ):
        initrd(tmp_path, b"")


@pytest.fixture
def image(tmp_path):
    """Files of the right names; no machine starts from them."""
    folder = tmp_path / "an image"
    folder.mkdir()
    for name in ("disk.raw", "vmlinuz", "initrd", "key"):
        (folder / name).write_bytes(b"")
    (folder / "host.pub").write_text("ssh-ed25519 AAAA board\n")
    return Image(folder=folder)


@pytest.fixture
def board(tmp_path, image):
    folder = tmp_path / "board"
    folder.mkdir()
    (folder / "disk.qcow2").write_bytes(b"")
    return VirtualBoard(folder, image)


def test_only_the_port_of_loopback_leads_in_and_nothing_out(image, tmp_path):
    words = qemu_command(tmp_path, image, 2222, None)
    (network,) = (word for word in words if word.startswith("user,"))
    assert network.split(",")[1:] == [
        "id=net0", "restrict=on", "hostfwd=tcp:127.0.0.1:2222-:22",
    ]  # fmt: skip
    assert "-loadvm" not in words
    assert qemu_command(tmp_path, image, 2222, "kept")[-2:] == ["-loadvm", "kept"]


def test_the_processor_is_emulated_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv(ACCELERATOR, raising=False)
    assert machine_words()["-accel"] == "tcg,thread=multi"
    monkeypatch.setenv(ACCELERATOR, "kvm")
    assert machine_words()["-accel"] == "kvm"


def test_ssh_reads_the_configuration_as_it_is_meant(board):
    if shutil.which("ssh") is None:
        pytest.skip("no ssh here")
    read = ["ssh", "-G", "-F", str(board.ssh_config), "robot@board"]
    said = subprocess.run(read, capture_output=True, text=True, check=True).stdout.splitlines()
    meant = {
        "hostname": "127.0.0.1",
        "port": str(board.port),
        "user": "robot",
        "identityfile": str(board.image.key),
        "userknownhostsfile": str(board.folder / "known_hosts"),
        "stricthostkeychecking": "true",
        "batchmode": "yes",
    }
    assert {f"{name} {value}" for name, value in meant.items()} <= set(said)
    known = (board.folder / "known_hosts").read_text()
    assert known == f"[127.0.0.1]:{board.port} ssh-ed25519 AAAA board\n"
    assert VirtualBoard(board.folder, board.image).port == board.port


@contextmanager
def process_of(folder, name):
    """Something that a board in `folder` takes for its qemu if `name` is its name."""
    sleep = "import time; print(flush=True); time.sleep(600)"
    words = [sys.executable, "-c", sleep, f"guest={name}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        process.stdout.readline()  # before that, it need not have its name
        (folder / "pid").write_text(f"{process.pid}\n")
        try:
            yield process
        finally:
            process.kill()


def test_the_power_is_cut_of_its_own_machine_by_a_kill(board):
    with process_of(board.folder, board.folder) as process:
        assert board.pid == process.pid
        with pytest.raises(BoardError, match="the machine is on"):
            board.start()
        with pytest.raises(BoardError, match="the machine is on"):
            board.fsck()
        reaper = threading.Thread(target=process.wait)  # what is no child of ours is reaped, too
        reaper.start()
        board.cut()
        reaper.join()
        assert process.returncode == -signal.SIGKILL
    assert board.pid is None


def test_a_process_that_is_no_machine_of_this_folder_is_left_alone(board):
    with process_of(board.folder, board.folder.with_name("board2")) as process:
        assert board.pid is None
        with pytest.raises(BoardError, match="off already"):
            board.cut()
        assert process.poll() is None


def test_a_boot_is_over_when_sshd_is_up_and_a_panic_ends_the_wait(board):
    line = "board: sshd is up after 9.8 s\r\n"
    with process_of(board.folder, board.folder):
        assert board.num_boots == 0
        board.console.write_text(f"noise\r\n{line}")
        board.wait_for_boot(1)
        board.console.write_text(f"noise\r\n{line}again\r\n{line}")
        assert board.num_boots == 2
        board.console.write_text("Kernel panic - not syncing: no init found\r\n")
        with pytest.raises(BoardError, match="no init found"):
            board.wait_for_boot(1)
    board.console.write_text("SeaBIOS\r\n")
    with pytest.raises(BoardError, match="SeaBIOS"):  # it ended meanwhile
        board.wait_for_boot(1)


def test_what_qemu_says_as_it_ends_is_told(board, tmp_path, monkeypatch):
    if shutil.which("setpriv") is None or shutil.which("qemu-img") is None:
        pytest.skip("no setpriv or no qemu-img here")
    programs = tmp_path / "bin"
    programs.mkdir()
    qemu = programs / "qemu-system-x86_64"
    qemu.write_text(f"#!/bin/sh\necho '{QEMU_SAYS}' >&2\nexit 1\n")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    board.disk.unlink()
    board.reset()
    with pytest.raises(BoardError, match=QEMU_SAYS):
        board.start()


def test_e2fsck_finds_damage_on_the_disk_and_leaves_it_there(tmp_path, image):
    if missing := [
        tool for tool in ("mkfs.ext4", "debugfs", "e2fsck", "qemu-img") if not find_tool(tool)
    ]:
        pytest.skip(f"no {', '.join(missing)} here")
    with image.disk.open("wb") as disk:
        disk.truncate(16 << 20)
    make = ["-q", "-F", "-d", str(HERE), str(image.disk)]
    subprocess.run([find_tool("mkfs.ext4"), *make], check=True)
    board = VirtualBoard(tmp_path / "board", image)
    before = board.disk.read_bytes()
    assert board.fsck() == ""
    clear_an_inode = ["-w", "-R", "clri image.py", str(image.disk)]
    subprocess.run([find_tool("debugfs"), *clear_an_inode], check=True, capture_output=True)
    damaged = image.disk.read_bytes()
    assert re.match(r"e2fsck -f -n: \d+\n(.*\n)*.*'image.py'", board.fsck())
    assert image.disk.read_bytes() == damaged
    assert board.disk.read_bytes() == before
    assert not (board.folder / "fsck.raw").exists()


@contextmanager
def monitor(folder, *answers):
    """A qemu that answers so, one answer per word; yields what it was told."""
    folder.mkdir(parents=True, exist_ok=True)
    told, here = [], os.getcwd()
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(folder)  # a socket's path is short
        try:
            listening.bind("monitor")
        finally:
            os.chdir(here)
        listening.listen()

        def serve():
            connection, _ = listening.accept()
            with connection, connection.makefile("rw") as lines:
                lines.write('{"QMP": {}}\n')
                lines.flush()
                for answer in [[{"return": {}}], *answers]:
                    told.append(json.loads(lines.readline()))
                    lines.write("".join(json.dumps(message) + "\n" for message in answer))
                    lines.flush()

        server = threading.Thread(target=serve)
        server.start()
        yield told
        server.join()


def test_qemu_is_told_in_a_folder_however_deep_and_its_events_are_no_answers(tmp_path):
    deep = tmp_path.joinpath(*itertools.repeat("a-folder-with-a-long-name", 6))
    event = {"event": "STOP", "data": {}}
    with monitor(deep, [event, {"return": {"running": True}}]) as told:
        assert tell(deep, "set_link", name="net0", up=False) == {"running": True}
    assert told == [
        {"execute": "qmp_capabilities", "arguments": {}},
        {"execute": "set_link", "arguments": {"name": "net0", "up": False}},
    ]


def test_a_refusal_of_qemu_is_an_error_in_its_words(tmp_path):
    refused = {"error": {"desc": "Device 'net0' not found"}}
    with monitor(tmp_path / "a", [refused]), pytest.raises(MonitorError, match="'net0' not found"):
        tell(tmp_path / "a", "set_link")
    with monitor(tmp_path / "b", []), pytest.raises(MonitorError, match="ended before it answered"):
        tell(tmp_path / "b", "stop")
    with pytest.raises(MonitorError, match="no qemu listens there"):
        tell(tmp_path, "stop")


def test_what_the_monitor_for_people_says_is_an_error(tmp_path):
    with monitor(tmp_path / "a", [{"return": ""}]) as told:
        tell_in_words(tmp_path / "a", "savevm x")
    assert told[1]["arguments"] == {"command-line": "savevm x"}
    said = {"return": "Error: no snapshot\r\n"}
    with monitor(tmp_path / "b", [said]), pytest.raises(MonitorError, match="x: Error: no snapsh"):
        tell_in_words(tmp_path / "b", "loadvm x")


def test_an_image_is_made_again_when_anything_that_it_is_made_of_changes(tmp_path, monkeypatch):
    before = image_digest()
    copy = tmp_path / "tests" / "virtual_board"
    shutil.copytree(HERE, copy)
    boards = HERE.parent / "runtime" / "boards"
    shutil.copytree(boards, copy.parent / "runtime" / "boards")
    monkeypatch.setattr(images, "HERE", copy)
    assert image_digest() == before
    parts = ("setup.sh", "initrd.sh", "root/etc/hosts", "root/etc/systemd/system/new.service")
    digests = [before]
    for part in parts:
        with (copy / part).open("a") as file:
            file.write("# changed\n")
        digests.append(image_digest())
    monkeypatch.setattr(images, "PACKAGES", (*images.PACKAGES, "hello"))
    digests.append(image_digest())
    assert len(set(digests)) == len(digests) == len(parts) + 2


def test_without_its_tools_or_root_it_is_skipped_with_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(images, "find_tool", lambda name: None if "qemu" in name else "/bin/x")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert list(reasons_to_skip(tmp_path)) == [
        "no qemu-img, qemu-system-x86_64: make board-tools installs them"
    ]
    assert main(["up"]) == 0
    assert capsys.readouterr().out.startswith("skipped: no qemu-img")
    monkeypatch.setattr(images, "find_tool", lambda name: "/bin/x")
    assert list(reasons_to_skip(tmp_path)) == []
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (reason,) = reasons_to_skip(tmp_path)
    assert reason.startswith("only root may unpack a Debian")
    (tmp_path / "image.done").write_text(image_digest())
    assert list(reasons_to_skip(tmp_path)) == []
    (tmp_path / "image.done").write_text("of something else")
    assert list(reasons_to_skip(tmp_path)) == [reason]


def test_a_python_finds_the_simulated_modules_and_compiles_and_runs_plans(demo_bundle, tmp_path):
    place = tmp_path / "dist-packages"
    for name, text in files():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")

    def run(*words):
        paths = os.pathsep.join([str(place), str(HERE.parents[1])])  # the runtime is that of here
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    runs = ["-m", "runtime"]
    assert "[6/6]" in run(*runs, "build", bundle)
    (plans,) = (bundle / "plans").glob("simulated-orin-*")
    weights = {p.stem: p.stat().st_size for p in (bundle / "engines").glob("*.weights")}
    sizes = {p.stem: p.stat().st_size for p in plans.glob("*.plan")}
    assert sizes.keys() == weights.keys()
    assert all(sizes[name] > weights[name] for name in sizes)
    assert "ok   actions" in run(*runs, "check", bundle, "--backend", "tensorrt")
    told = run("-c", "import pycuda.driver, tensorrt, sys; print(tensorrt.__file__)")
    assert told.startswith(str(place))
    for name in ("tensorrt", "pycuda.driver", "cuda.bindings.runtime", "cuda.bindings.driver"):
        assert run("-c", f"import {name} as first; print(first.__name__)").endswith(f"{name}\n")
    found = "import importlib.metadata as m; print(m.version('tensorrt'), m.version('pycuda'))"
    assert run("-c", found) == "10.3.0 2026.1\n"
