"""What the free camera sees of a Meta-World scene: pictures, with spheres for markers.

Shadows, reflections, antialiasing and surface textures are off: more than ten times faster in
software than Meta-World's own pictures, and five times smaller as PNG.

H, W = image height and width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RobotError
from .rendering import EGL_PACKAGES

Sphere = tuple[str, NDArray[np.float64]]
"""A marker: a key of `COLOURS`, and x, y, z in metres."""

COLOURS = {
    "green": (0.0, 1.0, 0.0),
    "red": (1.0, 0.0, 0.0),
    "blue": (0.1, 0.3, 1.0),
    "yellow": (1.0, 0.85, 0.0),
    "white": (0.95, 0.95, 0.95),
}

# The free camera looks from the side on which the drawer's handle, the button and the reachable
# goals are all in view.
_LOOK_AT_M = (0.04, 0.77, 0.16)
_DISTANCE_M = 0.94
_AZIMUTH_DEG = 332.0
_ELEVATION_DEG = -37.0

_MARKER_RADIUS_M = 0.03
_MATERIAL_RGB = {
    "table_wood": (0.42, 0.31, 0.26),
    "wall_metal": (0.45, 0.45, 0.45),
    "basic_floor": (0.62, 0.62, 0.62),
}


def rays(places_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., 3] unit vectors from the camera to `places_m` [..., 3]."""
    azimuth, elevation = np.deg2rad(_AZIMUTH_DEG), np.deg2rad(_ELEVATION_DEG)
    level = np.cos(elevation)
    ahead = np.array([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)])
    ways_m = places_m - (np.array(_LOOK_AT_M) - _DISTANCE_M * ahead)
    return np.asarray(ways_m / np.linalg.norm(ways_m, axis=-1, keepdims=True))


class View:
    """The camera, its renderer, and the marker that can be switched on and off."""

    def __init__(self, model: Any, image_size: int, colour: str | None) -> None:
        import mujoco

        self._model = model
        self._colour = colour
        self._marker = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "goal")
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._camera.lookat[:] = _LOOK_AT_M
        self._camera.distance = _DISTANCE_M
        self._camera.azimuth = _AZIMUTH_DEG
        self._camera.elevation = _ELEVATION_DEG
        self._simplify()
        try:
            self._renderer = mujoco.Renderer(model, image_size, image_size)
        except (ImportError, RuntimeError) as error:
            raise RobotError(
                f"cannot render with MUJOCO_GL={os.environ['MUJOCO_GL']}: {error}. "
                f"On Debian or Ubuntu: apt-get install {EGL_PACKAGES}"
            ) from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = 0

    def render(
        self, data: Any, *, show_marker: bool, spheres: Iterable[Sphere]
    ) -> NDArray[np.uint8]:
        """[H, W, 3] RGB; the caller owns the buffer."""
        if self._marker >= 0 and self._colour is not None:
            rgb = COLOURS[self._colour]
            self._model.site_rgba[self._marker] = (*rgb, float(show_marker))
        self._renderer.update_scene(data, self._camera)
        for colour, place_m in spheres:
            self._add_sphere(place_m, COLOURS[colour])
        return np.asarray(self._renderer.render(), np.uint8)

    def close(self) -> None:
        self._renderer.close()

    def _add_sphere(self, place_m: NDArray[np.float64], rgb: tuple[float, float, float]) -> None:
        """Into the scene of this one picture; the simulated world knows nothing of it."""
        import mujoco

        scene = self._renderer.scene
        mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom],
            mujoco.mjtGeom.mjGEOM_SPHERE,
            np.array([_MARKER_RADIUS_M, 0.0, 0.0]),
            place_m,
            np.eye(3).ravel(),
            np.array([*rgb, 1.0], np.float32),
        )
        scene.ngeom += 1

    def _simplify(self) -> None:
        quality = self._model.vis.quality
        quality.offsamples = 0
        quality.shadowsize = 0
        self._model.site_rgba[:, 3] = 0  # coloured dots that no camera would see
        if self._marker >= 0:
            self._model.site_size[self._marker] = _MARKER_RADIUS_M
        for name, rgb in _MATERIAL_RGB.items():
            material = self._model.material(name).id
            self._model.mat_texid[material] = -1
            self._model.mat_rgba[material] = (*rgb, 1.0)
            self._model.mat_specular[material] = 0
