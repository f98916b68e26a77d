"""RealSense cameras and their recordings, through the SDK's Python module.

Its waits end by themselves; what does not end (`stop` may hang after an unplug) ends with the
process, which is why a camera has one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CameraError
from .sources import Opened, Raw, RealSense, RealSenseFile, Unusable

WAIT_MS = 100


def open_camera(source: RealSense) -> Opened:
    """The camera with the serial number of `source`, streaming."""
    rs = _sdk()
    context, devices = connected(rs)
    device = _chosen(rs, devices, source)
    usb = _told(rs, device, "usb_type_descriptor")
    slow = f"it is on USB {usb}: use a USB 3 socket and cable" if usb.startswith(("1", "2")) else ""
    pipeline = rs.pipeline(context)
    if not hasattr(pipeline, "set_device"):
        raise Unusable("pyrealsense2 is too old: install 2.56 or newer")
    pipeline.set_device(device)
    config = _config(rs, source)
    try:
        pipeline.start(config)
    except RuntimeError as error:
        mode = f"{source.size[0]} x {source.size[1]} at {source.rate_hz:g} Hz"
        raise CameraError(
            f"{source.name}: does not start in {mode}{' with depth' * bool(source.depth)} "
            f"({error}); {slow or 'choose a mode that rs-enumerate-devices lists'}"
        ) from error
    frames = _live(pipeline, device, source)
    return Opened(source.serial, frames, f"{source.name}: {slow}" if slow else "")


def connected(rs: Any) -> tuple[Any, Sequence[Any]]:
    """A context of the SDK, and the devices that it finds."""
    context = rs.context()
    return context, list(context.query_devices())


def open_file(source: RealSenseFile) -> Opened:
    """The recording of `source`, playing from its begin."""
    rs = _sdk()
    if not Path(source.path).is_file():
        raise Unusable(f"{source.path}: no such file; check the path")
    pipeline, config = rs.pipeline(rs.context()), _config(rs, source)
    try:
        config.enable_device_from_file(source.path, False)
        profile = pipeline.start(config)
    except RuntimeError as error:
        raise Unusable(
            f"{source.path}: cannot be played in {source.size[0]} x {source.size[1]} at "
            f"{source.rate_hz:g} Hz ({error}); check the size and rate it was recorded with"
        ) from error
    device = profile.get_device()
    return Opened(
        f"{source.path} of {_told(rs, device, 'serial_number')}", _played(rs, pipeline, source)
    )


def _live(pipeline: Any, device: Any, source: RealSense) -> Iterator[Raw | None]:
    while True:
        has_frames, frames = pipeline.try_wait_for_frames(WAIT_MS)
        if has_frames:
            yield _raw(frames, source)
        elif device.is_connected():
            yield None
        else:
            raise CameraError(f"{source.name}: was unplugged; plug it in again")


def _played(rs: Any, pipeline: Any, source: RealSenseFile) -> Iterator[Raw | None]:
    playback = pipeline.get_active_profile().get_device().as_playback()
    while True:
        has_frames, frames = pipeline.try_wait_for_frames(WAIT_MS)
        if has_frames:
            yield _raw(frames, source)
        elif playback.current_status() == rs.playback_status.stopped:
            return
        else:
            yield None


def _raw(frames: Any, source: RealSense | RealSenseFile) -> Raw | None:
    """Of a set of frames that the SDK found to belong together."""
    colour, depth = frames.get_color_frame(), None
    if not colour:
        return None
    if source.depth is not None and (measured := frames.get_depth_frame()):
        z_HW = np.asanyarray(measured.get_data())
        depth = np.multiply(z_HW, measured.get_units(), dtype=np.float32)
    return Raw(
        np.asanyarray(colour.get_data()),
        colour.get_frame_number(),
        colour.get_timestamp() / 1e3,
        depth,
    )


def _config(rs: Any, source: RealSense | RealSenseFile) -> Any:
    config, (width, height), rate_hz = rs.config(), source.size, int(source.rate_hz)
    config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, rate_hz)
    if source.depth is not None:
        config.enable_stream(rs.stream.depth, width, height, rs.format.z16, rate_hz)
    return config


def _chosen(rs: Any, devices: Sequence[Any], source: RealSense) -> Any:
    serials = {_told(rs, device, "serial_number"): device for device in devices}
    if source.serial not in serials:
        raise CameraError(
            f"{source.name}: not connected; connected: {', '.join(sorted(serials)) or 'none'}; "
            "plug it in, or correct the serial number; anchorvla doctor shows what USB has"
        )
    return serials[source.serial]


def _told(rs: Any, device: Any, what: str) -> str:
    info = getattr(rs.camera_info, what)
    return str(device.get_info(info)) if device.supports(info) else ""


def _sdk() -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        raise Unusable(
            f"pyrealsense2 cannot be loaded ({error}): install requirements/robot-cameras.txt "
            "and the system's libusb-1.0-0"
        ) from error
    return pyrealsense2
