"""Jetsons that are flashed whole, and what NVIDIA flashes them with.

Names of configurations: release notes of Jetson Linux 36.5, section 1.1, and for a Thor the
Developer Guide r38.4, "Quick Start". Commands: Developer Guide r36.5 and r39.2.1, "Quick Start",
and `README_initrd_flash.txt` of the tree itself; all of them as others quote them, for the pages
were not at hand. Orin NX and Nano have no storage of their own, so they start from NVMe; the
configurations of JetPack 7 say so themselves. The guide of r39.2.1 has `--erase-all` besides, which
others saw time out on large drives; the partitions are written without it too. Nobody has run these
commands for this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Storage = Literal["eMMC", "NVMe"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Jetson:
    """One kind of board."""

    conf: str
    """NVIDIA's name of its configuration, on the carrier board of the developer kit."""
    sm: str
    """Compute capability of its GPU."""
    module: str
    """Part number."""
    storage: Storage
    """From which it starts."""


AGX = Jetson(conf="jetson-agx-orin-devkit", sm="8.7", module="p3701", storage="eMMC")
NANO = Jetson(conf="jetson-orin-nano-devkit", sm="8.7", module="p3767", storage="NVMe")
SUPER = Jetson(conf="jetson-orin-nano-devkit-super", sm="8.7", module="p3767", storage="NVMe")
THOR = Jetson(conf="jetson-agx-thor-devkit", sm="11.0", module="p3834", storage="NVMe")
JETSONS = {
    "orin-agx-64": AGX,
    "orin-nx-16": NANO,
    "orin-nano-8": NANO,
    "thor": THOR,
    "agx-orin-64gb": AGX,
    "orin-nx-16gb-super": SUPER,
    "orin-nano-8gb": NANO,
    "orin-nano-8gb-super": SUPER,
    "thor-t5000": THOR,
}
"""By the names of `quant.boards` too; super: more power than every carrier board can give."""

UNIFIED = ("./l4t_initrd_flash.sh", "{conf}", "internal")
COMMANDS: Mapping[tuple[int, Storage], tuple[str, ...]] = {
    (6, "eMMC"): ("./flash.sh", "{conf}", "internal"),
    (6, "NVMe"): (
        *("./tools/kernel_flash/l4t_initrd_flash.sh", "--external-device", "nvme0n1p1"),
        *("-c", "tools/kernel_flash/flash_l4t_t234_nvme.xml"),
        *("-p", "-c bootloader/generic/cfg/flash_t234_qspi.xml"),
        *("--showlogs", "--network", "usb0", "{conf}", "internal"),
    ),
    (7, "eMMC"): UNIFIED,
    (7, "NVMe"): UNIFIED,
}
"""JetPack and storage -> what NVIDIA flashes it with, as root, in Linux_for_Tegra."""
