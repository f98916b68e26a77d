"""How MuJoCo can render on this machine, chosen before it is first imported."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import sys

from ..errors import RobotError

EGL_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"
_OSMESA_PACKAGES = "libosmesa6"


def rendering_backend() -> str:
    """How MuJoCo can render here: the user's own `MUJOCO_GL` if set, else egl, else osmesa.

    Raises:
        RobotError: if no GL library can be loaded; the message names the Debian packages.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    backends = [chosen] if chosen else ["egl", "osmesa"]
    for backend in backends:
        if _can_load(backend):
            return backend
    raise RobotError(
        f"cannot render: MUJOCO_GL is {chosen or 'not set'}, no library for "
        f"{' or '.join(backends)} can be loaded. "
        f"On Debian or Ubuntu: apt-get install {EGL_PACKAGES} (egl) or {_OSMESA_PACKAGES} "
        "(osmesa). Recorded episodes need neither"
    )


def choose_backend() -> None:
    """Set `MUJOCO_GL`, which MuJoCo reads when it is first imported.

    Whatever needs MuJoCo imports it inside a function that runs after this one.

    Raises:
        RobotError: no simulator, nothing that can render, or MuJoCo was imported already.
    """
    missing = [name for name in ("metaworld", "mujoco") if importlib.util.find_spec(name) is None]
    if missing:
        raise RobotError(
            f"the simulator is not installed (no {' and no '.join(missing)}): "
            "pip install metaworld==3.1.1 mujoco==3.3.0, or use recorded episodes"
        )
    backend = rendering_backend()
    if "mujoco" in sys.modules and os.environ.get("MUJOCO_GL", "").strip().lower() != backend:
        raise RobotError(
            "mujoco was imported before MetaWorldRobot could choose how it renders: "
            f"set MUJOCO_GL={backend} in the environment, or import mujoco later"
        )
    os.environ["MUJOCO_GL"] = backend
    # A software renderer's cache in the home folder saves no measurable time: 3 s either way.
    os.environ.setdefault("MESA_SHADER_CACHE_DISABLE", "true")


def _can_load(backend: str) -> bool:
    if backend == "egl":
        return _has_egl_device()
    if backend == "osmesa":
        return ctypes.util.find_library("OSMesa") is not None
    return True  # glfw and the like: the user asked for it, MuJoCo will tell


def _has_egl_device() -> bool:
    # libEGL.so.1 alone is only a dispatcher; it has devices once a vendor library, such as Mesa's,
    # is installed beside it.
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return False
    signature = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
    )
    num_devices = ctypes.c_int(0)
    signature(address)(0, None, ctypes.byref(num_devices))
    return num_devices.value > 0
