"""RealSense cameras on USB, as the kernel shows them: no library, nothing is opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .machine import ROOT, number_of, paths_of, text_of

INTEL = "8086"
REALSENSE = {
    "0aa5": "SR300",
    "0ad1": "D400",
    "0ad2": "D410",
    "0ad3": "D415",
    "0ad4": "D430",
    "0ad5": "D430",
    "0ad6": "D4xx",
    "0adb": "D4xx",
    "0adc": "D4xx",
    "0af2": "D4xx",
    "0af6": "D420",
    "0afe": "D420",
    "0aff": "D410",
    "0b00": "D400",
    "0b01": "D430",
    "0b03": "D460",
    "0b07": "D435",
    "0b0c": "D405",
    "0b0d": "L500",
    "0b37": "T265",
    "0b3a": "D435i",
    "0b48": "SR305",
    "0b49": "D416",
    "0b4b": "D430i",
    "0b4d": "D465",
    "0b52": "D416",
    "0b5b": "D405",
    "0b5c": "D455",
    "0b64": "L515",
    "0b6a": "D585",
    "0b6b": "D585S",
    "abcd": "D457",
}
"""Product numbers on USB, from librealsense. Intel's other devices have neighbouring ones: 0aaa is
Bluetooth."""
WITH_IMU = {"0af2", "0b3a", "0b4b", "0b4d", "0b5c", "0b64", "0b6a", "0b6b", "abcd"}
RECOVERING = {"0adb", "0adc"}


@dataclass(frozen=True, kw_only=True, slots=True)
class UsbCamera:
    """A RealSense."""

    product: str
    speed_mbps: float
    """480 is USB 2, 5000 and more USB 3."""
    has_imu: bool
    """A motion sensor, which the kernel shows as a raw HID device."""
    is_recovering: bool
    """Without firmware, waiting for one."""


def read_cameras(root: Path = ROOT) -> tuple[UsbCamera, ...]:
    """Every RealSense on USB; Intel's other devices are left out."""
    found = []
    for device in paths_of(root, "sys/bus/usb/devices/*"):
        product = text_of(device / "product").strip()
        number = text_of(device / "idProduct").strip().lower()
        model = REALSENSE.get(number)
        if text_of(device / "idVendor").strip() != INTEL or not (model or "RealSense" in product):
            continue
        has_imu = number in WITH_IMU if model else bool(re.search(r"\d{3}i|D?45[57]", product))
        found.append(
            UsbCamera(
                product=product or f"RealSense {model}",
                speed_mbps=number_of(device / "speed") or 0.0,
                has_imu=has_imu,
                is_recovering=number in RECOVERING,
            )
        )
    return tuple(found)


def has_hidraw(root: Path = ROOT) -> bool:
    """Whether the kernel hands out raw HID devices, which a camera's motion sensor is."""
    return (root / "sys/class/hidraw").is_dir() or bool(paths_of(root, "dev/hidraw*"))
