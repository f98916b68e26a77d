"""The words by which qemu becomes the machine that a virtual board is."""

from __future__ import annotations

import os
from pathlib import Path

from tests.virtual_board.image import Image

ACCELERATOR = "VIRTUAL_BOARD_ACCEL"
"""Variable. By default the processor is emulated, which works everywhere and takes ten times as
long; `kvm` is quick where it works. `/dev/kvm` being there does not say so."""
PROCESSOR = "max,fma=off,avx=off,avx2=off"
"""Emulated fused multiply-adds go through a function of C for each number: a tick of the demo takes
ten times as long with them."""
KERNEL = (
    "console=ttyS0 loglevel=4 panic=-1 net.ifnames=0 mitigations=off nokaslr no_timer_check "
    "tsc=reliable apparmor=0 selinux=0 audit=0 ipv6.disable=1 cryptomgr.notests 8250.nr_uarts=1 "
    "rcupdate.rcu_expedited=1 random.trust_cpu=on systemd.getty_auto=no systemd.show_status=no"
)


def machine_words() -> dict[str, str]:
    """What a snapshot is tied to: it goes on in this machine and in no other."""
    return {
        "-machine": "pc,usb=off",
        "-accel": os.environ.get(ACCELERATOR) or "tcg,thread=multi",
        "-cpu": PROCESSOR,
        "-smp": "2",
        "-m": "1536",
        "-append": KERNEL,
    }


def qemu_command(folder: Path, image: Image, port: int, snapshot: str | None) -> list[str]:
    """To be run in `folder`. With `snapshot` it goes on there, otherwise it boots.

    Nothing but the port of loopback leads in, and nothing out. cache=unsafe: what the guest flushes
    goes to the file and no further, for a cut is the end of this process and not of the host.
    """
    words = {
        "-name": f"guest={folder}",
        **machine_words(),
        "-display": "none",
        "-kernel": str(image.kernel.resolve()),
        "-initrd": str(image.initrd.resolve()),
        "-drive": "file=disk.qcow2,format=qcow2,if=virtio,cache=unsafe",
        "-netdev": f"user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device": "virtio-net-pci,netdev=net0,romfile=",
        "-serial": "file:console.log",
        "-qmp": "unix:monitor,server=on,wait=off",
        "-pidfile": "pid",
    }
    resume = [] if snapshot is None else ["-loadvm", snapshot]
    options = [word for pair in words.items() for word in pair]
    return ["qemu-system-x86_64", "-nodefaults", "-no-user-config", *options, *resume]
