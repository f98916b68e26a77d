"""A camera's process whose RealSense is the SDK's software device, with faults to order.

    python -m tests.runtime.stand_ins.software_camera CONTROL DESCRIPTOR PARENT SOURCE

CONTROL is a file with words: `unplugged`, `frozen` (the frame number), `back` (the stamps), `drops`
(every second frame), `usb2`, `hangs`. Everything but the frames is the SDK: context, devices,
pipeline, frames. Each picture holds the time at which it was made, and a checksum of the rest.
"""

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

from runtime.robots.cameras import process, realsense
from tests.runtime.stand_ins.marked_pictures import picture

WIDTH, HEIGHT, RATE_HZ = 64, 48, 30
SIZE = (WIDTH, HEIGHT)
SERIAL = "software-1"


def software_device(rs, *, serial=SERIAL, usb="3.2", depth=False, make=None):
    """A device, its sensors and what to send frames of, by stream."""
    device = (make or rs.software_device)()
    device.register_info(rs.camera_info.serial_number, serial)
    device.register_info(rs.camera_info.name, "software")
    device.register_info(rs.camera_info.usb_type_descriptor, usb)
    streams = {"color": (rs.stream.color, rs.format.rgb8, 3)}
    if depth:
        streams["depth"] = (rs.stream.depth, rs.format.z16, 2)
    sensor, profiles = device.add_sensor("software"), {}
    for uid, (name, (kind, form, size)) in enumerate(streams.items(), 1):
        stream, lens = rs.video_stream(), rs.intrinsics()
        lens.width, lens.height, lens.fx, lens.fy = WIDTH, HEIGHT, 50, 50
        lens.ppx, lens.ppy, lens.model, lens.coeffs = 32, 24, rs.distortion.none, [0] * 5
        stream.type, stream.fmt, stream.bpp, stream.uid, stream.index = kind, form, size, uid, 0
        stream.width, stream.height, stream.fps, stream.intrinsics = WIDTH, HEIGHT, RATE_HZ, lens
        profiles[name] = sensor.add_video_stream(stream, True).as_video_stream_profile()
    return device, sensor, profiles


def send(rs, sensor, profile, pixels, *, number, stamp_ms, units=0.0):
    """One frame, [H, W, ...]."""
    frame = rs.software_video_frame()
    frame.pixels = np.ascontiguousarray(pixels).view(np.uint8).reshape(-1)
    frame.bpp = pixels.nbytes // (pixels.shape[0] * pixels.shape[1])
    frame.stride = frame.bpp * pixels.shape[1]
    frame.timestamp, frame.domain = stamp_ms, rs.timestamp_domain.hardware_clock
    frame.frame_number, frame.profile, frame.depth_units = number, profile, units
    sensor.on_video_frame(frame)


def _feed(rs, sensor, profiles, control):
    number, stamp_ms, since = 0, 5000.0, time.monotonic()
    while True:
        time.sleep(max(0.0, since + number / RATE_HZ - time.monotonic()))
        faults = control.read_text().split()
        number, stamp_ms = number + 1, stamp_ms + 1e3 / RATE_HZ
        if "unplugged" in faults or ("drops" in faults and number % 2):
            continue
        told_ms = stamp_ms - 3000 if "back" in faults else stamp_ms
        told = 7 if "frozen" in faults else number
        if "depth" in profiles:
            far = np.full((HEIGHT, WIDTH), number, np.uint16)
            send(rs, sensor, profiles["depth"], far, number=told, stamp_ms=told_ms, units=0.001)
        shown = picture(time.monotonic(), SIZE)
        send(rs, sensor, profiles["color"], shown, number=told, stamp_ms=told_ms)


def _connected(rs, control):
    """For `realsense.connected`."""
    faults = control.read_text().split()
    while "hangs" in faults and "hangs" in control.read_text():
        time.sleep(0.05)
    context = rs.context()
    if "unplugged" in faults:
        return context, []
    usb = "2.1" if "usb2" in faults else "3.2"
    device, sensor, profiles = software_device(rs, usb=usb, depth="depth" in faults)
    feed = threading.Thread(target=_feed, args=(rs, sensor, profiles, control), daemon=True)
    feed.start()
    return context, [device]


def main(arguments):
    control = Path(arguments[0])
    realsense.connected = lambda rs: _connected(rs, control)
    return process.main(arguments[1:])


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
